"""The backtest of a sealed run against what one would type instead, in one run on the same files.

    python benchmarks/backtest.py --scale small --rounds 3 [--vectorbt PYTHON] FOLDER

Contestants run in turns in this process, `rounds` times, after one round that is not counted (imports, compilation,
file cache); the table shows medians. Everything has two threads. `--vectorbt` is the interpreter of an environment with
vectorbt, which does not install beside this package's own dependencies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generate import SCALES, Scale, generate

from lake_pipeline import export_lake_run_slices
from lake_pipeline.backtest import (
    BaselineConfig,
    StrategyConfig,
    baseline_result,
    measure_paths,
    open_paths,
    simulate,
    strategy_result,
    trade_paths,
    write_per_alert,
)
from lake_pipeline.backtest.exits import REASONS
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run

RUN_ID = "bench_backtest"
THREADS = 2
# The longest horizon: paths end with their windows.
CONFIG = BaselineConfig(horizon_hours=10_000)
STRATEGY = StrategyConfig(tp=1.2, sl=0.9)
MULTIPLES = (2, 3, 4, 5, 10)

# --- the same by DuckDB --------------------------------------------------------------------------

PATHS = """
alerts AS MATERIALIZED (
  SELECT a.alert_id, a.mint, a.caller, epoch_ms(a.ts) AS ts, c.window_end_ms AS end_ts,
         (epoch_ms(a.ts) + {interval_ms} - 1) // {interval_ms} * {interval_ms} AS entry_ts
  FROM read_parquet('{run}/inputs/alerts.parquet') a
  JOIN read_parquet('{run}/outputs/coverage.parquet') c USING (alert_id)),
paths AS MATERIALIZED (
  SELECT a.alert_id, epoch_ms(c.ts) AS ts, c.open, c.high, c.low, c.close
  FROM alerts a JOIN read_parquet('{run}/slices/**/*.parquet', hive_partitioning = false) c
    ON c.mint = a.mint AND c.ts >= make_timestamptz(a.entry_ts * 1000) AND c.ts < make_timestamptz(a.end_ts * 1000))
"""
BASELINE = (
    "WITH "
    + PATHS
    + """,
first AS MATERIALIZED (
  SELECT alert_id, count(*) AS candles, arg_min(open, ts) AS entry, max(high) AS ath, min(low) AS lowest,
         arg_max(close, ts) AS last_close, min(ts) AS first_ts
  FROM paths GROUP BY alert_id),
hits AS MATERIALIZED (
  SELECT alert_id, min(ts) FILTER (high = ath) AS t_ath, min(ts) FILTER (high > entry) AS t_recovery, """
    + ", ".join(f"min(ts) FILTER (high >= {n} * entry) AS t{n}" for n in MULTIPLES)
    + """
  FROM paths JOIN first USING (alert_id) GROUP BY alert_id),
lows AS (
  SELECT alert_id, min(low) FILTER (ts < t_recovery) AS low_initial, min(low) FILTER (ts <= t2) AS low_pre2x,
         min(low) FILTER (ts > t_ath) AS low_ath, """
    + ", ".join(f"min(low) FILTER (ts > t{n}) AS low{n}" for n in MULTIPLES)
    + """
  FROM paths JOIN hits USING (alert_id) GROUP BY alert_id)
SELECT alert_id, mint, caller, a.ts AS alert_ts, entry_ts, {interval_ms} // 1000 AS interval_seconds,
  {horizon} AS horizon_hours,
  CASE WHEN candles IS NULL THEN 'missing' WHEN first_ts - entry_ts > 15 * {interval_ms} THEN 'late_entry'
       ELSE 'ok' END AS status,
  candles, entry AS entry_price, ath / entry AS ath_mult, (t_ath - entry_ts) // 1000 AS time_to_ath_s, """
    + ", ".join(f"(t{n} - entry_ts) // 1000 AS time_to_{n}x_s" for n in MULTIPLES)
    + """,
  CASE WHEN t_recovery IS NULL THEN lowest / entry - 1 ELSE coalesce(low_initial / entry - 1, 0) END AS dd_initial,
  lowest / entry - 1 AS dd_overall, low_pre2x / entry - 1 AS dd_pre2x, """
    + ", ".join(f"low{n} / ({n} * entry) - 1 AS dd_after_{n}x" for n in MULTIPLES)
    + """,
  low_ath / ath - 1 AS dd_after_ath, (ath / entry - 1) * 100 AS peak_pnl_pct, (last_close / entry - 1) * 100 AS ret_end
FROM alerts a LEFT JOIN first USING (alert_id) LEFT JOIN hits USING (alert_id) LEFT JOIN lows USING (alert_id)
ORDER BY a.ts, alert_id
"""
)
# On tables `paths` and `entries` in memory: only what a pair (tp, sl) decides.
EXITS = """
WITH found AS (
  SELECT alert_id, any_value(entry) AS entry, any_value(last_close) AS last_close,
         min(ts) FILTER (low <= entry * {sl} OR high >= entry * {tp}) AS exit_ts
  FROM paths JOIN entries USING (alert_id) GROUP BY alert_id)
SELECT alert_id, f.exit_ts,
  CASE WHEN f.exit_ts IS NULL THEN 'horizon' WHEN low <= entry * {sl} THEN 'sl' ELSE 'tp' END AS reason,
  CASE WHEN f.exit_ts IS NULL THEN last_close WHEN low <= entry * {sl} THEN least(open, entry * {sl})
       ELSE entry * {tp} END AS exit_price
FROM found f LEFT JOIN paths p USING (alert_id) WHERE p.ts = f.exit_ts OR f.exit_ts IS NULL
QUALIFY row_number() OVER (PARTITION BY alert_id) = 1 ORDER BY alert_id
"""
VECTORBT = """
import json, sys, time
import numpy as np, vectorbt as vbt
with np.load(sys.argv[1]) as data:
    paths = [data[name] for name in data.files]
tp, sl = float(sys.argv[2]), float(sys.argv[3])
def bars(path):
    entries = np.zeros(path.shape[1], bool)
    entries[0] = True
    found = vbt.OHLCSTX.run(entries, *path, sl_stop=[1 - sl], tp_stop=[tp - 1])
    hit = np.flatnonzero(found.exits.to_numpy())
    return int(hit[0]) if len(hit) else -1
bars(paths[0])
started = time.perf_counter()
exits = [bars(path) for path in paths]
print(json.dumps({"seconds": (time.perf_counter() - started) / len(paths), "exits": exits}))
"""


def prepare(scale: Scale, folder: Path) -> Path:
    """The generated data, exported and sealed once."""
    generate(scale, folder)
    config = {"interval": scale.interval, "window": scale.window, "alerts": str(folder / "alerts.csv")}
    result = export_lake_run_slices({**config, "data_root": str(folder), "run_id": RUN_ID})
    return Path(result.manifest_path).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectorbt", help="Python of an environment with vectorbt")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    folder = prepare(scale, arguments.folder)
    lake = LocalStore(arguments.folder)
    run = load_run(lake, RUN_ID)
    parts = sorted(folder.glob("slices/**/*.parquet"))
    results = arguments.folder / f"results/run_id={RUN_ID}"
    files = arguments.folder / "bench_files"
    names = {"run": folder, "interval_ms": scale.interval_s * 1000, "horizon": CONFIG.horizon_hours}

    connection = duckdb.connect()
    connection.execute(f"SET threads = {THREADS}; SET TimeZone = 'UTC'")
    connection.execute("CREATE TABLE paths AS WITH " + PATHS.format(**names) + " SELECT * FROM paths")
    connection.execute(
        "CREATE TABLE entries AS SELECT alert_id, arg_min(open, ts) AS entry, arg_max(close, ts) AS last_close "
        "FROM paths GROUP BY alert_id"
    )

    def read_columns() -> int:
        columns = ["mint", "ts", "open", "high", "low", "close", "volume"]

        def rows(part: Path) -> int:
            return int(pq.ParquetFile(part).read(columns=columns, use_threads=False).num_rows)

        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(rows, parts))

    def warm() -> pa.Table:
        return measure_paths(open_paths(run, horizon_ms=CONFIG.horizon_ms, lake=lake), CONFIG, threads=THREADS)

    def by_pyarrow() -> None:
        files.mkdir()
        for bucket in loaded.buckets:
            block = loaded.load(bucket)
            for index, row in enumerate(block.rows.tolist()):
                path = block.path(index)
                arrays = [path.ts, path.open, path.high, path.low, path.close, path.volume]
                table = pa.table(arrays, names=["timestamp", "open", "high", "low", "close", "volume"])
                pq.write_table(table, files / f"{row}.parquet")

    contestants: dict[str, Callable[[], Any]] = {
        "cold": lambda: baseline_result(lake, run, CONFIG, threads=THREADS),
        "repeat": lambda: baseline_result(lake, run, CONFIG, threads=THREADS),
        "duckdb": lambda: connection.execute(BASELINE.format(**names)).fetchall(),
        "pyarrow": read_columns,
        "first strategy": lambda: strategy_result(lake, run, STRATEGY, CONFIG, threads=THREADS),
        "repeat strategy": lambda: strategy_result(lake, run, STRATEGY, CONFIG, threads=THREADS),
        "warm": warm,
        "scan": lambda: simulate(loaded, STRATEGY, CONFIG, threads=THREADS),
        "scan, one thread": lambda: simulate(loaded, STRATEGY, CONFIG),
        "trades": lambda: trade_paths(loaded, STRATEGY, CONFIG, threads=THREADS),
        "duckdb exits": lambda: connection.execute(EXITS.format(tp=STRATEGY.tp, sl=STRATEGY.sl)).fetchall(),
        "files": lambda: write_per_alert(LocalStore(files), loaded, threads=THREADS),
        "files, one thread": lambda: write_per_alert(LocalStore(files), loaded),
        "pyarrow files": by_pyarrow,
    }
    loaded = open_paths(run, horizon_ms=CONFIG.horizon_ms)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        for name, contestant in contestants.items():
            shutil.rmtree(files, ignore_errors=True)
            if name == "cold":
                shutil.rmtree(results, ignore_errors=True)
            started = time.perf_counter()
            result = contestant()
            if number:
                seconds[name].append(time.perf_counter() - started)
            if name == "first strategy":
                loaded = open_paths(run, horizon_ms=CONFIG.horizon_ms, lake=lake)
                loaded.map(len)
            if number == 0 and name == "duckdb":
                check_baseline(warm(), result)
            if number == 0 and name == "duckdb exits":
                check_exits(trade_paths(loaded, STRATEGY, CONFIG), result)
    shutil.rmtree(files, ignore_errors=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median["vectorbt"] = by_vectorbt(arguments.vectorbt, loaded) if arguments.vectorbt else float("nan")
    report(median, len(loaded.entry_ts), int(sum(loaded.map(lambda block: int((block.stops - block.starts).sum())))))


def report(median: dict[str, float], alerts: int, candles: int) -> None:
    median["scan an alert"] = median["scan, one thread"] / alerts
    # What, against what, whether the second has to be so many times the first, or the first at most so many the second.
    bars: list[tuple[str, str, str, float]] = [
        ("cold", "duckdb", "faster", 1.0),
        ("cold", "pyarrow", "at most", 2.0),
        ("warm", "duckdb", "faster", 25.0),
        ("scan", "duckdb exits", "faster", 25.0),
        ("scan an alert", "vectorbt", "faster", 50.0),
        ("files", "pyarrow files", "at most", 1.5),
        ("files, one thread", "pyarrow files", "at most", 1.5),
        ("repeat", "cold", "at most", 0.05),
        ("repeat strategy", "first strategy", "at most", 0.05),
    ]
    print(f"{alerts:,} alerts, {candles:,} candles on their paths\n")
    print("| what | seconds | against | seconds | ratio | bar | met |")
    print("| --- | ---: | --- | ---: | ---: | --- | --- |")
    for what, against, kind, bar in bars:
        ratio = median[against] / median[what] if kind == "faster" else median[what] / median[against]
        met = "no vectorbt" if np.isnan(ratio) else "yes" if (ratio >= bar) == (kind == "faster") else "NO"
        seconds = f"| {what} | {median[what]:.6f} | {against} | {median[against]:.6f} "
        print(f"{seconds}| {ratio:.3g} | {kind} {bar:g}x | {met} |")
    print("\n" + ", ".join(f"{name} {value:.6f}" for name, value in median.items()))


def check_baseline(table: pa.Table, rows: list[tuple[Any, ...]]) -> None:
    """DuckDB's 28 columns are the baseline's."""
    table = table.select(table.column_names[:28])
    for name in ("alert_ts_utc", "entry_ts_utc"):
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(pa.int64()))
    for mine, theirs in zip(table.to_pylist(), rows, strict=True):
        for (name, value), other in zip(mine.items(), theirs, strict=True):
            same = value == other or (
                isinstance(value, float) and other is not None and np.isclose(value, float(other))
            )
            assert same, (mine["alert_id"], name, value, other)


def check_exits(trades: pa.Table, rows: list[tuple[Any, ...]]) -> None:
    """DuckDB's exits are those of the trades."""
    found = {row["alert_id"]: row for row in trades.to_pylist() if row["status"] == "ok"}
    for alert_id, _, reason, price in rows:
        if alert_id in found:
            assert found[alert_id]["tp_sl_exit_reason"] == reason, alert_id
            assert np.isclose(found[alert_id]["exit_price"], price), alert_id


def by_vectorbt(python: str, loaded: Any, count: int = 300) -> float:
    """Seconds an alert and pair by OHLCSTX on some paths; its exit bars are compared with ours."""
    exits = simulate(loaded, STRATEGY, CONFIG)
    sample, expected = [], []
    for bucket in loaded.buckets:
        block = loaded.load(bucket)
        for index, row in enumerate(block.rows.tolist()):
            if exits.tradable[row] and len(sample) < count:
                path = block.path(index)
                sample.append(np.stack([path.open, path.high, path.low, path.close]))
                bar = int(np.searchsorted(path.ts, exits.exit_ts[row]))
                expected.append(-1 if REASONS[exits.reason[row]] == "horizon" else bar)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/paths.npz", *sample)
        command = [python, "-c", VECTORBT, f"{folder}/paths.npz", str(STRATEGY.tp), str(STRATEGY.sl)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    different = sum(mine != theirs for mine, theirs in zip(expected, result["exits"], strict=True))
    print(f"vectorbt: {different} of {len(sample)} exit bars differ")
    return float(result["seconds"])


if __name__ == "__main__":
    main()
