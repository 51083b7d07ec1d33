"""What a click in the UI does: the mutations it sends, to a real web server with a real daemon, after `lake demo`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline_tests.defs.dagster_server import (
    PROJECT,
    REPOSITORY,
    DagsterServer,
    dagster_server,
    failure_messages,
)
from lake_pipeline_tests.defs.test_lake_assets import BACKTEST, LAKE, OPTIMIZE

WHOLE_GRAPH = [{"path": [name]} for name in (*LAKE, *BACKTEST, *OPTIMIZE)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the project's root after `make demo`."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "examples", folder / "examples")
    subprocess.run([Path(sys.executable).with_name("lake"), "demo"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[DagsterServer]:
    with dagster_server(project) as server:
        yield server


def sealed(project: Path, prefix: str) -> dict[str, object]:
    """The manifest of the one run whose id begins so."""
    (run,) = (project / "data/lake/runs").glob(f"run_id={prefix}*")
    manifest: dict[str, object] = json.loads((run / "manifest.json").read_text())
    return manifest


@dataclass(frozen=True)
class Launched:
    """Ids of runs and backfills, all launched before the first is waited for: the daemon looks every 30 s."""

    export: str
    backtest: str
    graph: str
    job: str
    one_bucket: str
    no_config: str
    no_buckets: str


# As a newcomer would: the demo's alerts, too few to search exits on, which is no failure.
ALL_RUN = {"run_id": "all", "alerts": "examples/alerts.csv", "interval": "1m", "window": "pre52_post4948"}


@pytest.fixture(scope="module")
def launched(server: DagsterServer) -> Launched:
    def job_page(buckets: Sequence[str]) -> str:
        return server.backfill(
            selector={"partitionSetName": "export_run_partition_set", "repositorySelector": REPOSITORY},
            assetSelection=[{"path": [name]} for name in LAKE],
            partitionNames=buckets,
            fromFailure=False,
        )

    export, backtest = server.launchpad("export_run"), server.launchpad("backtest_run")
    whole_run = server.launch("export_run", export["yaml"], export["tags"])
    server.finished(whole_run)  # a run of one bucket seals nothing unless the others are there
    return Launched(
        graph=server.backfill(
            assetSelection=WHOLE_GRAPH,
            partitionNames=ALL_BUCKETS,
            fromFailure=False,
            runConfigData=yaml.safe_dump({"resources": {"lake_run": {"config": ALL_RUN}}}),
        ),
        job=job_page(ALL_BUCKETS),
        one_bucket=job_page(["9a"]),
        export=whole_run,
        backtest=server.launch("backtest_run", backtest["yaml"], backtest["tags"]),
        no_config=server.launch("__ASSET_JOB", "{}", assets=("alerts",)),
        no_buckets=server.launch("__ASSET_JOB", export["yaml"], assets=("candles",)),
    )


def test_launch_in_the_launchpad_of_export_run_exports_and_seals_the_demo_in_one_run(server, launched, project):
    opened = yaml.safe_load(server.launchpad("export_run")["yaml"])
    assert opened["resources"]["lake_run"]["config"] == {
        "alerts": "examples/alerts.csv",
        "interval": "1m",
        "window": "pre52_post4948",
    }
    run = server.finished(launched.export)
    assert run["status"] == "SUCCESS", failure_messages(run)
    assert sealed(project, "1m-pre52_post4948-")["content_sha256"] == sealed(project, "demo")["content_sha256"]


def test_launch_in_the_launchpad_of_backtest_run_backtests_the_demo(server, launched, project):
    run = server.finished(launched.backtest)
    assert run["status"] == "SUCCESS", failure_messages(run)
    assert list((project / "data/results/run_id=demo").glob("strategy=*/result.json"))


def test_a_run_without_config_fails_with_a_block_to_paste_and_the_block_works(server, launched):
    run = server.finished(launched.no_config)
    assert run["status"] == "FAILURE"
    (message,) = failure_messages(run).values()
    text, _, rest = message.partition("\n\n")
    assert "alerts, interval, window of lake_run are missing" in text
    block = "\n".join(line for line in rest.splitlines() if line.startswith(("resources:", "  ")))
    again = server.finished(server.launch("__ASSET_JOB", block, assets=("alerts",)))
    assert again["status"] == "SUCCESS", failure_messages(again)


def test_a_run_of_candles_that_names_no_buckets_says_how_to(server, launched):
    run = server.finished(launched.no_buckets)
    assert "Launch the job export_run" in failure_messages(run)["candles"]


@pytest.mark.parametrize(("name", "first", "last"), [("job", "00", "ff"), ("one_bucket", "9a", "9a")])
def test_materialize_all_of_the_jobs_page_is_one_run_over_the_chosen_buckets_with_the_jobs_config(
    server, launched, name, first, last
):
    backfill = server.finished_backfill(getattr(launched, name))
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    (run,) = backfill["runs"]
    tags = {tag["key"]: tag["value"] for tag in server.finished(run["runId"])["tags"]}
    assert (tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]) == (first, last)


def test_materialize_all_of_the_asset_graph_takes_one_config_for_all_its_runs(server, launched, project):
    backfill = server.finished_backfill(launched.graph)
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert {run["status"] for run in backfill["runs"]} == {"SUCCESS"}
    assert len(backfill["runs"]) > 1
    for run in backfill["runs"]:
        assert yaml.safe_load(run["runConfigYaml"])["resources"]["lake_run"]["config"] == ALL_RUN
    assert sealed(project, "all")["run_id"] == "all"
    assert list((project / "data/results/run_id=all").glob("strategy=*/result.json"))
