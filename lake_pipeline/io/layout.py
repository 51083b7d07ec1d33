"""Where each file of a run is: every path of the format in one place.

Paths are POSIX and relative to the run's folder, unless a name says otherwise.
"""

from __future__ import annotations

import re
from typing import Final

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.spec import RunSpec, check_run_id

__all__ = [
    "ALERTS",
    "CHECKSUMS",
    "COVERAGE",
    "MANIFEST",
    "PROVENANCE",
    "REJECTED_ALERTS",
    "REJECTED_CANDLES",
    "RUNS",
    "RUN_RECORD",
    "bucket_folder",
    "bucket_of_rejected",
    "part_path",
    "receipt_path",
    "rejected_path",
    "run_folder",
    "slices_folder",
]

RUNS: Final = "lake/runs"
RUN_RECORD: Final = "run.json"
ALERTS: Final = "inputs/alerts.parquet"
REJECTED_ALERTS: Final = "inputs/rejected_alerts.parquet"
COVERAGE: Final = "outputs/coverage.parquet"
REJECTED_CANDLES: Final = "outputs/rejected_candles.parquet"
CHECKSUMS: Final = "SHA256SUMS"
MANIFEST: Final = "manifest.json"
PROVENANCE: Final = "provenance.json"

_REJECTED = re.compile(r"receipts/mint_bucket=([0-9a-f]{2})\.rejected\.parquet", re.ASCII)


def run_folder(run_id: str) -> str:
    """Folder of a run, relative to the data root. Raises ConfigError for an unsafe run_id."""
    return f"{RUNS}/run_id={check_run_id(run_id)}"


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
    return f"receipts/mint_bucket={bucket}.json"


def rejected_path(bucket: str) -> str:
    """The rejected candles of a bucket, beside its receipt; the coverage step gathers them."""
    return f"receipts/mint_bucket={bucket}.rejected.parquet"


def bucket_of_rejected(path: str) -> str | None:
    """The bucket whose `rejected_path` this is, None for any other path."""
    match = _REJECTED.fullmatch(path)
    return match[1] if match and match[1] in ALL_BUCKETS else None
