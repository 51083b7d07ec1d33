"""The assets as Dagster runs them: real instances, real engine, the implicit asset job of the real definitions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.defs.build import BACKTEST_JOB, EXPORT_JOB, OPTIMIZE_JOB, build_definitions
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run
from lake_pipeline_tests.candles_for_tests import create_table, sha1_bucket, small_market, write_alerts

LAKE = ["alerts", "candles", "coverage", "manifest"]
BACKTEST = ["baseline", "caller_stats", "price_action", "trades"]
OPTIMIZE = ["optimization"]
WHOLE_RANGE = {"dagster/asset_partition_range_start": "00", "dagster/asset_partition_range_end": "ff"}

Config = dict[str, Any]


@pytest.fixture(scope="module")
def job() -> dg.JobDefinition:
    return build_definitions().resolve_implicit_global_asset_job_def()


@pytest.fixture
def config(engine: ClickHouseSource, engine_root: Path, table: str, tmp_path: Path) -> Config:
    """Run config of a small market in a table of its own; the run_id is unique in the shared data root."""
    candles, alerts = small_market(mints=4)
    create_table(engine, table, candles)
    return {
        "resources": {
            "lake": {"config": {"data_root": str(engine_root)}},
            "candle_source": {"config": {"table": table}},
            "lake_run": {
                "config": {
                    "alerts": write_alerts(tmp_path / "alerts.csv", alerts),
                    "interval": "1m",
                    "window": "pre5_post20",
                    "run_id": f"run-{table}",
                }
            },
        },
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }


@pytest.fixture
def store(engine_root: Path, config: Config) -> LocalStore:
    """The folder of the configured run."""
    return LocalStore(engine_root / f"lake/runs/run_id={config['resources']['lake_run']['config']['run_id']}")


def execute(
    job: dg.JobDefinition,
    config: Config,
    assets: Sequence[str] | None = LAKE,
    *,
    instance: dg.DagsterInstance | None = None,
    partition: str | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialise assets, None for all of them; the whole range of buckets unless told otherwise."""
    return job.execute_in_process(
        run_config=config,
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in assets] if assets else None,
        tags=None if partition else WHOLE_RANGE,
        partition_key=partition,
        raise_on_error=False,
    )


@pytest.fixture
def run(job: dg.JobDefinition, config: Config) -> Callable[..., dg.ExecuteInProcessResult]:
    """Materialise assets of the configured run."""
    return functools.partial(execute, job, config)


def failure(result: dg.ExecuteInProcessResult, asset: str) -> dg.Failure:
    """What the failed step of an asset says."""
    assert not result.success
    (event,) = [each for each in result.all_events if each.is_step_failure and each.step_key == asset]
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    return dg.Failure(description=data.description, metadata=data.metadata)


def contents(store: LocalStore) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file."""
    return {file.path: (store.read(file.path), (store.root / file.path).stat().st_mtime_ns) for file in store.files()}


def test_one_run_over_the_whole_range_seals_and_materialises_each_bucket_once(run, store):
    result = run()
    assert result.success
    buckets = [event.partition for event in result.asset_materializations_for_node("candles")]
    assert sorted(buckets) == list(ALL_BUCKETS)
    (seal,) = result.asset_materializations_for_node("manifest")
    assert seal.metadata["sealed_now"].value is True
    manifest = load_run(LocalStore(store.root.parents[2]), store.root.name.removeprefix("run_id=")).manifest()
    assert seal.metadata["content_sha256"].value == manifest.content_sha256
    rows = sum(
        event.metadata["dagster/partition_row_count"].value
        for event in result.asset_materializations_for_node("candles")
    )
    assert rows == manifest.total_rows > 0


def test_a_repeat_on_a_sealed_run_skips_verifies_and_changes_no_byte(run, store):
    assert run().success
    before = contents(store)
    again = run()
    assert again.success
    (seal,) = again.asset_materializations_for_node("manifest")
    assert seal.metadata["sealed_now"].value is False
    assert all(event.metadata["skipped"].value for event in again.asset_materializations_for_node("candles"))
    assert contents(store) == before


def test_manifest_alone_fails_on_missing_buckets_and_names_them(run):
    assert run(["alerts"]).success
    assert run(["candles"], partition="00").success
    assert "255 of 256 buckets missing: 01..ff" in failure(run(["manifest"]), "manifest").description


def test_manifest_alone_seals_a_complete_run_even_before_coverage_was_materialised(run, store):
    assert run(["alerts"]).success
    assert run(["candles"]).success
    assert run(["manifest"]).success
    assert store.exists("manifest.json")
    assert store.exists("outputs/coverage.parquet")


def test_a_single_partition_exports_its_bucket_and_stops_before_the_seal(run, store):
    result = run(partition="00")
    assert store.exists("receipts/mint_bucket=00.json")
    assert "255 of 256 buckets missing" in failure(result, "manifest").description
    assert not store.exists("manifest.json")


def test_a_failed_bucket_leaves_the_other_255_materialised_and_the_next_run_does_only_what_is_missing(
    run, store, config
):
    _, alerts = small_market(mints=4)
    bad = sha1_bucket(alerts[0].mint)
    folder = store.root / f"slices/ohlcv/interval=1m/window=pre5_post20/mint_bucket={bad}"
    folder.parent.mkdir(parents=True)
    folder.write_text("a plain file where the bucket's folder must be")
    with dg.DagsterInstance.ephemeral() as instance:
        message = failure(run(instance=instance), "candles").description
        assert "1 of 256 buckets failed, 255 are committed" in message
        assert f"\n  {bad}: " in message
        assert "a file is in the way of a folder" in message
        done = instance.get_materialized_partitions(dg.AssetKey("candles"))
        assert done == set(ALL_BUCKETS) - {bad}
        receipts = {
            path: stamp
            for path, (_, stamp) in contents(store).items()
            if path.endswith(".json") and "receipts/" in path
        }
        assert len(receipts) == 255

        folder.unlink()
        second = run(instance=instance)
        assert second.success
        exported = [
            event.partition
            for event in second.asset_materializations_for_node("candles")
            if not event.metadata["skipped"].value
        ]
        assert exported == [bad]
        after = contents(store)
        assert {path: after[path][1] for path in receipts} == receipts


def test_runs_without_a_run_id_agree_on_one_however_many_dagster_runs_make_it(run, config, engine_root):
    del config["resources"]["lake_run"]["config"]["run_id"]
    alerts = run(["alerts"])
    assert run(["candles"]).success
    assert run(["coverage", "manifest"]).success
    (snapshot,) = alerts.asset_materializations_for_node("alerts")
    run_id = snapshot.metadata["run_id"].value
    assert run_id.startswith("1m-pre5_post20-")
    assert (engine_root / f"lake/runs/run_id={run_id}/manifest.json").exists()


def test_later_assets_refuse_settings_other_than_those_of_the_run(run, config):
    assert run(["alerts"]).success
    config["resources"]["lake_run"]["config"]["window"] = "pre5_post21"
    for asset in ("candles", "coverage", "manifest"):
        assert "window: 'pre5_post20' != 'pre5_post21'" in failure(run([asset]), asset).description


def test_alerts_refuse_a_run_id_taken_by_other_alerts(run, config, tmp_path):
    assert run(["alerts"]).success
    _, alerts = small_market(mints=4)
    config["resources"]["lake_run"]["config"]["alerts"] = write_alerts(tmp_path / "fewer.csv", alerts[:-1])
    message = failure(run(["alerts"]), "alerts").description
    assert "exists with another identity: alerts: " in message


def test_assets_before_alerts_say_what_to_do(run):
    assert "Materialise `alerts` first" in failure(run(["candles"]), "candles").description


def test_permanent_errors_are_not_retried_and_show_their_message_alone(run, config):
    config["resources"]["lake_run"]["config"]["alerts"] = "nowhere.csv"
    shown = failure(run(), "alerts")
    assert shown.description.startswith("alerts file nowhere.csv does not exist")
    assert shown.metadata["error"].value == "InputError"


def test_a_misspelt_run_setting_fails_before_anything_runs(job, config):
    config["resources"]["lake_run"]["config"]["intervall"] = "1m"
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "intervall"'):
        job.execute_in_process(run_config=config, tags=WHOLE_RANGE)


def test_a_missing_run_setting_fails_with_a_config_to_paste_that_keeps_what_was_given(run, config):
    given = config["resources"]["lake_run"]["config"]
    del given["interval"]
    message = failure(run(), "alerts").description
    text, _, block = message.partition("\n\n")
    assert "interval of lake_run is missing" in text
    pasted = yaml.safe_load(block)["resources"]["lake_run"]["config"]
    assert pasted == {**given, "interval": "1m"}
    config["resources"]["lake_run"]["config"] = pasted
    assert run(["alerts"]).success


def test_a_run_id_alone_is_enough_after_alerts_and_other_settings_must_be_the_runs(run, config):
    config["resources"]["lake_run"]["config"] |= {"from_day": "2025-05-01", "compression": "snappy"}
    assert run(["alerts", "candles"]).success
    run_id = config["resources"]["lake_run"]["config"]["run_id"]
    config["resources"]["lake_run"]["config"] = {"run_id": run_id, "compression": "none"}
    assert "compression: 'snappy' != 'none'" in failure(run(["coverage"]), "coverage").description
    config["resources"]["lake_run"]["config"] = {"run_id": run_id}
    assert run(["coverage", "manifest"]).success
    assert "alerts, interval, window of lake_run are missing" in failure(run(["alerts"]), "alerts").description


def test_a_password_in_run_config_is_refused_because_dagster_stores_it(run, config):
    config["resources"]["candle_source"]["config"]["dsn"] = "clickhouse://me:secret@127.0.0.1:1/db"
    message = failure(run(["alerts"]), "alerts").description
    assert "CLICKHOUSE_PASSWORD" in message
    assert "secret" not in message


def test_definitions_have_three_groups_256_partitions_and_one_run_backfills():
    definitions = build_definitions()
    graph = definitions.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {*LAKE, *BACKTEST, *OPTIMIZE}
    groups = {"lake": LAKE, "backtest": BACKTEST, "optimize": OPTIMIZE}
    for name, group in [(name, group) for group, names in groups.items() for name in names]:
        node = graph.get(dg.AssetKey(name))
        assert node.group_name == group
        assert node.backfill_policy == dg.BackfillPolicy.single_run()
        assert node.description
    candles = graph.get(dg.AssetKey("candles"))
    assert candles.partitions_def.get_partition_keys() == [f"{number:02x}" for number in range(256)]
    for name, group in ((EXPORT_JOB, LAKE), (BACKTEST_JOB, BACKTEST), (OPTIMIZE_JOB, OPTIMIZE)):
        job = definitions.resolve_job_def(name)
        assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(group)


def test_build_definitions_takes_other_resources_and_another_backfill_policy(tmp_path):
    from lake_pipeline.defs.resources import LakeResource

    definitions = build_definitions(
        resources={"lake": LakeResource(data_root=str(tmp_path))}, backfill_policy=dg.BackfillPolicy.multi_run(16)
    )
    node = definitions.resolve_asset_graph().get(dg.AssetKey("candles"))
    assert node.backfill_policy == dg.BackfillPolicy.multi_run(16)
    assert definitions.resources["lake"].root == str(tmp_path)
