"""Searches of sealed runs: exact, the same bytes however they are run, chosen on train only, sealed and found again."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from lake_pipeline.backtest import AlertSelection, BaselineConfig, StrategyConfig, open_paths, strategy_result
from lake_pipeline.backtest.code import module_digests
from lake_pipeline.errors import ConfigError, VerificationFailed
from lake_pipeline.io.parquet import table_bytes
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer import results
from lake_pipeline.optimizer.evaluate import open_evaluator
from lake_pipeline.optimizer.ledger import Ledger
from lake_pipeline.optimizer.objective import Gates, Objective
from lake_pipeline.optimizer.results import OptimizeResult, optimize_result, pictures_result
from lake_pipeline.optimizer.search import Progress, SearchConfig
from lake_pipeline.optimizer.space import SearchSpace
from lake_pipeline.optimizer.splits import SplitConfig, make_folds
from lake_pipeline.optimizer.trials import strategy_of
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.candles_for_tests import Candle
from lake_pipeline_tests.optimizer.runs_for_tests import BASELINE, INTERVAL_S, noise

FREE = {"fee_bps": 0.0, "slippage_bps": 0.0}
WIDE = SearchSpace.of(
    {"tp": "none,1.1:2:.05", "sl": "none,.5:.95:.05", "trail_distance": "none,.1:.3:.1", "trail_activation": "0,.2",
     "breakeven_trigger": "none,.15", "time_stop_hours": "none,1:5:2", "tiers": ["none", "1.2x:1.05,1.5x:1.3"]},
    FREE,
)  # fmt: skip
PLAIN = SearchSpace.of({"tp": "1.1:2:.01", "sl": ".5:.95:.01"}, FREE)


def search(lake: LocalStore, run: Run, config: SearchConfig, **more: Any) -> OptimizeResult:
    return optimize_result(lake, run, config, BASELINE, **more)


def trials_bytes(result: OptimizeResult) -> bytes:
    return result.store.read("trials.parquet")


def sealed(result: OptimizeResult) -> dict[str, bytes]:
    return {file.path: result.store.read(file.path) for file in result.store.files()}


@pytest.fixture
def copies(noise_root: LocalStore, tmp_path: Path) -> Callable[[], tuple[LocalStore, Run]]:
    """Fresh copies of the noise, without results."""
    numbers = itertools.count()

    def make() -> tuple[LocalStore, Run]:
        folder = tmp_path / f"copy-{next(numbers)}"
        shutil.copytree(noise_root.root, folder)
        return LocalStore(folder), load_run(LocalStore(folder), "searched")

    return make


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_every_figure_of_random_trials_is_that_of_lake_strategy(lake, run, use_cache):
    result = search(lake, run, SearchConfig(WIDE, trials=40, split=SplitConfig(folds=2)), use_cache=use_cache)
    evaluator = open_evaluator(run, BASELINE)
    folds = make_folds(evaluator.entry_ts, evaluator.end_ts, SplitConfig(folds=2))
    rows = result.trials().to_pylist()
    assert [(row["fold"], row["trial"]) for row in rows] == [(fold, trial) for fold in (1, 2) for trial in range(40)]
    for row in rows[::7]:
        strategy = strategy_of(row)
        trades = strategy_result(lake, run, strategy, BASELINE).trades()
        for period in ("train", "test"):
            members = getattr(folds[row["fold"] - 1], period)
            expected = figures_of(trades.filter(members).to_pylist(), strategy)
            found = {name: row[f"{period}_{name}"] for name in expected}
            # Sums may be added in another order; counts, ranks and what follows the exits may not.
            exact = ("n", "win_rate", "ambiguous_share", "median_ret", "max_losing_streak")
            assert {name: found[name] for name in exact} == {name: expected[name] for name in exact}
            known = {name: value for name, value in expected.items() if value is not None}
            assert {name for name, value in found.items() if value is not None} == known.keys()
            assert {name: found[name] for name in known} == pytest.approx(known, rel=1e-9, abs=1e-12)


def figures_of(rows: list[dict[str, Any]], strategy: StrategyConfig) -> dict[str, Any]:
    """The figures by their definitions, from the trades of `lake strategy`."""
    rows = sorted((row for row in rows if row["tp_sl_ret"] is not None), key=lambda row: row["exit_ts_utc"])
    returns = [row["tp_sl_ret"] for row in rows]
    n, mean = len(returns), math.fsum(returns) / len(returns)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in returns) / (n - 1))
    losses = -math.fsum(value for value in returns if value < 0)
    longest = max(
        (len(list(run)) for lost, run in itertools.groupby(returns, lambda each: each < 0) if lost), default=0
    )
    equity, peak, drawdown = 1.0, 1.0, 0.0
    for value in returns:
        equity *= max(1 + strategy.risk_per_trade * value / (1 - (strategy.sl or 0)), 0)
        peak = max(peak, equity)
        drawdown = min(drawdown, equity / peak - 1)
    return {
        "n": n,
        "win_rate": sum(value > 0 for value in returns) / n,
        "mean_ret": mean,
        "std_ret": std,
        "sharpe": mean / std if std else None,
        "profit_factor": math.fsum(value for value in returns if value > 0) / losses if losses else None,
        "mean_r": mean / (1 - strategy.sl) if strategy.sl else None,
        "ambiguous_share": sum(row["ambiguous"] for row in rows) / n,
        "mean_ret_worst": math.fsum(row["ret_worst"] for row in rows) / n,
        "mean_ret_best": math.fsum(row["ret_best"] for row in rows) / n,
        "median_ret": float(np.median(returns)),
        "max_losing_streak": longest,
        "final_equity": equity if strategy.sl else None,
        "max_drawdown": drawdown if strategy.sl else None,
    }


def test_the_winners_trades_are_those_of_lake_strategy_and_of_holding(lake, run):
    result = search(lake, run, SearchConfig(PLAIN, trials=30))
    winner = result.best()["winner"]
    trades = {row["alert_id"]: row for row in result.winner_trades().to_pylist()}
    strategy = StrategyConfig(**winner["strategy"])
    expected = strategy_result(lake, run, strategy, BASELINE).trades().to_pylist()
    held = strategy_result(lake, run, StrategyConfig(tp=None, sl=None, **FREE), BASELINE).trades().to_pylist()
    seen = 0
    for row, hold in zip(expected, held, strict=True):
        own = trades.get(row["alert_id"])
        if own is not None:
            seen += 1
            assert own["ret"] == row["tp_sl_ret"]
            assert (own["ret_worst"], own["ret_best"]) == (row["ret_worst"], row["ret_best"])
            assert (own["exit_ts_utc"], own["hold_ret"]) == (row["exit_ts_utc"], hold["tp_sl_ret"])
    fold = result.best()["folds"][0]
    assert seen == len(trades) == fold["train_alerts"] + fold["test_alerts"]
    assert seen + fold["purged_alerts"] == len(expected)


def test_figures_of_means_alone_are_the_same_ones(lake, run):
    everything = search(lake, run, SearchConfig(WIDE, trials=30)).trials()
    means = search(lake, run, SearchConfig(WIDE, trials=30, figures="means"))
    for name in everything.column_names:
        if name.removeprefix("train_").removeprefix("test_") in (
            "median_ret", "max_losing_streak", "final_equity", "max_drawdown",
        ):  # fmt: skip
            assert means.trials().column(name).null_count == 30
        else:
            assert means.trials().column(name).equals(everything.column(name)), name
    assert means.best()["winner"]["train"]["median_ret"] is not None  # computed for the one that was chosen


# --- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe"])
def test_threads_batches_and_caches_change_no_byte(copies, sampler, monkeypatch):
    space = SearchSpace.of({"tp": "1.1:2:.1", "sl": ".5:.9:.1", "trail_distance": "none,.2"}, FREE)
    trials = None if sampler == "grid" else 60
    config = SearchConfig(space, sampler=sampler, trials=trials, split=SplitConfig(folds=2))
    found = []
    for threads, use_cache, batch in ((1, True, 5_000_000), (2, True, 5_000_000), (2, False, 264 * 7)):
        lake, run = copies()
        monkeypatch.setattr("lake_pipeline.optimizer.search._BATCH_PAIRS", batch)
        monkeypatch.setattr("lake_pipeline.optimizer.search._LEAST_TRIALS", 1)
        found.append(sealed(search(lake, run, config, threads=threads, use_cache=use_cache)))
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {"trials.parquet", "best.json", "winner_trades.parquet", "result.json"}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_interrupted_and_resumed_is_the_same_and_evaluates_the_rest_only(copies, sampler, monkeypatch):
    monkeypatch.setattr("lake_pipeline.optimizer.search._BATCH_PAIRS", 264 * 15)
    config = SearchConfig(PLAIN, sampler=sampler, trials=70, split=SplitConfig(folds=2))
    lake, run = copies()
    expected = sealed(search(lake, run, config))
    lake, run = copies()
    seen: list[Progress] = []

    def interrupt(state: Progress) -> None:
        seen.append(state)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(lake, run, config, on_batch=interrupt)
    if sampler == "random":  # TPE may ask for a point again
        assert Ledger(lake, run.run_id).count().trials == seen[-1].done
    evaluated = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal evaluated
        evaluated += len(args[1])
        return measure(*args, **kwargs)

    measure = results.run_search.__globals__["measure"]
    monkeypatch.setattr("lake_pipeline.optimizer.search.measure", counted)
    resumed = search(lake, run, config, resume=True)
    assert sealed(resumed) == expected
    batches = 3 * (10 if sampler == "tpe" else 15)
    assert evaluated == 70 * (2 if sampler == "tpe" else 1) - batches


def test_a_damaged_batch_is_evaluated_again_with_a_warning(copies, monkeypatch, caplog):
    monkeypatch.setattr("lake_pipeline.optimizer.search._BATCH_PAIRS", 264 * 15)
    config = SearchConfig(PLAIN, trials=70)
    lake, run = copies()
    expected = sealed(search(lake, run, config))
    lake, run = copies()

    def interrupt(state: Progress) -> None:
        if state.done == 45:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(lake, run, config, on_batch=interrupt)
    first, second, _ = sorted(Path(Ledger(lake, run.run_id).uri).rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    assert sealed(search(lake, run, config, resume=True)) == expected
    assert caplog.text.count("is damaged, its trials are not counted and not used") == 2
    assert Ledger(lake, run.run_id).count().trials == 70  # and they are whole again


# --- train only -----------------------------------------------------------------------------------


SPLIT = SplitConfig(folds=2)


@pytest.fixture(scope="module")
def scrambled(make_lake, noise_root) -> Callable[[int], LocalStore]:
    """The noise with other candles from where a test period begins, by the fold's number."""
    evaluator = open_evaluator(load_run(noise_root, "searched"), BASELINE)
    folds = make_folds(evaluator.entry_ts, evaluator.end_ts, SPLIT)

    def make(number: int) -> LocalStore:
        rng = random.Random(number)

        def change(candle: Candle) -> Candle:
            if candle.ts_ms + INTERVAL_S * 1000 <= folds[number - 1].test_from:
                return candle
            prices = sorted(candle.close * rng.uniform(0.2, 5) for _ in range(4))
            open_, close = rng.sample(prices, 2)
            return dataclasses.replace(candle, open=open_, high=prices[-1], low=prices[0], close=close)

        return make_lake(noise, change=change, seed=5, mints=240)

    return functools.cache(make)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("sampler", ["random", "grid", "tpe"])
def test_prices_of_a_test_period_change_no_train_figure_no_choice_and_no_winner(
    lake, run, scrambled, tmp_path, sampler, number
):
    space = SearchSpace.of({"tp": "1.1:2:.1", "sl": ".5:.9:.05", "trail_distance": "none,.2"}, FREE)
    trials = None if sampler == "grid" else 40
    config = SearchConfig(space, sampler=sampler, trials=trials, split=SPLIT, gates=Gates(min_hit_rate=0.3), top=3)
    shutil.copytree(scrambled(number).root, tmp_path / "scrambled")
    other = LocalStore(tmp_path / "scrambled")
    found = search(lake, run, config)
    changed = search(other, load_run(other, "searched"), config)
    assert known_before_test(found, number) == known_before_test(changed, number)
    tested = pc.equal(found.trials().column("fold"), number)
    assert not found.trials().filter(tested).equals(changed.trials().filter(tested))


def known_before_test(result: OptimizeResult, number: int) -> dict[str, Any]:
    """What a search may say of the folds up to this one before the last of them is tested."""
    trials, best, trades = result.trials(), result.best(), result.winner_trades()
    blind = [name for name in trials.column_names if not name.startswith("test_")]
    periods = pc.and_(pc.less_equal(trades.column("fold"), number), pc.equal(trades.column("period"), "train"))
    winners = [fold["winner"] for fold in best["folds"][:number]]
    if number == SPLIT.folds:
        winners.append(best["winner"])
        assert len(best["winner"]["lanes"]) == 3
    return {
        "trials": table_bytes(trials.filter(pc.less_equal(trials.column("fold"), number)).select(blind)),
        "trades": table_bytes(trades.filter(periods)),
        "winners": [without_test(winner) for winner in winners],
    }


def without_test(document: Any) -> Any:
    """All of a report that is not of a test period. The worst lane of the winner is that of its test period."""
    if isinstance(document, dict):
        return {
            name: without_test(value)
            for name, value in document.items()
            if not name.startswith("test_") and name not in ("test", "degradation")
            and not (name == "worst" and document["rank"] == 1)
        }  # fmt: skip
    return [without_test(each) for each in document] if isinstance(document, list) else document


def test_a_path_ends_when_its_last_candle_closes(run):
    """A high is not known before: so much later may a test period begin."""
    for hours in (6, 5.9, 0.1):
        config = BaselineConfig(horizon_hours=hours)
        ends, paths = open_evaluator(run, config).end_ts, open_paths(run, horizon_ms=config.horizon_ms)
        for row, alert_id in enumerate(paths.alerts.column("alert_id").to_pylist()):
            assert ends[row] == paths.path(alert_id).ts[-1] + INTERVAL_S * 1000


def test_tpe_learns_in_each_fold_from_that_folds_train_alone(lake, run):
    """The first fold of two is searched as if the second were not there."""
    two = search(lake, run, SearchConfig(PLAIN, sampler="tpe", trials=30, split=SplitConfig(9, 6, 2))).trials()
    days = two.filter(pc.equal(two.column("fold"), 1))
    evaluator = open_evaluator(run, BASELINE)
    first = make_folds(evaluator.entry_ts, evaluator.end_ts, SplitConfig(9, 6, 2))[0]
    last_day = dt.datetime.fromtimestamp((first.test_to - 1) / 1000, dt.UTC).date()
    until = AlertSelection(to_day=last_day)
    alone = search(
        lake, run, SearchConfig(PLAIN, sampler="tpe", trials=30, split=SplitConfig(9, 6, 1)), selection=until
    )
    for name in ("tp", "sl", "objective", "train_mean_ret", "test_mean_ret"):
        assert days.column(name).to_pylist() == alone.trials().column(name).to_pylist()


def test_the_winner_is_the_best_on_train_that_passes_the_gates(lake, run):
    objective = Objective.parse("mean_ret:1,max_drawdown:0.05")
    free = search(lake, run, SearchConfig(PLAIN, trials=200, objective=objective)).best()["winner"]
    # A gate that the best of all fails.
    gates = Gates(min_trades=20, min_hit_rate=free["train"]["win_rate"] + 1e-9, max_drawdown=0.3)
    result = search(lake, run, SearchConfig(PLAIN, trials=200, gates=gates, objective=objective))
    rows = result.trials().to_pylist()
    for row in rows:
        fails = {
            "min_trades": row["train_n"] < 20,
            "min_hit_rate": row["train_win_rate"] < gates.min_hit_rate,
            "max_drawdown": row["train_max_drawdown"] < -0.3,
        }
        assert (row["failed_gates"] or "") == ",".join(name for name, failed in fails.items() if failed)
        assert row["objective"] == pytest.approx(row["train_mean_ret"] + 0.05 * row["train_max_drawdown"])
    passing = [row for row in rows if row["failed_gates"] is None]
    assert 0 < len(passing) < 200
    best = max(passing, key=lambda row: row["objective"])
    assert result.best()["winner"]["trial"] == best["trial"] != free["trial"]
    assert max(row["objective"] for row in rows) == free["train_objective"] > best["objective"]


def test_no_winner_where_nothing_passes(lake, run):
    result = search(
        lake, run, SearchConfig(PLAIN, trials=20, gates=Gates(min_trades=10_000), split=SplitConfig(folds=2))
    )
    best = result.best()
    assert best["winner"] is None
    assert [fold["winner"] for fold in best["folds"]] == [None, None]
    assert result.report(lake, run)["winner"] is None
    assert result.winner_trades().num_rows == 0
    assert len(pictures_result(lake, run, result).record.files) == 4


# --- luck -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_on_pure_noise_the_report_says_so(lake, run, seed):
    """Fair coins without costs: the best of a thousand is luck, and is gone in the test period."""
    result = search(lake, run, SearchConfig(PLAIN, trials=1000, seed=seed))
    winner = result.report(lake, run)["winner"]
    luck = winner["luck_on_run"]
    assert luck["trials"] == 1000
    assert luck["deflated_sharpe"] < 0.5
    low, high = winner["test_interval"]
    assert low < 0 < high
    assert abs(winner["test_objective"]) < 2.5 / math.sqrt(winner["test"]["n"])
    assert winner["train_objective"] > abs(winner["test_objective"])
    assert any("by luck alone" in each for each in winner["concerns"])
    assert any("test period" in each for each in winner["concerns"])


def test_a_planted_edge_is_found_and_believed(planted_root):
    run = load_run(planted_root, "searched")
    space = SearchSpace.of({"tp": "1.1:2.5:.01", "sl": ".5:.9:.01"}, {})
    result = search(planted_root, run, SearchConfig(space, trials=300, split=SplitConfig(14, 7)))
    winner = result.report(planted_root, run)["winner"]
    assert winner["strategy"]["tp"] < 1.5
    assert winner["test"]["mean_ret"] > 0.05
    assert winner["test_interval"][0] > 0
    assert winner["luck_on_run"]["deflated_sharpe"] > 0.99
    assert winner["test_probabilistic_sharpe"] > 0.99
    assert not any("luck alone" in each or "test period" in each for each in winner["concerns"])
    assert winner["test_hold_mean_ret"] < 0


# --- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_counts_every_trial_of_every_invocation_once(lake, run):
    ledger = Ledger(lake, run.run_id)
    assert ledger.count().trials == 0
    first = search(lake, run, SearchConfig(PLAIN, trials=50))
    assert ledger.count().trials == 50
    search(lake, run, SearchConfig(PLAIN, trials=50))  # found
    assert ledger.count().trials == 50
    search(lake, run, SearchConfig(PLAIN, trials=80))  # the first 50 are the same trials
    assert ledger.count().trials == 80
    search(lake, run, SearchConfig(PLAIN, trials=50, objective=Objective.parse("mean_ret")))
    assert ledger.count().trials == 80  # another objective looks at the same trials
    search(lake, run, SearchConfig(PLAIN, trials=20, split=SplitConfig(folds=2)))
    assert ledger.count().trials == 120  # other train periods
    search(lake, run, SearchConfig(PLAIN, trials=10), selection=AlertSelection(callers=("caller-1",)))
    assert ledger.count().trials == 130  # other alerts
    own, on_run = (first.report(lake, run)["winner"][name] for name in ("luck", "luck_on_run"))
    assert (own["trials"], on_run["trials"]) == (50, 130)
    assert on_run["deflated_sharpe"] < own["deflated_sharpe"]
    shutil.rmtree(ledger.uri)
    assert first.report(lake, run)["winner"]["luck_on_run"]["trials"] == 50


# --- sealed and found again -----------------------------------------------------------------------


def test_a_search_is_found_again_and_anything_else_is_another(lake, run, monkeypatch):
    config = SearchConfig(PLAIN, trials=25)
    first = search(lake, run, config)
    assert first.created
    keys = {first.key}
    others = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, trials=26),
        dataclasses.replace(config, sampler="tpe"),
        dataclasses.replace(config, objective=Objective.parse("mean_ret")),
        dataclasses.replace(config, objective=Objective.parse("sharpe:1.0000001")),
        dataclasses.replace(config, gates=Gates(min_trades=11)),
        dataclasses.replace(config, split=SplitConfig(folds=2)),
        dataclasses.replace(config, figures="means"),
        dataclasses.replace(config, top=4),
        dataclasses.replace(config, space=SearchSpace.of({"tp": "1.1:2:.01", "sl": ".5:.95:.01"}, {})),
    ]
    keys |= {search(lake, run, other).key for other in others}
    keys.add(optimize_result(lake, run, config, BaselineConfig(horizon_hours=5)).key)
    keys.add(search(lake, run, config, selection=AlertSelection(callers=("caller-0",))).key)
    assert len(keys) == len(others) + 3

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("searched again")

    monkeypatch.setattr(results, "open_evaluator", fails)
    again = search(lake, run, config, threads=1, use_cache=False)
    assert (again.created, again.record) == (False, first.record)
    pictures = pictures_result(lake, run, again)
    assert pictures.created
    assert not pictures_result(lake, run, again).created
    assert {file.path for file in pictures.record.files} == {"heatmap.png", "trials.png", "equity.png", "folds.png"}


def test_an_edited_search_is_refused(lake, run):
    result = search(lake, run, SearchConfig(PLAIN, trials=25))
    best = Path(result.store.uri, "best.json")
    best.write_text(best.read_text().replace('"trial"', '"Trial"'))
    with pytest.raises(VerificationFailed, match=r"best\.json has other content than was sealed"):
        search(lake, run, SearchConfig(PLAIN, trials=25))


def test_the_key_knows_every_module_that_decides_a_figure():
    known = {*module_digests("lake_pipeline.optimizer.search"), *module_digests("lake_pipeline.optimizer.winner")}
    for name in ("evaluate", "objective", "records", "passage", "sampling", "search", "space", "splits", "statistics",
                 "trials", "winner"):  # fmt: skip
        assert f"lake_pipeline.optimizer.{name}" in known
    assert {"lake_pipeline.backtest.kernels", "lake_pipeline.backtest.exits", "lake_pipeline.backtest.paths"} <= known
    assert "lake_pipeline.optimizer.plots" not in known


def test_a_second_search_reads_no_slice(lake, run, monkeypatch):
    search(lake, run, SearchConfig(PLAIN, trials=25))
    slices = Path(run.store.uri, "slices")
    slices.rename(slices.with_name("moved"))
    other = search(lake, run, SearchConfig(WIDE, trials=25))
    assert other.created
    assert other.trials().num_rows == 25


def test_sealed_files_name_no_place_and_no_time(lake, run):
    result = search(lake, run, SearchConfig(PLAIN, trials=25, split=SplitConfig(folds=2)))
    text = b"".join(sealed(result).values())
    for secret in (str(lake.root).encode(), b"/tmp"):
        assert secret not in text
    assert set(re.findall(rb"20[0-9]{2}-[0-9]{2}-[0-9]{2}", text)) <= {b"2025-05-%02d" % day for day in range(1, 32)}
    document = json.loads(result.store.read("best.json"))
    assert document["folds"][0]["test_from"].startswith("2025-05-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "trials 0 cannot work"),
        ({"trials": 10**7}, "at most 1,000,000"),
        ({"seed": -1}, "seed -1 cannot work"),
        ({"sampler": "genetic"}, "not one of random, grid, tpe"),
        ({"sampler": "grid", "trials": 5}, "leave trials out"),
        (
            {"sampler": "grid", "space": SearchSpace.of({"sl": ".1:.9:.0005", "tp": "1.1:2:.0005"}, {})},
            "more than 1,000",
        ),
        ({"figures": "some"}, "not one of all, means"),
        ({"figures": "means", "gates": Gates(max_drawdown=0.5)}, "max_drawdown needs every trade"),
        ({"figures": "means", "objective": Objective.parse("median_ret")}, "median_ret needs every trade"),
        ({"top": 0}, "top 0 cannot work"),
    ],
)
def test_searches_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**{"space": PLAIN, **values})


@pytest.mark.parametrize("text", ["", "best", "sharpe:x", "sharpe,sharpe", "sharpe:0", "sharpe:nan", "sharpe:inf"])
def test_objectives_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="objective"):
        Objective.parse(text)


@pytest.mark.parametrize(
    "text", ["min_trades", "trades=3", "min_trades=x", "min_hit_rate=2", "max_drawdown=-1", "min_trades=0"]
)
def test_gates_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match=r"gate|min_trades|min_hit_rate|max_drawdown"):
        Gates.parse(text)


def test_a_random_search_takes_no_more_than_there_is(lake, run):
    space = SearchSpace.of({"tp": "1.1:1.5:.1", "sl": ".5,.7"}, FREE)
    config = SearchConfig(space, trials=1000)
    assert config.trials == 10
    rows = search(lake, run, config).trials().to_pylist()
    assert len({(row["tp"], row["sl"]) for row in rows}) == len(rows) == 10
