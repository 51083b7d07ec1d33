"""The jobs, and the config their Launchpads open with: one that works on the demo's data as `make demo` leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg

from lake_pipeline.defs.assets import backtest, lake, optimize
from lake_pipeline.defs.resources import DEMO_RUN
from lake_pipeline.defs.run_config import WHOLE_RANGE

__all__ = ["BACKTEST_JOB", "EXPORT_JOB", "OPTIMIZE_JOB", "ExportJob", "build_jobs"]

EXPORT_JOB: Final = "export_run"
BACKTEST_JOB: Final = "backtest_run"
OPTIMIZE_JOB: Final = "optimize_run"
_DEMO_RUN_ID: Final = "demo"


class ExportJob(dg.JobDefinition):
    """The asset job `export_run`, whose runs cover all buckets, with a Launchpad that needs nothing but a click.

    Its tags are the whole range of partitions; the Launchpad, schedules and sensors put them on each run. Dagster gives
    a Launchpad its default config by `run_config`, which a partitioned job of its own has not: there it asks for one of
    the 256 partitions instead.
    """

    def __init__(self, job: dg.JobDefinition) -> None:
        super().__init__(
            name=job.name,
            description=job.description,
            graph_def=job.graph,
            asset_layer=job.asset_layer,
            resource_defs=dict(job.resource_defs),
            executor_def=job.executor_def,
            logger_defs=job.loggers,
            partitions_def=job.partitions_def,
            config=_run_config(**DEMO_RUN),
            tags=WHOLE_RANGE,
        )

    @property
    def run_config(self) -> Mapping[str, Any]:
        """What the Launchpad opens with."""
        return _run_config(**DEMO_RUN)


def build_jobs(parts: Mapping[str, Any]) -> list[Any]:
    """The jobs over the assets in `parts`, the other arguments of the Definitions they become part of."""
    export = dg.define_asset_job(
        EXPORT_JOB,
        selection=dg.AssetSelection.groups(lake.GROUP),
        description="Export a run and seal it: alerts, candles of all 256 buckets, coverage, manifest.\n\n"
        f"**[Open the Launchpad]({EXPORT_JOB}/playground)**: its config is that of the demo; put your own `alerts`, "
        "`interval` and `window` there and launch. There is no partition to choose: one run does all buckets. Launched "
        "again, it skips what is done, and verifies a run that is sealed.",
    )
    backtest_run = dg.define_asset_job(
        BACKTEST_JOB,
        selection=dg.AssetSelection.groups(backtest.GROUP),
        config=_run_config(run_id=_DEMO_RUN_ID),
        description="Backtest a sealed run: baseline, price action, caller table, trades.\n\n"
        f"**[Open the Launchpad]({BACKTEST_JOB}/playground)**: its config names the run of `make demo`; put another "
        "`run_id` there and launch. What was computed before is found, not computed again.",
    )
    optimize_run = dg.define_asset_job(
        OPTIMIZE_JOB,
        selection=dg.AssetSelection.groups(optimize.GROUP),
        config=_run_config(run_id=_DEMO_RUN_ID),
        description="Search the exits of a sealed run on train alerts, and report the winner.\n\n"
        f"**[Open the Launchpad]({OPTIMIZE_JOB}/playground)**: its config names the run of `make demo`, whose alerts "
        "are too few to learn from: put another `run_id` there and launch.",
    )
    return [ExportJob(dg.Definitions(**parts, jobs=[export]).resolve_job_def(EXPORT_JOB)), backtest_run, optimize_run]


def _run_config(**lake_run: str) -> dict[str, Any]:
    return {"resources": {"lake_run": {"config": lake_run}}}
