"""Tables in a DuckDB database that other programs own too: added to in one transaction, never changed.

What the tables hold is for the caller to say. Only the tables named are created or touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lake_pipeline.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import duckdb

__all__ = ["insert_once"]


def insert_once(path: str, key: str, tables: Mapping[str, pa.Table]) -> bool:
    """Add these tables (`schema.name` to rows) to a DuckDB file, each row with `result_key` first; all or nothing.

    False, and nothing changed, where the first table has rows of this key already. Tables, schemas and the file itself
    are created if absent. Raises ConfigError for a URL, and StoreError when the file cannot be written or a table of
    that name has other columns.
    """
    if "://" in path:
        raise ConfigError(f"results database {path!r}: a DuckDB database is a local file, not a URL")
    import duckdb

    keyed = {
        name: table.add_column(0, "result_key", pa.array([key] * table.num_rows, pa.string()))
        for name, table in tables.items()
    }
    try:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(path) as connection:
            connection.begin()
            try:
                for name, table in keyed.items():
                    _require_table(connection, path, name, table.schema)
                first = connection.table(next(iter(keyed)))
                present = first.filter(duckdb.ColumnExpression("result_key") == duckdb.ConstantExpression(key))
                if present.limit(1).fetchall():
                    connection.rollback()
                    return False
                for name, table in keyed.items():
                    connection.from_arrow(table).insert_into(name)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
    except (duckdb.Error, OSError) as error:
        raise StoreError(
            f"results database {path} cannot be written, and is as it was: {str(error).splitlines()[0]}. "
            "Close it in other programs, check the file, and run again"
        ) from error
    return True


def _require_table(connection: duckdb.DuckDBPyConnection, path: str, name: str, schema: pa.Schema) -> None:
    """Create an absent table; StoreError where one is there with other columns."""
    wanted = connection.from_arrow(schema.empty_table())
    namespace, _, bare = name.partition(".")
    found = connection.execute(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = ? AND table_name = ?", [namespace, bare]
    ).fetchall()
    if found == [(0,)]:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {namespace}")
        wanted.create(name)
        return
    present = connection.table(name)
    if (present.columns, present.types) != (wanted.columns, wanted.types):
        raise StoreError(
            f"results database {path}: table {name} has other columns than this version writes "
            f"({', '.join(wanted.columns)}). Rename the table, or store into another file"
        )
