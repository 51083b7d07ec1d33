"""A sample of `make faults`, and that the harness sees every step and can fail.

The program is started as one: a process that has used pyarrow's threads or chDB, as this one has, must not fork.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lake_pipeline.io.store import LocalStore
from lake_pipeline_tests.faults.steps import Step, intercepted, recorder

_RESULT = re.compile(
    r"([\d,]+) points tried, (\d+) partial runs visible, (\d+) rows lost, (\d+) rows duplicated, (\d+) other findings\n"
)


def faults(*arguments: str, broken: str = "") -> tuple[int, list[int], str]:
    """Run the program on a package that `broken` changed: exit code, the numbers of its line, what else it said."""
    code = f"{broken}\nimport sys\nfrom lake_pipeline_tests.faults.__main__ import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--jobs", "2", *arguments], capture_output=True, text=True, timeout=1800
    )
    line = _RESULT.fullmatch(done.stdout)
    assert line, done.stdout + done.stderr
    return done.returncode, [int(number.replace(",", "")) for number in line.groups()], done.stderr


def test_a_disturbed_export_shows_no_partial_run_and_ends_as_an_undisturbed_one() -> None:
    code, (points, *bad), said = faults("--sample", "40")
    assert (code, bad) == (0, [0, 0, 0, 0]), said
    assert points >= 40


_WRITES_IN_PLACE = """
from lake_pipeline.io.store import LocalStore
def create(self, path, data, **_):
    self._path(path).parent.mkdir(parents=True, exist_ok=True)
    with self._path(path).open("xb") as file:
        file.write(data)
LocalStore.create = create
"""
_TRUSTS_RECEIPTS = """
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
def exists(self, path):
    try:
        return self._path(path).stat().st_size >= 0
    except FileNotFoundError:
        return False
LocalStore.exists = exists
"""
_PUTS_IN_TWO_GOES = """
from lake_pipeline.io.objects import ObjectStore
def create(self, path, data, **_):
    self._objects.put(self._key(path), data[: len(data) // 2])
    self._objects.put(self._key(path), data)
ObjectStore.create = create
"""
_NEVER_ASKS_AGAIN = """
import lake_pipeline.io.clickhouse as clickhouse
clickhouse._RETRY_WAITS_S = ()
"""
_FORGETS_CHECKS = """
import lake_pipeline.verify as verify
def hashes(self, manifest, *_):
    self.receipts = {record.path: self.store.read(record.path) for record in manifest.records}
    return False
verify._Checker.hashes = hashes
"""


_FORGETS_A_SYNC = """
from lake_pipeline.io.store import LocalStore
LocalStore.settle = lambda self, *folders: None
"""


@pytest.mark.parametrize(
    ("suite", "broken"),
    [
        pytest.param("kill", _WRITES_IN_PLACE, id="a store that writes in place"),
        pytest.param("errors while looking", _TRUSTS_RECEIPTS, id="errors of the system that pass through"),
        pytest.param("power loss", _FORGETS_A_SYNC, id="a store that does not sync a folder"),
        pytest.param("flipped bytes", _FORGETS_CHECKS, id="a verification without hashes"),
        pytest.param("object store", _PUTS_IN_TWO_GOES, id="a store that puts an object twice"),
        pytest.param("server", _NEVER_ASKS_AGAIN, id="a source that does not try again"),
    ],
)
def test_a_package_that_breaks_its_promises_is_found_out(suite: str, broken: str) -> None:
    # Of these only kills within the writing of a record can tell: one point of each family is tried.
    sample = {"kill": "63", "object store": "22"}.get(suite, "8")
    code, (_, *bad), said = faults("--suite", suite, "--sample", sample, broken=broken)
    assert code == 1, said
    assert any(bad)


def test_the_harness_sees_every_change_the_interpreter_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lake_pipeline_tests.faults.scenario import Scenario, export\n"
        "from lake_pipeline_tests.faults.steps import intercepted, recorder\n"
        "scenario = Scenario(Path(sys.argv[1]))\n"
        "root, steps, audited = scenario.lake('audited'), [], []\n"
        "names = {'os.mkdir': 'mkdir', 'os.link': 'link', 'os.rename': 'rename', 'os.remove': 'unlink',\n"
        "         'os.rmdir': 'rmdir', 'os.truncate': 'truncate', 'os.symlink': 'symlink', 'open': 'open'}\n"
        "def audit(event, arguments):\n"
        "    if event not in names or not any(str(each).startswith(f'{root}/') for each in arguments[:2]):\n"
        "        return\n"
        "    if event != 'open' or arguments[2] & 0o3:\n"
        "        audited.append(names[event])\n"
        "sys.addaudithook(audit)\n"
        "with intercepted(root, recorder(steps)):\n"
        "    export(root, scenario.alerts, scenario.source)\n"
        "seen = [step.kind for step in steps if step.kind not in ('write', 'flush', 'fsync')]\n"
        "assert len(seen) > 800, len(seen)\n"
        "assert seen == audited, (len(seen), len(audited))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_steps_are_numbered_and_those_elsewhere_are_not_counted(tmp_path: Path) -> None:
    steps: list[Step] = []
    store = LocalStore(tmp_path / "here")
    with intercepted(tmp_path / "here", recorder(steps)):
        LocalStore(tmp_path / "there").create("f", b"data")
        store.create("mint_bucket=00/part-0000.parquet", b"data")
    assert [step.number for step in steps] == list(range(len(steps)))
    assert [step.kind for step in steps] == [
        "mkdir", "open", "write", "flush", "fsync", "link", "fsync", "unlink",
    ]  # fmt: skip
    assert store.read("mint_bucket=00/part-0000.parquet") == b"data"
    assert steps[5].family == ("link", "*/*.parquet")
