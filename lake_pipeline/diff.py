"""What differs between two runs: settings, alerts, and candles by bucket and mint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lake_pipeline.core.manifest import FileEntry, Manifest
from lake_pipeline.core.schemas import COVERAGE_SCHEMA
from lake_pipeline.errors import RunNotSealed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table
from lake_pipeline.run import Run

__all__ = ["CandleDiff", "MintDiff", "RunDiff", "diff_candles", "diff_runs"]


@dataclass(frozen=True)
class MintDiff:
    """Candles of one mint that only one run has, or that both have with other values."""

    bucket: str
    mint: str
    only_in_a: int
    only_in_b: int
    changed: int


@dataclass(frozen=True)
class CandleDiff:
    """One candle that differs: `added` (only in B), `removed` (only in A) or `revised`, with what it was and is.

    `a` and `b` map open, high, low, close, volume and source to their values; None where there is no candle.
    """

    bucket: str
    mint: str
    ts_ms: int
    change: str
    a: dict[str, Any] | None
    b: dict[str, Any] | None


@dataclass(frozen=True)
class RunDiff:
    """Differences of run A to run B; empty lists where there are none.

    `buckets` are those whose files differ, whether or not a candle does; `alerts` maps an alert_id to
    what differs: `only in A`, `only in B`, or the names of its coverage columns.
    """

    run_a: str
    run_b: str
    same_content: bool
    settings: list[str]
    buckets: list[str]
    mints: list[MintDiff]
    alerts: dict[str, str]


def diff_runs(a: Run, b: Run) -> RunDiff:
    """Compare two sealed runs (else RunNotSealed). Equal content hashes settle it without reading a candle."""
    for run in (a, b):
        if not run.sealed:
            raise RunNotSealed(f"run {run.run_id!r} is not sealed; only sealed runs can be compared")
    manifest_a, manifest_b = a.manifest(), b.manifest()
    settings = [line.replace(" != ", " -> ") for line in a.record.differences(b.record)]
    if manifest_a.content_sha256 == manifest_b.content_sha256:
        return RunDiff(a.run_id, b.run_id, True, settings, [], [], {})
    files_a, files_b = _by_bucket(a, manifest_a), _by_bucket(b, manifest_b)
    buckets = [
        bucket
        for bucket in sorted(files_a.keys() | files_b.keys())
        if [file.sha256 for file in files_a.get(bucket, [])] != [file.sha256 for file in files_b.get(bucket, [])]
    ]
    mints = [
        mint
        for bucket in buckets
        for mint in diff_candles(bucket, a.candles(files_a.get(bucket, [])), b.candles(files_b.get(bucket, [])), 0)[0]
    ]
    return RunDiff(a.run_id, b.run_id, False, settings, buckets, mints, _diff_alerts(a, b))


def _by_bucket(run: Run, manifest: Manifest) -> dict[str, list[FileEntry]]:
    prefix = f"{layout.slices_folder(run.spec)}/mint_bucket="
    buckets: dict[str, list[FileEntry]] = {}
    for file in manifest.files:
        if file.path.startswith(prefix):
            buckets.setdefault(file.path.removeprefix(prefix)[:2], []).append(file)
    return buckets


def diff_candles(bucket: str, a: pa.Table, b: pa.Table, limit: int) -> tuple[list[MintDiff], list[CandleDiff]]:
    """The candles of two tables of SLICE_SCHEMA that differ: counted by mint, and the first `limit` of them."""
    import duckdb

    with duckdb.connect() as connection:
        connection.register("a", a)
        connection.register("b", b)
        connection.execute(
            """
            CREATE TEMP TABLE differences AS
            SELECT coalesce(a.mint, b.mint) AS mint, epoch_ms(coalesce(a.ts, b.ts)) AS ts_ms,
                   CASE WHEN b.mint IS NULL THEN 'removed' WHEN a.mint IS NULL THEN 'added' ELSE 'revised' END change,
                   CASE WHEN a.mint IS NOT NULL THEN struct_pack(
                       open := a.open, high := a.high, low := a.low, close := a.close, volume := a.volume,
                       source := a.source) END AS a,
                   CASE WHEN b.mint IS NOT NULL THEN struct_pack(
                       open := b.open, high := b.high, low := b.low, close := b.close, volume := b.volume,
                       source := b.source) END AS b
            FROM a FULL JOIN b ON a.mint = b.mint AND a.ts = b.ts
            WHERE a IS DISTINCT FROM b
            """
        )
        mints = connection.execute(
            """
            SELECT mint, count(*) FILTER (change = 'removed'), count(*) FILTER (change = 'added'),
                   count(*) FILTER (change = 'revised')
            FROM differences GROUP BY 1 ORDER BY 1
            """
        ).fetchall()
        candles = connection.execute("FROM differences ORDER BY mint, ts_ms LIMIT ?", [limit]).fetchall()
    return [MintDiff(bucket, *row) for row in mints], [CandleDiff(bucket, *row) for row in candles]


def _diff_alerts(a: Run, b: Run) -> dict[str, str]:
    def coverage(run: Run) -> dict[str, dict[str, object]]:
        table = read_table(run.store, layout.COVERAGE, COVERAGE_SCHEMA)
        return {row["alert_id"]: row for row in table.to_pylist()}

    rows_a, rows_b = coverage(a), coverage(b)
    found = {}
    for alert_id in sorted(rows_a.keys() | rows_b.keys()):
        row_a, row_b = rows_a.get(alert_id), rows_b.get(alert_id)
        if row_a is None or row_b is None:
            found[alert_id] = "only in B" if row_a is None else "only in A"
        elif row_a != row_b:
            found[alert_id] = ", ".join(name for name in row_a if row_a[name] != row_b[name])
    return found
