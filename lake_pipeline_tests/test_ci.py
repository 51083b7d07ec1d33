"""The recipe of docs/ci.md, executed as it is written, and what it prints."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lake_pipeline.defs.build import build_definitions
from lake_pipeline_tests.test_docs import PROJECT, copy_of_the_project

PAGE = (PROJECT / "docs/ci.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
WORKFLOW = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which nothing has run, with this environment in place of the one make builds."""
    return copy_of_the_project(tmp_path / "project")


def run_script(clone: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLICKHOUSE_", "DAGSTER", "LAKE_"))
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def test_the_shell_version_exports_seals_verifies_and_reports_in_few_lines(clone: Path) -> None:
    (script,) = SHELL
    summary = clone.parent / "summary.txt"
    started = time.monotonic()
    done = run_script(clone, script, LAKE_RUN_ID="nightly-1", GITHUB_STEP_SUMMARY=str(summary))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout
    assert (clone / "data/lake/runs/run_id=nightly-1/manifest.json").exists()
    assert "<title>nightly-1" in (clone / "report.html").read_text(encoding="utf-8")
    lines = done.stdout.splitlines()
    assert len(lines) < 50, done.stdout
    assert "DEBUG" not in done.stdout
    assert "Warning" not in done.stdout
    exported = [line for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert 2 <= len(exported) <= max(6, 3 + seconds / 5)  # a line in five seconds while candles are exported
    assert re.fullmatch(
        r"\S+ candles: 256 of 256 buckets, 137,772 candles, [\d,]+ a second, 0 s to go", exported[-2]
    ), exported
    assert " manifest: run nightly-1 is sealed, content bffda90fc5e5" in exported[-1]
    assert "  alerts: 60 kept, 0 dropped; 13 complete, 45 partial, 2 insufficient" in lines
    assert any(
        line.startswith("  candles: 137,772 written of 138,211 rows, 408 duplicates, 31 rejected") for line in lines
    )
    assert "run nightly-1 verified, nothing differs" in done.stdout
    assert summary.read_text() in done.stdout
    assert "content_sha256" in summary.read_text()


def test_a_failed_export_ends_the_script_with_its_message_and_no_stack_trace(clone: Path) -> None:
    (script,) = SHELL
    (clone / "examples/alerts.csv").write_text("alert_id,ts\n")
    done = run_script(clone, script)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if " ERROR " in line]
    assert "alerts: " in errors[0]
    assert "mint" in errors[0]
    assert "Steps failed: ['alerts']" in errors[-1]
    assert "Stack Trace" not in done.stdout
    assert "verified" not in done.stdout
    assert not (clone / "report.html").exists()


def test_the_workflow_runs_the_commands_of_the_shell_version() -> None:
    (script,) = SHELL
    (workflow,) = [yaml.safe_load(block) for block in WORKFLOW]
    (job,) = workflow["jobs"].values()
    commands = [step["run"].strip() for step in job["steps"] if "run" in step]
    assert commands == [line for line in script.splitlines() if not line.startswith("export ")]
    exported = {
        name for line in script.splitlines() if line.startswith("export ") for name in re.findall(r"(\w+)=", line)
    }
    assert exported == set(job["env"])
    assert job["defaults"]["run"]["shell"] == "bash"
    assert job["timeout-minutes"] <= 60
    assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)


# --- the console -----------------------------------------------------------------------------------


def printed(capfd: Any, *assets: Any, level: str = "INFO") -> list[str]:
    """What a run of these assets prints with the project's console."""
    definitions = dg.Definitions(assets=assets, loggers=build_definitions().loggers, executor=dg.in_process_executor)
    job = definitions.resolve_implicit_global_asset_job_def()
    capfd.readouterr()
    job.execute_in_process(run_config={"loggers": {"console": {"config": {"log_level": level}}}}, raise_on_error=False)
    lines: list[str] = capfd.readouterr().err.splitlines()
    return lines


def test_the_console_shows_what_assets_say_and_the_level_of_what_is_wrong(capfd: Any) -> None:
    @dg.asset
    def talking(context: dg.AssetExecutionContext) -> None:
        context.log.debug("unheard")
        context.log.info("said")
        context.log.warning("warned")

    lines = printed(capfd, talking)
    assert [line[9:] for line in lines] == ["talking: said", "WARNING talking: warned"]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[9:] for line in printed(capfd, talking, level="warning")] == ["WARNING talking: warned"]
    assert any("unheard" in line for line in printed(capfd, talking, level="DEBUG"))


def test_a_failure_is_its_description_and_a_defect_its_stack_trace(capfd: Any) -> None:
    @dg.asset
    def failing() -> None:
        raise dg.Failure("what, where, what next")

    @dg.asset
    def broken() -> None:
        raise ZeroDivisionError("a defect")

    lines = printed(capfd, failing)
    assert lines[0][9:] == "ERROR failing: what, where, what next"
    assert len(lines) == 2
    text = "\n".join(printed(capfd, broken))
    assert "ZeroDivisionError: a defect" in text
    assert "Stack Trace" in text


def test_the_example_configuration_is_one_of_the_export_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_RUN_ID", "ci")
    config = yaml.safe_load((PROJECT / "examples/ci.yaml").read_text(encoding="utf-8"))
    job = build_definitions().resolve_job_def("export_run")
    assert dg.validate_run_config(job, config)
    assert json.dumps(config).count("LAKE_RUN_ID") == 1
