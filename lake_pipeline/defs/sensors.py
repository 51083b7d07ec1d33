"""The sensors, all off by default. What they decide is in `automation`; here is what Dagster is asked and told."""

import datetime as dt
import os
from collections.abc import Callable
from typing import Any, Final

import dagster as dg

from lake_pipeline.automation import (
    AutomationSettings,
    CompleteRun,
    complete_runs,
    day_to_catch_up,
    failure_message,
    look_into_inbox,
    post_message,
    read_cursor,
    write_cursor,
)
from lake_pipeline.defs.history import STARTED_BY, known_runs, unfinished_runs_started_by, unfinished_work_on
from lake_pipeline.defs.run_config import WHOLE_RANGE, configured_run_id, run_config_of, same_run_config
from lake_pipeline.defs.schedules import NIGHTLY
from lake_pipeline.errors import NotConfigured
from lake_pipeline.settings import LakeSettings

__all__ = ["build_sensors"]

CATCH_UP: Final = "catch_up"
INBOX: Final = "alerts_inbox"
SEAL: Final = "seal_when_complete"
BACKTEST: Final = "sealed_run_backtest"
FAILED: Final = "failed_run"

_SEALED_AT_ONCE: Final = 20
_SHOWN: Final = 10


def build_sensors(
    export_job: str,
    backtest_job: str,
    *,
    interval_s: int | None = None,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> list[dg.SensorDefinition]:
    """The sensors over these jobs; `interval_s` replaces the time between ticks of each, `now` the clock."""

    @dg.sensor(
        name=CATCH_UP,
        job_name=export_job,
        minimum_interval_seconds=interval_s or 300,
        description=(
            "Every day of the last LAKE_CATCH_UP_DAYS that `nightly_export` has not sealed, oldest first, one "
            "at a time. A day is tried once a day. Settings: those of `nightly_export`."
        ),
    )
    def catch_up(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        running = unfinished_runs_started_by(context.instance, NIGHTLY, CATCH_UP)
        if running:
            return dg.SkipReason(f"one at a time: {running[0].tags['lake/run_id']} is {running[0].status.value}")
        try:
            settings = AutomationSettings.from_environment(os.environ)
            tried = read_cursor(context.cursor)
            config, reason, tried = day_to_catch_up(LakeSettings().store(), settings, now(), tried)
        except NotConfigured as missing:
            return dg.SkipReason(str(missing))
        if config is None:
            return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=write_cursor(tried))
        request = dg.RunRequest(
            run_key=f"{CATCH_UP}:{config.run_id}:{tried[str(config.from_day)]}",
            run_config=run_config_of(config),
            tags={**WHOLE_RANGE, "lake/run_id": str(config.run_id), STARTED_BY: CATCH_UP},
        )
        return dg.SensorResult(run_requests=[request], cursor=write_cursor(tried))

    @dg.sensor(
        name=INBOX,
        job_name=export_job,
        minimum_interval_seconds=interval_s or 30,
        description=(
            "Every new or changed alerts file in LAKE_INBOX, a folder or an object store's URL, as a sealed "
            "run. The same content, whatever its name, becomes one run. Settings: LAKE_RUN_CONFIG, but for its "
            "alerts."
        ),
    )
    def alerts_inbox(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            settings = AutomationSettings.from_environment(os.environ)
            look = look_into_inbox(settings.inbox_store(), read_cursor(context.cursor))
            configs = [(file, settings.of_file(file)) for file in look.ready]
        except NotConfigured as missing:
            return dg.SkipReason(str(missing))
        for path, problem in look.problems.items():
            context.log.warning(f"{path} in the inbox is looked at again at the next tick: {problem}")
        requests = [
            dg.RunRequest(
                # The end of the run_id is the hash of content and settings: a second name for both is no second run.
                run_key=f"{INBOX}:{str(config.run_id).rpartition('_')[2]}",
                run_config=run_config_of(config),
                tags={**WHOLE_RANGE, "lake/run_id": str(config.run_id), STARTED_BY: INBOX, "lake/alerts": file.path},
            )
            for file, config in configs
        ]
        skip = None if requests else dg.SkipReason(f"nothing new in {settings.inbox}: {look.summary()}")
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=write_cursor(look.seen))

    @dg.sensor(
        name=SEAL,
        job_name=export_job,
        minimum_interval_seconds=interval_s or 60,
        description=(
            "Seal a run that several Dagster runs have made, once all of them have ended and every bucket has a"
            " receipt. Asks for `coverage` and `manifest` with the settings of those runs; the seal checks "
            "every byte and fails where something is wrong. Runs made without Dagster are left alone."
        ),
    )
    def seal_when_complete(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        sealed = read_cursor(context.cursor).get("sealed", [])
        complete, unfinished, sealed = complete_runs(LakeSettings().store(), sealed)
        requests, waiting = [], [f"{run_id}: {why}" for run_id, why in unfinished.items()]
        for run in complete:
            request = _seal_request(context.instance, run, frozenset({backtest_job}))
            if isinstance(request, str):
                waiting.append(f"{run.run_id}: {request}")
            else:
                requests.append(request)
        skip = None if requests else dg.SkipReason("; ".join(waiting[:_SHOWN]) or f"all {len(sealed)} runs are sealed")
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=write_cursor({"sealed": sealed}))

    @dg.sensor(
        name=BACKTEST,
        job_name=backtest_job,
        minimum_interval_seconds=interval_s or 30,
        description=(
            "Backtest every run that is sealed from now on; what was sealed before this was turned on is left "
            "alone. Settings of the baseline and the strategy: those of LAKE_BACKTEST_CONFIG, else those of the"
            " run that sealed."
        ),
    )
    def sealed_run_backtest(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        records = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey("manifest"),
                after_storage_id=int(context.cursor) if context.cursor else None,
            ),
            limit=_SEALED_AT_ONCE if context.cursor else 1,
            ascending=bool(context.cursor),
        ).records
        newest = str(max([record.storage_id for record in records], default=int(context.cursor or 0)))
        if not context.cursor:
            return dg.SensorResult(skip_reason=dg.SkipReason("seals from now on are backtested"), cursor=newest)
        settings = AutomationSettings.from_environment(os.environ).backtest()
        requests = [
            request for record in records if (request := _backtest_request(context, record, settings)) is not None
        ]
        skip = None if requests else dg.SkipReason("no run was sealed since the last tick")
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=newest)

    @dg.run_failure_sensor(
        name=FAILED,
        minimum_interval_seconds=interval_s or 30,
        description=(
            "Say which run failed, at which step, for which buckets and why: to LAKE_FAILURE_WEBHOOK, and in "
            'the tick. The webhook gets `{"text": message}`, as the incoming webhooks of chats want it.'
        ),
    )
    def failed_run(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        message = _message_of(context)
        context.log.error(message)
        webhook = AutomationSettings.from_environment(os.environ).failure_webhook
        if webhook is None:
            return dg.SkipReason(f"LAKE_FAILURE_WEBHOOK is not set, so this is said here alone: {message}")
        post_message(webhook, message)
        return None

    return [catch_up, alerts_inbox, seal_when_complete, sealed_run_backtest, failed_run]


def _seal_request(instance: dg.DagsterInstance, run: CompleteRun, other_jobs: frozenset[str]) -> dg.RunRequest | str:
    """What seals a complete run, or why it has to wait."""
    makers = known_runs(instance, list(run.dagster_run_ids))
    if not makers:
        return "complete, but no run of this Dagster has made it: seal it by materialising `manifest`"
    if at_work := unfinished_work_on(instance, run.run_id, other_jobs):
        return f"complete, but {at_work}"
    configs = [same_run_config(maker.run_config, run.run_id, ("check_settings",)) for maker in makers]
    previous = {config["resources"]["lake_run"]["config"].get("previous") for config in configs}
    if len(previous) > 1:
        return f"complete, but its Dagster runs name different runs as `previous`: {sorted(map(str, previous))}"
    return dg.RunRequest(
        # Once for what was exported: a seal that fails is asked for again when something was exported anew.
        run_key=f"{SEAL}:{run.run_id}:{run.state}",
        run_config=configs[-1],
        tags={"lake/run_id": run.run_id, STARTED_BY: SEAL},
        asset_selection=[dg.AssetKey("coverage"), dg.AssetKey("manifest")],
    )


def _backtest_request(
    context: dg.SensorEvaluationContext, record: dg.EventLogRecord, settings: dict[str, dict[str, Any]]
) -> dg.RunRequest | None:
    """What backtests the run of a materialisation of `manifest`, if that was when it was sealed."""
    materialization = record.asset_materialization
    if materialization is None or materialization.metadata["sealed_now"].value is not True:
        return None
    run_id = str(materialization.metadata["run_id"].value)
    maker = context.instance.get_run_by_id(record.run_id)
    if maker is None:
        context.log.warning(f"run {run_id} is not backtested: Dagster run {record.run_id} that sealed it was deleted")
        return None
    config = same_run_config(maker.run_config, run_id, ("baseline_settings", "strategy_settings"))
    config["resources"] |= {name: {"config": values} for name, values in settings.items()}
    return dg.RunRequest(
        run_key=f"{BACKTEST}:{run_id}:{materialization.metadata['content_sha256'].value}",
        run_config=config,
        tags={"lake/run_id": run_id, STARTED_BY: BACKTEST},
    )


def _message_of(context: dg.RunFailureSensorContext) -> str:
    run = context.dagster_run
    failures = {}
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        said = data.user_failure_data.description if data.user_failure_data else None
        failures[str(event.step_key)] = said or (data.error.message.strip() if data.error else str(event.message))
    return failure_message(
        run.job_name,
        run.run_id,
        run.tags.get("lake/run_id") or configured_run_id(run.run_config),
        failures or {"before any step": str(context.failure_event.message)},
    )
