"""The command lines of CI, in processes of their own, as the issue and the README spell them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DAGSTER = Path(sys.executable).with_name("dagster")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the project's root after `make demo`: examples and an embedded engine under data."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(EXAMPLES, folder / "examples")
    from lake_pipeline.demo import write_demo_inputs

    candles, _ = write_demo_inputs(folder / "data/demo")
    subprocess.run([Path(sys.executable).with_name("lake"), "load-candles", candles], cwd=folder, check=True)
    return folder


def dagster(folder: Path, select: str, run_id: str, *arguments: str, alerts: str = "examples/alerts.csv"):
    run = {"alerts": alerts, "interval": "1m", "window": "pre52_post4948", "run_id": run_id}
    config = json.dumps({"resources": {"lake_run": {"config": run}}})
    command = [DAGSTER, "asset", "materialize", "-m", "lake_pipeline.definitions", "--select", select]
    return subprocess.run(
        [*command, *arguments, "--config-json", config],
        cwd=folder,
        env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_whole_range_in_one_process_seals_the_run(project):
    done = dagster(project, "*", "ci-1", "--partition-range", "00...ff")
    assert done.returncode == 0, done.stderr[-3000:]
    run = project / "data/lake/runs/run_id=ci-1"
    assert json.loads((run / "manifest.json").read_text())["run_id"] == "ci-1"
    check = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=run, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout[-1000:]


def test_a_partition_alone_exits_non_zero_with_the_missing_buckets(project):
    done = dagster(project, "group:lake", "ci-2", "--partition", "00")
    assert done.returncode != 0
    assert "255 of 256 buckets missing" in done.stderr
    alone = dagster(project, "manifest", "ci-2")
    assert alone.returncode != 0
    assert "255 of 256 buckets missing: 01..ff" in alone.stderr


def test_a_missing_alerts_file_exits_non_zero(project):
    done = dagster(project, "*", "ci-3", "--partition-range", "00...ff", alerts="nowhere.csv")
    assert done.returncode != 0
    assert "alerts file nowhere.csv does not exist" in done.stderr


def test_the_example_alerts_are_those_of_the_demo():
    from lake_pipeline.demo import demo_alerts_csv

    assert (EXAMPLES / "alerts.csv").read_text() == demo_alerts_csv()
