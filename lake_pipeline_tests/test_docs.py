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

from lake_pipeline.cli import lake

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:lake|make) [^`]+)`")
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def copy_of_the_project(folder: Path) -> Path:
    """The project as a clone has it, in this new folder, with this environment in place of the one make builds."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".dagster", "data", "slices", "site", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
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


def test_what_the_demo_says_to_do_next_can_be_pasted_in_a_fresh_clone(scratch):
    without_lake = ":".join(part for part in os.environ["PATH"].split(":") if not (Path(part) / "lake").exists())
    printed = run(scratch, f"PATH={without_lake}; make --no-print-directory demo")
    commands, _, example = printed.partition("\nNext:\n")[2].partition("or in Python:\n")
    assert [command.split()[0] for command in commands.splitlines()] == [".venv/bin/lake", ".venv/bin/lake", "make"]
    for command in commands.splitlines()[:2]:  # the browser test runs the third
        run(scratch, f"PATH={without_lake}; {command}")
    (scratch / "example.py").write_text(example.strip(), encoding="utf-8")
    assert "columns]" in run(scratch, f"{sys.executable} example.py")


def mentioned(page: Path, program: str) -> list[list[str]]:
    """Every line of this program on a page, in words: run above, shown only, or inside a sentence."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, code in _FENCE.findall(text) for line in code.replace("\\\n", " ").splitlines()]
    lines += [each.replace("\n", " ") for each in _INLINE.findall(text)]
    calls = re.compile(rf"(?:^|[|;(]) *(?:\.venv/bin/)?({program} [a-z][^|;)]*)")
    return [call.split() for line in lines for call in calls.findall(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_only_shown_exists_with_its_options(page):
    for program, command, *words in mentioned(page, "lake"):
        assert command in lake.commands, f"{program} {command}"
        options = {option for each in lake.commands[command].params for option in (*each.opts, *each.secondary_opts)}
        given = {word.partition("=")[0].rstrip(".,") for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options | {"--help", "-h"}, f"{program} {command}: {given - options}"
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for _, *words in mentioned(page, "make"):
        assert {word for word in words if re.fullmatch(r"[a-z-]+", word)} <= targets, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_in_blocks_that_are_run(page):
    languages = {language for language, _ in _FENCE.findall(page.read_text(encoding="utf-8"))}
    # A block of another language would be run by nobody; what cannot be run is `text`.
    assert languages <= {"bash", "python", "text", "json", "yaml", "sql", "mermaid"}


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
