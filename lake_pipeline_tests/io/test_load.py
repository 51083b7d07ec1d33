"""`load_candles` into the real embedded engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from lake_pipeline.errors import InputError
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.load import load_candles
from lake_pipeline_tests.candles_for_tests import T0_MS, VALUES, Candle, arrow_candles
from lake_pipeline_tests.conftest import SourceFactory

CANDLES = [Candle(mint, T0_MS + n * 60_000, volume=float(n), source="feed") for mint in ("a", "b") for n in range(50)]


def parquet(path: Path, candles: list[Candle]) -> str:
    pq.write_table(arrow_candles(candles), path)
    return str(path)


def stored(source: ClickHouseSource) -> list[tuple[Any, ...]]:
    """Every row of the table, duplicates included."""
    query = (
        "SELECT token_address, chain, toUnixTimestamp64Milli(timestamp), interval_seconds, "
        f"{', '.join(VALUES)}, source "
        f"FROM {source.config.table} ORDER BY ALL"
    )
    rows = source.call("look", lambda client: client.query(query).result_rows)
    return [tuple(row) for row in rows]


def as_rows(candles: list[Candle]) -> list[tuple[Any, ...]]:
    return sorted((c.mint, c.chain, c.ts_ms, c.interval_s, *c.values, c.source or "") for c in candles)


def test_the_table_is_created_with_the_designs_columns(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    result = load_candles(source, [parquet(tmp_path / "c.parquet", CANDLES)])
    assert (result.files, result.rows, result.inserted, result.present) == (1, 100, 100, 0)
    assert result.table == f"default.{table}"
    assert stored(source) == as_rows(CANDLES)
    assert set(source.identity()["columns"]) == {
        "token_address", "timestamp", *VALUES, "chain", "interval_seconds", "quality_score", "ingested_at", "source"
    }  # fmt: skip


def test_loading_twice_changes_nothing(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    file = parquet(tmp_path / "c.parquet", CANDLES)
    load_candles(source, [file])
    before = stored(source)
    again = load_candles(source, [file, file])
    assert (again.rows, again.inserted, again.present) == (200, 0, 200)
    assert stored(source) == before


def test_only_what_is_not_there_is_inserted(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    load_candles(source, [parquet(tmp_path / "1.parquet", CANDLES[:30])])
    result = load_candles(source, [parquet(tmp_path / "2.parquet", CANDLES)])
    assert (result.inserted, result.present) == (70, 30)
    assert stored(source) == as_rows(CANDLES)


def test_rows_that_repeat_inside_a_file_are_loaded_once(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    result = load_candles(source, [parquet(tmp_path / "c.parquet", [*CANDLES, *CANDLES[:7]])])
    assert (result.rows, result.inserted, result.present) == (107, 100, 7)


def test_a_corrected_candle_is_a_new_row(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    one, two = Candle("a", T0_MS, close=1.0), Candle("a", T0_MS, close=1.25)
    load_candles(source, [parquet(tmp_path / "1.parquet", [one])])
    assert load_candles(source, [parquet(tmp_path / "2.parquet", [two])]).inserted == 1


def test_candles_that_hold_no_number_are_loaded_once_too(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    file = parquet(tmp_path / "c.parquet", [Candle("a", T0_MS, volume=math.nan)])
    assert [load_candles(source, [file]).inserted for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "ts",
    [
        pa.array([T0_MS]),
        pa.array([T0_MS // 1000]),
        pa.array(["2025-05-01T00:00:00Z"]),
        pa.array(["2025-05-01 00:00:00"]),
        pa.array([str(T0_MS)]),
        pa.array([T0_MS]).cast(pa.timestamp("ms")),
        pa.array([T0_MS]).cast(pa.timestamp("ms", "America/New_York")),
    ],
    ids=lambda array: f"{array.type} {array[0]}",
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_names_and_times_are_understood(
    tmp_path: Path, table: str, source_of: SourceFactory, ts: pa.Array, suffix: str
) -> None:
    columns = {"Mint": ["a"], "ts": ts} | {name: [1.0] for name in VALUES}
    path = tmp_path / f"c.{suffix}"
    if suffix == "csv":
        pacsv.write_csv(pa.table(columns), path)
    else:
        pq.write_table(pa.table(columns), path)
    source = source_of(table)
    load_candles(source, [str(path)], chain="SOL", interval_s=60)
    assert stored(source) == [("a", "solana", T0_MS, 60, 1.0, 1.0, 1.0, 1.0, 1.0, "")]


def test_chain_names_are_stored_in_one_spelling(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    source = source_of(table)
    candles = [Candle("a", T0_MS + n, chain=chain) for n, chain in enumerate(["SOL", "Solana", "ETH"])]
    load_candles(source, [parquet(tmp_path / "c.parquet", candles)])
    assert [row[1] for row in stored(source)] == ["ethereum", "solana", "solana"]


def test_an_empty_price_stays_no_number(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    (tmp_path / "c.csv").write_text(f"mint,ts,open,high,low,close,volume\na,{T0_MS},,2,1,1,1\n")
    source = source_of(table)
    load_candles(source, [str(tmp_path / "c.csv")], chain="sol", interval_s=60)
    assert math.isnan(stored(source)[0][4])


def test_addresses_of_digits_in_a_csv_stay_text(tmp_path: Path, table: str, source_of: SourceFactory) -> None:
    (tmp_path / "c.csv").write_text(f"mint,ts,open,high,low,close,volume\n00123,{T0_MS},1,2,1,1,1\n")
    source = source_of(table)
    load_candles(source, [str(tmp_path / "c.csv")], chain="sol", interval_s=60)
    assert stored(source)[0][0] == "00123"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "does not exist"),
        ("c.txt", "x", r"is of no known kind: give \.parquet or \.csv"),
        ("c.csv", "mint,ts,open,high,low,close\n", "has no volume column"),
        ("c.csv", "mint,open,high,low,close,volume\n", "has no timestamp column: name one of timestamp, ts"),
        ("c.csv", "mint,ts,open,high,low,close,volume\na,x,1,1,1,1,1\n", "column 'ts' .*cannot be read as timestamp"),
        ("c.csv", "mint,ts,open,high,low,close,volume\na,5,x,1,1,1,1\n", "column 'open' .*cannot be read as open"),
        ("c.csv", "mint,ts,open,high,low,close,volume\na,5,1,1,1,1,1\na,,1,1,1,1,1\n", "row 2: timestamp is empty"),
        ("c.csv", "mint,ts,open,high,low,close,volume\na,5,1\n", "cannot be read"),
        ("c.csv", "mint,ts,open,high,low,close,volume,volume\na,5,1,1,1,1,1,1\n", "several columns of one name"),
        # microseconds; and seconds among milliseconds
        ("c.csv", "mint,ts,open,high,low,close,volume\na,1746057600000000,1,1,1,1,1\n", "row 1 .*not of 1970 to 2299"),
        (
            "c.csv",
            "mint,ts,open,high,low,close,volume\na,1746057600,1,1,1,1,1\na,1746057660000,1,1,1,1,1\n",
            "mix epoch seconds and milliseconds",
        ),
        ("c.parquet", "nothing", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(
    tmp_path: Path, table: str, source_of: SourceFactory, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    source = source_of(table)
    with pytest.raises(InputError, match=message) as caught:
        load_candles(source, [str(tmp_path / name)], chain="sol", interval_s=60)
    assert name in str(caught.value)
    left = source.call("tables", lambda c: c.query(f"SHOW TABLES LIKE '{table}_load%'").result_rows)
    assert list(left) == []


@pytest.mark.parametrize(("given", "option"), [({"chain": "sol"}, "--interval"), ({"interval_s": 60}, "--chain")])
def test_a_file_without_chain_or_interval_needs_the_option(
    tmp_path: Path, table: str, source_of: SourceFactory, given: dict[str, Any], option: str
) -> None:
    (tmp_path / "c.csv").write_text("mint,ts,open,high,low,close,volume\na,5,1,1,1,1,1\n")
    with pytest.raises(InputError, match=f"or give {option}"):
        load_candles(source_of(table), [str(tmp_path / "c.csv")], **given)


def test_what_came_before_a_bad_row_is_found_present_when_the_repaired_file_is_loaded(
    tmp_path: Path, table: str, source_of: SourceFactory
) -> None:
    source = source_of(table)
    good = parquet(tmp_path / "1.parquet", CANDLES)
    (tmp_path / "2.csv").write_text("mint,ts\n")
    with pytest.raises(InputError):
        load_candles(source, [good, str(tmp_path / "2.csv")])
    again = load_candles(source, [good])
    assert (again.inserted, again.present) == (0, 100)


@pytest.mark.parametrize(
    "text", ["2025-05-01 00:00:00+00", "2025-05-01 00:00:00 UTC", "1746057600.0", " 2025-05-01T02:00:00+02:00 "]
)
def test_times_are_read_in_the_forms_other_tools_write(
    tmp_path: Path, table: str, source_of: SourceFactory, text: str
) -> None:
    (tmp_path / "c.csv").write_text(f"mint,ts,open,high,low,close,volume\na,{text},1,2,1,1,1\n")
    source = source_of(table)
    load_candles(source, [str(tmp_path / "c.csv")], chain="sol", interval_s=60)
    times = source.call(
        "times", lambda c: c.query(f"SELECT toUnixTimestamp64Milli(timestamp) FROM {table}").result_rows
    )
    assert [row[0] for row in times] == [T0_MS]
