"""The compiled loops of the optimizer, and nothing else.

All of them are in one module for the reason given in `backtest.kernels`, and like those they round nothing in another
order than it is written, so a result is the same on every machine, and hold no lock of the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np

__all__ = ["COUNTS", "SUMS", "TILE", "add_up"]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call; kept on disk beside this file or in the user's cache, if either can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True)(function)


# Figures of a group of trades, in this order in the kernels' outputs.
COUNTS: Final = ("n", "wins", "losses", "ambiguous")
SUMS: Final = ("sum_ret", "sum_ret2", "sum_gain", "sum_loss", "sum_worst", "sum_best")

# The order of summation: trades in tiles, the trades of a tile dealt to lanes, the lanes folded in halves. So a
# processor can add several trades at once, and the sums are those of one written order.
TILE: Final = 512
_LANES: Final = 32


@_compiled
def _fold(lanes, totals):  # type: ignore[no-untyped-def]
    """Add the lanes of each figure up, in halves, and to its total."""
    for figure in range(len(lanes)):
        half = _LANES // 2
        while half > 0:
            for lane in range(half):
                lanes[figure, lane] += lanes[figure, lane + half]
            half //= 2
        totals[figure] += lanes[figure, 0]


@_compiled
def add_up(ret, ret_worst, ret_best, ambiguous, rows, counts, sums):  # type: ignore[no-untyped-def]
    """Add the trades in `rows` of one trial to its COUNTS and SUMS; a figure that is not finite is left out."""
    count_lanes = np.zeros((len(COUNTS), _LANES), np.int64)
    sum_lanes = np.zeros((len(SUMS), _LANES))
    for tile in range(0, len(rows), TILE):
        count_lanes[:] = 0
        sum_lanes[:] = 0.0
        for place in range(tile, min(tile + TILE, len(rows))):
            row, lane = rows[place], place % _LANES
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
