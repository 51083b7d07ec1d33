"""The asset `optimization` as Dagster runs it: a real instance, the real engine, a run that can be split."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from lake_pipeline.defs.build import OPTIMIZE_JOB, build_definitions
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.settings import OptimizerSettings
from lake_pipeline_tests.candles_for_tests import create_table, small_market, write_alerts
from lake_pipeline_tests.defs.test_lake_assets import LAKE, OPTIMIZE, execute, failure
from lake_pipeline_tests.optimizer.runs_for_tests import candles_of, noise

Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions()


@pytest.fixture
def config(engine: ClickHouseSource, engine_root: Path, table: str, tmp_path: Path) -> dict[str, Any]:
    candles, alerts = candles_of(noise, seed=1, mints=60)
    create_table(engine, table, candles)
    run = {"alerts": write_alerts(tmp_path / "alerts.csv", alerts), "interval": "15m", "window": "pre2_post32"}
    return {
        "resources": {
            "lake": {"config": {"data_root": str(engine_root)}},
            "candle_source": {"config": {"table": table}},
            "lake_run": {"config": {**run, "run_id": f"run-{table}"}},
            "baseline_settings": {"config": {"horizon_hours": 6}},
            "optimizer_settings": {"config": {"tp": "1.1:2:.1", "sl": ".5:.9:.05", "trials": 40}},
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }


@pytest.fixture
def materialise(definitions: dg.Definitions, config: dict[str, Any]) -> Materialise:
    job = definitions.resolve_implicit_global_asset_job_def()

    def run(assets: list[str], **resources: dict[str, Any]) -> dg.ExecuteInProcessResult:
        for name, values in resources.items():
            config["resources"].setdefault(name, {"config": {}})["config"] |= values
        return execute(job, config, assets)

    return run


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("optimization")
    return {name: value.value for name, value in event.metadata.items()}


def test_the_job_searches_a_sealed_run_and_shows_the_winner_with_pictures(materialise, definitions, config):
    assert materialise(LAKE).success
    result = definitions.resolve_job_def(OPTIMIZE_JOB).execute_in_process(run_config=config)
    assert {event.step_key for event in result.all_events if event.is_step_success} == set(OPTIMIZE)
    assert [each.passed for each in result.get_asset_check_evaluations()] == [True]
    shown = metadata_of(result)
    rows = pq.read_table(shown["dagster/uri"]).to_pylist()
    assert shown["dagster/row_count"] == len(rows) == 40
    best = max((row for row in rows if row["failed_gates"] is None), key=lambda row: row["objective"])
    assert shown["train_objective"] == best["objective"]
    assert (shown["winner"]["tp"], shown["winner"]["sl"]) == (best["tp"], best["sl"])
    assert shown["test_mean_ret"] == best["test_mean_ret"]
    assert shown["trials_on_run"] == 40
    assert shown["concerns"].startswith("- ")
    for name in ("heatmap", "trials", "equity", "folds_picture"):
        picture = re.fullmatch(r"!\[\]\(data:image/png;base64,(.*)\)", shown[name])
        assert picture
        assert base64.b64decode(picture[1]).startswith(b"\x89PNG")
        assert len(picture[0]) < 150_000
    again = metadata_of(materialise(OPTIMIZE))
    assert again == {**shown, "computed_now": False}
    other = metadata_of(materialise(OPTIMIZE, optimizer_settings={"seed": 1}))
    assert other["result_key"] != shown["result_key"]
    assert 40 < other["trials_on_run"] <= 80
    none = metadata_of(materialise(OPTIMIZE, optimizer_settings={"gates": "min_trades=5000"}))
    assert none["winner"].startswith("none: no trial passes the gates: of 40 trials")
    assert none["heatmap"].startswith("![](data:image/png")


def test_alerts_that_cannot_be_split_are_a_warning_unless_a_split_was_asked_for(
    engine, engine_root, table, tmp_path, config, materialise
):
    """The whole graph of a first day's alerts is no failure, and no result either."""
    candles, alerts = small_market(mints=4)
    create_table(engine, f"{table}_day", candles)
    run = {"alerts": write_alerts(tmp_path / "day.csv", alerts), "interval": "1m", "window": "pre5_post40"}
    day = {
        "candle_source": {"table": f"{table}_day"},
        "lake_run": {**run, "run_id": f"run-{table}-day"},
        "baseline_settings": {"horizon_hours": 48},
    }
    result = materialise([*LAKE, *OPTIMIZE], **day)
    assert result.success
    assert metadata_of(result) == {"dagster/row_count": 0, "run_id": f"run-{table}-day", "trials_evaluated": 0}
    (warned,) = [each for each in result.get_asset_check_evaluations() if not each.passed]
    assert (warned.check_name, warned.severity) == ("searched", dg.AssetCheckSeverity.WARN)
    assert "nothing was searched: " in warned.description
    refused = failure(materialise(OPTIMIZE, optimizer_settings={"train_days": 2}), "optimization")
    assert "give shorter periods or fewer folds" in refused.description
    assert refused.metadata["error"].value == "NothingToSplit"


def test_a_run_without_a_seal_and_settings_that_cannot_work_are_refused(materialise):
    assert materialise(["alerts", "candles", "coverage"]).success
    assert "is not sealed" in failure(materialise(OPTIMIZE), "optimization").description
    assert materialise(["manifest"]).success
    shown = failure(materialise(OPTIMIZE, optimizer_settings={"tp": "9:1:1"}), "optimization")
    assert "is empty: lo:hi:step" in shown.description


def test_settings_have_the_defaults_of_the_search():
    from lake_pipeline.optimizer.objective import Gates, Objective
    from lake_pipeline.optimizer.search import SearchConfig

    search = OptimizerSettings().search()
    assert search == SearchConfig(search.space)
    assert (search.objective, search.gates, search.trials) == (Objective(), Gates(), 100)
    assert OptimizerSettings(tiers=["none", "2x:1.2"], sampler="grid").search().space.size == 201 * 31 * 2
