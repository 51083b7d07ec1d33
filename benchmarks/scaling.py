"""What a run costs for each alert: processor seconds and peak memory of every step, in a process of its own.

    python benchmarks/scaling.py --alerts 50000 200000 data/bench

Windows are of three candles and most mints have none, so that rows do not count. docs/scaling.md builds on this.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEPS = ("start-up", "alerts", "candles", "coverage", "manifest", "verify")
SPEC = {"interval": "1m", "window": "pre1_post1"}
ALERTS_A_MINT = 5 / 3
T0_MS = 1_746_057_600_000


def write_alerts(path: Path, count: int) -> None:
    """Alerts of ten days on three mints for every five of them, from a seed."""
    rng = np.random.default_rng(7)
    mints = rng.integers(0, int(count / ALERTS_A_MINT), count)
    table = pa.table(
        {
            "alert_id": pa.array([f"{number:012d}" for number in range(count)]),
            "mint": pa.array([f"{mint:044d}" for mint in mints]),
            "ts_ms": pa.array(np.sort(T0_MS + rng.integers(0, 864_000_000, count))),
            "caller": pa.array([f"caller-{caller:04d}" for caller in rng.integers(0, 500, count)]),
        }
    )
    pq.write_table(table, path)


def step(name: str, root: Path, alerts: str) -> None:
    """One step, and what it took of all processors, as a line of JSON."""
    from lake_pipeline.export import export_buckets, snapshot_alerts
    from lake_pipeline.run import load_run
    from lake_pipeline.seal import cover_run, seal_run
    from lake_pipeline.settings import LakeSettings, RunSettings, SourceSettings
    from lake_pipeline.verify import require_verified

    lake, sources = LakeSettings(data_root=str(root)), SourceSettings()
    run = RunSettings(alerts=alerts, run_id="scale", **SPEC)
    with sources.connect(str(root)) as source:
        source.identity()
        started = time.process_time()
        if name == "alerts":
            normalised = run.load_alerts()
            snapshot_alerts(lake.store(), run.identify(normalised, source), normalised, {})
        elif name == "candles":
            export_buckets(load_run(lake.store(), "scale"), source)
        elif name == "coverage":
            cover_run(load_run(lake.store(), "scale"))
        elif name == "manifest":
            seal_run(load_run(lake.store(), "scale"))
        elif name == "verify":
            require_verified(load_run(lake.store(), "scale"))
        seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"step": name, "seconds": round(seconds, 2), "peak_mb": round(peak)}))


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Every step of a run of so many alerts."""
    root = folder / f"scaling-{count}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    alerts = root / "alerts.parquet"
    write_alerts(alerts, count)
    candle = root / "candle.csv"
    candle.write_text(f"mint,ts_ms,open,high,low,close,volume\n{0:044d},{T0_MS},1,2,1,2,5\n")
    load = [Path(sys.executable).with_name("lake"), "load-candles", candle, "--interval", "1m", "--chain", "solana"]
    subprocess.run([*load, "--data-root", root], check=True, capture_output=True)
    found = {}
    for name in STEPS:
        command = [sys.executable, __file__, str(root), "--step", name, "--alerts-file", str(alerts)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    run = root / "lake/runs/run_id=scale"
    paths = {"receipts": "receipts/*.json", "coverage": "outputs/coverage.parquet", "inputs": "inputs/*"}
    for name, pattern in paths.items():
        found[f"{name} on disk"] = {"bytes": sum(path.stat().st_size for path in run.glob(pattern))}
    shutil.rmtree(root)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--alerts", type=int, nargs=2, default=[50_000, 200_000], metavar=("FEW", "MANY"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--alerts-file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step(arguments.step, arguments.folder, arguments.alerts_file)
        return
    few, many = arguments.alerts
    at_few, at_many = measure(arguments.folder, few), measure(arguments.folder, many)
    more = many - few
    print(f"| step | {few:,} alerts | {many:,} alerts | bytes of memory an alert | microseconds an alert |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in STEPS:
        a, b = at_few[name], at_many[name]
        print(
            f"| {name} | {a['seconds']:.1f} s, {a['peak_mb']} MB | {b['seconds']:.1f} s, {b['peak_mb']} MB | "
            f"{(b['peak_mb'] - a['peak_mb']) * 1e6 / more:,.0f} | {(b['seconds'] - a['seconds']) * 1e6 / more:,.0f} |"
        )
    for name in ("receipts on disk", "coverage on disk", "inputs on disk"):
        a, b = at_few[name]["bytes"], at_many[name]["bytes"]
        print(f"{name}: {a:,} and {b:,} bytes, {(b - a) / more:.1f} an alert")


if __name__ == "__main__":
    main()
