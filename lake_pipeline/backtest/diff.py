"""What differs between two results of one kind: alerts, callers' ranks, and the causes there are.

A result is decided by what its `identity` names: the run's data, the alert selection, the parameters and the code. So
what differs there is every possible cause. Where it is one thing, it moved every number that moved; where there are
several, these two results do not tell which of them moved what, and results that change one at a time do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lake_pipeline.backtest.results import BaselineResult, StoredResult, StrategyResult
from lake_pipeline.errors import InputError

__all__ = ["AlertDiff", "Causes", "RankDiff", "ResultDiff", "diff_results", "find_causes"]

_Rank = tuple[int, float | None]


@dataclass(frozen=True)
class Causes:
    """What differs between two identities; empty or None where nothing does.

    `data` are the two content_sha256, `parameters` (the selection among them) map a name to its two values, `modules`
    are names of source modules, `libraries` map a name to its two versions.
    """

    data: tuple[str, str] | None
    parameters: dict[str, tuple[Any, Any]]
    modules: tuple[str, ...]
    libraries: dict[str, tuple[Any, Any]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of data, parameters and code differ."""
        found = {"data": self.data, "parameters": self.parameters, "code": self.modules or self.libraries}
        return tuple(name for name, value in found.items() if value)


@dataclass(frozen=True)
class AlertDiff:
    """One column of one alert in A and in B; `delta` is B - A where both are numbers."""

    alert_id: str
    metric: str
    a: Any
    b: Any
    delta: float | None


@dataclass(frozen=True)
class RankDiff:
    """A caller whose rank or measure differs; None where a caller is in one result only.

    The measure is the score of a baseline's caller, the mean return of a strategy's.
    """

    caller: str
    rank_a: int | None
    rank_b: int | None
    measure_a: float | None
    measure_b: float | None


@dataclass(frozen=True)
class ResultDiff:
    """Differences of result A to result B; empty lists where there are none.

    `moved` are sorted like A's alerts and columns, `callers` by A's rank, those of B alone last.
    """

    kind: str
    key_a: str
    key_b: str
    causes: Causes
    moved: list[AlertDiff]
    only_in_a: list[str]
    only_in_b: list[str]
    callers: list[RankDiff]

    @property
    def same(self) -> bool:
        """Whether every alert and every caller is the same."""
        return not (self.moved or self.only_in_a or self.only_in_b or self.callers)


def diff_results(a: StoredResult, b: StoredResult) -> ResultDiff:
    """Compare two stored baselines or two stored strategies. Raises InputError for one of each."""
    if a.record.kind != b.record.kind:
        raise InputError(f"{a.key} is a {a.record.kind} and {b.key} a {b.record.kind}: compare two results of one kind")
    rows_a, rows_b = _rows(a), _rows(b)
    moved = [
        AlertDiff(
            alert_id, metric, row[metric], rows_b[alert_id][metric], _delta(row[metric], rows_b[alert_id][metric])
        )
        for alert_id, row in rows_a.items()
        if alert_id in rows_b
        # A column that only one version of the code has is a cause, no movement.
        for metric in row
        if metric in rows_b[alert_id] and row[metric] != rows_b[alert_id][metric]
    ]
    return ResultDiff(
        kind=a.record.kind,
        key_a=a.key,
        key_b=b.key,
        causes=find_causes(a.record.identity, b.record.identity),
        moved=moved,
        only_in_a=[alert_id for alert_id in rows_a if alert_id not in rows_b],
        only_in_b=[alert_id for alert_id in rows_b if alert_id not in rows_a],
        callers=_rank_diffs(_ranks(a), _ranks(b)),
    )


def find_causes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Causes:
    """What differs between the identities of two results."""
    data = (a["content_sha256"], b["content_sha256"])
    modules_a, modules_b = a["code"]["modules"], b["code"]["modules"]
    return Causes(
        data=data if data[0] != data[1] else None,
        parameters=_differing(_parameters(a), _parameters(b)),
        modules=tuple(_differing(modules_a, modules_b)),
        libraries=_differing(a["code"]["libraries"], b["code"]["libraries"]),
    )


def _parameters(identity: Mapping[str, Any]) -> dict[str, Any]:
    groups = {"selection": identity["selection"], **identity["parameters"]}
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def _rows(result: StoredResult) -> dict[str, dict[str, Any]]:
    table = result.baseline() if isinstance(result, BaselineResult) else result.trades()
    return {row["alert_id"]: row for row in table.to_pylist()}


def _delta(a: Any, b: Any) -> float | None:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (a, b)):
        return None
    difference: float = b - a
    return difference


def _ranks(result: StoredResult) -> dict[str, _Rank]:
    """Rank and measure of each caller, by rank; a strategy's callers rank by mean return, then by name."""
    if isinstance(result, BaselineResult):
        columns = result.caller_stats().select(["caller", "rank", "score"])
        return {row["caller"]: (row["rank"], row["score"]) for row in columns.to_pylist()}
    return _ranked_by_return(result)


def _ranked_by_return(result: StrategyResult) -> dict[str, _Rank]:
    means = {caller: figures["case"]["mean_ret"] for caller, figures in result.summary()["callers"].items()}
    traded = [(caller, mean) for caller, mean in means.items() if mean is not None]
    traded.sort(key=lambda each: (-each[1], each[0].encode()))
    return {caller: (rank, mean) for rank, (caller, mean) in enumerate(traded, start=1)}


def _rank_diffs(a: Mapping[str, _Rank], b: Mapping[str, _Rank]) -> list[RankDiff]:
    found = []
    for caller in [*a, *(caller for caller in b if caller not in a)]:
        (rank_a, measure_a), (rank_b, measure_b) = a.get(caller, (None, None)), b.get(caller, (None, None))
        if (rank_a, measure_a) != (rank_b, measure_b):
            found.append(RankDiff(caller, rank_a, rank_b, measure_a, measure_b))
    return found
