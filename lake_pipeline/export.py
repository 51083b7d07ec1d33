"""The first half of a run as plain functions: identify it, snapshot its alerts, export its buckets.

No Dagster: assets, the command line and notebooks call these. The second half is in `seal`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.core.alerts import NormalisedAlerts, normalise_alerts
from lake_pipeline.core.buckets import ALL_BUCKETS, check_buckets, format_buckets
from lake_pipeline.core.candles import (
    REJECT_REASONS,
    CandleBlock,
    candle_keys,
    candle_table,
    key_mint,
    reconcile,
)
from lake_pipeline.core.coverage import MEASURES, kept_mask, measure_windows
from lake_pipeline.core.manifest import Ledger, Receipt, RunRecord
from lake_pipeline.core.plan import BucketGroup, Plan, build_plan, group_buckets
from lake_pipeline.core.schemas import REJECTED_ALERTS_SCHEMA, REJECTED_CANDLES_SCHEMA, SLICE_SCHEMA
from lake_pipeline.core.spec import RunSpec, check_run_id, derive_run_id, run_fingerprint
from lake_pipeline.core.window import merge_windows
from lake_pipeline.errors import (
    AlreadyExists,
    BucketsFailed,
    ConfigError,
    LakeError,
    RunError,
    RunSealed,
    SourceChanged,
    VerificationFailed,
)
from lake_pipeline.io import layout
from lake_pipeline.io.alerts import read_alerts
from lake_pipeline.io.parquet import SliceWriter, read_table, write_table
from lake_pipeline.io.provenance import append_event
from lake_pipeline.io.source import CandleSource, SliceRequest
from lake_pipeline.io.store import Store
from lake_pipeline.reuse import Reusable, find_reusable, source_state, take_over
from lake_pipeline.run import Run, load_run

__all__ = [
    "DEFAULT_MAX_ROWS_IN_FLIGHT",
    "BucketResult",
    "SnapshotResult",
    "export_buckets",
    "identify_run",
    "load_alerts",
    "snapshot_alerts",
]

logger = logging.getLogger(__name__)

# Candles held in memory at once, some 60 bytes each.
DEFAULT_MAX_ROWS_IN_FLIGHT: Final = 6_000_000

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SnapshotResult:
    """What became of the alerts input. `rows_in == alerts + rejected + outside_range`."""

    run_id: str
    run_fingerprint: str
    rows_in: int
    alerts: int
    rejected: int
    outside_range: int
    mints: int
    callers: int
    reasons: dict[str, int]
    created: bool


@dataclass(frozen=True)
class BucketResult:
    """One committed bucket. Bytes are those of slice files.

    `skipped` if its receipt was there already, `reused` if its files are those of another sealed run.
    """

    bucket: str
    mints: int
    alerts: int
    files: int
    rows: int
    bytes: int
    ledger: Ledger
    skipped: bool
    reused: bool

    @classmethod
    def of(cls, receipt: Receipt, *, skipped: bool, reused: bool = False) -> BucketResult:
        """The result that a receipt stands for."""
        return cls(
            bucket=receipt.mint_bucket,
            mints=receipt.mints,
            alerts=len(receipt.coverage["alert_id"]),
            files=len(receipt.files),
            rows=sum(file.rows for file in receipt.files),
            bytes=sum(file.bytes for file in receipt.files),
            ledger=receipt.ledger,
            skipped=skipped,
            reused=reused,
        )


def load_alerts(spec: RunSpec, alerts: str, alerts_table: str | None = None) -> NormalisedAlerts:
    """Read and normalise an alerts input: `.parquet`, `.csv` or a DuckDB file. Raises InputError."""
    normalised = normalise_alerts(read_alerts(alerts, spec.range_ms, alerts_table), spec)
    if normalised.rejected.num_rows:
        logger.warning(
            "%d of %d alerts rejected: %s",
            normalised.rejected.num_rows,
            normalised.rows_in,
            "; ".join(f"{count} x {reason}" for reason, count in _reasons(normalised).most_common(5)),
        )
    return normalised


def identify_run(spec: RunSpec, alerts: NormalisedAlerts, source: Mapping[str, Any], run_id: str | None) -> RunRecord:
    """The identity of the run that these settings, alerts and source make; `run_id` derived if None."""
    fingerprint = run_fingerprint(spec, alerts.digest, source)
    return RunRecord(
        run_id=derive_run_id(spec, fingerprint) if run_id is None else check_run_id(run_id),
        run_fingerprint=fingerprint,
        spec=spec.canonical(),
        alerts_digest=alerts.digest,
        source=dict(source),
    )


def snapshot_alerts(
    lake: Store, record: RunRecord, alerts: NormalisedAlerts, details: Mapping[str, Any]
) -> tuple[Run, SnapshotResult]:
    """Create the run with its run.json and inputs; a run that exists must have the same identity.

    `details` goes to provenance. Raises RunMismatch naming what differs.
    """
    store = lake.sub(layout.run_folder(record.run_id))
    created = not store.exists(layout.RUN_RECORD)
    if created:
        try:
            store.create(layout.RUN_RECORD, record.to_bytes())
        except AlreadyExists:  # another process was quicker
            created = False
    run = load_run(lake, record.run_id)
    run.require_same(record)
    with store.lock(exclusive=True):
        if not run.sealed:
            # Who made run.json trusts no alerts that are there already: they are those of a folder that vanished.
            if created or not store.exists(layout.ALERTS):
                # The rejected rows first: once alerts.parquet is there, the snapshot is whole.
                if alerts.rejected.num_rows and not store.exists(layout.REJECTED_ALERTS):
                    write_table(store, layout.REJECTED_ALERTS, alerts.rejected)
                write_table(store, layout.ALERTS, alerts.alerts)
            run.require_folder()
            append_event(store, "alerts", {**details, "rows_in": alerts.rows_in})
    run.alerts()
    _warn_of_other_rejects(run, alerts.rejected)
    return run, SnapshotResult(
        run_id=record.run_id,
        run_fingerprint=record.run_fingerprint,
        rows_in=alerts.rows_in,
        alerts=alerts.alerts.num_rows,
        rejected=alerts.rejected.num_rows,
        outside_range=alerts.outside_range,
        mints=pc.count_distinct(alerts.alerts.column("mint")).as_py(),
        callers=pc.count_distinct(alerts.alerts.column("caller")).as_py(),
        reasons=dict(_reasons(alerts)),
        created=created,
    )


def _warn_of_other_rejects(run: Run, rejected: pa.Table) -> None:
    """Rejected rows are no part of a run's identity: an input that differs in them alone meets the first snapshot."""
    stored = REJECTED_ALERTS_SCHEMA.empty_table()
    if run.store.exists(layout.REJECTED_ALERTS):
        stored = read_table(run.store, layout.REJECTED_ALERTS, REJECTED_ALERTS_SCHEMA)
    if not stored.equals(rejected):
        logger.warning(
            "run %s keeps the %d rejected rows of its first snapshot; this input has the same usable alerts, "
            "but %d rejected rows",
            run.run_id,
            stored.num_rows,
            rejected.num_rows,
        )


def _reasons(alerts: NormalisedAlerts) -> Counter[str]:
    return Counter(alerts.rejected.column("reason").to_pylist())


def export_buckets(
    run: Run,
    source: CandleSource,
    buckets: Sequence[str] = ALL_BUCKETS,
    *,
    threads: int = 2,
    max_rows_in_flight: int = DEFAULT_MAX_ROWS_IN_FLIGHT,
    reuse_from: Store | None = None,
    check_source: bool = False,
    details: Mapping[str, Any] | None = None,
    on_bucket: Callable[[BucketResult], None] = lambda result: None,
) -> list[BucketResult]:
    """Export and commit buckets; those with a valid receipt are skipped. Returns results in bucket order.

    Buckets that a sealed run under the data root `reuse_from` has already are taken from there. With `check_source`,
    the source's rows of a bucket are counted before the first candle is read and before the bucket is committed, and
    one that changed in between fails with SourceChanged. `on_bucket` is called in this thread as each bucket is done.
    Raises BucketsFailed after all others are committed, when some could not be.
    """
    _check_limits(buckets, threads, max_rows_in_flight)
    started = time.monotonic()
    alerts = run.alerts()
    sealed = run.sealed  # before the look at the buckets: another process may commit the last ones and seal meanwhile
    states = run.bucket_states(buckets, threads)
    invalid = [state for state in states if state.receipt is None]
    if invalid and sealed:
        faults = [f"bucket {state.bucket}: {state.problem}" for state in invalid]
        raise VerificationFailed.of(run.run_id, faults)
    done: dict[str, BucketResult] = {}
    failures: dict[str, LakeError] = {}
    for state in states:
        if state.receipt:
            done[state.bucket] = BucketResult.of(state.receipt, skipped=True)
            on_bucket(done[state.bucket])
    todo = [state.bucket for state in invalid]
    if todo:
        exporter = _Exporter(run, source, build_plan(alerts, run.spec), alerts)
        late: list[str] = []
        before = source_state(source, exporter.plan)
        reusable = find_reusable(reuse_from, run, source, alerts, todo) if reuse_from and before else {}
        with ThreadPoolExecutor(threads, thread_name_prefix="lake-export") as pool:
            try:
                for bucket, outcome in exporter.take_over(reusable, pool):
                    if isinstance(outcome, LakeError):
                        logger.warning("bucket %s is exported anew, not reused: %s", bucket, outcome)
                    else:
                        done[bucket] = outcome
                        on_bucket(outcome)
                missing = [bucket for bucket in todo if bucket not in done]
                groups = group_buckets(exporter.plan, missing, max_rows_in_flight)
                if check_source:
                    exporter.first_look = exporter.look(groups, pool)
                for group in groups:
                    for bucket, outcome in exporter.export_group(group, pool, threads, max_rows_in_flight):
                        if isinstance(outcome, LakeError):
                            failures[bucket] = outcome
                        else:
                            done[bucket] = outcome
                            on_bucket(outcome)
                if check_source and (before is None or source_state(source, exporter.plan) != before):
                    late = [
                        bucket
                        for bucket, now in exporter.look(groups, pool).items()
                        if bucket in done and now != exporter.first_look[bucket]
                    ]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Ctrl-C waits for what runs, not for what is queued
                raise
        committed = [bucket for bucket in todo if bucket in done and not done[bucket].skipped]
        reused = [bucket for bucket in committed if done[bucket].reused]
        reused_from = sorted({reusable[bucket].run.run_id for bucket in reused})
        if reused:
            logger.info("%d buckets are those of %s", len(reused), ", ".join(reused_from))
        if committed:
            run.store.settle(
                layout.RECEIPTS, *(layout.bucket_folder(run.spec, each) for each in committed if done[each].files)
            )
        # Rows of a source that changed meanwhile are of no one state: nobody may take them for one.
        unchanged = before is not None and source_state(source, exporter.plan) == before
        event = {
            "buckets": len(todo),
            "failed": len(failures),
            "reused": len(reused),
            "reused_from": reused_from,
            "seconds": round(time.monotonic() - started, 3),
            "threads": threads,
            "max_rows_in_flight": max_rows_in_flight,
            "source_state": asdict(before) if before and unchanged else None,
            "exported": committed,
            "check_source": check_source,
            "source_changed": sorted(
                [*late, *(bucket for bucket, error in failures.items() if isinstance(error, SourceChanged))]
            ),
        }
        with run.store.lock(exclusive=True):
            if not run.sealed:
                append_event(run.store, "candles", {**(details or {}), **event})
        if late:
            logger.warning(
                "run %s: in %d buckets the source has changed since they were committed, or cannot tell (%s). Each "
                "holds what the source had when it was read, but they are not of one moment: see what writes there; "
                "for a run of one moment export under another run_id when nothing does",
                run.run_id,
                len(late),
                format_buckets(late),
            )
    if failures:
        raise BucketsFailed(_failure_message(run, failures, len(done)), dict(sorted(failures.items())))
    return [done[bucket] for bucket in buckets]


def _check_limits(buckets: Sequence[str], threads: int, max_rows_in_flight: int) -> None:
    check_buckets(buckets)
    if not 1 <= threads <= 256:
        raise ConfigError(f"threads {threads} is not between 1 and 256")
    if max_rows_in_flight < 1:
        raise ConfigError(f"max_rows_in_flight {max_rows_in_flight} must be at least 1")


def _failure_message(run: Run, failures: Mapping[str, LakeError], done: int) -> str:
    by_reason: dict[str, list[str]] = {}
    for bucket, error in sorted(failures.items()):
        by_reason.setdefault(str(error), []).append(bucket)
    reasons = "\n".join(f"  {format_buckets(names)}: {reason}" for reason, names in by_reason.items())
    return (
        f"run {run.run_id}: {len(failures)} of {len(failures) + done} buckets failed, {done} are committed:\n"
        f"{reasons}\nRun again to export only what is missing"
    )


@dataclass(frozen=True)
class _Seen:
    """What the source has of some mints: how many rows, a checksum no order changes, or why it cannot tell."""

    rows: int = 0
    checksum: int = 0
    error: LakeError | None = None

    def __add__(self, other: _Seen) -> _Seen:
        return _Seen(self.rows + other.rows, (self.checksum + other.checksum) % 2**64, self.error or other.error)


@dataclass(frozen=True)
class _Chunk:
    """One bucket's share of one slice: candles in order, rejected ones, counts, and its alerts' measures."""

    candles: pa.Table
    rejected: pa.Table
    ledger: Ledger
    alert_rows: Int64Array
    measures: dict[str, Int64Array]


class _Exporter:
    """Reads slices and commits buckets of one run."""

    def __init__(self, run: Run, source: CandleSource, plan: Plan, alerts: pa.Table) -> None:
        self.run = run
        self.source = source
        self.plan = plan
        self.alert_ids = alerts.column("alert_id").to_pylist()
        self.mint_counts = Counter(plan.buckets)
        # What the source had of each bucket before anything was read; empty where that is not to be checked.
        self.first_look: Mapping[str, _Seen] = {}

    def take_over(
        self, reusable: Mapping[str, Reusable], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, BucketResult | LakeError]]:
        """Commit buckets with the files of other runs."""

        def commit(bucket: str) -> BucketResult | LakeError:
            return self._commit(bucket, lambda: take_over(self.run, reusable[bucket], bucket), reused=True)

        yield from zip(reusable, pool.map(commit, reusable), strict=True)

    def look(self, groups: Sequence[BucketGroup], pool: ThreadPoolExecutor) -> dict[str, _Seen]:
        """What the source has of these buckets now."""
        found = {bucket: _Seen() for group in groups for bucket in group.buckets}
        for part in pool.map(self._look_at, [indices for group in groups for indices in group.slices]):
            for bucket, seen in part:
                found[bucket] += seen
        return found

    def _look_at(self, indices: Sequence[int]) -> list[tuple[str, _Seen]]:
        """What it has of each mint, by bucket."""
        buckets = [self.plan.buckets[index] for index in indices]
        try:
            found = self.source.fingerprint(SliceRequest.of(self.plan, indices))
        except LakeError as error:
            return [(bucket, _Seen(error=error)) for bucket in buckets]
        return list(zip(buckets, map(_Seen, found.rows.tolist(), found.checksum.tolist()), strict=True))

    def _change(self, bucket: str, rows_read: int, now: _Seen) -> LakeError | None:
        """Why a bucket must not be committed, if the source was to be checked and shows a reason."""
        if not self.first_look:
            return None
        before = self.first_look[bucket]
        if before.error or now.error:
            return before.error or now.error
        if before == now and rows_read == now.rows:
            return None
        counts = f"{before.rows} rows before, {rows_read} read, {now.rows} after"
        values = ", with other values" if before.rows == rows_read == now.rows else ""
        return SourceChanged(
            f"its candles changed in the source while they were exported ({counts}{values}), and check_source asks for "
            "one state of them. The bucket is not committed: run again when nothing writes these candles"
        )

    def export_group(
        self, group: BucketGroup, pool: ThreadPoolExecutor, threads: int, max_rows_in_flight: int
    ) -> Iterator[tuple[str, BucketResult | LakeError]]:
        """Export the buckets of a group: in memory as a whole or, one too large for that, as a stream."""
        if group.max_rows > max_rows_in_flight:
            (bucket,) = group.buckets
            done = self._done_by_others(group.buckets)
            if done:
                yield bucket, done[bucket]
                return

            def write() -> Receipt:
                receipt = self._write_bucket(bucket, (parts[bucket] for parts in slices))
                now = self.look([group], pool)[bucket] if self.first_look else _Seen()
                if change := self._change(bucket, receipt.ledger.source_rows, now):
                    raise change
                return receipt

            with closing(_ahead(pool, self._read_slice, group.slices, threads)) as slices:
                yield bucket, self._commit(bucket, write)
            return
        chunks: dict[str, list[_Chunk | LakeError]] = {bucket: [] for bucket in group.buckets}
        for parts in pool.map(self._read_slice, group.slices):
            for bucket, chunk in parts.items():
                chunks[bucket].append(chunk)
        done = self._done_by_others(group.buckets)
        for bucket, now in (self.look([group], pool) if self.first_look else {}).items():
            read = [chunk.ledger.source_rows for chunk in chunks[bucket] if not isinstance(chunk, LakeError)]
            change = self._change(bucket, sum(read), now)
            if change and bucket not in done and len(read) == len(chunks[bucket]):
                done[bucket] = change
        yield from done.items()
        commits: dict[Future[BucketResult | LakeError], str] = {
            pool.submit(self._commit, bucket, partial(self._write_bucket, bucket, chunks[bucket])): bucket
            for bucket in group.buckets
            if bucket not in done
        }
        for commit in as_completed(commits):
            yield commits[commit], commit.result()

    def _read_slice(self, indices: Sequence[int]) -> dict[str, _Chunk | LakeError]:
        """Bucket -> chunk, or the error that kept it from being read.

        When a shared query fails for good, each bucket is asked for alone, so that one mint the source
        cannot answer for does not take its neighbours with it.
        """
        buckets = sorted({self.plan.buckets[index] for index in indices})
        try:
            return dict(self._chunks(indices))
        except LakeError as error:
            if error.transient or len(buckets) == 1:
                return dict.fromkeys(buckets, error)
        results: dict[str, _Chunk | LakeError] = {}
        for bucket in buckets:
            results.update(self._read_slice([index for index in indices if self.plan.buckets[index] == bucket]))
        return results

    def _chunks(self, indices: Sequence[int]) -> Iterator[tuple[str, _Chunk]]:
        plan, spec = self.plan, self.run.spec
        # In this order of mints, sorted candles are bucket by bucket already.
        indices = sorted(indices, key=plan.buckets.__getitem__)
        result = reconcile(self.source.read(SliceRequest.of(plan, indices)), len(indices))
        alert_rows, alert_mint = plan.alerts_of(indices)
        anchors = plan.anchors[alert_rows]
        zero_volume = result.candles.values["volume"] == 0
        measures = measure_windows(result.candles.keys, zero_volume, alert_mint, anchors, spec)
        kept = kept_mask(measures, spec)
        candles, outside = result.candles, np.zeros(len(indices), dtype=np.int64)
        if not kept.all():
            inside = _inside_windows(candles.keys, alert_mint[kept], anchors[kept], spec)
            outside = np.bincount(key_mint(candles.keys[~inside]), minlength=len(indices))
            candles, zero_volume = candles.take(inside), zero_volume[inside]

        names = sorted({plan.buckets[index] for index in indices})
        of_mint = np.array([names.index(plan.buckets[index]) for index in indices])
        mints = pa.array([plan.mints[index] for index in indices], pa.string())
        bounds = _bucket_bounds(candles, of_mint, len(names))
        rejected_bounds = _bucket_bounds(result.rejected, of_mint, len(names))
        table = candle_table(candles, mints, spec.interval_s)
        rejected_table = (
            candle_table(result.rejected, mints, spec.interval_s)
            .cast(SLICE_SCHEMA)
            .append_column(
                REJECTED_CANDLES_SCHEMA.field("reason"),
                pa.array([REJECT_REASONS[code] for code in result.reasons.tolist()], pa.string()),
            )
        )
        for position, bucket in enumerate(names):
            mine = of_mint == position
            own_alerts = mine[alert_mint]
            rows = slice(bounds[position], bounds[position + 1])
            bad = slice(rejected_bounds[position], rejected_bounds[position + 1])
            yield (
                bucket,
                _Chunk(
                    candles=table.slice(rows.start, rows.stop - rows.start),
                    rejected=rejected_table.slice(bad.start, bad.stop - bad.start),
                    ledger=Ledger(
                        source_rows=int(result.source_rows[mine].sum()),
                        written=rows.stop - rows.start,
                        duplicates=int(result.duplicates[mine].sum()),
                        rejected=bad.stop - bad.start,
                        outside_kept_windows=int(outside[mine].sum()),
                        zero_volume=int(zero_volume[rows].sum()),
                    ),
                    alert_rows=alert_rows[own_alerts],
                    measures={name: values[own_alerts] for name, values in measures.items()},
                ),
            )

    def _commit(self, bucket: str, write: Callable[[], Receipt], *, reused: bool = False) -> BucketResult | LakeError:
        """Write a bucket's parts by `write` and then its receipt; an error of ours is the result, not raised."""
        try:
            if self.run.store.locks:
                self._clear_leftovers(bucket)
            with self.run.store.lock(exclusive=False):
                # Another process may have committed this bucket meanwhile, and even sealed the run. Under the lock
                # a look holds until the receipt is there; without locks, creating the receipt decides.
                if self.run.store.locks:
                    state = self.run.bucket_state(bucket)
                    if state.receipt:
                        return BucketResult.of(state.receipt, skipped=True)
                    if self.run.sealed:
                        raise self._sealed_meanwhile()
                try:
                    receipt = write()
                    self.run.store.create(layout.receipt_path(bucket), receipt.to_bytes(), settled=False)
                except AlreadyExists:
                    # Another process was quicker; its commit counts if it stands up to what is stored.
                    state = self.run.bucket_state(bucket)
                    if state.receipt is None:
                        raise
                    self._delete_unlisted(bucket, state.receipt)
                    return BucketResult.of(state.receipt, skipped=True)
                return BucketResult.of(receipt, skipped=False, reused=reused)
        except LakeError as error:
            return error

    def _done_by_others(self, buckets: Sequence[str]) -> dict[str, BucketResult | LakeError]:
        """Without locks, one look for many buckets at what another process has done with them meanwhile.

        It spares work and keeps late files out of a sealed run as far as a look can.
        """
        if self.run.store.locks:
            return {}
        done: dict[str, BucketResult | LakeError] = {}
        try:
            sealed = self.run.sealed  # before the look, as in `export_buckets`
            for state in self.run.bucket_states(buckets):
                if state.receipt:
                    done[state.bucket] = BucketResult.of(state.receipt, skipped=True)
            if len(done) < len(buckets) and sealed:
                raise self._sealed_meanwhile()
        except LakeError as error:
            return dict.fromkeys(buckets, error) | done
        return done

    def _sealed_meanwhile(self) -> RunSealed:
        return RunSealed(f"run {self.run.run_id} was sealed meanwhile; nothing more is written to it")

    def _clear_leftovers(self, bucket: str) -> None:
        """Remove what an interrupted attempt left of a bucket that has no valid receipt.

        Exclusive, so that it never takes the files of a commit in progress; every commit holds the lock
        shared from its first part to its receipt. So only where there are locks: elsewhere everything stays, and a
        new attempt takes over what has the bytes it would write, and fails on the rest.
        """
        receipt = layout.receipt_path(bucket)
        if not (self.run.store.exists(receipt) or self.run.bucket_files(bucket)):
            return
        with self.run.store.lock(exclusive=True):
            state = self.run.bucket_state(bucket)
            if state.receipt or self.run.sealed:
                return
            logger.warning("bucket %s: removing what an earlier attempt left (%s)", bucket, state.problem)
            self.run.store.delete(receipt)
            for path in self.run.bucket_files(bucket):
                self.run.store.delete(path)

    def _delete_unlisted(self, bucket: str, receipt: Receipt) -> None:
        """Remove what this attempt wrote and the receipt that was quicker does not list: nobody will ever want it."""
        listed = {entry.path for entry in receipt.entries}
        for path in self.run.bucket_files(bucket):
            if path not in listed and (layout.is_part(path) or path == layout.rejected_path(bucket)):
                self.run.store.delete(path)

    def _write_bucket(self, bucket: str, chunks: Iterable[_Chunk | LakeError]) -> Receipt:
        ledger = Ledger()
        rejected = [REJECTED_CANDLES_SCHEMA.empty_table()]
        alert_rows: list[Int64Array] = [np.empty(0, np.int64)]
        measures: dict[str, list[Int64Array]] = {name: [np.empty(0, np.int64)] for name in MEASURES}
        with SliceWriter(self.run.store, self.run.spec, bucket) as writer:
            for chunk in chunks:
                if isinstance(chunk, LakeError):
                    raise chunk
                writer.write(chunk.candles)
                rejected.append(chunk.rejected)
                ledger += chunk.ledger
                alert_rows.append(chunk.alert_rows)
                for name in MEASURES:
                    measures[name].append(chunk.measures[name])
        written = sum(file.rows for file in writer.files)
        if not ledger.balanced or ledger.written != written:
            raise RunError(
                f"run {self.run.run_id}, bucket {bucket}: the ledger does not balance: {ledger.model_dump()}, "
                f"{written} rows in files. This is a defect of the exporter: please report it"
            )
        rows = np.concatenate(alert_rows)
        order = np.argsort(rows)
        bad = pa.concat_tables(rejected).combine_chunks()
        return Receipt(
            run_fingerprint=self.run.record.run_fingerprint,
            mint_bucket=bucket,
            mints=self.mint_counts[bucket],
            ledger=ledger,
            files=writer.files,
            rejected=write_table(self.run.store, layout.rejected_path(bucket), bad, ts_column="ts")
            if bad.num_rows
            else None,
            coverage={
                "alert_id": [self.alert_ids[row] for row in rows[order].tolist()],
                **{name: np.concatenate(values)[order].tolist() for name, values in measures.items()},
            },
        )


def _ahead(
    pool: ThreadPoolExecutor,
    action: Callable[[Sequence[int]], dict[str, _Chunk | LakeError]],
    items: Sequence[Sequence[int]],
    count: int,
) -> Generator[dict[str, _Chunk | LakeError], None, None]:
    """`map` in order that keeps `count` calls running and never more than that finished but unused."""
    pending: deque[Future[dict[str, _Chunk | LakeError]]] = deque()
    remaining = iter(items)
    try:
        for item in remaining:
            pending.append(pool.submit(action, item))
            if len(pending) >= count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _inside_windows(keys: Int64Array, mint: Int64Array, anchors: Int64Array, spec: RunSpec) -> npt.NDArray[np.bool_]:
    """Which candles lie in the window of at least one of these alerts."""
    groups, starts, ends = merge_windows(mint, *spec.windows(anchors))
    if len(groups) == 0:
        return np.zeros(len(keys), dtype=bool)
    position = np.searchsorted(candle_keys(groups, starts), keys, side="right") - 1
    inside: npt.NDArray[np.bool_] = (position >= 0) & (keys < candle_keys(groups, ends)[position])
    return inside


def _bucket_bounds(block: CandleBlock, of_mint: Int64Array, count: int) -> list[int]:
    """Where each bucket begins in a block that is sorted by bucket, and one more for the end."""
    sizes = np.bincount(of_mint[key_mint(block.keys)], minlength=count)
    return [0, *np.cumsum(sizes).tolist()]
