"""What a run has to read: mints, their merged windows, and how that work is cut into queries.

Mints are kept in one order everywhere, bytewise, which is also the order of the candle table's primary
key and of the slice files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.core.buckets import compute_mint_bucket
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.core.window import merge_windows

__all__ = ["BucketGroup", "Plan", "build_plan", "group_buckets"]

Int64Array = npt.NDArray[np.int64]

# Rows one query may return at most, predicted from the windows. Smaller slices waste round trips (a query
# costs some 12 ms before it does anything), larger ones cost memory: a result is held several times over on its way
# from the engine.
SLICE_ROWS = 250_000
# Windows are literals in the query text; this keeps that text to a few hundred kilobytes.
SLICE_MINTS = 5_000


@dataclass(frozen=True)
class Plan:
    """Mints (distinct, sorted bytewise) with their buckets, windows and alerts.

    Windows of mint m are rows `window_offsets[m]:window_offsets[m+1]` of `starts` and `ends` (ms,
    half-open, merged); its alerts are `alert_rows[alert_offsets[m]:alert_offsets[m+1]]`, row numbers of
    the alerts table in its own order. `anchors` is indexed by alert row. `max_rows[m]` is the number of
    candles the windows can hold.
    """

    spec: RunSpec
    mints: list[str]
    buckets: list[str]
    window_offsets: Int64Array
    starts: Int64Array
    ends: Int64Array
    alert_offsets: Int64Array
    alert_rows: Int64Array
    anchors: Int64Array
    max_rows: Int64Array

    def alerts_of(self, indices: Sequence[int]) -> tuple[Int64Array, Int64Array]:
        """Alert rows of these mints, mint by mint, and for each the position of its mint in `indices`."""
        rows = [self.alert_rows[self.alert_offsets[index] : self.alert_offsets[index + 1]] for index in indices]
        return np.concatenate(rows), np.repeat(np.arange(len(indices)), [len(each) for each in rows])

    def rows_by_bucket(self) -> dict[str, int]:
        """Upper bound of candles per bucket that has any alert."""
        bounds: dict[str, int] = {}
        for bucket, rows in zip(self.buckets, self.max_rows.tolist(), strict=True):
            bounds[bucket] = bounds.get(bucket, 0) + rows
        return dict(sorted(bounds.items()))


def build_plan(alerts: pa.Table, spec: RunSpec) -> Plan:
    """The plan of normalised alerts (any order; `alert_rows` refers to the order given)."""
    by_alert = alerts.column("mint").to_pylist()
    mints = sorted(set(by_alert), key=str.encode)
    index = {mint: position for position, mint in enumerate(mints)}
    groups = np.fromiter((index[mint] for mint in by_alert), np.int64, len(by_alert))
    anchors = spec.anchors(alerts)
    merged, starts, ends = merge_windows(groups, *spec.windows(anchors))
    positions = np.arange(len(mints) + 1)
    window_offsets = np.searchsorted(merged, positions)
    alert_rows = np.argsort(groups, kind="stable")
    return Plan(
        spec=spec,
        mints=mints,
        buckets=[compute_mint_bucket(mint) for mint in mints],
        window_offsets=window_offsets,
        starts=starts,
        ends=ends,
        alert_offsets=np.searchsorted(groups[alert_rows], positions),
        alert_rows=alert_rows,
        anchors=anchors,
        max_rows=np.add.reduceat((ends - starts) // (spec.interval_s * 1000), window_offsets[:-1]),
    )


@dataclass(frozen=True)
class BucketGroup:
    """Buckets exported together, and the slices (mint indices in order) that read them.

    `max_rows` bounds the candles of the group. A group of several buckets fits the memory budget as a
    whole; one larger than the budget is a single bucket, streamed slice by slice.
    """

    buckets: tuple[str, ...]
    slices: tuple[tuple[int, ...], ...]
    max_rows: int


def group_buckets(plan: Plan, buckets: Iterable[str], max_rows_in_flight: int) -> list[BucketGroup]:
    """Cut the work on `buckets` into groups of at most `max_rows_in_flight` candles, a bucket at least.

    Hash buckets scatter over the primary key, so a query per bucket reads every granule many times over;
    a slice runs over all mints of its group in key order instead, and is split to buckets in memory.
    """
    members: dict[str, list[int]] = {bucket: [] for bucket in buckets}
    for index, bucket in enumerate(plan.buckets):
        if bucket in members:
            members[bucket].append(index)
    groups: list[BucketGroup] = []
    names: list[str] = []
    rows = 0

    def close() -> None:
        if names:
            indices = sorted(index for name in names for index in members[name])
            groups.append(BucketGroup(tuple(names), _slices(plan, indices), rows))

    for bucket, indices in members.items():
        bucket_rows = int(plan.max_rows[indices].sum()) if indices else 0
        if names and rows + bucket_rows > max_rows_in_flight:
            close()
            names, rows = [], 0
        names.append(bucket)
        rows += bucket_rows
    close()
    return groups


def _slices(plan: Plan, indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    slices: list[tuple[int, ...]] = []
    current: list[int] = []
    rows = 0
    for index in indices:
        mint_rows = int(plan.max_rows[index])
        if current and (rows + mint_rows > SLICE_ROWS or len(current) >= SLICE_MINTS):
            slices.append(tuple(current))
            current, rows = [], 0
        current.append(index)
        rows += mint_rows
    if current:
        slices.append(tuple(current))
    return tuple(slices)
