"""Results: keys that know everything a number depends on, seals, and the folders of small files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lake_pipeline.backtest
from lake_pipeline.backtest import code, results
from lake_pipeline.backtest.baseline import compute_baseline
from lake_pipeline.backtest.callers import compute_caller_stats
from lake_pipeline.backtest.code import module_digests
from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, CallerConfig, StrategyConfig
from lake_pipeline.backtest.paths import open_paths
from lake_pipeline.backtest.results import (
    Result,
    baseline_result,
    file_names,
    per_alert_result,
    per_caller_result,
    per_trade_result,
    strategy_result,
)
from lake_pipeline.backtest.trades import compute_trades, summarise
from lake_pipeline.errors import RunNotSealed, VerificationFailed
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run

CALLERS = CallerConfig(min_trades=1)


@pytest.fixture
def run(copied_lake: LocalStore) -> Run:
    return load_run(copied_lake, "plain")


def fails(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("computed again")


def folder_of(result: Result) -> Path:
    return Path(result.store.uri)


def test_results_are_the_tables_and_are_found_again_without_computing(
    copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = baseline_result(copied_lake, run, callers=CALLERS)
    strategy = strategy_result(copied_lake, run)
    assert baseline.created
    assert strategy.created
    assert baseline.baseline().equals(compute_baseline(run))
    assert baseline.caller_stats().equals(compute_caller_stats(baseline.baseline(), CALLERS))
    assert strategy.trades().equals(compute_trades(run))
    assert strategy.summary() == json.loads(json.dumps(summarise(strategy.trades(), StrategyConfig())))
    assert folder_of(baseline).name == f"baseline={baseline.key}"
    assert folder_of(strategy).parent == Path(copied_lake.uri, "results/run_id=plain")
    monkeypatch.setattr(results, "open_paths", fails)
    again = baseline_result(copied_lake, run, callers=CALLERS)
    assert (again.created, again.record) == (False, baseline.record)
    assert not strategy_result(copied_lake, run).created


def test_result_json_is_the_seal_and_names_no_place_and_no_time(copied_lake: LocalStore, run: Run) -> None:
    result = baseline_result(copied_lake, run, callers=CALLERS)
    document = json.loads((folder_of(result) / "result.json").read_bytes())
    assert {file["path"] for file in document["files"]} == {"baseline.parquet", "caller_stats.parquet"}
    for file in document["files"]:
        data = (folder_of(result) / file["path"]).read_bytes()
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert document["identity"]["content_sha256"] == run.manifest().content_sha256
    assert document["key"] == result.key
    assert "plain" not in json.dumps(document)


def test_every_parameter_the_selection_and_the_run_change_the_key(copied_lake: LocalStore, run: Run) -> None:
    keys = [
        baseline_result(copied_lake, run).key,
        baseline_result(copied_lake, run, BaselineConfig(horizon_hours=1)).key,
        baseline_result(copied_lake, run, BaselineConfig(max_entry_lag=1)).key,
        baseline_result(copied_lake, run, callers=CALLERS).key,
        baseline_result(copied_lake, run, selection=AlertSelection(callers=("caller-0",))).key,
        baseline_result(copied_lake, load_run(copied_lake, "strict")).key,
        strategy_result(copied_lake, run).key,
        strategy_result(copied_lake, run, StrategyConfig(tp=3)).key,
        strategy_result(copied_lake, run, StrategyConfig(risk_per_trade=0.5)).key,
        strategy_result(copied_lake, run, config=BaselineConfig(max_entry_lag=1)).key,
    ]
    assert len(set(keys)) == len(keys)


def test_the_code_of_a_result_is_its_module_and_all_it_imports() -> None:
    found = module_digests("lake_pipeline.backtest.baseline")
    for name in ("backtest.kernels", "backtest.paths", "core.window", "core.canonical", "io.parquet", "errors"):
        assert f"lake_pipeline.{name}" in found
    for name in (
        "backtest.trades",
        "backtest.callers",
        "cli.export",
        "defs.build",
        "backtest.baseline.BASELINE_SCHEMA",
    ):
        assert f"lake_pipeline.{name}" not in found
    source = Path(lake_pipeline.backtest.__file__).with_name("kernels.py").read_bytes()
    assert found["lake_pipeline.backtest.kernels"] == hashlib.sha256(source).hexdigest()


def test_a_changed_helper_is_a_miss(copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = baseline_result(copied_lake, run)
    digests = code.module_digests

    def changed(module: str) -> dict[str, str]:
        return digests(module) | {"lake_pipeline.core.window": "0" * 64}

    code._digests_once.cache_clear()
    monkeypatch.setattr(code, "module_digests", changed)
    after = baseline_result(copied_lake, run)
    monkeypatch.undo()
    code._digests_once.cache_clear()
    assert after.created
    assert after.key != before.key
    assert not baseline_result(copied_lake, run).created


@pytest.mark.parametrize("name", ["baseline.parquet", "caller_stats.parquet", "result.json"])
def test_an_edited_result_is_noticed_and_never_returned(copied_lake: LocalStore, run: Run, name: str) -> None:
    path = folder_of(baseline_result(copied_lake, run)) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="is not what was sealed"):
        baseline_result(copied_lake, run)
    path.unlink()
    if name != "result.json":
        with pytest.raises(VerificationFailed, match=f"{name} is missing"):
            baseline_result(copied_lake, run)


def test_an_interrupted_attempt_is_cleared(copied_lake: LocalStore, run: Run) -> None:
    result = baseline_result(copied_lake, run)
    expected = (folder_of(result) / "baseline.parquet").read_bytes()
    (folder_of(result) / "result.json").unlink()
    (folder_of(result) / "baseline.parquet").write_bytes(b"half")
    (folder_of(result) / ".lake-tmp-1").write_bytes(b"half")
    again = baseline_result(copied_lake, run)
    assert again.created
    assert (folder_of(again) / "baseline.parquet").read_bytes() == expected
    assert again.record == result.record


def test_an_unsealed_run_has_no_results(exported: Run) -> None:
    lake = LocalStore(Path(exported.store.uri).parents[2])
    for compute in (baseline_result, strategy_result):
        with pytest.raises(RunNotSealed):
            compute(lake, exported)
    assert not Path(lake.uri, "results").exists()


def test_small_files_hold_each_alert_caller_and_trade(copied_lake: LocalStore, run: Run) -> None:
    baseline = baseline_result(copied_lake, run, callers=CALLERS)
    strategy = StrategyConfig(tp=1.0625, sl=0.9375, trail_distance=0.0625, trail_activation=0.03125)
    stored = strategy_result(copied_lake, run, strategy)
    paths = open_paths(run, lake=copied_lake)
    table = baseline.baseline()

    alerts = per_alert_result(copied_lake, run, baseline, paths)
    rows = table.filter(pa.compute.greater(table.column("candles"), 0)).to_pylist()
    assert {file.path for file in alerts.record.files} == {
        f"alert_{row['alert_id']}_{row['mint'][:8]}.parquet" for row in rows
    }
    for row in rows:
        found = pq.read_table(folder_of(alerts) / f"alert_{row['alert_id']}_{row['mint'][:8]}.parquet")
        assert found.cast(paths.path(row["alert_id"]).table().schema).equals(paths.path(row["alert_id"]).table())

    callers = per_caller_result(copied_lake, run, baseline)
    assert [file.path for file in callers.record.files] == [f"caller_caller-{n}.parquet" for n in ("0", "1", "2", "a")]
    one = pq.read_table(folder_of(callers) / "caller_caller-0.parquet")
    assert one.to_pylist() == [row for row in table.to_pylist() if row["caller"] == "caller-0"]

    trades = per_trade_result(copied_lake, run, stored, strategy, paths)
    exits = [row for row in stored.trades().to_pylist() if row["status"] == "ok"]
    assert len(trades.record.files) == len(exits) > 0
    for row in exits:
        found = pq.read_table(folder_of(trades) / f"trade_{row['alert_id']}_{row['mint'][:8]}.parquet").to_pylist()
        assert found[-1]["timestamp"] == row["exit_ts_utc"]
        assert found[0]["open"] == row["entry_price"]
        assert all(each["low"] > each["stop_level"] for each in found[:-1])
        assert found[-1]["tp_level"] == row["entry_price"] * 1.0625
    for part in (alerts, callers, trades):
        assert part.created
    assert not per_alert_result(copied_lake, run, baseline, paths).created
    assert not baseline_result(copied_lake, run, callers=CALLERS).created
    edited = folder_of(alerts) / alerts.record.files[0].path
    edited.write_bytes(edited.read_bytes()[:-1])
    with pytest.raises(VerificationFailed):
        per_alert_result(copied_lake, run, baseline, paths)


def test_small_files_that_other_code_wrote_are_written_anew(
    copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of the parts changes more often than that of the result they are in."""
    baseline = baseline_result(copied_lake, run, callers=CALLERS)
    first = per_caller_result(copied_lake, run, baseline)
    forgotten = folder_of(first) / "caller_of-other-code.parquet"
    forgotten.write_bytes(b"what it wrote besides")
    digests = code.module_digests
    monkeypatch.setattr(
        code, "module_digests", lambda module: digests(module) | {"lake_pipeline.backtest.trades": "0" * 64}
    )
    code._digests_once.cache_clear()
    try:
        again = per_caller_result(copied_lake, run, baseline)
        assert again.created
        assert again.record.files == first.record.files
        assert again.key != first.key
        assert not forgotten.exists()
        assert not per_caller_result(copied_lake, run, baseline).created
        # A seal that is not its own identity's is no other code's.
        seal = folder_of(again) / "result.json"
        seal.write_text(seal.read_text().replace("0" * 64, "1" * 64))
        with pytest.raises(VerificationFailed, match=r"result\.json is not the one of this result"):
            per_caller_result(copied_lake, run, baseline)
    finally:
        code._digests_once.cache_clear()


def test_names_are_safe_and_never_the_same() -> None:
    callers = ["alice", "Bob", "bob", "a b", "a/b", "a_b", "../..", "", "x" * 300, "x" * 299 + "y", "é", "漢", "a-b.c"]
    names = file_names("caller", [(caller,) for caller in callers])
    assert len({name.casefold() for name in names}) == len(callers)
    assert names[0] == "caller_alice.parquet"
    assert names[-1] == "caller_a-b.c.parquet"
    for name in names:
        assert Path(name).name == name
        assert name.isascii()
        assert len(name) < 160
    assert len(set(file_names("alert", [("a_b", "c"), ("a", "b_c")]))) == 2


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SCRIPT = """
import sys
from pathlib import Path
from lake_pipeline.backtest import *
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run
lake, threads = LocalStore(Path(sys.argv[1])), int(sys.argv[2])
run = load_run(lake, "plain")
strategy = StrategyConfig(tp=1.0625, sl=0.9375)
stored = strategy_result(lake, run, strategy, threads=threads)
baseline = baseline_result(lake, run, callers=CallerConfig(min_trades=1), threads=threads)
paths = open_paths(run, lake=lake)
per_alert_result(lake, run, baseline, paths, threads=threads)
per_caller_result(lake, run, baseline, threads=threads)
per_trade_result(lake, run, stored, strategy, paths, threads=threads)
"""


def test_twenty_processes_of_any_hash_seed_and_one_or_two_threads_give_the_same_bytes(
    copy_of: Callable[[str], Path],
) -> None:
    seeds = random.Random(20).sample(range(2**32), 20)

    def computed(number: int) -> dict[str, str]:
        root = copy_of(f"lake-{number}")
        environment = {**os.environ, "PYTHONHASHSEED": str(seeds[number])}
        command = [sys.executable, "-c", SCRIPT, str(root), str(number % 2 + 1)]
        subprocess.run(command, check=True, env=environment)
        return snapshot(root / "results")

    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(computed, range(len(seeds)))
    assert all(other == first for other in others)
    names = {Path(name).name for name in first}
    assert {"baseline.parquet", "caller_stats.parquet", "trades.parquet", "summary.json"} <= names
    assert len(first) > 30


@pytest.fixture
def copy_of(sealed_lake: LocalStore, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        shutil.copytree(Path(sealed_lake.uri), tmp_path / name)
        return tmp_path / name

    return copy


def test_importing_the_backtest_costs_no_numba_and_every_name_is_there() -> None:
    check = "import sys; from lake_pipeline.backtest import StrategyConfig; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
    for name in lake_pipeline.backtest.__all__:
        assert getattr(lake_pipeline.backtest, name) is not None
        assert name in dir(lake_pipeline.backtest)
    with pytest.raises(AttributeError):
        _ = lake_pipeline.backtest.nothing_of_this_name
