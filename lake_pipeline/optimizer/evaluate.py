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
        """Where each alert's path ends, epoch ms, exclusive."""
        return self._paths.end_ts

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
        for batch in self._batches(strategies):
            table = self._table(records, batch, tradable)

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
        tradable = self.status == 0
        segments, member = _segments(groups & tradable)
        counts = np.zeros((len(strategies), len(segments), len(COUNTS)), np.int64)
        sums = np.zeros((len(strategies), len(segments), len(SUMS)))
        records = self._records(len(strategies))
        if records is None:
            found = _empty(1, len(self.entry_ts))
            for trial, strategy in enumerate(strategies):
                self._scan(0, strategy, found)
                for segment, rows in enumerate(segments):
                    add_up(
                        found.ret[0], found.ret_worst[0], found.ret_best[0], found.ambiguous[0], rows,
                        counts[trial, segment], sums[trial, segment],
                    )  # fmt: skip
        else:
            tiles = [(segment, rows) for segment, every in enumerate(segments) for rows in _tiles(every)]
            for batch in self._batches(strategies):
                table = self._table(records, batch, tradable)

                def count(
                    tile: tuple[int, Int64Array], batch: Batch = batch, table: ColumnTable = table
                ) -> tuple[Int64Array, Float64Array]:
                    tile_counts = np.zeros((len(batch.trials), len(COUNTS)), np.int64)
                    tile_sums = np.zeros((len(batch.trials), len(SUMS)))
                    columns = table.of(tile[1])
                    count_tile(
                        *columns, batch.stop_of, batch.target_of, batch.target_first, len(tile[1]),
                        tile_counts, tile_sums,
                    )  # fmt: skip
                    return tile_counts, tile_sums

                figures = each(count, tiles, self._threads)
                for (segment, _), (tile_counts, tile_sums) in zip(tiles, figures, strict=True):
                    counts[batch.trials, segment] += tile_counts
                    sums[batch.trials, segment] += tile_sums
        return Totals(*_by_group(counts, member), *_by_group(sums, member))

    def _records(self, trials: int) -> Records | None:
        """The records, if they are to be used for so many more trials."""
        self._trials += trials
        if self._found is None and (self._trials >= self._scan_below or records_cached(self._paths)):
            self._found = load_records(self._paths, threads=self._threads)
        return self._found

    def _batches(self, strategies: Sequence[StrategyConfig]) -> Iterator[Batch]:
        return plan(strategies)

    def _table(self, records: Records, batch: Batch, tradable: BoolArray) -> ColumnTable:
        return ColumnTable(self._paths, records, batch, tradable, self._threads)

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
    _, first, inverse = np.unique(groups[:, rows], axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    segments = [rows[inverse.reshape(-1) == number] for number in order.tolist()]
    return segments, groups[:, rows[first[order]]]


def _by_group(figures: npt.NDArray[Any], member: BoolArray) -> Iterator[npt.NDArray[Any]]:
    """Each figure, (trials, groups), of figures by segment (trials, segments, figures), added in their order."""
    totals = np.zeros((figures.shape[2], figures.shape[0], len(member)), figures.dtype)
    for segment in range(figures.shape[1]):
        for group in np.flatnonzero(member[:, segment]).tolist():
            totals[:, :, group] += figures[:, segment].T
    yield from totals
