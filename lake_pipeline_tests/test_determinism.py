"""The same input gives the same lake, whatever process, zone, thread count or order made it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]

# Loads the small market into a database of its own, exports it in the way asked for, and says what came out.
_EXPORT = """
import hashlib, json, sys
from pathlib import Path
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.export import export_buckets
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.store import LocalStore
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC, arrow_candles, create_table, seal, small_market, start_run, write_alerts,
)

root, how = Path(sys.argv[1]), json.loads(sys.argv[2])
candles, alerts = small_market()
if how["reverse"]:
    candles, alerts = candles[::-1], alerts[::-1]
csv = write_alerts(root / how["csv"], alerts)
with ClickHouseSource(SourceConfig(embedded_path=str(root / "clickhouse"), table="candles")) as source:
    create_table(source, "candles")
    step = -(-len(candles) // how["inserts"])
    for start in range(0, len(candles), step):
        source.call("insert", lambda c: c.insert_arrow("candles", arrow_candles(candles[start : start + step])))
    runs = []
    for run_id in ("same", how["run_id"], None):
        run = start_run(LocalStore(root / "data"), source, csv, MARKET_SPEC, run_id)
        buckets = ALL_BUCKETS[::-1] if how["reverse"] else ALL_BUCKETS
        cuts = [*range(0, 256, -(-256 // how["calls"])), 256]
        for low, high in zip(cuts, cuts[1:]):
            export_buckets(
                run, source, buckets[low:high], threads=how["threads"], max_rows_in_flight=how["max_rows"]
            )
        seal(run)
        runs.append(run)
same, named, derived = runs
slices = sorted(Path(same.store.uri, "slices").rglob("*.parquet"))
print(json.dumps({
    "content": [run.manifest().content_sha256 for run in runs],
    "manifest": same.store.read("manifest.json").decode(),
    "named_manifest": named.store.read("manifest.json").decode(),
    "sums": same.store.read("SHA256SUMS").decode(),
    "derived": derived.run_id,
    "slices": [hashlib.sha256(path.read_bytes()).hexdigest() for path in slices],
}))
"""


def export(root: Path, environment: dict[str, str], **how: Any) -> dict[str, Any]:
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _EXPORT, str(root), json.dumps(how)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_two_exports_that_differ_in_everything_but_the_input_are_the_same_lake(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            export,
            tmp_path / "one",
            {"TZ": "UTC", "PYTHONHASHSEED": "0"},
            reverse=False, csv="alerts.csv", inserts=1, calls=1, threads=1, max_rows=8_000_000, run_id="first",
        )  # fmt: skip
        second = pool.submit(
            export,
            tmp_path / "two",
            {"TZ": "America/New_York", "PYTHONHASHSEED": "4242", "LC_ALL": "C"},
            reverse=True, csv="other/name.csv", inserts=3, calls=5, threads=4, max_rows=1, run_id="second",
        )  # fmt: skip
        one, two = first.result(), second.result()

    assert len(set(one["content"] + two["content"])) == 1
    assert one["manifest"] == two["manifest"]
    assert one["sums"] == two["sums"]
    assert one["derived"] == two["derived"]
    assert one["slices"] == two["slices"]
    assert len(one["slices"]) > 1
    # Under another run_id nothing else of the manifest changes.
    renamed = json.loads(two["named_manifest"])
    assert renamed.pop("run_id") == "second"
    original = json.loads(one["manifest"])
    assert original.pop("run_id") == "same"
    assert renamed == original
