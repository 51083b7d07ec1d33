"""The export against what a user would type instead, in one run on the same data.

    python benchmarks/export.py --scale small --rounds 3 FOLDER

Every contestant runs in a fresh process, in turns, `rounds` times; the table shows medians and ratios to the
ClickHouse one-liner. `job` is what users start: the Dagster job by the `lake` command, from command line to exit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from generate import SCALES, Scale, generate

SINK = "bench_output"


def tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def by_job(scale: Scale, folder: Path) -> int:
    """The whole Dagster job, default settings."""
    lake = Path(sys.executable).with_name("lake")
    arguments = ["--interval", scale.interval, "--window", scale.window, "--run-id", SINK]
    files = ["--alerts", str(folder / "alerts.csv"), "--data-root", str(folder), "--format", "json"]
    done = subprocess.run([lake, "export-run-slices", *arguments, *files], check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["total_rows"])


def by_engine(scale: Scale, folder: Path, **settings: Any) -> int:
    """The same by one call, without Dagster: plan, export, coverage, seal."""
    from lake_pipeline import export_lake_run_slices

    config = {"interval": scale.interval, "window": scale.window, "alerts": str(folder / "alerts.csv")}
    return export_lake_run_slices({**config, "data_root": str(folder), "run_id": SINK, **settings}).total_rows


def by_bucket(scale: Scale, folder: Path) -> int:
    """One query per bucket, one thread."""
    return by_engine(scale, folder, threads=1, max_rows_in_flight=1)


def by_one_liner(scale: Scale, folder: Path) -> int:
    """INSERT INTO FUNCTION file(...) PARTITION BY: no windows per alert, no dedupe, no coverage, no seal."""
    output = (folder / SINK).absolute()
    output.mkdir()
    with _client(folder) as client:
        client.command(
            f"INSERT INTO FUNCTION file('{output}/{{_partition_id}}.parquet', 'Parquet') PARTITION BY bucket "
            f"SELECT lower(hex(substring(SHA1(token_address), 1, 1))) AS bucket, * {_global_range(scale, folder)}",
            settings={"max_query_size": 1 << 28, "max_partitions_per_insert_block": 1000},
        )
        return int(client.query(f"SELECT count() {_global_range(scale, folder)}").result_rows[0][0])


def by_duckdb(scale: Scale, folder: Path) -> int:
    """The same rows in one query, streamed into DuckDB's COPY ... PARTITION_BY."""
    import duckdb
    import pyarrow as pa

    with _client(folder) as client:
        query = f"SELECT lower(hex(substring(SHA1(token_address), 1, 1))) AS bucket, * {_global_range(scale, folder)}"
        with client.query_arrow_stream(query, settings={"max_query_size": 1 << 28}) as stream:
            batches = iter(stream)
            first = next(batches)

            def all_batches() -> Iterator[pa.RecordBatch]:
                yield first
                yield from batches

            rows = pa.RecordBatchReader.from_batches(first.schema, all_batches())
            with duckdb.connect() as connection:
                connection.register("rows", rows)
                copied = connection.execute(
                    f"COPY (FROM rows) TO '{folder / SINK}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (bucket))"
                ).fetchall()
    return int(copied[0][0])


def by_floor(scale: Scale, folder: Path) -> int:
    """No export at all: count and sum over the windows' global range, the least any of them has to read."""
    sums = "sum(open), sum(high), sum(low), sum(close), sum(volume)"
    with _client(folder) as client:
        return int(client.query(f"SELECT count(), {sums} {_global_range(scale, folder)}").result_rows[0][0])


CONTESTANTS: dict[str, Callable[[Scale, Path], int]] = {
    "job": by_job,
    "engine": by_engine,
    "bucket": by_bucket,
    "one-liner": by_one_liner,
    "duckdb": by_duckdb,
    "floor": by_floor,
}


def _client(folder: Path) -> Any:
    import clickhouse_connect

    return clickhouse_connect.get_client(interface="chdb", path=str(folder / "clickhouse"))


def _global_range(scale: Scale, folder: Path) -> str:
    """What somebody would write: these mints, from the first window's start to the last one's end."""
    from clickhouse_connect.driver.binding import format_query_value

    from lake_pipeline.core.plan import build_plan
    from lake_pipeline.settings import RunSettings

    settings = RunSettings(interval=scale.interval, window=scale.window, alerts=str(folder / "alerts.csv"))
    plan = build_plan(settings.load_alerts().alerts, settings.spec())
    mints = format_query_value(tuple(plan.mints))
    start, end = (f"fromUnixTimestamp64Milli(toInt64({int(ms)}))" for ms in (plan.starts.min(), plan.ends.max()))
    return (
        f"FROM ohlcv_candles WHERE token_address IN {mints} AND timestamp >= {start} AND timestamp < {end} "
        f"AND interval_seconds = {scale.interval_s} AND chain = 'solana'"
    )


def clear(folder: Path) -> None:
    shutil.rmtree(folder / SINK, ignore_errors=True)
    shutil.rmtree(folder / f"lake/runs/run_id={SINK}", ignore_errors=True)


def run_once(name: str, scale: str, folder: Path) -> dict[str, float]:
    """One contestant in a fresh process: seconds from its start to its end, peak memory, output."""
    clear(folder)
    started = time.monotonic()
    command = [sys.executable, __file__, "--only", name, "--scale", scale, str(folder)]
    environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - started
    result = json.loads(done.stdout.splitlines()[-1])
    size = tree_bytes(folder / SINK) + tree_bytes(folder / f"lake/runs/run_id={SINK}")
    clear(folder)
    return {"seconds": seconds, "mb": result["peak_mb"], "rows": result["rows"], "output_mb": size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help="run one contestant in this process and print its figures")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    if arguments.only:
        rows = CONTESTANTS[arguments.only](scale, arguments.folder)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps({"rows": rows, "peak_mb": peak / 1024}))
        return
    generate(scale, arguments.folder)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name in CONTESTANTS:
            results[name].append(run_once(name, arguments.scale, arguments.folder))
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    against = median["one-liner"]
    print("| contestant | seconds | ratio | peak MB | output MB | size ratio | rows |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in median.items():
        print(
            f"| {name} | {row['seconds']:.1f} | {row['seconds'] / against['seconds']:.2f} | {row['mb']:.0f} "
            f"| {row['output_mb']:.0f} | {row['output_mb'] / against['output_mb']:.2f} | {row['rows']:,.0f} |"
        )


if __name__ == "__main__":
    main()
