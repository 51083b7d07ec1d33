"""Reading candles from the real embedded ClickHouse engine."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake_pipeline.core.candles import VALUE_COLUMNS, CandleBlock, key_mint, key_ts_ms, reconcile
from lake_pipeline.core.plan import build_plan
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import ConfigError, EngineBusy, SourceError, SourceUnavailable
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.source import SliceRequest
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    VALUES,
    Alert,
    Candle,
    create_table,
    float_order,
    surviving,
    window_of,
)
from lake_pipeline_tests.conftest import SourceFactory

SPEC = RunSpec("1m", "pre2_post3")
Row = tuple[object, ...]


def request_for(alerts: list[Alert], spec: RunSpec = SPEC) -> tuple[list[str], SliceRequest]:
    table = pa.table(
        {
            "mint": pa.array([alert.mint for alert in alerts], pa.string()),
            "ts": pa.array([alert.ts_ms for alert in alerts], pa.int64()).cast(pa.timestamp("ms", "UTC")),
        }
    )
    plan = build_plan(table, spec)
    return plan.mints, SliceRequest.of(plan, range(len(plan.mints)))


def rows_of(block: CandleBlock, mints: list[str]) -> list[Row]:
    """The rows of a block in one order, whatever order they came in."""
    sources = [None] * len(block) if block.source is None else block.source.to_pylist()
    rows = [
        (
            mints[int(key_mint(block.keys)[row])],
            int(key_ts_ms(block.keys)[row]),
            *(float_order(float(block.values[name][row])) for name in VALUE_COLUMNS),
            sources[row],
        )
        for row in range(len(block))
    ]
    return sorted(rows, key=repr)


def rows_of_candles(candles: list[Candle], *, source: bool = True) -> list[Row]:
    rows = [
        (c.mint, c.ts_ms, *(float_order(value) for value in c.values), c.source if source else None) for c in candles
    ]
    return sorted(rows, key=repr)


def inside(candles: list[Candle], alerts: list[Alert], spec: RunSpec = SPEC) -> list[Candle]:
    """The candles a run of these alerts has to read, one window at a time."""
    found = []
    for candle in candles:
        for alert in alerts:
            start, _, end = window_of(alert.ts_ms, spec.interval_s, spec.pre, spec.post)
            if alert.mint == candle.mint and start <= candle.ts_ms < end:
                found.append(candle)
                break
    return found


def read(source: ClickHouseSource, alerts: list[Alert], spec: RunSpec = SPEC) -> list[Row]:
    mints, request = request_for(alerts, spec)
    return rows_of(source.read(request), mints)


# --- schema variants -------------------------------------------------------------------------------

CANDLES = [
    Candle(
        mint,
        T0_MS + minute * 60_000,
        open=1 + minute / 16,
        high=4.0,
        low=0.5,
        close=1 + minute / 8,
        volume=float(minute % 3),
        source="feed" if minute % 2 else None,
        quality_score=minute % 4,
        ingested_ms=T0_MS + minute,
    )
    for mint in ("MintA", "MintB", "MintC")
    for minute in range(-30, 40)
]
ALERTS = [
    Alert("1", "MintA", T0_MS + 30_000),
    Alert("2", "MintA", T0_MS + 4 * 60_000),  # overlaps the first
    Alert("3", "MintA", T0_MS + 20 * 60_000),
    Alert("4", "MintB", T0_MS + 59_999),
]
INSIDE = inside(CANDLES, ALERTS)


@pytest.fixture(scope="module")
def base(engine: ClickHouseSource) -> str:
    """A table of the plain schema with CANDLES, which the variants are made from."""
    return create_table(engine, "variant_base", CANDLES)


def make_variant(
    engine: ClickHouseSource, table: str, base: str, columns: dict[str, str], settings: str = "index_granularity = 8192"
) -> None:
    """A table with these columns: name -> 'type', or 'type := expression over the base table'."""
    pairs = {name: text.partition(" := ") for name, text in columns.items()}
    ddl = ", ".join(f"`{name}` {type_}" for name, (type_, _, _) in pairs.items())
    select = ", ".join(expression or name for name, (_, _, expression) in pairs.items())
    engine.call(
        "create",
        lambda c: c.command(f"CREATE TABLE {table} ({ddl}) ENGINE = MergeTree ORDER BY tuple() SETTINGS {settings}"),
    )
    engine.call("fill", lambda c: c.command(f"INSERT INTO {table} SELECT {select} FROM {base}"))


PLAIN = {
    "token_address": "String",
    "chain": "String",
    "timestamp": "DateTime64(3, 'UTC')",
    "interval_seconds": "UInt32",
    **dict.fromkeys(VALUES, "Float64"),
    "source": "Nullable(String)",
    "quality_score": "Int32",
    "ingested_at": "DateTime64(3, 'UTC')",
}
VARIANTS: dict[str, dict[str, str]] = {
    "plain": {},
    "DateTime": {"timestamp": "DateTime := toDateTime(timestamp)"},
    "DateTime UTC": {"timestamp": "DateTime('UTC') := toDateTime(timestamp, 'UTC')"},
    "DateTime New York": {"timestamp": "DateTime('America/New_York') := toDateTime(timestamp, 'America/New_York')"},
    "DateTime64(3) Kolkata": {"timestamp": "DateTime64(3, 'Asia/Kolkata') := timestamp"},
    "DateTime64(3) bare": {"timestamp": "DateTime64(3) := timestamp"},
    "DateTime64(6)": {"timestamp": "DateTime64(6, 'America/New_York') := timestamp"},
    "DateTime64(0)": {"timestamp": "DateTime64(0) := timestamp"},
    "DateTime64(9)": {"timestamp": "DateTime64(9, 'UTC') := timestamp"},
    "UInt32 seconds": {"timestamp": "UInt32 := toUnixTimestamp(timestamp)"},
    "Int64 seconds": {"timestamp": "Int64 := toInt64(toUnixTimestamp(timestamp))"},
    "Int64 ms": {"timestamp": "Int64 := toUnixTimestamp64Milli(timestamp)"},
    "UInt64 ms": {"timestamp": "UInt64 := toUnixTimestamp64Milli(timestamp)"},
    "Nullable DateTime": {"timestamp": "Nullable(DateTime) := toDateTime(timestamp)"},
    "Nullable DateTime64": {"timestamp": "Nullable(DateTime64(3)) := timestamp"},
    "Nullable Int64": {"timestamp": "Nullable(Int64) := toUnixTimestamp64Milli(timestamp)"},
    "LowCardinality": {
        "token_address": "LowCardinality(String)",
        "chain": "LowCardinality(String)",
        "source": "LowCardinality(Nullable(String))",
    },
    "Nullable": {
        "token_address": "Nullable(String)",
        "chain": "Nullable(String)",
        "interval_seconds": "Nullable(UInt32)",
        **dict.fromkeys(VALUES, "Nullable(Float64)"),
        "quality_score": "Nullable(Int32)",
        "ingested_at": "Nullable(DateTime64(3))",
    },
    "Float32": dict.fromkeys(VALUES, "Float32"),
    "Decimal": dict.fromkeys(VALUES, "Decimal(18, 6)"),
    "Nullable Decimal128": dict.fromkeys(VALUES, "Nullable(Decimal(38, 10))"),
    "integer volume": {"volume": "UInt64"},
    "enum": {
        "chain": "Enum8('solana' = 1, 'base' = 2)",
        "source": "Enum8('' = 0, 'feed' = 1) := ifNull(source, '')",
    },
    "narrow interval": {"interval_seconds": "UInt16"},
    "versions of other types": {
        "quality_score": "Nullable(Float64)",
        "ingested_at": "UInt64 := toUnixTimestamp64Milli(ingested_at)",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_schema_gives_the_same_candles(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory, variant: str
) -> None:
    make_variant(engine, table, base, PLAIN | VARIANTS[variant])
    expected = [replace(c, source=c.source or "") for c in INSIDE] if "enum" in variant else INSIDE
    assert read(source_of(table), ALERTS) == rows_of_candles(expected)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_neither_the_session_nor_the_process_zone_shifts_a_candle(
    engine: ClickHouseSource,
    base: str,
    table: str,
    source_of: SourceFactory,
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
) -> None:
    make_variant(
        engine,
        table,
        base,
        PLAIN | {"timestamp": "DateTime := toDateTime(timestamp)"},
    )
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert read(source_of(table), ALERTS) == rows_of_candles(INSIDE)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_float32_prices_become_the_doubles_of_the_same_value(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    create_table(engine, f"{table}_base", [Candle("a", T0_MS, open=0.1, low=0.1)])
    make_variant(
        engine,
        table,
        f"{table}_base",
        PLAIN | dict.fromkeys(VALUES, "Float32"),
    )
    mints, request = request_for([Alert("1", "a", T0_MS)])
    assert source_of(table).read(request).values["open"].tolist() == [float(np.float32(0.1))]
    assert mints == ["a"]


def test_null_prices_are_no_numbers_and_get_rejected(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    create_table(engine, f"{table}_base", [Candle("a", T0_MS), Candle("a", T0_MS + 60_000, open=7.0)])
    columns = dict(PLAIN)
    columns["open"] = "Nullable(Float64) := if(open = 7, NULL, open)"
    make_variant(engine, table, f"{table}_base", columns)
    _, request = request_for([Alert("1", "a", T0_MS)])
    result = reconcile(source_of(table).read(request), 1)
    assert (len(result.candles), len(result.rejected)) == (1, 1)
    assert math.isnan(result.rejected.values["open"][0])


def test_rows_without_a_time_or_token_are_not_read(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory
) -> None:
    columns = dict(PLAIN)
    columns["timestamp"] = "Nullable(DateTime64(3)) := if(token_address = 'MintB', NULL, timestamp)"
    columns["token_address"] = "Nullable(String) := if(token_address = 'MintC', NULL, token_address)"
    make_variant(engine, table, base, columns)
    assert read(source_of(table), ALERTS) == rows_of_candles([c for c in INSIDE if c.mint == "MintA"])


REQUIRED = ("token_address", "timestamp", *VALUES)


def test_a_table_of_the_required_columns_only_will_do(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory
) -> None:
    make_variant(engine, table, base, {name: PLAIN[name] for name in REQUIRED})
    source = source_of(table)
    assert read(source, ALERTS) == rows_of_candles(INSIDE, source=False)
    assert source.identity()["columns"] == {name: name for name in sorted(REQUIRED)}


def test_a_column_named_interval_is_the_interval(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    other = [replace(c, interval_s=300, open=9.0) for c in CANDLES]
    create_table(engine, f"{table}_base", [*CANDLES, *other])
    columns = {name: type_ for name, type_ in PLAIN.items() if name != "interval_seconds"}
    make_variant(engine, table, f"{table}_base", columns | {"interval": "UInt32 := interval_seconds"})
    source = source_of(table)
    assert source.identity()["columns"]["interval_seconds"] == "interval"
    assert read(source, ALERTS) == rows_of_candles(INSIDE)


def test_names_can_be_remapped_even_to_awkward_ones(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory
) -> None:
    names = {
        "token_address": "select",
        "timestamp": "Zeit stempel",
        "open": "o'pen",
        "high": "h%s",
        "low": "l{x:String}",
        "volume": "vol.ume",
        "chain": "m",
        "interval_seconds": "t",
    }
    columns = {f"{names.get(name, name)}": f"{type_} := {name}" for name, type_ in PLAIN.items()}
    # `source` is there but mapped away from: another column plays its part.
    columns["feed"] = "String := 'mapped'"
    make_variant(engine, table, base, columns)
    source = source_of(table, columns={**names, "source": "feed"})
    assert read(source, ALERTS) == rows_of_candles([replace(c, source="mapped") for c in INSIDE])
    assert source.identity()["columns"]["timestamp"] == "Zeit stempel"


def test_the_identity_names_database_table_and_columns_and_no_place(
    engine: ClickHouseSource, base: str, source_of: SourceFactory
) -> None:
    identity = source_of(base).identity()
    assert identity == {"database": "default", "table": base, "columns": {name: name for name in sorted(PLAIN)}}
    assert engine.config.embedded_path not in repr(identity)


@pytest.mark.parametrize(
    ("spec_chain", "read_chains"),
    [
        ("solana", {"solana", "SOL", "Solana", "sol"}),
        ("SOL", {"solana", "SOL", "Solana", "sol"}),
        ("ethereum", {"ETH", "eth", "ethereum"}),
        ("bsc", {"BNB", "Bsc", "bsc"}),
        ("base", {"base"}),
        ("exchange", {"exchange", "Exchange"}),
    ],
)
def test_a_run_reads_its_chain_under_every_name(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, spec_chain: str, read_chains: set[str]
) -> None:
    solana, ethereum = ["solana", "SOL", "Solana", "sol"], ["ethereum", "ETH", "eth"]
    names = [*solana, *ethereum, "bsc", "BNB", "Bsc", "base", "exchange", "Exchange", "tron"]
    candles = [Candle("a", T0_MS, volume=float(position), chain=name) for position, name in enumerate(names)]
    create_table(engine, table, candles)
    expected = [candle for candle in candles if candle.chain in read_chains]
    spec = RunSpec("1m", "pre2_post3", chain=spec_chain)
    assert read(source_of(table), [Alert("1", "a", T0_MS)], spec) == rows_of_candles(expected)


def test_only_candles_of_the_runs_interval_are_read(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    candles = [Candle("a", T0_MS, volume=float(s), interval_s=s) for s in (1, 59, 60, 61, 300, 3600)]
    create_table(engine, table, candles)
    for interval in ("1m", "5m", "1h"):
        spec = RunSpec(interval, "pre0_post0")
        found = read(source_of(table), [Alert("1", "a", T0_MS)], spec)
        assert found == rows_of_candles([c for c in candles if c.interval_s == spec.interval_s])


# --- windows -------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    alerts=st.lists(
        st.tuples(st.sampled_from(["MintA", "MintB", "MintC", "MintX"]), st.integers(-40 * 60_000, 50 * 60_000)),
        min_size=1,
        max_size=10,
    ),
    window=st.sampled_from(["pre0_post0", "pre2_post3", "pre9_post0", "pre0_post30"]),
)
def test_exactly_the_union_of_the_windows_is_read(
    base: str, engine: ClickHouseSource, alerts: list[tuple[str, int]], window: str
) -> None:
    spec = RunSpec("1m", window)
    asked = [Alert(str(n), mint, T0_MS + ms) for n, (mint, ms) in enumerate(alerts)]
    config = SourceConfig(embedded_path=engine.config.embedded_path, table=base)
    with ClickHouseSource(config) as source:
        assert read(source, asked, spec) == rows_of_candles(inside(CANDLES, asked, spec))


def test_candles_off_the_grid_are_read_to_the_millisecond(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    start, _, end = window_of(T0_MS, 60, 2, 3)
    candles = [Candle("a", ts) for ts in (start - 1, start, start + 1, T0_MS + 123, end - 1, end)]
    create_table(engine, table, candles)
    found = read(source_of(table), [Alert("1", "a", T0_MS)])
    assert [row[1] for row in found] == [start, start + 1, T0_MS + 123, end - 1]


@pytest.mark.parametrize("type_", ["DateTime := toDateTime(timestamp)", "DateTime64(3) := timestamp"])
def test_windows_reaching_before_1970_or_beyond_2106_are_read_where_they_can_be(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, type_: str
) -> None:
    early, late = Candle("a", 60_000), Candle("b", 4_294_967_280_000)  # the last minute a DateTime can tell
    create_table(engine, f"{table}_base", [early, late])
    columns = PLAIN | {"timestamp": type_}
    make_variant(engine, table, f"{table}_base", columns)
    alerts = [Alert("1", "a", 120_000), Alert("2", "b", 4_294_967_280_000)]
    spec = RunSpec("1m", "pre500_post500")
    assert read(source_of(table), alerts, spec) == rows_of_candles([early, late])


# --- names that would break careless SQL -------------------------------------------------------------

HOSTILE = [
    "o'clock",
    'dou"ble',
    "back\\slash",
    "trailing\\",
    "\\'",
    "{x:String}",
    "{chains:Array(String)}",
    "%s",
    "%(chains)s",
    "new\nline",
    "tab\tand\rreturn",
    "emoji 🚀",
    "ünïcödé",
    "'; DROP TABLE candles; --",
    "/* comment */",
    "-- comment",
    "`ticks`",
    "nul\x00inside",
    "$1 ? :name @x",
    "(1, 2)",
    "a,b",
    "x" * 3000,
]


@pytest.mark.parametrize("bare", [False, True], ids=["with parameters", "without parameters"])
def test_hostile_mints_are_only_names(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, bare: bool
) -> None:
    candles = [Candle(mint, T0_MS, volume=float(n)) for n, mint in enumerate(HOSTILE)]
    create_table(engine, f"{table}_base", candles)
    names = REQUIRED if bare else tuple(PLAIN)
    make_variant(engine, table, f"{table}_base", {name: PLAIN[name] for name in names})
    alerts = [Alert(str(n), mint, T0_MS) for n, mint in enumerate(HOSTILE)]
    assert read(source_of(table), alerts) == rows_of_candles(candles, source=not bare)
    for candle in candles:
        found = read(source_of(table), [Alert("1", candle.mint, T0_MS)])
        assert found == rows_of_candles([candle], source=not bare)


def test_mints_that_differ_in_case_or_accents_are_different(
    engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    candles = [Candle(mint, T0_MS, volume=float(n)) for n, mint in enumerate(["abc", "ABC", "aBc", "äbc", "abc "])]
    create_table(engine, table, candles)
    found = read(source_of(table), [Alert("1", "aBc", T0_MS)])
    assert found == rows_of_candles([candles[2]])


def test_a_hostile_table_name_is_only_a_name(engine: ClickHouseSource, source_of: SourceFactory) -> None:
    name = 'we`ird "name"; DROP TABLE x'
    create_table(engine, "weird_base", [Candle("a", T0_MS)])
    quoted = '`we\\`ird "name"; DROP TABLE x`'
    engine.call("rename", lambda c: c.command(f"RENAME TABLE weird_base TO {quoted}"))
    assert len(read(source_of(name), [Alert("1", "a", T0_MS)])) == 1


# --- duplicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "versions", [("quality_score", "ingested_at"), ("quality_score",), ("ingested_at",), ()], ids=str
)
def test_duplicates_are_decided_by_the_version_columns_there_are(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, versions: tuple[str, ...]
) -> None:
    rng = random.Random(5)
    candles = [
        Candle(
            mint,
            T0_MS + rng.randrange(4) * 60_000,
            close=rng.choice([0.5, 1.0, 2.0]),
            source=rng.choice([None, "a", "b"]),
            quality_score=rng.randrange(-1, 3),
            ingested_ms=T0_MS + rng.randrange(-2, 3),
        )
        for mint in ("a", "b")
        for _ in range(60)
    ]
    create_table(engine, f"{table}_base", candles)
    names = [name for name in PLAIN if name not in ("quality_score", "ingested_at") or name in versions]
    make_variant(engine, table, f"{table}_base", {name: PLAIN[name] for name in names})
    mints, request = request_for([Alert("1", "a", T0_MS), Alert("2", "b", T0_MS)])
    result = reconcile(source_of(table).read(request), len(mints))
    fields = tuple("ingested_ms" if name == "ingested_at" else name for name in versions)
    expected = surviving(candles, versions=fields)
    assert rows_of(result.candles, mints) == rows_of_candles(expected)
    assert result.duplicates.sum() == len(candles) - len(expected)


@pytest.mark.parametrize(
    ("type_", "ascending"),
    [
        ("Int8", ["-128", "-1", "0", "127"]),
        ("UInt32", ["0", "1", "4294967295"]),
        ("UInt64", ["0", "9223372036854775807", "9223372036854775808", "18446744073709551615"]),
        ("Float64", ["-inf", "-1.5", "0", "1e-300", "inf"]),
        ("Decimal(18, 3)", ["-0.001", "0", "0.001"]),
        ("Date", ["'1970-01-01'", "'1970-01-02'", "'2149-06-06'"]),
        ("Date32", ["'1900-01-01'", "'1970-01-01'", "'2299-12-31'"]),
        ("DateTime", ["'1970-01-01 00:00:00'", "'1970-01-01 00:00:01'", "'2106-02-07 00:00:00'"]),
        ("DateTime64(3)", ["'1900-01-01 00:00:00.001'", "'2025-05-01 00:00:00.000'", "'2290-01-01 00:00:00.001'"]),
        ("DateTime64(6)", ["'1969-12-31 23:59:59.999999'", "'1970-01-01 00:00:00'", "'2290-01-01 00:00:00.000001'"]),
        ("DateTime64(9)", ["'1969-12-31 23:59:59.999999999'", "'1970-01-01 00:00:00.000000001'"]),
    ],
)
def test_the_newest_version_wins_whatever_its_type(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, type_: str, ascending: list[str]
) -> None:
    """Each value against the next, which stands on the candle that loses every later comparison."""
    pairs = list(itertools.pairwise(ascending))
    candles = [Candle("a", T0_MS + n * 60_000, close=close) for n in range(len(pairs)) for close in (2.0, 1.0)]
    create_table(engine, f"{table}_base", candles)
    minute = f"intDiv(toUnixTimestamp64Milli(timestamp) - {T0_MS}, 60000)"
    values = [", ".join(f"CAST({value} AS {type_})" for value in side) for side in zip(*pairs, strict=True)]
    version = f"if(close = 2, [{values[0]}], [{values[1]}])[{minute} + 1]"
    make_variant(engine, table, f"{table}_base", PLAIN | {"quality_score": f"{type_} := {version}"})
    mints, request = request_for([Alert("1", "a", T0_MS)])
    result = reconcile(source_of(table).read(request), len(mints))
    assert result.candles.values["close"].tolist() == [1.0] * len(pairs)


def test_a_null_version_is_the_smallest(engine: ClickHouseSource, table: str, source_of: SourceFactory) -> None:
    candles = [Candle("a", T0_MS, quality_score=score, close=1 + score / 100) for score in (-7, 5, -99)]
    create_table(engine, f"{table}_base", candles)
    columns = dict(PLAIN)
    columns["quality_score"] = "Nullable(Int32) := if(quality_score > 0, NULL, quality_score)"
    make_variant(engine, table, f"{table}_base", columns)
    mints, request = request_for([Alert("1", "a", T0_MS)])
    result = reconcile(source_of(table).read(request), 1)
    assert rows_of(result.candles, mints) == rows_of_candles([candles[0]])


# --- what can be wrong ---------------------------------------------------------------------------


def test_a_missing_table_is_named_with_what_to_do(source_of: SourceFactory) -> None:
    with pytest.raises(SourceError, match=r"the table does not exist: create and fill it with `lake load-candles"):
        source_of("no_such_table").table()


def test_a_missing_database_is_named_with_what_to_do(source_of: SourceFactory, base: str) -> None:
    with pytest.raises(SourceError, match=r"the database does not exist: set candle_source\.database"):
        source_of(base, database="no_such_database").table()


@pytest.mark.parametrize("column", REQUIRED)
def test_a_missing_column_is_named_with_those_there_are(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory, column: str
) -> None:
    columns = {name: type_ for name, type_ in PLAIN.items() if name != column}
    make_variant(engine, table, base, columns)
    with pytest.raises(SourceError) as caught:
        source_of(table).table()
    message = str(caught.value)
    assert f"default.{table}" in message
    assert f"has no column '{column}' (for {column})" in message
    assert ", ".join(sorted(columns)) in message
    assert "candle_source.columns" in message


@pytest.mark.parametrize(
    ("column", "type_", "wanted"),
    [
        ("timestamp", "String := toString(timestamp)", "timestamp must be DateTime, DateTime64 or an integer"),
        ("timestamp", "Date := toDate(timestamp)", "timestamp must be DateTime, DateTime64 or an integer"),
        ("timestamp", "Float64 := toUnixTimestamp(timestamp)", "timestamp must be"),
        ("token_address", "UInt64 := 1", "token_address must be String"),
        ("open", "String := toString(open)", "open must be a number"),
        ("volume", "Array(Float64) := [volume]", "volume must be a number"),
        ("interval_seconds", "String := '1m'", "interval_seconds must be an integer, in seconds"),
        ("chain", "UInt8 := 1", "chain must be String"),
        ("quality_score", "String := 'good'", "quality_score must be a number or a time"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_the_type_it_must_have(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory, column: str, type_: str, wanted: str
) -> None:
    columns = PLAIN | {column: type_}
    make_variant(engine, table, base, columns)
    with pytest.raises(SourceError) as caught:
        source_of(table).table()
    assert f"column '{column}' is {type_.partition(' := ')[0]}; {wanted}" in str(caught.value)


def test_mapping_an_unknown_role_is_refused_with_the_known_ones(base: str, source_of: SourceFactory) -> None:
    with pytest.raises(ConfigError, match=r"columns: mint is not a role; the roles are token_address, timestamp"):
        source_of(base, columns={"mint": "token_address"}).table()


def test_mapping_to_a_column_that_is_not_there_is_refused(base: str, source_of: SourceFactory) -> None:
    with pytest.raises(SourceError, match=r"has no column 'ts' \(for timestamp\)"):
        source_of(base, columns={"timestamp": "ts"}).table()


def test_seconds_and_milliseconds_in_one_column_are_refused(
    engine: ClickHouseSource, base: str, table: str, source_of: SourceFactory
) -> None:
    columns = dict(PLAIN)
    columns["timestamp"] = (
        "Int64 := if(token_address = 'MintA', toUnixTimestamp(timestamp), toUnixTimestamp64Milli(timestamp))"
    )
    make_variant(engine, table, base, columns)
    with pytest.raises(SourceError, match="mixes seconds and milliseconds"):
        source_of(table).table()


# --- connections ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_refused_connection_is_tried_again_and_then_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    waits: list[float] = []
    config = SourceConfig(
        embedded_path=str(tmp_path), host="127.0.0.1", port=port, user="u", password="s3cret-word", table="t"
    )
    with (
        caplog.at_level(logging.DEBUG),
        ClickHouseSource(config, sleep=waits.append) as source,
        pytest.raises(SourceUnavailable) as caught,
    ):
        source.table()
    message = str(caught.value)
    assert message.startswith(f"ClickHouse at 127.0.0.1:{port} did not answer: ")
    assert "CLICKHOUSE_HOST and CLICKHOUSE_PORT" in message
    assert message.endswith("(tried 4 times)")
    assert caught.value.transient
    assert waits == sorted(waits)
    assert len(waits) == 3
    assert waits[0] > 0
    assert "s3cret-word" not in message + caplog.text + repr(config)


def test_a_dsn_never_shows_its_password(tmp_path: Path) -> None:
    port = free_port()
    config = SourceConfig(embedded_path=str(tmp_path), dsn=f"clickhouse://u:s3cret-word@127.0.0.1:{port}/d")
    with ClickHouseSource(config, sleep=lambda _: None) as source, pytest.raises(SourceUnavailable) as caught:
        source.table()
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "s3cret-word" not in str(caught.value) + repr(config) + config.location


def test_a_dsn_argument_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="move it to CLICKHOUSE_PASSWORD") as caught:
        SourceConfig.from_environment({}, str(tmp_path), dsn="clickhouse://u:s3cret-word@h/d")
    assert "s3cret-word" not in str(caught.value)


def test_settings_come_from_the_environment_and_arguments_go_first(tmp_path: Path) -> None:
    environment = {
        "CLICKHOUSE_HOST": "h",
        "CLICKHOUSE_PORT": "8443",
        "CLICKHOUSE_USER": "u",
        "CLICKHOUSE_PASSWORD": "p",
        "CLICKHOUSE_DATABASE": "d",
    }
    config = SourceConfig.from_environment(environment, str(tmp_path), database="mine", table="t")
    assert (config.host, config.port, config.user, config.password) == ("h", 8443, "u", "p")
    assert (config.database, config.table, config.embedded) == ("mine", "t", False)
    assert SourceConfig.from_environment(environment, str(tmp_path)).database == "d"
    assert SourceConfig.from_environment({}, str(tmp_path)).embedded
    assert not SourceConfig.from_environment({"CLICKHOUSE_DSN": "clickhouse://h/d"}, str(tmp_path)).embedded


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1", "٣"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(ConfigError, match="is not a port number"):
        SourceConfig.from_environment({"CLICKHOUSE_HOST": "h", "CLICKHOUSE_PORT": port}, str(tmp_path))


def test_a_permanent_error_is_not_tried_again(engine: ClickHouseSource) -> None:
    waits: list[float] = []
    config = SourceConfig(embedded_path=engine.config.embedded_path, table="none_such")
    with ClickHouseSource(config, sleep=waits.append) as source, pytest.raises(SourceError) as caught:
        source.table()
    assert not caught.value.transient
    assert waits == []


def test_a_transient_error_is_tried_again_until_it_passes(engine: ClickHouseSource) -> None:
    waits: list[float] = []
    attempts: list[int] = []

    def action(client: object) -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise SourceUnavailable("not now")
        return "done"

    with ClickHouseSource(engine.config, sleep=waits.append) as source:
        assert source.call("try", action) == "done"
    assert (len(attempts), len(waits)) == (3, 2)


def test_several_threads_read_at_once(base: str, source_of: SourceFactory) -> None:
    source = source_of(base)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read(source, ALERTS), range(12)))
    assert all(result == rows_of_candles(INSIDE) for result in results)


def test_a_second_process_on_the_embedded_database_is_told_who_has_it(engine: ClickHouseSource) -> None:
    code = (
        "import sys\n"
        "from lake_pipeline.errors import EngineBusy\n"
        "from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig\n"
        "try:\n"
        "    ClickHouseSource(SourceConfig(embedded_path=sys.argv[1])).database()\n"
        "except EngineBusy as error:\n"
        "    print('BUSY', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, engine.config.embedded_path], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"BUSY the embedded database {engine.config.embedded_path} is in use by process ")
    assert f"process {os.getpid()}," in done.stdout
    assert "wait for that process" in done.stdout


_HOLD = (
    "import sys\n"
    "from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig\n"
    "with ClickHouseSource(SourceConfig(embedded_path=sys.argv[1])) as source:\n"
    "    source.database()\n"
    "    print('open', flush=True)\n"
    "    sys.stdin.readline()\n"
)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the embedded database under `tmp_path` until a line or the end of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "clickhouse")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield process
        process.communicate()


def lake_load(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`lake load-candles` of a file of one candle into the embedded database under `folder`."""
    candles = folder / "candles.csv"
    candles.write_text(f"mint,ts,open,high,low,close,volume\nm,{T0_MS},1,1,1,1,1\n")
    load = ["load-candles", str(candles), "--chain", "solana", "--interval", "1m", "--data-root", str(folder)]
    return subprocess.Popen(
        [Path(sys.executable).with_name("lake"), *load, *arguments],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("option", "environment"), [(["--wait", "100"], {}), ([], {"LAKE_WAIT_S": "100"})])
def test_a_second_process_waits_for_the_embedded_database_when_told_to(
    tmp_path: Path, owner: subprocess.Popen[str], option: list[str], environment: dict[str, str]
) -> None:
    with lake_load(tmp_path, *option, **environment) as second:
        assert second.stderr
        said = next(line for line in second.stderr if line.startswith("WARNING"))
        assert f"is in use by process {owner.pid}," in said
        assert said.endswith("Waiting for it, at most 100 s\n")
        assert second.poll() is None
        owner.communicate("go\n")
        out, rest = second.communicate()
    assert second.returncode == 0, rest
    assert re.search(r"inserted +1", out)
    assert "WARNING" not in rest


def test_several_processes_that_wait_take_turns(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    waiting = [lake_load(tmp_path, "--wait", "100") for _ in range(3)]
    for process in waiting:
        assert process.stderr
        assert any(line.startswith("WARNING") for line in process.stderr)
    owner.kill()
    said = [process.communicate() for process in waiting]
    assert [process.returncode for process in waiting] == [0, 0, 0], said
    assert sorted(int(re.findall(r"inserted +([0-9]+)", out)[0]) for out, _ in said) == [0, 0, 1]


def test_waiting_for_the_embedded_database_ends_in_time(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    with lake_load(tmp_path, "--wait", "0.5") as second:
        _, said = second.communicate()
    assert second.returncode == 2
    assert f"is in use by process {owner.pid}," in said
    assert "(waited 0.5 s)" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="LAKE_WAIT_S"):
        SourceConfig.from_environment({"LAKE_WAIT_S": text}, str(tmp_path))
    assert SourceConfig.from_environment({"LAKE_WAIT_S": "7"}, str(tmp_path), wait_s=0.5).wait_s == 0.5


def test_a_second_embedded_database_in_one_process_is_refused_clearly(engine: ClickHouseSource, tmp_path: Path) -> None:
    with (
        ClickHouseSource(SourceConfig(embedded_path=str(tmp_path / "other"))) as source,
        pytest.raises(EngineBusy, match="one process, one database"),
    ):
        source.database()
    assert engine.database() == "default"
