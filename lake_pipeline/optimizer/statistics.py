"""How much of a result is luck: deflated Sharpe ratio and bootstrap interval. Each with its source.

Sharpe ratios here are those of a trade (mean over standard deviation of the returns), never annualised: so do the
formulas want them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.statistics import mean

__all__ = [
    "BOOTSTRAP_RESAMPLES",
    "NO_VARIANCE",
    "Moments",
    "bootstrap_interval",
    "deflated_sharpe",
    "expected_maximum_sharpe",
    "moments",
    "probabilistic_sharpe",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_NORMAL: Final = NormalDist()
_EULER_GAMMA: Final = 0.5772156649015329
BOOTSTRAP_RESAMPLES: Final = 2000
_CHUNK: Final = 50
# At most this share of the mean square, a variance is what rounding left of equal returns.
NO_VARIANCE: Final = 1e-12


@dataclass(frozen=True)
class Moments:
    """Of returns: how many, Sharpe ratio (standard deviation with n - 1), skewness and kurtosis (3 for the normal)."""

    n: int
    sharpe: float
    skewness: float
    kurtosis: float


def moments(returns: Sequence[float]) -> Moments | None:
    """The moments of returns; None where they have no Sharpe ratio: fewer than two, or all equal but for rounding."""
    average = mean(returns)
    if average is None or len(returns) < 2:
        return None
    n = len(returns)
    second, third, fourth = (math.fsum((value - average) ** power for value in returns) / n for power in (2, 3, 4))
    if second <= NO_VARIANCE * average**2:
        return None
    return Moments(n, average / math.sqrt(second * n / (n - 1)), third / second**1.5, fourth / second**2)


def probabilistic_sharpe(found: Moments, benchmark: float) -> float | None:
    """The probability that the true Sharpe ratio is above `benchmark`, given skewness, kurtosis and number of returns.

    Bailey and López de Prado (2012), The Sharpe Ratio Efficient Frontier:
    Phi((SR - SR*) sqrt(n - 1) / sqrt(1 - skewness SR + (kurtosis - 1) / 4 SR^2)). None where that root has no value.
    """
    sharpe = found.sharpe
    spread = 1 - found.skewness * sharpe + (found.kurtosis - 1) / 4 * sharpe**2
    if spread <= 0:
        return None
    return _NORMAL.cdf((sharpe - benchmark) * math.sqrt(found.n - 1) / math.sqrt(spread))


def expected_maximum_sharpe(variance: float, trials: int) -> float:
    """The highest Sharpe ratio to be expected of this many trials without any edge, whose ratios have this variance.

    Bailey and López de Prado (2014), The Deflated Sharpe Ratio:
    sqrt(V) ((1 - g) Z(1 - 1 / N) + g Z(1 - 1 / (N e))), Z the normal quantile and g Euler's constant. 0 for one trial.
    """
    if trials < 2:
        return 0.0
    first, second = _NORMAL.inv_cdf(1 - 1 / trials), _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * ((1 - _EULER_GAMMA) * first + _EULER_GAMMA * second)


def deflated_sharpe(best: Moments, variance: float, trials: int) -> float | None:
    """The probability that the best of `trials` has a Sharpe ratio above what luck alone would have given the best.

    `variance` is that of the trials' Sharpe ratios. The same paper; None as for `probabilistic_sharpe`.
    """
    return probabilistic_sharpe(best, expected_maximum_sharpe(variance, trials))


def bootstrap_interval(
    returns: Float64Array, cluster: Int64Array, seed: int, *, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile interval of the mean return when whole clusters of alerts are drawn again with replacement.

    `cluster` numbers each return's mint from 0: alerts of one mint share its candles, and are drawn together. None with
    fewer than two clusters.
    """
    known = ~np.isnan(returns)
    _, number = np.unique(cluster[known], return_inverse=True)
    size = int(number.max()) + 1 if len(number) else 0
    if size < 2:
        return None
    sums = np.bincount(number, returns[known], size)
    counts = np.bincount(number, minlength=size).astype(np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(BOOTSTRAP_RESAMPLES)
    for start in range(0, BOOTSTRAP_RESAMPLES, _CHUNK):
        drawn = generator.integers(size, size=(_CHUNK, size))
        means[start : start + _CHUNK] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
