"""Paths made of plain candles, and plain models of the metrics, written candle by candle."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lake_pipeline.backtest.config import StrategyConfig
from lake_pipeline.backtest.paths import PathBlock, Paths
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline_tests.candles_for_tests import T0_MS

MINUTE_MS = 60_000
Bar = tuple[int, float, float, float, float, float]  # minutes after entry_ts, then open, high, low, close, volume


def bar(minute: int, open_: float, high: float, low: float, close: float, volume: float = 1.0) -> Bar:
    assert low <= min(open_, close) <= max(open_, close) <= high
    return (minute, open_, high, low, close, volume)


def paths_of(paths: Sequence[Sequence[Bar]], horizon_minutes: int = 2880, callers: Sequence[str] = ()) -> Paths:
    """One alert a path, all at T0 on a minute's boundary, in one block."""
    count = len(paths)
    names = list(callers) or ["caller-a"] * count
    alerts = pa.table(
        {
            "alert_id": [f"alert-{number}" for number in range(count)],
            "mint": [f"mint-{number}" for number in range(count)],
            "ts": pa.array([T0_MS] * count, pa.int64()).cast(ALERTS_SCHEMA.field("ts").type),
            "caller": pa.array(names, pa.string()),
            "chain": ["solana"] * count,
        },
        schema=ALERTS_SCHEMA,
    )
    bars = [each for path in paths for each in path]
    columns = [np.array([each[number] for each in bars], np.float64) for number in range(6)]
    ts = T0_MS + columns[0].astype(np.int64) * MINUTE_MS
    lengths = np.array([len(path) for path in paths], np.int64)
    stops = np.cumsum(lengths)
    block = PathBlock(ts, *columns[1:], np.arange(count), stops - lengths, stops)
    entry_ts = np.full(count, T0_MS, np.int64)
    return Paths(alerts, 60, entry_ts, entry_ts + horizon_minutes * MINUTE_MS, ("00",), {"00": block}.__getitem__)


def random_path(seed: int, length: int, step: float = 0.05) -> list[Bar]:
    """A random walk on a coarse grid, so that levels and ties are hit exactly, with gaps and candles without volume."""
    rng = random.Random(seed)
    price, minute, bars = 64, 0, []
    for _ in range(length):
        open_ = max(1, price + (rng.randrange(-12, 13) if rng.random() < 0.1 else 0))
        close = max(1, round(open_ * math.exp(rng.gauss(0, step))))
        high = max(open_, close) + rng.choice((0, 0, 1, 3, 40 if rng.random() < 0.05 else 2))
        low = max(1, min(open_, close) - rng.choice((0, 0, 1, 3)))
        bars.append(bar(minute, open_ / 64, high / 64, low / 64, close / 64, rng.choice((0.0, 1.0))))
        price, minute = close, minute + (1 if rng.random() < 0.9 else rng.randrange(2, 5))
    return bars


def metrics_of(path: Sequence[Bar]) -> dict[str, Any]:
    """The metrics of one path with status ok, from BACKTEST's definitions, by whole-list comprehensions."""
    entry = path[0][1]
    minutes, _, highs, lows, closes, volumes = (list(column) for column in zip(*path, strict=True))
    found: dict[str, Any] = {"entry_price": entry, "ath_mult": max(highs) / entry}
    ath = highs.index(max(highs))
    found["time_to_ath_s"] = minutes[ath] * 60
    recovery = next((j for j, high in enumerate(highs) if high > entry), None)
    found["dd_overall"] = min(lows) / entry - 1
    if recovery is None:
        found["dd_initial"] = found["dd_initial_worst"] = found["dd_overall"]
    else:
        found["dd_initial"] = min(lows[:recovery]) / entry - 1 if recovery else 0.0
        found["dd_initial_worst"] = min(lows[: recovery + 1]) / entry - 1
    for name, level in (("1_2x", 1.2), ("1_5x", 1.5), ("2x", 2), ("3x", 3), ("4x", 4), ("5x", 5), ("10x", 10)):
        hit = next((j for j, high in enumerate(highs) if high >= level * entry), None)
        found[f"time_to_{name}_s"] = None if hit is None else minutes[hit] * 60
        after = [] if hit is None else lows[hit + 1 :]
        if level >= 2:
            found[f"dd_after_{name}"] = min(after) / (level * entry) - 1 if after else None
        if level == 2:
            found["dd_pre2x"] = None if hit is None else min(lows[: hit + 1]) / entry - 1
    found["dd_after_ath"] = min(lows[ath + 1 :]) / highs[ath] - 1 if lows[ath + 1 :] else None
    found["peak_pnl_pct"] = (found["ath_mult"] - 1) * 100
    found["ret_end_pct"] = (closes[-1] / entry - 1) * 100
    backed = [high for high, volume in zip(highs, volumes, strict=True) if volume > 0]
    found["ath_volume_backed"] = max(backed) / entry if backed else None
    found["zero_volume_candles"] = volumes.count(0)
    found["gap_candles"] = minutes[-1] - minutes[0] + 1 - len(path)
    found["time_underwater_pct"] = 100 * sum(close < entry for close in closes) / len(path)
    found["candles"] = len(path)
    return found


def exit_of(path: Sequence[Bar], strategy: StrategyConfig) -> Mapping[str, Any]:
    """The exit of one path, candle by candle, from the rules in `backtest.exits`."""
    entry = path[0][1]
    buy, sell = 1 + strategy.slippage_bps / 1e4, 1 - (strategy.fee_bps + strategy.slippage_bps) / 1e4
    deadline = None if strategy.time_stop_hours is None else strategy.time_stop_hours * 60

    def ret(price: float) -> float:
        return price * sell / (entry * buy) - 1

    earlier: list[float] = []
    held_high: list[float] = []
    held_low: list[float] = []
    for minute, open_, high, low, close, _ in path:
        if deadline is not None and minute >= deadline:
            outcome = ("time", open_, False, ret(open_), ret(open_))
            held_high.append(open_)
            held_low.append(open_)
            break
        held_high.append(high)
        held_low.append(low)
        stops = [] if strategy.sl is None else [(entry * strategy.sl, 3, "sl")]
        if earlier:
            peak = max(earlier)
            if strategy.trail_distance is not None and peak >= entry * (1 + (strategy.trail_activation or 0)):
                stops.append((peak * (1 - strategy.trail_distance), 2, "trail"))
            if strategy.breakeven_trigger is not None and peak >= entry * (1 + strategy.breakeven_trigger):
                stops.append((entry * (1 + (strategy.breakeven_offset or 0)), 1, "breakeven"))
            stops += [(entry * stop, 0, "tier") for reached, stop in strategy.tiers if peak >= entry * reached]
        level, _, name = max(stops, default=(-1.0, 0, ""))
        stopped = low <= level
        taken = strategy.tp is not None and high >= entry * strategy.tp
        stop_fill = min(level, open_) if strategy.fill == "gap" else level
        tp_fill = entry * (strategy.tp or 0)
        if stopped and taken:
            price, reason = (tp_fill, "tp") if strategy.intrabar_order == "tp_first" else (stop_fill, name)
            outcome = (reason, price, True, *sorted((ret(stop_fill), ret(tp_fill))))
            break
        if stopped or taken:
            price, reason = (tp_fill, "tp") if taken else (stop_fill, name)
            outcome = (reason, price, False, ret(price), ret(price))
            break
        earlier.append(high)
        outcome = ("horizon", close, False, ret(close), ret(close))
    reason, price, ambiguous, worst, best = outcome
    return {
        "tp_sl_exit_reason": reason,
        "exit_price": price,
        "tp_sl_ret": ret(price),
        "ambiguous": ambiguous,
        "ret_worst": worst,
        "ret_best": best,
        "hold_time_s": minute * 60,
        "mae": min(held_low) / entry - 1,
        "mfe": max(held_high) / entry - 1,
    }
