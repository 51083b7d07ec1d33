"""The compiled loops of the backtest, and nothing else.

All of them are in one module because numba's disk cache looks at the file of the function it compiled only, not at
those it calls. Nothing is rounded in another order than it is written (no fastmath, no parallel reductions), so a
result is the same on every machine. They hold no lock of the interpreter, so threads run them side by side.

Prices are float64, positive and finite as in every sealed run; times are int64 epoch milliseconds. A path is rows
`start:stop` of a block's candle columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np

__all__ = [
    "FLOAT_METRICS",
    "INTEGER_METRICS",
    "LEVELS",
    "REASONS",
    "SCAN_FLOATS",
    "compiled",
    "locate",
    "measure",
    "scan",
]


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile at the first call; kept on disk beside this file or in the user's cache, if either can be written."""
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True, **options)(function)


# Most candles change nothing: they make no new high and touch no level. So paths are walked in chunks, and a chunk is
# looked at candle by candle only if its highest high says so.
_CHUNK: Final = 64


def _top_and_bottom(high, low, start, stop):  # type: ignore[no-untyped-def]
    """Highest high and lowest low of the rows `start:stop`, at least one."""
    top, bottom = high[start], low[start]
    for j in range(start + 1, stop):
        top = max(top, high[j])
        bottom = min(bottom, low[j])
    return top, bottom


# That there is no NaN and no zero among prices is all that the compiler needs to know to take eight candles at once.
# A maximum is exact in any order, so this changes no result.
_extremes = compiled(_top_and_bottom, fastmath={"nnan", "nsz"})


@compiled
def _first_at_or_after(ts, low, high, wanted):  # type: ignore[no-untyped-def]
    while low < high:
        middle = (low + high) // 2
        if ts[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def locate(ts, first, last, begin, end, starts, stops):  # type: ignore[no-untyped-def]
    """Fill `starts` and `stops`: the rows with `begin <= ts < end` in the sorted rows `first:last` of each path."""
    for i in range(len(first)):
        starts[i] = _first_at_or_after(ts, first[i], last[i], begin[i])
        stops[i] = _first_at_or_after(ts, starts[i], last[i], end[i])


@compiled
def _counts(volume, close, entry):  # type: ignore[no-untyped-def]
    """Candles with volume 0, and those that close below entry. A loop of its own, over slices: so it is vectorised."""
    zero_volume, underwater = np.int64(0), np.int64(0)
    for j in range(len(volume)):
        zero_volume += np.int64(volume[j] == 0)
        underwater += np.int64(close[j] < entry)
    return zero_volume, underwater


# Multiples of the entry price whose first candle is looked for, ascending.
LEVELS: Final = (1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0)
_LEVELS: Final = np.array(LEVELS)
_LEVEL_2X: Final = LEVELS.index(2.0)

# Columns of `measure`'s two outputs. Times are ms after entry_ts; -1 is null there, NaN among the floats.
INTEGER_METRICS: Final = ("zero_volume_candles", "time_to_ath", *(f"time_to_{level:g}x" for level in LEVELS))
FLOAT_METRICS: Final = (
    "ath",
    "volume_backed_ath",
    "last_close",
    "min_low",
    "min_low_initial",
    "min_low_initial_worst",
    "min_low_pre2x",
    "min_low_after_ath",
    "underwater_candles",
    *(f"min_low_after_{level:g}x" for level in LEVELS),
)
_AFTER: Final = FLOAT_METRICS.index("min_low_after_1.2x")


@compiled
def measure(ts, open_, high, low, close, volume, rows, starts, stops, entry_ts, integers, floats):  # type: ignore[no-untyped-def]
    """One pass over each path: prices and times as found, unscaled, into row `rows[i]` of the two outputs.

    Lows are gathered in segments between the first candles of two neighbouring levels: the minimum after a level
    is that over its own and all later segments, so each candle costs one comparison, not one a level.
    """
    levels = len(_LEVELS)
    segments = np.empty(levels + 1)
    targets = np.empty(levels + 1)
    for i in range(len(rows)):
        start, stop, row = starts[i], stops[i], rows[i]
        for k in range(integers.shape[1]):
            integers[row, k] = -1
        for k in range(floats.shape[1]):
            floats[row, k] = np.nan
        if start == stop:
            continue
        entry = open_[start]
        for k in range(levels):
            targets[k] = _LEVELS[k] * entry
            segments[k] = np.inf
        targets[levels] = np.inf
        segments[levels] = np.inf
        initial, initial_worst = np.inf, np.inf
        for j in range(start, stop):
            initial_worst = min(initial_worst, low[j])
            if high[j] > entry:
                break
            initial = initial_worst
        zero_volume, underwater = _counts(volume[start:stop], close[start:stop], entry)
        reached = 0
        ath, ath_ts, after_ath = -np.inf, ts[start], np.inf
        backed = -np.inf
        for chunk in range(start, stop, _CHUNK):
            chunk_end = min(chunk + _CHUNK, stop)
            top, bottom = _extremes(high, low, chunk, chunk_end)
            # No new high, and so no new level either: `ath` is below the next one.
            if top <= ath and top <= backed:
                segments[reached] = min(segments[reached], bottom)
                after_ath = min(after_ath, bottom)
                continue
            for j in range(chunk, chunk_end):
                candle_high, candle_low = high[j], low[j]
                segments[reached] = min(segments[reached], candle_low)
                while candle_high >= targets[reached] and reached < levels:
                    integers[row, 2 + reached] = ts[j] - entry_ts[row]
                    reached += 1
                if candle_high > ath:
                    ath, ath_ts, after_ath = candle_high, ts[j], np.inf
                else:
                    after_ath = min(after_ath, candle_low)
                if candle_high > backed and volume[j] > 0:
                    backed = candle_high
        integers[row, 0] = zero_volume
        integers[row, 1] = ath_ts - entry_ts[row]
        floats[row, 0] = ath
        if backed > -np.inf:
            floats[row, 1] = backed
        floats[row, 2] = close[stop - 1]
        floats[row, 3] = np.min(segments)
        if initial < np.inf:
            floats[row, 4] = initial
        floats[row, 5] = initial_worst
        if reached > _LEVEL_2X:
            floats[row, 6] = np.min(segments[: _LEVEL_2X + 1])
        if after_ath < np.inf:
            floats[row, 7] = after_ath
        floats[row, 8] = underwater
        smallest = np.inf
        for k in range(levels - 1, -1, -1):
            smallest = min(smallest, segments[k + 1])
            if reached > k and smallest < np.inf:
                floats[row, _AFTER + k] = smallest


# Exit reasons, as codes of `scan`: positions in REASONS.
REASONS: Final = ("tp", "sl", "trail", "breakeven", "tier", "time", "horizon")
TP, SL, TRAIL, BREAKEVEN, TIER, TIME, HORIZON = range(len(REASONS))

# Rows of `scan`'s float output.
SCAN_FLOATS: Final = ("exit_price", "ret", "ret_worst", "ret_best", "mae", "mfe")


@compiled
def _stop_after(peak, entry, sl, trail_from, trail_keep, breakeven_from, breakeven_stop, tiers):  # type: ignore[no-untyped-def]
    """The effective stop once the highest high so far is `peak`, and its reason; the first of equals in code order."""
    stop, reason = sl * entry, SL
    if peak >= entry * trail_from and peak * trail_keep > stop:
        stop, reason = peak * trail_keep, TRAIL
    if peak >= entry * breakeven_from and entry * breakeven_stop > stop:
        stop, reason = entry * breakeven_stop, BREAKEVEN
    for k in range(len(tiers)):
        if peak >= entry * tiers[k, 0] and entry * tiers[k, 1] > stop:
            stop, reason = entry * tiers[k, 1], TIER
    return stop, reason


@compiled
def scan(  # type: ignore[no-untyped-def]
    ts, open_, high, low, close, rows, starts, stops, entry_ts, tradable,
    tp, sl, time_stop_ms, trail_from, trail_keep, breakeven_from, breakeven_stop, tiers,
    tp_first, gap, sell, buy,
    reasons, ambiguous, exit_ts, floats,
):  # fmt: skip
    """Walk each tradable path to its exit and fill place `rows[i]` of the outputs; the rules are in `exits`.

    What is not used is infinite (`tp`, `trail_from`, `breakeven_from`), 0 (`sl`), -1 (`time_stop_ms`) or empty.
    """
    moving = trail_from < np.inf or breakeven_from < np.inf or len(tiers) > 0
    for i in range(len(rows)):
        start, stop_row, row = starts[i], stops[i], rows[i]
        if not tradable[row]:
            continue
        end = stop_row
        if time_stop_ms >= 0:
            end = _first_at_or_after(ts, start, stop_row, entry_ts[row] + time_stop_ms)
        entry = open_[start]
        target = entry * tp
        # Before the first candle there is no peak: nothing but the plain stop is active in the entry candle.
        stop, stop_reason = sl * entry, SL
        peak, trough = -np.inf, np.inf
        j = start
        hit = False
        while j < end and not hit:
            chunk_end = min(j + _CHUNK, end)
            top, bottom = _extremes(high, low, j, chunk_end)
            if top <= peak and top < target and bottom > stop:
                trough = min(trough, bottom)
                j = chunk_end
                continue
            while j < chunk_end:
                candle_high, candle_low = high[j], low[j]
                hit = candle_low <= stop or candle_high >= target
                trough = min(trough, candle_low)
                peak_before, peak = peak, max(peak, candle_high)
                if hit:
                    break
                if moving and peak > peak_before:
                    stop, stop_reason = _stop_after(
                        peak, entry, sl, trail_from, trail_keep, breakeven_from, breakeven_stop, tiers
                    )
                j += 1
        if hit:
            stopped, taken = low[j] <= stop, high[j] >= target
            stop_price = min(stop, open_[j]) if gap else stop
            both = stopped and taken
            if taken and (tp_first or not stopped):
                price, reason = target, TP
            else:
                price, reason = stop_price, stop_reason
        elif end < stop_row:
            # The open is the first thing that happens in a candle, and the last that this position sees.
            both, price, reason = False, open_[j], TIME
            peak, trough = max(peak, price), min(trough, price)
        else:
            j -= 1
            both, price, reason = False, close[j], HORIZON
        value = price * sell / (entry * buy) - 1
        worst, best = value, value
        if both:
            if_stopped, if_taken = stop_price * sell / (entry * buy) - 1, target * sell / (entry * buy) - 1
            worst, best = min(if_stopped, if_taken), max(if_stopped, if_taken)
        reasons[row] = reason
        ambiguous[row] = both
        exit_ts[row] = ts[j]
        floats[0, row] = price
        floats[1, row] = value
        floats[2, row] = worst
        floats[3, row] = best
        floats[4, row] = trough / entry - 1
        floats[5, row] = peak / entry - 1
