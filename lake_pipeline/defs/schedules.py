"""The schedule `nightly_export`, off by default. Which day and which settings is decided in `automation`."""

import os
from typing import Final

import dagster as dg

from lake_pipeline.automation import AutomationSettings, day_of_tick, is_sealed, last_window_end, nightly_run_id
from lake_pipeline.defs.history import STARTED_BY, unfinished_run_of
from lake_pipeline.defs.run_config import WHOLE_RANGE, run_config_of
from lake_pipeline.errors import NotConfigured
from lake_pipeline.settings import LakeSettings

__all__ = ["DEFAULT_NIGHTLY_CRON", "NIGHTLY", "build_schedules"]

NIGHTLY: Final = "nightly_export"
DEFAULT_NIGHTLY_CRON: Final = "15 0 * * *"


def build_schedules(export_job: str, nightly_cron: str = DEFAULT_NIGHTLY_CRON) -> list[dg.ScheduleDefinition]:
    """The schedules over this job; `nightly_cron` is in UTC, as the days of alerts are."""

    @dg.schedule(
        nightly_cron,
        name=NIGHTLY,
        job_name=export_job,
        execution_timezone="UTC",
        description=(
            "The alerts of the day before as one sealed run, `nightly_<day>`: all buckets in one Dagster run. "
            "Settings: LAKE_RUN_CONFIG; LAKE_LAG_DAYS for another day than the one before."
        ),
    )
    def nightly_export(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time
        try:
            settings = AutomationSettings.from_environment(os.environ)
            day = day_of_tick(tick, settings.lag_days)
            config = settings.of_day(day)
        except NotConfigured as missing:
            return dg.SkipReason(str(missing))
        run_id = nightly_run_id(day)
        if is_sealed(LakeSettings().store(), run_id):
            return dg.SkipReason(f"run {run_id} is sealed")
        if at_work := unfinished_run_of(context.instance, run_id):
            return dg.SkipReason(f"Dagster run {at_work} of run {run_id} is not finished")
        end = last_window_end(config)
        if end > tick:
            context.log.warning(
                f"the windows of alerts of {day} end as late as {end:%Y-%m-%d %H:%M} UTC, after this tick: candles to "
                "come will be missing from the sealed run. Set LAKE_LAG_DAYS to "
                f"{settings.lag_days + (end - tick).days + 1} to wait for them, or choose a shorter window"
            )
        return dg.RunRequest(
            run_key=run_id,
            run_config=run_config_of(config),
            tags={**WHOLE_RANGE, "lake/run_id": run_id, STARTED_BY: NIGHTLY},
        )

    return [nightly_export]
