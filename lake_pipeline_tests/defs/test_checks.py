"""Asset checks as people see them: in real instances, of runs over the whole range, of parts, and of refused seals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Status

from lake_pipeline.defs.build import build_definitions
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run
from lake_pipeline_tests.candles_for_tests import Alert, create_table, small_market, write_alerts
from lake_pipeline_tests.defs.test_lake_assets import LAKE, execute, failure

CHECKS = {
    "alerts": {"rejected_alerts"},
    "coverage": {"all_buckets", "filled_share", "source_lag"},
    "manifest": {"seal_verifies", "ledger_balances", "rejected_candles"},
}
KEYS = [dg.AssetCheckKey(dg.AssetKey(asset), name) for asset, names in CHECKS.items() for name in sorted(names)]

Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def root(engine_root: Path, table: str) -> LocalStore:
    return LocalStore(engine_root / f"lake/runs/run_id=run-{table}")


@pytest.fixture
def instance() -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def materialise(
    engine: ClickHouseSource, engine_root: Path, table: str, tmp_path: Path, instance: dg.DagsterInstance
) -> Materialise:
    """Materialise assets of a small market that has a row to reject; the whole range unless told otherwise."""
    candles, alerts = small_market(mints=4)
    create_table(engine, table, candles)
    csv = write_alerts(tmp_path / "alerts.csv", [*alerts, Alert("unusable", "", alerts[0].ts_ms)])
    run = {"alerts": csv, "interval": "1m", "window": "pre5_post60", "run_id": f"run-{table}"}
    job = build_definitions().resolve_implicit_global_asset_job_def()

    def materialise(
        assets: Sequence[str] = LAKE, *, partition: str | None = None, **limits: Any
    ) -> dg.ExecuteInProcessResult:
        config = {
            "resources": {
                "lake": {"config": {"data_root": str(engine_root)}},
                "candle_source": {"config": {"table": table}},
                "lake_run": {"config": run},
                "check_settings": {"config": limits},
            },
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }
        return execute(job, config, assets, instance=instance, partition=partition)

    return materialise


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


def figures(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in evaluation.metadata.items()}


def test_a_run_over_the_whole_range_shows_every_check_as_passed_with_figures_to_plot(materialise, instance, root):
    result = materialise()
    assert result.success
    shown = instance.event_log_storage.get_latest_asset_check_execution_by_key(KEYS)
    assert {key: record.status for key, record in shown.items()} == dict.fromkeys(KEYS, Status.SUCCEEDED)
    manifest = load_run(LocalStore(root.root.parents[2]), root.root.name.removeprefix("run_id=")).manifest()
    found = evaluations(result)
    assert all(isinstance(value, int | float) for each in found.values() for value in figures(each).values())
    ledger = manifest.ledger.model_dump(exclude={"zero_volume"})
    assert figures(found["ledger_balances"]) == ledger
    assert figures(found["rejected_candles"]) == {
        "rejected_candles": ledger["rejected"] / ledger["source_rows"],
        "rejected": ledger["rejected"],
        "source_rows": ledger["source_rows"],
    }
    assert figures(found["rejected_alerts"]) == {"rejected_alerts": 0.1, "rejected": 1, "rows": 10}
    assert figures(found["seal_verifies"])["files"] == len(manifest.files) + len(manifest.records)
    (coverage,) = result.asset_materializations_for_node("coverage")
    assert figures(found["filled_share"]) == {"filled_share": coverage.metadata["filled_share"].value}
    # The last window ends half an hour after the market.
    table = pq.read_table(root.root / "outputs/coverage.parquet")
    lag_ms = pc.max(table["window_end_ms"]).as_py() - pc.max(table["last_ts_ms"]).as_py() - 60_000
    assert figures(found["source_lag"])["source_lag_hours"] == pytest.approx(lag_ms / 3_600_000)
    assert lag_ms > 0.1 * 3_600_000


BEYOND = {
    "rejected_alerts": ("max_rejected_alerts", 0.09),
    "filled_share": ("min_filled_share", 1.0),
    "source_lag": ("max_source_lag_hours", 0.1),
    "rejected_candles": ("max_rejected_candles", 0.0),
}
WITHIN = {"max_rejected_alerts": 0.1, "min_filled_share": 0.2, "max_source_lag_hours": 1, "max_rejected_candles": 0.5}


def test_figures_beyond_their_limits_are_shown_as_failed_and_the_run_is_sealed_all_the_same(
    materialise, instance, root
):
    def failed() -> set[str]:
        records = instance.event_log_storage.get_latest_asset_check_execution_by_key(KEYS)
        assert {record.status for record in records.values()} <= {Status.FAILED, Status.SUCCEEDED}
        return {key.name for key, record in records.items() if record.status == Status.FAILED}

    limits = dict(BEYOND.values())
    warned = materialise(**limits)
    assert warned.success
    assert root.exists("manifest.json")
    assert failed() == set(BEYOND)
    for name, (limit, value) in BEYOND.items():
        found = evaluations(warned)[name]
        assert found.severity == dg.AssetCheckSeverity.WARN
        assert figures(found)[limit] == value
        assert found.description.endswith(f"; {limit} is {value:g}")
    errors = evaluations(materialise(list(CHECKS), **limits, severity="error"))
    assert {errors[name].severity for name in BEYOND} == {dg.AssetCheckSeverity.ERROR}
    assert materialise(list(CHECKS), **WITHIN).success
    assert failed() == set()


def test_limits_of_the_environment_hold_where_the_run_config_sets_none(materialise, monkeypatch):
    monkeypatch.setenv("LAKE_CHECKS", "max_rejected_alerts=0, severity=error")
    found = evaluations(materialise(["alerts"]))["rejected_alerts"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert evaluations(materialise(["alerts"], max_rejected_alerts=0.5))["rejected_alerts"].passed


def test_a_limit_that_cannot_work_fails_before_anything_is_written(materialise, monkeypatch, root):
    assert (
        "max_rejected_alerts 5 cannot work"
        in failure(materialise(["alerts"], max_rejected_alerts=5), "alerts").description
    )
    monkeypatch.setenv("LAKE_CHECKS", "max_rejected=0.1")
    assert "limit 'max_rejected=0.1' is not one of" in failure(materialise(["alerts"]), "alerts").description
    assert not root.exists("run.json")


def test_while_buckets_are_missing_coverage_warns_and_the_refused_seal_says_why(materialise, instance):
    result = materialise(partition="00")
    found = evaluations(result)
    assert not found["all_buckets"].passed
    assert found["all_buckets"].severity == dg.AssetCheckSeverity.WARN
    assert figures(found["all_buckets"]) == {"missing_buckets": 255, "missing_alerts": 9}
    assert not found["seal_verifies"].passed
    assert found["seal_verifies"].description == failure(result, "manifest").description
    assert found["filled_share"].passed  # of no alert at all nothing is known, and no limit is set
    assert not evaluations(materialise(["coverage"], min_filled_share=0.0))["filled_share"].passed


def test_a_sealed_run_that_is_not_what_was_sealed_shows_as_a_failed_check(materialise, instance, root):
    assert materialise().success
    (root.root / "outputs/coverage.parquet").write_bytes(b"PAR1")
    assert not materialise(["manifest"]).success
    key = dg.AssetCheckKey(dg.AssetKey("manifest"), "seal_verifies")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.status == Status.FAILED
    assert "outputs/coverage.parquet" in record.evaluation.description


def test_a_failed_check_is_said_in_the_log(materialise, instance):
    run = materialise(["alerts"], max_rejected_alerts=0.0)
    said = [each.user_message for each in instance.all_logs(run.run_id)]
    assert "check rejected_alerts: rejected_alerts is 0.1; max_rejected_alerts is 0" in said
