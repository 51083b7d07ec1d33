"""The second half of a run as plain functions: gather its coverage and seal it.

The seal trusts only the store: what Dagster believes of partitions plays no part in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from lake_pipeline.core.buckets import ALL_BUCKETS, format_buckets
from lake_pipeline.core.candles import gather_rejected
from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.core.coverage import gather_coverage
from lake_pipeline.core.manifest import Exporter, FileEntry, Manifest, Receipt, Record, build_manifest
from lake_pipeline.core.schemas import REJECTED_ALERTS_SCHEMA, REJECTED_CANDLES_SCHEMA
from lake_pipeline.errors import AlreadyExists, BucketsMissing, RunNotSealed, StoreError
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table, table_bytes
from lake_pipeline.io.provenance import append_event
from lake_pipeline.io.store import LocalStore, hash_file
from lake_pipeline.run import Run
from lake_pipeline.verify import require_verified

__all__ = ["CoverageResult", "SealResult", "cover_run", "seal_run", "write_manifest_json"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoverageResult:
    """Coverage of a run in counts of alerts, and the candles that were rejected.

    `missing_alerts` are those of `missing_buckets`, which have no valid receipt yet; all else counts the others,
    and `table` is theirs (COVERAGE_SCHEMA).
    """

    run_id: str
    alerts: int
    kept: int
    dropped: int
    complete: int
    partial: int
    insufficient: int
    rejected_candles: int
    missing_buckets: tuple[str, ...]
    missing_alerts: int
    table: pa.Table = field(repr=False, compare=False)


@dataclass(frozen=True)
class SealResult:
    """A sealed run; `created` is false when it was sealed before and has only been verified."""

    manifest: Manifest
    created: bool


def cover_run(run: Run, *, threads: int = 2) -> CoverageResult:
    """Write outputs/coverage.parquet, and rejected_candles.parquet if any, from the receipts there are.

    While buckets are missing, their alerts are missing from the table too: it is a look at an unfinished
    run, written only where the seal, which writes it anew, can be locked out meanwhile. On a sealed run nothing
    is written.
    """
    # The table is made from receipts alone; what the files hold is for the seal to check.
    states = run.bucket_states(threads=threads, hashes=False)
    receipts = [state.receipt for state in states if state.receipt]
    alerts = run.alerts()
    coverage = gather_coverage(alerts, receipts, run.spec)
    rejected = _rejected_candles(run, receipts)
    if not run.sealed:
        with run.store.lock(exclusive=True):
            # Of all receipts there is one outcome, whoever writes it when; of some of them it must not meet a seal.
            if not run.sealed and (run.store.locks or len(receipts) == len(ALL_BUCKETS)):
                _write_outputs(run, coverage, rejected)
    statuses = coverage.column("status").to_pylist()
    kept = sum(coverage.column("kept").to_pylist())
    return CoverageResult(
        run_id=run.run_id,
        alerts=coverage.num_rows,
        kept=kept,
        dropped=coverage.num_rows - kept,
        complete=statuses.count("complete"),
        partial=statuses.count("partial"),
        insufficient=statuses.count("insufficient"),
        rejected_candles=rejected.num_rows,
        missing_buckets=tuple(state.bucket for state in states if not state.receipt),
        missing_alerts=alerts.num_rows - coverage.num_rows,
        table=coverage,
    )


def seal_run(
    run: Run, *, threads: int = 2, previous: Run | None = None, details: Mapping[str, Any] | None = None
) -> SealResult:
    """Seal a complete run; verify one that is sealed already, changing nothing.

    The manifest names the sealed run `previous`, if given, as the one before it (RunNotSealed if it is not sealed).
    Raises BucketsMissing naming the buckets without a valid receipt, RunError for a foreign file, and
    VerificationFailed for a sealed run that is not what its manifest says.
    """
    if previous and not previous.sealed:
        raise RunNotSealed(f"run {previous.run_id!r} is not sealed, so no run can name it as the one before")
    before = previous.manifest().as_previous() if previous else None
    with run.store.lock(exclusive=True):
        if run.sealed:
            _remove_unfinished(run)
            return SealResult(require_verified(run, threads=threads), created=False)
        receipts, records = _receipts(run, threads)
        alerts = run.alerts()
        coverage = gather_coverage(alerts, receipts, run.spec)
        # The same bytes as those of the coverage step, unless a bucket was exported again after it.
        outputs = _write_outputs(run, coverage, _rejected_candles(run, receipts))
        inputs = [_entry(run, layout.ALERTS, alerts.num_rows)]
        if run.store.exists(layout.REJECTED_ALERTS):
            rejected = read_table(run.store, layout.REJECTED_ALERTS, REJECTED_ALERTS_SCHEMA)
            inputs.append(_entry(run, layout.REJECTED_ALERTS, rejected.num_rows))
        records += [
            Record(path=receipt.rejected.path, sha256=receipt.rejected.sha256, bytes=receipt.rejected.bytes)
            for receipt in receipts
            if receipt.rejected
        ]
        manifest = build_manifest(
            run.record,
            Exporter(name="lake-pipeline", version=version("lake-pipeline")),
            receipts,
            records,
            inputs,
            outputs,
            coverage,
            layout.slices_folder(run.spec),
            before,
        )
        if manifest.coverage.insufficient == coverage.num_rows:
            logger.warning(
                "run %s has no candle for any of its %d alerts: check interval %s, chain %s and table %s.%s",
                run.run_id,
                coverage.num_rows,
                run.spec.interval,
                run.spec.chain,
                run.record.source["database"],
                run.record.source["table"],
            )
        _refuse_foreign_files(run, manifest)
        run.store.settle(*(entry.path.rpartition("/")[0] for entry in (*manifest.files, *manifest.records)))
        data = manifest.to_bytes()
        _write_checksums(run, manifest.checksums(data))
        append_event(run.store, "manifest", {**(details or {}), "content_sha256": manifest.content_sha256})
        run.require_folder()  # a manifest in a new one would seal nothing
        try:
            run.store.create(layout.MANIFEST, data)
        except AlreadyExists:  # where there are no locks: another process was quicker
            theirs = run.manifest()
            _write_checksums(run, theirs.checksums(theirs.to_bytes()))  # ours may have been written over theirs
            return SealResult(require_verified(run, threads=threads), created=False)
    logger.info("run %s is sealed: content %s", run.run_id, manifest.content_sha256)
    return SealResult(manifest, created=True)


def write_manifest_json(manifest: Manifest | Mapping[str, Any], path: str | Path) -> None:
    """Write a manifest as canonical JSON, atomically and once: AlreadyExists if `path` is taken."""
    path = Path(path)
    data = manifest.to_bytes() if isinstance(manifest, Manifest) else canonical_json(dict(manifest))
    LocalStore(path.parent).create(path.name, data)


def _receipts(run: Run, threads: int) -> tuple[list[Receipt], list[Record]]:
    """The valid receipts of all 256 buckets and the hashes of their own files, or BucketsMissing."""
    states = run.bucket_states(threads=threads)
    receipts = [state.receipt for state in states if state.receipt]
    bad = [state for state in states if not state.receipt]
    if bad:
        damaged = "".join(f"\n  {state.bucket}: {state.problem}" for state in bad if state.problem != "missing")
        raise BucketsMissing(
            f"run {run.run_id}: {len(bad)} of {len(ALL_BUCKETS)} buckets missing: "
            f"{format_buckets(state.bucket for state in bad)}.{damaged and ' Of these, not valid:'}{damaged}\n"
            "Materialise `candles` for them with the same run config; buckets that are done are skipped",
            [state.bucket for state in bad],
        )
    return receipts, [state.record for state in states if state.record]


def _rejected_candles(run: Run, receipts: Sequence[Receipt]) -> pa.Table:
    """The rejected candles of all buckets, sorted by (mint, ts)."""
    tables = [
        read_table(run.store, receipt.rejected.path, REJECTED_CANDLES_SCHEMA)
        for receipt in receipts
        if receipt.rejected
    ]
    return gather_rejected(tables)


def _write_outputs(run: Run, coverage: pa.Table, rejected: pa.Table) -> list[FileEntry]:
    """Bring the outputs of an unsealed run to these tables. The caller holds the run's exclusive lock, if any."""
    wanted = {layout.COVERAGE: coverage}
    if rejected.num_rows:
        wanted[layout.REJECTED_CANDLES] = rejected
    elif run.store.exists(layout.REJECTED_CANDLES):
        run.store.delete(layout.REJECTED_CANDLES)
    entries = []
    for path, table in wanted.items():
        data = table_bytes(table)
        if not run.store.exists(path) or run.store.read(path) != data:
            run.store.replace(path, data)
        entries.append(
            FileEntry(
                path=path,
                sha256=sha256_hex(data),
                bytes=len(data),
                rows=table.num_rows,
                min_ts_ms=None,
                max_ts_ms=None,
            )
        )
    return entries


def _entry(run: Run, path: str, rows: int) -> FileEntry:
    return FileEntry(**hash_file(run.store, path).model_dump(), rows=rows, min_ts_ms=None, max_ts_ms=None)


def _refuse_foreign_files(run: Run, manifest: Manifest) -> None:
    """StoreError for files nobody accounts for; unfinished writes of dead processes are removed."""
    known = {entry.path for entry in (*manifest.files, *manifest.records)}
    # A manifest is there by now only where there are no locks; creating ours will tell.
    known |= {layout.RUN_RECORD, layout.PROVENANCE, layout.CHECKSUMS, layout.MANIFEST}
    foreign = [path for path in _remove_unfinished(run) if path not in known]
    if foreign:
        shown = ", ".join(foreign[:5])
        raise StoreError(
            f"run {run.run_id}: {len(foreign)} files in the run's folder are not part of it: {shown}"
            f"{' ...' if len(foreign) > 5 else ''}. Nothing is deleted: move them out of {run.store.uri} and seal again"
        )


def _remove_unfinished(run: Run) -> list[str]:
    """Delete what dead processes left half written; the other files' paths. The caller holds the lock, if any."""
    files = list(run.store.files())
    for file in files:
        if file.temporary:
            run.store.delete(file.path)
    return [file.path for file in files if not file.temporary]


def _write_checksums(run: Run, data: bytes) -> None:
    """SHA256SUMS over every sealed file, the manifest to come included. The caller holds the lock."""
    if not run.store.exists(layout.CHECKSUMS) or run.store.read(layout.CHECKSUMS) != data:
        run.store.replace(layout.CHECKSUMS, data)
