"""Price paths of a sealed run: for each selected alert the candles of `[entry_ts, end_ts)`, as flat arrays.

    entry_ts = ceil(alert_ts, interval)             an exact boundary stays
    end_ts   = min(entry_ts + horizon, window_end)  the end of the alert's own window

A path never reaches beyond its alert's own window, even where another alert of the same mint made the run hold later
candles: what else was called must not change a result.

Slice files hold a candle of overlapping windows once, and so do blocks: the alerts of one mint share its candles and
have a `start:stop` range each. A bucket is read when it is asked for (the row groups that can matter, checked against
the manifest as a file) and dropped when it has been worked on, so memory is bounded by a bucket a thread.

**The cache** keeps each bucket's block, cut to the candles its paths need, as one flat file in a folder beside the
results, mapped into memory when it is used again. A file is used only if its checksum, the run, the selection, the
horizon and the code that made it are right; anything else is a warning, and the bucket is read from its slices and
written anew.
"""

from __future__ import annotations

import datetime as dt
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, canonical_values
from lake_pipeline.backtest.kernels import locate
from lake_pipeline.backtest.words import HEAD, CacheFiles, CacheOrigin, CacheStyle
from lake_pipeline.core.candles import VALUE_COLUMNS
from lake_pipeline.core.canonical import sha256_hex
from lake_pipeline.core.manifest import FileEntry, Manifest
from lake_pipeline.core.schemas import ALERTS_SCHEMA, COVERAGE_SCHEMA
from lake_pipeline.errors import InputError, StoreError, VerificationFailed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import decode_table
from lake_pipeline.io.store import Store
from lake_pipeline.run import Run
from lake_pipeline.verify import require_manifest

__all__ = ["CACHE_KIND", "CandlePath", "PathBlock", "Paths", "cache_problem", "each", "open_paths", "select_alerts"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
_S = TypeVar("_S")
_T = TypeVar("_T")

_COLUMNS: Final = ("ts", *VALUE_COLUMNS)
_NAMED: Final = 10


@dataclass(frozen=True)
class CandlePath:
    """The candles of one alert's path: six arrays of one length, times in epoch ms."""

    ts: Int64Array
    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array

    def __len__(self) -> int:
        return len(self.ts)

    def table(self) -> pa.Table:
        """`timestamp, open, high, low, close, volume`."""
        timestamp = pa.array(self.ts).cast(pa.timestamp("ms", tz="UTC"))
        return pa.table({"timestamp": timestamp, **{name: getattr(self, name) for name in VALUE_COLUMNS}})


@dataclass(frozen=True)
class PathBlock(CandlePath):
    """The paths of one bucket: path i is rows `starts[i]:stops[i]` of the candles and belongs to alert `rows[i]`.

    Candles are sorted by (mint, ts), each is there once; there may be some that no path needs.
    """

    rows: Int64Array
    starts: Int64Array
    stops: Int64Array

    def __post_init__(self) -> None:
        # One kind of array, so that the kernels are compiled once.
        for array in vars(self).values():
            array.flags.writeable = False

    def path(self, index: int) -> CandlePath:
        """The candles of path `index` of this block."""
        inside = slice(int(self.starts[index]), int(self.stops[index]))
        return CandlePath(self.ts[inside], *(getattr(self, name)[inside] for name in VALUE_COLUMNS))


@dataclass(frozen=True)
class Paths:
    """The paths of selected alerts. `alerts`, `entry_ts` and `end_ts` (ms) go together row by row.

    `load(bucket)` gives a bucket's block; each alert is in exactly one of `buckets`. `cache` says where
    what is computed of them may be cached, None for nowhere.
    """

    alerts: pa.Table
    interval_s: int
    entry_ts: Int64Array
    end_ts: Int64Array
    buckets: tuple[str, ...]
    load: Callable[[str], PathBlock]
    bucket_of: Sequence[str] = field(repr=False, default=())
    cache: CacheOrigin | None = None

    def identity_columns(self) -> dict[str, pa.ChunkedArray]:
        """`alert_id, mint, caller, alert_ts_utc, entry_ts_utc`: how every table of results begins."""
        columns = {name: self.alerts.column(name) for name in ("alert_id", "mint", "caller")}
        times = self.alerts.column("ts")
        entry = pa.chunked_array([pa.array(self.entry_ts).cast(times.type)])
        return {**columns, "alert_ts_utc": times, "entry_ts_utc": entry}

    def map(self, function: Callable[[PathBlock], _T], threads: int = 1) -> list[_T]:
        """`function` of each block, in the order of `buckets`, `threads` blocks at a time."""
        return each(lambda bucket: function(self.load(bucket)), self.buckets, threads)

    def path(self, alert_id: str) -> CandlePath:
        """The candles of one alert's path. Raises InputError for an alert that is not selected."""
        row = pc.index(self.alerts.column("alert_id"), alert_id).as_py()
        if row < 0:
            raise InputError(f"alert {alert_id!r} is not among the {len(self.entry_ts)} selected alerts of the run")
        block = self.load(self.bucket_of[row])
        return block.path(int(np.flatnonzero(block.rows == row)[0]))


def each(function: Callable[[_S], _T], items: Sequence[_S], threads: int) -> list[_T]:
    """`function` of each of these, in their order, `threads` at a time; the first error ends it and is raised."""
    results: dict[int, _T] = {}
    waiting = deque(enumerate(items))

    def work() -> None:
        # A warm block takes less time than handing it to a thread does, so threads fetch their work.
        while True:
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[number] = function(item)
            except BaseException:
                waiting.clear()  # the others end with what they have
                raise

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(work) for _ in range(threads)]:
            worker.result()
    return [results[number] for number in range(len(items))]


def select_alerts(alerts: pa.Table, selection: AlertSelection, kept: pa.Array | pa.ChunkedArray) -> Int64Array:
    """Row numbers of the selected alerts, ascending. Raises InputError when there are none."""
    chosen = np.asarray(kept, dtype=np.bool_)
    ts_ms = alerts.column("ts").cast(pa.int64()).to_numpy()
    if selection.from_day:
        chosen = chosen & (ts_ms >= _day_start_ms(selection.from_day))
    if selection.to_day:
        chosen = chosen & (ts_ms < _day_start_ms(selection.to_day + dt.timedelta(days=1)))
    if selection.callers is not None:
        known = pc.is_in(alerts.column("caller"), value_set=pa.array(selection.callers, pa.string()))
        chosen = chosen & np.asarray(known, dtype=np.bool_)
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        raise InputError(
            f"none of the run's {alerts.num_rows} alerts is selected: days {selection.from_day or 'start'} to "
            f"{selection.to_day or 'end'}, callers {', '.join(selection.callers or ()) or 'all'}, kept by the export. "
            f"Its alerts are of {_days_and_callers(alerts)}"
        )
    there = alerts.column("caller").unique().to_pylist()
    unknown = [caller for caller in selection.callers or () if caller not in there]
    if unknown:
        logger.warning("no alert of the run is of the callers %s", ", ".join(unknown))
    return rows


def _days_and_callers(alerts: pa.Table) -> str:
    days = [ts.date().isoformat() for ts in alerts.column("ts").to_pylist()]
    callers = alerts.column("caller").drop_null().unique().to_pylist()
    more = f" and {len(callers) - _NAMED:,} more" if len(callers) > _NAMED else ""
    return f"{min(days, default='no day')} to {max(days, default='no day')}, by {', '.join(callers[:_NAMED])}{more}"


def _day_start_ms(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days * 86_400_000


def open_paths(
    run: Run,
    selection: AlertSelection = AlertSelection(),
    horizon_ms: int = BaselineConfig().horizon_ms,
    *,
    lake: Store | None = None,
    fill_cache: bool = True,
) -> Paths:
    """The paths of a sealed run; with `lake`, the store of the data root, those cached beside its results are used.

    `fill_cache` writes what the cache does not have, which pays from the second reading on. Manifest, alerts and
    coverage are read at once, candles when a block is asked for. Raises RunNotSealed, VerificationFailed when what is
    read is not what was sealed, and InputError when no alert is selected.
    """
    manifest = require_manifest(run)
    entries = {entry.path: entry for entry in manifest.files}
    alerts, coverage = (
        decode_table(_read_sealed(run, entries[path]), schema, f"{run.store.uri}/{path}")
        for path, schema in ((layout.ALERTS, ALERTS_SCHEMA), (layout.COVERAGE, COVERAGE_SCHEMA))
    )
    rows = select_alerts(alerts, selection, coverage.column("kept"))
    alerts, coverage = alerts.take(rows).combine_chunks(), coverage.take(rows)
    interval_ms = run.spec.interval_s * 1000
    ts_ms = alerts.column("ts").cast(pa.int64()).to_numpy()
    entry_ts = -(-ts_ms // interval_ms) * interval_ms
    end_ts = np.minimum(entry_ts + horizon_ms, coverage.column("window_end_ms").to_numpy())
    bucket_of = coverage.column("mint_bucket").to_pylist()
    loader = _Loader(run, entries, alerts, entry_ts, end_ts, bucket_of)
    load, cache = loader.load, None
    if lake is not None:
        cache = CacheOrigin(lake, run.run_id, _cache_identity(manifest, selection, horizon_ms))
        missing, files = _STYLE.missing(cache), _STYLE.files(cache)
        if missing is None:
            logger.info("paths: those cached in %s are used", files.store.uri)
        else:
            logger.info("paths: %s; the slices are read%s", missing, " and cached" if fill_cache else "")
        load = _Cache(files, loader.load, fill=fill_cache).load
    return Paths(alerts, run.spec.interval_s, entry_ts, end_ts, tuple(sorted(set(bucket_of))), load, bucket_of, cache)


def _read_sealed(run: Run, entry: FileEntry) -> bytes:
    """A file of a sealed run, compared with its manifest entry."""
    try:
        data = run.store.read(entry.path)
    except StoreError as error:
        raise VerificationFailed.of(run.run_id, [f"{entry.path} cannot be read: {error}"]) from error
    if len(data) != entry.bytes or sha256_hex(data) != entry.sha256:
        raise VerificationFailed.of(run.run_id, [f"{entry.path} has other content than was sealed"])
    return data


class _Loader:
    """Blocks from slice files. What it knows of them is worked out when it is first asked: a full cache never asks."""

    def __init__(
        self,
        run: Run,
        entries: Mapping[str, FileEntry],
        alerts: pa.Table,
        entry_ts: Int64Array,
        end_ts: Int64Array,
        bucket_of: Sequence[str],
    ) -> None:
        self._run, self._entries = run, entries
        self._alerts, self._bucket_of = alerts, bucket_of
        self._entry_ts, self._end_ts = entry_ts, end_ts

    @cached_property
    def _mints(self) -> list[str]:
        mints: list[str] = self._alerts.column("mint").to_pylist()
        return mints

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """The alerts of each bucket, those of one mint one after another: they walk the same candles."""
        found: dict[str, list[int]] = {}
        for row, bucket in enumerate(self._bucket_of):
            found.setdefault(bucket, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: (self._mints[row].encode(), row))
        return found

    @cached_property
    def _files(self) -> dict[str, list[FileEntry]]:
        """The files in each folder."""
        found: dict[str, list[FileEntry]] = {}
        for path, entry in self._entries.items():
            found.setdefault(path.rpartition("/")[0], []).append(entry)
        return found

    def load(self, bucket: str) -> PathBlock:
        """A bucket's block, from its parts in order."""
        rows = np.array(self._rows[bucket], np.int64)
        mints = [self._mints[row] for row in rows.tolist()]
        entry_ts, end_ts = self._entry_ts[rows], self._end_ts[rows]
        wanted = sorted(set(mints), key=str.encode)
        begin, end = int(entry_ts.min()), int(end_ts.max())
        tables: list[pa.Table] = []
        for entry in self._files.get(layout.bucket_folder(self._run.spec, bucket), ()):
            data = _read_sealed(self._run, entry)
            tables += _read_row_groups(data, wanted, begin, end)
        ranges, columns = _gather(tables)
        first, last = np.array([ranges.get(mint, (0, 0)) for mint in mints], np.int64).T.copy()
        starts, stops = np.empty_like(first), np.empty_like(first)
        for column in columns:
            column.flags.writeable = False
        locate(columns[0], first, last, entry_ts, end_ts, starts, stops)
        return _block(columns, rows, starts, stops)


def _block(columns: Sequence[npt.NDArray[Any]], rows: Int64Array, starts: Int64Array, stops: Int64Array) -> PathBlock:
    ts, open_, high, low, close, volume = columns
    return PathBlock(ts, open_, high, low, close, volume, rows, starts, stops)


def _read_row_groups(data: bytes, mints: Sequence[str], begin: int, end: int) -> Iterable[pa.Table]:
    """The row groups of a part that can hold candles of these (sorted) mints in `[begin, end)`, their used columns."""
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["mint"])
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        mint, ts = group.column(0).statistics, group.column(1).statistics
        if not any(mint.min <= name <= mint.max for name in mints):
            continue
        if _epoch_ms(ts.max) < begin or _epoch_ms(ts.min) >= end:
            continue
        yield file.read_row_group(number, columns=["mint", *_COLUMNS], use_threads=False)


def _epoch_ms(instant: dt.datetime) -> int:
    return (instant - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def _gather(tables: Sequence[pa.Table]) -> tuple[dict[str, tuple[int, int]], list[npt.NDArray[Any]]]:
    """Each mint's rows as (first, last), and the candle columns, one array each."""
    ranges: dict[str, tuple[int, int]] = {}
    row = 0
    for table in tables:
        for chunk in table.column("mint").chunks:
            codes = chunk.indices.to_numpy()
            cuts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]))
            names = chunk.dictionary.take(pa.array(codes[cuts[:-1]])).to_pylist()
            for name, low, high in zip(names, (cuts[:-1] + row).tolist(), (cuts[1:] + row).tolist(), strict=True):
                # A mint may run on into the next row group.
                ranges[name] = (ranges[name][0] if name in ranges else low, high)
            row += len(codes)
    columns: list[npt.NDArray[Any]] = []
    for name in _COLUMNS:
        pieces = [chunk for table in tables for chunk in table.column(name).chunks]
        arrays = [(piece.view(pa.int64()) if name == "ts" else piece).to_numpy() for piece in pieces]
        empty = np.empty(0, np.int64 if name == "ts" else np.float64)
        columns.append(arrays[0] if len(arrays) == 1 else np.concatenate([empty, *arrays]))
    return ranges, columns


# A cache file's body: number of paths, number of candles, rows, starts and stops of the paths, the six columns.
_COUNTS: Final = slice(HEAD, HEAD + 2)
_BODY: Final = HEAD + 2


CACHE_KIND: Final = "paths"
_STYLE: Final = CacheStyle(CACHE_KIND, __name__, b"lakepth1", "their slices are read again")


def cache_problem(store: Store, identity: Mapping[str, Any]) -> str | None:
    """Why the files of a path cache with this identity would not be used, None if all of them would be."""
    return CacheFiles(store, _STYLE, identity).problem()


def _cache_identity(manifest: Manifest, selection: AlertSelection, horizon_ms: int) -> dict[str, Any]:
    return {
        "content_sha256": manifest.content_sha256,
        "selection": canonical_values(selection),
        "horizon_ms": horizon_ms,
    }


class _Cache:
    """Blocks from a folder of flat files, filled from another source of blocks where they are not usable."""

    def __init__(self, files: CacheFiles, source: Callable[[str], PathBlock], *, fill: bool) -> None:
        self._files = files
        self._fill = fill
        self._source = source
        self._blocks: dict[str, PathBlock] = {}

    def load(self, bucket: str) -> PathBlock:
        """A bucket's block: mapped if the cache has it, else from the source, and cached."""
        if bucket in self._blocks:
            return self._blocks[bucket]
        words = self._files.read(bucket)
        if words is not None:
            block = self._blocks[bucket] = _unpacked(words)
            return block
        block = self._source(bucket)
        if self._fill:
            self._files.write(bucket, _packed(block))
        return block


def _packed(block: PathBlock) -> Int64Array:
    """The words of a block with the candles its paths need, the head left empty."""
    empty = block.starts == block.stops
    order = np.argsort(block.starts[~empty], kind="stable")
    first, last = block.starts[~empty][order], np.maximum.accumulate(block.stops[~empty][order])
    # The union of all ranges, as disjoint ones.
    opens = np.append(True, first[1:] > last[:-1])[: len(first)]
    lows, highs = first[opens], last[np.append(opens[1:], True)[: len(last)]]
    offsets = np.append(0, np.cumsum(highs - lows))
    paths, candles = len(block.rows), int(offsets[-1])
    words = np.zeros(_BODY + 3 * paths, np.int64)
    words[_COUNTS] = paths, candles
    target = words[_BODY:].reshape(3, paths)
    target[0] = block.rows
    if candles:
        # Where a range lies in the union moves its paths as a whole; empty ones go to the start.
        shift = (offsets[:-1] - lows)[np.maximum(np.searchsorted(lows, block.starts, side="right") - 1, 0)]
        target[1:] = np.where(empty, 0, [block.starts + shift, block.stops + shift])
    pieces = [words]
    for name in _COLUMNS:
        column = getattr(block, name).view(np.int64)
        pieces += [column[low:high] for low, high in zip(lows.tolist(), highs.tolist(), strict=True)]
    return np.concatenate(pieces)


def _unpacked(words: Int64Array) -> PathBlock:
    """The block of such words, as views of them."""
    paths, candles = (int(count) for count in words[_COUNTS])
    cuts = list(itertools.pairwise(itertools.accumulate([_BODY, *[paths] * 3, *[candles] * 6])))
    rows, starts, stops, ts = (words[low:high] for low, high in cuts[:4])
    doubles = words.view(np.float64)
    return _block([ts, *(doubles[low:high] for low, high in cuts[4:])], rows, starts, stops)
