"""What is known at a time does not depend on what comes later, and no entry on what came before its alert."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake_pipeline.backtest.baseline import compute_baseline, measure_paths
from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.paths import CandlePath, PathBlock, Paths, open_paths
from lake_pipeline.backtest.trades import compute_trades, trade_paths
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline_tests.backtest import reference
from lake_pipeline_tests.backtest.markets import rows_of
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    SOLANA,
    T0_MS,
    Alert,
    Candle,
    create_table,
    expected_run,
    sealed_run,
    small_market,
    write_alerts,
)

MINUTE_MS = 60_000
NOW = T0_MS + 50 * MINUTE_MS  # some alerts are over then, some have entered, some are still to come
MULTIPLES = ("1_2x", "1_5x", "2x", "3x", "4x", "5x", "10x")
STRATEGIES = (
    StrategyConfig(tp=1.125, sl=0.875),
    StrategyConfig(tp=1.25, sl=0.75, time_stop_hours=0.1, fill="level"),
    StrategyConfig(tp=None, sl=0.5, trail_distance=0.125, trail_activation=0.0625, intrabar_order="tp_first"),
    StrategyConfig(tp=2.0, sl=0.8, breakeven_trigger=0.0625, tiers=((1.125, 1.0625), (1.25, 1.125))),
)


def clean_market() -> tuple[list[Candle], list[Alert]]:
    """The candles of the small market that a run of it holds, and its alerts, moving enough to be traded."""
    candles, alerts = small_market(seed=11, mints=16)
    return expected_run(candles, alerts, MARKET_SPEC, SOLANA).written, alerts


CANDLES, ALERTS = clean_market()


def scrambled(candles: Sequence[Candle], choose: Callable[[Candle], bool]) -> list[Candle]:
    """The chosen candles made others: some gone, the rest with any prices, and new ones where there was a gap."""
    rng = random.Random(5)
    minutes = {(candle.mint, candle.ts_ms) for candle in candles}
    new = [
        Candle(mint, ts)
        for mint in sorted({candle.mint for candle in candles})
        for ts in range(T0_MS, T0_MS + 90 * MINUTE_MS, MINUTE_MS)
        if (mint, ts) not in minutes
    ]
    found = [candle for candle in candles if not choose(candle)]
    for candle in [*candles, *new]:
        if choose(candle) and rng.random() < 0.8:
            low, open_, close, high = sorted(rng.randrange(1, 1000) / 64 for _ in range(4))
            found.append(replace(candle, open=open_, high=high, low=low, close=close, volume=float(rng.randrange(3))))
    return found


@pytest.fixture(scope="module")
def sealed(engine: ClickHouseSource, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Exports and seals a run of these candles and alerts."""

    def make(name: str, candles: Sequence[Candle], alerts: Sequence[Alert]) -> Run:
        root = tmp_path_factory.mktemp(name)
        table = create_table(engine, f"point_in_time_{name}", candles)
        with ClickHouseSource(SourceConfig(embedded_path=engine.config.embedded_path, table=table)) as source:
            return sealed_run(LocalStore(root), source, write_alerts(root / "alerts.csv", alerts), MARKET_SPEC)

    return make


@pytest.fixture(scope="module")
def run(sealed: Callable[..., Run]) -> Run:
    return sealed("run", CANDLES, ALERTS)


def parquet(table: pa.Table) -> bytes:
    """The bytes of a table: what is under a null does not show."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink)
    return bytes(sink.getvalue())


def test_a_sealed_run_gives_what_the_reference_does(run: Run) -> None:
    statuses = set()
    for horizon_minutes, max_entry_lag in ((6, 0), (2880, 3)):
        setting = reference.Setting(MINUTE_MS, MARKET_SPEC.post, horizon_minutes * MINUTE_MS, max_entry_lag)
        config = BaselineConfig(horizon_minutes / 60, max_entry_lag)
        calls = [
            (
                reference.Alert(alert.alert_id, alert.mint, alert.caller, alert.ts_ms),
                [reference.Candle(c.ts_ms, *c.values) for c in CANDLES if c.mint == alert.mint],
            )
            for alert in sorted(ALERTS, key=lambda alert: (alert.ts_ms, alert.alert_id))
        ]
        expected = [reference.baseline(alert, candles, setting) for alert, candles in calls]
        assert rows_of(compute_baseline(run, config)) == expected
        trades = compute_trades(run, StrategyConfig(), config)
        assert rows_of(trades) == reference.trades(calls, reference.Rules(), setting)
        statuses |= {row["status"] for row in expected}
    assert statuses == {"ok", "missing", "late_entry"}


def test_what_was_known_before_a_run_with_another_future_is_the_same(run: Run, sealed: Callable[..., Run]) -> None:
    other = sealed("future", scrambled(CANDLES, lambda candle: candle.ts_ms > NOW), ALERTS)
    before, after = compute_baseline(run), compute_baseline(other)
    assert not before.equals(after)
    over = pa.array((open_paths(run).end_ts <= NOW + MINUTE_MS).tolist())
    assert 0 < sum(over.to_pylist()) < len(ALERTS)
    assert parquet(before.filter(over)) == parquet(after.filter(over))

    def entries(table: pa.Table) -> list[tuple[object, ...]]:
        names = ("alert_id", "entry_ts_utc", "entry_price", "entry_lag_s", "status")
        rows = [row for row in rows_of(table) if row["entry_lag_s"] is not None]
        return [tuple(row[name] for name in names) for row in rows if at(row, "entry_lag_s") <= NOW]

    def at(row: reference.Row, column: str) -> int:
        return int(row["entry_ts_utc"] + row[column] * 1000)

    def reached(table: pa.Table) -> list[tuple[object, ...]]:
        return [
            (row["alert_id"], name, at(row, f"time_to_{name}_s"), row["dd_pre2x"] if name == "2x" else None)
            for row in rows_of(table)
            for name in MULTIPLES
            if row[f"time_to_{name}_s"] is not None and at(row, f"time_to_{name}_s") <= NOW
        ]

    def exits(table: pa.Table) -> bytes:
        # Which of the exits up to now are horizons depends on whether there will be candles.
        rows = [
            row["exit_ts_utc"] is not None and row["exit_ts_utc"] <= NOW and row["tp_sl_exit_reason"] != "horizon"
            for row in rows_of(table)
        ]
        assert 0 < sum(rows) < len(rows)
        return parquet(table.filter(pa.array(rows)).drop_columns("equity"))

    assert entries(before) == entries(after) != []
    assert reached(before) == reached(after) != []
    for strategy in STRATEGIES:
        trades, others = compute_trades(run, strategy), compute_trades(other, strategy)
        assert not trades.equals(others)
        assert exits(trades) == exits(others)


def test_nothing_before_an_alert_shows(sealed: Callable[..., Run]) -> None:
    alerts = {alert.mint: alert for alert in ALERTS}  # one a mint
    ts_ms = {mint: alert.ts_ms for mint, alert in alerts.items()}
    runs = [
        sealed(name, candles, list(alerts.values()))
        for name, candles in (
            ("own_past", CANDLES),
            ("another_past", scrambled(CANDLES, lambda candle: candle.ts_ms < ts_ms[candle.mint])),
        )
    ]
    assert runs[0].manifest().content_sha256 != runs[1].manifest().content_sha256
    assert parquet(compute_baseline(runs[0])) == parquet(compute_baseline(runs[1]))
    for strategy in STRATEGIES:
        assert parquet(compute_trades(runs[0], strategy)) == parquet(compute_trades(runs[1], strategy))


def changed(paths: Paths, cut: Callable[[int, CandlePath], int]) -> Paths:
    """The same paths, each with candles of its own, those after `cut(row, path)` (ms) with any prices."""
    rng = np.random.default_rng(3)
    candles: list[CandlePath] = []
    rows: list[int] = []
    for bucket in paths.buckets:
        block = paths.load(bucket)
        for index, row in enumerate(block.rows.tolist()):
            path = block.path(index)
            later = path.ts > cut(row, path)
            values = np.sort(rng.integers(1, 1000, (4, len(path))) / 64, axis=0)
            mixed = zip((path.open, path.high, path.low, path.close), values[[1, 3, 0, 2]], strict=True)
            prices = [np.where(later, new, old) for old, new in mixed]
            candles.append(CandlePath(path.ts, *prices, np.where(later, 0.0, path.volume)))
            rows.append(row)
    columns = [np.concatenate([getattr(path, name) for path in candles]) for name in CandlePath.__dataclass_fields__]
    stops = np.cumsum([len(path) for path in candles])
    block = PathBlock(*columns, np.array(rows), stops - [len(path) for path in candles], stops)
    return replace(paths, buckets=("00",), load={"00": block}.__getitem__, bucket_of=["00"] * len(rows))


def tables(paths: Paths) -> list[pa.Table]:
    config = BaselineConfig()
    return [measure_paths(paths, config), *(trade_paths(paths, strategy, config) for strategy in STRATEGIES)]


def test_a_row_read_nothing_after_its_max_ts_read(run: Run) -> None:
    paths = open_paths(run)
    for number, table in enumerate(tables(paths)):
        read = table.column("max_ts_read").cast(pa.int64()).fill_null(0).to_pylist()
        other = changed(paths, lambda row, path, read=read: read[row] or 2**62)
        assert parquet(tables(other)[number]) == parquet(table)
        sooner = changed(paths, lambda row, path, read=read: read[row] - 1 if read[row] else 2**62)
        assert parquet(tables(sooner)[number]) != parquet(table)


def test_at_every_minute_the_rows_read_so_far_stay_whatever_comes(run: Run) -> None:
    paths = open_paths(run)
    expected = tables(paths)
    for minute in range(20, 82):
        now = T0_MS + minute * MINUTE_MS
        for table, other in zip(expected, tables(changed(paths, lambda row, path, now=now: now)), strict=True):
            known, same = (
                each.filter((each.column("max_ts_read").cast(pa.int64()).fill_null(2**62).to_numpy() <= now).tolist())
                for each in (table, other)
            )
            assert parquet(known) == parquet(same)
