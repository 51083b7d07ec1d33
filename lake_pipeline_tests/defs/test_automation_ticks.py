"""Ticks of schedules and sensors against real instances: what they ask for, and what comes of it when it is run."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.defs.build import BACKTEST_JOB, EXPORT_JOB, build_definitions
from lake_pipeline.defs.deployment import definitions_from_environment
from lake_pipeline.defs.schedules import build_schedules
from lake_pipeline.defs.sensors import build_sensors
from lake_pipeline.errors import ConfigError
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.reader import open_run
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    create_table,
    mint_name,
    sha1_bucket,
    small_market,
    write_alerts,
)

DAY_MS = 86_400_000
TICK = dt.datetime(2025, 5, 2, 0, 15, tzinfo=dt.UTC)  # the market is of 2025-05-01
CANDLES, ALERTS = small_market(mints=4)
LAKE = ("alerts", "candles", "coverage", "manifest")
RANGE = {"dagster/asset_partition_range_start": "00", "dagster/asset_partition_range_end": "ff"}


class Automation:
    """A data root, a market, an inbox, an instance, and the schedules and sensors over them."""

    instance: dg.DagsterInstance
    kept: dg.DagsterInstance

    def __init__(self, folder: Path, table: str, embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.table = folder, table
        self.definitions = build_definitions()
        self.sensors = {each.name: each for each in build_sensors(EXPORT_JOB, BACKTEST_JOB, now=lambda: TICK)}
        (self.schedule,) = build_schedules(EXPORT_JOB)
        self.cursors: dict[str, str | None] = {}
        (folder / "inbox").mkdir()
        self.setenv = monkeypatch.setenv
        self.setenv("LAKE_DATA_ROOT", str(folder / "lake"))
        self.setenv("LAKE_ENGINE_PATH", embedded)
        self.setenv("LAKE_INBOX", str(folder / "inbox"))
        self.setenv("LAKE_CATCH_UP_DAYS", "2")
        self.settings = {"interval": "1m", "window": "pre10_post20", "table": table}
        (folder / "run.json").write_text(json.dumps({"alerts": f"{folder}/{{day}}.csv", **self.settings}))
        self.setenv("LAKE_RUN_CONFIG", str(folder / "run.json"))
        self.write_day("2025-05-01", ALERTS)

    def write_day(self, day: str, alerts: Sequence[Alert]) -> None:
        write_alerts(self.folder / f"{day}.csv", alerts)

    def start(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def nightly(self, tick: dt.datetime = TICK) -> Any:
        context = dg.build_schedule_context(self.kept, scheduled_execution_time=tick)
        return self.schedule.evaluate_tick(context)

    def tick(self, name: str) -> Any:
        """One tick of a sensor with the cursor of the last one, as the daemon keeps it."""
        context = dg.build_sensor_context(
            self.instance, cursor=self.cursors.get(name), definitions=self.definitions, sensor_name=name
        )
        data = self.sensors[name].evaluate_tick(context)
        if data.cursor is not None:
            self.cursors[name] = data.cursor
        return data

    def requests(self, name: str) -> list[dg.RunRequest]:
        return list(self.tick(name).run_requests)

    def skipped(self, name: str) -> str:
        data = self.tick(name)
        assert not data.run_requests
        return str(data.skip_message)

    def run(self, request: dg.RunRequest, job: str = EXPORT_JOB) -> dg.ExecuteInProcessResult:
        """What the daemon would launch, in this process."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config=dict(request.run_config) | {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags=dict(request.tags) | {"dagster/run_key": request.run_key or ""},
            instance=self.instance,
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
            raise_on_error=False,
        )

    def export(self, run_id: str, buckets: Sequence[str], assets: Sequence[str], **settings: Any) -> None:
        """A Dagster run over a range of buckets, as a backfill makes it."""
        config = {"alerts": str(self.folder / "2025-05-01.csv"), "run_id": run_id, "interval": "1m"}
        run = {"config": config | {"window": "pre10_post20"} | settings}
        resources = {
            "lake_run": run,
            "candle_source": {"config": {"table": self.table}},
            "check_settings": {"config": {"min_filled_share": 1.0}},
        }
        result = self.run(
            dg.RunRequest(
                run_config={"resources": resources},
                tags={
                    "dagster/asset_partition_range_start": buckets[0],
                    "dagster/asset_partition_range_end": buckets[-1],
                },
                asset_selection=[dg.AssetKey(name) for name in assets],
            )
        )
        assert result.success

    def unfinished(self, run_id: str | None, status: dg.DagsterRunStatus, job: str = EXPORT_JOB) -> dg.DagsterRun:
        """A Dagster run that is recorded and does not end."""
        settings = {"interval": "1m", "window": "pre10_post20", "alerts": "x.csv"}
        config = {"resources": {"lake_run": {"config": settings | ({"run_id": run_id} if run_id else {})}}}
        run = self.instance.create_run_for_job(self.definitions.resolve_job_def(job), run_config=config, tags={})
        return self._set(run, status)

    def _set(self, run: dg.DagsterRun, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        types = {
            dg.DagsterRunStatus.STARTING: dg.DagsterEventType.PIPELINE_STARTING,
            dg.DagsterRunStatus.STARTED: dg.DagsterEventType.PIPELINE_START,
            dg.DagsterRunStatus.CANCELED: dg.DagsterEventType.PIPELINE_CANCELED,
        }
        event = dg.DagsterEvent(event_type_value=types[status].value, job_name=run.job_name)
        self.instance.report_dagster_event(event, run_id=run.run_id)
        return run

    def end(self, run: dg.DagsterRun) -> None:
        self._set(run, dg.DagsterRunStatus.CANCELED)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """An instance in files, the only kind a schedule's context takes; slow, so for ticks of schedules alone."""
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        yield instance


@pytest.fixture(scope="module")
def market_table(engine: ClickHouseSource) -> str:
    return create_table(engine, "automation_market", CANDLES)


@pytest.fixture
def automation(
    engine: ClickHouseSource,
    market_table: str,
    kept: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Automation]:
    made = Automation(tmp_path, market_table, engine.config.embedded_path, monkeypatch)
    made.kept = kept
    with dg.DagsterInstance.ephemeral() as instance:
        made.start(instance)
        yield made


def test_everything_is_off_until_it_is_turned_on():
    repository = build_definitions().get_repository_def()
    assert {each.name for each in repository.schedule_defs} == {"nightly_export"}
    assert {each.name for each in repository.sensor_defs} == {
        "catch_up", "alerts_inbox", "seal_when_complete", "sealed_run_backtest", "failed_run",
    }  # fmt: skip
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert schedule.execution_timezone == "UTC"
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
        assert sensor.description


def test_the_environment_sets_buckets_per_run_and_the_time_of_the_night():
    plain = definitions_from_environment({})
    assert plain.resolve_asset_graph().get(dg.AssetKey("candles")).backfill_policy == dg.BackfillPolicy.single_run()
    assert plain.get_repository_def().get_schedule_def("nightly_export").cron_schedule == "15 0 * * *"
    made = definitions_from_environment({"LAKE_BUCKETS_PER_RUN": "16", "LAKE_NIGHTLY_CRON": "30 4 * * *"})
    graph = made.resolve_asset_graph()
    assert graph.get(dg.AssetKey("candles")).backfill_policy == dg.BackfillPolicy.multi_run(16)
    assert graph.get(dg.AssetKey("manifest")).backfill_policy == dg.BackfillPolicy.single_run()
    assert made.get_repository_def().get_schedule_def("nightly_export").cron_schedule == "30 4 * * *"
    with pytest.raises(ConfigError, match="LAKE_BUCKETS_PER_RUN 'many'"):
        definitions_from_environment({"LAKE_BUCKETS_PER_RUN": "many"})


# --- missing and wrong settings --------------------------------------------------------------------


def test_a_missing_setting_is_a_skip_that_says_what_to_set(automation):
    for name in ("LAKE_RUN_CONFIG", "LAKE_INBOX"):
        automation.setenv(name, "")
    assert "LAKE_RUN_CONFIG is not set: name a JSON file" in automation.nightly().skip_message
    assert "LAKE_RUN_CONFIG is not set: name a JSON file" in automation.skipped("catch_up")
    assert "LAKE_INBOX is not set: name the folder" in automation.skipped("alerts_inbox")


def test_a_wrong_setting_fails_the_tick_with_the_message(automation):
    (automation.folder / "run.json").write_text('{"alerts": "a.csv", "interval": "1m", "windw": "x"}')
    with pytest.raises(dg.DagsterError) as caught:
        automation.nightly()
    assert "unknown windw" in str(caught.value.__cause__)
    with pytest.raises(ConfigError, match="unknown windw"):
        automation.tick("catch_up")


# --- nightly ---------------------------------------------------------------------------------------


def test_the_nightly_tick_asks_for_one_run_over_all_buckets_that_seals_the_day_before(automation):
    (request,) = automation.nightly().run_requests
    assert request.run_key == "nightly_2025-05-01"
    assert RANGE.items() <= request.tags.items()
    assert request.run_config["resources"]["lake_run"]["config"]["from_day"] == "2025-05-01"
    assert automation.run(request).success
    assert open_run("nightly_2025-05-01").alerts().num_rows == len(ALERTS)
    assert automation.nightly().skip_message == "run nightly_2025-05-01 is sealed"


def test_the_nightly_run_seals_under_a_multi_run_policy_too(automation):
    automation.definitions = definitions_from_environment({"LAKE_BUCKETS_PER_RUN": "16"})
    (request,) = automation.nightly().run_requests
    assert automation.run(request).success
    assert open_run("nightly_2025-05-01").manifest.total_rows > 0


def test_alerts_of_other_days_are_not_in_the_nights_run(automation):
    later = [Alert("later", mint_name("later"), T0_MS + DAY_MS), Alert("earlier", mint_name("e"), T0_MS - 1)]
    automation.write_day("2025-05-01", [*ALERTS, *later])
    (request,) = automation.nightly().run_requests
    assert automation.run(request).success
    ids = set(open_run("nightly_2025-05-01").alerts().column("alert_id").to_pylist())
    assert ids == {alert.alert_id for alert in ALERTS}


def test_a_lag_takes_an_earlier_day(automation):
    automation.setenv("LAKE_LAG_DAYS", "2")
    (request,) = automation.nightly(TICK + dt.timedelta(days=1)).run_requests
    assert request.run_key == "nightly_2025-05-01"


def test_a_night_whose_windows_are_not_over_says_how_long_to_wait(automation, capsys):
    automation.nightly(dt.datetime(2025, 5, 2, 0, 21, tzinfo=dt.UTC))
    assert "LAKE_LAG_DAYS" not in capsys.readouterr().err
    automation.nightly(dt.datetime(2025, 5, 2, 0, 19, tzinfo=dt.UTC))
    said = capsys.readouterr().err
    assert "end as late as 2025-05-02 00:20 UTC" in said
    assert "Set LAKE_LAG_DAYS to 2" in said


def test_the_nightly_tick_waits_for_a_run_of_the_day_that_has_not_ended(automation):
    (request,) = automation.nightly().run_requests
    automation.start(automation.kept)
    run = automation.unfinished("nightly_2025-05-01", dg.DagsterRunStatus.STARTED)
    automation.instance.add_run_tags(run.run_id, dict(request.tags))
    assert automation.nightly().skip_message == f"Dagster run {run.run_id} of run nightly_2025-05-01 is not finished"
    automation.end(run)
    assert len(automation.nightly().run_requests) == 1


# --- catching up -----------------------------------------------------------------------------------


def test_days_are_caught_up_with_oldest_first_and_one_at_a_time(automation):
    automation.write_day("2025-04-30", [Alert("e", mint_name("e"), T0_MS - DAY_MS + 5)])
    (first,) = automation.requests("catch_up")
    assert first.tags["lake/run_id"] == "nightly_2025-04-30"
    run = automation.unfinished("nightly_2025-04-30", dg.DagsterRunStatus.STARTING)
    automation.instance.add_run_tags(run.run_id, dict(first.tags))
    assert automation.skipped("catch_up") == "one at a time: nightly_2025-04-30 is STARTING"
    automation.end(run)
    assert automation.run(first).success
    (second,) = automation.requests("catch_up")
    assert second.tags["lake/run_id"] == "nightly_2025-05-01"
    assert automation.run(second).success
    assert automation.skipped("catch_up") == "2 of 2 days sealed, 2025-04-30 to 2025-05-01"


def test_a_day_that_fails_is_not_asked_for_again_on_the_same_day(automation):
    automation.write_day("2025-05-01", [])
    (request,) = automation.requests("catch_up")
    assert not automation.run(request).success
    assert "tried today and not sealed, to be tried again tomorrow: 2025-05-01" in automation.skipped("catch_up")
    automation.sensors["catch_up"] = next(
        each
        for each in build_sensors(EXPORT_JOB, BACKTEST_JOB, now=lambda: TICK + dt.timedelta(days=1))
        if each.name == "catch_up"
    )
    (again,) = automation.requests("catch_up")
    assert again.tags["lake/run_id"] == request.tags["lake/run_id"]
    assert again.run_key != request.run_key


# --- the inbox -------------------------------------------------------------------------------------


def test_a_file_in_the_inbox_becomes_a_sealed_run_once_whatever_its_name(automation):
    assert "nothing new" in automation.skipped("alerts_inbox")
    inbox = automation.folder / "inbox"
    write_alerts(inbox / "calls.csv", ALERTS)
    assert "1 to be looked at again" in automation.skipped("alerts_inbox")
    (request,) = automation.requests("alerts_inbox")
    assert request.tags["lake/alerts"] == "calls.csv"
    assert automation.run(request).success
    assert open_run(request.tags["lake/run_id"]).alerts().num_rows == len(ALERTS)
    assert "1 files known, 0 to be looked at again" in automation.skipped("alerts_inbox")

    (inbox / "calls.csv").rename(inbox / "renamed.csv")
    automation.skipped("alerts_inbox")
    (again,) = automation.requests("alerts_inbox")
    assert again.run_key == request.run_key  # so Dagster launches no second run

    write_alerts(inbox / "renamed.csv", ALERTS[:-1])
    automation.skipped("alerts_inbox")
    (changed,) = automation.requests("alerts_inbox")
    assert changed.run_key != request.run_key
    assert automation.run(changed).success
    assert open_run(changed.tags["lake/run_id"]).alerts().num_rows == len(ALERTS) - 1


def test_other_settings_make_another_run_of_the_same_file(automation):
    keys = []
    for window in ("pre10_post20", "pre10_post21"):
        (automation.folder / "run.json").write_text(json.dumps(automation.settings | {"window": window}))
        write_alerts(automation.folder / "inbox/calls.csv", ALERTS)
        automation.cursors.clear()
        automation.tick("alerts_inbox")
        (request,) = automation.requests("alerts_inbox")
        keys.append(request.run_key)
        assert automation.run(request).success
    assert len(set(keys)) == 2


# --- sealing ---------------------------------------------------------------------------------------


def test_a_run_of_several_dagster_runs_is_sealed_when_the_last_bucket_is_there(automation):
    automation.export("multi", ALL_BUCKETS[:128], ["alerts", "candles"])
    assert automation.skipped("seal_when_complete") == "multi: 128 of 256 buckets missing"
    automation.export("multi", ALL_BUCKETS[128:], ["candles"])
    (request,) = automation.requests("seal_when_complete")
    assert [key.to_user_string() for key in request.asset_selection] == ["coverage", "manifest"]
    sealing = automation.run(request)
    assert sealing.success
    # With the limits of the run that exported.
    assert [each.check_name for each in sealing.get_asset_check_evaluations() if not each.passed] == ["filled_share"]
    assert open_run("multi").manifest.total_rows > 0
    assert automation.skipped("seal_when_complete") == "all 1 runs are sealed"
    assert json.loads(automation.cursors["seal_when_complete"]) == {"sealed": ["multi"]}


def test_a_seal_waits_for_every_run_that_may_be_of_it(automation):
    automation.export("multi", ALL_BUCKETS, ["alerts", "candles"])
    for status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED):
        for named in ("multi", None):
            run = automation.unfinished(named, status)
            waits = f"multi: complete, but Dagster run {run.run_id} is {status.value}"
            assert automation.skipped("seal_when_complete") == waits
            automation.end(run)
    assert len(automation.requests("seal_when_complete")) == 1


def test_a_seal_waits_for_every_backfill_that_may_have_runs_of_it_to_start(automation):
    automation.export("multi", ALL_BUCKETS, ["alerts", "candles"])
    for assets, named, waits in (
        (["candles"], "multi", True),
        (["alerts", "candles"], None, True),
        (["candles"], "other", False),
        (["baseline"], None, False),
    ):
        backfill = PartitionBackfill(
            backfill_id=f"{assets[0]}-{named}",
            status=BulkActionStatus.REQUESTED,
            from_failure=False,
            tags={},
            backfill_timestamp=0.0,
            asset_selection=[dg.AssetKey(name) for name in assets],
            run_config={"resources": {"lake_run": {"config": {"run_id": named} if named else {}}}},
        )
        automation.instance.add_backfill(backfill)
        if waits:
            said = f"multi: complete, but backfill {backfill.backfill_id} is REQUESTED"
            assert automation.skipped("seal_when_complete") == said
            automation.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
        assert len(automation.requests("seal_when_complete")) == 1


def test_a_seal_does_not_wait_for_runs_that_cannot_be_of_it(automation):
    automation.export("multi", ALL_BUCKETS, ["alerts", "candles"])
    automation.unfinished("other", dg.DagsterRunStatus.STARTED)
    automation.unfinished("multi", dg.DagsterRunStatus.STARTED, BACKTEST_JOB)
    assert len(automation.requests("seal_when_complete")) == 1


def test_a_complete_run_that_is_spoilt_is_not_sealed_and_not_asked_for_for_ever(automation):
    automation.export("multi", ALL_BUCKETS, ["alerts", "candles"])
    folder = LocalStore(automation.folder / "lake/lake/runs/run_id=multi")
    part = next(file.path for file in folder.files("slices"))
    good = folder.read(part)
    folder.replace(part, good[:-1] + b"?")
    (request,) = automation.requests("seal_when_complete")
    assert not automation.run(request).success
    assert not folder.exists("manifest.json")
    (again,) = automation.requests("seal_when_complete")
    assert again.run_key == request.run_key  # so Dagster launches no second run
    automation.export("multi", ALL_BUCKETS, ["candles"])
    (after,) = automation.requests("seal_when_complete")
    assert after.run_key != request.run_key
    assert automation.run(after).success


def test_runs_made_without_dagster_or_with_contradicting_settings_are_left_to_people(automation):
    automation.export("multi", ALL_BUCKETS[:128], ["alerts", "candles"])
    automation.export("multi", ALL_BUCKETS[128:], ["candles"], previous="before")
    assert "name different runs as `previous`: ['None', 'before']" in automation.skipped("seal_when_complete")
    with dg.DagsterInstance.ephemeral() as other:
        automation.start(other)
        assert "no run of this Dagster has made it" in automation.skipped("seal_when_complete")


# --- backtests -------------------------------------------------------------------------------------


def test_a_new_seal_is_backtested_once_and_what_was_sealed_before_is_not(automation):
    (request,) = automation.nightly().run_requests
    assert automation.run(request).success
    assert automation.skipped("sealed_run_backtest") == "seals from now on are backtested"
    assert automation.skipped("sealed_run_backtest") == "no run was sealed since the last tick"
    write_alerts(automation.folder / "inbox/calls.csv", ALERTS)
    automation.tick("alerts_inbox")
    (inbox,) = automation.requests("alerts_inbox")
    assert automation.run(inbox).success
    assert automation.run(request).success  # a repeat on a sealed run verifies, and is no new seal
    (backtest,) = automation.requests("sealed_run_backtest")
    assert backtest.tags["lake/run_id"] == inbox.tags["lake/run_id"]
    result = automation.run(backtest, BACKTEST_JOB)
    assert result.success
    (measured,) = result.asset_materializations_for_node("baseline")
    assert measured.metadata["run_id"].value == inbox.tags["lake/run_id"]
    assert automation.skipped("sealed_run_backtest") == "no run was sealed since the last tick"


def test_a_backtest_takes_its_settings_from_a_file(automation):
    (automation.folder / "backtest.json").write_text('{"strategy_settings": {"tp": 1.5}}')
    automation.setenv("LAKE_BACKTEST_CONFIG", str(automation.folder / "backtest.json"))
    automation.tick("sealed_run_backtest")
    (request,) = automation.nightly().run_requests
    assert automation.run(request).success
    (backtest,) = automation.requests("sealed_run_backtest")
    result = automation.run(backtest, BACKTEST_JOB)
    assert result.success
    (trades,) = result.asset_materializations_for_node("trades")
    assert trades.metadata["strategy"].value["tp"] == 1.5


# --- failures --------------------------------------------------------------------------------------


def failed_message(automation: Automation, result: dg.ExecuteInProcessResult) -> str:
    """What the sensor says of a run that failed."""
    assert not result.success
    event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
    context = dg.build_run_status_sensor_context(
        "failed_run", dagster_instance=automation.instance, dagster_run=result.dagster_run, dagster_event=event
    ).for_run_failure()
    said = automation.sensors["failed_run"](context)
    assert isinstance(said, dg.SkipReason)
    return said.skip_message


def test_the_message_of_a_failed_run_names_the_bucket_and_the_cause(automation):
    bad = sha1_bucket(ALERTS[0].mint)
    run = automation.folder / "lake/lake/runs/run_id=nightly_2025-05-01"
    folder = run / "slices/ohlcv/interval=1m/window=pre10_post20"
    folder.mkdir(parents=True)
    (folder / f"mint_bucket={bad}").write_text("a plain file where the bucket's folder must be")
    (request,) = automation.nightly().run_requests
    message = failed_message(automation, automation.run(request))
    assert message.startswith("LAKE_FAILURE_WEBHOOK is not set, so this is said here alone: export_run failed: ")
    assert "lake run nightly_2025-05-01, Dagster run " in message
    assert "candles: run nightly_2025-05-01: 1 of 256 buckets failed, 255 are committed" in message
    assert f"\n  {bad}: " in message
    assert "a file is in the way of a folder" in message


def test_a_run_that_fails_before_the_buckets_says_where(automation):
    automation.write_day("2025-05-01", [])
    (request,) = automation.nightly().run_requests
    assert "\nalerts: " in failed_message(automation, automation.run(request))
