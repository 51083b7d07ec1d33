"""The engine against the reference: the same number in every column, to the last bit."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.backtest.baseline import BASELINE_SCHEMA, measure_paths
from lake_pipeline.backtest.callers import CALLER_SCHEMA, compute_caller_stats
from lake_pipeline.backtest.config import CallerConfig
from lake_pipeline.backtest.exits import REASONS, stop_levels
from lake_pipeline.backtest.trades import TRADES_SCHEMA, summarise, trade_paths
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline_tests.backtest import reference
from lake_pipeline_tests.backtest.markets import (
    FAMILIES,
    Market,
    long_market,
    markets,
    random_rules,
    rows_of,
    rules,
    strategy_of,
)
from lake_pipeline_tests.backtest.reference import Candle, Row, Rules


def same(table: list[Row], expected: list[Row], names: list[str]) -> None:
    """Exactly: == is not enough for a whole number that became a float."""
    assert [[(name, repr(row[name])) for name in names] for row in table] == [
        [(name, repr(row[name])) for name in names] for row in expected
    ]
    assert all(set(row) == set(names) for row in expected)


def check_baseline(market: Market, min_trades: int) -> None:
    table = measure_paths(market.paths(), market.config, threads=2)
    expected = [reference.baseline(alert, candles, market.setting) for alert, candles in market.calls]
    same(rows_of(table), expected, BASELINE_SCHEMA.names)
    callers = compute_caller_stats(table, CallerConfig(min_trades=min_trades))
    same(rows_of(callers), reference.caller_stats(expected, min_trades), CALLER_SCHEMA.names)


def check_trades(market: Market, drawn: Rules) -> None:
    for tp_first, level_fill in itertools.product((False, True), repeat=2):
        chosen = replace(drawn, tp_first=tp_first, level_fill=level_fill)
        strategy = strategy_of(chosen)
        table = trade_paths(market.paths(), strategy, market.config, threads=2)
        expected = reference.trades(market.calls, chosen, market.setting)
        same(rows_of(table), expected, TRADES_SCHEMA.names)
        summary = json.loads(canonical_json(summarise(table, strategy)))
        assert summary == reference.summary(expected, chosen)


@given(markets(), st.integers(1, 3))
def test_the_baseline_and_its_callers_are_those_of_the_reference(market: Market, min_trades: int) -> None:
    check_baseline(market, min_trades)


@pytest.mark.parametrize("seed", range(20))
def test_the_baseline_of_long_paths_is_that_of_the_reference(seed: int) -> None:
    check_baseline(long_market(seed), seed % 12 + 1)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_every_exit_family_is_that_of_the_reference(family: str, data: st.DataObject) -> None:
    check_trades(data.draw(markets()), data.draw(rules(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_exit_family_on_long_paths_is_that_of_the_reference(family: str) -> None:
    for seed in range(12):
        check_trades(long_market(seed), random_rules(family, seed))


@pytest.mark.parametrize("seed", range(12))
def test_the_stop_shown_for_a_candle_is_the_one_in_force(seed: int) -> None:
    market, chosen = long_market(seed), random_rules("moving", seed)
    paths = market.paths()
    for alert, candles in market.calls:
        path = reference.path_of(alert, candles, market.setting)
        if reference.status_of(alert, path, market.setting) == "ok":
            levels = stop_levels(paths.path(alert.alert_id), strategy_of(chosen))
            for number in range(len(path)):
                stop, name = reference.effective_stop(path[0].open, path[:number], chosen)
                assert levels.stop[number] == stop
                assert stop == 0 or REASONS[levels.reason[number]] == name


@given(st.floats(1e-12, 1e12), st.booleans(), st.booleans())
def test_level_fills_with_defaults_return_what_the_costs_leave(entry: float, wins: bool, tp_first: bool) -> None:
    chosen = Rules(level_fill=True, tp_first=tp_first)
    setting = reference.Setting(60_000, 5)
    high, low = (entry * 2.5, entry) if wins else (entry, entry * 0.25)
    alert = reference.Alert("alert", "mint", None, 0)
    market = Market(setting, [(alert, [Candle(0, entry, high, low, entry, 1.0)])])
    [row] = rows_of(trade_paths(market.paths(), strategy_of(chosen), market.config))
    assert round(row["tp_sl_ret"], 6) == (0.974129 if wins else -0.506468)
    assert row["tp_sl_exit_reason"] == ("tp" if wins else "sl")
