"""Intervals, windows and their arithmetic: which candles one alert asks for.

All times are UTC epoch milliseconds; all windows are half-open, `[start, end)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from lake_pipeline.errors import ConfigError

__all__ = [
    "check_window_span",
    "compute_window_slice",
    "floor_to_interval",
    "interval_to_seconds",
    "merge_windows",
    "parse_window_spec",
]

Int64Array = npt.NDArray[np.int64]

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_INTERVAL = re.compile(r"([0-9]{1,10})([smhd])", re.ASCII)
_WINDOW = re.compile(r"pre([0-9]{1,10})_post([0-9]{1,10})", re.ASCII)
_MAX_INTERVAL_S: Final = 2**31 - 1  # interval_s is an int32 column
_MAX_WINDOW_S: Final = 100 * 366 * 86_400


def interval_to_seconds(interval: str) -> int:
    """Length of a candle in seconds: `1m` is 60, `<n><s|m|h|d>` with n >= 1.

    Raises ConfigError for anything else.
    """
    match = _INTERVAL.fullmatch(interval)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not 1 <= seconds <= _MAX_INTERVAL_S:
        raise ConfigError(
            f"interval {interval!r} is not a candle length: write a number of at least 1 and a unit "
            "(s, m, h or d), such as 1s, 1m, 15m, 4h or 1d"
        )
    return seconds


def parse_window_spec(window: str) -> tuple[int, int]:
    """Candles before and after the anchor: `pre52_post4948` is (52, 4948).

    Raises ConfigError for anything else.
    """
    match = _WINDOW.fullmatch(window)
    if not match:
        raise ConfigError(
            f"window {window!r} is not of the form pre<N>_post<M>, such as pre52_post4948 "
            "(52 candles before the alert's candle, that candle, and 4948 after it)"
        )
    return int(match[1]), int(match[2])


def check_window_span(interval: str, window: str) -> None:
    """Raise ConfigError for a window so long that no market has such a history (over 100 years)."""
    pre, post = parse_window_spec(window)
    if (pre + 1 + post) * interval_to_seconds(interval) > _MAX_WINDOW_S:
        raise ConfigError(
            f"window {window!r} of {interval} candles spans more than 100 years; "
            "give fewer candles or a shorter interval"
        )


def floor_to_interval(ts_ms: int, interval_s: int) -> int:
    """Open time (ms) of the candle that contains `ts_ms`; floors towards the past before 1970 too."""
    interval_ms = interval_s * 1000
    return ts_ms // interval_ms * interval_ms


def compute_window_slice(alert_ts_ms: int, interval_s: int, pre_candles: int, post_candles: int) -> Mapping[str, int]:
    """The window of one alert as `anchor_ts`, `start_ts`, `end_ts` in ms: `[start_ts, end_ts)`.

    It holds `pre_candles` candles before the anchor, the anchor candle and `post_candles` after it.
    """
    interval_ms = interval_s * 1000
    anchor = floor_to_interval(alert_ts_ms, interval_s)
    return {
        "anchor_ts": anchor,
        "start_ts": anchor - pre_candles * interval_ms,
        "end_ts": anchor + (post_candles + 1) * interval_ms,
    }


def merge_windows(
    groups: Int64Array, starts: Int64Array, ends: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Union of windows that overlap or touch, group by group (a group is a mint).

    Takes and returns `(group, start, end)` arrays of equal length; the result is sorted by (group, start)
    and disjoint. All windows of a run have one length, so sorting by start sorts by end as well; input
    where a window contains another with a later start is refused with ValueError.
    """
    order = np.lexsort((ends, starts, groups))
    groups, starts, ends = groups[order], starts[order], ends[order]
    if len(groups) == 0:
        return groups, starts, ends
    same_group = groups[1:] == groups[:-1]
    if np.any(same_group & (ends[1:] < ends[:-1])):
        raise ValueError("merge_windows takes windows whose ends are sorted like their starts")
    opens = np.concatenate(([True], ~same_group | (starts[1:] > ends[:-1])))
    first = np.flatnonzero(opens)
    last = np.concatenate((first[1:], [len(groups)])) - 1
    return groups[first], starts[first], ends[last]
