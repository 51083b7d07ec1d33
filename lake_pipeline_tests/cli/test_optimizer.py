"""`lake optimizer` and `lake cache`: a stranger's commands, a real Ctrl-C, hostile arguments."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from lake_pipeline.cli import lake as lake_command
from lake_pipeline.errors import ConfigError, InputError, RunNotFound
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer.ledger import Ledger
from lake_pipeline_tests.optimizer.conftest import make_lake, noise_root

__all__ = ["make_lake", "noise_root"]  # fixtures

LAKE = Path(sys.executable).with_name("lake")
Invoke = Callable[..., Result]
SEARCH = ("optimizer", "--run", "searched", "--horizon-hours", 6, "--tp", "1.1:2:.01", "--sl", ".5:.95:.01")


@pytest.fixture
def root(noise_root: LocalStore, tmp_path: Path) -> Path:
    shutil.copytree(noise_root.root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def invoke(root: Path) -> Invoke:
    """A command on a copy of the run, in this process; errors of the package are raised."""

    def run(*arguments: object, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(lake_command, [*map(str, arguments), "--data-root", str(root)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return run


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("LAKE_", "CLICKHOUSE_"))}


def lake_process(root: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAKE, *map(str, arguments), "--data-root", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background job is born deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_report_is_printed_and_the_search_is_found_again(invoke, root):
    shown = invoke(*SEARCH, "--trials", 60, "--folds", 2, "-j", 1)
    for line in ("winner       trial ", "trade it     lake strategy --run searched --tp ", "do not believe it yet:",
                 "best of 120 trials ever evaluated on this run", "the winner entered some candles later:",
                 "2 folds, the last: train "):  # fmt: skip
        assert line in shown.stdout
    assert " computed: " in shown.stderr
    again = invoke(*SEARCH, "--trials", 60, "--folds", 2, "-j", 2)
    assert "was computed before; found, verified and used" in again.stderr
    assert again.stdout.replace("found", "computed") == shown.stdout
    document = json.loads(invoke(*SEARCH, "--trials", 60, "--folds", 2, "--format", "json").stdout)
    assert document["winner"]["luck_on_run"]["trials"] == 120
    assert document["winner"]["concerns"]
    assert {path.name for path in Path(document["pictures"]).glob("*.png")} == {
        "heatmap.png", "trials.png", "equity.png", "folds.png",
    }  # fmt: skip


def test_each_trials_return_is_that_of_lake_strategy_at_the_prompt(invoke, tmp_path):
    """Through both commands: the winner's trades one by one, other trials' means."""
    export = tmp_path / "trials.parquet"
    options = (
        "--trail-distance",
        "none,.1:.3:.1",
        "--tiers",
        "none",
        "--tiers",
        "1.2x:1.05",
        "--time-stop-hours",
        "none,3",
    )
    document = json.loads(
        invoke(*SEARCH, *options, "--trials", 40, "--export-trials-parquet", export, "--format", "json").stdout
    )
    strategies = {
        name: (
            "strategy",
            "--run",
            "searched",
            "--horizon-hours",
            6,
            "--export-trades-parquet",
            tmp_path / f"{name}.parquet",
        )
        for name in ("winner", "other")
    }
    winner = document["winner"]["strategy"]
    invoke(*strategies["winner"], *as_options(winner))
    expected = {row["alert_id"]: row for row in pq.read_table(tmp_path / "winner.parquet").to_pylist()}
    own = pq.read_table(Path(document["path"], "winner_trades.parquet")).to_pylist()
    assert len(own) > 200
    for row in own:
        trade = expected[row["alert_id"]]
        assert (row["ret"], row["exit_ts_utc"], row["ambiguous"]) == (
            trade["tp_sl_ret"], trade["exit_ts_utc"], trade["ambiguous"],
        )  # fmt: skip
    train = {row["alert_id"] for row in own if row["period"] == "train"}
    for trial in pq.read_table(export).to_pylist()[3::9]:
        invoke(*strategies["other"], *as_options(trial))
        returns = [
            row["tp_sl_ret"]
            for row in pq.read_table(tmp_path / "other.parquet").to_pylist()
            if row["alert_id"] in train
        ]
        assert trial["train_n"] == len(returns)
        assert trial["train_mean_ret"] == pytest.approx(sum(returns) / len(returns), rel=1e-10)


def random_options(rng: random.Random) -> list[object]:
    """Exits at random, extended ones too, small against what these prices do, and the other settings of a trade."""
    options = ["--tp", rng.choice(["none", round(rng.uniform(1.01, 1.3), 3)])]
    options += ["--sl", rng.choice(["none", round(rng.uniform(0.75, 0.99), 3)])]
    if rng.random() < 0.5:
        options += ["--trail-distance", round(rng.uniform(0.01, 0.1), 4), "--trail-activation", rng.choice([0, 0.05])]
    if rng.random() < 0.5:
        trigger = round(rng.uniform(0.02, 0.1), 3)
        options += ["--breakeven-trigger", trigger, "--breakeven-offset", round(trigger - rng.uniform(0.01, 0.1), 4)]
    if rng.random() < 0.5:
        options += ["--tiers", f"1.05x:{rng.uniform(0.9, 1):.3f},{rng.uniform(1.06, 1.2):.3f}x:1.04"]
    if rng.random() < 0.5:
        options += ["--time-stop-hours", round(rng.uniform(0.1, 6), 2)]
    options += ["--fill", rng.choice(["gap", "level"]), "--intrabar-order", rng.choice(["sl_first", "tp_first"])]
    return [*options, "--fee-bps", rng.choice([0, 7.5]), "--slippage-bps", rng.choice([0, 50])]


@pytest.mark.parametrize("seed", range(8))
def test_a_random_strategy_returns_for_each_alert_what_lake_strategy_writes(invoke, tmp_path, seed):
    """A search of one point through both commands' files, from cached records, to the last bit."""
    invoke(*SEARCH, "--trials", 10)
    of_run = ("--run", "searched", "--horizon-hours", 6, *random_options(random.Random(seed)))
    gates = ("--gates", "min_trades=1", "--objective", "mean_ret")
    document = json.loads(invoke("optimizer", *of_run, *gates, "--format", "json").stdout)
    invoke("strategy", *of_run, "--export-trades-parquet", tmp_path / "trades.parquet")
    names = ("ret", "ret_worst", "ret_best", "ambiguous", "exit_ts_utc")
    expected = {
        row["alert_id"]: [row["tp_sl_ret" if name == "ret" else name] for name in names]
        for row in pq.read_table(tmp_path / "trades.parquet").to_pylist()
    }
    own = pq.read_table(Path(document["path"], "winner_trades.parquet")).to_pylist()
    assert len(own) == len(expected) - document["folds"][0]["purged_alerts"] > 200
    for row in own:
        assert [row[name] for name in names] == expected[row["alert_id"]]


def as_options(strategy: dict[str, object]) -> list[object]:
    options: list[object] = []
    for name in ("tp", "sl", "time_stop_hours", "trail_distance", "trail_activation", "breakeven_trigger"):
        if strategy[name] is not None or name in ("tp", "sl"):
            options += [f"--{name.replace('_', '-')}", "none" if strategy[name] is None else strategy[name]]
    if strategy["tiers"]:
        options += ["--tiers", strategy["tiers"] if isinstance(strategy["tiers"], str) else "1.2x:1.05"]
    return options


def test_csv_prints_every_trial(invoke):
    rows = list(csv.DictReader(io.StringIO(invoke(*SEARCH, "--trials", 12, "--format", "csv").stdout)))
    assert [row["trial"] for row in rows] == [str(number) for number in range(12)]
    winner = json.loads(invoke(*SEARCH, "--trials", 12, "--format", "json").stdout)["winner"]
    assert float(rows[winner["trial"]]["train_mean_ret"]) == winner["train"]["mean_ret"]


def test_callers_and_days_are_selected(invoke):
    document = json.loads(
        invoke(*SEARCH, "--trials", 5, "--caller", "caller-1", "--caller", "caller-2", "--from", "2025-05-03",
               "--gates", "min_trades=1", "--format", "json").stdout
    )  # fmt: skip
    rows = pq.read_table(Path(document["path"], "winner_trades.parquet")).to_pylist()
    assert {row["caller"] for row in rows} == {"caller-1", "caller-2"}
    assert min(row["entry_ts_utc"] for row in rows).date().isoformat() >= "2025-05-03"


def test_no_trial_passing_the_gates_is_exit_code_1(invoke):
    gates = ("--gates", "min_trades=5000,max_drawdown=1")
    shown = invoke(*SEARCH, "--trials", 5, *gates, "--folds", 2, exit_code=1)
    assert "none: no trial passes the gates: of 5 trials on " in shown.stdout
    assert " train alerts 5 fail min_trades. Choose easier gates" in shown.stdout
    assert "all test trades together: n 0" in shown.stdout
    without = ("--tp", "none", "--sl", "none", "--objective", "final_equity")
    shown = invoke("optimizer", "--run", "searched", "--horizon-hours", 6, *without, exit_code=1)
    assert "none: final_equity has no value on train for any of the 1 trials that pass the gates" in shown.stdout


def test_the_command_that_is_printed_trades_the_winner(invoke):
    """Exact numbers, other settings, days and callers included."""
    search = ("optimizer", "--run", "searched", "--horizon-hours", 5.25, "--from", "2025-05-03", "--caller", "caller-1",
              "--caller", "caller-2", "--tp", "1.12345678:1.5:.1", "--sl", ".71234567", "--tiers", "1.123456x:1.01234",
              "--fill", "level", "--fee-bps", 12.3456789, "--gates", "min_trades=1")  # fmt: skip
    document = json.loads(invoke(*search, "--format", "json").stdout)
    (line,) = [line for line in invoke(*search).stdout.splitlines() if line.startswith("trade it")]
    words = shlex.split(line.removeprefix("trade it"))
    assert words[:2] == ["lake", "strategy"]
    trades = json.loads(invoke(*words[1:], "--format", "json").stdout)
    found = pq.read_table(Path(trades["path"], "trades.parquet"))
    expected = {row["alert_id"]: row["tp_sl_ret"] for row in found.to_pylist()}
    own = pq.read_table(Path(document["path"], "winner_trades.parquet")).to_pylist()
    assert {row["alert_id"]: row["ret"] for row in own}.items() <= expected.items()
    assert len(expected) == len(own) + document["folds"][0]["purged_alerts"]


def test_the_store_gets_every_trial_once(invoke, tmp_path):
    database = tmp_path / "alerts.duckdb"
    duckdb.connect(str(database)).execute("CREATE TABLE notes AS SELECT 1 AS mine").close()
    arguments = (*SEARCH, "--trials", 30, "--folds", 2, "--duckdb", database, "--store-duckdb")
    assert "stored in" in invoke(*arguments).stderr
    assert "is there already, nothing changed in" in invoke(*arguments).stderr
    with duckdb.connect(str(database)) as connection:
        runs = connection.sql("SELECT result_key, run_id, alerts, trials, winner FROM optimizer.runs_d").fetchall()
        assert [row[1:4] for row in runs] == [("searched", 264, 60)]
        counted = connection.sql(
            "SELECT count(*), count(DISTINCT trial_id), min(result_key) FROM optimizer.trials_f"
        ).fetchall()
        assert counted == [(60, 60, runs[0][0])]
        best = connection.sql(
            "SELECT arg_max(trial, objective) FROM optimizer.trials_f WHERE fold = 2 AND failed_gates IS NULL"
        ).fetchall()
        assert best == [(json.loads(runs[0][4])["trial"],)]


def test_a_search_from_alerts_exports_the_run_first_and_says_what_cannot_be_split(tmp_path):
    """`lake demo` in a process of its own, as chDB has one path per process."""

    def lake(*arguments: object) -> subprocess.CompletedProcess[str]:
        process = lake_process(tmp_path / "demo-root", *arguments)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    done = lake("demo")
    assert done.returncode == 0, done.stderr
    found = list((tmp_path / "demo-root").rglob("alerts.csv"))
    alerts = found[0] if found else Path(__file__).parents[2] / "examples" / "alerts.csv"
    arguments = ("optimizer", "--alerts", alerts, "--interval", "1m", "--window", "pre52_post4948", "--trials", 20)
    refused = lake(*arguments)
    assert refused.returncode == 2
    assert "nothing to train on" in refused.stderr
    assert "Give a shorter horizon" in refused.stderr
    done = lake(*arguments, "--horizon-hours", 1, "--gates", "min_trades=3", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winner"]["luck_on_run"]["trials"] == 20


def trials_of(root: Path) -> bytes:
    (found,) = root.glob("results/run_id=searched/optimize=*/trials.parquet")
    return found.read_bytes()


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_real_ctrl_c_keeps_what_was_evaluated_and_resume_ends_with_the_same_bytes(root, tmp_path, sampler):
    trials = {"random": 12_000, "tpe": 150}[sampler]
    arguments = (*SEARCH, "--tp", "1.1:2:.001", "--sampler", sampler, "--trials", trials)
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    process = lake_process(whole, *arguments, "-j", 2)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr

    process = lake_process(root, *arguments, "-j", 1)
    ledger = root / "results/run_id=searched/ledger"
    deadline = time.monotonic() + 120
    while not list(ledger.rglob("*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "the same command with --resume goes on" in stderr
    assert not list(root.glob("results/run_id=searched/optimize=*/result.json"))
    kept = Ledger(LocalStore(root), "searched").count().trials
    assert 0 < kept < trials
    process = lake_process(root, *arguments, "-j", 2, "--resume")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "batches of trials of this search are there already and are used" in stderr
    assert trials_of(root) == trials_of(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tp", "1:2"), "neither a value such as 2.0, nor a range"),
        (("--tp", "3:2:.1"), "is empty"),
        (("--sl", "1.2"), "sl 1.2 cannot work"),
        (("--sl", ".3:.6:0"), "is empty"),
        (("--trials", 0), "trials 0 cannot work"),
        (("--trials", 10**8), "at most 1,000,000"),
        (("--sampler", "grid", "--trials", 10), "leave trials out"),
        (("--seed", -3), "seed -3 cannot work"),
        (("--folds", 0), "folds 0 cannot work"),
        (("--train-days", -1), "train_days -1 cannot work"),
        (("--train-days", "nan"), "not a finite number"),
        (("--train-days", 14, "--test-days", 7, "--folds", 3), "take 35 days, and the alerts span 22"),
        (("--objective", "money"), "objective money is not known"),
        (("--gates", "luck=1"), "gate 'luck=1' is not known"),
        (("--figures", "means", "--gates", "max_drawdown=.2"), "max_drawdown needs every trade"),
        (("--trail-activation", ".5"), "trail_activation needs trail_distance"),
        (("--fee-bps", 99999), "take the whole price"),
        (("--tp", ""), "neither a value such as 2.0, nor a range"),
        (("--caller", "nobody"), "none of the run's 264 alerts is selected.*by caller-0, caller-follower"),
        (("--horizon-hours", 0), "horizon_hours 0 cannot work"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_the_reason(invoke, arguments, message):
    with pytest.raises((ConfigError, InputError), match=message):
        invoke("optimizer", "--run", "searched", "--horizon-hours", 6, *arguments)


def test_usage_errors_and_unknown_runs(invoke):
    assert "give --run RUN" in invoke("optimizer", exit_code=2).output
    assert "--sampler" in invoke("optimizer", "--sampler", "genetic", exit_code=2).output
    with pytest.raises(RunNotFound):
        invoke("optimizer", "--run", "nowhere")
    assert "and none is given" in invoke(*SEARCH, "--store-duckdb", exit_code=2).output


# --- caches ---------------------------------------------------------------------------------------


def caches(invoke: Invoke) -> dict[str, dict[str, object]]:
    return {row["kind"]: row for row in json.loads(invoke("cache", "ls", "--format", "json").stdout)}


def test_the_log_says_which_cache_is_used_or_made_and_why(root):
    def said(*more: object) -> str:
        process = lake_process(root, *SEARCH, *more)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        return stderr

    first = said("--trials", 5)
    assert "paths: none are cached yet; the slices are read and cached" in first
    assert "records: none are cached yet" in first
    again = said("--trials", 6)
    assert "paths: those cached in " in again
    assert "records: those cached in " in again
    assert "horizon_ms 21600000 -> 18000000" in said("--trials", 6, "--horizon-hours", 5)
    selected = said("--trials", 6, "--caller", "caller-0", "--gates", "min_trades=1")
    assert 'selection callers null -> ["caller-0"]' in selected
    for record in root.glob("results/run_id=searched/*=*/cache.json"):
        record.write_text(record.read_text().replace('"numpy": "', '"numpy": "0.'))
    assert "numpy 0." in said("--trials", 7)
    assert "cached" not in said("--trials", 8, "--no-cache")


def test_caches_are_listed_with_what_is_wrong_and_removed_without_the_results(invoke, root):
    assert invoke("cache", "ls").output == "no caches\n"
    invoke(*SEARCH, "--trials", 5)
    listed = caches(invoke)
    assert set(listed) == {"paths", "records"}
    for row in listed.values():
        assert (row["run"], row["usable"], row["why"]) == ("searched", True, None)
        folder = root / f"results/run_id=searched/{row['kind']}={row['key']}"
        assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    folder = root / f"results/run_id=searched/paths={listed['paths']['key']}"
    file = min(folder.glob("*.paths"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    damaged = caches(invoke)["paths"]
    assert not damaged["usable"]
    assert f"{file.name} is damaged" in damaged["why"]
    results = sorted(root.glob("results/run_id=searched/optimize=*/**/*"))
    assert "1 caches removed" in invoke("cache", "rm", "--unusable").output
    assert set(caches(invoke)) == {"records"}
    assert not folder.exists()
    invoke("cache", "rm", listed["records"]["key"][:5])
    assert caches(invoke) == {}
    assert sorted(root.glob("results/run_id=searched/optimize=*/**/*")) == results != []


@pytest.mark.parametrize("damage", ["cut short", "edited", "of other code", "emptied"])
def test_a_cache_that_is_not_right_is_a_miss_with_a_warning_and_the_answer_is_the_same(invoke, root, caplog, damage):
    expected = invoke(*SEARCH, "--trials", 5, "--format", "csv").stdout
    shutil.rmtree(next(root.glob("results/run_id=searched/optimize=*")))
    for file in itertools.chain(root.glob("results/**/*.paths"), root.glob("results/**/*.records")):
        data = bytearray(file.read_bytes())
        if damage == "cut short":
            data = data[: len(data) // 16 * 8]
        elif damage == "emptied":
            data = bytearray()
        else:
            data[30 if damage == "of other code" else len(data) // 2] ^= 255
        file.write_bytes(data)
    assert invoke(*SEARCH, "--trials", 5, "--format", "csv").stdout == expected
    assert "are damaged or of another version" in caplog.text
    assert all(row["usable"] for row in caches(invoke).values())  # they were made anew


def test_cache_rm_wants_to_know_which(invoke):
    assert "say which" in invoke("cache", "rm", exit_code=2).output
    assert "give it alone" in invoke("cache", "rm", "--all", "abc", exit_code=2).output
    with pytest.raises(InputError, match="no cache has a key that begins with 'abc'"):
        invoke("cache", "rm", "abc")
    assert "0 caches removed" in invoke("cache", "rm", "--all").output


def test_a_cache_of_a_run_that_is_gone_is_of_no_use(invoke, root):
    invoke(*SEARCH, "--trials", 5)
    shutil.rmtree(root / "lake/runs/run_id=searched")
    assert {row["why"] for row in caches(invoke).values()} == {"its run is gone or not sealed"}
