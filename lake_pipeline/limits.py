"""What a team expects of a run: how much of it is filled, how much of its input is rejected, how old its candles are.

Nothing here stops a run: Dagster shows each limit as an asset check. Figures are computed where the results are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from lake_pipeline.backtest.config import check_number
from lake_pipeline.errors import ConfigError

__all__ = ["Limits", "Severity", "parse_limits"]

Severity = Literal["warn", "error"]


@dataclass(frozen=True)
class Limits:
    """Bounds of a run's figures; None for no bound. Shares are fractions, 0 to 1.

    `max_rejected_alerts` is a share of the rows of the input that are in the date range, `max_rejected_candles` one of
    the rows the source gave. `severity` is how a figure beyond its bound is shown.
    """

    min_filled_share: float | None = None
    max_rejected_alerts: float | None = None
    max_rejected_candles: float | None = None
    max_source_lag_hours: float | None = None
    severity: Severity = "warn"

    def __post_init__(self) -> None:
        for name in ("min_filled_share", "max_rejected_alerts", "max_rejected_candles"):
            check_number(self, name, least=0, most=1, optional=True)
        check_number(self, "max_source_lag_hours", least=0, optional=True)
        if self.severity not in get_args(Severity):
            raise ConfigError(f"severity {self.severity!r} is not one of {', '.join(get_args(Severity))}")


_NAMES: Final = tuple(Limits.__dataclass_fields__)


def parse_limits(text: str) -> dict[str, Any]:
    """The limits in `min_filled_share=0.9,max_rejected_alerts=0.05,severity=error`. Raises ConfigError."""
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (each.strip() for each in part.partition("="))
        if not separator or name not in _NAMES:
            raise ConfigError(f"limit {part!r} is not one of {', '.join(f'{each}=...' for each in _NAMES)}")
        try:
            given[name] = value if name == "severity" else float(value)
        except ValueError:
            raise ConfigError(f"limit {part!r}: {value!r} is not a number") from None
    return given
