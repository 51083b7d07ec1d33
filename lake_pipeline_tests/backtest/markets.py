"""Markets for the reference: mints with candles and alerts, made by Hypothesis, as the engine's paths."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.paths import PathBlock, Paths
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline_tests.backtest.reference import Alert, Candle, Row, Rules, Setting, entry_ts, path_end, path_of
from lake_pipeline_tests.candles_for_tests import T0_MS

HOUR_MS = 3_600_000
# Levels on the grid of the prices and beside it.
MULTIPLES = (1.125, 1.2, 1.25, 1.5, 1.7, 2.0, 3.0, 10.0)
FRACTIONS = (0.05, 0.125, 0.25, 0.3, 0.5)


@dataclass(frozen=True)
class Market:
    """Alerts, each with all candles of its mint."""

    setting: Setting
    calls: list[tuple[Alert, list[Candle]]]

    @property
    def config(self) -> BaselineConfig:
        return BaselineConfig(self.setting.horizon / HOUR_MS, self.setting.max_entry_lag)

    def paths(self) -> Paths:
        """The engine's paths: the alerts of one mint share its candles, two blocks take turns."""
        alerts = [alert for alert, _ in self.calls]
        table = pa.table(
            {
                "alert_id": [alert.alert_id for alert in alerts],
                "mint": [alert.mint for alert in alerts],
                "ts": pa.array([alert.ts for alert in alerts], pa.int64()).cast(ALERTS_SCHEMA.field("ts").type),
                "caller": pa.array([alert.caller for alert in alerts], pa.string()),
                "chain": ["solana"] * len(alerts),
            },
            schema=ALERTS_SCHEMA,
        )
        mints = sorted({alert.mint for alert in alerts})
        blocks = {
            f"{half:02x}": self._block([n for n, alert in enumerate(alerts) if mints.index(alert.mint) % 2 == half])
            for half in (0, 1)
        }
        bucket_of = [f"{mints.index(alert.mint) % 2:02x}" for alert in alerts]
        times = np.array([(entry_ts(alert, self.setting), path_end(alert, self.setting)) for alert in alerts]).T
        interval_s = self.setting.interval // 1000
        return Paths(table, interval_s, times[0].copy(), times[1].copy(), ("00", "01"), blocks.__getitem__, bucket_of)

    def _block(self, rows: Sequence[int]) -> PathBlock:
        candles: list[Candle] = []
        first: dict[str, int] = {}
        starts, stops = [], []
        for row in rows:
            alert, own = self.calls[row]
            if alert.mint not in first:
                first[alert.mint] = len(candles)
                candles += own
            path = path_of(alert, own, self.setting)
            start = first[alert.mint] + (own.index(path[0]) if path else 0)
            starts.append(start)
            stops.append(start + len(path))
        ts = np.array([candle.ts for candle in candles], np.int64)
        prices = [np.array([candle[column] for candle in candles], np.float64) for column in range(1, 6)]
        return PathBlock(ts, *prices, *(np.array(each, np.int64) for each in (rows, starts, stops)))


def rows_of(table: pa.Table) -> list[Row]:
    """A table as rows, times as epoch ms."""
    for number, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.int64()))
    return table.to_pylist()


def strategy_of(rules: Rules) -> StrategyConfig:
    """The engine's settings of these rules."""
    return StrategyConfig(
        tp=rules.tp,
        sl=rules.sl,
        intrabar_order="tp_first" if rules.tp_first else "sl_first",
        fill="level" if rules.level_fill else "gap",
        fee_bps=rules.fee_bps,
        slippage_bps=rules.slippage_bps,
        time_stop_hours=None if rules.time_stop is None else rules.time_stop / HOUR_MS,
        trail_distance=rules.trail_distance,
        trail_activation=None if rules.trail_distance is None else rules.trail_activation,
        breakeven_trigger=rules.breakeven_trigger,
        breakeven_offset=None if rules.breakeven_trigger is None else rules.breakeven_offset,
        tiers=tuple(rules.tiers),
        risk_per_trade=rules.risk,
    )


@st.composite
def candles(draw: st.DrawFn, setting: Setting) -> list[Candle]:
    """The candles of a mint: none, one, or a walk of some kind, on a grid so that ties and levels are hit exactly."""
    length = draw(st.one_of(st.integers(0, 6), st.sampled_from([63, 64, 65, 128, 129, 200])))
    gap, spike, jump, wick, volume = (draw(st.sampled_from(each)) for each in (
        (0.0, 0.1, 0.6), (0.0, 0.02, 0.2), (0.0, 0.1), (0, 1, 8, 40), (0.0, 0.5, 1.0)
    ))  # fmt: skip
    step = draw(st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.2, 0.8]))
    drift = draw(st.sampled_from([-0.02, 0.0, 0.02]))
    # Powers of two keep the grid; others make every product round.
    scale = draw(st.sampled_from([1.0, 1.0, 2.0**-1020, 2.0**900, 1e-9 / 3, 7e15 / 3, 5e-324]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    start = T0_MS + draw(st.integers(-5, 20)) * setting.interval
    price, ts, found = 64, start, []
    for _ in range(length):
        open_ = max(1, price + (rng.randrange(-24, 25) if rng.random() < jump else 0))
        close = min(max(1, round(open_ * math.exp(rng.gauss(drift, step)))), 2**40)
        high = max(open_, close) + (rng.randrange(wick + 1) if rng.random() < 0.5 else 0)
        low = max(1, min(open_, close) - (rng.randrange(wick + 1) if rng.random() < 0.5 else 0))
        if rng.random() < spike:
            high, low = rng.choice([(high * rng.choice([2, 3, 20]), low), (high, max(1, low // rng.choice([2, 5])))])
        traded = rng.choice([1.0, 3.5]) if rng.random() < volume else 0.0
        found.append(Candle(ts, *(price * scale / 64 if scale > 1e-300 else price * scale
                                  for price in (open_, high, low, close)), traded))  # fmt: skip
        price, ts = close, ts + setting.interval * (1 + (rng.randrange(1, 20) if rng.random() < gap else 0))
    return found


@st.composite
def markets(draw: st.DrawFn) -> Market:
    """A few mints, each called up to three times at and off the candles' boundaries, by two callers and by nobody."""
    setting = Setting(
        interval=draw(st.sampled_from([15_000, 60_000, 300_000])),
        window_post=draw(st.sampled_from([0, 3, 20, 150, 100_000])),
        horizon=draw(st.sampled_from([1, 1, 48])) * HOUR_MS,
        max_entry_lag=draw(st.sampled_from([0, 2, 15])),
    )
    calls: list[tuple[Alert, list[Candle]]] = []
    for number in range(draw(st.integers(1, 4))):
        own = draw(candles(setting))
        offsets = draw(st.lists(st.integers(-3 * setting.interval, 25 * setting.interval), min_size=1, max_size=3))
        offsets[0] -= draw(st.booleans()) * (offsets[0] % setting.interval)
        for call, offset in enumerate(offsets):
            caller = draw(st.sampled_from(["ann", "bob", "ann", " ", None]))
            calls.append((Alert(f"{number}-{call}", f"mint-{number}", caller, T0_MS + offset), own))
        path = path_of(calls[-1][0], own, setting)
        if len(offsets) == 1 and path and draw(st.integers(0, 5)) == 0:
            bad = draw(st.sampled_from([0.0, -1.0, math.nan, math.inf]))
            own[own.index(path[0])] = path[0]._replace(open=bad)
    return Market(setting, calls)


def some(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[tuple[float, float], ...]:
    """A ladder whose stops rise with the multiples reached."""
    reached = sorted(draw(st.sets(some(MULTIPLES), min_size=1, max_size=3)))
    found: list[tuple[float, float]] = []
    for multiple in reached:
        least = max([0.1, *(stop for _, stop in found)])
        found.append((multiple, draw(some([stop for stop in (0.5, 0.9, 1.0, 1.05, *MULTIPLES) if least <= stop < multiple]))))
    return tuple(found)


LEVELS: dict[str, st.SearchStrategy[Any]] = {
    "tp": some((None, *MULTIPLES)),
    "sl": some((None, 0.25, 0.5, 0.7, 0.875, 0.99)),
    "fee_bps": some((0, 30, 100)),
    "slippage_bps": some((0, 50)),
    "risk": some((0.02, 0.5, 1.0)),
}
FAMILIES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "defaults": {},
    "tp_sl": LEVELS,
    "time": LEVELS | {"time_stop": some((1000, 90_000, 15 * 60_000, HOUR_MS, 47 * HOUR_MS))},
    "trail": LEVELS | {"trail_distance": some(FRACTIONS), "trail_activation": some((0.0, *FRACTIONS, 2.0))},
    "breakeven": LEVELS | {"breakeven_trigger": some((0.125, 0.3, 1.0)), "breakeven_offset": some((-0.25, 0.0, 0.1))},
    "tiers": LEVELS | {"tiers": tiers()},
}
FAMILIES["all"] = {name: each for family in FAMILIES.values() for name, each in family.items()}


def rules(family: str) -> st.SearchStrategy[Rules]:
    return st.builds(Rules, **FAMILIES[family])
