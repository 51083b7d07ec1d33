"""The whole export against one SQL query over the same generated candles, by another engine."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from lake_pipeline.core.spec import RunSpec
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    Candle,
    arrow_candles,
    create_table,
    mint_name,
    sealed_run,
    small_market,
    write_alerts,
)
from lake_pipeline_tests.conftest import SourceFactory

_SOURCE = """
CREATE TABLE source AS
SELECT token_address AS mint, epoch_ms(timestamp) AS ts_ms, open, high, low, close, volume, source,
       quality_score AS q, epoch_ms(ingested_at) AS ing
FROM candles WHERE lower(chain) IN ('sol', 'solana') AND interval_seconds = $interval_s
"""
_WINDOWS = """
CREATE TABLE windows AS
SELECT alert_id, mint, ts_ms - ts_ms % ($interval_s * 1000) AS anchor,
       anchor - $pre * $interval_s * 1000 AS start, anchor + ($post + 1) * $interval_s * 1000 AS stop
FROM alerts
"""
# NaN is the largest of all doubles in DuckDB too, and nulls come last with ASC NULLS FIRST reversed.
_GOOD = """
CREATE TABLE good AS
SELECT * EXCLUDE (place) FROM (
    SELECT s.*, row_number() OVER (
        PARTITION BY mint, ts_ms
        ORDER BY q DESC, ing DESC, open DESC, high DESC, low DESC, close DESC, volume DESC, source DESC NULLS LAST
    ) AS place
    FROM source s WHERE EXISTS (FROM windows w WHERE w.mint = s.mint AND s.ts_ms >= w.start AND s.ts_ms < w.stop)
)
WHERE place = 1 AND isfinite(open) AND isfinite(high) AND isfinite(low) AND isfinite(close) AND isfinite(volume)
  AND least(open, high, low, close) > 0 AND volume >= 0 AND high >= low
  AND open BETWEEN low AND high AND close BETWEEN low AND high
"""
_COVERAGE = """
SELECT w.alert_id, w.anchor, count(g.ts_ms) FILTER (g.ts_ms < w.anchor) AS pre,
       count(g.ts_ms) FILTER (g.ts_ms >= w.anchor) AS post, min(g.ts_ms) AS first, max(g.ts_ms) AS last,
       $pre + 1 + $post - count(DISTINCT g.ts_ms // ($interval_s * 1000)) AS missing,
       count(g.ts_ms) FILTER (g.volume = 0) AS zero_volume,
       coalesce(bool_or(g.ts_ms // ($interval_s * 1000) = w.anchor // ($interval_s * 1000)), false) AS has_anchor
FROM windows w LEFT JOIN good g ON g.mint = w.mint AND g.ts_ms >= w.start AND g.ts_ms < w.stop
GROUP BY w.alert_id, w.anchor ORDER BY w.alert_id
"""


def dense_market() -> tuple[list[Candle], list[Alert]]:
    """Many alerts on few mints, so that windows overlap in every way, and candles off the grid."""
    rng = random.Random(11)
    candles, _ = small_market(seed=3, mints=4, minutes=200)
    mints = sorted({candle.mint for candle in candles})
    candles += [
        replace(candle, ts_ms=candle.ts_ms + rng.randrange(60_000)) for candle in candles if rng.random() < 0.05
    ]
    alerts = [
        Alert(f"a{n:03d}", rng.choice([*mints, mint_name("none")]), T0_MS + rng.randrange(-30, 230) * 60_000 + n)
        for n in range(60)
    ]
    return candles, alerts


@pytest.mark.parametrize("window", ["pre10_post20", "pre0_post0", "pre3_post0", "pre0_post90", "pre100_post100"])
@pytest.mark.parametrize("market", [small_market, dense_market], ids=lambda make: make.__name__)
def test_exported_rows_and_coverage_equal_an_independent_query(
    lake: LocalStore,
    engine: ClickHouseSource,
    table: str,
    source_of: SourceFactory,
    tmp_path: Path,
    market: object,
    window: str,
) -> None:
    candles, alerts = market()  # type: ignore[operator]
    create_table(engine, table, candles)
    spec = RunSpec("1m", window)
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "alerts.csv", alerts), spec)

    settings = {"interval_s": spec.interval_s, "pre": spec.pre, "post": spec.post}
    with duckdb.connect() as oracle:
        oracle.register("candles", arrow_candles(candles))
        oracle.register(
            "alerts",
            pa.table(
                {
                    "alert_id": [a.alert_id for a in alerts],
                    "mint": [a.mint for a in alerts],
                    "ts_ms": [a.ts_ms for a in alerts],
                }
            ),
        )
        oracle.execute(_SOURCE, {"interval_s": spec.interval_s})
        oracle.execute(_WINDOWS, settings)
        oracle.execute(_GOOD)
        wanted = oracle.execute(
            "SELECT mint, ts_ms, $interval_s, open, high, low, close, volume, source FROM good ORDER BY mint, ts_ms",
            {"interval_s": spec.interval_s},
        ).fetchall()
        exported = oracle.execute(
            "SELECT mint, epoch_ms(ts), interval_s, open, high, low, close, volume, source FROM read_parquet(?) "
            "ORDER BY 1, 2",
            [f"{run.store.uri}/slices/**/*.parquet"],
        ).fetchall()
        coverage = oracle.execute(
            "SELECT alert_id, anchor_ts_ms, available_pre, available_post, first_ts_ms, last_ts_ms, missing, "
            "zero_volume, has_anchor FROM read_parquet(?) ORDER BY alert_id",
            [f"{run.store.uri}/outputs/coverage.parquet"],
        ).fetchall()
        counted = oracle.execute(_COVERAGE, settings).fetchall()
    assert len(wanted) > 0
    assert exported == wanted
    assert coverage == counted
