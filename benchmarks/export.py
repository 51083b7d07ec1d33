"""The export against what a user would type instead, in one run on the same data.

    python benchmarks/export.py --scale full --rounds 3 FOLDER

Every contestant runs in a fresh process, in turns, `rounds` times, and finds the database and its program in the file
cache; medians and ratios are printed, written to FOLDER/results.json, and drawn with `--plot`. `job` is what users
start: the Dagster job by the `lake` command, from command line to exit. At scale `full`, the same export is also made
with 16 times the alerts, on histories 4.4 times as long, of 1-second candles with and without window pruning, and a
second time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import timing
from generate import SCALES, Scale

GENERATE = Path(__file__).with_name("generate.py")
SINK = "bench_output"
FIRST = "bench_first"
SPENT = "bench_spent"


@dataclass(frozen=True)
class Case:
    """The data a contestant works on; `folder` has an embedded engine and alerts."""

    scale: Scale
    folder: Path
    alerts: str = "alerts.csv"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "interval": self.scale.interval,
            "window": self.scale.window,
            "alerts": str(self.folder / self.alerts),
            "data_root": str(self.folder),
        }


def by_job(case: Case) -> int:
    """The whole Dagster job, default settings."""
    lake = Path(sys.executable).with_name("lake")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in case.config.items()]
    command = [lake, "export-run-slices", *options, f"--run-id={SINK}", "--format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["total_rows"])


def by_engine(case: Case, run_id: str = SINK, **settings: Any) -> int:
    """The same by one call, without Dagster: plan, export, coverage, seal."""
    from lake_pipeline import export_lake_run_slices

    return export_lake_run_slices({**case.config, "run_id": run_id, **settings}).total_rows


def by_bucket(case: Case) -> int:
    """One query per bucket, one thread."""
    return by_engine(case, threads=1, max_rows_in_flight=1)


def without_pruning(case: Case) -> int:
    """The engine whose queries name mints and one time range, not windows, to the primary index."""
    from lake_pipeline.io import queries

    queries._PRUNE_ABOVE = float("inf")  # type: ignore[misc]
    return by_engine(case)


def by_one_liner(case: Case) -> int:
    """INSERT INTO FUNCTION file(...) PARTITION BY: no windows per alert, no dedupe, no coverage, no seal."""
    output = (case.folder / SINK).absolute()
    output.mkdir()
    with _client(case) as client:
        client.command(
            f"INSERT INTO FUNCTION file('{output}/{{_partition_id}}.parquet', 'Parquet') PARTITION BY bucket "
            f"SELECT lower(hex(substring(SHA1(token_address), 1, 1))) AS bucket, * {_global_range(case)}",
            settings={"max_query_size": 1 << 28, "max_partitions_per_insert_block": 1000},
        )
        return int(client.query(f"SELECT count() {_global_range(case)}").result_rows[0][0])


def by_duckdb(case: Case) -> int:
    """The same rows in one query, streamed into DuckDB's COPY ... PARTITION_BY."""
    import duckdb

    query = f"SELECT lower(hex(substring(SHA1(token_address), 1, 1))) AS bucket, * {_global_range(case)}"
    with (
        _client(case) as client,
        client.query_arrow_stream(query, settings={"max_query_size": 1 << 28}) as rows,
        duckdb.connect() as connection,
    ):
        connection.register("rows", _reader(rows))
        copied = connection.execute(
            f"COPY (FROM rows) TO '{case.folder / SINK}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY bucket)"
        ).fetchall()
    return int(copied[0][0])


def _reader(batches: Any) -> Any:
    import pyarrow as pa

    first = next(iter(batches))
    return pa.RecordBatchReader.from_batches(first.schema, (batch for part in ([first], batches) for batch in part))


def floors(case: Case) -> dict[str, float]:
    """What no export can do without, each on both cores: read, compress, write, hash the same candles.

    The sums read what the slices of the export read; compressed, written and hashed is what they give.
    """
    import hashlib

    import pyarrow as pa

    from lake_pipeline.core.buckets import ALL_BUCKETS
    from lake_pipeline.core.plan import build_plan, group_buckets
    from lake_pipeline.io.queries import slice_query
    from lake_pipeline.io.source import SliceRequest
    from lake_pipeline.settings import RunSettings, SourceSettings

    settings = RunSettings(**{name: value for name, value in case.config.items() if name != "data_root"})
    plan = build_plan(settings.load_alerts().alerts, settings.spec())
    (group,) = group_buckets(plan, ALL_BUCKETS, 1 << 62)
    requests = [SliceRequest.of(plan, indices) for indices in group.slices]
    seconds: dict[str, float] = {}

    def timed(name: str, action: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(action, items))
        seconds[name] = time.monotonic() - started
        return results

    with SourceSettings().connect(str(case.folder)) as source:

        def sums(request: SliceRequest) -> int:
            query, parameters = slice_query(source.table(), request)
            body = query[query.index(" FROM ") :]
            totals = "count(), sum(c.open), sum(c.high), sum(c.low), sum(c.close), sum(c.volume)"
            return int(
                source.call(
                    "sum",
                    lambda client: client.query(f"SELECT {totals}{body}", parameters=parameters),
                ).result_rows[0][0]
            )

        rows = sum(timed("read", sums, requests))
        sample = [source.read(request) for request in requests[: max(1, len(requests) // 10)]]
    raw = [block.keys.tobytes() + b"".join(each.tobytes() for each in block.values.values()) for block in sample]
    scale = rows / sum(len(block) for block in sample)
    codec = pa.Codec("zstd", compression_level=3)  # the level of the format
    packed = timed("compress", lambda data: codec.compress(data, asbytes=True), raw)
    seconds["compress"] *= scale
    output = case.folder / SINK
    output.mkdir()
    data = b"".join(packed) * (int(scale) + 1)
    size = int(sum(map(len, packed)) * scale) // 256

    def write(number: int) -> None:
        with (output / f"{number}.bin").open("wb") as file:
            file.write(memoryview(data)[number * size : number * size + size])
            file.flush()
            os.fsync(file.fileno())

    timed("write", write, list(range(256)))
    timed("hash", lambda n: hashlib.sha256(memoryview(data)[n * size : n * size + size]).digest(), list(range(256)))
    return {"rows": rows, **seconds}


def reading(case: Case) -> dict[str, float]:
    """What readers of a sealed run wait for, in ms: one alert's slice, warm, ours and DuckDB's by hand."""
    import duckdb

    from lake_pipeline import open_run

    by_engine(case)
    run = open_run(SINK, case.folder)
    alerts = run.alerts().slice(0, 40).to_pylist()
    spec = run.manifest.run_spec
    connection = duckdb.connect()
    files = f"{run.path}/slices/ohlcv/interval={spec.interval}/window={spec.window}/*/*.parquet"
    query = (
        f"SELECT * FROM read_parquet('{files}', hive_partitioning = true) WHERE mint_bucket = ? AND mint = ? "
        "AND ts >= make_timestamptz(?) AND ts < make_timestamptz(?) ORDER BY ts"
    )

    def ours(alert: dict[str, Any]) -> int:
        return int(run.slice(alert["alert_id"]).num_rows)

    def by_hand(alert: dict[str, Any]) -> int:
        from lake_pipeline import compute_mint_bucket, compute_window_slice

        window = compute_window_slice(int(alert["ts"].timestamp() * 1000), spec.interval_s, spec.pre, spec.post)
        bounds = [window["start_ts"] * 1000, window["end_ts"] * 1000]
        arguments = [compute_mint_bucket(alert["mint"]), alert["mint"], *bounds]
        return len(connection.execute(query, arguments).to_arrow_table())

    found = {}
    for name, read in (("slice", ours), ("duckdb", by_hand)):
        times, rows = [], 0
        for alert in [alerts[0], *alerts]:
            started = time.monotonic()
            rows += read(alert)
            times.append(time.monotonic() - started)
        found[name] = statistics.median(times[1:]) * 1000
        found[f"{name}_rows"] = rows
    if found["slice_rows"] != found["duckdb_rows"]:
        raise RuntimeError(f"the two readers disagree: {found}")
    started = time.monotonic()
    report = run.verify()
    found["verify"] = (time.monotonic() - started) * 1000
    found["rows"] = report.rows
    found["list"] = listing(run.manifest.document(), case.folder) * 1000
    return found


def listing(manifest: dict[str, Any], folder: Path, count: int = 1000) -> float:
    """Seconds `lake runs` takes, from command line to exit, where so many runs have a manifest of this size."""
    for number in range(count):
        run = folder / f"bench_runs/lake/runs/run_id=run-{number:04d}"
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps({**manifest, "run_id": f"run-{number:04d}"}, indent=2))
    started = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name("lake"), "runs", "--data-root", folder / "bench_runs", "--format=csv"],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    discard(folder, "bench_runs")
    if sum(",sealed," in line for line in done.stdout.splitlines()) != count:
        raise RuntimeError(f"lake runs does not list {count} sealed runs")
    return seconds


def profile(case: Case) -> dict[str, float]:
    """The Dagster job in this process with every part of it timed: seconds of two threads together."""
    started = time.perf_counter()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in case.config.items()]
    with timing.section("imports"):
        timing.instrument_dagster()
        timing.instrument()
    from lake_pipeline.cli import lake

    with timing.section("Dagster"), redirect_stdout(StringIO()):
        lake(["export-run-slices", *arguments, f"--run-id={SINK}", "--format=json"], standalone_mode=False)
    return {"rows": 0, "wall": time.perf_counter() - started, **timing.seconds}


def _client(case: Case) -> Any:
    import clickhouse_connect

    return clickhouse_connect.get_client(interface="chdb", path=str(case.folder / "clickhouse"))


def _global_range(case: Case) -> str:
    """What somebody would write: these mints, from the first window's start to the last one's end."""
    from clickhouse_connect.driver.binding import format_query_value

    from lake_pipeline.core.plan import build_plan
    from lake_pipeline.settings import RunSettings

    settings = RunSettings(**{name: value for name, value in case.config.items() if name != "data_root"})
    plan = build_plan(settings.load_alerts().alerts, settings.spec())
    mints = format_query_value(tuple(plan.mints))
    start, end = (f"fromUnixTimestamp64Milli(toInt64({int(ms)}))" for ms in (plan.starts.min(), plan.ends.max()))
    return (
        f"FROM ohlcv_candles WHERE token_address IN {mints} AND timestamp >= {start} AND timestamp < {end} "
        f"AND interval_seconds = {case.scale.interval_s} AND chain = 'solana'"
    )


def clear(folder: Path) -> None:
    for name in (SINK, f"lake/runs/run_id={SINK}"):
        discard(folder, name)


def discard(folder: Path, name: str) -> None:
    """Give back the space of an output, and keep its empty files until all contestants are through.

    To make a file, ext4 passes over every one deleted in the last minutes: up to 0.7 ms, for which whoever comes next
    would pay.
    """
    if not (folder / name).exists():
        return
    for path in [each for each in (folder / name).rglob("*") if each.is_file()]:
        if path.stat().st_nlink > 1:  # a repeated export shares its files with the first
            path.unlink()
        else:
            os.truncate(path, 0)
    spent = folder / SPENT
    spent.mkdir(exist_ok=True)
    (folder / name).rename(spent / str(len(list(spent.iterdir()))))


Contestant = tuple[str, str, Callable[[Case], Any]]
# name -> (data, alerts, function)
CONTESTANTS: dict[str, Contestant] = {
    "one-liner": ("", "alerts.csv", by_one_liner),
    "job": ("", "alerts.csv", by_job),
    "engine": ("", "alerts.csv", by_engine),
    "bucket": ("", "alerts.csv", by_bucket),
    "duckdb": ("", "alerts.csv", by_duckdb),
    "floors": ("", "alerts.csv", floors),
    "16x alerts": ("", "alerts_16x.csv", by_engine),
    "4.4x candles": ("long", "alerts.csv", by_engine),
    "1-second": ("seconds", "alerts.csv", by_engine),
    "1-second, unpruned": ("seconds", "alerts.csv", without_pruning),
    "again": ("", "alerts.csv", by_engine),
    "again, job": ("", "alerts.csv", by_job),
    "reading": ("", "alerts.csv", reading),
    "profile": ("", "alerts.csv", profile),
}
AGAIN = ("again", "again, job")


def case_of(name: str, scale: str, folder: Path) -> Case:
    data, alerts, _ = CONTESTANTS[name]
    used = data if data and scale != "tiny" else scale
    return Case(SCALES[used], folder / used, alerts)


def run_once(name: str, scale: str, folder: Path) -> dict[str, float]:
    """One contestant in a fresh process: seconds from its start to its end, peak memory, output."""
    case = case_of(name, scale, folder)
    clear(case.folder)
    for path in (case.folder / "clickhouse").rglob("*"):
        if path.is_file():  # what other contestants have pushed out of the cache would be the first reader's cost
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

    def contest(scale: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, __file__, "--only", name, "--scale", scale, str(folder)]
        environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)

    tiny = case_of(name, "tiny", folder).folder
    clear(tiny)
    contest("tiny")  # for its program, which the databases have pushed out
    clear(tiny)
    started = time.monotonic()
    done = contest(scale)
    seconds = time.monotonic() - started
    result = json.loads(done.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in (case.folder / SINK).rglob("*.parquet"))
    size += sum(path.stat().st_size for path in (case.folder / f"lake/runs/run_id={SINK}/slices").rglob("*.parquet"))
    clear(case.folder)
    return {"seconds": seconds, "output_mb": size / 1e6, **result}


def run_here(name: str, scale: str, folder: Path) -> dict[str, float]:
    """A contestant in this process: its own seconds, without start-up, and the memory it took."""
    for module in ("api", "io.clickhouse"):
        importlib.import_module(f"lake_pipeline.{module}")
    started = time.monotonic()
    found = CONTESTANTS[name][2](case_of(name, scale, folder))
    own = time.monotonic() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {**(found if isinstance(found, dict) else {"rows": found}), "own": own, "peak_mb": peak * 1024 / 1e6}


def run_all(scale: str, folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    names = [name for name, (data, _, _) in CONTESTANTS.items() if not data or scale == "full"]
    used_scales = sorted({"tiny", *(case_of(name, scale, folder).folder.name for name in names)})
    for used in used_scales:
        # In a process of its own: a child's peak memory is at least what its parent held.
        subprocess.run([sys.executable, GENERATE, "--scale", used, folder / used], check=True)
        shutil.rmtree(folder / used / "lake", ignore_errors=True)  # runs of other benchmarks would be reused
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    main_case = case_of("engine", scale, folder)
    for number in range(rounds):
        for name in names:
            if name in AGAIN:
                subprocess.run([sys.executable, __file__, "--first", "--scale", scale, str(folder)], check=True)
            results[name].append(run_once(name, scale, folder))
            if name in AGAIN:
                discard(main_case.folder, f"lake/runs/run_id={FIRST}")
            print(f"round {number + 1}: {name} {results[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    for used in used_scales:
        shutil.rmtree(folder / used / SPENT)
    return results


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run.get(key, 0.0) for run in runs) for key in runs[0]}


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """The tables of docs/performance.md."""
    median = {name: medians(runs) for name, runs in results.items()}
    against = median["one-liner"]
    lines = [
        "| contestant | seconds | ratio | peak MB | output MB | size ratio | rows |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    floor_parts = {part: median["floors"][part] for part in ("read", "compress", "write", "hash")}
    floor_sum = sum(floor_parts.values())
    for name, row in median.items():
        if name in ("floors", "reading", "profile"):
            continue
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {row['seconds'] / against['seconds']:.2f} | {row['peak_mb']:.0f} "
            f"| {row['output_mb']:.0f} | {row['output_mb'] / against['output_mb']:.2f} | {row['rows']:,.0f} |"
        )
    named = ", ".join(f"{part} {value:.1f}" for part, value in floor_parts.items())
    share = floor_sum / against["seconds"]
    lines.append(f"| floors ({named}) | {floor_sum:.1f} | {share:.2f} | | | | {median['floors']['rows']:,.0f} |")
    engine, wall = median["engine"], median["profile"]["wall"]
    ratio = dict.fromkeys(("16x", "long", "pruned"), float("nan"))
    ratio["16x"] = median["16x alerts"]["seconds"] / engine["seconds"]
    if "4.4x candles" in median:
        ratio["long"] = median["4.4x candles"]["seconds"] / engine["seconds"]
        ratio["pruned"] = median["1-second"]["own"] / median["1-second, unpruned"]["own"]
    parts = {name: value for name, value in median["profile"].items() if name in timing.PARTS}
    bars = [
        ("job against the one-liner, time", median["job"]["seconds"] / against["seconds"], 0.80, "x"),
        ("job against the one-liner, bytes", median["job"]["output_mb"] / against["output_mb"], 0.60, "x"),
        ("engine against the one-liner, time", engine["seconds"] / against["seconds"], 0.55, "x"),
        ("engine against the summed floors, both without start-up", engine["own"] / floor_sum, 1.5, "x"),
        ("engine, peak memory, base included", engine["peak_mb"], 1200, " MB"),
        ("16x alerts, time", ratio["16x"], 1.8, "x"),
        ("16x alerts, peak memory", median["16x alerts"]["peak_mb"] / engine["peak_mb"], 1.15, "x"),
        ("4.4x candles, time", ratio["long"], 1.8, "x"),
        ("1-second candles against no pruning, both without start-up", ratio["pruned"], 0.35, "x"),
        ("bytes a row", engine["output_mb"] * 1e6 / engine["rows"], 34, ""),
        ("hashing, share of the job", parts.get("hash", 0) / 2 / wall * 100, 7, " %"),
        ("coverage, share of the job", parts.get("coverage", 0) / 2 / wall * 100, 10, " %"),
        ("Dagster's share: job minus engine", median["job"]["seconds"] - engine["seconds"], 8, " s"),
        ("second identical export, both without start-up", median["again"]["own"] / engine["own"] * 100, 15, " %"),
        ("one alert's slice, warm", median["reading"]["slice"], 25, " ms"),
        ("slice against DuckDB by hand", median["reading"]["slice"] / median["reading"]["duckdb"], 1.0, "x"),
        ("1,000 runs listed, from command line to exit", median["reading"]["list"] / 1000, 1.0, " s"),
    ]
    lines += ["", "| bar | measured | at most |  |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {name} | {value:.3g}{unit} | {limit:g}{unit} | {'met' if value <= limit else 'NOT MET'} |"
        for name, value, limit, unit in bars
        if not math.isnan(value)  # not measured at this scale
    ]
    lines += ["", "| where the job's time goes | thread seconds | share |", "| --- | ---: | ---: |"]
    total = sum(parts.values())
    lines += [
        f"| {name} | {value:.2f} | {value / total:.1%} |" for name, value in sorted(parts.items(), key=lambda x: -x[1])
    ]
    verify, rows = median["reading"]["verify"] / 1000, median["reading"]["rows"]
    lines += ["", f"`lake verify`, every byte and every candle: {verify:.1f} s for {rows:,.0f} candles."]
    return "\n".join(lines)


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "lake"
    import matplotlib.pyplot as plt

    names = ["engine", "job", "one-liner", "duckdb", "bucket"]
    labels = {
        "engine": "lake-pipeline, one call",
        "job": "lake-pipeline, whole Dagster job",
        "one-liner": "ClickHouse PARTITION BY",
        "duckdb": "DuckDB COPY PARTITION_BY",
        "bucket": "one query per bucket",
    }
    median = {name: medians(results[name]) for name in names}
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True)
    for axis, (key, title) in zip(
        axes, (("seconds", "seconds"), ("peak_mb", "peak memory, MB"), ("output_mb", "output, MB")), strict=True
    ):
        values = [median[name][key] for name in reversed(names)]
        colors = ["#4c78a8" if "lake" in labels[name] else "#b0b7bf" for name in reversed(names)]
        bars = axis.barh([labels[name] for name in reversed(names)], values, color=colors)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.25)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(labelsize=8, bottom=False, labelbottom=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw the comparison into this file")
    parser.add_argument("--only", choices=CONTESTANTS, help="run one contestant in this process and print its figures")
    parser.add_argument("--first", action="store_true", help="make the run that `again` is the second of")
    parser.add_argument("--report", action="store_true", help="print the tables of the results there are")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    scale, folder = arguments.scale, arguments.folder.absolute()
    if arguments.first:
        by_engine(case_of("engine", scale, folder), run_id=FIRST)
        return
    if arguments.only:
        print(json.dumps(run_here(arguments.only, scale, folder)))
        return
    stored = folder / f"results-{scale}.json"
    if not arguments.report:
        stored.write_text(json.dumps(run_all(scale, folder, arguments.rounds), indent=1))
    results = json.loads(stored.read_text())
    print(report(results))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
