"""The space that is searched: for each exit the values it may take, all of them valid strategies together.

A range `lo:hi:step` is parsed in decimal: `.3:.6:.01` holds the double nearest to 0.37, the one that
`lake strategy --sl 0.37` uses, and not a sum of hundredths. Both ends count; the last value is the largest that is not
above `hi`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from lake_pipeline.backtest.config import StrategyConfig, canonical_values, parse_tiers
from lake_pipeline.errors import ConfigError

__all__ = ["DEFAULT_SL", "DEFAULT_TP", "RANGED", "Dimension", "SearchSpace", "parse_range"]

DEFAULT_TP: Final = "1.5:3.5:.01"
DEFAULT_SL: Final = ".3:.6:.01"

# What may be searched, in the order of points and columns. Everything else of a strategy is fixed in a search.
RANGED: Final = (
    "tp",
    "sl",
    "time_stop_hours",
    "trail_activation",
    "trail_distance",
    "breakeven_trigger",
    "breakeven_offset",
    "tiers",
)
_NONE: Final = "none"
_MOST_VALUES: Final = 100_000
# A point's place in the space is one int64.
_MOST_POINTS: Final = 2**62

Value = float | None | tuple[tuple[float, float], ...]
Point = tuple[int, ...]


@dataclass(frozen=True)
class Dimension:
    """One exit of StrategyConfig and the values it may take, in order."""

    name: str
    values: tuple[Value, ...]


def parse_range(name: str, text: str) -> tuple[float | None, ...]:
    """Values from `lo:hi:step`, single values and `none`, any of them separated by commas, without repeats.

    Raises ConfigError that says what the text should look like.
    """
    values: list[float | None] = []
    for part in (part.strip().lower() for part in text.split(",")):
        values += [None] if part == _NONE else _numbers(name, part)
    return tuple(dict.fromkeys(values))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [Decimal(each.strip().removesuffix("x")) for each in text.split(":")]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 3) or not all(number.is_finite() for number in numbers):
        raise ConfigError(
            f"{name} {text!r} is neither a value such as 2.0, nor a range lo:hi:step such as 1.5:3.5:.01, nor none; "
            "commas separate several"
        )
    if len(numbers) == 1:
        return [float(numbers[0]) + 0.0]
    low, high, step = numbers
    if step <= 0 or high < low:
        raise ConfigError(f"{name} {text!r} is empty: lo:hi:step has lo <= hi and a step above 0")
    if (high - low) / step >= _MOST_VALUES:
        raise ConfigError(f"{name} {text!r} has more than {_MOST_VALUES:,} values: give a larger step")
    # + 0.0 makes -0.0 plain, as StrategyConfig does.
    return [float(low + number * step) + 0.0 for number in range(int((high - low) // step) + 1)]


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions that have several values, and the strategy that holds for all the rest.

    A point has a position in each dimension's values. Raises ConfigError unless every point is a valid strategy.
    """

    dimensions: tuple[Dimension, ...]
    base: StrategyConfig

    @classmethod
    def of(cls, ranges: Mapping[str, str | Sequence[str]], fixed: Mapping[str, Any]) -> SearchSpace:
        """From the text of each range (`tiers`: a ladder each) and the values of what is fixed. Raises ConfigError."""
        unknown = sorted(ranges.keys() - set(RANGED))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)} cannot be searched: the exits are {', '.join(RANGED)}")
        values: dict[str, tuple[Value, ...]] = {}
        for name, given in ranges.items():
            if isinstance(given, str):
                values[name] = parse_range(name, given)
            else:
                ladders = [() if text.strip().lower() == _NONE else parse_tiers(text) for text in given]
                values[name] = tuple(dict.fromkeys(StrategyConfig(tiers=ladder).tiers for ladder in ladders))
        values = {name: each for name, each in values.items() if each}
        _require_partners(values)
        constants = {name: each[0] for name, each in values.items() if len(each) == 1}
        dimensions = tuple(Dimension(name, values[name]) for name in RANGED if len(values.get(name, ())) > 1)
        # A varied exit is no part of the base: its first value stands for it, so that a partner's check passes.
        first: dict[str, Any] = {each.name: _first(each.values) for each in dimensions}
        return cls(dimensions, StrategyConfig(**{**fixed, **constants, **first}))

    def __post_init__(self) -> None:
        if self.size > _MOST_POINTS:
            raise ConfigError(f"the search space has {self.size:.3g} points: give fewer or coarser ranges")
        for number, dimension in enumerate(self.dimensions):
            # The rules are bounds, so the first and the last of a dimension speak for those between them.
            for position in {*_extremes(dimension.values)}:
                point = [_extremes(each.values)[0] for each in self.dimensions]
                point[number] = position
                dataclasses.replace(self.strategy(point))  # as its constructor sees it

    @property
    def size(self) -> int:
        """How many points there are."""
        size = 1
        for dimension in self.dimensions:
            size *= len(dimension.values)
        return size

    def point(self, place: int) -> Point:
        """The point at a place in the order of a grid: the last dimension varies fastest."""
        positions = []
        for dimension in reversed(self.dimensions):
            place, position = divmod(place, len(dimension.values))
            positions.append(position)
        return tuple(reversed(positions))

    def strategy(self, point: Sequence[int]) -> StrategyConfig:
        """The strategy of a point."""
        chosen: dict[str, Any] = {
            dimension.name: dimension.values[position]
            for dimension, position in zip(self.dimensions, point, strict=True)
        }
        fields = {**vars(self.base), **chosen}
        for name, partner in _PARTNERS:
            # A part without its exit does nothing, and is not given; with it, it has a value.
            fields[name] = None if fields[partner] is None else fields[name] or 0.0
        # The space has checked its ends, and with them every point: a check of each takes longer than its evaluation.
        strategy = object.__new__(StrategyConfig)
        vars(strategy).update(fields)
        return strategy

    def canonical(self) -> dict[str, Any]:
        """The space as JSON values."""
        return {
            "base": canonical_values(self.base),
            "dimensions": {each.name: list(each.values) for each in self.dimensions},
        }


_PARTNERS: Final = (("trail_activation", "trail_distance"), ("breakeven_offset", "breakeven_trigger"))


def _require_partners(values: Mapping[str, Sequence[Value]]) -> None:
    """ConfigError where an exit is given without the one it is a part of, or not below it everywhere."""
    for name, partner in _PARTNERS:
        if any(value is not None for value in values.get(name, ())) and not any(
            value is not None for value in values.get(partner, ())
        ):
            raise ConfigError(f"{name} needs {partner}")
    offsets = [value for value in values.get("breakeven_offset", ()) if isinstance(value, float)]
    triggers = [value for value in values.get("breakeven_trigger", ()) if isinstance(value, float)]
    if offsets and triggers and max(offsets) >= min(triggers):
        raise ConfigError(
            f"breakeven_offset reaches {max(offsets):g} and breakeven_trigger begins at {min(triggers):g}: every "
            "offset must be below every trigger"
        )


def _first(values: Sequence[Value]) -> Value:
    """The first value that is there."""
    return next(value for value in values if value is not None)


def _extremes(values: Sequence[Value]) -> list[int]:
    """Positions of the smallest and the largest number; of ladders, all of them."""
    numbers = [position for position, value in enumerate(values) if isinstance(value, float)]
    if not numbers:
        return list(range(len(values)))
    return [min(numbers, key=lambda each: values[each]), max(numbers, key=lambda each: values[each])]  # type: ignore[arg-type,return-value]
