"""Limits: what cannot work is refused with its reason; what is set beats the environment."""

from __future__ import annotations

import pytest

from lake_pipeline.errors import ConfigError
from lake_pipeline.limits import Limits, parse_limits
from lake_pipeline.settings import CheckSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_filled_share": 1.1}, "min_filled_share 1.1 cannot work: it must be at least 0 and at most 1"),
        ({"max_rejected_alerts": -0.1}, "max_rejected_alerts -0.1 cannot work"),
        ({"max_rejected_candles": float("nan")}, "max_rejected_candles nan is not a finite number"),
        ({"max_source_lag_hours": -1}, "max_source_lag_hours -1 cannot work"),
        ({"severity": "fatal"}, "severity 'fatal' is not one of warn, error"),
    ],
)
def test_a_limit_that_cannot_work_is_refused_with_its_bounds(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckSettings(**settings).limits()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_filled=0.9", "limit 'min_filled=0.9' is not one of min_filled_share=..., "),
        ("min_filled_share", "limit 'min_filled_share' is not one of"),
        ("min_filled_share=most", "limit 'min_filled_share=most': 'most' is not a number"),
    ],
)
def test_a_text_of_limits_that_is_not_one_says_what_is(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_limits(text)


def test_a_setting_beats_the_environment_and_both_beat_the_defaults(monkeypatch):
    assert CheckSettings().limits() == Limits()
    monkeypatch.setenv("LAKE_CHECKS", " min_filled_share = 0.9 , severity=error,")
    assert CheckSettings().limits() == Limits(min_filled_share=0.9, severity="error")
    both = CheckSettings(min_filled_share=0.0, max_source_lag_hours=6).limits()
    assert both == Limits(min_filled_share=0.0, max_source_lag_hours=6, severity="error")
