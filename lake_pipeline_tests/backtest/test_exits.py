"""Exits: each corner of their rules by hand; `test_reference` has every family and combination."""

from __future__ import annotations

from typing import Any

from lake_pipeline.backtest.config import StrategyConfig
from lake_pipeline.backtest.trades import trade_paths
from lake_pipeline_tests.backtest.paths_for_tests import Bar, bar, paths_of


def traded(path: list[Bar], **settings: Any) -> dict[str, Any]:
    settings = {"fee_bps": 0, "slippage_bps": 0, **settings}
    [row] = trade_paths(paths_of([path]), StrategyConfig(**settings)).to_pylist()
    return row


def outcome(path: list[Bar], **settings: Any) -> tuple[str, float, bool]:
    row = traded(path, **settings)
    return row["tp_sl_exit_reason"], row["exit_price"], row["ambiguous"]


def test_a_stop_fills_at_the_open_it_was_gapped_through_and_a_take_profit_at_its_level() -> None:
    fall = [bar(0, 1, 1, 1, 1), bar(1, 0.25, 0.375, 0.25, 0.25)]
    assert outcome(fall) == ("sl", 0.25, False)
    assert outcome(fall, fill="level") == ("sl", 0.5, False)
    rise = [bar(0, 1, 1, 1, 1), bar(1, 4, 4, 4, 4)]
    assert outcome(rise) == outcome(rise, fill="level") == ("tp", 2.0, False)


def test_both_in_one_candle_is_ambiguous_and_decided_by_the_order() -> None:
    path = [bar(0, 1, 2, 0.5, 1)]
    assert outcome(path) == ("sl", 0.5, True)
    assert outcome(path, intrabar_order="tp_first") == ("tp", 2.0, True)
    for order in ("sl_first", "tp_first"):
        row = traded(path, intrabar_order=order)
        assert (row["ret_worst"], row["ret_best"]) == (-0.5, 1.0)


def test_the_order_decides_even_where_the_open_is_beyond_a_barrier() -> None:
    above, below = [bar(0, 1, 1, 1, 1), bar(1, 3, 3, 0.25, 1)], [bar(0, 1, 1, 1, 1), bar(1, 0.25, 3, 0.25, 1)]
    assert outcome(above) == ("sl", 0.5, True)
    assert outcome(below, intrabar_order="tp_first") == ("tp", 2.0, True)
    for path, worst in ((above, -0.5), (below, -0.75)):
        row = traded(path)
        assert (row["ret_worst"], row["ret_best"]) == (worst, 1.0)


def test_levels_are_inclusive() -> None:
    assert outcome([bar(0, 1, 2, 1, 1)])[0] == "tp"
    assert outcome([bar(0, 1, 1, 0.5, 1)])[0] == "sl"
    assert outcome([bar(0, 1, 1.999, 0.501, 1)])[0] == "horizon"


def test_neither_hit_exits_at_the_last_close() -> None:
    row = traded([bar(0, 1, 1.5, 0.75, 1), bar(7, 1, 1.25, 0.875, 1.125)])
    assert (row["tp_sl_exit_reason"], row["exit_price"], row["hold_time_s"]) == ("horizon", 1.125, 420)
    assert (row["mae"], row["mfe"]) == (-0.25, 0.5)


def test_a_trailing_stop_takes_its_peak_from_earlier_candles() -> None:
    settings = {"tp": None, "trail_distance": 0.25}
    spike = [bar(0, 1, 1, 1, 1), bar(1, 1, 4, 1, 3.5)]
    assert outcome(spike, **settings)[0] == "horizon"  # its own high would put the stop at 3
    assert outcome([*spike, bar(2, 3.5, 3.5, 2, 2)], **settings) == ("trail", 3.0, False)
    # The next candle opens below the trailing stop.
    assert outcome([*spike, bar(2, 2, 2, 2, 2)], **settings) == ("trail", 2.0, False)
    assert outcome([*spike, bar(2, 2, 2, 2, 2)], fill="level", **settings) == ("trail", 3.0, False)


def test_a_trailing_stop_sleeps_until_its_activation() -> None:
    settings = {"tp": None, "trail_distance": 0.25, "trail_activation": 0.5}
    path = [bar(0, 1, 1.4375, 1, 1), bar(1, 1, 1, 0.75, 1)]
    assert outcome(path, **settings)[0] == "horizon"
    path[0] = bar(0, 1, 1.5, 1, 1)
    assert outcome(path, **settings) == ("trail", 1.0, False)


def test_break_even_and_tiers_are_armed_for_the_next_candle() -> None:
    path = [bar(0, 1, 1.5, 0.75, 1.25), bar(1, 1.25, 1.25, 0.75, 1)]
    assert outcome(path[:1], breakeven_trigger=0.5)[0] == "horizon"
    assert outcome(path, breakeven_trigger=0.5) == ("breakeven", 1.0, False)
    assert outcome(path, breakeven_trigger=0.5, breakeven_offset=0.125) == ("breakeven", 1.125, False)
    assert outcome(path, tiers=((1.5, 1.125),)) == ("tier", 1.125, False)
    assert outcome(path, tiers=((1.75, 1.125),))[0] == "horizon"


def test_a_tier_that_was_reached_stays() -> None:
    path = [bar(0, 1, 1.5, 1.25 - 0.25, 1.25), bar(1, 1.25, 1.25, 1.2, 1.25), bar(2, 1.25, 1.25, 1, 1)]
    assert outcome(path, tiers=((1.5, 1.125), (1.75, 1.5))) == ("tier", 1.125, False)


def test_the_highest_active_stop_counts_and_equal_ones_have_a_fixed_name() -> None:
    path = [bar(0, 1, 1.5, 1, 1.25), bar(1, 1.25, 1.25, 0.5, 0.5)]
    both = {"breakeven_trigger": 0.5, "breakeven_offset": 0.125, "tiers": ((1.5, 1.125),)}
    assert outcome(path, **both) == ("breakeven", 1.125, False)
    assert outcome(path, trail_distance=0.25, **both) == ("trail", 1.125, False)
    assert outcome(path, trail_distance=0.5, **both)[:2] == ("breakeven", 1.125)
    fall = [bar(0, 1, 1, 1, 1), bar(1, 1, 1, 0.5, 0.5)]
    assert outcome(fall, sl=0.5, trail_distance=0.5) == ("sl", 0.5, False)


def test_a_time_stop_fills_at_the_first_open_due_before_anything_else() -> None:
    path = [bar(0, 1, 1, 1, 1), bar(29, 1, 1, 1, 1), bar(31, 0.25, 4, 0.125, 1), bar(32, 1, 1, 1, 1)]
    row = traded(path, time_stop_hours=0.5)
    assert (row["tp_sl_exit_reason"], row["exit_price"], row["hold_time_s"]) == ("time", 0.25, 31 * 60)
    assert not row["ambiguous"]
    assert (row["mae"], row["mfe"]) == (-0.75, 0.0)  # of the candle left at its open, the open alone


def test_a_path_without_status_ok_is_not_traded() -> None:
    paths = paths_of([[], [bar(16, 1, 4, 1, 2)], [(0, -1.0, 1.0, 1.0, 1.0, 1.0)]])
    for row, status in zip(
        trade_paths(paths, StrategyConfig()).to_pylist(), ["missing", "late_entry", "bad_entry"], strict=True
    ):
        assert row["status"] == status
        kept = ("alert_id", "mint", "caller", "alert_ts_utc", "entry_ts_utc", "status")
        assert all(value is None for name, value in row.items() if name not in kept)
