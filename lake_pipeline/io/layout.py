"""Where each file of a run is: every path of the format in one place.

Paths are POSIX and relative to the run's folder, unless a name says otherwise.
"""

from __future__ import annotations

import re
from typing import Final

from lake_pipeline.core.manifest import Receipt
from lake_pipeline.core.spec import RunSpec, check_run_id

__all__ = [
    "ALERTS",
    "CHECKSUMS",
    "COVERAGE",
    "MANIFEST",
    "PROVENANCE",
    "RECEIPTS",
    "REJECTED_ALERTS",
    "REJECTED_CANDLES",
    "RESULTS",
    "RESULT_RECORD",
    "RUNS",
    "RUN_RECORD",
    "bucket_folder",
    "is_of_bucket",
    "is_part",
    "ledger_folder",
    "part_path",
    "receipt_path",
    "rejected_path",
    "result_folder",
    "run_folder",
    "slices_folder",
]

RUNS: Final = "lake/runs"
RUN_RECORD: Final = "run.json"
ALERTS: Final = "inputs/alerts.parquet"
RECEIPTS: Final = "receipts"
REJECTED_ALERTS: Final = "inputs/rejected_alerts.parquet"
COVERAGE: Final = "outputs/coverage.parquet"
REJECTED_CANDLES: Final = "outputs/rejected_candles.parquet"
CHECKSUMS: Final = "SHA256SUMS"
MANIFEST: Final = "manifest.json"
PROVENANCE: Final = "provenance.json"
RESULTS: Final = "results"
RESULT_RECORD: Final = "result.json"

_PART = re.compile(r"part-[0-9]{4,}\.parquet", re.ASCII)


def run_folder(run_id: str) -> str:
    """Folder of a run, relative to the data root. Raises ConfigError for an unsafe run_id."""
    return f"{RUNS}/run_id={check_run_id(run_id)}"


def result_folder(run_id: str, kind: str, key: str) -> str:
    """Folder of one result of a run, relative to the data root; `kind` is baseline, strategy, paths ..."""
    return f"{RESULTS}/run_id={check_run_id(run_id)}/{kind}={key}"


def ledger_folder(run_id: str) -> str:
    """Folder of the trials ever evaluated on a run, relative to the data root."""
    return f"{RESULTS}/run_id={check_run_id(run_id)}/ledger"


def slices_folder(spec: RunSpec) -> str:
    """Root of the slice files, hive-partitioned by mint_bucket below."""
    return f"slices/ohlcv/interval={spec.interval}/window={spec.window}"


def bucket_folder(spec: RunSpec, bucket: str) -> str:
    """Folder of one bucket's slice files."""
    return f"{slices_folder(spec)}/mint_bucket={bucket}"


def part_path(spec: RunSpec, bucket: str, number: int) -> str:
    """A slice file of a bucket; `number` counts from 0."""
    return f"{bucket_folder(spec, bucket)}/part-{number:04d}.parquet"


def receipt_path(bucket: str) -> str:
    """The commit record of a bucket."""
    return f"{RECEIPTS}/mint_bucket={bucket}.json"


def rejected_path(bucket: str) -> str:
    """The rejected candles of a bucket, beside its receipt; the coverage step gathers them."""
    return f"{RECEIPTS}/mint_bucket={bucket}.rejected.parquet"


def is_of_bucket(receipt: Receipt, spec: RunSpec) -> bool:
    """Whether a receipt lists what its bucket's files are called: parts 0, 1, ... and rejected candles."""
    bucket = receipt.mint_bucket
    parts = [part_path(spec, bucket, number) for number in range(len(receipt.files))]
    return [entry.path for entry in receipt.entries] == [*parts, *([rejected_path(bucket)] if receipt.rejected else [])]


def is_part(path: str) -> bool:
    """Whether a path names a slice file."""
    return bool(_PART.fullmatch(path.rpartition("/")[2]))
