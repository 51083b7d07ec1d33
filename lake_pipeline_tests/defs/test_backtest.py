"""The group `backtest` as Dagster runs it: a real instance, the real engine, the whole graph."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from lake_pipeline.defs.build import BACKTEST_JOB, build_definitions
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline_tests.candles_for_tests import create_table, small_market, write_alerts
from lake_pipeline_tests.defs.test_lake_assets import BACKTEST, LAKE, execute, failure


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions()


@pytest.fixture
def config(engine: ClickHouseSource, engine_root: Path, table: str, tmp_path: Path) -> dict[str, Any]:
    """Run config of a small market: what the group `lake` needs, and nothing more."""
    candles, alerts = small_market(mints=4)
    create_table(engine, table, candles)
    run = {"alerts": write_alerts(tmp_path / "alerts.csv", alerts), "interval": "1m", "window": "pre5_post40"}
    return {
        "resources": {
            "lake": {"config": {"data_root": str(engine_root)}},
            "candle_source": {"config": {"table": table}},
            "lake_run": {"config": {**run, "run_id": f"run-{table}"}},
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }


@pytest.fixture
def materialise(definitions: dg.Definitions, config: dict[str, Any]) -> Callable[..., dg.ExecuteInProcessResult]:
    job = definitions.resolve_implicit_global_asset_job_def()

    def run(assets: Sequence[str] | None = None, **resources: dict[str, Any]) -> dg.ExecuteInProcessResult:
        settings = {name: {"config": values} for name, values in resources.items()}
        return execute(job, {**config, "resources": config["resources"] | settings}, assets)

    return run


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_the_whole_graph_materialises_with_the_settings_of_the_lake_alone(materialise, config, engine_root):
    result = materialise()
    assert result.success
    baseline, trades = metadata_of(result, "baseline"), metadata_of(result, "trades")
    table = pq.read_table(baseline["dagster/uri"])
    assert table.num_rows == baseline["dagster/row_count"] == 9
    counts = [baseline[f"alerts_{name}"] for name in ("ok", "missing", "bad_entry", "late_entry")]
    assert counts == [table["status"].to_pylist().count(name) for name in ("ok", "missing", "bad_entry", "late_entry")]
    assert counts[:2] == [8, 1]
    assert 1 <= baseline["median_ath_mult"] <= max(table["ath_mult"].drop_null().to_pylist())

    rows = pq.read_table(trades["dagster/uri"])
    reasons = rows["tp_sl_exit_reason"].drop_null().to_pylist()
    assert trades["trades"] == len(reasons) == 8
    assert {name: trades[f"exits_{name}"] for name in set(reasons)} == {name: reasons.count(name) for name in reasons}
    assert trades["ambiguous_share"] == sum(rows["ambiguous"].drop_null().to_pylist()) / 8
    assert trades["worst_case_mean_ret"] <= trades["mean_ret"] <= trades["best_case_mean_ret"]
    assert trades["strategy"]["tp"] == 2.0

    files = metadata_of(result, "price_action")
    folder = Path(files["dagster/uri"])
    written = list(folder.glob("alert_*.parquet"))
    assert len(written) == files["files"] == 8
    assert files["dagster/row_count"] == sum(pq.read_metadata(file).num_rows for file in written)
    assert files["alerts_without_candles"] == 1
    assert folder.parent == Path(baseline["dagster/uri"]).parent
    assert folder.is_relative_to(engine_root / f"results/run_id={config['resources']['lake_run']['config']['run_id']}")


def test_top_callers_are_a_table_and_pictures_travel_in_the_event(materialise):
    result = materialise(baseline_settings={"min_trades": 1})
    shown = metadata_of(result, "caller_stats")
    (event,) = result.asset_materializations_for_node("caller_stats")
    top = event.metadata["top_callers"]
    assert isinstance(top, dg.TableMetadataValue)
    expected = pq.read_table(shown["dagster/uri"])
    assert [record.data["caller"] for record in top.records] == expected["caller"].to_pylist()
    assert [record.data["rank"] for record in top.records] == [1, 2, 3]
    assert {column.name: column.type for column in top.schema.columns}["score"] == "float"
    assert (shown["callers"], shown["callers_with_too_few_alerts"]) == (3, 1)  # one has no candles
    for asset, names in (("baseline", ["ath_histogram"]), ("trades", ["outcomes", "equity_curve"])):
        for name in names:
            picture = re.fullmatch(r"!\[\]\(data:image/png;base64,(.*)\)", metadata_of(result, asset)[name])
            assert picture
            assert base64.b64decode(picture[1]).startswith(b"\x89PNG")
            assert len(picture[0]) < 100_000


def test_without_callers_enough_there_is_an_empty_table(materialise):
    shown = metadata_of(materialise(), "caller_stats")
    assert (shown["callers"], shown["callers_with_too_few_alerts"]) == (0, 4)


def test_a_repeat_finds_every_result_and_another_setting_computes_its_own(materialise):
    first = materialise()
    again = materialise(BACKTEST)
    for asset in BACKTEST:
        assert metadata_of(again, asset) == {**metadata_of(first, asset), "computed_now": False}
    shorter = materialise(BACKTEST, baseline_settings={"horizon_hours": 0.25}, strategy_settings={"sl": None})
    for asset in BACKTEST:
        assert metadata_of(shorter, asset)["result_key"] != metadata_of(first, asset)["result_key"]
    trades = metadata_of(shorter, "trades")
    assert trades["computed_now"]
    assert trades["final_equity"] is None  # no stop-loss, no size, no curve
    selected = materialise(["trades"], baseline_settings={"callers": ["caller-1"]})
    assert metadata_of(selected, "trades")["dagster/row_count"] < 9


def test_the_job_backtests_a_sealed_run_and_nothing_else(materialise, definitions, config):
    assert materialise(LAKE).success
    job = definitions.resolve_job_def(BACKTEST_JOB)
    result = job.execute_in_process(run_config=config)
    assert result.success
    assert {event.step_key for event in result.all_events if event.is_step_success} == set(BACKTEST)


def test_a_run_without_a_seal_is_refused(materialise):
    assert materialise(["alerts", "candles", "coverage"]).success
    for asset in BACKTEST:
        shown = failure(materialise([asset]), asset)
        assert "is not sealed" in shown.description
        assert shown.metadata["error"].value == "RunNotSealed"


def test_a_run_that_is_not_what_was_sealed_is_refused(materialise, config, engine_root):
    assert materialise(LAKE).success
    run = engine_root / f"lake/runs/run_id={config['resources']['lake_run']['config']['run_id']}"
    part = min(run.glob("slices/**/*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for asset in BACKTEST:
        shown = failure(materialise([asset]), asset)
        assert "has other content than was sealed" in shown.description
        assert shown.metadata["error"].value == "VerificationFailed"


def test_settings_that_cannot_work_are_refused_with_the_reason(materialise, definitions, config):
    assert materialise(LAKE).success
    assert "sl 1.5 cannot work" in failure(materialise(["trades"], strategy_settings={"sl": 1.5}), "trades").description
    tiers = failure(materialise(["trades"], strategy_settings={"tiers": "2x"}), "trades").description
    assert "'2x' is not of the form 2x:1.2" in tiers
    config["resources"]["strategy_settings"] = {"config": {"take_profit": 2}}
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "take_profit"'):
        definitions.resolve_job_def(BACKTEST_JOB).execute_in_process(run_config=json.loads(json.dumps(config)))


def test_settings_have_the_defaults_of_the_engine():
    from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, CallerConfig, StrategyConfig
    from lake_pipeline.settings import BaselineSettings, StrategySettings

    settings = BaselineSettings()
    assert settings.baseline() == BaselineConfig()
    assert settings.caller_config() == CallerConfig()
    assert settings.selection() == AlertSelection()
    assert StrategySettings().strategy() == StrategyConfig()
    ladder = StrategySettings(tiers="2x:1.2,3x:1.6", trail_distance=0.2).strategy()
    assert ladder == StrategyConfig(tiers=((2, 1.2), (3, 1.6)), trail_distance=0.2)
