"""The winner's report against computations of its own: lanes, latency, neighbours, walk-forward, reasons for doubt."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from lake_pipeline.backtest import BaselineConfig, StrategyConfig, compute_trades, open_paths, strategy_result
from lake_pipeline.optimizer.evaluate import open_evaluator
from lake_pipeline.optimizer.ledger import TrialCount
from lake_pipeline.optimizer.objective import Gates
from lake_pipeline.optimizer.results import optimize_result
from lake_pipeline.optimizer.search import SearchConfig
from lake_pipeline.optimizer.space import SearchSpace
from lake_pipeline.optimizer.splits import Fold, SplitConfig, make_folds
from lake_pipeline.optimizer.statistics import bootstrap_interval, deflated_sharpe, moments
from lake_pipeline.optimizer.trials import strategy_of
from lake_pipeline.optimizer.winner import concerns, luck
from lake_pipeline_tests.optimizer.runs_for_tests import BASELINE, INTERVAL_S

SPACE = SearchSpace.of(
    {"tp": "1.1:2:.02", "sl": ".5:.9:.02", "trail_distance": ".2", "trail_activation": ".1", "breakeven_trigger": ".3",
     "tiers": ["1.2x:1.02"]},
    {"fee_bps": 10.0, "slippage_bps": 20.0, "fill": "level"},
)  # fmt: skip
CONFIG = SearchConfig(SPACE, trials=60, split=SplitConfig(folds=2), gates=Gates(min_trades=5), top=3)


@pytest.fixture
def found(lake, run):
    return optimize_result(lake, run, CONFIG, BASELINE)


@pytest.fixture
def last_fold(run) -> Fold:
    evaluator = open_evaluator(run, BASELINE)
    return make_folds(evaluator.entry_ts, evaluator.end_ts, CONFIG.split)[-1]


def mean_of(table: Any, members: Any) -> float:
    returns = table.filter(members).column("tp_sl_ret").drop_null().to_pylist()
    return math.fsum(returns) / len(returns)


def test_lanes_are_the_top_trials_whole_under_worse_conditions(lake, run, found, last_fold):
    lanes = found.best()["winner"]["lanes"]
    rows = [row for row in found.trials().to_pylist() if row["fold"] == 2 and row["failed_gates"] is None]
    ranked = sorted(rows, key=lambda row: (-row["objective"], row["trial"]))[:3]
    assert [lane["trial"] for lane in lanes] == [row["trial"] for row in ranked]
    worse = {
        "as searched": {},
        "fees +50 bps": {"fee_bps": 60.0},
        "slippage +100 bps": {"slippage_bps": 120.0},
        "gap fills": {"fill": "gap"},
    }
    for rank, (row, lane) in enumerate(zip(ranked, lanes, strict=True)):
        strategy = strategy_of(row)
        assert strategy.tiers == ((1.2, 1.02),)
        assert strategy.trail_activation == 0.1
        assert strategy.breakeven_trigger == 0.3
        results = {each["lane"]: each for each in lane["lanes"]}
        for name, change in worse.items():
            trades = strategy_result(lake, run, dataclasses.replace(strategy, **change), BASELINE).trades()
            assert results[name]["train_mean_ret"] == pytest.approx(mean_of(trades, last_fold.train))
            # Only the winner was chosen, so only it is looked at on test.
            assert ("test_mean_ret" in results[name]) == (rank == 0)
            if rank == 0:
                assert results[name]["test_mean_ret"] == pytest.approx(mean_of(trades, last_fold.test))
        period = "test" if rank == 0 else "train"
        assert lane["worst"] == min(lane["lanes"], key=lambda each: each[f"{period}_mean_ret"])
        both = dataclasses.replace(strategy, fee_bps=60.0, slippage_bps=120.0, fill="gap")
        expected = by_hand(run, both, 1)
        assert results["entry +1 candle"]["train_mean_ret"] == pytest.approx(
            np.nanmean(by_hand(run, strategy, 1)[last_fold.train])
        )
        assert results["all of these"]["train_mean_ret"] == pytest.approx(np.nanmean(expected[last_fold.train]))


def by_hand(run: Any, strategy: StrategyConfig, candles: int) -> Any:
    """Returns of entries so many candles later, candle by candle: the rules again, without the package's loops."""
    paths = open_paths(run, horizon_ms=BASELINE.horizon_ms)
    sell = 1 - (strategy.fee_bps + strategy.slippage_bps) / 1e4
    buy = 1 + strategy.slippage_bps / 1e4
    returns = []
    for row, alert_id in enumerate(paths.alerts.column("alert_id").to_pylist()):
        path = paths.path(alert_id)
        due = int(paths.entry_ts[row]) + candles * INTERVAL_S * 1000
        first = next((n for n, ts in enumerate(path.ts.tolist()) if ts >= due), None)
        if first is None:
            returns.append(math.nan)
            continue
        entry, peak, price = path.open[first], -math.inf, None
        for n in range(first, len(path)):
            stop = entry * strategy.sl
            if strategy.trail_distance and peak >= entry * (1 + strategy.trail_activation):
                stop = max(stop, peak * (1 - strategy.trail_distance))
            if strategy.breakeven_trigger and peak >= entry * (1 + strategy.breakeven_trigger):
                stop = max(stop, entry * (1 + strategy.breakeven_offset))
            for reached, level in strategy.tiers:
                if peak >= entry * reached:
                    stop = max(stop, entry * level)
            if path.low[n] <= stop:
                price = min(stop, path.open[n]) if strategy.fill == "gap" else stop
                break
            if path.high[n] >= entry * strategy.tp:
                price = entry * strategy.tp
                break
            peak = max(peak, path.high[n])
        returns.append((path.close[-1] if price is None else price) * sell / (entry * buy) - 1)
    return np.array(returns)


def test_latency_is_the_winner_entered_later_on_the_same_paths(run, found, last_fold):
    winner = found.best()["winner"]
    strategy = StrategyConfig(**winner["strategy"])
    assert [row["candles"] for row in winner["latency"]] == [0, 1, 2, 5]
    means = []
    for row in winner["latency"]:
        assert row["seconds"] == row["candles"] * INTERVAL_S
        expected = by_hand(run, strategy, row["candles"])
        for period in ("train", "test"):
            own = expected[getattr(last_fold, period)]
            assert row[f"{period}_n"] == np.isfinite(own).sum()
            assert row[f"{period}_mean_ret"] == pytest.approx(np.nanmean(own))
            assert row[f"{period}_win_rate"] == pytest.approx((own[np.isfinite(own)] > 0).mean())
        means.append(row["train_mean_ret"])
    assert len(set(means)) == 4
    assert means[0] == pytest.approx(winner["train"]["mean_ret"])


def test_the_neighbours_differ_in_one_or_two_exits_by_a_little(lake, run, found, last_fold):
    winner = found.best()["winner"]
    strategy = StrategyConfig(**winner["strategy"])
    tps = [
        value
        for value in (strategy.tp + shift for shift in (-0.04, -0.02, 0.02, 0.04))
        if 1.1 - 1e-9 < value < 2 + 1e-9
    ]
    sls = [value for value in (strategy.sl + shift for shift in (-0.02, 0.02)) if 0.5 - 1e-9 < value < 0.9 + 1e-9]
    around = (
        [(tp, strategy.sl) for tp in tps] + [(strategy.tp, sl) for sl in sls] + [(tp, sl) for tp in tps for sl in sls]
    )
    ratios = []
    for tp, sl in around:
        other = dataclasses.replace(strategy, tp=round(tp, 2), sl=round(sl, 2))
        returns = compute_trades(run, other, BASELINE).filter(last_fold.train).column("tp_sl_ret").to_numpy()
        ratios.append(returns.mean() / returns.std(ddof=1))
    plateau = winner["plateau"]
    assert plateau["neighbours"] == len(around)
    assert plateau["median"] == pytest.approx(np.median(ratios))
    assert plateau["lowest"] == pytest.approx(min(ratios))
    assert plateau["peak"] == winner["train_objective"]


def test_interval_luck_and_degradation_are_of_the_winners_returns(lake, run, found, last_fold):
    winner = found.best()["winner"]
    strategy = StrategyConfig(**winner["strategy"])
    trades = strategy_result(lake, run, strategy, BASELINE).trades()
    for period in ("train", "test"):
        own = trades.filter(getattr(last_fold, period))
        mints = {mint: number for number, mint in enumerate(sorted(set(own.column("mint").to_pylist())))}
        returns = own.column("tp_sl_ret").to_numpy()
        interval = winner[f"{period}_interval"]
        assert interval[0] < returns.mean() < interval[1]
        cluster = np.array([mints[mint] for mint in own.column("mint").to_pylist()])
        # Numbered otherwise, the same clusters are other draws: close, not equal.
        again = bootstrap_interval(returns, cluster, 0)
        assert interval == pytest.approx(again, abs=0.15 * (interval[1] - interval[0]))
    ratios = {row["trial_id"]: row["train_sharpe"] for row in found.trials().to_pylist() if row["fold"] == 2}
    variance = float(np.var(list(ratios.values()), ddof=1))
    own = moments(trades.filter(last_fold.train).column("tp_sl_ret").to_pylist())
    assert winner["luck"]["trials"] == len(ratios) == 60
    assert winner["luck"]["published_deflated_sharpe"] == pytest.approx(deflated_sharpe(own, variance, 60))
    assert winner["luck"]["deflated_sharpe"] == pytest.approx(deflated_sharpe(own, 1 / (own.n - 1), 60))
    assert winner["degradation"]["lost"] == pytest.approx(winner["train_objective"] - winner["test_objective"])


def test_walk_forward_pools_what_each_fold_chose_before_it(lake, run, found):
    best = found.best()
    evaluator = open_evaluator(run, BASELINE)
    pooled = []
    for fold, report in zip(make_folds(evaluator.entry_ts, evaluator.end_ts, CONFIG.split), best["folds"], strict=True):
        rows = [row for row in found.trials().to_pylist() if row["fold"] == fold.number and not row["failed_gates"]]
        chosen = max(rows, key=lambda row: (row["objective"], -row["trial"]))
        assert report["winner"]["trial"] == chosen["trial"]
        trades = strategy_result(lake, run, strategy_of(chosen), BASELINE).trades()
        pooled += trades.filter(fold.test).column("tp_sl_ret").to_pylist()
        assert (report["train_alerts"], report["test_alerts"]) == (fold.train.sum(), fold.test.sum())
        assert report["purged_alerts"] == fold.purged > 0
    assert best["walk_forward"]["n"] == len(pooled)
    assert best["walk_forward"]["mean_ret"] == pytest.approx(math.fsum(pooled) / len(pooled))
    assert best["winner"]["trial"] == best["folds"][-1]["winner"]["trial"]


GOOD: dict[str, Any] = {
    "train_moments": {"n": 400, "sharpe": 0.5, "skewness": 0.0, "kurtosis": 3.0},
    "test": {"mean_ret": 0.1, "mean_ret_worst": 0.08, "ambiguous_share": 0.01},
    "test_interval": [0.05, 0.15],
    "plateau": {"ratio": 0.9},
    "lanes": [{"worst": {"lane": "all of these", "test_mean_ret": 0.02}}],
    "range_edges": [],
}


@pytest.mark.parametrize(
    ("change", "trials", "expected"),
    [
        ({}, 1000, None),
        ({}, 10**300, "by luck alone"),
        ({"train_moments": None}, 1000, "has no value"),
        ({"train_moments": {"n": 40, "sharpe": 0.5, "skewness": 0.0, "kurtosis": 3.0}}, 1000, "by luck alone"),
        ({"test": {"mean_ret": -0.1, "mean_ret_worst": -0.1, "ambiguous_share": 0.0}}, 10, "loses in the test period"),
        ({"test": {"mean_ret": None, "mean_ret_worst": None, "ambiguous_share": None}}, 10, "there is no trade"),
        ({"test_interval": [-0.01, 0.2]}, 10, "includes losses"),
        ({"test_interval": None}, 10, "includes losses"),
        ({"test": {"mean_ret": 0.1, "mean_ret_worst": -0.1, "ambiguous_share": 0.2}}, 10, "order inside ambiguous"),
        ({"test": {"mean_ret": 0.1, "mean_ret_worst": 0.1, "ambiguous_share": 0.2}}, 10, "20.0% of its test trades"),
        ({"plateau": {"ratio": 0.2}}, 10, "a peak, no plateau"),
        ({"lanes": [{"worst": {"lane": "gap fills", "test_mean_ret": -0.1}}]}, 10, "the lane 'gap fills'"),
        ({"range_edges": ["tp 3.5"]}, 10, "tp 3.5 is at the edge"),
    ],
)  # fmt: skip
def test_each_reason_for_doubt_has_its_sentence(change, trials, expected):
    winner = {**GOOD, **change}
    said = concerns(winner, luck(winner, TrialCount(trials, 0.01)))
    if expected is None:
        assert said == []
    else:
        assert len(said) == 1
        assert expected in said[0]


def test_trials_that_all_come_to_the_same_are_no_search(lake, run):
    space = SearchSpace.of({"tp": "50:60:1", "sl": ".01:.02:.005"}, {})
    winner = optimize_result(lake, run, SearchConfig(space, trials=20), BASELINE).report(lake, run)["winner"]
    assert any("all trials came to the same" in each for each in winner["concerns"])
    assert winner["trial"] == 0  # of equals the first


def test_extreme_costs_leave_room_for_the_lanes(lake, run):
    space = SearchSpace.of({"tp": "1.1:1.5:.1"}, {"fee_bps": 9000.0, "slippage_bps": 990.0})
    lanes = optimize_result(lake, run, SearchConfig(space, trials=5), BaselineConfig(6)).best()["winner"]["lanes"]
    assert len(lanes[0]["lanes"]) == 6
