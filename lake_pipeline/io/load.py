"""Loading candle files into the source table, idempotently."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from lake_pipeline.core.alerts import END_OF_TIME_MS, FIRST_MILLISECOND_VALUE, parse_text_time
from lake_pipeline.core.candles import VALUE_COLUMNS
from lake_pipeline.core.chains import canonical_chain
from lake_pipeline.errors import InputError, SourceUnavailable
from lake_pipeline.io.clickhouse import ClickHouseSource, fetch_rows, quote_table, run_statement
from lake_pipeline.io.queries import CREATE_CANDLES

__all__ = ["LoadResult", "load_candles"]

# Role -> accepted column names, best first, compared without regard to case.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "token_address": ("token_address", "mint", "address"),
    "chain": ("chain",),
    "timestamp": ("timestamp", "ts", "ts_ms", "time"),
    "interval_seconds": ("interval_seconds", "interval_s", "interval"),
    **{name: (name,) for name in VALUE_COLUMNS},
    "source": ("source",),
    "quality_score": ("quality_score",),
    "ingested_at": ("ingested_at",),
}
_BATCH_ROWS: Final = 500_000
_TS: Final = pa.timestamp("ms", tz="UTC")
_TYPES: Final[Mapping[str, pa.DataType]] = {
    "token_address": pa.string(),
    "chain": pa.string(),
    "timestamp": _TS,
    "interval_seconds": pa.uint32(),
    **dict.fromkeys(VALUE_COLUMNS, pa.float64()),
    "source": pa.string(),
    "quality_score": pa.int32(),
    "ingested_at": _TS,
}


# What stands for an empty value. A candle without a price must stay one: NaN is rejected at the export.
_FILL: Final[Mapping[str, Any]] = {**dict.fromkeys(VALUE_COLUMNS, float("nan")), "source": "", "quality_score": 0}


@dataclass(frozen=True)
class LoadResult:
    """`rows == inserted + present`: present rows were in the table already, or repeat within the files."""

    table: str
    files: int
    rows: int
    inserted: int
    present: int


def load_candles(
    source: ClickHouseSource,
    files: list[str],
    *,
    chain: str | None = None,
    interval_s: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> LoadResult:
    """Insert the candles of Parquet or CSV files that the table does not have yet, creating the table if absent.

    `chain` and `interval_s` fill columns the files do not have. A row is present when the table has one
    with the same values in every column the file has. `on_rows` is called with the rows of each batch.
    Raises InputError naming file, rows and column. Batches before the bad one stay inserted; load the
    repaired file again, and they are found present.
    """
    table = source.config.table
    database = source.database()
    target = quote_table(database, table)
    # Named at random, so that two loads at once do not share it; dropped in any case.
    staging_name = f"{table}_load_{secrets.token_hex(6)}"
    staging = quote_table(database, staging_name)
    source.call("create the candle table", lambda client: run_statement(client, CREATE_CANDLES.format(table=target)))
    rows = inserted = 0
    try:
        for file in files:
            for batch in _batches(file, chain, interval_s):
                insert = partial(_insert, target=target, database=database, staging_name=staging_name, batch=batch)
                added = source.call(f"load {file}", insert)
                rows += batch.num_rows
                inserted += added
                on_rows(batch.num_rows)
    finally:
        source.call("drop the staging table", lambda client: run_statement(client, f"DROP TABLE IF EXISTS {staging}"))
    return LoadResult(f"{database}.{table}", len(files), rows, inserted, rows - inserted)


def _insert(client: Any, *, target: str, database: str, staging_name: str, batch: pa.Table) -> int:
    """Insert the rows of a batch that are not there yet; returns how many. Repeating it adds nothing."""
    staging = quote_table(database, staging_name)
    columns = ", ".join(batch.column_names)
    # Compared by hash: NaN is not equal to itself, and a row that holds one must not come in twice.
    row = f"sipHash128({columns})"
    run_statement(client, f"DROP TABLE IF EXISTS {staging}")
    run_statement(client, f"CREATE TABLE {staging} ENGINE = Memory AS SELECT {columns} FROM {target} LIMIT 0")
    client.insert_arrow(staging_name, batch, database=database)
    fresh = (
        f"SELECT DISTINCT {columns} FROM {staging} WHERE {row} NOT IN "
        f"(SELECT {row} FROM {target} WHERE token_address IN (SELECT token_address FROM {staging}) "
        f"AND timestamp >= (SELECT min(timestamp) FROM {staging}) "
        f"AND timestamp <= (SELECT max(timestamp) FROM {staging}))"
    )
    query = f"SELECT (SELECT count() FROM {staging}) AS staged, count() AS fresh FROM ({fresh})"
    (counts,) = fetch_rows(client, query)
    if counts["staged"] != batch.num_rows:
        raise SourceUnavailable(f"{staging} took {counts['staged']} of {batch.num_rows} rows")
    if counts["fresh"]:
        run_statement(client, f"INSERT INTO {target} ({columns}) {fresh}")
    return int(counts["fresh"])


def _batches(file: str, chain: str | None, interval_s: int | None) -> Iterator[pa.Table]:
    """The file's rows with the table's columns and types, some hundred thousand at a time."""
    path = Path(file)
    if not os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises for names no file can have
        raise InputError(f"candle file {file} does not exist (looked from {Path.cwd()}); check the path")
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as stream:
                header = stream.readline().strip().split(",")
            text = {name.strip('"'): pa.string() for name in header}
            reader: Any = pacsv.open_csv(
                path,
                convert_options=pacsv.ConvertOptions(column_types=text, null_values=[""], strings_can_be_null=True),
            )
            schema, batches = reader.schema, iter(reader)
        elif path.suffix.lower() in (".parquet", ".pq"):
            parquet = pq.ParquetFile(path)
            schema, batches = parquet.schema_arrow, parquet.iter_batches(_BATCH_ROWS)
        else:
            raise InputError(f"candle file {file} is of no known kind: give .parquet or .csv files")
        if len(set(schema.names)) != len(schema.names):
            raise InputError(f"candle file {file} has several columns of one name: {', '.join(schema.names)}")
        found = _columns(file, schema.names, chain, interval_s)
        row = 0
        for batch in batches:
            yield _converted(file, row, pa.Table.from_batches([batch]), found, chain, interval_s)
            row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"candle file {file} cannot be read: {str(error).splitlines()[0]}") from error


def _columns(file: str, names: list[str], chain: str | None, interval_s: int | None) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(names)}
    found = {}
    for role, accepted in _NAMES.items():
        match = next((by_name[name] for name in accepted if name in by_name), None)
        if match is not None:
            found[role] = match
    given = {"chain": chain, "interval_seconds": interval_s}
    for role in ("token_address", "timestamp", *VALUE_COLUMNS, "chain", "interval_seconds"):
        if role not in found and not given.get(role):
            option = {"chain": " or give --chain", "interval_seconds": " or give --interval"}.get(role, "")
            raise InputError(
                f"candle file {file} has no {role} column: name one of {', '.join(_NAMES[role])}{option}. "
                f"Columns found: {', '.join(names)}"
            )
    return found


def _converted(
    file: str, first_row: int, table: pa.Table, found: Mapping[str, str], chain: str | None, interval_s: int | None
) -> pa.Table:
    columns: dict[str, Any] = {}
    for role, type_ in _TYPES.items():
        if role not in found:
            continue
        column = table.column(found[role])
        try:
            columns[role] = _time(column, found[role]) if type_ == _TS else column.cast(type_)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"candle file {file}, rows {first_row + 1} to {first_row + table.num_rows}: column {found[role]!r} "
                f"({column.type}) cannot be read as {role}: {str(error).splitlines()[0]}"
            ) from error
        if role in _FILL:
            columns[role] = pc.fill_null(columns[role], pa.scalar(_FILL[role], type_))
        elif columns[role].null_count:
            row = first_row + pc.index(pc.is_null(columns[role]), True).as_py() + 1
            raise InputError(f"candle file {file}, row {row}: {role} is empty; remove or repair the row")
    if "chain" in found:
        canonical = {name: canonical_chain(name) for name in pc.unique(columns["chain"]).to_pylist()}
        columns["chain"] = pa.array([canonical[name] for name in columns["chain"].to_pylist()], pa.string())
    else:
        columns["chain"] = pa.array([canonical_chain(chain or "")] * table.num_rows, pa.string())
    if "interval_seconds" not in found:
        columns["interval_seconds"] = pa.array([interval_s] * table.num_rows, pa.uint32())
    return pa.table(columns)


def _time(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Datetimes, ISO 8601 text, or epoch seconds or milliseconds, as UTC milliseconds.

    Raises ArrowInvalid, naming the row of this batch, for a time that does not parse or is not of 1970 to 2299,
    and for numbers that mix seconds and milliseconds.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        if pc.all(pc.match_substring_regex(column, r"^[0-9]+$")).as_py():
            column = column.cast(pa.int64())
        else:
            column = _parse_times(column, name)
    if pa.types.is_integer(column.type):
        bounds = pc.min_max(column).as_py()
        low, high = bounds["min"] or 0, bounds["max"] or 0
        is_ms = name.lower().endswith("_ms") or high >= FIRST_MILLISECOND_VALUE
        if is_ms and 0 < low < FIRST_MILLISECOND_VALUE <= high:
            raise pa.ArrowInvalid(f"numbers from {low} to {high} mix epoch seconds and milliseconds")
        column = (column if is_ms else pc.multiply(column.cast(pa.int64()), 1000)).cast(pa.int64())
    ms = column if pa.types.is_int64(column.type) else column.cast(_TS, safe=False).cast(pa.int64())
    outside = pc.or_(pc.less(ms, 0), pc.greater_equal(ms, END_OF_TIME_MS))
    if pc.any(outside).as_py():
        row = pc.index(outside, True).as_py()
        raise pa.ArrowInvalid(f"row {row + 1} of these is not of 1970 to 2299; epoch times are seconds or milliseconds")
    return ms.cast(_TS)


def _parse_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Text as epoch ms: by Arrow where it can, else row by row with the rules of alerts."""
    zoned = pc.any(pc.match_substring_regex(column, r"(Z|[+-][0-9]{2}:?[0-9]{2})$")).as_py()
    try:
        return column.cast(pa.timestamp("us", tz="UTC" if zoned else None)).cast(_TS, safe=False).cast(pa.int64())
    except pa.ArrowInvalid:
        values = []
        for row, text in enumerate(column.to_pylist(), start=1):
            try:
                values.append(parse_text_time(text, name.lower().endswith("_ms")))
            except ValueError as error:
                raise pa.ArrowInvalid(f"row {row} of these: {error}") from error
        return pa.chunked_array([pa.array(values, pa.int64())])
