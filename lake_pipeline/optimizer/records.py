"""The records of paths: the few candles in which a level can be passed first, found once and cached.

What records are and why they are enough is said in `passage`. The cache keeps those of a bucket in one file, under the
rules of cached paths (`backtest.words`); with it a run is evaluated again without its slices or paths being read:

    <data_root>/results/run_id=<id>/records=<key>/   cache.json  <bucket>.records
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lake_pipeline.backtest.baseline import Entries
from lake_pipeline.backtest.paths import PathBlock, Paths, each
from lake_pipeline.backtest.words import HEAD, CacheFiles, CacheStyle
from lake_pipeline.io.store import Store
from lake_pipeline.optimizer.passage import BLOCK, find_blocks, find_records

__all__ = ["CACHE_KIND", "Records", "cache_problem", "load_records", "records_cached"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class Records(NamedTuple):
    """The records of all paths, some 8 kB each, held in memory; a tuple, as compiled loops take one.

    The first five arrays and the ranges have an item for each alert, in the order of the alerts: its high records are
    `high_first:high_last` of the `high_` and `leg_` arrays, its low records likewise, its dips begin at `dip_first`
    and its blocks of legs at `block_first`. Times are epoch ms. An alert without a candle has no record, `candles` 0
    and times -1.
    """

    candles: Int64Array
    first_ts: Int64Array
    last_ts: Int64Array
    entry: Float64Array
    last_close: Float64Array
    high_first: Int64Array
    high_last: Int64Array
    low_first: Int64Array
    low_last: Int64Array
    dip_first: Int64Array
    block_first: Int64Array
    high_ts: Int64Array
    high_value: Float64Array
    leg_end: Int64Array
    leg_low: Float64Array
    low_ts: Int64Array
    low_value: Float64Array
    low_open: Float64Array
    dip_ts: Int64Array
    dip_value: Float64Array
    dip_open: Float64Array
    block_low: Float64Array
    block_kept: Float64Array

    def entries(self, paths: Paths) -> Entries:
        """The entries of these paths."""
        found = Entries(paths)
        found.candles, found.first_ts, found.last_ts, found.price = (
            self.candles, self.first_ts, self.last_ts, self.entry,
        )  # fmt: skip
        return found


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
    return _joined(each(lambda bucket: _bucket(paths, files, bucket), paths.buckets, threads), len(paths.entry_ts))


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


def _joined(buckets: Sequence[_Parts], alerts: int) -> Records:
    """All buckets' records as one, by alert."""
    rows = np.concatenate([parts["rows"] for parts in buckets])
    columns = dict(_by_alert(buckets, rows, alerts))
    # Where the records of each bucket begin among all.
    dips = np.cumsum([0, *(len(parts["dip_ts"]) for parts in buckets)])
    for name in itertools.chain.from_iterable(_COLUMNS[1:]):
        columns[name] = np.concatenate([parts[name] for parts in buckets])
    columns["leg_end"] = np.concatenate(
        [parts["leg_end"] + first for parts, first in zip(buckets, dips.tolist(), strict=False)]
    )
    blocks = -(-(columns["high_last"] - columns["high_first"]) // BLOCK)
    columns["block_first"] = np.cumsum(blocks) - blocks
    columns["block_low"], columns["block_kept"] = np.empty((2, int(blocks.sum())))
    find_blocks(
        *(columns[name] for name in ("high_first", "high_last", "high_value", "leg_low")),
        *(columns[name] for name in ("block_first", "block_low", "block_kept")),
    )
    return Records(**columns)


def _by_alert(buckets: Sequence[_Parts], rows: Int64Array, alerts: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name in ("candles", "first_ts", "last_ts", "entry", "last_close"):
        column = np.concatenate([parts[name] for parts in buckets])
        ordered = np.empty(alerts, column.dtype)
        ordered[rows] = column
        yield name, ordered
    for kind in ("high", "low", "dip"):
        counts = np.concatenate([np.diff(parts[f"{kind}_last"], prepend=0) for parts in buckets])
        last = np.cumsum(counts)
        for name, values in ((f"{kind}_first", last - counts), (f"{kind}_last", last)):
            if name != "dip_last":
                ordered = np.empty(alerts, np.int64)
                ordered[rows] = values
                yield name, ordered
