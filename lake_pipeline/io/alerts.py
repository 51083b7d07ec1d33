"""Reading alerts as they lie around: CSV, Parquet, DuckDB. What the rows mean is decided in `core.alerts`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import pyarrow as pa

from lake_pipeline.core.alerts import COLUMN_NAMES, RawAlerts
from lake_pipeline.errors import ConfigError, InputError
from lake_pipeline.io.parquet import parquet_table

__all__ = ["ALERT_SUFFIXES", "DUCKDB_TABLES", "alerts_exist", "read_alerts"]

# The first of these that exists and has rows is read.
DUCKDB_TABLES: Final = ("canon.alerts_std", "canon.alerts_final", "caller_links_d", "user_calls_d")
_DUCKDB_SUFFIXES: Final = (".duckdb", ".ddb", ".db")
_PARQUET_SUFFIXES: Final = (".parquet", ".pq")
ALERT_SUFFIXES: Final = (".csv", *_PARQUET_SUFFIXES, *_DUCKDB_SUFFIXES)
_CSV_FIELD_LIMIT: Final = 1 << 24


def read_alerts(path: str, range_ms: tuple[int | None, int | None], table: str | None = None) -> RawAlerts:
    """Alerts from a file or URL (`.parquet`, `.csv`) or a DuckDB database file.

    `table` names the DuckDB table; without it the first of DUCKDB_TABLES that has rows. Raises InputError
    when there is no such file or it cannot be read, ConfigError for a name of no known kind.
    """
    if "://" in path:
        from lake_pipeline.io.objects import refuse_secret

        refuse_secret("alerts", path)
    suffix = PurePosixPath(urlsplit(path).path if "://" in path else path).suffix.lower()
    if suffix in _DUCKDB_SUFFIXES:
        return _read_duckdb(path, table)
    if table is not None:
        raise ConfigError(f"alerts_table goes with a DuckDB file, and alerts {path!r} is not one")
    if suffix == ".csv":
        return _read_csv(path, _contents(path))
    if suffix in _PARQUET_SUFFIXES:
        return _read_parquet(path, _contents(path))
    raise ConfigError(f"alerts {path!r} is of no known kind: give a .parquet, .csv or .duckdb file")


def alerts_exist(path: str) -> bool:
    """Whether there is an alerts input of this path or URL. Raises InputError where that cannot be told."""
    if "://" not in path:
        return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for names no file can have
    from obstore.exceptions import BaseError

    try:
        folder, name = _object(path)
        folder.head(name)
    except FileNotFoundError:
        return False
    except (BaseError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return True


def _contents(path: str) -> bytes:
    if "://" in path:
        return _fetch(path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"alerts file {path} does not exist (looked from {Path.cwd()}); check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"alerts file {path} cannot be read: {getattr(error, 'strerror', error)}") from error


def _fetch(url: str) -> bytes:
    from obstore.exceptions import BaseError

    try:
        folder, name = _object(url)
        return bytes(folder.get(name).bytes())
    except (BaseError, OSError, ValueError) as error:
        raise _unreadable(url, error) from error


def _object(url: str) -> tuple[Any, str]:
    """The store and name of an object by URL; credentials come from the environment or the platform."""
    from obstore.store import from_url

    from lake_pipeline.io.objects import refuse_secret

    refuse_secret("alerts", url)
    folder, _, name = url.rpartition("/")
    return from_url(folder), name


def _unreadable(url: str, error: Exception) -> InputError:
    return InputError(f"alerts {url} cannot be read: {str(error).splitlines()[0]}")


def _read_parquet(path: str, data: bytes) -> RawAlerts:
    try:
        table = parquet_table(data)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"alerts file {path} is not a readable Parquet file: {error}") from error
    if len(set(table.column_names)) != len(table.column_names):
        raise InputError(f"alerts file {path} has several columns of one name")
    return RawAlerts(table, range(1, table.num_rows + 1), {})


def _read_csv(path: str, data: bytes) -> RawAlerts:
    """Every value as text, so that leading zeros survive; rows that do not fit the header are set apart."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    # surrogateescape lets a row that is not UTF-8 be rejected by itself.
    lines = io.StringIO(data.decode("utf-8-sig", errors="surrogateescape"), newline="")
    reader = csv.reader(lines, strict=True)
    rows = _csv_rows(path, reader)
    header = next(rows, None)
    if header is None:
        raise InputError(f"alerts file {path} is empty; it needs a header line and a row for each alert")
    if not _is_unicode(header):
        raise InputError(f'alerts file {path} is not UTF-8 text (Excel\'s "Unicode" is not): save it as CSV UTF-8')
    names = [name.strip() for name in header]
    if len(set(names)) != len(names):
        raise InputError(f"alerts file {path} has several columns of one name in its header: {', '.join(names)}")
    columns: list[list[str]] = [[] for _ in names]
    row_numbers: list[int] = []
    unreadable: dict[int, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        reason = None
        if len(row) != len(names):
            reason = f"the row has {len(row)} fields, the header {len(names)}"
        elif not _is_unicode(row):
            reason = "the row is not valid UTF-8"
        if reason:
            unreadable[number] = (_printable(",".join(row)), reason)
            continue
        row_numbers.append(number)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})
    return RawAlerts(table, row_numbers, unreadable)


def _csv_rows(path: str, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows of a CSV but for blank lines; an unterminated quote makes the whole rest unreadable."""
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise InputError(
            f"alerts file {path} is not readable CSV from line {getattr(reader, 'line_num', '?')} on: {error}"
        ) from error


def _is_unicode(row: list[str]) -> bool:
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _read_duckdb(path: str, table: str | None) -> RawAlerts:
    import duckdb

    if "://" in path:
        raise ConfigError(f"alerts {path!r}: a DuckDB database is read from a local file, not from a URL")
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names no file can have
        raise InputError(f"alerts database {path} does not exist (looked from {Path.cwd()}); check the path")
    try:
        with duckdb.connect(path, read_only=True) as connection:
            present = {
                (schema.lower(), name.lower())
                for schema, name in connection.execute(
                    "SELECT table_schema, table_name FROM information_schema.tables"
                ).fetchall()
            }
            wanted = (table,) if table else DUCKDB_TABLES
            for name in wanted:
                schema, _, bare = name.rpartition(".")
                if (schema.lower() or "main", bare.lower()) not in present:
                    continue
                rows = connection.table(name).to_arrow_table()
                if rows.num_rows or table:
                    return RawAlerts(rows, range(1, rows.num_rows + 1), {})
    except duckdb.Error as error:
        raise InputError(f"alerts database {path} cannot be read: {str(error).splitlines()[0]}") from error
    found = ", ".join(sorted(f"{schema}.{name}" for schema, name in present)) or "none"
    raise InputError(
        f"alerts database {path} has no rows in {' or '.join(wanted)}; tables found: {found}. "
        f"Set alerts_table to one with the columns {', '.join(names[0] for names in COLUMN_NAMES.values())}"
    )
