"""Settings: what cannot work is refused with its reason, and equal settings are one parameter."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from lake_pipeline.backtest.config import (
    AlertSelection,
    BaselineConfig,
    CallerConfig,
    StrategyConfig,
    canonical_values,
    parse_tiers,
)
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (BaselineConfig, {"horizon_hours": 0}, "horizon_hours 0 cannot work: it must be above 0"),
        (BaselineConfig, {"horizon_hours": float("nan")}, "is not a finite number"),
        (BaselineConfig, {"horizon_hours": 1e-9}, "less than a millisecond"),
        (BaselineConfig, {"max_entry_lag": -1}, "max_entry_lag -1"),
        (BaselineConfig, {"max_entry_lag": 1.5}, "whole number"),
        (BaselineConfig, {"max_entry_lag": True}, "whole number"),
        (CallerConfig, {"min_trades": 0}, "min_trades 0"),
        (CallerConfig, {"drawdown_limit": 2}, "drawdown_limit 2"),
        (StrategyConfig, {"tp": 1.0}, "tp 1 cannot work: it must be above 1"),
        (StrategyConfig, {"tp": "2"}, "tp '2' is not a finite number"),
        (StrategyConfig, {"sl": 1.0}, "sl 1 cannot work"),
        (StrategyConfig, {"sl": 0}, "sl 0 cannot work"),
        (StrategyConfig, {"fill": "open"}, "fill 'open' is not one of gap, level"),
        (StrategyConfig, {"intrabar_order": "first"}, "intrabar_order 'first'"),
        (StrategyConfig, {"fee_bps": -1}, "fee_bps -1"),
        (StrategyConfig, {"fee_bps": 9_000, "slippage_bps": 1_000}, "whole price"),
        (StrategyConfig, {"time_stop_hours": 0}, "time_stop_hours 0"),
        (StrategyConfig, {"trail_activation": 0.5}, "trail_activation needs trail_distance"),
        (StrategyConfig, {"trail_distance": 1}, "trail_distance 1"),
        (StrategyConfig, {"breakeven_offset": 0.5}, "breakeven_offset needs breakeven_trigger"),
        (StrategyConfig, {"breakeven_trigger": 0.5, "breakeven_offset": 0.5}, "breakeven_offset 0.5"),
        (StrategyConfig, {"tiers": ((2, 2),)}, "tier 2x:2 cannot work"),
        (StrategyConfig, {"tiers": ((2, 1), (2, 1.5))}, "two tiers have the same multiple"),
        (StrategyConfig, {"tiers": (2, 1)}, "are not pairs"),
        (StrategyConfig, {"risk_per_trade": 0}, "risk_per_trade 0"),
        (AlertSelection, {"callers": ()}, "callers is a list of names"),
        (AlertSelection, {"callers": "bob"}, "callers is a list of names"),
        (AlertSelection, {"from_day": dt.date(2025, 5, 2), "to_day": dt.date(2025, 5, 1)}, "the date range is empty"),
    ],
)
def test_what_cannot_work_is_refused(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_equal_settings_are_one_parameter() -> None:
    def key(config: Any) -> bytes:
        return canonical_json(canonical_values(config))

    assert key(BaselineConfig(horizon_hours=48)) == key(BaselineConfig())
    assert key(StrategyConfig(tp=2, fee_bps=30)) == key(StrategyConfig())
    assert key(StrategyConfig(trail_distance=0.5)) == key(StrategyConfig(trail_distance=0.5, trail_activation=0))
    assert key(StrategyConfig(tiers=((3, 2), (2, 1)))) == key(StrategyConfig(tiers=((2.0, 1.0), (3.0, 2.0))))
    assert key(AlertSelection(callers=("b", "a"))) == key(AlertSelection(callers=("a", "b", "b")))
    assert key(BaselineConfig(horizon_hours=47)) != key(BaselineConfig())


def test_tiers_are_read_from_text() -> None:
    assert parse_tiers("2x:1.2, 3x:1.6x,") == ((2.0, 1.2), (3.0, 1.6))
    assert parse_tiers("") == ()
    for text in ("2x", "2x:1:2", "x:1", "2x-1.2"):
        with pytest.raises(ConfigError, match=r"is not of the form 2x:1\.2"):
            parse_tiers(text)
