"""Asset checks: what the code enforces, and the limits a team sets, for people to see. None of them stops anything.

Each is computed from the result its asset has at hand and travels with the materialisation, so it costs no step and no
read of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import dagster as dg

from lake_pipeline.core.buckets import ALL_BUCKETS, format_buckets
from lake_pipeline.core.coverage import filled_share, source_lag_ms
from lake_pipeline.errors import LakeError
from lake_pipeline.export import SnapshotResult
from lake_pipeline.limits import Limits
from lake_pipeline.run import Run
from lake_pipeline.seal import CoverageResult, SealResult

__all__ = [
    "check_specs",
    "coverage_checks",
    "log_failed",
    "refused_seal",
    "seal_checks",
    "search_checks",
    "snapshot_checks",
]

_CHECKS: Final[Mapping[str, Mapping[str, str]]] = {
    "alerts": {
        "rejected_alerts": "The share of input rows that cannot be used is at most `max_rejected_alerts`.",
    },
    "coverage": {
        "all_buckets": "Each of the 256 buckets has a valid receipt; without, the seal is refused.",
        "filled_share": "The share of candle slots that hold a candle is at least `min_filled_share`.",
        "source_lag": "The newest candle is at most `max_source_lag_hours` behind the end of the last window, or now "
        "where that is earlier.",
    },
    "manifest": {
        "seal_verifies": "Every file of the run is there, accounted for, and as it was sealed.",
        "ledger_balances": "Every row of the source was written, a duplicate, rejected or outside the kept windows.",
        "rejected_candles": "The share of source rows that fail the sanity rules is at most `max_rejected_candles`.",
    },
    "optimization": {
        "searched": "The alerts could be split into train and test periods, so that there was something to search.",
    },
}
_HOUR_MS: Final = 3_600_000


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks that come with this asset."""
    return [dg.AssetCheckSpec(name, asset=asset, description=text) for name, text in _CHECKS[asset].items()]


def snapshot_checks(result: SnapshotResult, limits: Limits) -> list[dg.AssetCheckResult]:
    """Of the asset `alerts`."""
    rows = result.rows_in - result.outside_range
    share = result.rejected / rows if rows else 0.0
    return [_limited("rejected_alerts", share, "max_rejected_alerts", limits, rejected=result.rejected, rows=rows)]


def coverage_checks(result: CoverageResult, run: Run, limits: Limits, now_ms: int) -> list[dg.AssetCheckResult]:
    """Of the asset `coverage`; `now_ms` is the time, epoch ms."""
    missing = result.missing_buckets
    lag_ms = source_lag_ms(result.table, run.spec.interval_s, now_ms)
    return [
        dg.AssetCheckResult(
            check_name="all_buckets",
            passed=not missing,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(missing)} of {len(ALL_BUCKETS)} buckets missing: {format_buckets(missing)}; "
            f"{result.missing_alerts} alerts are not covered yet"
            if missing
            else None,
            metadata={"missing_buckets": len(missing), "missing_alerts": result.missing_alerts},
        ),
        _limited("filled_share", filled_share(result.table), "min_filled_share", limits),
        _limited("source_lag", None if lag_ms is None else lag_ms / _HOUR_MS, "max_source_lag_hours", limits),
    ]


def seal_checks(result: SealResult, limits: Limits) -> list[dg.AssetCheckResult]:
    """Of the asset `manifest`, once the run is sealed or was found as it was sealed."""
    manifest = result.manifest
    ledger = manifest.ledger
    share = ledger.rejected / ledger.source_rows if ledger.source_rows else 0.0
    return [
        dg.AssetCheckResult(
            check_name="seal_verifies",
            passed=True,
            metadata={"files": len(manifest.files) + len(manifest.records), "bytes": manifest.total_bytes},
        ),
        dg.AssetCheckResult(
            check_name="ledger_balances", passed=ledger.balanced, metadata=ledger.model_dump(exclude={"zero_volume"})
        ),
        _limited(
            "rejected_candles",
            share,
            "max_rejected_candles",
            limits,
            rejected=ledger.rejected,
            source_rows=ledger.source_rows,
        ),
    ]


def refused_seal(error: LakeError) -> dg.AssetCheckResult:
    """The check of a seal that was refused, or that is broken; the step fails as well."""
    return dg.AssetCheckResult(check_name="seal_verifies", passed=False, description=str(error))


def search_checks(problem: str | None = None) -> list[dg.AssetCheckResult]:
    """Of the asset `optimization`; `problem` says why nothing was searched."""
    return [
        dg.AssetCheckResult(
            check_name="searched",
            passed=problem is None,
            severity=dg.AssetCheckSeverity.WARN,
            description=problem and f"nothing was searched: {problem}",
        )
    ]


def log_failed(context: dg.AssetExecutionContext, results: list[dg.AssetCheckResult]) -> list[dg.AssetCheckResult]:
    """Say which checks have failed, for those who read the log and not the UI; the results."""
    for result in results:
        if not result.passed:
            context.log.warning(f"check {result.check_name}: {result.description}")
    return results


def _limited(name: str, value: float | None, setting: str, limits: Limits, **figures: int) -> dg.AssetCheckResult:
    """A figure and its limit. A figure that is not known, of no candle at all, is beyond any limit."""
    figure = setting.partition("_")[2]
    limit: float | None = getattr(limits, setting)
    if limit is None:
        passed = True
    else:
        passed = value is not None and (value >= limit if setting.startswith("min_") else value <= limit)
    said = f"{figure} is {'not known: there is no candle' if value is None else format(value, '.4g')}"
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity[limits.severity.upper()],
        description=f"{said}; {setting} is {'not set' if limit is None else format(limit, 'g')}",
        metadata={
            **({} if value is None else {figure: value}),
            **({} if limit is None else {setting: limit}),
            **figures,
        },
    )
