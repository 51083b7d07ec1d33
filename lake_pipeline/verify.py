"""Checking a sealed run against its own manifest, trusting nothing but the files.

Every check that finds something adds one sentence; nothing stops at the first fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.candles import REJECT_REASONS, VALUE_COLUMNS, candle_keys, gather_rejected, reject_codes
from lake_pipeline.core.canonical import root_hash, sha256_hex, table_digest
from lake_pipeline.core.coverage import MEASURES, coverage_table, gather_coverage, measure_windows
from lake_pipeline.core.manifest import FileEntry, Manifest, Previous, Receipt, Record, build_manifest, parse_record
from lake_pipeline.core.plan import Plan, build_plan
from lake_pipeline.core.schemas import (
    ALERTS_SCHEMA,
    COVERAGE_SCHEMA,
    REJECTED_ALERTS_SCHEMA,
    REJECTED_CANDLES_SCHEMA,
    SLICE_SCHEMA,
)
from lake_pipeline.core.spec import LAKE_VERSION
from lake_pipeline.errors import LakeError, RunNotFound, RunNotSealed, VerificationFailed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table, table_bytes
from lake_pipeline.io.store import Store, StoredFile, hash_file
from lake_pipeline.run import Run

__all__ = ["VerifyReport", "require_manifest", "require_verified", "verify_chain", "verify_run"]

Int64Array = npt.NDArray[np.int64]


@dataclass
class VerifyReport:
    """What a verification found: `faults` is empty for a run that is what its manifest says."""

    run_id: str
    faults: list[str] = field(default_factory=list)
    files: int = 0
    rows: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults


def require_verified(run: Run, *, threads: int = 2) -> Manifest:
    """The manifest of a sealed run that verifies; VerificationFailed otherwise."""
    report = verify_run(run.store, run.run_id, threads=threads)
    if not report.ok:
        raise VerificationFailed.of(run.run_id, report.faults)
    return run.manifest()


def require_manifest(run: Run) -> Manifest:
    """The manifest of a sealed run, checked against run.json, SHA256SUMS and its own root, but no data file.

    Whoever reads a data file compares it with its entry. Raises RunNotSealed and VerificationFailed.
    """
    if not run.sealed:
        raise _not_sealed(run.run_id)
    report = VerifyReport(run.run_id)
    manifest = _Checker(run.store, run.run_id, report).manifest()
    if manifest is None or not report.ok:
        raise VerificationFailed.of(run.run_id, report.faults)
    return manifest


def verify_run(
    store: Store, run_id: str, *, threads: int = 2, on_file: Callable[[int], None] = lambda size: None
) -> VerifyReport:
    """Check every sealed byte and every rule of the format. `store` is rooted at the run's folder.

    `on_file` is called with the size of each file as its hash is known. Raises RunNotFound and RunNotSealed
    when there is nothing to verify.
    """
    return _verify(store, run_id, threads, on_file)[0]


def _verify(
    store: Store, run_id: str, threads: int, on_file: Callable[[int], None]
) -> tuple[VerifyReport, Manifest | None]:
    """The report, and the manifest it is about if that can be read."""
    if not store.exists(layout.MANIFEST):
        if store.exists(layout.RUN_RECORD):
            raise _not_sealed(run_id)
        raise RunNotFound(f"no run at {store.uri}")
    report = VerifyReport(run_id)
    check = _Checker(store, run_id, report)
    manifest = check.manifest()
    if manifest is None:
        return report, None
    report.files = len(manifest.files) + len(manifest.records)
    report.rows = manifest.total_rows
    report.bytes = sum(entry.bytes for entry in (*manifest.files, *manifest.records))
    files = store.files()
    damaged = check.hashes(manifest, files, threads, on_file)
    check.foreign_files(manifest, files)
    if not damaged:
        # What the files say about each other means something only while each is the one that was sealed.
        check.contents(manifest, threads)
    return report, manifest


def verify_chain(
    lake: Store, run_id: str, *, threads: int = 2, on_file: Callable[[int], None] = lambda size: None
) -> list[VerifyReport]:
    """`verify_run` of a run, of the run its manifest names as previous, and so on to the first, in that order.

    A run that is missing, not sealed, or not the one that was named is a fault of the run that names it. Names
    repeat only where a manifest was forged, and a forged one is a fault too, so the walk ends.
    """
    reports: list[VerifyReport] = []
    wanted: Previous | None = None
    while True:
        store = lake.sub(layout.run_folder(run_id))
        try:
            report, manifest = _verify(store, run_id, threads, on_file)
        except (RunNotFound, RunNotSealed) as error:
            if not reports:
                raise
            reports[-1].faults.append(f"its previous run cannot be followed: {error}")
            return reports
        if reports and (manifest is None or manifest.as_previous() != wanted):
            reports[-1].faults.append(f"its previous run {run_id!r} is not the one that was sealed before it")
        reports.append(report)
        if manifest is None or manifest.previous is None or not report.ok:
            return reports
        run_id, wanted = manifest.previous.run_id, manifest.previous


def _not_sealed(run_id: str) -> RunNotSealed:
    return RunNotSealed(f"run {run_id} is not sealed: it has no {layout.MANIFEST}. Materialise `manifest` first")


class _Checker:
    def __init__(self, store: Store, run_id: str, report: VerifyReport) -> None:
        self.store = store
        self.run_id = run_id
        self.faults = report.faults
        self.receipts: dict[str, bytes] = {}  # path -> the bytes that were hashed

    def manifest(self) -> Manifest | None:
        """The manifest, if it is one, checked against run.json, SHA256SUMS and its own root."""
        data = self.store.read(layout.MANIFEST)
        try:
            manifest = parse_record(Manifest, data, layout.MANIFEST)
            implied = manifest.run_record
        except (LakeError, KeyError) as error:
            self.faults.append(f"{layout.MANIFEST} is not a manifest: {error}")
            return None
        canonical = manifest.to_bytes()
        if canonical != data:
            self.faults.append(f"{layout.MANIFEST} is not canonical: it was edited or written by something else")
        if manifest.run_id != self.run_id:
            self.faults.append(f"{layout.MANIFEST} is that of run {manifest.run_id!r}, not {self.run_id!r}")
        if manifest.run_fingerprint != implied.run_fingerprint:
            self.faults.append(f"{layout.MANIFEST}: run_fingerprint is not that of its spec, alerts and source")
        if manifest.content_sha256 != root_hash((file.path, file.sha256) for file in manifest.files):
            self.faults.append(f"{layout.MANIFEST}: content_sha256 is not the root of its files")
        for path, wanted in (
            (layout.RUN_RECORD, implied.to_bytes()),
            (layout.CHECKSUMS, manifest.checksums(canonical)),
        ):
            if not self.store.exists(path):
                self.faults.append(f"{path} is missing")
            elif self.store.read(path) != wanted:
                self.faults.append(f"{path} is not the one that {layout.MANIFEST} implies")
        return manifest

    def hashes(
        self, manifest: Manifest, files: Sequence[StoredFile], threads: int, on_file: Callable[[int], None]
    ) -> bool:
        """Size and hash of every file; returns whether any differs."""
        present = {file.path for file in files}
        receipts = {layout.receipt_path(bucket) for bucket in ALL_BUCKETS}

        def fault(entry: Record) -> str | None:
            if entry.path not in present:
                return f"{entry.path} is missing"
            try:
                if entry.path in receipts:
                    data = self.receipts[entry.path] = self.store.read(entry.path)
                    found = Record(path=entry.path, sha256=sha256_hex(data), bytes=len(data))
                else:
                    found = hash_file(self.store, entry.path)
            except LakeError as error:
                return f"{entry.path}, listed in {layout.MANIFEST}: {error}"
            if found.bytes != entry.bytes:
                return f"{entry.path} has {found.bytes} bytes, sealed with {entry.bytes}"
            return None if found.sha256 == entry.sha256 else f"{entry.path} has other content than was sealed"

        entries: list[Record] = [*manifest.files, *manifest.records]
        damaged = False
        with ThreadPoolExecutor(threads) as pool:
            for entry, found in zip(entries, pool.map(fault, entries), strict=True):
                on_file(entry.bytes)
                if found:
                    self.faults.append(found)
                    damaged = True
        return damaged

    def foreign_files(self, manifest: Manifest, files: Sequence[StoredFile]) -> None:
        """Files in the folder that nobody accounts for."""
        known = {entry.path for entry in (*manifest.files, *manifest.records)}
        known |= {layout.RUN_RECORD, layout.MANIFEST, layout.CHECKSUMS, layout.PROVENANCE}
        self.faults += [
            f"{file.path} is not part of the run"
            for file in files
            # A process that died just after the seal leaves its temporary name behind; no reader takes it for data.
            if file.path not in known and not file.temporary
        ]

    def contents(self, manifest: Manifest, threads: int) -> None:
        """Receipts, tables and candles: everything the hashes alone cannot show."""
        try:
            receipts = [
                parse_record(Receipt, self.receipts[path], path) for path in map(layout.receipt_path, ALL_BUCKETS)
            ]
        except KeyError as error:
            self.faults.append(f"{layout.MANIFEST} does not list {error.args[0]}")
            return
        except LakeError as error:
            self.faults.append(str(error))
            return
        spec = manifest.run_spec
        entries: dict[str, tuple[FileEntry, pa.Schema]] = {}
        schemas = {
            layout.ALERTS: ALERTS_SCHEMA,
            layout.REJECTED_ALERTS: REJECTED_ALERTS_SCHEMA,
            layout.COVERAGE: COVERAGE_SCHEMA,
            layout.REJECTED_CANDLES: REJECTED_CANDLES_SCHEMA,
        }
        entries |= {entry.path: (entry, schemas[entry.path]) for entry in manifest.files if entry.path in schemas}
        rejected = [receipt.rejected for receipt in receipts if receipt.rejected]
        entries |= {entry.path: (entry, REJECTED_CANDLES_SCHEMA) for entry in rejected}
        tables = {path: self._table(entry, schema) for path, (entry, schema) in entries.items()}
        alerts, coverage = tables.get(layout.ALERTS), tables.get(layout.COVERAGE)
        if alerts is None or coverage is None or any(table is None for table in tables.values()):
            if not self.faults:
                self.faults.append(f"{layout.MANIFEST} does not list {layout.ALERTS} and {layout.COVERAGE}")
            return
        if table_digest(alerts) != manifest.inputs.alerts.digest:
            self.faults.append(f"{layout.ALERTS}: its values are not those of inputs.alerts.digest")
        self.faults += [
            f"{layout.receipt_path(bucket)} is not a receipt of bucket {bucket} of this run"
            for bucket, receipt in zip(ALL_BUCKETS, receipts, strict=True)
            if (receipt.mint_bucket, receipt.run_fingerprint) != (bucket, manifest.run_fingerprint)
        ]
        self.faults += [
            f"{layout.receipt_path(receipt.mint_bucket)} lists other files than those of its bucket"
            for receipt in receipts
            if not layout.is_of_bucket(receipt, spec)
        ]
        self._rebuild(manifest, receipts, coverage)
        if self.faults:
            return
        self._outputs(manifest, receipts, tables)
        plan = build_plan(alerts, spec)
        kept = coverage.column("kept").to_numpy(zero_copy_only=False)
        with ThreadPoolExecutor(threads) as pool:
            buckets = [receipt for receipt in receipts if receipt.files]
            mints: dict[str, dict[str, int]] = {bucket: {} for bucket in ALL_BUCKETS}
            for index, (mint, bucket) in enumerate(zip(plan.mints, plan.buckets, strict=True)):
                mints[bucket][mint] = index
            checkers = [_BucketChecker(self.store, plan, each, mints[each.mint_bucket], kept) for each in buckets]
            outcomes = list(pool.map(_BucketChecker.run, checkers))
        measures = {name: np.zeros(coverage.num_rows, dtype=np.int64) for name in MEASURES}
        # An alert no candle was written for has the measures of an empty window.
        for name in ("missing", "largest_gap"):
            measures[name][:] = plan.spec.pre + 1 + plan.spec.post
        measures["gap_count"][:] = 1
        for outcome in outcomes:
            self.faults += outcome.faults
            for name in MEASURES:
                measures[name][outcome.alert_rows] = outcome.measures[name]
        recount = coverage_table(alerts, measures, plan.spec)
        compared = [name for name in recount.column_names if name not in ("kept", "reason")]
        same = coverage.select(compared).filter(pa.array(kept)).equals(recount.select(compared).filter(pa.array(kept)))
        for row in np.flatnonzero(kept).tolist() if not same else ():
            for name in compared:
                stored, counted = coverage.column(name)[row].as_py(), recount.column(name)[row].as_py()
                if stored != counted:
                    self.faults.append(
                        f"{layout.COVERAGE}: alert {recount.column('alert_id')[row].as_py()!r} has {name} {stored}, "
                        f"its candles say {counted}"
                    )

    def _table(self, entry: FileEntry, schema: pa.Schema) -> pa.Table | None:
        """A table as its entry describes it, or None and a fault."""
        try:
            table = read_table(self.store, entry.path, schema)
        except LakeError as error:
            self.faults.append(f"{entry.path}: {error}")
            return None
        if table.num_rows != entry.rows:
            self.faults.append(f"{entry.path} has {table.num_rows} rows, sealed with {entry.rows}")
        return table

    def _outputs(self, manifest: Manifest, receipts: Sequence[Receipt], tables: dict[str, pa.Table]) -> None:
        """The outputs must be what the receipts add up to, row by row."""
        try:
            wanted = gather_coverage(tables[layout.ALERTS], receipts, manifest.run_spec)
        except LakeError as error:
            self.faults.append(f"{layout.COVERAGE}: {error}")
            return
        stored = tables[layout.COVERAGE]
        for row in range(wanted.num_rows) if not stored.equals(wanted) else ():
            ours, theirs = wanted.slice(row, 1).to_pylist()[0], stored.slice(row, 1).to_pylist()[0]
            self.faults += [
                f"{layout.COVERAGE}: alert {ours['alert_id']!r} has {name} {theirs[name]!r}, "
                f"its receipt says {ours[name]!r}"
                for name in ours
                if ours[name] != theirs[name]
            ]
        parts = [tables[receipt.rejected.path] for receipt in receipts if receipt.rejected]
        gathered = gather_rejected(parts)
        listed = tables.get(layout.REJECTED_CANDLES, REJECTED_CANDLES_SCHEMA.empty_table())
        # Compared as the bytes they are written as: NaN, which rejected candles hold, equals nothing.
        if table_bytes(listed) != table_bytes(gathered):
            self.faults.append(f"{layout.REJECTED_CANDLES} is not what the receipts' rejected candles add up to")

    def _rebuild(self, manifest: Manifest, receipts: Sequence[Receipt], coverage: pa.Table) -> None:
        """The manifest must be the one its own records and tables lead to."""
        outputs = (layout.COVERAGE, layout.REJECTED_CANDLES)
        inputs = (layout.ALERTS, layout.REJECTED_ALERTS)
        by_path = {entry.path: entry for entry in manifest.files}
        try:
            rebuilt = build_manifest(
                manifest.run_record,
                manifest.exporter,
                receipts,
                manifest.records,
                [by_path[path] for path in inputs if path in by_path],
                [by_path[path] for path in outputs if path in by_path],
                coverage,
                layout.slices_folder(manifest.run_spec),
                manifest.previous,
            )
        except (LakeError, IndexError) as error:
            self.faults.append(f"{layout.MANIFEST} cannot be rebuilt from the records: {error}")
            return
        stored, wanted = manifest.model_dump(), rebuilt.model_dump()
        self.faults += [
            f"{layout.MANIFEST}: {name} is not what the receipts and tables add up to"
            for name in stored
            if stored[name] != wanted[name]
        ]
        receipts_paths = {layout.receipt_path(bucket) for bucket in ALL_BUCKETS}
        receipts_paths |= {receipt.rejected.path for receipt in receipts if receipt.rejected}
        if {record.path for record in manifest.records} != receipts_paths:
            self.faults.append(f"{layout.MANIFEST}: records are not exactly the receipts and what they point to")
        for receipt in receipts:
            counted = receipt.rejected.rows if receipt.rejected else 0
            if counted != receipt.ledger.rejected:
                self.faults.append(
                    f"{layout.receipt_path(receipt.mint_bucket)}: its ledger has {receipt.ledger.rejected} rejected "
                    f"candles, its file {counted}"
                )


@dataclass
class _BucketOutcome:
    faults: list[str]
    alert_rows: Int64Array
    measures: dict[str, Int64Array]


class _BucketChecker:
    """Reads one bucket's parts, a few mints at a time, and checks every candle."""

    def __init__(
        self, store: Store, plan: Plan, receipt: Receipt, mint_index: dict[str, int], kept: npt.NDArray[np.bool_]
    ) -> None:
        self.store = store
        self.plan = plan
        self.receipt = receipt
        self.kept = kept
        self.faults: list[str] = []
        self.mint_index = mint_index

    def run(self) -> _BucketOutcome:
        rows: list[Int64Array] = [np.empty(0, np.int64)]
        measures: dict[str, list[Int64Array]] = {name: [np.empty(0, np.int64)] for name in MEASURES}
        zero_volume = 0
        last = ""
        for table in self._whole_mints():
            names = table.column("mint").dictionary_encode().combine_chunks()
            mints = names.dictionary.to_pylist() if isinstance(names, pa.DictionaryArray) else []
            foreign = [mint for mint in mints if mint not in self.mint_index]
            if foreign:
                self._fault(f"{foreign[0]!r} is not a mint of this bucket's alerts")
                continue
            if [last, *mints] != sorted({last, *mints}, key=str.encode):
                self._fault("its mints are not in order")
                continue
            last = mints[-1]
            zero_volume += self._check(table, mints, np.asarray(names.indices, dtype=np.int64), rows, measures)
        if zero_volume != self.receipt.ledger.zero_volume:
            self._fault(f"{zero_volume} candles have no volume, the ledger says {self.receipt.ledger.zero_volume}")
        return _BucketOutcome(
            self.faults,
            np.concatenate(rows),
            {name: np.concatenate(parts) for name, parts in measures.items()},
        )

    def _fault(self, text: str) -> None:
        self.faults.append(f"bucket {self.receipt.mint_bucket}: {text}")

    def _check(
        self,
        table: pa.Table,
        mints: Sequence[str],
        local: Int64Array,
        rows: list[Int64Array],
        measures: dict[str, list[Int64Array]],
    ) -> int:
        """Check the candles of some whole mints, add their alerts' measures, return the zero-volume count."""
        plan, spec = self.plan, self.plan.spec
        keys = candle_keys(local, table.column("ts").cast(pa.int64()).to_numpy())
        if not np.all(keys[1:] > keys[:-1]):
            self._fault("its candles are not sorted and unique by (mint, ts)")
            return 0
        if not np.all(table.column("interval_s").to_numpy() == spec.interval_s):
            self._fault(f"interval_s is not {spec.interval_s} everywhere")
        values = {name: table.column(name).to_numpy() for name in VALUE_COLUMNS}
        codes = reject_codes(values)
        if codes.any():
            self._fault(f"{np.count_nonzero(codes)} candles break a sanity rule ({REJECT_REASONS[codes.max()]})")
        indices = [self.mint_index[mint] for mint in mints]
        alert_rows, alert_mint = plan.alerts_of(indices)
        anchors = plan.anchors[alert_rows]
        # Count how many kept windows begin and end up to each candle: inside means more begun than ended.
        kept = self.kept[alert_rows]
        begun, ended = (np.sort(candle_keys(alert_mint[kept], edges)) for edges in spec.windows(anchors[kept]))
        inside = np.searchsorted(begun, keys, side="right") > np.searchsorted(ended, keys, side="right")
        if not inside.all():
            self._fault(f"{np.count_nonzero(~inside)} candles lie in no kept alert's window")
        zero = values["volume"] == 0
        rows.append(alert_rows)
        for name, found in measure_windows(keys, zero, alert_mint, anchors, spec).items():
            measures[name].append(found)
        return int(np.count_nonzero(zero))

    def _whole_mints(self) -> Iterator[pa.Table]:
        """The bucket's rows in order, cut at mint boundaries, one row group in memory at a time."""
        carried: pa.Table = SLICE_SCHEMA.empty_table()
        for entry in self.receipt.files:
            for table in self._row_groups(entry):
                carried = pa.concat_tables([carried, table])
                mints = carried.column("mint")
                last = mints[-1].as_py()
                # Sorted input: everything before the last mint's first row is complete.
                cut = int(np.count_nonzero(np.asarray(pa.compute.not_equal(mints, last))))
                if cut:
                    yield carried.slice(0, cut)
                carried = carried.slice(cut)
        if carried.num_rows:
            yield carried

    def _row_groups(self, entry: FileEntry) -> Iterator[pa.Table]:
        low: list[int] = []
        high: list[int] = []
        rows = 0
        try:
            with self.store.open(entry.path) as file:
                # By this thread alone, as in io.parquet: buckets are read side by side.
                parquet = pq.ParquetFile(file, pre_buffer=False)
                metadata: dict[bytes, Any] = parquet.metadata.metadata or {}
                if not parquet.schema_arrow.equals(SLICE_SCHEMA):
                    self._fault(f"{entry.path} has another schema than the format's")
                    return
                if metadata.get(b"lake_format") != LAKE_VERSION.encode():
                    self._fault(f"{entry.path} does not name lake format {LAKE_VERSION} in its footer")
                for number in range(parquet.num_row_groups):
                    table = parquet.read_row_group(number, use_threads=False)
                    ts = table.column("ts").cast(pa.int64()).to_numpy()
                    if len(ts):
                        low.append(int(ts.min()))
                        high.append(int(ts.max()))
                        rows += len(ts)
                        yield table
        except (pa.ArrowException, OSError) as error:
            self._fault(f"{entry.path} is not a readable Parquet file: {error}")
            return
        if (rows, min(low, default=None), max(high, default=None)) != (entry.rows, entry.min_ts_ms, entry.max_ts_ms):
            self._fault(f"{entry.path}: rows or time range are not what the manifest says")
