"""`lake baseline`, `lake strategy`, `lake diff-results`: options, exports, the one-command workflow, the store."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

from lake_pipeline.backtest import (
    AlertSelection,
    BaselineConfig,
    CallerConfig,
    StrategyConfig,
    baseline_result,
    open_paths,
    per_alert_result,
    per_caller_result,
    per_trade_result,
    strategy_result,
)
from lake_pipeline.backtest.summary import summarise_baseline
from lake_pipeline.cli import lake as lake_command
from lake_pipeline.demo import demo_alerts_csv
from lake_pipeline.errors import AlreadyExists, ConfigError, InputError, StoreError
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, list_run_ids, load_run
from lake_pipeline_tests.conftest import Market

LAKE = Path(sys.executable).with_name("lake")
Invoke = Callable[..., Result]


@pytest.fixture
def invoke(copied_lake: LocalStore) -> Invoke:
    """A command on a copy of the sealed lake, in this process; errors of the package are raised."""

    def run(*arguments: object, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(lake_command, [*map(str, arguments), "--data-root", copied_lake.uri])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def run(copied_lake: LocalStore) -> Run:
    return load_run(copied_lake, "plain")


@pytest.fixture
def database(market: Market, tmp_path: Path) -> str:
    """The market's alerts as the table of a DuckDB file, with a table of its owner's."""
    path = tmp_path / "alerts.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE SCHEMA canon")
        connection.execute(f"CREATE TABLE canon.alerts_std AS SELECT * FROM read_csv('{market.csv}', all_varchar=true)")
        connection.execute("CREATE TABLE notes AS SELECT 'mine' AS note")
    return str(path)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def sealed_content(store: Any) -> dict[str, bytes]:
    return {name: data for name, data in content(Path(store.uri)).items() if name != "result.json"}


# --- a sealed run --------------------------------------------------------------------------------


def test_baseline_prints_its_tables_and_finds_them_again(invoke: Invoke, copied_lake: LocalStore, run: Run) -> None:
    arguments = ("baseline", "--run", "plain", "--min-trades", 2, "--horizon-hours", 0.25, "--threads", 1)
    first = invoke(*arguments, "--format", "json")
    document = json.loads(first.stdout)
    expected = baseline_result(copied_lake, run, BaselineConfig(horizon_hours=0.25), CallerConfig(min_trades=2))
    assert not expected.created
    assert (document["run"], document["key"], document["state"]) == ("plain", expected.key, "computed")
    assert document["callers"] == expected.caller_stats().to_pylist()
    summary = summarise_baseline(expected.baseline())
    assert {name: document[name] for name in summary} == summary
    assert f"baseline {expected.key} computed: " in first.stderr
    again = invoke(*arguments, "--format", "csv", "--top", 2)
    assert f"baseline {expected.key} was computed before; found, verified and used: " in again.stderr
    rows = list(csv.DictReader(io.StringIO(again.stdout)))
    assert [row["caller"] for row in rows] == expected.caller_stats().column("caller").to_pylist()[:2]
    assert list(rows[0]) == expected.caller_stats().column_names
    shown = invoke(*arguments, "--top", 1).stdout
    assert f"status     ok {summary['statuses']['ok']}, missing {summary['statuses']['missing']}" in shown
    assert f"{summary['censored']} of {summary['statuses']['ok']} ok alerts" in shown
    assert rows[0]["caller"] in shown
    assert rows[1]["caller"] not in shown


def test_summary_counts_what_the_table_holds(copied_lake: LocalStore, run: Run) -> None:
    baseline = baseline_result(copied_lake, run).baseline()
    summary = summarise_baseline(baseline)
    counted = duckdb.sql(
        """
        SELECT count(*), count(*) FILTER (status = 'missing'), count(*) FILTER (status <> 'ok'),
               count(*) FILTER (status = 'ok' AND censoring = 'lower_bound'), median(ath_mult),
               avg((time_to_2x_s IS NOT NULL)::INT) FILTER (status = 'ok')
        FROM baseline
        """
    ).fetchall()
    found = (summary["alerts"], summary["statuses"]["missing"], summary["excluded"], summary["censored"])
    assert [(*found, summary["medians"]["ath_mult"], summary["hit_rates"]["2x"])] == counted
    assert summarise_baseline(baseline.slice(0, 0))["hit_rates"]["2x"] is None


def test_exported_files_are_those_of_the_result(
    invoke: Invoke, copied_lake: LocalStore, run: Run, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("alert", "caller", "trade")}
    exports = ("--export-per-alert-parquet", folders["alert"], "--export-per-caller-parquet", folders["caller"])
    file = tmp_path / "new" / "baseline.parquet"
    for _ in range(2):
        invoke("baseline", "--run", "plain", *exports, "--export-baseline-parquet", file)
        invoke(
            *("strategy", "--run", "plain", "--tp", 1.2, "--export-per-trade-parquet", folders["trade"]),
            *("--export-trades-parquet", tmp_path / "trades.parquet"),
        )
    exits = StrategyConfig(tp=1.2)
    baseline, strategy = baseline_result(copied_lake, run), strategy_result(copied_lake, run, exits)
    paths = open_paths(run, AlertSelection(), BaselineConfig().horizon_ms)
    assert file.read_bytes() == baseline.store.read("baseline.parquet")
    assert (tmp_path / "trades.parquet").read_bytes() == strategy.store.read("trades.parquet")
    assert content(folders["alert"]) == sealed_content(per_alert_result(copied_lake, run, baseline, paths).store)
    assert content(folders["caller"]) == sealed_content(per_caller_result(copied_lake, run, baseline).store)
    trades = per_trade_result(copied_lake, run, strategy, exits, paths)
    assert content(folders["trade"]) == sealed_content(trades.store)
    assert len(content(folders["trade"])) > 5


def test_a_baseline_exported_into_a_folder_is_named_by_its_days(invoke: Invoke, tmp_path: Path) -> None:
    for given in ((), ("--from", "2025-04-30", "--to", "2025-05-03")):
        invoke("baseline", "--run", "plain", *given, "--export-baseline-parquet", tmp_path)
    names = sorted(file.name for file in tmp_path.glob("*.parquet"))
    assert names == ["baseline_cache_2025-04-30_2025-05-03.parquet", "baseline_cache_2025-05-01_2025-05-01.parquet"]


def test_a_folder_of_other_files_or_another_result_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 1 files that are not of this result, such as notes.txt"):
        invoke("baseline", "--run", "plain", "--export-per-alert-parquet", tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    invoke("baseline", "--run", "plain", "--export-per-alert-parquet", tmp_path / "alerts")
    before = content(tmp_path / "alerts")
    shorter = ("--horizon-hours", 0.1, "--export-per-alert-parquet", tmp_path / "alerts")
    with pytest.raises(AlreadyExists):
        invoke("baseline", "--run", "plain", *shorter)
    assert content(tmp_path / "alerts") == before


def test_days_select_alerts_of_the_run(invoke: Invoke) -> None:
    day = ("--from", "2025-05-01", "--to", "2025-05-01")
    selected = json.loads(invoke("baseline", "--run", "plain", *day, "--format", "json").stdout)
    whole = json.loads(invoke("baseline", "--run", "plain", "--format", "json").stdout)
    assert selected["alerts"] == whole["alerts"]
    assert selected["key"] != whole["key"]
    with pytest.raises(InputError, match="none of the run's"):
        invoke("baseline", "--run", "plain", "--from", "2025-05-02")
    with pytest.raises(ConfigError, match="is not a day"):
        invoke("strategy", "--run", "plain", "--to", "May")


ALL_EXITS = {
    "--tp": ("3", "tp", 3.0),
    "--sl": ("0.7x", "sl", 0.7),
    "--intrabar-order": ("tp_first", "intrabar_order", "tp_first"),
    "--fill": ("level", "fill", "level"),
    "--fee-bps": ("10", "fee_bps", 10.0),
    "--slippage-bps": ("5", "slippage_bps", 5.0),
    "--time-stop-hours": ("6", "time_stop_hours", 6.0),
    "--trail-activation": ("0.5", "trail_activation", 0.5),
    "--trail-distance": ("0.2", "trail_distance", 0.2),
    "--breakeven-trigger": ("0.4", "breakeven_trigger", 0.4),
    "--breakeven-offset": ("0.05", "breakeven_offset", 0.05),
    "--tiers": ("2x:1.2,3x:1.6", "tiers", [[2.0, 1.2], [3.0, 1.6]]),
    "--risk-per-trade": ("0.1", "risk_per_trade", 0.1),
}


def parameters(output: str) -> dict[str, Any]:
    record = json.loads(Path(json.loads(output)["path"], "result.json").read_text())
    found: dict[str, Any] = record["identity"]["parameters"]
    return found


def test_every_strategy_option_is_a_parameter_of_the_result(invoke: Invoke) -> None:
    given = [part for option, (text, _, _) in ALL_EXITS.items() for part in (option, text)]
    done = invoke("strategy", "--run", "plain", *given, "--horizon-hours", 1, "--format", "json")
    found = parameters(done.stdout)
    assert found["strategy"] == {name: value for _, name, value in ALL_EXITS.values()}
    assert found["baseline"]["horizon_hours"] == 1.0
    defaults = parameters(invoke("strategy", "--run", "plain", "--format", "json").stdout)["strategy"]
    assert (defaults["tp"], defaults["sl"], defaults["fee_bps"], defaults["slippage_bps"]) == (2.0, 0.5, 30.0, 50.0)
    assert StrategyConfig(**{**defaults, "tiers": ()}) == StrategyConfig()
    none = invoke("strategy", "--run", "plain", "--tp", "none", "--sl", "none", "--format", "json")
    found = parameters(none.stdout)["strategy"]
    assert (found["tp"], found["sl"]) == (None, None)


def test_strategy_prints_its_cases(invoke: Invoke, copied_lake: LocalStore, run: Run) -> None:
    summary = strategy_result(copied_lake, run, StrategyConfig(tp=1.01, sl=0.99)).summary()
    arguments = ("strategy", "--run", "plain", "--tp", 1.01, "--sl", 0.99)
    document = json.loads(invoke(*arguments, "--format", "json").stdout)
    assert {name: document[name] for name in summary} == summary
    assert document["state"] == "found"
    rows = list(csv.DictReader(io.StringIO(invoke(*arguments, "--format", "csv").stdout)))
    assert [row["case"] for row in rows] == ["case", "best_case", "worst_case"]
    for row in rows:
        assert float(row["mean_ret"]) == summary["all"][row["case"]]["mean_ret"]
        assert float(row["ambiguous_share"]) == summary["all"]["ambiguous_share"] > 0
    shown = invoke(*arguments).stdout
    for text in ("best_case", "worst_case", f"ambiguous  {summary['all']['ambiguous_share']:.1%}", "caller-0"):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baseline"], "give --run RUN, or the alerts to make a run of"),
        (["strategy", "--run", "plain", "--interval", "1m", "--chain", "base"], "leave out --chain, --interval"),
        (["baseline", "--run", "plain", "--duckdb", "a.duckdb"], "leave out --duckdb"),
        (["baseline", "--run", "plain", "--store-duckdb"], "and none is given"),
        (["strategy", "--run", "plain", "--tp", "much"], "'much' is neither a multiple of the entry price"),
        (["strategy", "--run", "plain", "--fill", "best"], "Invalid value for '--fill'"),
        (["baseline", "--run", "plain", "--top", "-1"], "Invalid value for '--top'"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(invoke: Invoke, arguments: list[str], message: str) -> None:
    assert message in invoke(*arguments, exit_code=2).stderr.replace("\n", " ")


def test_every_command_teaches_by_an_example() -> None:
    for name in ("baseline", "strategy", "diff-results"):
        shown = CliRunner().invoke(lake_command, [name, "--help"]).output
        assert "Example" in shown
        assert f"      lake {name} " in shown or f"    lake {name} " in shown


# --- alerts: the run is found or made first -------------------------------------------------------


@pytest.fixture
def one_command(
    market: Market, engine: ClickHouseSource, database: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    """A backtest of the market's alerts in DuckDB, on the engine of the tests."""
    monkeypatch.setenv("LAKE_ENGINE_PATH", engine.config.embedded_path)
    settings = ("--interval", "1m", "--window", "pre10_post20", "--table", market.table)

    def run(command: str, *arguments: object) -> Result:
        return invoke(command, "--duckdb", database, *settings, *arguments)

    return run


def test_alerts_make_their_run_once_and_then_find_it(
    one_command: Invoke, invoke: Invoke, copied_lake: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = ("--from", "2025-05-01", "--to", "2025-05-01", "--format", "json")
    first = one_command("baseline", *day)
    document = json.loads(first.stdout)
    assert document["run"] in set(list_run_ids(copied_lake)) - {"plain", "strict"}
    assert f"run {document['run']} is exported and sealed first" in first.stderr

    def fails(*arguments: object) -> None:
        raise AssertionError("candles were asked for again")

    monkeypatch.setattr(ClickHouseSource, "read", fails)
    monkeypatch.setattr(ClickHouseSource, "state", fails)
    again = one_command("baseline", *day)
    assert f"run {document['run']} is sealed already and is used" in again.stderr
    assert json.loads(again.stdout) == {**document, "state": "found"}
    trades = json.loads(one_command("strategy", *day, "--tp", 1.5).stdout)
    assert (trades["run"], trades["state"]) == (document["run"], "computed")
    # The run named is the same question: the days chose its alerts.
    named = json.loads(invoke("baseline", "--run", document["run"], "--format", "json").stdout)
    assert (named["key"], named["state"]) == (document["key"], "found")


def test_store_duckdb_adds_the_result_to_the_alerts_database_once(
    one_command: Invoke, invoke: Invoke, database: str, copied_lake: LocalStore, tmp_path: Path
) -> None:
    for command, arguments in (("baseline", ("--min-trades", 1)), ("strategy", ("--tp", 1.2))):
        done = one_command(command, *arguments, "--store-duckdb", "--format", "json")
        document = json.loads(done.stdout)
        assert f"{command} {document['key']} stored in {database}" in done.stderr
        stored, written = Path(database).read_bytes(), dump(database, tmp_path / f"{command}-1")
        again = one_command(command, *arguments, "--store-duckdb")
        assert f"{command} {document['key']} is there already, nothing changed in {database}" in again.stderr
        # Asked for by the run's name, it is the same result.
        named = ("--run", document["run"], "--duckdb", database, "--store-duckdb")
        assert "is there already" in invoke(command, *named, *arguments).stderr
        assert dump(database, tmp_path / f"{command}-2") == written
        assert Path(database).read_bytes() == stored
    with duckdb.connect(database, read_only=True) as connection:
        tables = connection.execute(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables ORDER BY 1"
        ).fetchall()
        runs = connection.execute(
            "SELECT run_id, parameters::JSON ->> '$.strategy.tp' FROM bt.runs_d JOIN bt.metrics_f USING (result_key) "
            "WHERE caller IS NULL AND \"case\" = 'case'"
        ).fetchall()
        baseline = connection.sql("SELECT * EXCLUDE (result_key) FROM baseline.alert_results_f").to_arrow_table()
        outcomes = connection.execute("SELECT alert_id, tp_sl_ret, exit_ts_utc FROM bt.alert_outcomes_f").fetchall()
        metrics = connection.execute("SELECT count(DISTINCT caller), count(*) FROM bt.metrics_f").fetchall()
    assert [name for (name,) in tables] == [
        "baseline.alert_results_f",
        "baseline.caller_stats_f",
        "baseline.runs_d",
        "bt.alert_outcomes_f",
        "bt.metrics_f",
        "bt.runs_d",
        "canon.alerts_std",
        "main.notes",
    ]
    assert runs == [(document["run"], "1.2")]
    run = load_run(copied_lake, document["run"])
    expected = baseline_result(copied_lake, run, callers=CallerConfig(min_trades=1)).baseline()
    assert baseline.cast(expected.schema).equals(expected)
    trades = strategy_result(copied_lake, run, StrategyConfig(tp=1.2)).trades().to_pylist()
    assert outcomes == [
        (row["alert_id"], row["tp_sl_ret"], row["exit_ts_utc"] and row["exit_ts_utc"].replace(tzinfo=None))
        for row in trades
    ]
    callers = {row["caller"] for row in trades}
    assert metrics == [(len(callers), 3 * (len(callers) + 1))]


def dump(path: str, folder: Path) -> dict[str, bytes]:
    """Every byte of an export of the whole database, but the script that names the folder."""
    with duckdb.connect(path, read_only=True) as connection:
        connection.execute(f"EXPORT DATABASE '{folder}' (FORMAT csv)")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "load.sql"}


def test_a_result_that_cannot_be_stored_is_kept_in_the_lake(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.duckdb").write_text("not a database" * 1000)
    with pytest.raises(StoreError, match="cannot be written"):
        invoke("baseline", "--run", "plain", "--duckdb", tmp_path / "broken.duckdb", "--store-duckdb")
    assert json.loads(invoke("baseline", "--run", "plain", "--format", "json").stdout)["state"] == "found"


def test_the_documented_command_needs_nothing_else(tmp_path: Path) -> None:
    def run_lake(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LAKE, *arguments],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    demo = run_lake("demo")
    assert demo.returncode == 0, demo.stderr
    (tmp_path / "alerts.csv").write_text(demo_alerts_csv())
    with duckdb.connect(tmp_path / "data/alerts.duckdb") as connection:
        connection.execute(
            f"CREATE TABLE user_calls_d AS SELECT * FROM read_csv('{tmp_path}/alerts.csv', all_varchar=true)"
        )
    range_ = ("--duckdb", "data/alerts.duckdb", "--from", "2025-05-01", "--to", "2025-05-02")
    done = run_lake("baseline", *range_, "--min-trades", "1")
    assert done.returncode == 0, done.stderr
    assert "is exported and sealed first" in done.stderr
    assert done.stderr.count("of 64 alerts rejected") == 1
    assert "callers with at least 1 ok alerts: " in done.stdout
    found = run_lake("strategy", *range_, "--format", "json")
    assert "is sealed already and is used" in found.stderr
    run = json.loads((tmp_path / f"data/lake/runs/run_id={json.loads(found.stdout)['run']}/run.json").read_text())
    assert (run["spec"]["interval"], run["spec"]["window"]) == ("1m", "pre52_post4948")
    # Errors of the package are one line and exit code 2, a check that fails is 1.
    missing = run_lake("baseline", "--run", "nope")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "error: no run 'nope' under " in missing.stderr
    bad = run_lake("strategy", "--run", "demo", "--tp", "0.5")
    assert bad.returncode == 2
    assert "error: tp 0.5 cannot work: it must be above 1" in bad.stderr
    (file,) = (tmp_path / "data/results").glob("*/strategy=*/trades.parquet")
    file.write_bytes(b"edited")
    edited = run_lake("strategy", *range_)
    assert edited.returncode == 1
    assert "trades.parquet has other content than was sealed" in edited.stderr
    assert "Traceback" not in edited.stderr


# --- diff-results --------------------------------------------------------------------------------


def test_diff_results_shows_what_moved_and_why(invoke: Invoke) -> None:
    keys = [
        json.loads(invoke("strategy", "--run", "plain", *given, "--format", "json").stdout)["key"]
        for given in ((), ("--tp", "1.1"))
    ]
    shown = invoke("diff-results", *keys, exit_code=1).stdout
    assert shown.startswith(f"strategy {keys[0]} -> {keys[1]}: differs\nparameter  strategy.tp: 2.0 -> 1.1\n")
    assert "metrics of" in shown
    document = json.loads(
        invoke("diff-results", keys[0][:10], keys[1][:10], "--run", "plain", "--format", "json", exit_code=1).stdout
    )
    assert document["cause"] == ["parameters"]
    assert not document["same"]
    rows = list(csv.DictReader(io.StringIO(invoke("diff-results", *keys, "--format", "csv", exit_code=1).stdout)))
    assert len(rows) == len(document["moved"]) > 0
    assert {row["metric"] for row in rows} >= {"tp_sl_ret", "exit_price"}
    top = invoke("diff-results", *keys, "--top", 1, exit_code=1).stdout
    assert len(top.splitlines()) < len(shown.splitlines())
    same = invoke("diff-results", keys[0], keys[0])
    assert same.stdout == f"strategy {keys[0]} -> {keys[0]}: identical\n"
    with pytest.raises(InputError, match="no results under"):
        invoke("diff-results", keys[0], keys[1], "--run", "strict")
