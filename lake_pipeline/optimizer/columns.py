"""What trials have in common: each take-profit and each stop is looked up once, then every trial pairs two of them.

A strategy is a take-profit column and a stop column (`passage`): which level of each is passed first, and what it
returns. Strategies that differ in one of the two share the other, so a grid of 50 take-profits and 20 stops is 70
columns for its 1,000 trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.config import StrategyConfig
from lake_pipeline.backtest.exits import costs
from lake_pipeline.backtest.paths import PathBlock, Paths
from lake_pipeline.optimizer.passage import (
    LANES,
    NEVER,
    find_moving_stops,
    find_stops,
    find_targets,
    find_times,
    stop_in_time,
)
from lake_pipeline.optimizer.records import Records

__all__ = ["Batch", "ColumnTable", "plan"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Trials of a batch: many where they share their columns, and few where each has its own, so that a tile's columns
# (8 kB each) stay in a processor's cache.
_SHARED_COLUMNS: Final = 512
_SHARED_TRIALS: Final = 16_384
_OWN_TRIALS: Final = 128
# More columns than lanes, so that the places of one alert in all columns do not share a set of the processor's cache.
_APART: Final = 8


class _Target(NamedTuple):
    """A take-profit: a multiple of the entry price, infinite for none, and the factors of costs."""

    level: float
    sell: float
    buy: float


class _Stop(NamedTuple):
    """All stops of a strategy, its time stop (ms, -1 for none), and the factors of costs."""

    level: float
    trail_from: float
    trail_keep: float
    steps: tuple[tuple[float, float], ...]
    time: int
    gap: bool
    sell: float
    buy: float

    @property
    def moves(self) -> bool:
        return self.trail_from < np.inf or bool(self.steps)


@dataclass(frozen=True)
class Batch:
    """Some trials: their numbers, and for each its columns in `stops` and `targets`.

    `target_first` says which order holds where both are passed in one candle. Columns of stops come in three groups:
    those that stand, from the highest; those that move; and those of either with a time stop, which refer to a base
    column and a time of `times`.
    """

    trials: Int64Array
    stop_of: Int64Array
    target_of: Int64Array
    target_first: BoolArray
    targets: Sequence[_Target]
    standing: Sequence[_Stop]
    moving: Sequence[_Stop]
    timed: Sequence[_Stop]
    bases: Int64Array
    times: Int64Array
    time_of: Int64Array


def plan(strategies: Sequence[StrategyConfig]) -> Iterator[Batch]:
    """Batches of all these strategies. Their order and sizes change no result."""
    targets: dict[_Target, int] = {}
    stops: dict[_Stop, int] = {}
    target_of, stop_of = np.empty(len(strategies), np.int64), np.empty(len(strategies), np.int64)
    target_first = np.empty(len(strategies), np.bool_)
    for trial, strategy in enumerate(strategies):
        sell, buy = costs(strategy)
        target_of[trial] = targets.setdefault(_target(strategy, sell, buy), len(targets))
        stop_of[trial] = stops.setdefault(_stop(strategy, sell, buy), len(stops))
        target_first[trial] = strategy.intrabar_order == "tp_first"
    # Trials of one column one after another.
    target_list, stop_list = list(targets), list(stops)
    rank = np.empty(len(stop_list), np.int64)
    rank[sorted(range(len(stop_list)), key=lambda number: (stop_list[number].time, stop_list[number]))] = np.arange(
        len(stop_list)
    )
    order = np.lexsort((np.array([target.level for target in target_list])[target_of], rank[stop_of]))
    size = _SHARED_TRIALS if len(targets) + len(stops) <= _SHARED_COLUMNS else _OWN_TRIALS
    for start in range(0, len(order), size):
        trials = order[start : start + size]
        yield _batch(trials, stop_of[trials], target_of[trials], target_first[trials], stop_list, target_list)


def _target(strategy: StrategyConfig, sell: float, buy: float) -> _Target:
    return _Target(np.inf if strategy.tp is None else strategy.tp, sell, buy)


def _stop(strategy: StrategyConfig, sell: float, buy: float) -> _Stop:
    steps = strategy.tiers
    if strategy.breakeven_trigger is not None and strategy.breakeven_offset is not None:
        steps = (*steps, (1 + strategy.breakeven_trigger, 1 + strategy.breakeven_offset))
    trail_from, trail_keep = np.inf, 1.0
    if strategy.trail_distance is not None and strategy.trail_activation is not None:
        trail_from, trail_keep = 1 + strategy.trail_activation, 1 - strategy.trail_distance
    return _Stop(
        level=strategy.sl or 0.0,
        trail_from=trail_from,
        trail_keep=trail_keep,
        steps=steps,
        time=-1 if strategy.time_stop_ms is None else strategy.time_stop_ms,
        gap=strategy.fill == "gap",
        sell=sell,
        buy=buy,
    )


def _batch(
    trials: Int64Array,
    stop_of: Int64Array,
    target_of: Int64Array,
    target_first: BoolArray,
    all_stops: Sequence[_Stop],
    all_targets: Sequence[_Target],
) -> Batch:
    """The batch of some trials, of which only their own columns are left."""
    used, stop_of = np.unique(stop_of, return_inverse=True)
    wanted = [all_stops[number] for number in used.tolist()]
    bases = {stop._replace(time=-1): 0 for stop in wanted}
    standing = sorted((stop for stop in bases if not stop.moves), reverse=True)
    moving = [stop for stop in bases if stop.moves]
    timed = [stop for stop in wanted if stop.time >= 0]
    column = {stop: number for number, stop in enumerate((*standing, *moving, *timed))}
    times = sorted({stop.time for stop in timed})
    used, target_of = np.unique(target_of, return_inverse=True)
    targets = [all_targets[number] for number in used.tolist()]
    ascending = sorted(range(len(targets)), key=lambda number: targets[number])
    place = np.argsort(np.array(ascending, np.int64))
    return Batch(
        trials=trials,
        stop_of=np.array([column[stop] for stop in wanted], np.int64)[stop_of],
        target_of=place[target_of],
        target_first=target_first,
        targets=[targets[number] for number in ascending],
        standing=standing,
        moving=moving,
        timed=timed,
        bases=np.array([column[stop._replace(time=-1)] for stop in timed], np.int64),
        times=np.array(times, np.int64),
        time_of=np.array([times.index(stop.time) for stop in timed], np.int64),
    )


class ColumnTable:
    """The columns of a batch, for any tile of alerts."""

    def __init__(self, paths: Paths, records: Records, batch: Batch, tradable: BoolArray, threads: int) -> None:
        self._records = records
        self._batch = batch
        self._tradable = tradable
        self._entry_ts = paths.entry_ts
        self._times = _times(paths, batch.times, threads)
        self._targets = _floats(batch.targets, "level", "sell", "buy")
        self._standing = _costs(batch.standing)
        self._moving = _costs(batch.moving)
        self._timed = _floats(batch.timed, "sell", "buy")
        steps = [step for stop in batch.moving for step in stop.steps]
        self._steps = np.array(steps, np.float64).reshape(-1, 2)
        self._step_first = np.cumsum([0, *(len(stop.steps) for stop in batch.moving)])
        self._trails = np.stack(_floats(batch.moving, "trail_from", "trail_keep"), axis=1)

    def of(self, rows: Int64Array) -> tuple[Int64Array, Float64Array, Int64Array, Float64Array]:
        """Columns for the alerts in these rows: `when` and `ret` of the stops, then of the take-profits.

        They go on to at least a whole number of lanes; what is beyond the rows takes no profit and returns 0.
        """
        batch = self._batch
        standing, bases = len(batch.standing), len(batch.standing) + len(batch.moving)
        width = -(-len(rows) // LANES) * LANES + _APART
        stop_when = np.empty((bases + len(batch.timed), width), np.int64)
        stop_ret = np.empty(stop_when.shape)
        target_when = np.empty((len(batch.targets), width), np.int64)
        target_ret = np.empty(target_when.shape)
        stop_when[:, len(rows) :] = 0
        target_when[:, len(rows) :] = NEVER
        stop_ret[:, len(rows) :] = target_ret[:, len(rows) :] = 0.0
        alerts = (rows, self._tradable, self._entry_ts, self._records.levels)
        find_targets(*alerts, *self._targets, target_when, target_ret)
        find_stops(*alerts, *self._standing, stop_when[:standing], stop_ret[:standing])
        if batch.moving:
            level, *rest = self._moving
            find_moving_stops(
                *alerts, self._records.legs, level, self._trails, self._step_first, self._steps, *rest,
                stop_when[standing:bases], stop_ret[standing:bases],
            )  # fmt: skip
        if batch.timed:
            stop_in_time(
                rows, self._tradable, self._records.levels, stop_when[:bases], stop_ret[:bases], batch.bases,
                *self._times, batch.time_of, *self._timed, stop_when[bases:], stop_ret[bases:],
            )  # fmt: skip
        return stop_when, stop_ret, target_when, target_ret


def _times(paths: Paths, due: Int64Array, threads: int) -> tuple[Int64Array, Float64Array]:
    """Where these time stops leave each path and at which price, (times, alerts): the one thing that needs candles."""
    when = np.empty((len(due), len(paths.entry_ts)), np.int64)
    price = np.empty(when.shape)

    def find(block: PathBlock) -> None:
        find_times(
            block.ts, block.open, block.rows, block.starts, block.stops, paths.entry_ts, paths.interval_s * 1000,
            due, when, price,
        )  # fmt: skip

    if len(due):
        paths.map(find, threads)
    return when, price


def _costs(stops: Sequence[_Stop]) -> tuple[npt.NDArray[Any], ...]:
    level, sell, buy = _floats(stops, "level", "sell", "buy")
    return level, np.array([stop.gap for stop in stops], np.bool_), sell, buy


def _floats(columns: Sequence[Any], *names: str) -> list[Float64Array]:
    return [np.array([getattr(column, name) for column in columns], np.float64) for name in names]
