"""Tables added to somebody else's database: all of them or none, once, and nothing else touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from lake_pipeline.errors import ConfigError, StoreError
from lake_pipeline.io.results_db import insert_once

FACTS = pa.table({"alert_id": ["a", "b", "c"], "ath_mult": pa.array([1.5, None, 3.0], pa.float64())})
TABLES = {"study.runs_d": pa.table({"run_id": ["run"]}), "study.facts_f": FACTS, "study.notes_f": FACTS.slice(0, 0)}


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with a table of its owner's."""
    path = str(tmp_path / "alerts.duckdb")
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine AS SELECT range AS n FROM range(10)")
    return path


def dump(path: str, folder: Path) -> dict[str, bytes]:
    """Every byte of an export of the whole database."""
    with duckdb.connect(path, read_only=True) as connection:
        connection.execute(f"EXPORT DATABASE '{folder}' (FORMAT csv)")
    # load.sql names the folder.
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "load.sql"}


def rows(path: str, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def table_names(path: str) -> list[str]:
    found = rows(path, "SELECT table_schema || '.' || table_name FROM information_schema.tables ORDER BY 1")
    return [name for (name,) in found]


def test_rows_come_with_their_key_and_a_repeat_changes_no_byte(database: str, tmp_path: Path) -> None:
    assert insert_once(database, "k1", TABLES)
    assert insert_once(database, "k2", TABLES)
    assert table_names(database) == ["main.mine", "study.facts_f", "study.notes_f", "study.runs_d"]
    assert rows(database, "SELECT * FROM study.facts_f WHERE result_key = 'k2' ORDER BY alert_id") == [
        ("k2", "a", 1.5),
        ("k2", "b", None),
        ("k2", "c", 3.0),
    ]
    before, data = dump(database, tmp_path / "before"), Path(database).read_bytes()
    assert not insert_once(database, "k1", TABLES)
    assert dump(database, tmp_path / "after") == before
    assert Path(database).read_bytes() == data


def test_an_error_inside_the_transaction_leaves_nothing(database: str, tmp_path: Path) -> None:
    with duckdb.connect(database) as connection:
        connection.execute("CREATE SCHEMA study")
        connection.execute(
            "CREATE TABLE study.notes_f (result_key VARCHAR, alert_id VARCHAR, ath_mult DOUBLE CHECK (ath_mult < 2))"
        )
    before = dump(database, tmp_path / "before")
    with pytest.raises(StoreError, match="cannot be written, and is as it was: Constraint Error"):
        insert_once(database, "k1", {**TABLES, "study.notes_f": FACTS})
    assert dump(database, tmp_path / "after") == before
    assert table_names(database) == ["main.mine", "study.notes_f"]
    assert insert_once(database, "k1", TABLES)


def test_a_process_that_dies_between_two_tables_leaves_nothing(database: str, tmp_path: Path) -> None:
    before = dump(database, tmp_path / "before")
    script = """
import os, sys
import pyarrow as pa
from lake_pipeline.io import results_db
rows = pa.table({"a": list(range(1000))})
require = results_db._require_table
made = []
def require_then_die(connection, path, name, schema):
    require(connection, path, name, schema)
    made.append(name)
    if len(made) == 2:
        connection.from_arrow(pa.table({"result_key": ["k"] * 1000, "a": list(range(1000))})).insert_into(made[0])
        os._exit(9)
results_db._require_table = require_then_die
results_db.insert_once(sys.argv[1], "k", {"study.one": rows, "study.two": rows})
"""
    done = subprocess.run([sys.executable, "-c", script, database], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert dump(database, tmp_path / "after") == before


def test_a_table_of_that_name_with_other_columns_is_left_alone(database: str, tmp_path: Path) -> None:
    with duckdb.connect(database) as connection:
        connection.execute("CREATE SCHEMA study")
        connection.execute("CREATE TABLE study.facts_f AS SELECT 'x' AS result_key, 'y' AS alert_id, 'z' AS ath_mult")
    before = dump(database, tmp_path / "before")
    with pytest.raises(StoreError, match=r"table study.facts_f has other columns than this version writes"):
        insert_once(database, "k1", TABLES)
    assert dump(database, tmp_path / "after") == before


def test_a_database_in_use_is_named(database: str) -> None:
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="Close it in other programs"):
            insert_once(database, "k1", TABLES)
        holder.stdin.close()


def test_a_new_file_is_made_and_what_is_no_database_is_refused(tmp_path: Path) -> None:
    assert insert_once(str(tmp_path / "new" / "file.duckdb"), "k1", TABLES)
    (tmp_path / "text.duckdb").write_text("no database at all" * 1000)
    with pytest.raises(StoreError, match="cannot be written"):
        insert_once(str(tmp_path / "text.duckdb"), "k1", TABLES)
    with pytest.raises(ConfigError, match="not a URL"):
        insert_once("s3://bucket/alerts.duckdb", "k1", TABLES)
