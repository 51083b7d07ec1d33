"""What trades come to together: order, sizing, streaks and the cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lake_pipeline.backtest.config import StrategyConfig
from lake_pipeline.backtest.paths import PathBlock, Paths
from lake_pipeline.backtest.statistics import longest_run, mean, median, profit_factor, quantile
from lake_pipeline.backtest.trades import TRADES_SCHEMA, summarise, trade_paths
from lake_pipeline_tests.backtest.paths_for_tests import bar, paths_of

FREE = StrategyConfig(fee_bps=0, slippage_bps=0, risk_per_trade=0.1)
WIN, LOSS = [bar(0, 1, 2, 1, 2)], [bar(0, 1, 1, 0.5, 0.5)]
LATE_WIN = [bar(0, 1, 1, 1, 1), bar(5, 1, 2, 1, 2)]
BOTH = [bar(9, 1, 2, 0.5, 1)]


def test_equity_follows_the_exits_not_the_rows() -> None:
    table = trade_paths(paths_of([LATE_WIN, LOSS, WIN, []]), FREE)
    assert table.schema.equals(TRADES_SCHEMA)
    assert table.column("r_multiple").to_pylist() == [2.0, -1.0, 2.0, None]
    # Exits at minute 0 (the loss, then the win), then the late win.
    assert table.column("equity").to_pylist() == pytest.approx([0.9 * 1.2 * 1.2, 0.9, 0.9 * 1.2, None])


def test_the_summary_counts_everything_once() -> None:
    paths = paths_of([WIN, LOSS, LOSS, LATE_WIN, BOTH, []], callers=["a", "a", "b", "b", " ", "a"])
    summary = summarise(trade_paths(paths, FREE), FREE)
    figures = summary["all"]
    assert (figures["alerts"], figures["n"]) == (6, 5)
    assert figures["statuses"] == {"ok": 5, "missing": 1, "bad_entry": 0, "late_entry": 0}
    assert figures["exit_reasons"]["tp"] == 2
    assert figures["exit_reasons"]["sl"] == 3
    assert figures["ambiguous_share"] == 0.2
    case, best, worst = (figures[name] for name in ("case", "best_case", "worst_case"))
    assert case == worst
    assert case["win_rate"] == 0.4
    assert best["win_rate"] == 0.6
    assert case["mean_ret"] == pytest.approx(0.1)
    assert case["median_ret"] == -0.5
    assert case["profit_factor"] == pytest.approx(2 / 1.5)
    assert case["mean_r"] == pytest.approx(0.2)
    assert case["max_losing_streak"] == 2
    assert case["final_equity"] == pytest.approx(1.2 * 0.9 * 0.9 * 1.2 * 0.9)
    assert case["max_drawdown"] == pytest.approx(0.9 * 0.9 - 1)
    assert sorted(summary["callers"]) == ["a", "b"]
    assert summary["callers"]["a"]["alerts"] == 3
    assert summary["callers"]["a"]["case"]["final_equity"] == pytest.approx(1.2 * 0.9)


def test_figures_that_do_not_exist_are_null() -> None:
    case = summarise(trade_paths(paths_of([WIN]), FREE), FREE)["all"]["case"]
    assert case["profit_factor"] is None
    assert case["max_drawdown"] == 0.0
    case = summarise(trade_paths(paths_of([[]]), FREE), FREE)["all"]["case"]
    assert case["mean_ret"] is case["win_rate"] is case["final_equity"] is None
    unsized = dataclasses.replace(FREE, sl=None)
    table = trade_paths(paths_of([WIN]), unsized)
    assert table.column("equity").to_pylist() == table.column("r_multiple").to_pylist() == [None]
    assert summarise(table, unsized)["all"]["case"]["mean_r"] is None


def test_ruin_is_final() -> None:
    strategy = dataclasses.replace(FREE, sl=0.9, risk_per_trade=1)
    gap = [bar(0, 1, 1, 1, 1), bar(1, 0.5, 0.5, 0.5, 0.5)]
    later = [bar(0, 1, 1, 1, 1), bar(5, 1, 2, 1, 2)]
    assert trade_paths(paths_of([gap, later]), strategy).column("equity").to_pylist() == [0.0, 0.0]


def test_what_no_double_holds_is_null_and_in_no_figure() -> None:
    unlimited = dataclasses.replace(FREE, tp=None)
    huge = [bar(0, 1e-300, 1e300, 1e-300, 1e300)]
    table = trade_paths(paths_of([WIN, huge, LOSS]), unlimited)
    assert table.column("tp_sl_ret").to_pylist() == [1.0, None, -0.5]
    assert table.column("equity").to_pylist() == pytest.approx([1.2, None, 1.2 * 0.9])
    figures = summarise(table, unlimited)["all"]
    assert figures["n"] == 3
    assert (figures["case"]["mean_ret"], figures["case"]["win_rate"]) == (0.25, 0.5)

    hundredfold = [bar(0, 1, 100, 1, 100)]
    table = trade_paths(paths_of([hundredfold] * 200), dataclasses.replace(unlimited, risk_per_trade=1))
    assert table.column("equity").to_pylist()[-1] is None
    case = summarise(table, unlimited)["all"]["case"]
    assert case["final_equity"] == pytest.approx(20.8**200)
    case = summarise(table, dataclasses.replace(unlimited, risk_per_trade=1))["all"]["case"]
    assert case["final_equity"] is case["max_drawdown"] is None
    assert case["mean_ret"] == 99


def test_blocks_and_threads_do_not_show() -> None:
    paths = paths_of([WIN, LOSS, LATE_WIN, BOTH] * 5)
    whole = paths.load("00")
    blocks = {}
    columns = [whole.ts, whole.open, whole.high, whole.low, whole.close, whole.volume]
    for number in range(4):
        rows = np.arange(number, 20, 4)
        blocks[f"{number:02x}"] = PathBlock(*columns, rows, whole.starts[rows], whole.stops[rows])
    split = Paths(paths.alerts, 60, paths.entry_ts, paths.end_ts, tuple(blocks), blocks.__getitem__)
    expected = trade_paths(paths, FREE)
    for threads in (1, 2, 4):
        assert trade_paths(split, FREE, threads=threads).equals(expected)


def test_statistics() -> None:
    assert (quantile([3, 1, 2, 4], 0.25), quantile([7], 0.95), median([1, 2]), median([])) == (1.75, 7, 1.5, None)
    values = np.random.RandomState(0).random_sample(101).tolist()
    for q in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0):
        assert quantile(values, q) == pytest.approx(np.quantile(values, q), rel=1e-15)
    assert (mean([]), mean([0.1] * 10)) == (None, 0.1)
    assert (profit_factor([1, -2]), profit_factor([1, 0]), profit_factor([])) == (0.5, None, None)
    assert longest_run([True, False, True, True]) == 2
