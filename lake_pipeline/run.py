"""A run on disk: finding it, its identity, its receipts, and whether it is sealed.

What belongs here: what every later step needs to know of a run before it does its work. Writing slices is
in `export`, the seal in `seal`, checking a sealed run in `verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.canonical import sha256_hex, table_digest
from lake_pipeline.core.manifest import FileEntry, Manifest, Receipt, Record, RunRecord, parse_record
from lake_pipeline.core.schemas import ALERTS_SCHEMA, SLICE_SCHEMA
from lake_pipeline.core.spec import RunSpec, run_fingerprint
from lake_pipeline.errors import RunError, RunMismatch, RunNotFound, StoreError
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table
from lake_pipeline.io.store import Store, hash_file

__all__ = ["BucketState", "Run", "list_run_ids", "load_run"]


@dataclass(frozen=True)
class BucketState:
    """A bucket as the store shows it: its valid receipt, or what is wrong (`missing` if there is none).

    `record` has the hash and size of the receipt's own bytes, as they were read.
    """

    bucket: str
    receipt: Receipt | None
    problem: str | None
    record: Record | None = None


@dataclass(frozen=True)
class Run:
    """A run that has a run.json. `store` is rooted at the run's folder."""

    store: Store
    record: RunRecord
    spec: RunSpec

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.record.run_id

    @property
    def sealed(self) -> bool:
        """Whether manifest.json exists."""
        return self.store.exists(layout.MANIFEST)

    def manifest(self) -> Manifest:
        """The manifest of a sealed run."""
        return parse_record(Manifest, self.store.read(layout.MANIFEST), f"{self.store.uri}/{layout.MANIFEST}")

    def alerts(self) -> pa.Table:
        """The normalised alerts; RunError if they were not snapshotted or are not those of run.json."""
        if not self.store.exists(layout.ALERTS):
            raise RunError(
                f"run {self.run_id}: {layout.ALERTS} is missing; materialise the asset `alerts` of this run first"
            )
        alerts = read_table(self.store, layout.ALERTS, ALERTS_SCHEMA)
        if table_digest(alerts) != self.record.alerts_digest:
            raise RunError(
                f"run {self.run_id}: {layout.ALERTS} is not what was snapshotted: its digest differs from "
                f"{layout.RUN_RECORD}. Something edited it; export under another run_id"
            )
        return alerts

    def require(self, spec: RunSpec, source: Mapping[str, Any] | None = None) -> None:
        """Raise RunMismatch naming what differs when this run has other settings or, if given, another source."""
        wanted = self.record.model_copy(
            update={
                "spec": spec.canonical(),
                "source": dict(source) if source is not None else self.record.source,
            }
        )
        _refuse_differences(self.record, wanted)

    def require_folder(self) -> None:
        """Raise StoreError when the run's folder has vanished: what was written since made one that is no run's."""
        if not self.store.exists(layout.RUN_RECORD):
            raise StoreError(
                f"{self.store.uri} vanished while run {self.run_id} was at work in it: see what moved it, and export "
                "again"
            )

    def require_same(self, record: RunRecord) -> None:
        """Raise RunMismatch naming what differs when this run has another identity than `record`."""
        _refuse_differences(self.record, record)

    def candles(self, files: Iterable[FileEntry]) -> pa.Table:
        """All candles of these slice files."""
        tables = [read_table(self.store, file.path, SLICE_SCHEMA) for file in files]
        return pa.concat_tables([SLICE_SCHEMA.empty_table(), *tables])

    def bucket_state(self, bucket: str, *, hashes: bool = True) -> BucketState:
        """A bucket's receipt, checked against its files: their hashes, or only that they are there.

        Raises StoreError where that cannot be told.
        """
        return self._bucket_state(bucket, self.store.exists, hashes)

    def bucket_states(
        self, buckets: Iterable[str] = ALL_BUCKETS, threads: int = 2, *, hashes: bool = True
    ) -> list[BucketState]:
        """`bucket_state` of many buckets, in the order given, from one listing of the run's files."""
        # Receipts first: the files of one that is listed are there, and stay, when they are listed after it.
        present = {file.path for file in self.store.files(layout.RECEIPTS)}
        if present:
            present |= {file.path for file in self.store.files(layout.slices_folder(self.spec))}
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda bucket: self._bucket_state(bucket, present.__contains__, hashes), buckets))

    def bucket_files(self, bucket: str) -> list[str]:
        """Paths of a bucket's parts, rejected candles and unfinished writes; not its receipt, nothing foreign."""
        files = [
            file.path
            for file in self.store.files(layout.bucket_folder(self.spec, bucket))
            if file.temporary or layout.is_part(file.path)
        ]
        rejected = layout.rejected_path(bucket)
        return [*files, rejected] if self.store.exists(rejected) else files

    def _bucket_state(self, bucket: str, exists: Callable[[str], bool], hashes: bool) -> BucketState:
        path = layout.receipt_path(bucket)
        if not exists(path):
            return BucketState(bucket, None, "missing")
        try:
            data = self.store.read(path)
        except StoreError:
            if self.store.exists(path):
                raise  # cannot tell, and a bucket that is not valid is cleared and exported anew
            return BucketState(bucket, None, "missing")
        try:
            receipt = parse_record(Receipt, data, path)
        except RunError as error:
            return BucketState(bucket, None, str(error))
        problem = self._receipt_problem(bucket, receipt, exists, hashes)
        record = Record(path=path, sha256=sha256_hex(data), bytes=len(data))
        return BucketState(bucket, None if problem else receipt, problem, record)

    def _receipt_problem(
        self, bucket: str, receipt: Receipt, exists: Callable[[str], bool], hashes: bool
    ) -> str | None:
        if receipt.mint_bucket != bucket:
            return f"its receipt is that of bucket {receipt.mint_bucket}"
        if receipt.run_fingerprint != self.record.run_fingerprint:
            return "its receipt is of another run (the fingerprint differs)"
        if not layout.is_of_bucket(receipt, self.spec):
            return "its receipt lists other files than those of its bucket"
        for entry in receipt.entries:
            if not exists(entry.path):
                return f"{entry.path} is missing"
            if not hashes:
                continue
            try:
                found = hash_file(self.store, entry.path)
            except StoreError:
                if self.store.exists(entry.path):
                    raise
                return f"{entry.path} is missing"
            if (found.bytes, found.sha256) != (entry.bytes, entry.sha256):
                return f"{entry.path} has other content than its receipt says"
        return None


def load_run(lake: Store, run_id: str) -> Run:
    """The run of this id under a data root. Raises RunNotFound, or RunError for a damaged run.json."""
    store = lake.sub(layout.run_folder(run_id))
    if not store.exists(layout.RUN_RECORD):
        # A folder that holds no file yet is that of a run another process is about to create; when it holds some,
        # the record may have come since we looked.
        if any(not file.temporary for file in store.files()) and not store.exists(layout.RUN_RECORD):
            raise RunError(
                f"{store.uri} has no {layout.RUN_RECORD}: the run is damaged or not a run. Restore the file from a "
                "copy, or move the folder away"
            )
        known = [name for name in list_run_ids(lake) if name != run_id]
        hint = f"runs here: {', '.join(known[:10])}{' ...' if len(known) > 10 else ''}" if known else "no runs here yet"
        raise RunNotFound(
            f"no run {run_id!r} under {lake.uri} ({hint}). Materialise `alerts` first, or check run_id and data_root"
        )
    path = f"{store.uri}/{layout.RUN_RECORD}"
    record = parse_record(RunRecord, store.read(layout.RUN_RECORD), path)
    spec = RunSpec.from_canonical(record.spec)
    if record.run_id != run_id or record.run_fingerprint != run_fingerprint(spec, record.alerts_digest, record.source):
        raise RunError(f"{path} contradicts itself or its folder: run_id or fingerprint was edited")
    return Run(store, record, spec)


def list_run_ids(lake: Store) -> list[str]:
    """Ids of all runs under a data root, sealed or not, sorted."""
    prefix = "run_id="
    return [name.removeprefix(prefix) for name in lake.folders(layout.RUNS) if name.startswith(prefix)]


def _refuse_differences(present: RunRecord, wanted: RunRecord) -> None:
    differences = present.differences(wanted)
    if differences:
        raise RunMismatch(
            f"run_id {present.run_id!r} exists with another identity: {'; '.join(differences)} "
            "(existing != requested). Use another run_id, leave it out to have one derived from the content, "
            "or restore the settings"
        )
