"""The search: which trials are evaluated, in which batches, and what is kept of them when it is interrupted.

Trials are evaluated in batches whose sizes depend on the number of alerts and on nothing else, and each batch goes into
the ledger. An interrupted search that goes on takes from there what it has; TPE asks for the same trials again, as it
is told the same objectives. So the table is the same bytes however often it was interrupted and whatever the threads.

Random and grid searches try every trial in every fold. TPE searches each fold by itself: what it learns in a later fold
must not guide an earlier one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, StrategyConfig, check_integer
from lake_pipeline.errors import ConfigError
from lake_pipeline.optimizer.evaluate import Evaluator
from lake_pipeline.optimizer.ledger import Ledger
from lake_pipeline.optimizer.objective import FigureSet, Gates, Objective, check_figures
from lake_pipeline.optimizer.sampling import DEFAULT_TRIALS, MOST_TRIALS, SAMPLERS, SamplerName, make_sampler
from lake_pipeline.optimizer.space import SearchSpace
from lake_pipeline.optimizer.splits import Fold, SplitConfig
from lake_pipeline.optimizer.trials import TRIALS_SCHEMA, measure, scope_of, strategy_of, trials_table

__all__ = ["Progress", "SearchConfig", "run_search"]

logger = logging.getLogger(__name__)

# Trials of a batch times alerts: some 160 MB of outcomes. Without them a batch is a matter of progress only.
_BATCH_PAIRS: Final = 5_000_000
_LEAST_TRIALS, _MOST_TRIALS, _MOST_MEANS = 10, 1000, 20_000


@dataclass(frozen=True)
class SearchConfig:
    """What is searched, how, and by which rules the winner is chosen and examined.

    `trials` is None for a grid, which has as many as its space has points; the random sampler takes no more than that.
    `top` trials go through the robustness lanes. Raises ConfigError.
    """

    space: SearchSpace
    sampler: SamplerName = "random"
    trials: int | None = None
    seed: int = 0
    split: SplitConfig = SplitConfig()
    objective: Objective = Objective()
    gates: Gates = Gates()
    figures: FigureSet = "all"
    top: int = 5

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        check_integer(self, "seed", least=0)
        check_integer(self, "top", least=1)
        check_figures(self.figures, self.objective, self.gates)
        if self.sampler == "grid":
            if self.trials is not None:
                raise ConfigError(f"a grid has a trial for each of its {self.space.size:,} points: leave trials out")
            if self.space.size > MOST_TRIALS:
                raise ConfigError(
                    f"a grid of {self.space.size:,} points is more than {MOST_TRIALS:,}: give coarser ranges, or "
                    "another sampler"
                )
            return
        object.__setattr__(self, "trials", DEFAULT_TRIALS if self.trials is None else self.trials)
        check_integer(self, "trials", least=1)
        if (self.trials or 0) > MOST_TRIALS:
            raise ConfigError(f"trials {self.trials:,} cannot work: it must be at most {MOST_TRIALS:,}")
        if self.sampler == "random" and (self.trials or 0) > self.space.size:
            object.__setattr__(self, "trials", self.space.size)

    def canonical(self) -> dict[str, Any]:
        """The settings as JSON values: parameters of the result's key."""
        return {
            "space": self.space.canonical(),
            "sampler": {"name": self.sampler, **({"optuna": version("optuna")} if self.sampler == "tpe" else {})},
            "trials": self.trials,
            "seed": self.seed,
            "split": {name: getattr(self.split, name) for name in ("train_days", "test_days", "folds")},
            "objective": dict(self.objective.terms),
            "gates": {name: getattr(self.gates, name) for name in ("min_trades", "min_hit_rate", "max_drawdown")},
            "figures": self.figures,
            "top": self.top,
        }


@dataclass(frozen=True)
class Progress:
    """How far a search is: trials done of all, in all folds, and the best so far that passes the gates."""

    done: int
    total: int
    best_objective: float | None
    best: StrategyConfig | None


def run_search(
    evaluator: Evaluator,
    folds: Sequence[Fold],
    config: SearchConfig,
    baseline: BaselineConfig,
    selection: AlertSelection,
    *,
    ledger: Ledger,
    key: str,
    threads: int = 2,
    resume: bool = False,
    on_batch: Callable[[Progress], None] = lambda progress: None,
) -> pa.Table:
    """Evaluate every trial: a table of TRIALS_SCHEMA, by fold and trial.

    Each batch is added to the ledger under `key`; with `resume` those that are there already are taken from it.
    """
    kept = ledger.batches(key, TRIALS_SCHEMA) if resume else {}
    if kept:
        logger.info("%d batches of trials of this search are there already and are used: %s", len(kept), ledger.uri)
    studies = [[fold] for fold in folds] if config.sampler == "tpe" else [list(folds)]
    most = _MOST_MEANS
    if config.figures == "all":
        most = max(_LEAST_TRIALS, min(_MOST_TRIALS, _BATCH_PAIRS // len(evaluator.entry_ts)))
    scope = scope_of(baseline, selection)
    tables: list[pa.Table] = []
    done, best, best_strategy = 0, -math.inf, None
    for study in studies:
        sampler = make_sampler(config.sampler, config.space, config.trials, config.seed)
        first = 0
        while first < sampler.trials:
            count = min(sampler.batch or most, sampler.trials - first)
            strategies = [config.space.strategy(point) for point in sampler.ask(count)]
            table = kept.get(len(tables))
            if table is None:
                groups = [fold.train for fold in study] + [fold.test for fold in study]
                measures = measure(evaluator, strategies, groups, threads, curves=config.figures == "all")
                table = trials_table(
                    first, config.seed, strategies, study, measures, scope, config.objective, config.gates
                )
                ledger.add(key, len(tables), table)
            objectives = [
                None if failed else objective
                for objective, failed in zip(
                    table.column("objective").to_pylist(), table.column("failed_gates").to_pylist(), strict=True
                )
            ]
            sampler.tell(objectives[:count])
            tables.append(table)
            first += count
            done += table.num_rows
            for row, objective in enumerate(objectives):
                if objective is not None and objective > best:
                    best, best_strategy = objective, strategy_of(table.slice(row, 1).to_pylist()[0])
            total = sampler.trials * len(folds)
            on_batch(Progress(done, total, None if best_strategy is None else best, best_strategy))
    return pa.concat_tables(tables).sort_by([("fold", "ascending"), ("trial", "ascending")]).combine_chunks()
