"""What a Dagster instance knows of the runs that work on a lake run."""

from __future__ import annotations

from typing import Any, Final

import dagster as dg

# Not public, but the only name for it; Dagster is pinned to this minor.
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

from lake_pipeline.defs.run_config import configured_run_id

__all__ = ["STARTED_BY", "known_runs", "unfinished_run_of", "unfinished_work_on"]

# The tag that says which schedule or sensor asked for a run.
STARTED_BY: Final = "lake/started_by"

_UNFINISHED: Final = [
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
]
_UNFINISHED_BACKFILL: Final = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
_LAKE_ASSETS: Final = {dg.AssetKey(name) for name in ("alerts", "candles", "coverage", "manifest")}


def known_runs(instance: dg.DagsterInstance, dagster_run_ids: list[str]) -> list[dg.DagsterRun]:
    """Those of these Dagster runs that the instance has, oldest first."""
    if not dagster_run_ids:
        return []
    return list(reversed(instance.get_runs(dg.RunsFilter(run_ids=dagster_run_ids))))


def unfinished_run_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """A Dagster run that is to make this lake run and has not ended, by the tag that schedules and sensors set."""
    runs = instance.get_runs(dg.RunsFilter(tags={"lake/run_id": run_id}, statuses=_UNFINISHED), limit=1)
    return runs[0].run_id if runs else None


def unfinished_runs_started_by(instance: dg.DagsterInstance, *names: str) -> list[dg.DagsterRun]:
    """Dagster runs that these schedules or sensors asked for and that have not ended."""
    return list(instance.get_runs(dg.RunsFilter(tags={STARTED_BY: list(names)}, statuses=_UNFINISHED)))


def unfinished_work_on(instance: dg.DagsterInstance, run_id: str, other_jobs: frozenset[str]) -> str | None:
    """A Dagster run or backfill that may still write into this lake run, for people to read; None if there is none.

    One that leaves its run_id to the content counts, since it may be of this run. `other_jobs` write no lake runs.
    """

    def concerns(run_config: Any, assets: Any) -> bool:
        named = configured_run_id(run_config or {})
        return named in (None, run_id) and (not assets or not _LAKE_ASSETS.isdisjoint(assets))

    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if run.job_name not in other_jobs and concerns(run.run_config, run.asset_selection):
            return f"Dagster run {run.run_id} is {run.status.value}"
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED_BACKFILL)):
        if concerns(backfill.run_config, backfill.asset_selection):
            return f"backfill {backfill.backfill_id} is {backfill.status.value}"
    return None
