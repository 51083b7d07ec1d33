"""The compiled loops of the optimizer, and nothing else.

All of them are in one module for the reason given in `backtest.kernels`, which is also why what those have is written
here again. Like those they round nothing in another order than it is written, so a result is the same on every machine,
and hold no lock of the interpreter.

**Records.** Of a path only those candles can be a first passage that set a new extreme:

- a *high record*: its high is above those of all earlier candles. The first candle is one.
- a *low record*: its low is below those of all earlier candles. The first candle is one.
- a *leg* is what follows a high record, up to and with the next one: the highest high of earlier candles, and with it
  every stop that moves, is the same in all its candles. Its *dips* are the low records inside it, counted anew.

**Columns.** A column holds for each alert of a tile where one side of a strategy would leave, and what that returns.
`when` orders events of one path: 4 * (ts - entry_ts), plus 0 for a time stop, which comes before all else in its
candle, 1 for a level, 2 for the end of the path. A take-profit that is never reached is `NEVER`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lake_pipeline.backtest.kernels import compiled

__all__ = [
    "BLOCK",
    "COUNTS",
    "LANES",
    "NEVER",
    "SUMS",
    "TILE",
    "add_up",
    "count_tile",
    "find_blocks",
    "find_moving_stops",
    "find_records",
    "find_stops",
    "find_targets",
    "find_times",
    "stop_in_time",
    "trade_tile",
]

# Figures of a group of trades, in this order in the kernels' outputs.
COUNTS: Final = ("n", "wins", "losses", "ambiguous")
SUMS: Final = ("sum_ret", "sum_ret2", "sum_gain", "sum_loss", "sum_worst", "sum_best")

# The order of summation: trades in tiles, the trades of a tile dealt to lanes, the lanes folded in halves. So a
# processor can add several trades at once, and the sums are those of one written order.
TILE: Final = 512
LANES: Final = 32

NEVER: Final = 2**62
_LEVEL: Final = 1
_END: Final = 2

_CHUNK: Final = 64
# Legs are passed over in blocks of so many where no leg of a block can hold the exit. That takes a quotient for a
# product, each rounded once: what is above by more than both roundings is above for certain.
BLOCK: Final = 8
_ABOVE: Final = 1 + 4 * float(np.finfo(np.float64).eps)
_TINY: Final = 1e-290


def _top_and_bottom(high, low, start, stop):  # type: ignore[no-untyped-def]
    top, bottom = high[start], low[start]
    for j in range(start + 1, stop):
        top = max(top, high[j])
        bottom = min(bottom, low[j])
    return top, bottom


# Exact in any order, as in `backtest.kernels`.
_extremes = compiled(_top_and_bottom, fastmath={"nnan", "nsz"})


@compiled
def find_records(  # type: ignore[no-untyped-def]
    ts, open_, high, low, starts, stops, ends,
    high_ts, high_value, leg_end, leg_low, low_ts, low_value, low_open, dip_ts, dip_value, dip_open,
):  # fmt: skip
    """Fill the arrays of records of some paths, one path after another; those without a candle have none.

    `ends[:, i]` are the numbers of high records, low records and dips up to and with path i. `leg_end` is the number of
    dips up to and with the leg after a high record, `leg_low` its lowest low, NaN where no candle follows.
    """
    highs, lows, dips = 0, 0, 0
    for i in range(len(starts)):
        peak, bottom, dip = -np.inf, np.inf, np.inf
        chunk = starts[i]
        while chunk < stops[i]:
            chunk_end = min(chunk + _CHUNK, stops[i])
            top, trough = _extremes(high, low, chunk, chunk_end)
            if top > peak or trough < dip or chunk == starts[i]:
                for j in range(chunk, chunk_end):
                    # The candle's low belongs to the leg before its high.
                    if low[j] < dip and j > starts[i]:
                        dip_ts[dips], dip_value[dips], dip_open[dips] = ts[j], low[j], open_[j]
                        dip = low[j]
                        dips += 1
                    if low[j] < bottom or j == starts[i]:
                        low_ts[lows], low_value[lows], low_open[lows] = ts[j], low[j], open_[j]
                        bottom = low[j]
                        lows += 1
                    if high[j] > peak or j == starts[i]:
                        if j > starts[i]:
                            leg_end[highs - 1], leg_low[highs - 1] = dips, dip if dip < np.inf else np.nan
                        high_ts[highs], high_value[highs] = ts[j], high[j]
                        peak, dip = high[j], np.inf
                        highs += 1
            chunk = chunk_end
        if stops[i] > starts[i]:
            leg_end[highs - 1], leg_low[highs - 1] = dips, dip if dip < np.inf else np.nan
        ends[0, i], ends[1, i], ends[2, i] = highs, lows, dips


@compiled
def find_blocks(levels, legs):  # type: ignore[no-untyped-def]
    """Fill the blocks of legs: their lowest low, and the least share of its peak that a leg's lowest low is."""
    for row in range(len(levels.high_first)):
        for leg in range(levels.high_first[row], levels.high_last[row]):
            number = leg - levels.high_first[row]
            block, low = legs.block_first[row] + number // BLOCK, legs.leg_low[leg]
            if number % BLOCK == 0:
                legs.block_low[block] = legs.block_kept[block] = np.inf
            if low < np.inf:
                # Products that small are not rounded to 53 bits, so nothing is concluded from the share.
                kept = low / levels.high_value[leg] if low > _TINY else 0.0
                legs.block_low[block] = min(legs.block_low[block], low)
                legs.block_kept[block] = min(legs.block_kept[block], kept)


@compiled
def find_targets(  # type: ignore[no-untyped-def]
    rows, traded, entry_ts, levels,
    multiples, sells, buys,
    when, ret,
):  # fmt: skip
    """Columns of take-profits, (multiples, rows): `multiples` of the entry price ascending, infinite for none."""
    for i in range(len(rows)):
        row = rows[i]
        if not traded[row]:
            when[:, i], ret[:, i] = NEVER, np.nan
            continue
        record, end = levels.high_first[row], levels.high_last[row]
        for column in range(len(multiples)):
            target = levels.entry[row] * multiples[column]
            while record < end and not levels.high_value[record] >= target:
                record += 1
            when[column, i] = NEVER if record == end else 4 * (levels.high_ts[record] - entry_ts[row]) + _LEVEL
            ret[column, i] = target * sells[column] / (levels.entry[row] * buys[column]) - 1


@compiled
def find_stops(  # type: ignore[no-untyped-def]
    rows, traded, entry_ts, levels,
    multiples, gaps, sells, buys,
    when, ret,
):  # fmt: skip
    """Columns of stops that stand, (multiples, rows): `multiples` of the entry price descending, 0 for none."""
    for i in range(len(rows)):
        row = rows[i]
        if not traded[row]:
            when[:, i], ret[:, i] = 0, np.nan
            continue
        record, end = levels.low_first[row], levels.low_last[row]
        for column in range(len(multiples)):
            stop = multiples[column] * levels.entry[row]
            while record < end and not levels.low_value[record] <= stop:
                record += 1
            if record == end:
                when[column, i] = 4 * (levels.last_ts[row] - entry_ts[row]) + _END
                price = levels.last_close[row]
            else:
                when[column, i] = 4 * (levels.low_ts[record] - entry_ts[row]) + _LEVEL
                price = min(stop, levels.low_open[record]) if gaps[column] else stop
            ret[column, i] = price * sells[column] / (levels.entry[row] * buys[column]) - 1


@compiled
def find_moving_stops(  # type: ignore[no-untyped-def]
    rows, traded, entry_ts, levels, legs,
    plain, trails, step_first, steps, gaps, sells, buys,
    when, ret,
):  # fmt: skip
    """Columns of stops that rise with the peak. Columns (len(plain), rows).

    `plain` is the multiple of the stop that is always active (0 for none), `trails` (n, 2) from which multiple a stop
    trails (infinite for never) and what it keeps of the peak, `steps` (m, 2) multiple reached and multiple of the stop;
    those of column c are `step_first[c]:step_first[c + 1]`.
    """
    for i in range(len(rows)):
        row = rows[i]
        if not traded[row]:
            when[:, i], ret[:, i] = 0, np.nan
            continue
        price_in, start = levels.entry[row], levels.low_first[row]
        for column in range(len(plain)):
            trail_from, trail_keep = price_in * trails[column, 0], trails[column, 1]
            # What stands until the peak comes to `armed`, where more stops become active.
            fixed, keep, armed = plain[column] * price_in, 0.0, -np.inf
            found, stop, open_in, found_ts = False, fixed, 0.0, levels.last_ts[row]
            # Nothing but the plain stop is active in the first candle, which is the first low record.
            if levels.low_value[start] <= fixed:
                found, open_in, found_ts = True, levels.low_open[start], levels.low_ts[start]
            first, last = levels.high_first[row], levels.high_last[row]
            leg, keep_above = first, 0.0
            while leg < last and not found:
                if (leg - first) % BLOCK == 0:
                    block, block_end = legs.block_first[row] + (leg - first) // BLOCK, min(leg + BLOCK, last)
                    if (
                        levels.high_value[block_end - 1] < armed
                        and legs.block_low[block] > fixed
                        and legs.block_kept[block] > keep_above
                    ):
                        leg = block_end
                        continue
                peak = levels.high_value[leg]
                if peak >= armed:
                    armed = np.inf
                    if peak >= trail_from:
                        keep, keep_above = trail_keep, trail_keep * _ABOVE
                    else:
                        armed = trail_from
                    for step in range(step_first[column], step_first[column + 1]):
                        reached = price_in * steps[step, 0]
                        if peak >= reached:
                            fixed = max(fixed, price_in * steps[step, 1])
                        else:
                            armed = min(armed, reached)
                stop = fixed
                if peak * keep > stop:
                    stop = peak * keep
                if legs.leg_low[leg] <= stop:
                    low = legs.leg_end[leg - 1] if leg > first else legs.dip_first[row]
                    high = legs.leg_end[leg] - 1
                    while low < high:
                        middle = (low + high) // 2
                        if legs.dip_value[middle] <= stop:
                            high = middle
                        else:
                            low = middle + 1
                    found, open_in, found_ts = True, legs.dip_open[low], legs.dip_ts[low]
                leg += 1
            if found:
                when[column, i] = 4 * (found_ts - entry_ts[row]) + _LEVEL
                price = min(stop, open_in) if gaps[column] else stop
            else:
                when[column, i] = 4 * (found_ts - entry_ts[row]) + _END
                price = levels.last_close[row]
            ret[column, i] = price * sells[column] / (price_in * buys[column]) - 1


@compiled
def find_times(  # type: ignore[no-untyped-def]
    ts, open_, block_rows, starts, stops, entry_ts, interval_ms, due,
    when, price,
):  # fmt: skip
    """Where time stops, `due` ms after entry, leave the paths of a block: columns (times, alerts) of the whole run.

    `NEVER` where the path ends before. Candles are sorted, and mostly an interval apart.
    """
    for i in range(len(block_rows)):
        row, start, stop = block_rows[i], starts[i], stops[i]
        for column in range(len(due)):
            wanted = entry_ts[row] + due[column]
            low, high = start, stop
            if low < high and ts[start] < wanted:
                # Without gaps it is there; with some it is before.
                guess = start + (wanted - ts[start] + interval_ms - 1) // interval_ms
                step = np.int64(1)
                if guess < stop and ts[guess] >= wanted:
                    high = guess
                    while high - step >= start and ts[high - step] >= wanted:
                        high -= step
                        step *= 2
                    low = max(start, high - step)
                elif guess < stop:
                    low = guess
            while low < high:
                middle = (low + high) // 2
                if ts[middle] < wanted:
                    low = middle + 1
                else:
                    high = middle
            when[column, row] = NEVER
            if low < stop:
                when[column, row] = 4 * (ts[low] - entry_ts[row])
                price[column, row] = open_[low]


@compiled
def stop_in_time(  # type: ignore[no-untyped-def]
    rows, traded, levels,
    base_when, base_ret, bases, time_when, time_price, times, sells, buys,
    when, ret,
):  # fmt: skip
    """Columns of stops that a time stop may come before: column c is base `bases[c]` or time `times[c]`."""
    for column in range(len(bases)):
        base, time = bases[column], times[column]
        for i in range(len(rows)):
            row = rows[i]
            if traded[row] and time_when[time, row] < base_when[base, i]:
                when[column, i] = time_when[time, row]
                ret[column, i] = time_price[time, row] * sells[column] / (levels.entry[row] * buys[column]) - 1
            else:
                when[column, i] = base_when[base, i]
                ret[column, i] = base_ret[base, i]


@compiled
def trade_tile(  # type: ignore[no-untyped-def]
    rows, traded, entry_ts, stop_when, stop_ret, target_when, target_ret,
    stop_of, target_of, target_first, trials,
    ret, ret_worst, ret_best, ambiguous, exit_ts,
):  # fmt: skip
    """Every trade of some trials: rows `trials` and columns `rows` of the outputs."""
    for number in range(len(trials)):
        trial, first = trials[number], np.int64(not target_first[number])
        stop, target = stop_of[number], target_of[number]
        for i in range(len(rows)):
            row = rows[i]
            stopped, taken = stop_when[stop, i], target_when[target, i]
            if_stopped, if_taken = stop_ret[stop, i], target_ret[target, i]
            chosen = if_stopped if stopped < taken + first else if_taken
            both = stopped == taken
            worst, best = chosen, chosen
            if both:
                worst, best = min(if_stopped, if_taken), max(if_stopped, if_taken)
            ambiguous[trial, row] = both
            ret[trial, row] = chosen if abs(chosen) < np.inf else np.nan
            ret_worst[trial, row] = worst if abs(worst) < np.inf else np.nan
            ret_best[trial, row] = best if abs(best) < np.inf else np.nan
            exit_ts[trial, row] = entry_ts[row] + (min(stopped, taken) >> 2) if traded[row] else -1


@compiled
def _fold(lanes, totals):  # type: ignore[no-untyped-def]
    """Add the lanes of each figure up, in halves, and to its total."""
    for figure in range(len(lanes)):
        half = LANES // 2
        while half > 0:
            for lane in range(half):
                lanes[figure, lane] += lanes[figure, lane + half]
            half //= 2
        totals[figure] += lanes[figure, 0]


@compiled
def count_tile(  # type: ignore[no-untyped-def]
    stop_when, stop_ret, target_when, target_ret,
    stop_of, target_of, target_first, size,
    counts, sums,
):  # fmt: skip
    """COUNTS and SUMS (trials, figures) of one tile of `size` trades.

    Columns go on to a whole number of lanes; what is beyond `size` returns 0 and is not counted.
    """
    width = -(-size // LANES) * LANES
    count_lanes = np.empty((len(COUNTS), LANES), np.int64)
    sum_lanes = np.empty((len(SUMS), LANES))
    for trial in range(len(stop_of)):
        first = np.int64(not target_first[trial])
        stop, target = stop_of[trial], target_of[trial]
        count_lanes[:] = 0
        sum_lanes[:] = 0.0
        for start in range(0, width, LANES):
            for lane in range(LANES):
                stopped, taken = stop_when[stop, start + lane], target_when[target, start + lane]
                if_stopped, if_taken = stop_ret[stop, start + lane], target_ret[target, start + lane]
                chosen = if_stopped if stopped < taken + first else if_taken
                both = stopped == taken
                worst = min(if_stopped, if_taken) if both else chosen
                best = max(if_stopped, if_taken) if both else chosen
                finite = abs(chosen) < np.inf
                value = chosen if finite else 0.0
                count_lanes[0, lane] += finite
                count_lanes[1, lane] += value > 0
                count_lanes[2, lane] += value < 0
                count_lanes[3, lane] += both
                sum_lanes[0, lane] += value
                sum_lanes[1, lane] += value * value
                sum_lanes[2, lane] += max(value, 0.0)
                sum_lanes[3, lane] += min(value, 0.0)
                sum_lanes[4, lane] += worst if abs(worst) < np.inf else 0.0
                sum_lanes[5, lane] += best if abs(best) < np.inf else 0.0
        _fold(count_lanes, counts[trial])
        _fold(sum_lanes, sums[trial])
        counts[trial, 0] -= width - size


@compiled
def add_up(ret, ret_worst, ret_best, ambiguous, rows, counts, sums):  # type: ignore[no-untyped-def]
    """The same of trades that are there already: add those in `rows` to COUNTS and SUMS, tile by tile."""
    count_lanes = np.empty((len(COUNTS), LANES), np.int64)
    sum_lanes = np.empty((len(SUMS), LANES))
    for tile in range(0, len(rows), TILE):
        count_lanes[:] = 0
        sum_lanes[:] = 0.0
        for place in range(tile, min(tile + TILE, len(rows))):
            row, lane = rows[place], place % LANES
            value = ret[row]
            if abs(value) < np.inf:
                count_lanes[0, lane] += 1
                count_lanes[1, lane] += value > 0
                count_lanes[2, lane] += value < 0
                sum_lanes[0, lane] += value
                sum_lanes[1, lane] += value * value
                sum_lanes[2, lane] += max(value, 0.0)
                sum_lanes[3, lane] += min(value, 0.0)
            count_lanes[3, lane] += ambiguous[row]
            if abs(ret_worst[row]) < np.inf:
                sum_lanes[4, lane] += ret_worst[row]
            if abs(ret_best[row]) < np.inf:
                sum_lanes[5, lane] += ret_best[row]
        _fold(count_lanes, counts)
        _fold(sum_lanes, sums)
