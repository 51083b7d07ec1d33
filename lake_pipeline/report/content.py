"""What a report is of: the run's sealed tables, and which of its stored results.

**Which result.** The one that is named by its key; else the only one of its kind that is stored for this content;
else, of several or none, the one of the default settings, which is computed and kept if it is not there. Searches are
not computed here: of several it is the one with most trials, of equal ones the first key. Nothing depends on when a
result was made: a lake that was copied gives the same report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest import (
    BaselineResult,
    Result,
    StrategyResult,
    baseline_result,
    strategy_result,
)
from lake_pipeline.backtest.results import StoredResult, find_result, result_keys, stored_record
from lake_pipeline.backtest.summary import summarise_baseline
from lake_pipeline.core.manifest import FileEntry, Manifest, ResultRecord, parse_record
from lake_pipeline.core.schemas import COVERAGE_SCHEMA, REJECTED_ALERTS_SCHEMA, REJECTED_CANDLES_SCHEMA
from lake_pipeline.errors import InputError, VerificationFailed
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import read_table
from lake_pipeline.io.store import Store, hash_file
from lake_pipeline.run import Run
from lake_pipeline.verify import require_manifest

__all__ = ["ReportContent", "Search", "gather_report"]


@dataclass(frozen=True)
class Search(Result):
    """A stored search of the optimizer: the document of its winner, and its pictures (PNG) by name, if it has any."""

    best: Mapping[str, Any]
    pictures: Mapping[str, bytes]

    @property
    def trials(self) -> int:
        """Trials evaluated, in all folds together."""
        return sum(fold["trials"]["evaluated"] for fold in self.best["folds"])


@dataclass(frozen=True)
class ReportContent:
    """Everything a page shows. Tables are those of the format, empty where the run has no such file.

    `strategies` and `searches` are all that are stored for this content by key, `strategy` and `search` among them.
    """

    manifest: Manifest
    coverage: pa.Table
    rejected_alerts: pa.Table
    rejected_candles: pa.Table
    baseline: BaselineResult
    strategy: StrategyResult
    strategies: Mapping[str, StrategyResult]
    search: Search | None
    searches: Mapping[str, Search]

    @property
    def results(self) -> Sequence[Result]:
        """The results the page shows in detail."""
        return (self.baseline, self.strategy, *([self.search] if self.search else []))

    def baseline_figures(self) -> dict[str, Any]:
        """`summary.summarise_baseline` of the baseline."""
        return summarise_baseline(self.baseline.baseline())


def gather_report(
    lake: Store,
    run: Run,
    *,
    baseline: str | None = None,
    strategy: str | None = None,
    search: str | None = None,
    threads: int = 2,
) -> ReportContent:
    """The content of a run's report; `baseline`, `strategy` and `search` are (the first digits of) keys.

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
    searches = _searches(lake, run, manifest, threads)
    return ReportContent(
        manifest=manifest,
        coverage=_sealed_table(run, manifest, layout.COVERAGE, COVERAGE_SCHEMA),
        rejected_alerts=_sealed_table(run, manifest, layout.REJECTED_ALERTS, REJECTED_ALERTS_SCHEMA),
        rejected_candles=_sealed_table(run, manifest, layout.REJECTED_CANDLES, REJECTED_CANDLES_SCHEMA),
        baseline=measured,
        strategy=traded,
        strategies={key: each for key, each in strategies.items() if isinstance(each, StrategyResult)},
        search=_chosen(run, searches, search),
        searches=searches,
    )


_SEARCH: Final = "optimize"
_PICTURES: Final = "pictures"


def _searches(lake: Store, run: Run, manifest: Manifest, threads: int) -> dict[str, Search]:
    found = {}
    for key in result_keys(lake, run.run_id, _SEARCH, manifest.content_sha256):
        store = lake.sub(layout.result_folder(run.run_id, _SEARCH, key))
        record, _ = stored_record(store, _SEARCH, key, threads=threads)
        pictures = {}
        part = store.sub(_PICTURES)
        if part.exists(layout.RESULT_RECORD):
            sealed = parse_record(ResultRecord, part.read(layout.RESULT_RECORD), f"{part.uri}/{layout.RESULT_RECORD}")
            files = stored_record(part, _PICTURES, sealed.key, threads=threads)[0].files
            pictures = {file.path.removesuffix(".png"): part.read(file.path) for file in files}
        best = json.loads(store.read("best.json"))
        found[key] = Search(record, store, created=False, best=best, pictures=pictures)
    return found


def _chosen(run: Run, searches: Mapping[str, Search], key: str | None) -> Search | None:
    if key is None:
        return max(searches.values(), key=lambda search: search.trials, default=None)
    named = [search for name, search in searches.items() if name.startswith(key)]
    if len(named) != 1:
        raise InputError(
            f"{len(named) or 'no'} searches of run {run.run_id} have a key that begins with {key!r}; its searches: "
            f"{', '.join(searches) or 'none, `lake optimizer` makes one'}"
        )
    return named[0]


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
