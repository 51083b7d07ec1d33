"""What a backtest is asked to do: its settings as frozen dataclasses, validated once.

Every field is a parameter of the result's key. Threads, folders and formats are not here: they change no number.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from lake_pipeline.errors import ConfigError

__all__ = [
    "AlertSelection",
    "BaselineConfig",
    "CallerConfig",
    "FillMode",
    "IntrabarOrder",
    "StrategyConfig",
    "canonical_values",
    "check_integer",
    "check_number",
    "format_number",
    "format_tiers",
    "parse_tiers",
    "strategy_options",
]

FillMode = Literal["gap", "level"]
IntrabarOrder = Literal["sl_first", "tp_first"]

_HOUR_MS: Final = 3_600_000
# A hundred years, as for windows: beyond it a horizon is a slip of the pen.
_MAX_HOURS: Final = 100 * 366 * 24.0


def canonical_values(config: Any) -> dict[str, Any]:
    """The fields of a config as JSON values, numbers in one form (48 and 48.0 are one parameter)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dt.date):
            return value.isoformat()
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


@dataclass(frozen=True)
class AlertSelection:
    """Which alerts of a run: UTC days, both inclusive, and callers; None is all of them.

    Callers are matched exactly. Alerts that strict coverage dropped have no slice and are never selected.
    """

    from_day: dt.date | None = None
    to_day: dt.date | None = None
    callers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.from_day and self.to_day and self.from_day > self.to_day:
            raise ConfigError(f"the date range is empty: from {self.from_day} is after to {self.to_day}")
        if self.callers is not None:
            given: object = self.callers
            if not given or not isinstance(given, tuple | list):
                raise ConfigError("callers is a list of names; leave it out to select the alerts of all callers")
            object.__setattr__(self, "callers", tuple(sorted(set(self.callers), key=str.encode)))


@dataclass(frozen=True)
class BaselineConfig:
    """Paths and metrics: how long a path is, and how late (in candles) its first candle may come."""

    horizon_hours: float = 48.0
    max_entry_lag: int = 15

    def __post_init__(self) -> None:
        check_number(self, "horizon_hours", above=0, most=_MAX_HOURS)
        check_integer(self, "max_entry_lag", least=0)
        if self.horizon_ms < 1:
            raise ConfigError(f"horizon_hours {self.horizon_hours} is less than a millisecond")

    @property
    def horizon_ms(self) -> int:
        """The horizon in milliseconds."""
        return round(self.horizon_hours * _HOUR_MS)


@dataclass(frozen=True)
class CallerConfig:
    """The caller table and every constant of its score (`callers.score_of`)."""

    min_trades: int = 10
    confidence_n: float = 50.0
    tail_p75_weight: float = 0.15
    tail_p95_weight: float = 0.10
    fast_weight: float = 0.8
    fast_minutes: float = 60.0
    discipline_bonus: float = 0.6
    discipline_hit_2x: float = 0.5
    drawdown_limit: float = 0.30
    penalty_steepness: float = 15.0

    def __post_init__(self) -> None:
        check_integer(self, "min_trades", least=1)
        for name in ("confidence_n", "tail_p75_weight", "tail_p95_weight", "fast_weight", "discipline_bonus"):
            check_number(self, name, least=0)
        check_number(self, "fast_minutes", above=0)
        for name in ("discipline_hit_2x", "drawdown_limit"):
            check_number(self, name, least=0, most=1)
        # exp(steepness * drawdown) must stay a number.
        check_number(self, "penalty_steepness", least=0, most=500)


@dataclass(frozen=True)
class StrategyConfig:
    """Exits, fills, costs and sizing of one strategy.

    `tp` and `sl` are multiples of the entry price, None for none. `trail_activation`, `trail_distance`,
    `breakeven_trigger` and `breakeven_offset` are fractions (0.5 is 50 %); `tiers` are pairs (multiple reached, stop
    as a multiple of the entry price). `risk_per_trade` is the fraction of equity that a stop at `sl` costs.
    """

    tp: float | None = 2.0
    sl: float | None = 0.5
    intrabar_order: IntrabarOrder = "sl_first"
    fill: FillMode = "gap"
    fee_bps: float = 30.0
    slippage_bps: float = 50.0
    time_stop_hours: float | None = None
    trail_activation: float | None = None
    trail_distance: float | None = None
    breakeven_trigger: float | None = None
    breakeven_offset: float | None = None
    tiers: tuple[tuple[float, float], ...] = ()
    risk_per_trade: float = 0.02

    def __post_init__(self) -> None:
        for name, known in (("intrabar_order", get_args(IntrabarOrder)), ("fill", get_args(FillMode))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        check_number(self, "tp", above=1, optional=True)
        check_number(self, "sl", above=0, below=1, optional=True)
        check_number(self, "fee_bps", least=0)
        check_number(self, "slippage_bps", least=0)
        if self.fee_bps + self.slippage_bps >= 10_000:
            raise ConfigError("fee_bps and slippage_bps together take the whole price: give less than 10000")
        check_number(self, "time_stop_hours", above=0, most=_MAX_HOURS, optional=True)
        check_number(self, "risk_per_trade", above=0, most=1)
        if self.trail_distance is None and self.trail_activation is not None:
            raise ConfigError("trail_activation needs trail_distance: how far below the peak the stop trails")
        if self.breakeven_trigger is None and self.breakeven_offset is not None:
            raise ConfigError("breakeven_offset needs breakeven_trigger: the gain that moves the stop")
        # The two that have a default once their partner is given.
        for partner, name in (("trail_distance", "trail_activation"), ("breakeven_trigger", "breakeven_offset")):
            if getattr(self, partner) is not None and getattr(self, name) is None:
                object.__setattr__(self, name, 0.0)
        check_number(self, "trail_distance", above=0, below=1, optional=True)
        check_number(self, "trail_activation", least=0, optional=True)
        check_number(self, "breakeven_trigger", above=0, optional=True)
        check_number(self, "breakeven_offset", above=-1, below=self.breakeven_trigger, optional=True)
        self._check_tiers()

    def _check_tiers(self) -> None:
        try:
            tiers = tuple(sorted((float(reached), float(stop)) for reached, stop in self.tiers))
        except (TypeError, ValueError):
            raise ConfigError(f"tiers {self.tiers!r} are not pairs (multiple reached, stop multiple)") from None
        for reached, stop in tiers:
            if not (1 < reached < math.inf and 0 < stop < reached):
                raise ConfigError(
                    f"tier {reached:g}x:{stop:g} cannot work: the multiple reached is above 1, and its stop above 0 "
                    "and below that multiple"
                )
        if len({reached for reached, _ in tiers}) < len(tiers):
            raise ConfigError("two tiers have the same multiple: give each multiple one stop")
        object.__setattr__(self, "tiers", tiers)

    @property
    def time_stop_ms(self) -> int | None:
        """The time stop in milliseconds after `entry_ts`."""
        return None if self.time_stop_hours is None else round(self.time_stop_hours * _HOUR_MS)


def parse_tiers(text: str) -> tuple[tuple[float, float], ...]:
    """Tiers from `2x:1.2,3x:1.6`: at 2x the stop moves to 1.2x, at 3x to 1.6x. Raises ConfigError."""
    tiers = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        reached, separator, stop = part.partition(":")
        try:
            if not separator:
                raise ValueError
            tiers.append((float(reached.strip().removesuffix("x")), float(stop.strip().removesuffix("x"))))
        except ValueError:
            raise ConfigError(f"tier {part!r} is not of the form 2x:1.2 (multiple reached : stop multiple)") from None
    return tuple(tiers)


def format_number(value: float) -> str:
    """The shortest text that is this very number."""
    return repr(value).removesuffix(".0")


def format_tiers(tiers: Sequence[Sequence[float]]) -> str:
    """A ladder as `parse_tiers` reads it, exactly; empty of none."""
    return ",".join(f"{format_number(reached)}x:{format_number(stop)}" for reached, stop in tiers)


def strategy_options(strategy: Mapping[str, Any]) -> str:
    """The canonical values of a strategy as options of `lake strategy`: tp, sl, and what else is not the default."""
    usual = canonical_values(StrategyConfig())
    options = []
    for name in usual:  # in the order of the fields: what was read from JSON has another
        value = strategy[name]
        if name in ("tp", "sl") or value != usual[name]:
            options.append(f"--{name.replace('_', '-')} {_format_option(value)}")
    return " ".join(options)


def _format_option(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return format_number(value) if isinstance(value, float) else format_tiers(value)


def check_number(
    config: Any,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> None:
    """Make a field a float inside its bounds; ConfigError otherwise."""
    value = getattr(config, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} {value!r} is not a finite number")
    rules = (
        (above is None or value > above, f"above {above:g}" if above is not None else ""),
        (least is None or value >= least, f"at least {least:g}" if least is not None else ""),
        (below is None or value < below, f"below {below:g}" if below is not None else ""),
        (most is None or value <= most, f"at most {most:g}" if most is not None else ""),
    )
    if not all(holds for holds, _ in rules):
        raise ConfigError(f"{name} {value:g} cannot work: it must be {' and '.join(text for _, text in rules if text)}")
    # + 0.0 makes -0.0 plain.
    object.__setattr__(config, name, float(value) + 0.0)


def check_integer(config: Any, name: str, *, least: int) -> None:
    """ConfigError unless a field is a whole number of at least `least`."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**9:
        raise ConfigError(f"{name} {value!r} cannot work: it must be a whole number of at least {least}")
