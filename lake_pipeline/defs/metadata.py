"""What Dagster's UI shows of each result: frozen dataclasses in, metadata out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lake_pipeline.export import BucketResult, SnapshotResult
from lake_pipeline.seal import CoverageResult, SealResult

__all__ = ["bucket_metadata", "coverage_metadata", "seal_metadata", "snapshot_metadata"]

Metadata = Mapping[str, Any]


def snapshot_metadata(result: SnapshotResult, uri: str) -> Metadata:
    """Of the asset `alerts`."""
    return {
        "dagster/uri": uri,
        "dagster/row_count": result.alerts,
        "run_id": result.run_id,
        "run_fingerprint": result.run_fingerprint,
        "rows_in": result.rows_in,
        "rejected": result.rejected,
        "rejected_reasons": dict(sorted(result.reasons.items())),
        "outside_date_range": result.outside_range,
        "mints": result.mints,
        "callers": result.callers,
    }


def bucket_metadata(result: BucketResult, run_id: str) -> Metadata:
    """Of one partition of `candles`."""
    return {
        "dagster/partition_row_count": result.rows,
        "run_id": run_id,
        "files": result.files,
        "bytes": result.bytes,
        "mints": result.mints,
        "alerts": result.alerts,
        "duplicates": result.ledger.duplicates,
        "rejected": result.ledger.rejected,
        "zero_volume": result.ledger.zero_volume,
        "skipped": result.skipped,
        "reused": result.reused,
    }


def coverage_metadata(result: CoverageResult, uri: str) -> Metadata:
    """Of the asset `coverage`."""
    return {
        "dagster/uri": uri,
        "dagster/row_count": result.alerts,
        "run_id": result.run_id,
        "kept": result.kept,
        "dropped": result.dropped,
        "complete": result.complete,
        "partial": result.partial,
        "insufficient": result.insufficient,
        "rejected_candles": result.rejected_candles,
        "missing_buckets": len(result.missing_buckets),
    }


def seal_metadata(result: SealResult, uri: str) -> Metadata:
    """Of the asset `manifest`."""
    manifest = result.manifest
    return {
        "dagster/uri": uri,
        "run_id": manifest.run_id,
        "content_sha256": manifest.content_sha256,
        "sealed_now": result.created,
        "files": manifest.total_files,
        "rows": manifest.total_rows,
        "bytes": manifest.total_bytes,
        "ledger": manifest.ledger.model_dump(),
        "coverage": manifest.coverage.model_dump(),
    }
