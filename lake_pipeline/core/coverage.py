"""Coverage: how much of each alert's window the candles fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.core.buckets import compute_mint_bucket
from lake_pipeline.core.candles import candle_keys, key_ts_ms
from lake_pipeline.core.manifest import Receipt
from lake_pipeline.core.schemas import COVERAGE_SCHEMA
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import RunError

__all__ = [
    "MEASURES",
    "bucket_shares",
    "compute_coverage",
    "coverage_table",
    "filled_share",
    "gather_coverage",
    "kept_mask",
    "measure_windows",
    "source_lag_ms",
]

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# What is measured on the candles; all other columns of the table follow from these and the spec.
MEASURES: Final = (
    "available_pre",
    "available_post",
    "first_ts_ms",
    "last_ts_ms",
    "missing",
    "gap_count",
    "largest_gap",
    "zero_volume",
    "has_anchor",
)


def compute_coverage(alerts: pa.Table, candles: pa.Table, spec: RunSpec) -> pa.Table:
    """Coverage of alerts by candles: one row per alert, in the order of `alerts` (COVERAGE_SCHEMA).

    `alerts` needs `alert_id, mint, ts, caller`; `candles` needs `mint, ts, volume`, in any order but
    unique on (mint, ts).
    """
    by_alert = alerts.column("mint").to_pylist()
    index = {mint: position for position, mint in enumerate(sorted(set(by_alert), key=str.encode))}
    mints = np.array([index.get(mint, -1) for mint in candles.column("mint").to_pylist()], dtype=np.int64)
    ours = mints >= 0
    keys = candle_keys(mints[ours], candles.column("ts").cast(pa.int64()).to_numpy()[ours])
    order = np.argsort(keys)
    measures = measure_windows(
        keys[order],
        (candles.column("volume").to_numpy()[ours] == 0)[order],
        np.array([index[mint] for mint in by_alert], dtype=np.int64),
        spec.anchors(alerts),
        spec,
    )
    return coverage_table(alerts, measures, spec)


def measure_windows(
    keys: Int64Array, zero_volume: BoolArray, mint: Int64Array, anchors: Int64Array, spec: RunSpec
) -> dict[str, Int64Array]:
    """MEASURES per alert, from candles given as sorted unique `candle_keys` and a zero-volume flag each.

    `mint` and `anchors` (ms) describe the alerts, in any order; `has_anchor` is 0 or 1, and
    `first_ts_ms` and `last_ts_ms` are 0 where the window holds no candle. `missing` counts the window's
    empty candle slots; a gap is a longest run of empty slots, the window's edges included, so that the
    lengths of all gaps add up to `missing`.
    """
    interval_ms = spec.interval_s * 1000
    starts, ends = spec.windows(anchors)
    first = np.searchsorted(keys, candle_keys(mint, starts))
    middle = np.searchsorted(keys, candle_keys(mint, anchors))
    end = np.searchsorted(keys, candle_keys(mint, ends))
    some = end > first

    ts = key_ts_ms(keys)
    slot = ts // interval_ms
    # step[i]: slots from candle i to candle i+1; 0 means both share a slot, more than 1 a gap between. What is looked
    # for is counted between two positions in the list of where it is: running totals of all candles take much longer.
    step = slot[1:] - slot[:-1]
    zeros, shared, gaps = (np.flatnonzero(found) for found in (zero_volume, step == 0, step > 1))

    measures = {name: np.zeros(len(anchors), dtype=np.int64) for name in MEASURES}
    measures["available_pre"] = middle - first
    measures["available_post"] = end - middle
    measures["zero_volume"] = _count(zeros, first, end)
    measures["missing"][:] = spec.window_candles
    measures["gap_count"][:] = 1
    measures["largest_gap"][:] = spec.window_candles
    if some.any():
        lo, hi = first[some], end[some] - 1
        start_slot = starts[some] // interval_ms
        lead = slot[lo] - start_slot
        trail = start_slot + spec.window_candles - 1 - slot[hi]
        # The widest gap between two candles of each window, looked for among the gaps alone.
        inside = np.column_stack((np.searchsorted(gaps, lo), np.searchsorted(gaps, hi)))
        torn_by = inside[:, 1] - inside[:, 0]
        torn = torn_by > 0
        inner = np.zeros(len(lo), dtype=np.int64)
        inner[torn] = np.maximum.reduceat(np.append(step[gaps] - 1, 0), inside[torn].ravel())[::2]
        measures["first_ts_ms"][some] = ts[lo]
        measures["last_ts_ms"][some] = ts[hi]
        measures["missing"][some] = spec.window_candles - (hi - lo + 1 - _count(shared, lo, hi))
        measures["gap_count"][some] = torn_by + (lead > 0) + (trail > 0)
        measures["largest_gap"][some] = np.maximum(np.maximum(lead, trail), inner)
        # The first candle at or after the anchor is in the anchor's slot, if any is.
        at = np.minimum(middle[some], hi)
        measures["has_anchor"][some] = slot[at] == anchors[some] // interval_ms
    return measures


def _count(positions: Int64Array, first: Int64Array, end: Int64Array) -> Int64Array:
    """How many of the sorted positions are in each of the ranges `[first, end)`."""
    found: Int64Array = np.searchsorted(positions, end) - np.searchsorted(positions, first)
    return found


def kept_mask(measures: Mapping[str, Int64Array], spec: RunSpec) -> BoolArray:
    """Which alerts the run keeps: all of them, unless strict coverage drops those below the thresholds."""
    pre, post = measures["available_pre"], measures["available_post"]
    if not spec.strict_coverage:
        return np.ones(len(pre), dtype=bool)
    kept: BoolArray = (pre >= spec.required_pre) & (pre + post >= spec.required_total)
    return kept


def gather_coverage(alerts: pa.Table, receipts: Sequence[Receipt], spec: RunSpec) -> pa.Table:
    """The coverage table of the alerts these receipts cover, in the order of `alerts`.

    Raises RunError when the receipts name an alert twice or one that `alerts` does not have.
    """
    ids = [alert_id for receipt in receipts for alert_id in receipt.coverage["alert_id"]]
    row_of = {alert_id: row for row, alert_id in enumerate(alerts.column("alert_id").to_pylist())}
    if len(set(ids)) != len(ids) or not row_of.keys() >= set(ids):
        raise RunError("the receipts do not cover the run's alerts once each: they are of other alerts")
    rows = np.array([row_of[alert_id] for alert_id in ids], dtype=np.int64)
    order = np.argsort(rows)
    measures = {}
    for name in MEASURES:
        values = [value for receipt in receipts for value in receipt.coverage.get(name, [])]
        if len(values) != len(rows):
            raise RunError(f"the receipts have {len(values)} values of {name} for {len(rows)} alerts")
        measures[name] = np.array(values, dtype=np.int64)[order]
    return coverage_table(alerts.take(pa.array(rows[order])), measures, spec)


def coverage_table(alerts: pa.Table, measures: Mapping[str, Int64Array], spec: RunSpec) -> pa.Table:
    """The coverage table from the alerts and their MEASURES, row for row."""
    anchors = spec.anchors(alerts)
    starts, ends = spec.windows(anchors)
    pre, post = measures["available_pre"], measures["available_post"]
    total = pre + post
    empty = total == 0
    kept = kept_mask(measures, spec)
    complete = (pre >= spec.pre) & (total >= spec.pre + spec.post)
    mints = alerts.column("mint").to_pylist()
    bucket_of = {mint: compute_mint_bucket(mint) for mint in set(mints)}
    reasons: list[str | None] = [None] * len(anchors)
    for row in np.flatnonzero(~kept).tolist():
        reasons[row] = _drop_reason(int(pre[row]), int(total[row]), spec)
    return pa.table(
        {
            "alert_id": alerts.column("alert_id"),
            "mint": alerts.column("mint"),
            "caller": alerts.column("caller"),
            "mint_bucket": [bucket_of[mint] for mint in mints],
            "anchor_ts_ms": anchors,
            "window_start_ms": starts,
            "window_end_ms": ends,
            "available_pre": pre,
            "available_post": post,
            "available_total": total,
            "expected_total": np.full(len(anchors), spec.window_candles),
            "first_ts_ms": pa.array(measures["first_ts_ms"], mask=empty),
            "last_ts_ms": pa.array(measures["last_ts_ms"], mask=empty),
            "missing": measures["missing"],
            "gap_count": measures["gap_count"],
            "largest_gap": measures["largest_gap"],
            "zero_volume": measures["zero_volume"],
            "has_anchor": measures["has_anchor"].astype(bool),
            "status": np.where(empty, "insufficient", np.where(complete, "complete", "partial")).tolist(),
            "kept": kept,
            "reason": reasons,
        },
        schema=COVERAGE_SCHEMA,
    )


def _drop_reason(pre: int, total: int, spec: RunSpec) -> str:
    reasons = []
    if pre < spec.required_pre:
        reasons.append(f"available_pre {pre} < min_required_pre {spec.required_pre}")
    if total < spec.required_total:
        reasons.append(f"available_total {total} < target_total {spec.required_total}")
    return "; ".join(reasons)


def filled_share(coverage: pa.Table) -> float | None:
    """The share of these alerts' candle slots that hold a candle, all windows together; None of no alerts."""
    expected = pc.sum(coverage.column("expected_total")).as_py()
    return 1 - pc.sum(coverage.column("missing")).as_py() / expected if expected else None


def bucket_shares(coverage: pa.Table) -> dict[str, float]:
    """`filled_share` of the alerts of each bucket that has any."""
    groups = coverage.group_by("mint_bucket", use_threads=False)
    sums = groups.aggregate([("expected_total", "sum"), ("missing", "sum")]).to_pylist()
    return {each["mint_bucket"]: 1 - each["missing_sum"] / each["expected_total_sum"] for each in sums}


def source_lag_ms(coverage: pa.Table, interval_s: int, now_ms: int) -> int | None:
    """How far the newest of these alerts' candles is behind what their windows ask for by now; None without candles.

    From the end of the newest candle to the end of the last window, or to `now_ms` where that is earlier.
    """
    newest = pc.max(coverage.column("last_ts_ms")).as_py()
    if newest is None:
        return None
    wanted = min(pc.max(coverage.column("window_end_ms")).as_py(), now_ms)
    lag: int = max(0, wanted - (newest + interval_s * 1000))
    return lag
