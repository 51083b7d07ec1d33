"""A bucket ten times larger than the memory its export may use, and ten million alerts, under a limit the kernel holds.

The engine is another process, behind the HTTP gateway: chDB reserves far more address space than it uses, so no limit
of a process means anything with chDB in it. The exporting process gets RLIMIT_DATA, what it has after its imports and
ROOM_MB more. RLIMIT_AS would count mapped libraries, and a cgroup takes rights that a test does not have.

    python -m lake_pipeline_tests.faults.memory PORT ALERTS DATA_ROOT MAX_ROWS_IN_FLIGHT
    python -m lake_pipeline_tests.faults.memory ALERTS ROWS
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lake_pipeline.core import plan
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.export import load_alerts
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.store import LocalStore
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    create_table,
    mint_name,
    sealed_run,
    sha1_bucket,
    write_alerts,
)

ROOM_MB = 60
MINT_ROWS = 20_000
# As the exporter holds them, a candle is some 60 bytes: ten times the room.
MINTS = -(-ROOM_MB * 1_000_000 * 10 // 60 // MINT_ROWS)
BUCKET = "00"
ALERTS = 10_000_000
ALERT_BYTES = 800  # that reading and planning an alert may take
# A query's result is held some six times over on its way; smaller ones than usual keep the test short.
_SLICE_ROWS = 60_000
_SPEC = RunSpec("1m", f"pre0_post{MINT_ROWS - 1}", target_file_mb=1)  # small parts have small row groups


def fill(folder: Path, mints: int = MINTS) -> str:
    """Candles of as many mints, all of one bucket, in an engine under `folder`; returns the alerts' path."""
    names: list[str] = []
    number = 0
    while len(names) < mints:
        name = mint_name(("memory", number))
        number += 1
        if sha1_bucket(name) == BUCKET:
            names.append(name)
    with ClickHouseSource(SourceConfig(str(folder / "clickhouse"), table="large")) as engine:
        create_table(engine, "large")
        for name in names:
            engine.call(
                "fill",
                lambda client, name=name: client.command(
                    f"INSERT INTO large SELECT '{name}', 'solana', fromUnixTimestamp64Milli(toInt64({T0_MS} + "
                    "number * 60000), 'UTC'), 60, 1 + rand(1) % 1000 / 1000, 3, 0.5, 1 + rand(2) % 1000 / 1000, "
                    f"rand(3) % 1000, 'feed', 0, now64(3, 'UTC') FROM numbers({MINT_ROWS})"
                ),
            )
    return write_alerts(folder / "large.csv", [Alert(name, name, T0_MS) for name in names])


def export_within(
    folder: Path, alerts: str, data_root: Path, max_rows_in_flight: int
) -> subprocess.CompletedProcess[str]:
    """Export under the limit, from a gateway in front of the engine under `folder`; prints its candles."""
    gateway = subprocess.Popen(
        [sys.executable, "-m", "lake_pipeline_tests.gateway", "--path", str(folder / "clickhouse")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert gateway.stdin
    assert gateway.stdout
    try:
        port = gateway.stdout.readline().strip()
        return _alone(port, alerts, str(data_root), str(max_rows_in_flight))
    finally:
        gateway.stdin.close()
        gateway.wait()


def write_many_alerts(path: Path, rows: int) -> None:
    """So many alerts of a thousand mints, a second apart, as Parquet."""
    names = pa.array([f"mint-{number:040d}" for number in range(1_000)])
    numbers = np.arange(rows)
    mints = pa.DictionaryArray.from_arrays(pa.array(numbers % len(names)), names)
    pq.write_table(pa.table({"mint": mints, "ts": T0_MS + numbers * 1_000}), path)


def load_within(path: Path, rows: int) -> subprocess.CompletedProcess[str]:
    """Read and plan so many alerts under the limit; prints their number."""
    return _alone(str(path), str(rows))


def _alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    # An allocator that takes what is needed and gives it back: the limit is for the export.
    allocator = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __name__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **allocator})


def _limit(room: int) -> None:
    limit = _data_kb() * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0])


def _load(path: str, rows: str) -> None:
    _limit(int(rows) * ALERT_BYTES)
    alerts = load_alerts(_SPEC, path).alerts
    sys.stdout.write(f"{len(plan.build_plan(alerts, _SPEC).alert_rows)} alerts\n")


def _export(port: str, alerts: str, data_root: str, max_rows: str) -> None:
    config = SourceConfig("not used", host="127.0.0.1", port=int(port), user="default", table="large")
    plan.SLICE_ROWS = _SLICE_ROWS
    with ClickHouseSource(config) as source:
        source.table()
        _limit(ROOM_MB * 1_000_000)
        run = sealed_run(
            LocalStore(Path(data_root)), source, alerts, _SPEC, "large", threads=1, max_rows_in_flight=int(max_rows)
        )
        sys.stdout.write(f"{run.manifest().total_rows} candles\n")


if __name__ == "__main__":
    threading.stack_size(1 << 20)  # stacks count as data, used or not
    (_load if len(sys.argv) == 3 else _export)(*sys.argv[1:])
