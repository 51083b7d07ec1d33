"""What a report is of: the run's sealed tables, and which of its stored results.

**Which result.** The one that is named by its key; else the only one of its kind that is stored for this content;
else, of several or none, the one of the default settings, which is computed and kept if it is not there. Nothing
depends on when a result was made: a lake that was copied gives the same report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lake_pipeline.backtest import (
    BaselineResult,
    Result,
    StrategyResult,
    baseline_result,
    strategy_result,
)
from lake_pipeline.backtest.results import StoredResult, find_result, result_keys
from lake_pipeline.backtest.summary import summarise_baseline
from lake_pipeline.core.manifest import FileEntry, Manifest
from lake_pipeline.core.schemas import COVERAGE_SCHEMA, REJECTED_ALERTS_SCHEMA, REJECTED_CANDLES_SCHEMA
from lake_pipeline.errors import InputError, VerificationFailed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table
from lake_pipeline.io.store import Store, hash_file
from lake_pipeline.run import Run
from lake_pipeline.verify import require_manifest

__all__ = ["ReportContent", "gather_report"]


@dataclass(frozen=True)
class ReportContent:
    """Everything a page shows. Tables are those of the format, empty where the run has no such file.

    `strategies` are all strategies stored for this content by key, the one of `strategy` among them.
    """

    manifest: Manifest
    coverage: pa.Table
    rejected_alerts: pa.Table
    rejected_candles: pa.Table
    baseline: BaselineResult
    strategy: StrategyResult
    strategies: Mapping[str, StrategyResult]

    @property
    def results(self) -> Sequence[Result]:
        """The results the page shows in detail."""
        return (self.baseline, self.strategy)

    def baseline_figures(self) -> dict[str, Any]:
        """`summary.summarise_baseline` of the baseline."""
        return summarise_baseline(self.baseline.baseline())


def gather_report(
    lake: Store,
    run: Run,
    *,
    baseline: str | None = None,
    strategy: str | None = None,
    threads: int = 2,
) -> ReportContent:
    """The content of a run's report; `baseline` and `strategy` are (the first digits of) keys.

    Raises RunNotSealed, VerificationFailed for files that are not what was sealed, and InputError for a key that
    names nothing, or nothing of this run's content.
    """
    manifest = require_manifest(run)
    measured = _stored(lake, run, manifest, "baseline", baseline, threads)
    traded = _stored(lake, run, manifest, "strategy", strategy, threads)
    if not isinstance(measured, BaselineResult):
        measured = baseline_result(lake, run, threads=threads)
    if not isinstance(traded, StrategyResult):
        traded = strategy_result(lake, run, threads=threads)
    strategies = {
        key: find_result(lake, key, run.run_id, threads=threads)
        for key in result_keys(lake, run.run_id, "strategy", manifest.content_sha256)
    }
    return ReportContent(
        manifest=manifest,
        coverage=_sealed_table(run, manifest, layout.COVERAGE, COVERAGE_SCHEMA),
        rejected_alerts=_sealed_table(run, manifest, layout.REJECTED_ALERTS, REJECTED_ALERTS_SCHEMA),
        rejected_candles=_sealed_table(run, manifest, layout.REJECTED_CANDLES, REJECTED_CANDLES_SCHEMA),
        baseline=measured,
        strategy=traded,
        strategies={key: each for key, each in strategies.items() if isinstance(each, StrategyResult)},
    )


def _stored(lake: Store, run: Run, manifest: Manifest, kind: str, key: str | None, threads: int) -> StoredResult | None:
    """The result of a kind that is named, or the only one; None where the default settings decide."""
    if key is None:
        keys = result_keys(lake, run.run_id, kind, manifest.content_sha256)
        return find_result(lake, keys[0], run.run_id, threads=threads) if len(keys) == 1 else None
    found = find_result(lake, key, run.run_id, threads=threads)
    if found.record.kind != kind:
        raise InputError(f"{found.record.kind}={found.key} is no {kind}: give it as --{found.record.kind}")
    if found.record.identity["content_sha256"] != manifest.content_sha256:
        raise InputError(
            f"{kind}={found.key} was computed from another content than run {run.run_id} has now: compute it again"
        )
    return found


def _sealed_table(run: Run, manifest: Manifest, path: str, schema: pa.Schema) -> pa.Table:
    """A table of the run that is byte for byte the one of the manifest; no rows where the run has no such file."""
    entries: dict[str, FileEntry] = {entry.path: entry for entry in manifest.files}
    if path not in entries:
        return schema.empty_table()
    entry = entries[path]
    if not run.store.exists(path):
        raise VerificationFailed.of(run.run_id, [f"{path} is missing"])
    if hash_file(run.store, path).sha256 != entry.sha256:
        raise VerificationFailed.of(run.run_id, [f"{path} has other content than was sealed"])
    return read_table(run.store, path, schema)
