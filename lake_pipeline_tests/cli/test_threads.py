"""No command leaves a thread behind that might need the interpreter while it ends: such a process dies or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run
from lake_pipeline_tests.optimizer.conftest import make_lake, noise_root

__all__ = ["make_lake", "noise_root"]

# Arrow starts its workers at their first task and keeps them. A joined thread's task is listed for a moment more.
SCRIPT = """
import json, os, sys, time
import duckdb, matplotlib.pyplot, numba, numpy, pyarrow.parquet
from lake_pipeline.cli import lake
found = {}
for command in json.loads(sys.argv[1]):
    before = set(os.listdir("/proc/self/task"))
    lake(command, standalone_mode=False)
    deadline = time.monotonic() + 5
    while (left := set(os.listdir("/proc/self/task")) - before) and time.monotonic() < deadline:
        time.sleep(.01)
    found[command[0]] = len(left)
print(json.dumps(found))
"""


def test_no_command_leaves_a_thread_behind(noise_root: LocalStore, tmp_path: Path) -> None:
    data = ("--data-root", str(noise_root.root))
    alert = load_run(noise_root, "searched").alerts().column("alert_id")[0].as_py()
    on_run = ("--run", "searched", "--horizon-hours", "6")
    search = ("--tp", "1.1:2:.1", "--sl", ".5:.9:.1", "--trials", "5")
    commands = [
        ("runs",),
        ("show", "searched"),
        ("verify", "searched"),
        ("diff", "searched", "searched"),
        ("baseline", *on_run),
        ("strategy", *on_run, "--tp", "1.2", "--sl", ".8"),
        ("optimizer", *on_run, *search),
        ("replay", "searched", alert, "--horizon-hours", "6"),
        ("report", "searched", "-o", str(tmp_path / "report.html")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([[*command, *data] for command in commands])],
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {command[0]: 0 for command in commands}
