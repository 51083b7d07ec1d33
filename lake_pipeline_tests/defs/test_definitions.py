"""The definitions as a whole: nothing in them changes unnoticed, and Dagster's own commands load them."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lake_pipeline.defs.build import build_definitions
from lake_pipeline_tests.defs.snapshot import SNAPSHOT, describe
from lake_pipeline_tests.test_docs import PROJECT, copy_of_the_project

BIN = Path(sys.executable).parent


def test_names_settings_and_defaults_are_those_of_the_snapshot():
    kept, found = SNAPSHOT.read_text(encoding="utf-8"), describe(build_definitions())
    difference = "\n".join(
        difflib.unified_diff(kept.splitlines(), found.splitlines(), SNAPSHOT.name, "now", lineterm="")
    )
    assert kept == found, (
        f"{difference}\nRun configs, schedules, links and scripts use these names. If the change is meant, put it in "
        "CHANGELOG.md and write the snapshot anew:\n  .venv/bin/python -m lake_pipeline_tests.defs.snapshot"
    )


def test_every_setting_of_a_resource_is_documented_under_its_name():
    page = (PROJECT / "docs/configuration.md").read_text(encoding="utf-8")
    resources = re.findall(r"^resource (\w+)\n((?:  .+\n)+)", SNAPSHOT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(resources) == 7
    for name, settings in resources:
        section = page.partition(f"\n### {name}: ")[2].partition("\n### ")[0]
        assert set(re.findall(r"^  (\w+):", settings, re.MULTILINE)) <= set(re.findall(r"`(\w+)`", section)), name


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_project(tmp_path_factory.mktemp("clone") / "project")


@pytest.mark.parametrize("command", ["dagster definitions validate", "dg check defs"])
def test_dagsters_own_commands_load_the_definitions_in_a_fresh_clone_and_fail_where_they_do_not_load(clone, command):
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command.split()
        return subprocess.run(
            [BIN / program, *arguments],
            cwd=clone,
            env={**os.environ, "HOME": str(clone.parent), "DAGSTER_DISABLE_TELEMETRY": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    done = run()
    assert done.returncode == 0, done.stdout
    assert "All" in done.stdout
    broken = run(LAKE_BUCKETS_PER_RUN="0")
    assert broken.returncode != 0
    assert "LAKE_BUCKETS_PER_RUN '0' is not a number of buckets" in broken.stdout
