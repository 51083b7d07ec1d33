"""The table of trials: one row a fold and trial, and how a row and a strategy become each other."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.backtest.config import (
    AlertSelection,
    BaselineConfig,
    StrategyConfig,
    canonical_values,
    format_tiers,
    parse_tiers,
)
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.optimizer.evaluate import Evaluator
from lake_pipeline.optimizer.objective import (
    CURVE_FIGURES,
    FIGURES,
    Gates,
    Objective,
    curve_figures,
    mean_figures,
)
from lake_pipeline.optimizer.splits import Fold

__all__ = ["TRIALS_SCHEMA", "Measure", "measure", "scope_of", "strategy_of", "trials_table"]

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_PARAMETERS: Final = tuple(field.name for field in dataclasses.fields(StrategyConfig))
_TEXT: Final = ("intrabar_order", "fill", "tiers")
_COUNTS: Final = ("n", "max_losing_streak")


def _figure_fields(period: str) -> list[tuple[str, pa.DataType]]:
    return [(f"{period}_{name}", pa.int64() if name in _COUNTS else pa.float64()) for name in FIGURES]


TRIALS_SCHEMA: Final = pa.schema(
    [
        ("fold", pa.int32()),
        ("trial", pa.int32()),
        ("seed", pa.int64()),
        ("trial_id", pa.string()),
        *((name, pa.string() if name in _TEXT else pa.float64()) for name in _PARAMETERS),
        # The objective on train, by which trials are chosen; its parts are among the figures.
        ("objective", pa.float64()),
        # Null where every gate is passed.
        ("failed_gates", pa.string()),
        *_figure_fields("train"),
        ("test_objective", pa.float64()),
        *_figure_fields("test"),
    ]
)

Measure = Mapping[str, Float64Array]


def measure(
    evaluator: Evaluator,
    strategies: Sequence[StrategyConfig],
    groups: Sequence[BoolArray],
    threads: int,
    *,
    curves: bool = True,
) -> list[Measure]:
    """FIGURES of these strategies on each group of alerts: arrays by strategy, NaN for null.

    Without `curves`, those that need every trade are null.
    """
    sl = np.array([math.nan if each.sl is None else each.sl for each in strategies], np.float64)
    risk = np.array([each.risk_per_trade for each in strategies], np.float64)
    totals = evaluator.totals(strategies, np.array(groups, np.bool_))
    found: list[dict[str, Float64Array]] = [mean_figures(totals, group, sl) for group in range(len(groups))]
    outcomes = evaluator.outcomes(strategies) if curves else None
    for figures, members in zip(found, groups, strict=True):
        if outcomes is None:
            figures |= {name: np.full(len(strategies), np.nan) for name in CURVE_FIGURES}
        else:
            figures |= curve_figures(outcomes, np.flatnonzero(members), sl, risk, threads)
    return list(found)


def trials_table(
    first: int,
    seed: int,
    strategies: Sequence[StrategyConfig],
    folds: Sequence[Fold],
    measures: Sequence[Measure],
    scope: Mapping[str, Any],
    objective: Objective,
    gates: Gates,
) -> pa.Table:
    """The rows of these strategies, trials from `first` on, fold by fold.

    `measures` are those of all folds' train groups, then of all folds' test groups. `scope` is what a trial's identity
    depends on besides its strategy and its train period.
    """
    rows = [_parameters(strategy) for strategy in strategies]
    parameters = dict(zip(_PARAMETERS, zip(*rows, strict=True), strict=True))
    # The shortest decimals that are these doubles, in the order of the fields.
    texts = [repr(row).encode() for row in rows]
    tables = []
    for fold, train, test in zip(folds, measures[: len(folds)], measures[len(folds) :], strict=True):
        origin = hashlib.sha256(canonical_json({**scope, "train": [fold.train_from, fold.test_from]}))
        columns: dict[str, Any] = {
            "fold": [fold.number] * len(rows),
            "trial": range(first, first + len(rows)),
            "seed": [seed] * len(rows),
            "trial_id": [_extended(origin, text) for text in texts],
            **parameters,
            "objective": objective.of(train),
            "failed_gates": [failed or None for failed in gates.failed(train)],
            **{f"train_{name}": values for name, values in train.items()},
            "test_objective": objective.of(test),
            **{f"test_{name}": values for name, values in test.items()},
        }
        tables.append(pa.table([_array(columns[field.name], field.type) for field in TRIALS_SCHEMA], TRIALS_SCHEMA))
    return pa.concat_tables(tables)


def scope_of(config: BaselineConfig, selection: AlertSelection) -> dict[str, Any]:
    """What the identity of a trial depends on besides its strategy and its train period."""
    return {"baseline": canonical_values(config), "selection": canonical_values(selection)}


def strategy_of(row: Mapping[str, Any]) -> StrategyConfig:
    """The strategy of a row of the table, whole."""
    values = {name: row[name] for name in _PARAMETERS}
    return StrategyConfig(**{**values, "tiers": parse_tiers(values["tiers"] or "")})


def _parameters(strategy: StrategyConfig) -> tuple[Any, ...]:
    """The values of a row in the order of _PARAMETERS."""
    fields = vars(strategy)
    return tuple(format_tiers(fields[name]) or None if name == "tiers" else fields[name] for name in _PARAMETERS)


def _extended(origin: Any, text: bytes) -> str:
    digest = origin.copy()
    digest.update(text)
    return str(digest.hexdigest()[:16])


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype == np.float64:
        array = pa.array(values, mask=~np.isfinite(values))
        return array.cast(type_)
    return pa.array(values, type_)
