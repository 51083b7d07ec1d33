from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake_pipeline.core.alerts import NormalisedAlerts, normalise_alerts
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import ConfigError, InputError
from lake_pipeline.export import load_alerts
from lake_pipeline.io.alerts import DUCKDB_TABLES, read_alerts
from lake_pipeline_tests.candles_for_tests import T0_MS

SPEC = RunSpec("1m", "pre2_post3")


def csv_alerts(tmp_path: Path, content: bytes | str) -> NormalisedAlerts:
    path = tmp_path / "alerts.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_alerts(SPEC, str(path))


def rejections(result: NormalisedAlerts) -> list[tuple[int, str]]:
    return [(row["row_number"], row["reason"]) for row in result.rejected.to_pylist()]


def test_a_csv_is_read_with_byte_order_mark_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    result = csv_alerts(
        tmp_path,
        b"\xef\xbb\xbf\"id\",mint,ts,caller\r\n"
        b'007,"MintA",2025-05-01T00:00:00Z,"Bob, ""the"" caller"\r\n'
        b"\r\n"
        b'0070,MintB,2025-05-01T00:00:01Z,"two\r\nlines"\r\n'
        b"\r\n",
    )  # fmt: skip
    rows = result.alerts.to_pylist()
    assert [row["alert_id"] for row in rows] == ["007", "0070"]
    assert [row["mint"] for row in rows] == ["MintA", "MintB"]
    assert [row["caller"] for row in rows] == ['Bob, "the" caller', "two\r\nlines"]
    assert rejections(result) == []


def test_a_csv_without_a_final_newline_keeps_its_last_row(tmp_path: Path) -> None:
    result = csv_alerts(tmp_path, "mint,ts\na,2025-05-01\nb,2025-05-01")
    assert sorted(result.alerts.column("mint").to_pylist()) == ["a", "b"]


def test_numbers_in_a_csv_stay_text(tmp_path: Path) -> None:
    result = csv_alerts(tmp_path, f"alert_id,mint,ts\n000,1e5,{T0_MS}\n00,0123,{T0_MS // 1000}\n")
    assert [(row["alert_id"], row["mint"]) for row in result.alerts.to_pylist()] == [("00", "0123"), ("000", "1e5")]


def test_ragged_and_undecodable_rows_are_rejected_by_number_and_the_others_stay(tmp_path: Path) -> None:
    result = csv_alerts(
        tmp_path, b"mint,ts\na,2025-05-01\nb\nc,2025-05-01,x\nd\xff,2025-05-01\n\ne,2025-05-01\nf,never\n"
    )
    assert sorted(result.alerts.column("mint").to_pylist()) == ["a", "e"]
    assert [number for number, _ in rejections(result)] == [2, 3, 4, 6]
    reasons = [reason for _, reason in rejections(result)]
    assert reasons[:3] == [
        "the row has 1 fields, the header 2",
        "the row has 3 fields, the header 2",
        "the row is not valid UTF-8",
    ]
    assert "does not parse" in reasons[3]
    assert result.rejected.column("mint").to_pylist()[:3] == ["b", "c,2025-05-01,x", "d�,2025-05-01"]
    assert result.rows_in == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; it needs a header line"),
        ("\n\n", "is empty; it needs a header line"),
        ("mint,ts\n", "has no rows"),
        ("mint,ts,mint\na,2025-05-01,b\n", "several columns of one name in its header: mint, ts, mint"),
        ('mint,ts\n"a,2025-05-01\n', "is not readable CSV from line"),
        ("mint;ts\na;2025-05-01\n", "have no mint column"),
        ("mint,when\na,2025-05-01\n", "have no ts column"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        csv_alerts(tmp_path, content)


def test_a_csv_of_another_encoding_loses_only_the_rows_that_need_it(tmp_path: Path) -> None:
    result = csv_alerts(tmp_path, "mint,ts,caller\na,2025-05-01,Zoë\nb,2025-05-01,Bob\n".encode("latin-1"))
    assert result.alerts.column("mint").to_pylist() == ["b"]
    assert rejections(result) == [(1, "the row is not valid UTF-8")]


# --- Parquet -------------------------------------------------------------------------------------


def parquet_alerts(tmp_path: Path, columns: dict[str, Any]) -> NormalisedAlerts:
    pq.write_table(pa.table(columns), tmp_path / "alerts.parquet")
    return load_alerts(SPEC, str(tmp_path / "alerts.parquet"))


@pytest.mark.parametrize(
    "ts",
    [
        pa.array([T0_MS]),
        pa.array([T0_MS // 1000], pa.int32()),
        pa.array([float(T0_MS)]),
        pa.array(["2025-05-01T00:00:00Z"]),
        pa.array(["2025-05-01T00:00:00Z"], pa.large_string()),
        pa.array([dt.datetime(2025, 5, 1)]),
        pa.array([T0_MS]).cast(pa.timestamp("ms", "Asia/Tokyo")),
        pa.array([dt.date(2025, 5, 1)]),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet_times_of_any_type_are_the_same_instant(tmp_path: Path, ts: pa.Array) -> None:
    result = parquet_alerts(tmp_path, {"mint": ["a"], "ts": ts})
    assert result.alerts.column("ts").cast(pa.int64()).to_pylist() == [T0_MS]


def test_parquet_ids_may_be_numbers_and_names_dictionaries(tmp_path: Path) -> None:
    columns = {"id": [12], "mint": pa.array(["Abc"]).dictionary_encode(), "ts": [T0_MS], "caller_name": ["x"]}
    [row] = parquet_alerts(tmp_path, columns).alerts.to_pylist()
    assert (row["alert_id"], row["mint"], row["caller"]) == ("12", "Abc", "x")


def test_a_row_number_counts_parquet_rows_from_one(tmp_path: Path) -> None:
    result = parquet_alerts(tmp_path, {"mint": ["a", None], "ts": [T0_MS, T0_MS]})
    assert rejections(result) == [(2, "mint is empty")]


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"a\.parquet is not a readable Parquet file"):
        load_alerts(SPEC, str(tmp_path / "a.parquet"))


# --- files in general ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.duckdb"])
def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        load_alerts(SPEC, str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert str(Path.cwd()) in str(caught.value)


@pytest.mark.parametrize("name", ["alerts.xlsx", "alerts", "alerts.csv.gz"])
def test_a_file_of_no_known_kind_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"give a \.parquet, \.csv or \.duckdb file"):
        read_alerts(name, (None, None))


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_alerts(SPEC, str(tmp_path / "a.csv"))


def test_a_table_goes_with_a_database_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alerts_table goes with a DuckDB file"):
        load_alerts(SPEC, str(tmp_path / "a.csv"), "t")


# --- DuckDB --------------------------------------------------------------------------------------

TABLES = {
    "canon.alerts_std": ("alert_id, mint, alert_ts_ms, caller_name, chain", "alert_ts_ms"),
    "canon.alerts_final": ("alert_id, mint, alert_ts_ms, caller_name, chain", "alert_ts_ms"),
    "caller_links_d": ("trigger_ts_ms, trigger_from_name, mint, chain", "trigger_ts_ms"),
    "user_calls_d": ("call_ts_ms, caller_name, mint, chain", "call_ts_ms"),
}
VALUES = {
    "alert_id": "'id-1'",
    "mint": "'{mint}'",
    "alert_ts_ms": str(T0_MS),
    "trigger_ts_ms": str(T0_MS),
    "call_ts_ms": str(T0_MS),
    "caller_name": "'bob'",
    "trigger_from_name": "'bob'",
    "chain": "'solana'",
}


def database(path: Path, tables: dict[str, int]) -> str:
    """Tables of the usual names with so many rows; each row's mint is its table's name."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA canon")
        for name, rows in tables.items():
            columns = TABLES[name][0].split(", ")
            values = ", ".join(f"{VALUES[column].format(mint=name)} AS {column}" for column in columns)
            connection.execute(f"CREATE TABLE {name} AS SELECT {values} FROM range({rows})")
    return str(path)


def test_the_preferred_tables_are_those_of_the_contract() -> None:
    assert DUCKDB_TABLES == ("canon.alerts_std", "canon.alerts_final", "caller_links_d", "user_calls_d")


@pytest.mark.parametrize("first", range(4))
def test_the_first_duckdb_table_that_has_rows_is_read(tmp_path: Path, first: int) -> None:
    rows = {name: 0 if position < first else 1 for position, name in enumerate(DUCKDB_TABLES)}
    path = database(tmp_path / "alerts.duckdb", rows)
    [row] = load_alerts(SPEC, path).alerts.to_pylist()
    assert (row["mint"], row["caller"], row["chain"]) == (DUCKDB_TABLES[first], "bob", "solana")
    assert int(row["ts"].timestamp() * 1000) == T0_MS


def test_a_named_duckdb_table_is_read_instead(tmp_path: Path) -> None:
    path = database(tmp_path / "alerts.duckdb", {"canon.alerts_std": 1})
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 'x' AS mint, TIMESTAMP '2025-05-01 00:00:00' AS ts")
    [row] = load_alerts(SPEC, path, "mine").alerts.to_pylist()
    assert row["mint"] == "x"
    assert load_alerts(SPEC, path, "canon.alerts_std").alerts.column("mint").to_pylist() == ["canon.alerts_std"]


def test_reading_a_duckdb_file_does_not_change_it(tmp_path: Path) -> None:
    path = Path(database(tmp_path / "alerts.duckdb", {"user_calls_d": 1}))
    before = path.read_bytes()
    load_alerts(SPEC, str(path))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["alerts.duckdb"]


@pytest.mark.parametrize("table", [None, "nope"])
def test_a_duckdb_file_without_such_a_table_names_the_tables_it_has(tmp_path: Path, table: str | None) -> None:
    path = str(tmp_path / "alerts.duckdb")
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE other AS SELECT 1 AS x")
    with pytest.raises(InputError, match=r"tables found: main\.other") as caught:
        load_alerts(SPEC, path, table)
    assert "alerts_table" in str(caught.value)


def test_a_duckdb_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.duckdb").write_bytes(b"nothing" * 1000)
    with pytest.raises(InputError, match=r"alerts database .*a\.duckdb cannot be read"):
        load_alerts(SPEC, str(tmp_path / "a.duckdb"))


def test_duckdb_decimals_and_big_integers_are_times(tmp_path: Path) -> None:
    path = str(tmp_path / "a.duckdb")
    with duckdb.connect(path) as connection:
        connection.execute(f"CREATE TABLE d AS SELECT 'a' AS mint, CAST({T0_MS} AS HUGEINT) AS ts ")
        connection.execute(f"CREATE TABLE e AS SELECT 'a' AS mint, CAST({T0_MS // 1000}.123 AS DECIMAL(18,3)) AS ts")
    for table, ts_ms in (("d", T0_MS), ("e", T0_MS + 123)):
        result = normalise_alerts(read_alerts(path, (None, None), table), SPEC)
        assert result.alerts.column("ts").cast(pa.int64()).to_pylist() == [ts_ms]


def test_a_csv_that_is_not_utf8_at_all_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "alerts.csv"
    path.write_bytes("alert_id,mint,ts\n1,a,5\n".encode("utf-16"))
    with pytest.raises(InputError, match="save it as CSV UTF-8"):
        read_alerts(str(path), (None, None))
