"""Every command and every Python example of the README and the docs, run as a reader would, in a scratch project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def copy_of_the_project(folder: Path) -> Path:
    """The project as a clone has it, in this new folder, with this environment in place of the one make builds."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".dagster", "data", "slices", "site", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(PROJECT, folder, ignore=ignored)
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (folder / ".venv/installed").touch()
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `make demo` has run."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("clone") / "project")
    run(folder, "make demo")
    return folder


def run(folder: Path, script: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLICKHOUSE_", "LAKE_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DAGSTER_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_command_and_example_of_the_page_works(scratch, page):
    for language, code in blocks(page):
        if language == "bash":
            run(scratch, code)
        else:
            example = scratch / "example.py"
            example.write_text(code, encoding="utf-8")
            run(scratch, f"{sys.executable} example.py")


def test_the_readme_shows_what_the_demo_prints(scratch):
    shown = re.search(r"```text\n(run  .*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    printed = run(scratch, "lake demo").splitlines()
    for line in shown[1].splitlines():
        if not line.startswith("state"):
            assert any(each.startswith(line.removesuffix("...")) for each in printed), line


def test_the_optimizer_page_shows_what_its_first_command_prints(scratch):
    page = (PROJECT / "docs/optimizer.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("lake optimizer --run demo"))
    printed = run(scratch, f"rm -rf data/results/run_id=demo/ledger; {command}")
    example = re.search(r"prints \(in part\):\n\n```text\n(.*?)```", page, re.DOTALL)
    lines = [line for line in example[1].splitlines() if line]
    assert len(lines) > 10
    assert not [line for line in lines if line not in printed.splitlines()]
    found = json.loads(run(scratch, f"{command} --format json"))["winner"]["luck"]
    n = round(1 / found["variance"]) + 1
    assert f"V = 1/{n - 1} and SR0 = {found['expected_maximum_sharpe']:.2f}" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_map_of_the_implementation_names_tests_that_exist():
    page = PROJECT / "docs/data_lake_implementation.md"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    named = set(re.findall(r"\btest_\w+(?!\.py)\b", page.read_text(encoding="utf-8")))
    modules = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    assert named
    assert not {name for name in named - modules if f"def {name}(" not in tests}
