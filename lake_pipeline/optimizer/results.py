"""A search as a sealed result beside the lake, and what is said of it.

    <data_root>/results/run_id=<id>/
      optimize=<key>/   trials.parquet  best.json  winner_trades.parquet  result.json
        pictures/       heatmap.png  trials.png  equity.png  folds.png  result.json
      ledger/           every trial ever evaluated on the run (`ledger`)

The key is made as for the other results, so a search that was done is found again. What the ledger says changes with
each search, so it is in no sealed file: `OptimizeResult.report` puts it beside them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest.code import code_identity
from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, canonical_values
from lake_pipeline.backtest.results import Result, find_or_make, part_result, result_key, run_identity
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table, write_table
from lake_pipeline.io.store import Store
from lake_pipeline.optimizer.evaluate import open_evaluator
from lake_pipeline.optimizer.ledger import Ledger
from lake_pipeline.optimizer.search import Progress, SearchConfig, run_search
from lake_pipeline.optimizer.splits import make_folds
from lake_pipeline.optimizer.trials import TRIALS_SCHEMA
from lake_pipeline.optimizer.winner import WINNER_TRADES_SCHEMA, concerns, luck, report_winner
from lake_pipeline.run import Run

__all__ = ["OptimizeResult", "optimize_result", "pictures_result"]

logger = logging.getLogger(__name__)

_KIND: Final = "optimize"


@dataclass(frozen=True)
class OptimizeResult(Result):
    """A stored search: every trial, the winner and its trades."""

    def trials(self) -> pa.Table:
        """The table of TRIALS_SCHEMA, by fold and trial."""
        return read_table(self.store, "trials.parquet", TRIALS_SCHEMA)

    def best(self) -> dict[str, Any]:
        """The document of `winner.report_winner`."""
        best: dict[str, Any] = json.loads(self.store.read("best.json"))
        return best

    def winner_trades(self) -> pa.Table:
        """The trades of each fold's winner: WINNER_TRADES_SCHEMA."""
        return read_table(self.store, "winner_trades.parquet", WINNER_TRADES_SCHEMA)

    def report(self, lake: Store, run: Run) -> dict[str, Any]:
        """`best`, and in its winner `luck_on_run`, which counts every trial of the run's ledger, and `concerns`."""
        best = self.best()
        if best["winner"] is not None:
            # Its own trials count even where the ledger was lost.
            found = luck(best["winner"], Ledger(lake, run.run_id).count([self.trials()]))
            best["winner"] |= {"luck_on_run": found, "concerns": concerns(best["winner"], found)}
        return best


def optimize_result(
    lake: Store,
    run: Run,
    config: SearchConfig,
    baseline: BaselineConfig = BaselineConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    threads: int = 2,
    use_cache: bool = True,
    resume: bool = False,
    on_batch: Callable[[Progress], None] = lambda progress: None,
) -> OptimizeResult:
    """The search of a sealed run, done unless this very result is there.

    `use_cache` uses cached paths and records, and fills what is missing. `resume` goes on from the batches that an
    interrupted search of the same key left in the ledger. Raises as `strategy_result` does, and NothingToSplit.
    """
    identity = {
        **run_identity(run, selection),
        "parameters": {"baseline": canonical_values(baseline), "search": config.canonical()},
        "code": code_identity(f"{__package__}.search", f"{__package__}.winner"),
    }
    key = result_key(identity)

    def search() -> tuple[pa.Table, dict[str, Any], pa.Table]:
        evaluator = open_evaluator(run, baseline, selection, lake=lake if use_cache else None, threads=threads)
        folds = make_folds(evaluator.entry_ts, evaluator.end_ts, config.split)
        trials = run_search(
            evaluator,
            folds,
            config,
            baseline,
            selection,
            ledger=Ledger(lake, run.run_id),
            key=key,
            threads=threads,
            resume=resume,
            on_batch=on_batch,
        )
        return trials, *report_winner(evaluator, folds, trials, config, baseline.horizon_hours, threads=threads)

    sealed = lake.exists(f"{layout.result_folder(run.run_id, _KIND, key)}/{layout.RESULT_RECORD}")
    # Before the run's lock is taken: a search may take long, and others have results to write.
    found = None if sealed else search()

    def write(store: Store) -> None:
        trials, best, winner_trades = found or search()
        write_table(store, "trials.parquet", trials)
        store.create("best.json", canonical_json(best))
        write_table(store, "winner_trades.parquet", winner_trades)

    return OptimizeResult(*find_or_make(lake, run, _KIND, identity, write, threads))


def pictures_result(lake: Store, run: Run, result: OptimizeResult, *, threads: int = 2) -> Result:
    """The pictures of a stored search, in `pictures` of it."""
    import lake_pipeline.optimizer.plots as plots

    def write(store: Store) -> None:
        for name, picture in plots.pictures(result.trials(), result.best(), result.winner_trades()).items():
            store.create(f"{name}.png", picture)

    return part_result(lake, run, result, "pictures", write, threads, plots.__name__)
