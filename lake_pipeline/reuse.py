"""Buckets that a sealed run holds already: taken over instead of queried.

A bucket of another run is this run's too when four things are the same: the settings, the source's identity, the
bucket's alerts, and the source's rows, which the source itself has to vouch for. The last is recorded in
provenance.json, outside the seal: a run's content does not depend on how the source stores its rows. Whatever is
missing, damaged or in doubt means that the bucket is exported anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lake_pipeline.core.buckets import compute_mint_bucket
from lake_pipeline.core.manifest import Receipt
from lake_pipeline.core.plan import Plan
from lake_pipeline.errors import LakeError, RunError
from lake_pipeline.io import layout
from lake_pipeline.io.provenance import read_events
from lake_pipeline.io.source import CandleSource
from lake_pipeline.io.store import Store
from lake_pipeline.run import Run, list_run_ids, load_run

__all__ = ["Reusable", "SourceState", "find_reusable", "source_state", "take_over"]

logger = logging.getLogger(__name__)

# The state of the source an export saw, and the buckets it committed.
_Export = tuple["SourceState", frozenset[str]]


@dataclass(frozen=True)
class SourceState:
    """`sha256` stands for the source's rows in `[from_ms, to_ms)`."""

    from_ms: int
    to_ms: int
    sha256: str


@dataclass(frozen=True)
class Reusable:
    """A bucket of a sealed run; the hash is that of its receipt, as sealed."""

    run: Run
    receipt_sha256: str


def source_state(source: CandleSource, plan: Plan) -> SourceState | None:
    """The state of everything the plan's windows reach; None where the source cannot tell."""
    from_ms, to_ms = int(plan.starts.min()), int(plan.ends.max())
    sha256 = source.state(from_ms, to_ms)
    return None if sha256 is None else SourceState(from_ms, to_ms, sha256)


def find_reusable(
    lake: Store, run: Run, source: CandleSource, alerts: pa.Table, buckets: Sequence[str]
) -> dict[str, Reusable]:
    """For each of these buckets that a sealed run under `lake` has as well, where it is; the newest run goes first."""
    wanted = _alerts_by_bucket(alerts)
    missing = {bucket for bucket in buckets if bucket in wanted}
    found: dict[str, Reusable] = {}
    states: dict[tuple[int, int], str | None] = {}
    for other, exports in _relatives(lake, run):
        if not missing:
            break
        try:
            theirs = _alerts_by_bucket(other.alerts())
            receipts = {record.path: record.sha256 for record in other.manifest().records}
        except LakeError as error:
            logger.warning("run %s is not reused: %s", other.run_id, error)
            continue
        for state, exported in exports:
            same = {bucket for bucket in missing & exported if wanted[bucket] == theirs.get(bucket)}
            span = (state.from_ms, state.to_ms)
            if same and span not in states:
                states[span] = source.state(*span)
            if same and states[span] == state.sha256:
                found |= {bucket: Reusable(other, receipts[layout.receipt_path(bucket)]) for bucket in same}
                missing -= same
    return dict(sorted(found.items()))


def take_over(run: Run, reusable: Reusable, bucket: str) -> Receipt:
    """Put the files of another run's bucket into `run`, and return the receipt that commits them.

    Raises LakeError when the other run's files are not the ones it was sealed with.
    """
    other, path = reusable.run, layout.receipt_path(bucket)
    state = other.bucket_state(bucket)
    if not (state.receipt and state.record and state.record.sha256 == reusable.receipt_sha256):
        raise RunError(f"run {other.run_id}, bucket {bucket}: {state.problem or f'{path} is not the sealed one'}")
    for entry in state.receipt.entries:
        run.store.adopt(other.store, entry.path, settled=False)
    return state.receipt.model_copy(update={"run_fingerprint": run.record.run_fingerprint})


def _alerts_by_bucket(alerts: pa.Table) -> dict[str, list[tuple[Any, ...]]]:
    """What a bucket's candles and measures follow from: id, mint and time of its alerts, in the alerts' order."""
    mints = alerts.column("mint").to_pylist()
    times = alerts.column("ts").cast(pa.int64()).to_pylist()
    bucket_of = {mint: compute_mint_bucket(mint) for mint in set(mints)}
    by_bucket: dict[str, list[tuple[Any, ...]]] = {}
    for row in zip(alerts.column("alert_id").to_pylist(), mints, times, strict=True):
        by_bucket.setdefault(bucket_of[row[1]], []).append(row)
    return by_bucket


def _relatives(lake: Store, run: Run) -> Iterator[tuple[Run, list[_Export]]]:
    """Sealed runs of the same settings and source, with their exports whose source state is known, newest first."""
    found, kind = [], _kind(run)
    for run_id in list_run_ids(lake):
        if run_id == run.run_id:
            continue
        try:
            other = load_run(lake, run_id)
            if not other.sealed or _kind(other) != kind:
                continue
            events = [event for event in read_events(other.store) if event.get("source_state")]
            exports = [(SourceState(**event["source_state"]), frozenset(event["exported"])) for event in events]
            latest = max([str(event["at"]) for event in events], default="")
        except (LakeError, KeyError, TypeError, AttributeError) as error:
            logger.warning("run %s is not reused: %s", run_id, error)
            continue
        found.append((latest, run_id, other, exports))
    for _, _, other, exports in sorted(found, key=lambda each: each[:2], reverse=True):
        yield other, exports


def _kind(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and source a bucket's bytes follow from: days only choose the alerts."""
    return {**run.spec.canonical(), "from_day": None, "to_day": None}, run.record.source
