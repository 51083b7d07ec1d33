"""`diff_runs`: settings, buckets, mints and alerts that differ, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lake_pipeline.diff import diff_runs
from lake_pipeline.errors import RunNotSealed
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, Candle, create_table, sealed_run, sha1_bucket
from lake_pipeline_tests.conftest import Market, SourceFactory


def test_runs_of_the_same_content_do_not_differ(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    other = sealed_run(lake, market_source, market.csv, MARKET_SPEC, "again")
    found = diff_runs(load_run(sealed_lake, "plain"), other)
    assert found.same_content
    assert (found.settings, found.buckets, found.mints, found.alerts) == ([], [], [], {})


def test_a_revised_a_removed_and_an_added_candle_are_counted_at_their_mint(
    lake: LocalStore,
    sealed_lake: LocalStore,
    market: Market,
    engine: ClickHouseSource,
    source_of: SourceFactory,
    table: str,
) -> None:
    mint = market.alerts[0].mint
    plain = load_run(sealed_lake, "plain")
    written = [row["ts"] for row in _slices(plain) if row["mint"] == mint]
    revised, removed = (int(ts.timestamp() * 1000) for ts in written[2:4])
    candles: list[Candle] = []
    for candle in market.candles:
        if candle.mint == mint and candle.ts_ms == removed:
            continue
        if candle.mint == mint and candle.ts_ms == revised:
            candle = replace(candle, volume=candle.volume + 1)
        candles.append(candle)
    taken = {candle.ts_ms for candle in market.candles if candle.mint == mint}
    start = min(taken)
    added = next(ts for ts in range(start, start + 10**9, 60_000) if ts not in taken and ts > revised)
    candles.append(Candle(mint, added))
    create_table(engine, table, candles)
    # Same table name in both identities would need the same table; the source is a setting that differs.
    other = sealed_run(lake, source_of(table), market.csv, MARKET_SPEC, "revised")
    found = diff_runs(plain, other)
    assert not found.same_content
    assert found.settings == [f"source.table: '{market.table}' -> '{table}'"]
    assert found.buckets == [sha1_bucket(mint)]
    (of_mint,) = found.mints
    assert (of_mint.bucket, of_mint.mint) == (sha1_bucket(mint), mint)
    assert (of_mint.only_in_a, of_mint.only_in_b, of_mint.changed) == (1, 1, 1)
    own = {alert.alert_id for alert in market.alerts if alert.mint == mint}
    assert set(found.alerts) <= own


def test_strict_coverage_shows_as_a_setting_and_in_the_dropped_alerts(sealed_lake: LocalStore) -> None:
    found = diff_runs(load_run(sealed_lake, "plain"), load_run(sealed_lake, "strict"))
    assert "strict_coverage: False -> True" in found.settings
    assert any("kept" in what for what in found.alerts.values())
    assert all(mint.only_in_b == 0 and mint.changed == 0 for mint in found.mints)


def test_an_unsealed_run_cannot_be_compared(exported: Run, sealed_lake: LocalStore) -> None:
    with pytest.raises(RunNotSealed):
        diff_runs(load_run(sealed_lake, "plain"), exported)


def _slices(run: Run) -> list[dict[str, object]]:
    from lake_pipeline.reader import OpenRun

    return OpenRun(run).scan().to_table().to_pylist()
