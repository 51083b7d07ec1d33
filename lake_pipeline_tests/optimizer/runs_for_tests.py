"""Sealed runs with alerts over three weeks: one of noise, one with an edge that is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lake_pipeline.backtest.config import BaselineConfig
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    Candle,
    create_table,
    mint_name,
    sealed_run,
    write_alerts,
)

DAY_MS: Final = 86_400_000
INTERVAL_S: Final = 900
SPEC: Final = RunSpec("15m", "pre2_post32")
BASELINE: Final = BaselineConfig(horizon_hours=6)
DAYS: Final = 21

# The next candle's open, high, low and close, as multiples of the last close.
Step = Callable[[random.Random, int], tuple[float, float, float, float]]


def noise(rng: random.Random, number: int) -> tuple[float, float, float, float]:
    """A fair coin: up or down by one part in ten, both as likely to come back to the same mean. No order inside.

    The price is a martingale, so without costs no exit has an edge, whatever its levels.
    """
    close = 1.1 if rng.random() < 10 / 21 else 1 / 1.1
    return 1.0, max(1.0, close), min(1.0, close), close


def planted(rng: random.Random, number: int) -> tuple[float, float, float, float]:
    """Up to some 1.5 times in an hour or two, then down to a third: a take-profit below 1.4 wins nearly always."""
    drift = 0.05 if number < 8 else -0.08
    close = math.exp(drift + rng.gauss(0, 0.01))
    return 1.0, max(1.0, close) * 1.002, min(1.0, close) * 0.998, close


def candles_of(step: Step, seed: int, mints: int) -> tuple[list[Candle], list[Alert]]:
    """A mint for each alert, and a second alert on every tenth; candles from an hour before it on."""
    rng = random.Random(seed)
    candles, alerts = [], []
    for number in range(mints):
        mint = mint_name((seed, number))
        ts_ms = T0_MS + int((number + rng.random()) * DAYS * DAY_MS / mints)
        anchor = ts_ms // (INTERVAL_S * 1000) * INTERVAL_S * 1000
        price = math.exp(rng.gauss(0, 2))
        for candle in range(-2, 34):
            values = (price * factor for factor in step(rng, candle))
            open_, high, low, close = values
            candles.append(
                Candle(mint, anchor + candle * INTERVAL_S * 1000, open_, high, low, close, interval_s=INTERVAL_S)
            )
            price = close
        alerts.append(Alert(f"{number:04d}", mint, ts_ms, f"caller-{number % 3}"))
        if number % 10 == 0:
            alerts.append(Alert(f"{number:04d}-b", mint, ts_ms + 2 * INTERVAL_S * 1000, "caller-follower"))
    return candles, alerts


def make_run(
    engine: ClickHouseSource,
    source: ClickHouseSource,
    table: str,
    lake: LocalStore,
    folder: Path,
    step: Step,
    **of: int,
) -> Run:
    """A sealed run `searched` of such candles."""
    candles, alerts = candles_of(step, **of)
    create_table(engine, table, candles)
    return sealed_run(lake, source, write_alerts(folder / "alerts.csv", alerts), SPEC, "searched")
