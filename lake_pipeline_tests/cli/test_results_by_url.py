"""Every command of the backtest on a data root in an object store, against the same on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from lake_pipeline.cli import lake as lake_command
from lake_pipeline.io import layout
from lake_pipeline.io.objects import ObjectStore
from lake_pipeline.io.store import LocalStore, Store
from lake_pipeline.run import load_run
from lake_pipeline_tests.optimizer.conftest import make_lake, noise_root

__all__ = ["make_lake", "noise_root"]

OPTIONS = ("--horizon-hours", "6")
ON_RUN = ("--run", "searched", *OPTIONS)


@pytest.fixture
def roots(noise_root: LocalStore, s3_url: str, tmp_path: Path) -> list[Store]:
    """The same sealed run on disk and in the object store."""
    shutil.copytree(noise_root.root, tmp_path / "data")
    objects = ObjectStore(s3_url)
    for file in noise_root.files(layout.RUNS):
        objects.create(file.path, noise_root.read(file.path))
    return [LocalStore(tmp_path / "data"), objects]


def invoke(store: Store, *arguments: str) -> str:
    """What a command prints, the root's own name taken out."""
    done = CliRunner().invoke(lake_command, [*arguments, "--data-root", store.uri])
    assert done.exit_code == 0, (arguments, done.output)
    return done.stdout.replace(store.uri, "ROOT")


def results(store: Store) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.files(layout.RESULTS)}


def kinds(paths: set[str]) -> set[str]:
    return {path.split("/")[2].partition("=")[0] for path in paths}


def test_results_in_an_object_store_are_those_on_disk_and_are_found_again(roots: list[Store], tmp_path: Path) -> None:
    alert_id = load_run(roots[0], "searched").alerts().column("alert_id")[0].as_py()
    commands = [
        ("baseline", *ON_RUN, "--min-trades", "1", "--export-per-alert-parquet", "OUT/alerts"),
        ("strategy", *ON_RUN, "--tp", "1.2", "--sl", ".8", "--export-trades-parquet", "OUT/trades.parquet"),
        ("strategy", *ON_RUN, "--tp", "1.3", "--sl", ".8"),
        ("replay", "searched", alert_id, *OPTIONS, "--tp", "1.2", "--sl", ".8"),
        ("optimizer", *ON_RUN, "--tp", "1.1:2:.1", "--sl", ".5:.9:.1", "--sampler", "grid", "--format", "json"),
        ("report", "searched", "-o", "OUT/report.html"),
    ]
    found = []
    for number, store in enumerate(roots):
        out = tmp_path / f"out-{number}"
        said = [invoke(store, *(each.replace("OUT", str(out)) for each in command)) for command in commands]
        files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        found.append(([text.replace(str(out), "OUT") for text in said], files, results(store)))
    on_disk, in_objects = found
    assert in_objects[0] == on_disk[0]
    assert in_objects[1] == on_disk[1]
    assert in_objects[2] == on_disk[2]
    assert {"baseline", "strategy", "paths", "optimize"} < kinds(set(in_objects[2]))

    objects = roots[1]
    before = {file.path: file.version for file in objects.files(layout.RESULTS)}
    for command in commands[1:3]:
        invoke(objects, *(each.replace("OUT", str(tmp_path / "again")) for each in command))
    assert {file.path: file.version for file in objects.files(layout.RESULTS)} == before
    # Another strategy reads the paths that are cached there.
    invoke(objects, "strategy", *ON_RUN, "--tp", "1.4", "--sl", ".8")
    after = {file.path: file.version for file in objects.files(layout.RESULTS)}
    assert before.items() <= after.items()
    assert kinds(after.keys() - before.keys()) == {"strategy"}
