"""The records of paths: the few candles in which a level can be passed first, found once and cached.

What records are and why they are enough is said in `passage`. The cache keeps those of a bucket in one file, under the
rules of cached paths (`backtest.words`); with it a run is evaluated again without its slices or paths being read:

    <data_root>/results/run_id=<id>/records=<key>/   cache.json  <bucket>.records
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.baseline import Entries
from lake_pipeline.backtest.paths import PathBlock, Paths, each
from lake_pipeline.backtest.words import HEAD, CacheFiles, CacheStyle
from lake_pipeline.io.store import Store
from lake_pipeline.optimizer.passage import BLOCK, find_blocks, find_records

__all__ = ["CACHE_KIND", "Legs", "Levels", "Records", "cache_problem", "load_records", "records_cached"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class Levels(NamedTuple):
    """What says when a level is passed first: arrays by alert, in the order of the alerts, and arrays of records.

    An alert's high records are `high_first:high_last` of `high_ts` and `high_value`, its low records likewise. Times
    are epoch ms. An alert without a candle has no record and times -1. A tuple, as compiled loops take one.
    """

    last_ts: Int64Array
    entry: Float64Array
    last_close: Float64Array
    high_first: Int64Array
    high_last: Int64Array
    low_first: Int64Array
    low_last: Int64Array
    high_ts: Int64Array
    high_value: Float64Array
    low_ts: Int64Array
    low_value: Float64Array
    low_open: Float64Array


class Legs(NamedTuple):
    """What says when a stop that moves is passed first: of each high record the leg after it (`passage`).

    `leg_end` and `leg_low` go with the high records, `dip_first` and `block_first` with the alerts.
    """

    dip_first: Int64Array
    block_first: Int64Array
    leg_end: Int64Array
    leg_low: Float64Array
    dip_ts: Int64Array
    dip_value: Float64Array
    dip_open: Float64Array
    block_low: Float64Array
    block_kept: Float64Array


class Records:
    """The records of all paths, held in memory: some 4 kB a path, and 12 kB once a stop has moved."""

    def __init__(self, buckets: Sequence[_Parts], alerts: int) -> None:
        self._buckets = buckets
        self._rows = np.concatenate([parts["rows"] for parts in buckets])
        self._alerts = alerts
        high_first, high_last = self._ranges("high")
        low_first, low_last = self._ranges("low")
        self.levels = Levels(
            last_ts=self._by_alert("last_ts"),
            entry=self._by_alert("entry"),
            last_close=self._by_alert("last_close"),
            high_first=high_first,
            high_last=high_last,
            low_first=low_first,
            low_last=low_last,
            high_ts=self._all("high_ts"),
            high_value=self._all("high_value"),
            low_ts=self._all("low_ts"),
            low_value=self._all("low_value"),
            low_open=self._all("low_open"),
        )

    @cached_property
    def legs(self) -> Legs:
        """The legs; most of what there is, and of no use to stops that stand."""
        dip_first, _ = self._ranges("dip")
        # The dips of a bucket come after those of the buckets before it.
        before = np.cumsum([0, *(len(parts["dip_ts"]) for parts in self._buckets[:-1])]).tolist()
        leg_end = np.concatenate([parts["leg_end"] + first for parts, first in zip(self._buckets, before, strict=True)])
        blocks = -(-(self.levels.high_last - self.levels.high_first) // BLOCK)
        block_low, block_kept = np.empty((2, int(blocks.sum())))
        legs = Legs(
            dip_first=dip_first,
            block_first=np.cumsum(blocks) - blocks,
            leg_end=leg_end,
            leg_low=self._all("leg_low"),
            dip_ts=self._all("dip_ts"),
            dip_value=self._all("dip_value"),
            dip_open=self._all("dip_open"),
            block_low=block_low,
            block_kept=block_kept,
        )
        find_blocks(self.levels, legs)
        return legs

    def entries(self, paths: Paths) -> Entries:
        """The entries of these paths."""
        found = Entries(paths)
        found.candles, found.first_ts = self._by_alert("candles"), self._by_alert("first_ts")
        found.last_ts, found.price = self.levels.last_ts, self.levels.entry
        return found

    def _all(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([parts[name] for parts in self._buckets])

    def _by_alert(self, name: str) -> npt.NDArray[Any]:
        return self._ordered(self._all(name))

    def _ranges(self, kind: str) -> tuple[Int64Array, Int64Array]:
        """Where each alert's records of a kind begin and end among all."""
        counts = np.concatenate([np.diff(parts[f"{kind}_last"], prepend=0) for parts in self._buckets])
        last = np.cumsum(counts)
        return self._ordered(last - counts), self._ordered(last)

    def _ordered(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        ordered = np.empty(self._alerts, values.dtype)
        ordered[self._rows] = values
        return ordered


def records_cached(paths: Paths) -> bool:
    """Whether the cache says that it has records of these paths, made by this code."""
    return paths.cache is not None and _STYLE.missing(paths.cache) is None


def cache_problem(store: Store, identity: Mapping[str, Any]) -> str | None:
    """Why the files of a cache of records with this identity would not be used, None if all of them would be."""
    return CacheFiles(store, _STYLE, identity).problem()


def load_records(paths: Paths, *, threads: int = 1) -> Records:
    """The records of these paths: those cached, the others found and cached."""
    files = None
    if paths.cache is not None:
        missing, files = _STYLE.missing(paths.cache), _STYLE.files(paths.cache)
        if missing is None:
            logger.info("records: those cached in %s are used", files.store.uri)
        else:
            logger.info("records: %s; they are found in the paths and cached", missing)
    return Records(each(lambda bucket: _bucket(paths, files, bucket), paths.buckets, threads), len(paths.entry_ts))


def _bucket(paths: Paths, files: CacheFiles | None, bucket: str) -> _Parts:
    """One bucket's arrays by name."""
    words = files.read(bucket) if files else None
    if words is None:
        words = _packed(paths.load(bucket))
        if files:
            files.write(bucket, words)
    return _unpacked(words)


CACHE_KIND: Final = "records"
_STYLE: Final = CacheStyle(CACHE_KIND, __name__, b"lakerec1", "they are found again in the paths")
_Parts = dict[str, npt.NDArray[Any]]

# A file's body: how many paths, high records, low records and dips there are, then of each of them these columns.
_COUNTS: Final = slice(HEAD, HEAD + 4)
_COLUMNS: Final = (
    ("rows", "candles", "first_ts", "last_ts", "entry", "last_close", "high_last", "low_last", "dip_last"),
    ("high_ts", "high_value", "leg_end", "leg_low"),
    ("low_ts", "low_value", "low_open"),
    ("dip_ts", "dip_value", "dip_open"),
)
_PRICES: Final = ("entry", "last_close", "high_value", "leg_low", "low_value", "low_open", "dip_value", "dip_open")


def _packed(block: PathBlock) -> Int64Array:
    """The words of a bucket's records, the head left empty; ranges count within the bucket."""
    lengths = block.stops - block.starts
    there = lengths > 0
    candles = int(lengths.sum())
    ends = np.zeros((3, len(lengths)), np.int64)
    columns = {
        name: np.empty(candles, np.float64 if name in _PRICES else np.int64)
        for name in itertools.chain.from_iterable(_COLUMNS[1:])
    }
    find_records(block.ts, block.open, block.high, block.low, block.starts, block.stops, ends, *columns.values())

    def of_candle(values: npt.NDArray[Any], places: Int64Array, missing: float) -> npt.NDArray[Any]:
        found = np.full(len(there), missing, values.dtype)
        found[there] = values[places[there]]
        return found

    paths = (
        block.rows, lengths,
        of_candle(block.ts, block.starts, -1), of_candle(block.ts, block.stops - 1, -1),
        of_candle(block.open, block.starts, np.nan), of_candle(block.close, block.stops - 1, np.nan),
        *ends,
    )  # fmt: skip
    counts = np.array([len(lengths), *(end[-1] for end in ends)], np.int64)
    pieces = [np.zeros(HEAD, np.int64), counts, *(column.view(np.int64) for column in paths)]
    for names, count in zip(_COLUMNS[1:], counts[1:].tolist(), strict=True):
        pieces += [columns[name][:count].view(np.int64) for name in names]
    return np.concatenate(pieces)


def _unpacked(words: Int64Array) -> _Parts:
    """The columns of such words, as views of them."""
    parts: _Parts = {}
    place = _COUNTS.stop
    for names, count in zip(_COLUMNS, words[_COUNTS].tolist(), strict=True):
        for name in names:
            column = words[place : place + count]
            parts[name] = column.view(np.float64) if name in _PRICES else column
            place += count
    return parts
