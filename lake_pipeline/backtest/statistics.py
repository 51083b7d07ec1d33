"""The few statistics of the tables, each defined once.

Sums are exactly rounded (`math.fsum`), so the order of rows and the machine do not show in a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["longest_run", "mean", "median", "profit_factor", "quantile"]


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def quantile(values: Sequence[float], q: float) -> float | None:
    """Linear interpolation: with h = (n - 1) * q, x[floor(h)] + (h - floor(h)) * (x[floor(h) + 1] - x[floor(h)]).

    x are the sorted values. None of nothing. It is numpy's method `linear` and Excel's PERCENTILE.INC.
    """
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * q
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float | None:
    """The quantile at one half."""
    return quantile(values, 0.5)


def profit_factor(returns: Sequence[float]) -> float | None:
    """Sum of gains over sum of losses; None where there is no loss, as then it has no value."""
    losses = -math.fsum(value for value in returns if value < 0)
    return math.fsum(value for value in returns if value > 0) / losses if losses > 0 else None


def longest_run(flags: Sequence[bool]) -> int:
    """Length of the longest run of true values."""
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest
