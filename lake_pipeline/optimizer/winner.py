"""The winner's report: what was chosen on train, what it came to on test, and how much of it is luck.

**Chosen** in each fold is the trial that passes the gates with the largest objective on train; of equals the first. The
winner is that of the last fold, which learned from the latest alerts. Test periods decide nothing.

**Lanes**: the top trials of the last fold again under worse conditions, nothing else of them changed. **Latency**: the
winner entered some candles later; its path ends when it did, so no lane reaches into the test period either.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.backtest.config import StrategyConfig, canonical_values
from lake_pipeline.backtest.statistics import median
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline.optimizer.evaluate import Evaluator, Outcomes
from lake_pipeline.optimizer.ledger import TrialCount, count_trials
from lake_pipeline.optimizer.objective import FIGURES, Objective
from lake_pipeline.optimizer.search import SearchConfig
from lake_pipeline.optimizer.space import SearchSpace
from lake_pipeline.optimizer.splits import Fold
from lake_pipeline.optimizer.statistics import (
    Moments,
    bootstrap_interval,
    deflated_sharpe,
    expected_maximum_sharpe,
    moments,
    probabilistic_sharpe,
)
from lake_pipeline.optimizer.trials import Measure, measure, strategy_of

__all__ = ["LATENCIES", "SIGNIFICANT", "WINNER_TRADES_SCHEMA", "concerns", "luck", "report_winner", "why_no_winner"]

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SIGNIFICANT: Final = 0.95
LATENCIES: Final = (0, 1, 2, 5)
_FEE_BPS, _SLIPPAGE_BPS = 50.0, 100.0
_MOST_COSTS: Final = 9_999.0
# How far neighbours are, as a share of a range, and what share of the peak they should keep.
_NEIGHBOURHOOD: Final = 0.05
_PLATEAU: Final = 0.5
_MUCH_AMBIGUITY: Final = 0.05

WINNER_TRADES_SCHEMA: Final = pa.schema(
    [
        ("fold", pa.int32()),
        ("period", pa.string()),
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("caller", pa.string()),
        ("entry_ts_utc", ALERTS_SCHEMA.field("ts").type),
        ("exit_ts_utc", ALERTS_SCHEMA.field("ts").type),
        ("ret", pa.float64()),
        ("ret_worst", pa.float64()),
        ("ret_best", pa.float64()),
        ("ambiguous", pa.bool_()),
        # The same alert held to its path's end, at the same costs.
        ("hold_exit_ts_utc", ALERTS_SCHEMA.field("ts").type),
        ("hold_ret", pa.float64()),
    ]
)


def report_winner(
    evaluator: Evaluator,
    folds: Sequence[Fold],
    trials: pa.Table,
    config: SearchConfig,
    horizon_hours: float,
    *,
    threads: int = 2,
) -> tuple[dict[str, Any], pa.Table]:
    """The report as JSON values, and the trades of each fold's winner (WINNER_TRADES_SCHEMA).

    `winner` of a fold, and of the report, is None where no trial passes the gates.
    """
    examiner = _Examiner(evaluator, config, threads)
    reports, tables = [], []
    for fold in folds:
        own = trials.filter(pc.equal(trials.column("fold"), fold.number))
        ranked = _ranked(own, config.top)
        report: dict[str, Any] = {
            "fold": fold.number,
            **{name: _iso(getattr(fold, name)) for name in ("train_from", "test_from", "test_to")},
            "train_alerts": int(fold.train.sum()),
            "test_alerts": int(fold.test.sum()),
            "purged_alerts": fold.purged,
            "trials": _trial_counts(own),
            "winner": None,
        }
        if ranked:
            strategy = strategy_of(ranked[0])
            outcomes = evaluator.outcomes([strategy, _held(strategy)])
            report["winner"] = examiner.winner(ranked[0], strategy, fold, outcomes, own)
            tables += examiner.trades(fold, outcomes)
        reports.append(report)
    document: dict[str, Any] = {
        "objective": config.objective.name,
        "gates": dataclasses.asdict(config.gates),
        "alerts": len(evaluator.entry_ts),
        "horizon_hours": horizon_hours,
        "folds": reports,
        "walk_forward": None,
        "winner": None,
    }
    trades = pa.concat_tables([WINNER_TRADES_SCHEMA.empty_table(), *tables]).combine_chunks()
    if ranked:  # those of the last fold, as are `strategy` and `fold`
        document["winner"] = {
            **reports[-1]["winner"],
            "plateau": examiner.plateau(ranked[0], strategy, fold),
            "lanes": examiner.lanes(ranked, fold),
            "latency": examiner.latency(strategy, fold),
            "range_edges": _range_edges(strategy, config.space),
        }
    if len(folds) > 1:
        document["walk_forward"] = examiner.walk_forward(trades)
    return document, trades


def luck(winner: Mapping[str, Any], count: TrialCount) -> dict[str, Any]:
    """The deflated Sharpe ratio of a winner on train, as the best of so many trials, by two measures of luck.

    `deflated_sharpe` takes for the variance of the trials' ratios that of a ratio without any edge on the winner's n
    trades, 1 / (n - 1): what luck alone makes of independent trials, and so no less than what it makes of these.
    `published_...` take the variance of the trials' own ratios, as the paper does. That is too little where all trials
    trade the same alerts and share their luck, and too much where some trials are worse for good reason.
    """
    found = None if winner["train_moments"] is None else Moments(**winner["train_moments"])
    variance = None if found is None else 1 / (found.n - 1)
    return {
        "trials": count.trials,
        "variance": variance,
        "expected_maximum_sharpe": None if variance is None else expected_maximum_sharpe(variance, count.trials),
        "deflated_sharpe": None if found is None else deflated_sharpe(found, 1 / (found.n - 1), count.trials),
        "published_variance": count.sharpe_variance,
        "published_expected_maximum_sharpe": expected_maximum_sharpe(count.sharpe_variance, count.trials),
        "published_deflated_sharpe": None
        if found is None
        else deflated_sharpe(found, count.sharpe_variance, count.trials),
    }


def concerns(winner: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Reasons, in sentences, not to believe a winner; `found` is its `luck`."""
    reasons = []
    if found["trials"] > 1 and found["published_variance"] == 0:
        reasons.append("all trials came to the same: no price reached any of the levels that were searched")
    deflated = found["deflated_sharpe"]
    if deflated is None or deflated < SIGNIFICANT:
        shown = "has no value" if deflated is None else f"is {deflated:.3f}, below {SIGNIFICANT}"
        reasons.append(
            f"the best of {found['trials']:,} trials may look as good by luck alone: its deflated Sharpe ratio {shown}"
        )
    test, interval = winner["test"], winner["test_interval"]
    if test["mean_ret"] is None:
        reasons.append("there is no trade in the test period")
    elif test["mean_ret"] <= 0:
        reasons.append(f"it loses in the test period: {test['mean_ret']:+.4f} a trade")
    elif interval is None or interval[0] <= 0:
        reasons.append("the interval of its mean return in the test period includes losses")
    if test["mean_ret"] is not None and test["mean_ret"] > 0 >= test["mean_ret_worst"]:
        reasons.append("its gain in the test period hangs on the order inside ambiguous candles")
    elif (test["ambiguous_share"] or 0) > _MUCH_AMBIGUITY:
        reasons.append(f"{test['ambiguous_share']:.1%} of its test trades are ambiguous")
    plateau = winner["plateau"]
    if plateau["ratio"] is not None and plateau["ratio"] < _PLATEAU:
        reasons.append(
            f"it is a peak, no plateau: the median neighbour keeps {plateau['ratio']:.0%} of its objective on train"
        )
    worst = winner["lanes"][0]["worst"]
    if test["mean_ret"] is not None and test["mean_ret"] > 0 and (worst["test_mean_ret"] or 0) <= 0:
        reasons.append(f"its gain in the test period does not survive the lane {worst['lane']!r}")
    if winner["range_edges"]:
        reasons.append(f"{', '.join(winner['range_edges'])} is at the edge of its range: the best may lie beyond")
    return reasons


def why_no_winner(report: Mapping[str, Any]) -> str:
    """Why the last fold of a report has no winner, and what to do."""
    last = report["folds"][-1]
    counts = last["trials"]
    if counts["passed_gates"]:
        return (
            f"{report['objective']} has no value on train for any of the {counts['passed_gates']:,} trials that pass "
            "the gates. Choose another objective, or wider ranges"
        )
    failures = ", ".join(f"{count:,} fail {gate}" for gate, count in sorted(counts["failed_gates"].items()))
    return (
        f"no trial passes the gates: of {counts['evaluated']:,} trials on {last['train_alerts']:,} train alerts "
        f"{failures}. Choose easier gates, other ranges, or longer train periods"
    )


def _ranked(trials: pa.Table, most: int) -> list[dict[str, Any]]:
    """The first rows that may be chosen, different strategies only, best first."""
    passed = pc.and_(pc.is_null(trials.column("failed_gates")), pc.is_valid(trials.column("objective")))
    ordered = trials.filter(passed).sort_by([("objective", "descending"), ("trial", "ascending")])
    first: dict[str, int] = {}
    for number, trial_id in enumerate(ordered.column("trial_id").to_pylist()):
        first.setdefault(trial_id, number)
    rows: list[dict[str, Any]] = ordered.take(pa.array(list(first.values())[:most], pa.int64())).to_pylist()
    return rows


def _trial_counts(trials: pa.Table) -> dict[str, Any]:
    different = count_trials([trials])
    failed = trials.column("failed_gates")
    return {
        "evaluated": trials.num_rows,
        "different": different.trials,
        "passed_gates": failed.null_count,
        "failed_gates": Counter(gate for gates in failed.drop_null().to_pylist() for gate in gates.split(",")),
        "sharpe_variance": different.sharpe_variance,
    }


def _iso(ts_ms: int) -> str:
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ts_ms)
    return f"{moment.isoformat(timespec='milliseconds' if ts_ms % 1000 else 'seconds')}Z"


def _held(strategy: StrategyConfig) -> StrategyConfig:
    """Bought and held to the path's end, at the same costs."""
    return StrategyConfig(tp=None, sl=None, fee_bps=strategy.fee_bps, slippage_bps=strategy.slippage_bps)


class _Examiner:
    """What is computed of chosen strategies."""

    def __init__(self, evaluator: Evaluator, config: SearchConfig, threads: int) -> None:
        self._evaluator = evaluator
        self._delayed: dict[int, Evaluator] = {0: evaluator}
        self._config = config
        self._threads = threads
        mints = evaluator.alerts.column("mint").combine_chunks().dictionary_encode()
        self._mint = mints.indices.to_numpy().astype(np.int64)

    def _measure(self, evaluator: Evaluator, strategies: Sequence[StrategyConfig], fold: Fold) -> list[Measure]:
        return measure(evaluator, strategies, [fold.train, fold.test], self._threads)

    def _entered_late(self, candles: int) -> Evaluator:
        """The evaluator of entries so many candles later; what it finds in the paths is found once."""
        if candles not in self._delayed:
            self._delayed[candles] = self._evaluator.delayed(candles)
        return self._delayed[candles]

    def winner(
        self, row: Mapping[str, Any], strategy: StrategyConfig, fold: Fold, outcomes: Outcomes, trials: pa.Table
    ) -> dict[str, Any]:
        """A fold's winner: parameters, figures of both periods, and what is between them."""
        # What the table has no figure for, as the search computed means only, is computed here.
        train, test = (
            {
                name: value if row[f"{period}_{name}"] is None else row[f"{period}_{name}"]
                for name, value in all_.items()
            }
            for period, all_ in zip(
                ("train", "test"),
                (_at(each, 0) for each in self._measure(self._evaluator, [strategy], fold)),
                strict=True,
            )
        )
        held = [_mean(outcomes.ret[1, members]) for members in (fold.train, fold.test)]
        train_moments, test_moments = (
            moments(_known(outcomes.ret[0, members]).tolist()) for members in (fold.train, fold.test)
        )
        chosen: dict[str, Any] = {
            "trial": row["trial"],
            "trial_id": row["trial_id"],
            "strategy": canonical_values(strategy),
            "train_objective": row["objective"],
            "test_objective": row["test_objective"],
            "train": train,
            "test": test,
            "train_hold_mean_ret": held[0],
            "test_hold_mean_ret": held[1],
            "train_interval": self._interval(outcomes, fold.train),
            "test_interval": self._interval(outcomes, fold.test),
            "train_moments": None if train_moments is None else dataclasses.asdict(train_moments),
            "test_probabilistic_sharpe": None if test_moments is None else probabilistic_sharpe(test_moments, 0.0),
        }
        chosen["degradation"] = _difference(chosen["test_objective"], chosen["train_objective"])
        chosen["luck"] = luck(chosen, count_trials([trials]))
        return chosen

    def _interval(self, outcomes: Outcomes, members: BoolArray) -> list[float] | None:
        found = bootstrap_interval(outcomes.ret[0, members], self._mint[members], self._config.seed)
        return None if found is None else list(found)

    def trades(self, fold: Fold, outcomes: Outcomes) -> list[pa.Table]:
        """The trades of a winner (trial 0 of the outcomes) beside those of holding (trial 1), train then test."""
        tables = []
        alerts = self._evaluator.alerts
        ts = ALERTS_SCHEMA.field("ts").type
        for period, members in (("train", fold.train), ("test", fold.test)):
            rows = np.flatnonzero(members & ~np.isnan(outcomes.ret[0]))
            chosen = alerts.take(pa.array(rows))
            held = outcomes.ret[1, rows]
            columns = {
                "fold": [fold.number] * len(rows),
                "period": [period] * len(rows),
                **{name: chosen.column(name).combine_chunks() for name in ("alert_id", "mint", "caller")},
                "entry_ts_utc": pa.array(self._evaluator.entry_ts[rows]).cast(ts),
                "exit_ts_utc": pa.array(outcomes.exit_ts[0, rows]).cast(ts),
                **{name: getattr(outcomes, name)[0, rows] for name in ("ret", "ret_worst", "ret_best", "ambiguous")},
                "hold_exit_ts_utc": pa.array(outcomes.exit_ts[1, rows]).cast(ts),
                "hold_ret": pa.array(held, mask=np.isnan(held)),
            }
            arrays = [pa.array(columns[field.name], field.type) for field in WINNER_TRADES_SCHEMA]
            tables.append(pa.table(arrays, WINNER_TRADES_SCHEMA))
        return tables

    def plateau(self, row: Mapping[str, Any], strategy: StrategyConfig, fold: Fold) -> dict[str, Any]:
        """The objective on train of the strategies around the winner that differ in one or two exits."""
        neighbours = _neighbours(strategy, self._config.space)
        peak = row["objective"]
        values: list[float] = []
        if neighbours:
            figures = measure(self._evaluator, neighbours, [fold.train], self._threads)[0]
            values = _known(self._config.objective.of(figures)).tolist()
        middle = median(values)
        return {
            "neighbours": len(values),
            "peak": peak,
            "median": middle,
            "lowest": min(values, default=None),
            "ratio": middle / peak if middle is not None and peak > 0 else None,
        }

    def lanes(self, ranked: Sequence[Mapping[str, Any]], fold: Fold) -> list[dict[str, Any]]:
        """The top trials under each lane; those of the winner on test too, as no other was chosen."""
        strategies = [strategy_of(row) for row in ranked]
        objective = self._config.objective
        lanes: dict[str, list[Measure]] = {}
        for name, (worse, late) in _LANES.items():
            lanes[name] = self._measure(
                self._entered_late(int(late)), [worse(strategy) for strategy in strategies], fold
            )
        found = []
        for rank, row in enumerate(ranked):
            results = []
            for name, (train, test) in lanes.items():
                on_train, on_test = _at(train, rank), _at(test, rank)
                result = {
                    "lane": name,
                    "train_objective": _objective(objective, on_train),
                    "train_mean_ret": on_train["mean_ret"],
                }
                if rank == 0:
                    result |= {
                        "test_objective": _objective(objective, on_test),
                        "test_mean_ret": on_test["mean_ret"],
                    }
                results.append(result)
            period = "test" if rank == 0 else "train"
            worst = min(results, key=lambda each: _or_lowest(each[f"{period}_mean_ret"]))
            found.append({"rank": rank + 1, "trial": row["trial"], "lanes": results, "worst": worst})
        return found

    def latency(self, strategy: StrategyConfig, fold: Fold) -> list[dict[str, Any]]:
        """The winner entered some candles later."""
        found = []
        for candles in LATENCIES:
            measures = self._measure(self._entered_late(candles), [strategy], fold)
            train, test = (_at(each, 0) for each in measures)
            found.append(
                {
                    "candles": candles,
                    "seconds": candles * self._evaluator.interval_s,
                    **{
                        f"{period}_{name}": figures[name]
                        for period, figures in (("train", train), ("test", test))
                        for name in ("n", "mean_ret", "sharpe", "win_rate")
                    },
                }
            )
        return found

    def walk_forward(self, trades: pa.Table) -> dict[str, Any]:
        """The test trades of all folds' winners together: each alert was traded by what was known before it."""
        test = trades.filter(pc.equal(trades.column("period"), "test"))
        returns = test.column("ret").to_numpy()
        mints = test.column("mint").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        found = moments(returns.tolist())
        interval = bootstrap_interval(returns, mints, self._config.seed)
        held = test.column("hold_ret").drop_null().to_numpy()
        return {
            "n": len(returns),
            "mean_ret": _mean(returns),
            "win_rate": float((returns > 0).mean()) if len(returns) else None,
            "sharpe": None if found is None else found.sharpe,
            "probabilistic_sharpe": None if found is None else probabilistic_sharpe(found, 0.0),
            "interval": None if interval is None else list(interval),
            "hold_mean_ret": _mean(held),
        }


def _costlier(strategy: StrategyConfig, fee: float, slippage: float) -> StrategyConfig:
    room = _MOST_COSTS - strategy.fee_bps - strategy.slippage_bps
    fee = max(min(fee, room), 0.0)
    return dataclasses.replace(
        strategy,
        fee_bps=strategy.fee_bps + fee,
        slippage_bps=strategy.slippage_bps + max(min(slippage, room - fee), 0.0),
    )


# What is worse in each lane, and whether the entry is a candle late.
_LANES: Final[dict[str, tuple[Callable[[StrategyConfig], StrategyConfig], bool]]] = {
    "as searched": (lambda each: each, False),
    f"fees +{_FEE_BPS:g} bps": (lambda each: _costlier(each, _FEE_BPS, 0), False),
    f"slippage +{_SLIPPAGE_BPS:g} bps": (lambda each: _costlier(each, 0, _SLIPPAGE_BPS), False),
    "entry +1 candle": (lambda each: each, True),
    "gap fills": (lambda each: dataclasses.replace(each, fill="gap"), False),
    "all of these": (lambda each: dataclasses.replace(_costlier(each, _FEE_BPS, _SLIPPAGE_BPS), fill="gap"), True),
}


def _neighbours(strategy: StrategyConfig, space: SearchSpace) -> list[StrategyConfig]:
    """The strategies around one that differ in one or two numbers, by a 40th or a 20th of the range, in whole steps."""
    moves: list[list[dict[str, Any]]] = []
    for dimension in space.dimensions:
        current = getattr(strategy, dimension.name)
        numbers = sorted(value for value in dimension.values if isinstance(value, float))
        if isinstance(current, float) and current in numbers:
            position = numbers.index(current)
            far = max(1, round(_NEIGHBOURHOOD * (len(numbers) - 1)))
            steps = {sign * step for step in (far, max(1, far // 2)) for sign in (-1, 1)}
            moves.append(
                [
                    {dimension.name: numbers[position + step]}
                    for step in sorted(steps)
                    if 0 <= position + step < len(numbers)
                ]
            )
    found: list[StrategyConfig] = []
    for number, dimension_moves in enumerate(moves):
        for move in dimension_moves:
            found.append(dataclasses.replace(strategy, **move))
            for other_moves in moves[number + 1 :]:
                found += [dataclasses.replace(strategy, **move, **other) for other in other_moves]
    return found


def _range_edges(strategy: StrategyConfig, space: SearchSpace) -> list[str]:
    """The exits whose value is the smallest or the largest that was searched."""
    edges = []
    for dimension in space.dimensions:
        numbers = [value for value in dimension.values if isinstance(value, float)]
        value = getattr(strategy, dimension.name)
        if len(numbers) > 2 and value in (min(numbers), max(numbers)):
            edges.append(f"{dimension.name} {value:g}")
    return edges


def _at(figures: Measure, position: int) -> dict[str, Any]:
    """The figures of one strategy as JSON values."""
    plain: dict[str, Any] = {}
    for name in FIGURES:
        value = float(figures[name][position])
        whole = name in ("n", "max_losing_streak") and math.isfinite(value)
        plain[name] = int(value) if whole else value if math.isfinite(value) else None
    return plain


def _objective(objective: Objective, figures: Mapping[str, Any]) -> float | None:
    if any(figures[name] is None for name, _ in objective.terms):
        return None
    value = float(objective.of({name: np.array([figures[name]], np.float64) for name, _ in objective.terms})[0])
    return value if math.isfinite(value) else None


def _difference(test: float | None, train: float | None) -> dict[str, float | None]:
    """How much of the objective is lost from train to test, and what share is left (null unless train's is above 0)."""
    if test is None or train is None:
        return {"lost": None, "kept_share": None}
    return {"lost": train - test, "kept_share": test / train if train > 0 else None}


def _known(values: Float64Array) -> Float64Array:
    return values[~np.isnan(values)]


def _mean(values: Float64Array) -> float | None:
    known = _known(values)
    return math.fsum(known.tolist()) / len(known) if len(known) else None


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value
