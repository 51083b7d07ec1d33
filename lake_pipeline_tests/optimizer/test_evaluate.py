"""The evaluator: what it says of a trade is what `lake strategy` says, and its figures are those of the trades."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.paths import Paths
from lake_pipeline.backtest.trades import trade_paths
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer.evaluate import Evaluator, Outcomes, Totals, open_evaluator
from lake_pipeline.run import load_run
from lake_pipeline_tests.backtest.markets import (
    FAMILIES,
    Market,
    long_market,
    markets,
    random_rules,
    rules,
    strategy_of,
)
from lake_pipeline_tests.backtest.paths_for_tests import bar, paths_of

Arrays = dict[str, np.ndarray[Any, Any]]


def expected(paths: Paths, strategies: list[StrategyConfig], config: BaselineConfig) -> Arrays:
    """The outcomes as `lake strategy` writes them."""
    tables = [trade_paths(paths, strategy, config) for strategy in strategies]
    columns: Arrays = {}
    for name, column in (("ret", "tp_sl_ret"), ("ret_worst", "ret_worst"), ("ret_best", "ret_best")):
        columns[name] = np.array([table.column(column).fill_null(math.nan).to_numpy() for table in tables])
    columns["ambiguous"] = np.array([table.column("ambiguous").fill_null(False).to_numpy() for table in tables])
    exit_ts = [table.column("exit_ts_utc").cast(pa.int64()).fill_null(-1).to_numpy() for table in tables]
    columns["exit_ts"] = np.array(exit_ts)
    return columns


def same_outcomes(found: Outcomes, wanted: Arrays) -> None:
    """To the last bit, which == would not see of a zero's sign."""
    for name, values in wanted.items():
        assert getattr(found, name).dtype == values.dtype
        assert getattr(found, name).tobytes() == values.tobytes(), name


def variants(strategy: StrategyConfig) -> list[StrategyConfig]:
    """Both orders and both fills."""
    return [
        replace(strategy, intrabar_order=order, fill=fill)
        for order in ("sl_first", "tp_first")
        for fill in ("gap", "level")
    ]


def check(market: Market, strategies: list[StrategyConfig]) -> None:
    paths = market.paths()
    wanted = expected(paths, strategies, market.config)
    for scan_below in (0, 1000):
        evaluator = Evaluator(paths, market.config, scan_below=scan_below)
        same_outcomes(evaluator.outcomes(strategies), wanted)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_every_family_is_that_of_the_strategy_command(family: str, data: st.DataObject) -> None:
    drawn = [strategy_of(data.draw(rules(family))) for _ in range(2)]
    check(data.draw(markets()), [variant for strategy in drawn for variant in variants(strategy)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_long_paths_is_that_of_the_strategy_command(family: str) -> None:
    for seed in range(12):
        check(long_market(seed), variants(strategy_of(random_rules(family, seed))))


def figures(found: Outcomes, group: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    """The figures of a group in the plainest way."""
    columns: dict[str, list[float]] = {field.name: [] for field in fields(Totals)}
    for trial in range(len(found.ret)):
        ret = found.ret[trial, group]
        ret = ret[~np.isnan(ret)]
        columns["n"].append(len(ret))
        columns["wins"].append(int((ret > 0).sum()))
        columns["losses"].append(int((ret < 0).sum()))
        columns["ambiguous"].append(int(found.ambiguous[trial, group].sum()))
        columns["sum_ret"].append(math.fsum(ret))
        columns["sum_ret2"].append(math.fsum(ret * ret))
        columns["sum_gain"].append(math.fsum(ret[ret > 0]))
        columns["sum_loss"].append(math.fsum(ret[ret < 0]))
        columns["sum_worst"].append(math.fsum(np.nan_to_num(found.ret_worst[trial, group])))
        columns["sum_best"].append(math.fsum(np.nan_to_num(found.ret_best[trial, group])))
    return columns


@pytest.mark.parametrize("family", FAMILIES)
def test_totals_are_those_of_the_trades_in_each_group(family: str) -> None:
    market = long_market(3)
    evaluator = Evaluator(market.paths(), market.config)
    strategies = [variant for seed in range(4) for variant in variants(strategy_of(random_rules(family, seed)))]
    groups = np.random.default_rng(1).random((4, len(market.calls))) < np.array([[1.0], [0.5], [0.5], [0.0]])
    totals = evaluator.totals(strategies, groups)
    outcomes = evaluator.outcomes(strategies)
    for group in range(4):
        for name, values in figures(outcomes, groups[group]).items():
            column = getattr(totals, name)[:, group]
            assert column.dtype == (np.float64 if name.startswith("sum") else np.int64)
            # Sums differ from exactly rounded ones by their roundings only.
            np.testing.assert_allclose(column, values, rtol=1e-12, atol=0 if group == 3 else 1e-300, err_msg=name)
    assert totals.n[:, 0].min() > 5
    assert not totals.n[:, 3].any()


def totals_bytes(evaluator: Evaluator, strategies: list[StrategyConfig], groups: np.ndarray[Any, Any]) -> list[bytes]:
    found = evaluator.totals(strategies, groups)
    return [getattr(found, field.name).tobytes() for field in fields(found)]


def crowd(alerts: int) -> Paths:
    """So many short paths that their columns take several tiles."""
    rng = random.Random(1)
    paths = []
    for _ in range(alerts):
        path, price = [], 16
        for minute in range(rng.randrange(1, 12)):
            close = max(1, price + rng.randrange(-5, 6))
            high, low = max(price, close) + rng.randrange(6), max(1, min(price, close) - rng.randrange(6))
            path.append(bar(minute * rng.choice([1, 1, 2]) + (rng.random() < 0.02) * 20, price, high, low, close))
            price = max(1, close + rng.choice([0, 0, 0, -2, 2]))
        paths.append(sorted({each[0]: each for each in path}.values()))
    return paths_of(paths)


def of_all_families(count: int) -> list[StrategyConfig]:
    return [
        variant
        for seed in range(count)
        for family in FAMILIES
        for variant in variants(strategy_of(random_rules(family, seed)))
    ]


def test_neither_threads_nor_company_nor_the_way_of_evaluating_change_a_bit() -> None:
    paths, strategies = crowd(1300), of_all_families(3)
    generator = np.random.default_rng(3)
    groups = generator.random((5, 1300)) < 0.5
    config = BaselineConfig(max_entry_lag=2)

    def evaluator(below: int, threads: int) -> Evaluator:
        return Evaluator(paths, config, threads=threads, scan_below=below)

    assert 0 < (evaluator(0, 1).status != 0).sum() < 100
    wanted, wanted_totals = (
        evaluator(10_000, 1).outcomes(strategies),
        totals_bytes(evaluator(10_000, 1), strategies, groups),
    )
    assert wanted.ambiguous.sum() > 100
    for threads in (1, 2):
        records = evaluator(0, threads)
        same_outcomes(records.outcomes(strategies), vars(wanted))
        assert totals_bytes(records, strategies, groups) == wanted_totals
        order = generator.permutation(len(strategies))
        shuffled = records.totals([strategies[number] for number in order], groups)
        for field, column in zip(fields(Totals), wanted_totals, strict=True):
            again = np.empty_like(getattr(shuffled, field.name))
            again[order] = getattr(shuffled, field.name)
            assert again.tobytes() == column
    one_by_one = [evaluator(0, 2).totals([strategy], groups) for strategy in strategies[::7]]
    for number, totals in enumerate(one_by_one):
        for field, column in zip(fields(Totals), wanted_totals, strict=True):
            values = getattr(totals, field.name)
            assert values.tobytes() == column[number * 7 * values.nbytes : (number * 7 + 1) * values.nbytes]


def test_many_trials_with_columns_of_their_own_are_evaluated_in_batches() -> None:
    market = long_market(2)
    evaluator = Evaluator(market.paths(), market.config, scan_below=0)
    rng = np.random.default_rng(5)
    strategies = [
        StrategyConfig(tp=float(tp), sl=float(sl), time_stop_hours=float(hours))
        for tp, sl, hours in zip(
            rng.uniform(1.01, 2, 700), rng.uniform(0.5, 0.99, 700), rng.uniform(0.1, 3, 700), strict=True
        )
    ]
    same_outcomes(evaluator.outcomes(strategies), expected(market.paths(), strategies, market.config))


def test_hostile_paths_are_as_candle_by_candle() -> None:
    paths = paths_of(
        [
            [],
            [bar(0, 1, 1, 1, 1)],
            [bar(0, 1, 2, 0.5, 1)],  # one candle, both levels, each met exactly
            [bar(0, 1, 2, 1, 1)],
            [bar(0, 1, 1, 0.5, 1)],
            [bar(0, 1, 1.9999999999999998, 0.5000000000000001, 1)],
            [bar(0, 1, 1, 1, 1), bar(1, 0.25, 3, 0.25, 1)],  # opens below the stop, and takes the profit
            [bar(0, 1, 1, 1, 1), bar(1, 3, 3, 0.25, 1)],
            [bar(0, 1, 1, 1, 1), bar(1, 0.25, 0.25, 0.25, 0.25), bar(2, 4, 4, 4, 4)],
            [bar(0, 1, 4, 0.75, 4), bar(1, 0.25, 0.25, 0.25, 0.25)],
            [bar(0, 1, 1, 1, 1), bar(1, 1, 2, 0, 0)],  # a price of zero, an infinite one: no sealed run has them
            [bar(0, 1, 1, 1, 1), bar(1, 1, math.inf, 1, 1)],
            [bar(0, 1, 1, 1, 1), bar(1, 1, math.inf, 1, math.inf)],
            [bar(0, 5e-324, 5e-324, 5e-324, 5e-324), bar(1, 1e-323, 1e300, 5e-324, 1e300)],  # too large a return
            [bar(0, 1e-300, 1, 1e-300, 1), bar(1, 1, 1e300, 1, 1e300), bar(2, 1e300, 1e300, 1e-300, 1)],
            [bar(15, 1, 1, 1, 1), bar(16, 1, 2, 1, 1)],
            [bar(16, 1, 4, 1, 2)],
            *([(0, entry, 2.0, 0.5, 1.0, 1.0), bar(1, 1, 4, 0.25, 1)] for entry in (0.0, -1.0, math.nan, math.inf)),
            # New highs and new lows in one candle after another, and equal ones.
            [bar(minute, 1, 1 + minute / 8, 1 - minute / 16, 1) for minute in range(15)],
            [bar(minute, 1, 1 + minute // 4 / 4, 1 - minute // 3 / 8, 1) for minute in range(20)],
        ]
    )
    strategies = [
        *variants(StrategyConfig()),
        *variants(StrategyConfig(tp=None, sl=None)),
        *variants(StrategyConfig(tp=None, sl=0.5, fee_bps=0, slippage_bps=0)),
        *variants(StrategyConfig(tp=1e300, sl=1e-300)),
        *variants(StrategyConfig(tp=4.0, sl=None, trail_distance=0.25, trail_activation=0.25)),
        *variants(StrategyConfig(tp=None, sl=None, trail_distance=0.999)),
        *variants(StrategyConfig(tp=3.0, sl=0.25, breakeven_trigger=0.125, tiers=((1.25, 1.2), (1.5, 1.0)))),
        *(variants(StrategyConfig(time_stop_hours=minutes / 60))[0] for minutes in (0.01, 1, 2, 14.5, 15, 16, 60)),
    ]
    same_outcomes(
        Evaluator(paths, BaselineConfig(), scan_below=0).outcomes(strategies),
        expected(paths, strategies, BaselineConfig()),
    )


@pytest.mark.parametrize("scale", [1.0, 1e-306, 3e-324])
def test_a_low_exactly_on_a_trailing_stop_hits_it_however_the_two_are_rounded(scale: float) -> None:
    rng = np.random.default_rng(11)
    exits = 0
    for distance in rng.uniform(0.05, 0.95, 40).tolist():
        paths = []
        for peak in (rng.uniform(1, 20, 50) * scale).tolist():
            stop = peak * (1 - distance)
            # On the stop, and one step above.
            for low in (stop, float(np.nextafter(stop, 1.0))):
                paths.append(
                    [bar(0, peak, peak, peak, peak), bar(1, low, low, low, low), bar(2, low, max(peak, low), low, low)]
                )
        strategies = [StrategyConfig(tp=None, sl=None, trail_distance=distance)]
        market = paths_of(paths)
        found = Evaluator(market, BaselineConfig(), scan_below=0).outcomes(strategies)
        same_outcomes(found, expected(market, strategies, BaselineConfig()))
        exits += int((found.exit_ts[0] == market.entry_ts + 60_000).sum())
    assert exits >= 40 * 50


@pytest.mark.parametrize("interval_s", [1, 7, 60, 3600])
def test_a_time_stop_is_found_however_far_apart_candles_are(interval_s: int) -> None:
    strategies = [StrategyConfig(tp=None, sl=None, time_stop_hours=minutes / 60) for minutes in np.arange(0.5, 60, 0.5)]
    for seed in range(4):
        market = long_market(seed)
        paths = replace(market.paths(), interval_s=interval_s)
        config = replace(market.config, max_entry_lag=10**6)
        same_outcomes(Evaluator(paths, config, scan_below=0).outcomes(strategies), expected(paths, strategies, config))


def test_no_group_and_no_trial_are_no_figures() -> None:
    market = long_market(1)
    for below in (0, 1000):
        evaluator = Evaluator(market.paths(), market.config, scan_below=below)
        assert evaluator.outcomes([]).ret.shape == (0, len(market.calls))
        assert evaluator.totals([], np.ones((2, len(market.calls)), np.bool_)).sum_ret.shape == (0, 2)
        assert evaluator.totals([StrategyConfig()], np.ones((0, len(market.calls)), np.bool_)).n.shape == (1, 0)


def test_a_delayed_entry_is_the_open_of_a_later_candle_of_the_same_path() -> None:
    path = [bar(0, 1, 1, 1, 1), bar(1, 2, 2, 2, 2), bar(3, 4, 4, 4, 4), bar(4, 4, 10, 4, 6)]
    evaluator = Evaluator(paths_of([path, path[:2]]), BaselineConfig(max_entry_lag=1))
    strategy = StrategyConfig(tp=2.0, fee_bps=0, slippage_bps=0)
    assert evaluator.outcomes([strategy]).ret.tolist() == [[1.0, 1.0]]
    for candles, wanted in ((1, [1.0, 0.0]), (2, [1.0, None]), (3, [1.0, None]), (4, [1.0, None]), (5, [None, None])):
        delayed = evaluator.delayed(candles)
        ret = delayed.outcomes([strategy]).ret[0].tolist()
        assert [None if math.isnan(value) else value for value in ret] == wanted
        assert delayed.entry_ts.tolist() == (evaluator.entry_ts + candles * 60_000).tolist()
        assert delayed.end_ts.tolist() == evaluator.end_ts.tolist()


def test_a_sealed_run_is_evaluated_from_its_files(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    evaluator = open_evaluator(run, lake=copied_lake)
    assert evaluator.alerts.num_rows == len(evaluator.entry_ts) == len(evaluator.status) == 13
    assert evaluator.outcomes([StrategyConfig()]).ret.shape == (1, 13)
