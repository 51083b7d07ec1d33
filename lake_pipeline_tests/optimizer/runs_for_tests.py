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

CANDLES: Final = 36  # of each mint, two of them before its alert
Shape = tuple[float, float, float, float]
# The candles of a mint: open, high, low and close as multiples of the last close.
Step = Callable[[random.Random], list[Shape]]


def coins(rng: random.Random, up: float) -> Shape:
    """A candle of 30 steps of 0.7 %, small against any level, so that a fill at a level is a fair price."""
    price = high = low = 1.0
    for _ in range(30):
        price *= 1.007 if rng.random() < up else 1 / 1.007
        high, low = max(high, price), min(low, price)
    return 1.0, high, low, price


# The chance of a step up that makes the price a martingale: without costs no exit has an edge.
FAIR: Final = 1 / 2.007


def noise(rng: random.Random) -> list[Shape]:
    """Fair coins."""
    return [coins(rng, FAIR) for _ in range(CANDLES)]


def planted(rng: random.Random) -> list[Shape]:
    """Four of five rise by half in two or three hours, then all fall: a take-profit below 1.4 wins."""
    turn = 14 if rng.random() < 0.8 else 2
    return [coins(rng, FAIR + (0.07 if number < turn else -0.12)) for number in range(CANDLES)]


def candles_of(step: Step, seed: int, mints: int) -> tuple[list[Candle], list[Alert]]:
    """A mint for each alert, and a second alert on every tenth; candles from an hour before it on."""
    rng = random.Random(seed)
    candles, alerts = [], []
    for number in range(mints):
        mint = mint_name((seed, number))
        ts_ms = T0_MS + int((number + rng.random()) * DAYS * DAY_MS / mints)
        anchor = ts_ms // (INTERVAL_S * 1000) * INTERVAL_S * 1000
        price = math.exp(rng.gauss(0, 2))
        for candle, shape in enumerate(step(rng), -2):
            open_, high, low, close = (price * factor for factor in shape)
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
    change: Callable[[Candle], Candle] = lambda candle: candle,
    **of: int,
) -> Run:
    """A sealed run `searched` of such candles, each as `change` makes it."""
    candles, alerts = candles_of(step, **of)
    create_table(engine, table, [change(candle) for candle in candles])
    return sealed_run(lake, source, write_alerts(folder / "alerts.csv", alerts), SPEC, "searched")
