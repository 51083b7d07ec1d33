"""Figures of a trial in a period, the objective made of them, and the gates a trial has to pass.

Over the returns `r` of the period's trades, each as `lake strategy` gives it; null returns are in no figure:

| figure | definition |
| --- | --- |
| `n` | trades |
| `win_rate` | share of r > 0 |
| `mean_ret`, `std_ret` | mean, and standard deviation with n - 1 |
| `sharpe` | `mean_ret / std_ret`, for one trade, not a year; null for equal returns |
| `profit_factor` | sum of gains / sum of losses; null without losses |
| `mean_r` | mean of R = r / (1 - sl); null without `sl` |
| `ambiguous_share` | share of trades whose exit candle reaches take-profit and stop |
| `mean_ret_worst`, `mean_ret_best` | `mean_ret` under the less and the more favourable order in those candles |
| `median_ret` | median, linear interpolation |
| `max_losing_streak` | longest run of r < 0 in the order of exits |
| `final_equity`, `max_drawdown` | of the curve of `backtest.trades`, from 1 at the period's begin; null without `sl` |

The last four need every trade of a trial in the order of exits. With `figures = means` they are null and not computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.config import check_integer, check_number
from lake_pipeline.backtest.kernels import compiled
from lake_pipeline.errors import ConfigError
from lake_pipeline.optimizer.evaluate import Outcomes, Totals
from lake_pipeline.optimizer.statistics import NO_VARIANCE

__all__ = [
    "CURVE_FIGURES",
    "FIGURES",
    "FigureSet",
    "Gates",
    "Objective",
    "check_figures",
    "curve_figures",
    "mean_figures",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

FigureSet = Literal["all", "means"]
_MEAN_FIGURES: Final = (
    "n",
    "win_rate",
    "mean_ret",
    "std_ret",
    "sharpe",
    "profit_factor",
    "mean_r",
    "ambiguous_share",
    "mean_ret_worst",
    "mean_ret_best",
)
CURVE_FIGURES: Final = ("median_ret", "max_losing_streak", "final_equity", "max_drawdown")
FIGURES: Final = (*_MEAN_FIGURES, *CURVE_FIGURES)


def mean_figures(totals: Totals, group: int, sl: Float64Array) -> dict[str, Float64Array]:
    """Those of FIGURES that sums give, of one group: arrays by trial, NaN for null. `sl` is NaN where there is none."""
    n = totals.n[:, group].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = totals.sum_ret[:, group] / n
        square = totals.sum_ret2[:, group]
        variance = (square - mean * totals.sum_ret[:, group]) / (n - 1)
        variance = np.where(variance > NO_VARIANCE * square / n, variance, np.where(n > 1, 0.0, np.nan))
        std = np.sqrt(variance)
        losses = -totals.sum_loss[:, group]
        return {
            "n": n,
            "win_rate": totals.wins[:, group] / n,
            "mean_ret": mean,
            "std_ret": std,
            "sharpe": np.where(std > 0, mean / std, np.nan),
            "profit_factor": np.where(losses > 0, totals.sum_gain[:, group] / losses, np.nan),
            "mean_r": mean / (1 - sl),
            "ambiguous_share": totals.ambiguous[:, group] / n,
            "mean_ret_worst": totals.sum_worst[:, group] / n,
            "mean_ret_best": totals.sum_best[:, group] / n,
        }


def curve_figures(
    outcomes: Outcomes, rows: Int64Array, sl: Float64Array, risk: Float64Array, threads: int
) -> dict[str, Float64Array]:
    """CURVE_FIGURES over these alerts (ascending): arrays by trial, NaN for null. `sl` and `risk` are by trial."""
    found = np.full((len(CURVE_FIGURES), len(outcomes.ret)), np.nan)

    def work(trial: int) -> None:
        ret = outcomes.ret[trial, rows]
        known = np.flatnonzero(~np.isnan(ret))
        if len(known):
            ret = ret[known]
            order = np.argsort(outcomes.exit_ts[trial, rows[known]], kind="stable")
            found[0, trial] = _median(ret)
            found[1:, trial] = _walk(ret[order], 1 - sl[trial], risk[trial])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(len(outcomes.ret))))
    return dict(zip(CURVE_FIGURES, found, strict=True))


def _median(values: Float64Array) -> float:
    """`backtest.statistics.median`, to the last bit."""
    below, above = (len(values) - 1) // 2, len(values) // 2
    parted = np.partition(values, (below, above))
    return float(parted[below] + (len(values) - 1) % 2 / 2 * (parted[above] - parted[below]))


@compiled
def _walk(returns, at_risk, risk):  # type: ignore[no-untyped-def]
    """Longest losing streak, final equity and drawdown of returns in the order of exits; NaN for null."""
    equity, peak, drawdown = 1.0, 1.0, 0.0
    streak, longest = 0, 0
    for value in returns:
        streak = streak + 1 if value < 0 else 0
        longest = max(longest, streak)
        equity *= max(1 + risk * (value / at_risk), 0.0)
        peak = max(peak, equity)
        drawdown = min(drawdown, equity / peak - 1)
    if not np.isfinite(equity):
        return float(longest), np.nan, np.nan
    return float(longest), equity, drawdown


@dataclass(frozen=True)
class Objective:
    """What is made as large as possible: a weighted sum of figures, null where one of them is null."""

    terms: tuple[tuple[str, float], ...] = (("sharpe", 1.0),)

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From `sharpe`, or figures with weights: `mean_ret:1,max_drawdown:0.5`. Raises ConfigError."""
        terms = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, separator, weight = (each.strip() for each in part.partition(":"))
            try:
                terms.append((name, float(weight) if separator else 1.0))
            except ValueError:
                raise ConfigError(f"objective {part!r} is not of the form figure:weight") from None
        return cls(tuple(terms))

    def __post_init__(self) -> None:
        names = [name for name, _ in self.terms]
        unknown = [name for name in names if name not in FIGURES]
        if unknown or not names:
            raise ConfigError(
                f"objective {', '.join(unknown) or 'of nothing'!s} is not known: it is one of {', '.join(FIGURES)}, or "
                "several with weights, such as mean_ret:1,max_drawdown:0.5"
            )
        if len(set(names)) < len(names):
            raise ConfigError("objective names a figure twice: give each one weight")
        if not all(math.isfinite(weight) and weight != 0 for _, weight in self.terms):
            raise ConfigError("objective weights are finite numbers other than 0")

    @property
    def name(self) -> str:
        """As it is written."""
        if len(self.terms) == 1 and self.terms[0][1] == 1:
            return self.terms[0][0]
        return ",".join(f"{name}:{weight:g}" for name, weight in self.terms)

    def of(self, figures: Mapping[str, Float64Array]) -> Float64Array:
        """The objective of each trial, NaN for null."""
        total = np.zeros_like(next(iter(figures.values())))
        for name, weight in self.terms:
            total = total + weight * figures[name]
        # Weights can make an infinity of finite figures.
        return np.where(np.isfinite(total), total, np.nan)


@dataclass(frozen=True)
class Gates:
    """What a trial must have in the train period to be chosen at all; None for no such gate.

    `max_drawdown` is the deepest one allowed, as a fraction (0.3); `min_hit_rate` the least `win_rate`. A figure that
    is null does not pass.
    """

    min_trades: int = 10
    min_hit_rate: float | None = None
    max_drawdown: float | None = None

    @classmethod
    def parse(cls, text: str) -> Gates:
        """From `min_trades=30,min_hit_rate=0.3,max_drawdown=0.5`. Raises ConfigError."""
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, separator, value = (each.strip() for each in part.partition("="))
            if not separator or name not in cls.__dataclass_fields__:
                raise ConfigError(
                    f"gate {part!r} is not known: gates are min_trades=N, min_hit_rate=F and max_drawdown=F"
                )
            try:
                given[name] = int(value) if name == "min_trades" else float(value)
            except ValueError:
                raise ConfigError(f"gate {part!r}: {value!r} is not a number") from None
        return cls(**given)

    def __post_init__(self) -> None:
        check_integer(self, "min_trades", least=1)
        check_number(self, "min_hit_rate", least=0, most=1, optional=True)
        check_number(self, "max_drawdown", least=0, most=1, optional=True)

    def failed(self, figures: Mapping[str, Float64Array]) -> npt.NDArray[np.object_]:
        """For each trial the names of the gates it fails, separated by commas; empty where it passes all."""
        failures = {"min_trades": ~(figures["n"] >= self.min_trades)}
        if self.min_hit_rate is not None:
            failures["min_hit_rate"] = ~(figures["win_rate"] >= self.min_hit_rate)
        if self.max_drawdown is not None:
            failures["max_drawdown"] = ~(figures["max_drawdown"] >= -self.max_drawdown)
        found = np.full(len(figures["n"]), "", np.object_)
        for name, fails in failures.items():
            for trial in np.flatnonzero(fails).tolist():
                found[trial] = f"{found[trial]},{name}".lstrip(",")
        return found


def check_figures(figures: str, objective: Objective, gates: Gates) -> None:
    """ConfigError where the objective or a gate needs figures that are not computed."""
    if figures not in get_args(FigureSet):
        raise ConfigError(f"figures {figures!r} is not one of {', '.join(get_args(FigureSet))}")
    needed = [name for name, _ in objective.terms if name in CURVE_FIGURES]
    needed += ["max_drawdown"] if gates.max_drawdown is not None else []
    if figures == "means" and needed:
        raise ConfigError(f"{', '.join(dict.fromkeys(needed))} needs every trade: figures is to be all, not means")
