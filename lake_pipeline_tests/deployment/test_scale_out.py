"""Several machines in small: Postgres, a ClickHouse server's protocol, an object store, and runs at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.reader import open_run
from lake_pipeline_tests.candles_for_tests import create_table, sealed_run, small_market, write_alerts
from lake_pipeline_tests.conftest import S3, SourceFactory
from lake_pipeline_tests.deployment.dagster_home import DagsterHome
from lake_pipeline_tests.deployment.postgres import PostgresServer, find_postgres, postgres_server
from lake_pipeline_tests.gateway import Fault, Gateway

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("dagster_postgres", reason="needs the extra [postgres]: make test-scale installs it")
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("no Postgres server here: make test-scale installs Debian's package `postgresql`")
    with postgres_server(binaries) as server:
        yield server


def test_two_range_runs_at_once_make_one_run_that_the_sensor_seals(
    engine: ClickHouseSource,
    gateway: Gateway,
    http_source_of: SourceFactory,
    table: str,
    postgres: PostgresServer,
    s3: S3,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candles, alerts = small_market(mints=20)
    create_table(engine, table, candles)
    run = {
        "alerts": write_alerts(tmp_path / "alerts.csv", alerts),
        "interval": "1m",
        "window": "pre10_post20",
        "run_id": "multi",
    }
    environ = {
        **gateway.environment,
        **s3.environment(),
        **postgres.environment,
        "LAKE_DATA_ROOT": s3_url,
        "LAKE_BUCKETS_PER_RUN": "128",
    }
    for name, value in postgres.environment.items():
        monkeypatch.setenv(name, value)
    storage = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())["storage"]
    home = DagsterHome(tmp_path / "home", environ, storage)

    def parts(status: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        runs = home.instance.get_runs(dg.RunsFilter(statuses=[status]))
        return [each for each in runs if "candles" in str(each.asset_selection)]

    home.turn_on("seal_when_complete")
    # Nobody gets candles until both runs ask for them.
    gateway.fail(Fault("hang", match="lake_key", times=10_000, seconds=1))
    with home.daemon():
        home.backfill(["alerts", "candles"], run, {"table": table, "threads": 1})
        both = home.until(
            "two range runs at once", lambda: len(found := parts(dg.DagsterRunStatus.STARTED)) == 2 and found
        )
        gateway.fail()
        home.until("the seal", lambda: [r for r in home.runs(started_by="seal_when_complete") if r.is_success])

    assert sorted(each.tags["dagster/asset_partition_range_start"] for each in both) == ["00", "80"]
    assert sorted(each.tags["dagster/asset_partition_range_end"] for each in both) == ["7f", "ff"]
    assert {each.run_id for each in parts(dg.DagsterRunStatus.SUCCESS)} == {each.run_id for each in both}
    done = home.instance.get_materialized_partitions(dg.AssetKey("candles"))
    assert done == set(ALL_BUCKETS)
    sealed = open_run("multi", s3_url)
    assert sealed.verify().ok
    local = LocalStore(tmp_path / "local")
    alone = sealed_run(local, http_source_of(table), run["alerts"], RunSpec("1m", "pre10_post20"), "alone")
    assert sealed.manifest.content_sha256 == alone.manifest().content_sha256
    home.close()
