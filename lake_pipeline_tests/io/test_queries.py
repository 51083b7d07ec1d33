"""What the slice query lets the engine skip, on tables whose granules are small enough to count."""

from __future__ import annotations

import pytest

from lake_pipeline.core.plan import SLICE_MINTS
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.queries import slice_query
from lake_pipeline_tests.candles_for_tests import T0_MS, Alert, Candle, create_table, mint_name
from lake_pipeline_tests.conftest import SourceFactory
from lake_pipeline_tests.io.test_clickhouse import inside, read, request_for, rows_of_candles

MINUTE_MS = 60_000
# One row: a step too few at either end of a window would show as a missing candle.
GRANULE = 1
TIMES = {
    "DateTime64(3, 'UTC')": "timestamp",
    "DateTime64(9)": "timestamp",
    "DateTime('America/New_York')": "toDateTime(timestamp, 'America/New_York')",
    "UInt32": "toUnixTimestamp(timestamp)",
    "Int64": "toUnixTimestamp64Milli(timestamp)",
}


def history(mint: str, first_ms: int) -> list[Candle]:
    return [Candle(mint, first_ms + minute * MINUTE_MS) for minute in range(2_000)]


def make_history(engine: ClickHouseSource, table: str, candles: list[Candle], type_: str, expression: str) -> None:
    create_table(engine, f"{table}_base", candles)
    engine.call(
        "fill",
        lambda c: c.command(
            f"CREATE TABLE {table} ENGINE = MergeTree ORDER BY (token_address, chain, interval_seconds, timestamp) "
            f"SETTINGS index_granularity = {GRANULE} "
            f"AS SELECT * REPLACE (CAST({expression} AS {type_}) AS timestamp) FROM {table}_base"
        ),
    )


def granules_read(source: ClickHouseSource, alerts: list[Alert]) -> int:
    _, request = request_for(alerts)
    query, parameters = slice_query(source.table(), request)
    lines = source.call(
        "explain", lambda c: c.query(f"EXPLAIN indexes = 1 {query}", parameters=parameters)
    ).result_columns[0]
    selected = [line.split(":")[1].split("/")[0] for line in lines if "Granules:" in line]
    return int(selected[-1])


@pytest.mark.parametrize("type_", TIMES)
@pytest.mark.parametrize("off_grid_ms", [0, 59_999])
def test_short_windows_in_long_histories_read_little_and_miss_nothing(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, type_: str, off_grid_ms: int
) -> None:
    candles = [candle for mint in ("A", "B", "C") for candle in history(mint, T0_MS)]
    make_history(engine, table, candles, type_, TIMES[type_])
    minutes = {"A": (0, 3, 1_000, 1_999), "B": (777,), "C": (5, 6, 7, 1_500)}
    alerts = [
        Alert(f"{mint}{minute}", mint, T0_MS + minute * MINUTE_MS + off_grid_ms)
        for mint, of_mint in minutes.items()
        for minute in of_mint
    ]
    source = source_of(table)
    assert read(source, alerts) == rows_of_candles(inside(candles, alerts))
    # Separate windows of six candles, each with a step of some three at both ends, and the granules at their edges.
    assert granules_read(source, alerts) <= len(alerts) * 16 < len(candles) // GRANULE // 10


def test_windows_before_1970_are_found_by_the_index(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    candles = [*history("A", -1_000 * MINUTE_MS), *history("B", -1_000 * MINUTE_MS)]
    make_history(engine, table, candles, "DateTime64(3, 'UTC')", "timestamp")
    alerts = [
        Alert(str(minute), mint, minute * MINUTE_MS + 1) for mint in "AB" for minute in (-998, -500, -3, 0, 2, 900)
    ]
    source = source_of(table)
    assert read(source, alerts) == rows_of_candles(inside(candles, alerts))
    assert granules_read(source, alerts) <= len(alerts) * 16


def test_windows_that_fill_their_histories_ask_nothing_more_of_the_index(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    create_table(engine, table, history("A", T0_MS))
    _, request = request_for([Alert("1", "MintA", T0_MS), Alert("2", "MintB", T0_MS)])
    assert "intDiv" not in slice_query(source_of(table).table(), request)[0]


def test_a_query_has_its_settings_of_its_own_text(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    base = create_table(engine, f"{table}_base", [Candle("A", T0_MS)])
    settings = "toFloat64(getSetting('max_threads')) AS volume, getSetting('session_timezone') AS source"
    engine.call("create", lambda c: c.command(f"CREATE VIEW {table} AS SELECT * REPLACE ({settings}) FROM {base}"))
    _, request = request_for([Alert("1", "A", T0_MS)])
    source = source_of(table)
    for _ in range(2):
        block = source.read(request)
        assert (block.values["volume"].tolist(), block.source.to_pylist()) == ([1.0], ["UTC"])
    assert source.fingerprint(request).rows.tolist() == [1]


def test_the_text_of_a_query_may_be_long(engine: ClickHouseSource, table: str, source_of: SourceFactory) -> None:
    candles = [Candle(mint_name(number), T0_MS) for number in range(SLICE_MINTS)]
    create_table(engine, table, candles)
    alerts = [Alert(str(number), candle.mint, T0_MS) for number, candle in enumerate(candles)]
    _, request = request_for(alerts)
    source = source_of(table)
    assert len(slice_query(source.table(), request)[0]) > 262_144  # ClickHouse's own limit
    assert read(source, alerts) == rows_of_candles(candles)
