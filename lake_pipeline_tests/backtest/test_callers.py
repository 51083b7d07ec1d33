"""Caller statistics by hand, and the score term by term."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from lake_pipeline.backtest.baseline import measure_paths
from lake_pipeline.backtest.callers import CALLER_SCHEMA, compute_caller_stats, score_of
from lake_pipeline.backtest.config import BaselineConfig, CallerConfig
from lake_pipeline_tests.backtest.paths_for_tests import Bar, bar, paths_of


def doubled(minute: int) -> list[Bar]:
    return [bar(0, 1, 1, 0.75, 1), bar(minute, 1, 2, 1, 2)]


FLAT = [bar(0, 1, 1.25, 0.5, 1)]


def stats(paths: list[list[Bar]], callers: list[str], **settings: Any) -> list[dict[str, Any]]:
    table = measure_paths(paths_of(paths, callers=callers), BaselineConfig())
    return compute_caller_stats(table, CallerConfig(**{"min_trades": 1, **settings})).to_pylist()


def test_only_ok_alerts_of_named_callers_count_and_the_rest_is_accounted_for() -> None:
    late = [bar(16, 1, 9, 1, 1)]
    rows = stats([doubled(30), FLAT, late, [], FLAT, FLAT], ["a", "a", "a", "a", "", "  "])
    assert len(rows) == 1
    [row] = rows
    assert (row["rank"], row["caller"], row["n"]) == (1, "a", 2)
    assert (row["n_excluded"], row["n_missing"], row["n_late_entry"], row["n_bad_entry"]) == (2, 1, 1, 0)
    assert row["n_censored"] == 2
    assert row["median_ath_mult"] == 1.625
    assert row["p25_ath_mult"] == 1.25 + 0.25 * 0.75
    assert (row["hit_2x"], row["hit_3x"]) == (0.5, 0.0)
    assert row["median_time_to_2x_s"] == 1800
    assert row["median_dd_overall"] == -0.375
    assert row["median_dd_pre2x"] == -0.25


def test_callers_below_min_trades_are_left_out() -> None:
    names = ["a"] * 3 + ["b"] * 2
    assert [row["caller"] for row in stats([FLAT] * 5, names, min_trades=3)] == ["a"]
    table = measure_paths(paths_of([FLAT]), BaselineConfig())
    empty = compute_caller_stats(table)
    assert empty.num_rows == 0
    assert empty.schema.equals(CALLER_SCHEMA)


def test_the_score_is_its_formula() -> None:
    figures = {
        "n": 50,
        "median_ath_mult": 2.0,
        "p75_ath_mult": 3.0,
        "p95_ath_mult": 5.0,
        "hit_2x": 0.5,
        "median_time_to_2x_s": 3600.0,
        "median_dd_pre2x": -0.3,
    }
    confidence = math.sqrt(0.5)
    fast = 1 + 0.8 * math.exp(-1)
    assert score_of(figures, CallerConfig()) == pytest.approx(confidence * (0.5 + 0.35) * fast + confidence * 0.6)
    deep = figures | {"median_dd_pre2x": -0.5}
    penalty = math.exp(15 * 0.2) - 1
    assert score_of(deep, CallerConfig()) == pytest.approx(confidence * 0.85 * fast - confidence * penalty)
    never = figures | {"hit_2x": 0.0, "median_time_to_2x_s": None, "median_dd_pre2x": None}
    assert score_of(never, CallerConfig()) == pytest.approx(confidence * 0.35)
    assert score_of(figures, CallerConfig(confidence_n=0, discipline_bonus=0, fast_weight=0)) == pytest.approx(0.85)


def test_ranks_are_by_score_then_name() -> None:
    rows = stats([FLAT, FLAT, doubled(5)], ["b", "a", "c"])
    assert [(row["rank"], row["caller"]) for row in rows] == [(1, "c"), (2, "a"), (3, "b")]


def test_the_order_of_rows_does_not_show() -> None:
    table = measure_paths(paths_of([doubled(5), FLAT, doubled(7)], callers=["a", "b", "a"]), BaselineConfig())
    config = CallerConfig(min_trades=1)
    shuffled = table.take(pa.array([2, 0, 1]))
    assert compute_caller_stats(shuffled, config).equals(compute_caller_stats(table, config))
