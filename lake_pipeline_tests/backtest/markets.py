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


# Powers of two keep every product exact, so that levels and ties are hit; the others round. The last are denormal.
SCALES = (1.0, 1.0, 1.0, 2.0**-1000, 2.0**900, 1e-9 / 3, 7e15 / 3, 5e-324)


def walk(rng: random.Random, start: int, interval: int) -> list[Candle]:
    """Candles of some length and temper: flat, calm or wild, with or without gaps, spikes, wicks and volume."""
    length = rng.choice([2, 20, 63, 64, 65, 100, 128, 129, 200])  # the engine looks at 64 at a time
    gap, spike, jump = rng.choice([0.0, 0.1, 0.5]), rng.choice([0.0, 0.02, 0.1]), rng.choice([0.0, 0.1])
    step, drift = rng.choice([0.0, 0.01, 0.05, 0.2]), rng.choice([-0.02, 0.0, 0.01, 0.03])
    wick, traded, scale = rng.choice([0, 1, 8, 40]), rng.choice([0.0, 0.01, 0.02, 0.5, 1.0]), rng.choice(SCALES)
    price, ts, found = 64, start, []
    for _ in range(length):
        open_ = max(1, price + (rng.randrange(-24, 25) if rng.random() < jump else 0))
        close = max(1, round(open_ * math.exp(rng.gauss(drift, step))))
        high = max(open_, close) + (rng.randrange(wick + 1) if rng.random() < 0.5 else 0)
        low = max(1, min(open_, close) - (rng.randrange(wick + 1) if rng.random() < 0.5 else 0))
        if rng.random() < spike:
            high, low = rng.choice([(high * 20, low), (high, max(1, low // 3)), (high * 3, max(1, low // 3))])
        volume = rng.choice([1.0, 3.5]) if rng.random() < traded else 0.0
        found.append(Candle(ts, open_ * scale, high * scale, low * scale, close * scale, volume))
        price = min(close, 2**20)
        ts += interval * (1 + (rng.randrange(1, 12) if rng.random() < gap else 0))
    return found


@st.composite
def handful(draw: st.DrawFn, start: int, interval: int) -> list[Candle]:
    """Up to six candles between an eighth and twelve times a usual price; what fails shrinks to a hand's example."""
    ts, found = start, []
    for _ in range(draw(st.integers(0, 6))):
        low, open_, close, high = sorted(draw(st.tuples(*[st.integers(1, 96)] * 4)))
        if draw(st.booleans()):
            open_, close = close, open_
        found.append(Candle(ts, open_ / 8, high / 8, low / 8, close / 8, float(draw(st.integers(0, 1)))))
        ts += interval * draw(st.integers(1, 3))
    return found


def moment(setting: Setting, candle: int, late: int) -> int:
    """A time on a candle's boundary, just after it or just before the next."""
    return T0_MS + candle * setting.interval + (0, 1, setting.interval - 1)[late]


def walks(rng: random.Random, setting: Setting, count: int) -> list[tuple[list[Candle], list[int]]]:
    """Mints that walk, each with the times of its alerts."""
    return [
        (
            walk(rng, moment(setting, rng.randrange(-3, 4), 0), setting.interval),
            [moment(setting, rng.randrange(-3, 6), rng.randrange(3)) for _ in range(rng.randrange(1, 3))],
        )
        for _ in range(count)
    ]


def market_of(rng: random.Random, setting: Setting, mints: Sequence[tuple[list[Candle], list[int]]]) -> Market:
    """Alerts of two callers and of nobody; some mints with a single alert open at no price."""
    calls: list[tuple[Alert, list[Candle]]] = []
    for number, (own, times) in enumerate(mints):
        for call, ts in enumerate(times):
            caller = rng.choice(["ann", "bob", "ann", "bob", " ", None])
            calls.append((Alert(f"{number}-{call}", f"mint-{number}", caller, ts), own))
        path = path_of(calls[-1][0], own, setting)
        if len(times) == 1 and path and rng.random() < 0.1:
            own[own.index(path[0])] = path[0]._replace(open=rng.choice([0.0, -1.0, math.nan, math.inf]))
    return Market(setting, calls)


def long_market(seed: int) -> Market:
    """Many long walks: what Hypothesis, which likes small things, seldom comes to."""
    rng = random.Random(seed)
    setting = Setting(rng.choice([60_000, 300_000]), rng.choice([130, 100_000]), 48 * HOUR_MS, rng.choice([2, 15]))
    return market_of(rng, setting, walks(rng, setting, 16))


@st.composite
def markets(draw: st.DrawFn) -> Market:
    """A few mints that walk and a few with a handful of candles, called at and off the candles' boundaries."""
    setting = Setting(
        interval=draw(st.sampled_from([60_000, 15_000, 300_000])),
        window_post=draw(st.sampled_from([100_000, 130, 20, 3, 0])),
        horizon=draw(st.sampled_from([48, 1])) * HOUR_MS,
        max_entry_lag=draw(st.sampled_from([15, 2, 0])),
    )
    rng = random.Random(draw(st.integers(0, 2**32)))
    some_moment = st.builds(moment, st.just(setting), st.integers(-3, 6), st.integers(0, 2))
    mints = walks(rng, setting, 2)
    for _ in range(draw(st.integers(1, 3))):
        own = draw(handful(moment(setting, draw(st.integers(-2, 3)), 0), setting.interval))
        mints.append((own, draw(st.lists(some_moment, min_size=1, max_size=3))))
    return market_of(rng, setting, mints)


# Levels on the grid of the prices and beside it.
LADDERS = (((1.25, 1.0),), ((1.125, 0.9), (1.5, 1.25)), ((1.2, 1.0), (2.0, 1.7), (3.0, 1.7)), ((1.5, 1.4), (3.0, 2.0)))
COSTS: dict[str, Sequence[Any]] = {"fee_bps": (30, 0, 100), "slippage_bps": (50, 0), "risk": (0.02, 0.5, 1.0)}
NEAR = COSTS | {"tp": (1.125, 1.2, 1.5, 1.7, 2.0, 3.0), "sl": (0.25, 0.5, 0.7, 0.875, 0.99)}
FAR = COSTS | {"tp": (None, 1.7, 3.0, 10.0), "sl": (None, 0.25, 0.5)}
TIME = {"time_stop": (1000, 90_000, 10 * 60_000, HOUR_MS, 47 * HOUR_MS)}
TRAIL = {"trail_distance": (0.05, 0.125, 0.25, 0.5), "trail_activation": (0.0, 0.125, 0.3, 2.0)}
BREAKEVEN = {"breakeven_trigger": (0.125, 0.3, 1.0), "breakeven_offset": (-0.25, 0.0, 0.1)}
FAMILIES: dict[str, dict[str, Sequence[Any]]] = {
    "defaults": {},
    "tp_sl": NEAR,
    "tp_or_sl": FAR,
    "time": FAR | TIME,
    "trail": FAR | TRAIL,
    "breakeven": FAR | BREAKEVEN,
    "tiers": FAR | {"tiers": LADDERS},
    # Offsets and ladders that meet give equal stops.
    "moving": FAR | {"trail_distance": (None, 0.25, 0.5), "trail_activation": (0.3, 1.0)}
    | {"breakeven_trigger": (None, 0.125), "breakeven_offset": (0.0, 0.1), "tiers": ((), *LADDERS)},
    "all": FAR | {"time_stop": (10 * 60_000, HOUR_MS, 47 * HOUR_MS), "trail_distance": (0.25, 0.5)}
    | {"trail_activation": (0.3, 1.0)} | BREAKEVEN | {"tiers": LADDERS},
}  # fmt: skip


def rules(family: str) -> st.SearchStrategy[Rules]:
    """Rules of one family of exits, or of several at once."""
    return st.builds(Rules, **{name: st.sampled_from(values) for name, values in FAMILIES[family].items()})


def random_rules(family: str, seed: int) -> Rules:
    """The same, by a seed."""
    rng = random.Random(seed)
    return Rules(**{name: rng.choice(values) for name, values in FAMILIES[family].items()})
