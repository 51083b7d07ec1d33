"""Exits: where a position that was opened at the entry price is closed, for every path at once.

Candle by candle from the entry candle on, with `entry` the entry price and `peak` the highest high of **earlier**
candles (the entry candle has none):

1. **Time stop.** The first candle with `ts >= entry_ts + time_stop` exits at its open, reason `time`. It is due at that
   moment, before anything else in the candle, so it comes before a stop that the open has gapped through.
2. **Effective stop**: the highest of those active. Equal ones are named by the first of `sl, trail, breakeven, tier`.

   | stop | level | active |
   | --- | --- | --- |
   | `sl` | `entry * sl` | always |
   | `trail` | `peak * (1 - trail_distance)` | once `peak >= entry * (1 + trail_activation)` |
   | `breakeven` | `entry * (1 + breakeven_offset)` | once `peak >= entry * (1 + breakeven_trigger)` |
   | `tier` | `entry * stop multiple` | once `peak >= entry * multiple reached` |

   A candle's own high never arms or moves a stop in that candle: it may have come after its low. A stop that was
   armed stays, as the peak never falls.
3. `low <= stop` hits the stop, `high >= entry * tp` the take-profit, both inclusive. **Both in one candle** is decided
   by `intrabar_order`, whatever the open, and marks the trade `ambiguous`; so can any stop, not `sl` only.
4. **Fill.** `gap`: a stop fills at the open of its candle where that is below the stop (also one that trails above the
   open), else at the stop. `level`: always at the stop. A take-profit fills at its level in both.
   In the entry candle the open is the entry price and only `sl` < 1 is active, so `gap` and `level` are the same there.
5. No exit: the close of the last candle, reason `horizon`.

**ret** = exit * (1 - (fee_bps + slippage_bps) / 1e4) / (entry * (1 + slippage_bps / 1e4)) - 1. **ret_worst** and
**ret_best** are the returns under the less and the more favourable order inside the exit candle; without ambiguity both
are `ret`. **mae** and **mfe** are lowest low and highest high over entry, minus 1, over all candles from the entry to
the exit candle, that one included; of a candle left at its open by a time stop, the open alone.
**exit_ts** is the open time of the exit candle, and the last candle anything was read of. Every duration counts from
`entry_ts`, as in the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.baseline import Entries
from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.kernels import REASONS, SCAN_FLOATS, scan
from lake_pipeline.backtest.paths import CandlePath, PathBlock, Paths

__all__ = ["REASONS", "Exits", "StopLevels", "simulate", "stop_levels"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Exits:
    """One exit for each alert of the paths, row by row; only rows with `entries.status(...) == 0` mean anything.

    `reason` are positions in REASONS, `exit_ts` epoch ms; the rest as in this module's docstring.
    """

    entries: Entries
    tradable: BoolArray
    reason: npt.NDArray[np.int8]
    ambiguous: BoolArray
    exit_ts: Int64Array
    exit_price: Float64Array
    ret: Float64Array
    ret_worst: Float64Array
    ret_best: Float64Array
    mae: Float64Array
    mfe: Float64Array


def simulate(paths: Paths, strategy: StrategyConfig, config: BaselineConfig, *, threads: int = 1) -> Exits:
    """Walk every path with status `ok` to its exit. `config.horizon_ms` is that of the paths."""
    size = len(paths.entry_ts)
    entries = Entries(paths)
    tradable = np.zeros(size, np.bool_)
    reason = np.zeros(size, np.int8)
    ambiguous = np.zeros(size, np.bool_)
    exit_ts = np.zeros(size, np.int64)
    floats = np.full((len(SCAN_FLOATS), size), np.nan)
    parameters = _parameters(strategy)

    def scan_block(block: PathBlock) -> None:
        entries.take(block)
        tradable[block.rows] = entries.status(config.max_entry_lag, block.rows) == 0
        scan(
            block.ts, block.open, block.high, block.low, block.close, block.rows, block.starts, block.stops,
            paths.entry_ts, tradable, *parameters, reason, ambiguous, exit_ts, floats,
        )  # fmt: skip

    paths.map(scan_block, threads)
    return Exits(entries, tradable, reason, ambiguous, exit_ts, *floats)


def _parameters(strategy: StrategyConfig) -> tuple[object, ...]:
    """What `scan` takes between its input and its output arrays, in one type each whatever is used."""

    def value(setting: float | None, unused: float) -> float:
        return unused if setting is None else setting

    return (
        value(strategy.tp, np.inf),
        value(strategy.sl, 0.0),
        -1 if strategy.time_stop_ms is None else strategy.time_stop_ms,
        1 + value(strategy.trail_activation, np.inf),
        1 - value(strategy.trail_distance, 0.0),
        1 + value(strategy.breakeven_trigger, np.inf),
        1 + value(strategy.breakeven_offset, 0.0),
        np.array(strategy.tiers, np.float64).reshape(-1, 2),
        strategy.intrabar_order == "tp_first",
        strategy.fill == "gap",
        *costs(strategy),
    )


def costs(strategy: StrategyConfig) -> tuple[float, float]:
    """Factors on the exit and on the entry price."""
    return 1 - (strategy.fee_bps + strategy.slippage_bps) / 1e4, 1 + strategy.slippage_bps / 1e4


@dataclass(frozen=True)
class StopLevels:
    """For each candle of a path the effective stop in it, and its reason as a position in REASONS."""

    stop: Float64Array
    reason: npt.NDArray[np.int8]


def stop_levels(path: CandlePath, strategy: StrategyConfig) -> StopLevels:
    """The effective stop of every candle of a path that is not empty, as if nothing had been hit before."""
    entry = path.open[0]
    peak = np.concatenate(([-np.inf], np.maximum.accumulate(path.high)[:-1]))
    stop = np.full(len(path), entry * (strategy.sl or 0.0))
    reason = np.full(len(path), REASONS.index("sl"), np.int8)

    def raise_to(level: Float64Array | float, active: BoolArray, name: str) -> None:
        higher = active & (level > stop)
        stop[higher] = np.broadcast_to(level, stop.shape)[higher]
        reason[higher] = REASONS.index(name)

    if strategy.trail_distance is not None and strategy.trail_activation is not None:
        raise_to(peak * (1 - strategy.trail_distance), peak >= entry * (1 + strategy.trail_activation), "trail")
    if strategy.breakeven_trigger is not None and strategy.breakeven_offset is not None:
        level = float(entry * (1 + strategy.breakeven_offset))
        raise_to(level, peak >= entry * (1 + strategy.breakeven_trigger), "breakeven")
    for reached, multiple in strategy.tiers:
        raise_to(float(entry * multiple), peak >= entry * reached, "tier")
    return StopLevels(stop, reason)
