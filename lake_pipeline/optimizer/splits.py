"""Train and test periods in time, purged by the horizon.

    |------------- train -------------|---- test ----|            fold 1 of 2
                   |------------- train -------------|---- test ----|     fold 2

Folds walk forward: each tests what comes right after what it learned from, moves by one test period, and the last one
ends with the alerts. An alert is

- **train** if `train_from <= entry_ts` and its path's end, `min(entry_ts + horizon, window_end)` up to the close of
  the candle there, is not after `test_from`: no train path reaches into the test period, whatever its exit;
- **purged** if it is entered in the train period and its path reaches further;
- **test** if `test_from <= entry_ts < test_to`. Its path may run on: what follows is not used by this fold.

With `train_days` and `test_days` periods begin and end at UTC midnight, the last at the one after the last entry.
Without them the time from the first entry to the last is cut so that a train period is twice a test period.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.config import check_integer, check_number
from lake_pipeline.errors import ConfigError, InputError

__all__ = ["Fold", "NothingToSplit", "SplitConfig", "make_folds"]

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_MOST_DAYS: Final = 36_600.0
_MOST_FOLDS: Final = 1000


class NothingToSplit(InputError):
    """The alerts, or their paths, leave nothing to train on or nothing to test on."""


@dataclass(frozen=True)
class SplitConfig:
    """Lengths of the periods in days, None for those of the alerts' own span, and how many folds walk forward.

    One length alone gives the other: a train period is twice a test period.
    """

    train_days: float | None = None
    test_days: float | None = None
    folds: int = 1

    def __post_init__(self) -> None:
        check_number(self, "train_days", above=0, most=_MOST_DAYS, optional=True)
        check_number(self, "test_days", above=0, most=_MOST_DAYS, optional=True)
        check_integer(self, "folds", least=1)
        if self.folds > _MOST_FOLDS:
            raise ConfigError(f"folds {self.folds:,} cannot work: it must be at most {_MOST_FOLDS:,}")

    @property
    def fixed(self) -> bool:
        """Whether the lengths were given."""
        return self.train_days is not None or self.test_days is not None


@dataclass(frozen=True)
class Fold:
    """One train and one test period, in epoch ms, each up to the next one's begin, and which alerts are in them."""

    number: int
    train_from: int
    test_from: int
    test_to: int
    train: BoolArray
    test: BoolArray
    purged: int


def make_folds(entry_ts: Int64Array, end_ts: Int64Array, config: SplitConfig) -> tuple[Fold, ...]:
    """The folds of alerts with these entries and path ends (epoch ms), first to last.

    Raises NothingToSplit when a fold has no alert to train on or none to test on, or when the alerts' time is too
    short for the periods.
    """
    first, last = int(entry_ts.min()), int(entry_ts.max())
    if config.fixed:
        test_ms = round((config.test_days or (config.train_days or 0) / 2) * _DAY_MS)
        train_ms = round((config.train_days or 2 * (config.test_days or 0)) * _DAY_MS)
        begin, end = first // _DAY_MS * _DAY_MS, -(-(last + 1) // _DAY_MS) * _DAY_MS
        needed = train_ms + config.folds * test_ms
        if needed > end - begin:
            raise NothingToSplit(
                f"{config.folds} {'fold' if config.folds == 1 else 'folds'} of {train_ms / _DAY_MS:g} days to train "
                f"and {test_ms / _DAY_MS:g} to test take {needed / _DAY_MS:g} days, and the alerts span "
                f"{(end - begin) / _DAY_MS:g}: give shorter periods or fewer folds"
            )
    else:
        # In whole minutes, which read better, rounded so that the first train period begins no later than the alerts.
        unit = _MINUTE_MS if last - first >= (config.folds + 2) * _MINUTE_MS else 1
        end = -(-(last + 1) // unit) * unit
        test_ms = -(-(end - first) // (unit * (config.folds + 2))) * unit
        train_ms = 2 * test_ms
    folds = []
    for number in range(config.folds):
        test_to = end - (config.folds - 1 - number) * test_ms
        test_from = test_to - test_ms
        train_from = test_from - train_ms
        entered = (entry_ts >= train_from) & (entry_ts < test_from)
        train = entered & (end_ts <= test_from)
        test = (entry_ts >= test_from) & (entry_ts < test_to)
        fold = Fold(number + 1, train_from, test_from, test_to, train, test, int((entered & ~train).sum()))
        _require_alerts(fold, config, int(entered.sum()), int((end_ts - entry_ts).max()))
        folds.append(fold)
    return tuple(folds)


def _require_alerts(fold: Fold, config: SplitConfig, entered: int, longest_ms: int) -> None:
    where = f"fold {fold.number} of {config.folds}"
    if not fold.train.any():
        if not entered:
            raise NothingToSplit(f"{where} has no alert in its train period: give longer periods or fewer folds")
        raise NothingToSplit(
            f"{where} has nothing to train on: the paths of all {entered:,} alerts in its train period of "
            f"{(fold.test_from - fold.train_from) / 3_600_000:.3g} hours reach into its test period (they are up to "
            f"{longest_ms / 3_600_000:.3g} hours long). Give a shorter horizon, more days of alerts, or fewer folds"
        )
    if not fold.test.any():
        raise NothingToSplit(f"{where} has no alert in its test period: give longer periods or fewer folds")
