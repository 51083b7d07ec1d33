"""Many strategies on the paths of one run: each trade of each trial, or the figures that sum them up.

    evaluator = open_evaluator(run, lake=lake)
    evaluator.outcomes([StrategyConfig(tp=2.0), StrategyConfig(tp=3.0)]).ret      # (trials, alerts)
    evaluator.totals(strategies, groups=np.array([train, test])).sum_ret          # (trials, groups)

What a trade returns is exactly what `backtest.exits` defines and `lake strategy` writes, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.backtest.baseline import Entries
from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, StrategyConfig
from lake_pipeline.backtest.exits import simulate
from lake_pipeline.backtest.kernels import locate
from lake_pipeline.backtest.paths import PathBlock, Paths, each, open_paths
from lake_pipeline.io.store import Store
from lake_pipeline.optimizer.columns import Batch, ColumnTable, plan
from lake_pipeline.optimizer.passage import COUNTS, SUMS, TILE, add_up, count_tile, trade_tile
from lake_pipeline.optimizer.records import Records, load_records, records_cached
from lake_pipeline.run import Run

__all__ = ["Evaluator", "Outcomes", "Totals", "open_evaluator"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_FOREVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Outcomes:
    """Every trade of some trials: arrays of shape (trials, alerts), alerts in the order of the paths.

    `ret`, `ret_worst` and `ret_best` are NaN where `lake strategy` has null: the alert's status is not `ok`, or the
    return is too large for a double. `exit_ts` is the open time of the exit candle in epoch ms, -1 without a trade.
    """

    ret: Float64Array
    ret_worst: Float64Array
    ret_best: Float64Array
    ambiguous: BoolArray
    exit_ts: Int64Array


@dataclass(frozen=True)
class Totals:
    """What the trades of some trials come to: arrays of shape (trials, groups).

    `n` counts returns (null ones are in no figure), `wins` those above 0 and `losses` those below; `sum_ret2` adds
    their squares, `sum_gain` and `sum_loss` (<= 0) the wins' and the losses' own; `sum_worst` and `sum_best` take the
    less and the more favourable order inside ambiguous candles, which `ambiguous` counts.

    The order of summation is fixed, so the bits of a sum do not depend on threads, on the other trials or on how
    trials are evaluated, only on the alerts and on which groups were asked for together.
    """

    n: Int64Array
    wins: Int64Array
    losses: Int64Array
    ambiguous: Int64Array
    sum_ret: Float64Array
    sum_ret2: Float64Array
    sum_gain: Float64Array
    sum_loss: Float64Array
    sum_worst: Float64Array
    sum_best: Float64Array


def open_evaluator(
    run: Run,
    config: BaselineConfig = BaselineConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    lake: Store | None = None,
    threads: int = 2,
) -> Evaluator:
    """The evaluator of a sealed run; with `lake`, the store of the data root, caches are used and filled.

    Without `lake` no cache is read or written. Raises as `open_paths` does.
    """
    paths = open_paths(run, selection, config.horizon_ms, lake=lake)
    return Evaluator(paths, config, threads=threads, scan_below=SCAN_BELOW if lake else 0)


# Finding records costs what walking the paths some 4 times costs where trades last, and 40 times where they end in a
# few candles (benchmarks/optimizer.py). So few that neither choice is ever much of a loss.
SCAN_BELOW: Final = 10

# So many tiles' figures of a batch (a megabyte each at most) are held before they are added up.
_WAVE: Final = 64
_Figures = tuple[Int64Array, Int64Array, Float64Array]


class Evaluator:
    """Strategies on the paths of one run; `config.horizon_ms` is that of the paths.

    The first trials walk each path candle by candle as `backtest.exits.simulate` does; from the `scan_below`th on, and
    always where they are cached, records are used (`records`, `passage`). The choice, the number of threads and what
    is evaluated together change no bit of a result.
    """

    def __init__(self, paths: Paths, config: BaselineConfig, *, threads: int = 2, scan_below: int = SCAN_BELOW) -> None:
        self._paths = paths
        self._config = config
        self._threads = threads
        self._scan_below = scan_below
        self._trials = 0
        self._found: Records | None = None

    @property
    def alerts(self) -> pa.Table:
        """The selected alerts; what has a column or a place an alert is in their order."""
        return self._paths.alerts

    @property
    def entry_ts(self) -> Int64Array:
        """When each alert is entered, epoch ms."""
        return self._paths.entry_ts

    @property
    def end_ts(self) -> Int64Array:
        """When the last candle that each alert's path may hold closes, epoch ms.

        After the path's end where the horizon is no whole number of candles: a high is known when its candle closes.
        """
        interval_ms = self._paths.interval_s * 1000
        return -(-self._paths.end_ts // interval_ms) * interval_ms

    @property
    def interval_s(self) -> int:
        """Length of a candle in seconds."""
        return self._paths.interval_s

    @cached_property
    def status(self) -> Int64Array:
        """Each alert's position in `baseline.STATUSES`; 0 is `ok`, and only those are traded."""
        records = self._records(0)
        entries = records.entries(self._paths) if records else Entries(self._paths)
        if records is None:
            self._paths.map(entries.take, self._threads)
        return entries.status(self._config.max_entry_lag)

    def delayed(self, candles: int) -> Evaluator:
        """The same alerts entered so many candles later; paths end where they did, lag counts from then."""
        paths = _delayed(self._paths, candles)
        return Evaluator(paths, self._config, threads=self._threads, scan_below=self._scan_below)

    def outcomes(self, strategies: Sequence[StrategyConfig]) -> Outcomes:
        """Every trade of each strategy; 33 bytes a trade."""
        found = _empty(len(strategies), len(self.entry_ts))
        records = self._records(len(strategies))
        if records is None:
            for trial, strategy in enumerate(strategies):
                self._scan(trial, strategy, found)
            return found
        tradable = self.status == 0
        tiles = _tiles(np.arange(len(tradable)))
        for batch in plan(strategies):
            table = ColumnTable(self._paths, records, batch, tradable, self._threads)

            def trade(rows: Int64Array, batch: Batch = batch, table: ColumnTable = table) -> None:
                columns = table.of(rows)
                trade_tile(
                    rows, tradable, self.entry_ts, *columns, batch.stop_of, batch.target_of, batch.target_first,
                    batch.trials, found.ret, found.ret_worst, found.ret_best, found.ambiguous, found.exit_ts,
                )  # fmt: skip

            each(trade, tiles, self._threads)
        return found

    def totals(self, strategies: Sequence[StrategyConfig], groups: BoolArray) -> Totals:
        """Figures of each strategy on each group of alerts.

        `groups` has shape (groups, alerts) and is true where an alert is in a group; groups may overlap.
        """
        segments, member = _segments(groups & (self.status == 0))
        counts = np.empty((len(COUNTS), len(strategies), len(groups)), np.int64)
        sums = np.empty((len(SUMS), len(strategies), len(groups)))
        records = self._records(len(strategies))
        found = self._walked(strategies, segments) if records is None else self._paired(records, strategies, segments)
        for trials, segment_counts, segment_sums in found:
            counts[:, trials] = _by_group(segment_counts, member)
            sums[:, trials] = _by_group(segment_sums, member)
        return Totals(*counts, *sums)

    def _walked(self, strategies: Sequence[StrategyConfig], segments: Sequence[Int64Array]) -> Iterator[_Figures]:
        """COUNTS and SUMS of segments, (trials, segments, figures), of trials that are walked candle by candle."""
        found = _empty(1, len(self.entry_ts))
        for trial, strategy in enumerate(strategies):
            self._scan(0, strategy, found)
            counts, sums = _no_figures(1, len(segments))
            for segment, rows in enumerate(segments):
                add_up(
                    found.ret[0], found.ret_worst[0], found.ret_best[0], found.ambiguous[0], rows,
                    counts[0, segment], sums[0, segment],
                )  # fmt: skip
            yield np.array([trial]), counts, sums

    def _paired(
        self, records: Records, strategies: Sequence[StrategyConfig], segments: Sequence[Int64Array]
    ) -> Iterator[_Figures]:
        """The same by pairing columns of records."""
        tiles = [(segment, rows) for segment, every in enumerate(segments) for rows in _tiles(every)]
        for batch in plan(strategies):
            table = ColumnTable(self._paths, records, batch, self.status == 0, self._threads)

            def count(
                tile: tuple[int, Int64Array], batch: Batch = batch, table: ColumnTable = table
            ) -> tuple[int, Int64Array, Float64Array]:
                segment, rows = tile
                counts, sums = _no_figures(len(batch.trials), 1)
                columns = table.of(rows)
                count_tile(
                    *columns, batch.stop_of, batch.target_of, batch.target_first, len(rows), counts[:, 0], sums[:, 0]
                )
                return segment, counts[:, 0], sums[:, 0]

            counts, sums = _no_figures(len(batch.trials), len(segments))
            for first in range(0, len(tiles), _WAVE):
                for segment, tile_counts, tile_sums in each(count, tiles[first : first + _WAVE], self._threads):
                    counts[:, segment] += tile_counts
                    sums[:, segment] += tile_sums
            yield batch.trials, counts, sums

    def _records(self, trials: int) -> Records | None:
        """The records, if they are to be used for so many more trials."""
        self._trials += trials
        if self._found is None and (self._trials >= self._scan_below or records_cached(self._paths)):
            self._found = load_records(self._paths, threads=self._threads)
        return self._found

    def _scan(self, trial: int, strategy: StrategyConfig, found: Outcomes) -> None:
        """Fill one trial's row candle by candle."""
        exits = simulate(self._paths, strategy, self._config, threads=self._threads)
        traded = exits.tradable
        for column, values in (
            (found.ret, exits.ret),
            (found.ret_worst, exits.ret_worst),
            (found.ret_best, exits.ret_best),
        ):
            column[trial] = np.where(traded & np.isfinite(values), values, np.nan)
        found.ambiguous[trial] = exits.ambiguous & traded
        found.exit_ts[trial] = np.where(traded, exits.exit_ts, -1)


def _empty(trials: int, alerts: int) -> Outcomes:
    """Outcomes to be filled, every place of them."""
    ret, ret_worst, ret_best = np.empty((3, trials, alerts))
    return Outcomes(
        ret, ret_worst, ret_best, np.empty((trials, alerts), np.bool_), np.empty((trials, alerts), np.int64)
    )


def _no_figures(trials: int, segments: int) -> tuple[Int64Array, Float64Array]:
    return np.zeros((trials, segments, len(COUNTS)), np.int64), np.zeros((trials, segments, len(SUMS)))


def _tiles(rows: Int64Array) -> list[Int64Array]:
    return [rows[start : start + TILE] for start in range(0, len(rows), TILE)]


def _delayed(paths: Paths, candles: int) -> Paths:
    entry_ts = paths.entry_ts + candles * paths.interval_s * 1000

    def load(bucket: str) -> PathBlock:
        block = paths.load(bucket)
        wanted = entry_ts[block.rows]
        starts = np.empty_like(block.starts)
        locate(block.ts, block.starts, block.stops, wanted, np.full_like(wanted, _FOREVER), starts, starts.copy())
        return replace(block, starts=starts)

    return replace(paths, entry_ts=entry_ts, load=load, cache=None)


def _segments(groups: BoolArray) -> tuple[list[Int64Array], BoolArray]:
    """The alerts that are in the same groups, as ascending rows, and which segment is in which group.

    So each alert is added up once however many groups it is in. Segments are in the order of their first alerts;
    alerts in no group are in none.
    """
    rows = np.flatnonzero(groups.any(axis=0))
    if len(rows) == 0:
        return [], np.zeros((len(groups), 0), np.bool_)
    code = np.zeros(len(rows), np.int64)
    for member in groups[:, rows]:
        code = np.unique(2 * code + member, return_inverse=True)[1]
    _, first = np.unique(code, return_index=True)
    order = np.argsort(first)
    segments = [rows[code == number] for number in order.tolist()]
    return segments, groups[:, rows[first[order]]]


def _by_group(figures: npt.NDArray[Any], member: BoolArray) -> npt.NDArray[Any]:
    """Figures by group, (figures, trials, groups), of those by segment, added in the segments' order."""
    totals = np.zeros((figures.shape[2], figures.shape[0], len(member)), figures.dtype)
    for segment in range(figures.shape[1]):
        for group in np.flatnonzero(member[:, segment]).tolist():
            totals[:, :, group] += figures[:, segment].T
    return totals
