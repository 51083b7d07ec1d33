"""The search space: values exact in decimal, every point a valid strategy, and what cannot be searched said clearly."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.backtest.config import StrategyConfig
from lake_pipeline.errors import ConfigError
from lake_pipeline.optimizer.space import DEFAULT_SL, DEFAULT_TP, SearchSpace, parse_range


def test_a_range_holds_the_doubles_that_a_person_would_type():
    values = parse_range("sl", ".3:.6:.01")
    assert values == tuple(float(f"0.{hundredths}") for hundredths in range(30, 61))
    assert len(parse_range("tp", "1.5:3.5:.01")) == 201
    assert parse_range("tp", "1.1:2:.4") == (1.1, 1.5, 1.9)  # the last is not above the end
    assert parse_range("tp", " 2X , none,3:4:1,2") == (2.0, None, 3.0, 4.0)
    assert parse_range("tp", "2:2:1") == (2.0,)


@given(st.integers(1, 500), st.integers(0, 300), st.integers(1, 60), st.integers(0, 6))
def test_every_value_of_a_range_is_its_decimal(low, count, step, places):
    texts = [str(Decimal(number).scaleb(-places)) for number in (low, low + count * step, step)]
    expected = [float(Decimal(low + number * step).scaleb(-places)) for number in range(count + 1)]
    assert list(parse_range("tp", ":".join(texts))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:2", "neither a value"),
        ("1:2:3:4", "neither a value"),
        ("", "neither a value"),
        ("a:b:c", "neither a value"),
        ("nan", "neither a value"),
        ("1:inf:1", "neither a value"),
        ("2:1:.1", "is empty"),
        ("1:2:0", "is empty"),
        ("1:2:-.1", "is empty"),
        ("1.1:2:1e-9", "more than 100,000 values"),
        ("0:9e999:1e-9", "more than 100,000 values"),
    ],
)
def test_ranges_that_cannot_be_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_range("tp", text)


def test_points_are_a_grid_with_the_last_exit_fastest_and_singles_are_fixed():
    space = SearchSpace.of({"sl": ".4,.5", "tp": "2:4:1", "trail_distance": ".2"}, {"fee_bps": 0.0})
    assert [dimension.name for dimension in space.dimensions] == ["tp", "sl"]
    assert space.size == 6
    strategies = [space.strategy(space.point(place)) for place in range(6)]
    assert [(each.tp, each.sl) for each in strategies] == [(2, 0.4), (2, 0.5), (3, 0.4), (3, 0.5), (4, 0.4), (4, 0.5)]
    assert {(each.trail_distance, each.fee_bps) for each in strategies} == {(0.2, 0.0)}


def test_exits_may_be_off_and_take_their_partners_with_them():
    space = SearchSpace.of(
        {"tp": "none", "sl": "none,.5", "trail_distance": "none,.1", "trail_activation": ".3,.5"}, {}
    )
    strategies = {space.strategy(space.point(place)) for place in range(space.size)}
    assert len(strategies) == 2 * (1 + 2)
    assert {each.trail_activation for each in strategies if each.trail_distance is None} == {None}
    assert all(each.tp is None for each in strategies)


def test_ladders_are_chosen_whole():
    space = SearchSpace.of({"tp": "2", "tiers": ["none", "2x:1.2,3x:1.6", "3x:1.6,2x:1.2"]}, {})
    assert [space.strategy((n,)).tiers for n in range(space.size)] == [(), ((2.0, 1.2), (3.0, 1.6))]


def test_no_ranges_are_one_point():
    space = SearchSpace.of({"tp": "2"}, {"sl": None})
    assert space.size == 1
    assert space.strategy(space.point(0)) == StrategyConfig(tp=2.0, sl=None)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"tp": "0.5:2:.5"}, "tp 0.5 cannot work"),
        ({"sl": "none,.5:1.5:.5"}, "sl 1.5 cannot work"),
        ({"tp": "2:3:1", "time_stop_hours": "0:5:1"}, "time_stop_hours 0 cannot work"),
        ({"trail_activation": ".5"}, "trail_activation needs trail_distance"),
        ({"trail_activation": ".5", "trail_distance": "none"}, "trail_activation needs trail_distance"),
        ({"breakeven_offset": "0,.1"}, "breakeven_offset needs breakeven_trigger"),
        ({"breakeven_trigger": ".1,.5", "breakeven_offset": "0,.1"}, "every offset must be below every trigger"),
        ({"tiers": ["2x"]}, "not of the form 2x:1.2"),
        ({"tiers": ["2x:3"]}, "cannot work"),
        ({"fee_bps": "1:2:1"}, "fee_bps cannot be searched"),
        (dict.fromkeys(("sl", "trail_distance", "trail_activation", "breakeven_trigger"), "0.1:0.9:.00001"),
         "points: give fewer or coarser"),
    ],
)  # fmt: skip
def test_spaces_with_a_point_that_is_no_strategy_are_refused(ranges, message):
    with pytest.raises(ConfigError, match=message):
        SearchSpace.of(ranges, {})


def test_the_defaults_are_those_of_the_semantics():
    space = SearchSpace.of({"tp": DEFAULT_TP, "sl": DEFAULT_SL}, {})
    assert space.size == 201 * 31
    assert (space.dimensions[0].values[0], space.dimensions[0].values[-1]) == (1.5, 3.5)
    assert (space.dimensions[1].values[0], space.dimensions[1].values[-1]) == (0.3, 0.6)
    from lake_pipeline.settings import OptimizerSettings

    assert OptimizerSettings().search().space == space
