"""The `lake` command as its users call it: one demo for all, looked at with every command."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lake_pipeline.cli import lake
from lake_pipeline.demo import demo_alerts_csv

LAKE = Path(sys.executable).with_name("lake")


def run_lake(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [LAKE, *arguments],
        cwd=cwd,
        env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `lake demo` has run; its data root is `data`."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_lake("demo", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "demo.json").write_text(done.stdout)
    return folder


def test_demo_prints_one_object_with_the_documented_keys(demo):
    document = json.loads((demo / "demo.json").read_text())
    assert set(document) == {
        "manifest",
        "manifest_path",
        "coverage_path",
        "total_rows",
        "total_files",
        "total_bytes",
    }
    manifest = document["manifest"]
    assert document["total_rows"] == manifest["ledger"]["written"] > 100_000
    assert json.loads(Path(document["manifest_path"]).read_text()) == manifest
    assert pq.read_metadata(document["coverage_path"]).num_rows == 60
    ledger = manifest["ledger"]
    # The demo has everything real data have.
    assert all(ledger[name] > 0 for name in ("duplicates", "rejected", "zero_volume"))
    assert all(manifest["coverage"][name] > 0 for name in ("complete", "partial", "insufficient"))


def test_the_second_demo_verifies_and_changes_nothing(demo):
    run = demo / "data/lake/runs/run_id=demo"
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()}
    again = run_lake("demo", cwd=demo)
    assert again.returncode == 0, again.stderr
    assert "was sealed before; verified, nothing changed" in again.stdout
    assert "0 new" in again.stdout
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*") if path.is_file()} == before


def test_runs_show_and_verify_describe_the_demo(demo):
    (row,) = json.loads(run_lake("runs", "--format", "json", cwd=demo).stdout)
    assert (row["run_id"], row["state"], row["alerts"]) == ("demo", "sealed", 60)
    shown = run_lake("show", "demo", cwd=demo)
    assert shown.returncode == 0
    assert "content_sha256" in shown.stdout
    verified = run_lake("verify", "demo", cwd=demo)
    assert verified.returncode == 0
    assert "verified, nothing differs" in verified.stdout


def test_verify_names_the_fault_and_exits_1(demo, tmp_path):
    shutil.copytree(demo / "data/lake", tmp_path / "data/lake")
    coverage = tmp_path / "data/lake/runs/run_id=demo/outputs/coverage.parquet"
    data = bytearray(coverage.read_bytes())
    data[100] ^= 1
    coverage.write_bytes(data)
    verified = run_lake("verify", "demo", cwd=tmp_path)
    assert verified.returncode == 1
    assert "FAULT  outputs/coverage.parquet has other content than was sealed" in verified.stdout


def test_export_run_slices_takes_a_config_file_and_options_win_over_it(demo):
    alerts = demo / "alerts.csv"
    alerts.write_text(demo_alerts_csv())
    (demo / "run.json").write_text(
        json.dumps({"alerts": "alerts.csv", "interval": "1m", "window": "pre5_post10", "run_id": "from-file"})
    )
    done = run_lake("export-run-slices", "--config", "run.json", "--run-id", "strict", "--strict-coverage", cwd=demo)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((demo / "data/lake/runs/run_id=strict/manifest.json").read_text())
    assert manifest["spec"]["strict_coverage"] is True
    assert manifest["coverage"]["dropped_events"] > 0
    difference = run_lake("diff", "demo", "strict", cwd=demo)
    assert difference.returncode == 1
    assert "setting  window: 'pre52_post4948' -> 'pre5_post10'" in difference.stdout
    same = run_lake("diff", "demo", "demo", cwd=demo)
    assert (same.returncode, same.stdout) == (0, "content: identical\n")


def test_a_run_shows_in_the_instance_that_dagster_home_names(demo, tmp_path):
    import dagster as dg

    home = tmp_path / "home"
    home.mkdir()
    arguments = ("--alerts", str(demo / "data/demo/alerts.csv"), "--interval", "1m", "--window", "pre1_post2")
    done = run_lake("export-run-slices", *arguments, cwd=demo, DAGSTER_HOME=str(home))
    assert done.returncode == 0, done.stderr
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        (record,) = instance.get_runs()
        assert (record.job_name, record.status) == ("export_run", dg.DagsterRunStatus.SUCCESS)
        assert len(instance.get_materialized_partitions(dg.AssetKey("candles"))) == 256
        # By this the UI lists it on the page of its job.
        assert record.tags[".dagster/repository"] == "__repository__@lake_pipeline"


def test_export_slice_equals_the_loaded_candles(demo):
    candles = demo / "data/demo/candles.parquet"
    mint = duckdb.sql(f"SELECT min(token_address) FROM '{candles}'").fetchall()[0][0]
    arguments = ("--mint", mint, "--from", "2025-05-01T06:00:00+02:00", "--to", "2025-05-02", "--interval", "1m")
    done = run_lake("export-slice", *arguments, "--format", "json", cwd=demo)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert Path(result["path"]).name.startswith("slice_20250501_20250502_")
    expected = duckdb.sql(
        f"""
        SELECT count(*), sum(volume) FROM (
            SELECT * FROM '{candles}'
            WHERE token_address = '{mint}' AND timestamp >= '2025-05-01 04:00:00Z'
            AND timestamp < '2025-05-02 00:00:00Z'
            QUALIFY row_number() OVER (PARTITION BY timestamp ORDER BY quality_score DESC) = 1)
        WHERE high >= low
        """
    ).fetchall()
    exported = duckdb.sql(f"SELECT count(*), sum(volume) FROM '{demo / result['path']}'").fetchall()
    assert exported[0] == pytest.approx(expected[0])
    folder = run_lake("export-slice", *arguments, "--partition-by", "mint", "-o", "by_mint", cwd=demo)
    assert folder.returncode == 0, folder.stderr
    assert pq.ParquetFile(demo / f"by_mint/token_address={mint}/data.parquet").metadata.num_rows == expected[0][0]


def test_export_slices_for_alerts_writes_the_same_rows_as_the_run(demo):
    arguments = ("--alerts", "data/demo/alerts.csv", "--interval", "1m", "--window", "pre52_post4948", "-o", "each")
    done = run_lake("export-slices-for-alerts", *arguments, cwd=demo)
    assert done.returncode == 0, done.stderr
    files = sorted((demo / "each").iterdir())
    assert len(files) == 60
    from lake_pipeline import open_run

    run = open_run("demo", str(demo / "data"))
    for alert in run.alerts().slice(0, 5).to_pylist():
        (file,) = [each for each in files if each.name == f"alert_{alert['alert_id']}_{alert['mint'][:8]}.parquet"]
        assert pq.read_table(file).equals(run.slice(alert["alert_id"]))


def test_plan_counts_without_an_engine_and_touches_nothing(tmp_path):
    (tmp_path / "alerts.csv").write_text(demo_alerts_csv())
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(
        lake,
        f"plan --alerts {tmp_path}/alerts.csv --interval 1m --window pre1_post2 --data-root {tmp_path}/data "
        "--format json",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["alerts"], found["rejected"], found["mints"]) == (60, 4, 24)
    assert found["max_rows"] == sum(found["max_rows_by_bucket"].values())
    assert [row["row_number"] for row in found["rejected_rows"]] == [61, 62, 63, 64]
    assert sorted(tmp_path.rglob("*")) == before


def test_csv_output_is_csv(demo):
    rows = list(csv.DictReader(io.StringIO(run_lake("runs", "--format", "csv", cwd=demo).stdout)))
    assert "demo" in {row["run_id"] for row in rows}
    assert all(int(row["candles"]) >= 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["verify", "nope"], 2, "error: no run at "),
        (["show", "../etc"], 2, "error: run_id '../etc' is not usable"),
        (["export-run-slices"], 2, "--interval, --window, --alerts are required"),
        (["plan", "--alerts", "x.csv", "--interval", "1m", "--window", "pre5"], 2, "window 'pre5' is not of the form"),
        (["plan", "--alerts", "x.csv", "--interval", "0s", "--window", "pre5_post5"], 2, "interval '0s' is not"),
        (["plan", "--alerts", "x.csv", "--interval", "1m", "--window", "pre5_post5"], 2, "x.csv does not exist"),
        (["plan", "--alerts", "x.txt", "--interval", "1m", "--window", "pre5_post5"], 2, "of no known kind"),
        (["load-candles", "x.parquet"], 2, "candle file x.parquet does not exist"),
        (["runs", "--format", "xml"], 2, "Invalid value for '--format'"),
    ],
)
def test_bad_input_gets_one_message_and_exit_code_2(tmp_path, arguments, exit_code, message):
    done = run_lake(*arguments, cwd=tmp_path)
    assert done.returncode == exit_code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_server_is_named_and_no_password_shown(tmp_path):
    (tmp_path / "alerts.csv").write_text(demo_alerts_csv())
    done = run_lake(
        *("export-run-slices", "--alerts", "alerts.csv", "--interval", "1m", "--window", "pre1_post2"),
        cwd=tmp_path,
        CLICKHOUSE_HOST="127.0.0.1",
        CLICKHOUSE_PORT="1",
        CLICKHOUSE_PASSWORD="hunter2",
    )
    assert done.returncode == 2
    assert "ClickHouse at 127.0.0.1:1 did not answer" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_load_candles_fills_in_chain_and_interval_and_is_idempotent(tmp_path):
    candles: dict[str, Any] = {
        "mint": ["A", "A", "B"],
        "ts": ["2025-05-01T00:00:00Z", "2025-05-01T00:01:00Z", "2025-05-01T00:00:00Z"],
        **{name: [1.0, 2.0, None] for name in ("open", "high", "low", "close")},
        "volume": [0.0, 1.0, 2.0],
    }
    pq.write_table(pa.table(candles), tmp_path / "c.parquet")

    def load(chain: str, interval: str) -> subprocess.CompletedProcess[str]:
        given = ("--chain", chain, "--interval", interval, "--format", "json")
        return run_lake("load-candles", "c.parquet", *given, cwd=tmp_path)

    first = load("SOL", "1m")
    assert first.returncode == 0, first.stderr
    loaded = json.loads(first.stdout)
    assert (loaded["rows"], loaded["inserted"], loaded["present"]) == (3, 3, 0)
    again = load("solana", "60s")
    loaded = json.loads(again.stdout)
    assert (loaded["rows"], loaded["inserted"], loaded["present"]) == (3, 0, 3)
    missing = run_lake("load-candles", "c.parquet", cwd=tmp_path)
    assert missing.returncode == 2
    assert "has no chain column" in missing.stderr
    assert "--chain" in missing.stderr


def test_ctrl_c_stops_an_export_exits_130_and_the_repeat_completes_it(demo):
    window = ("--interval", "1m", "--window", "pre1_post3", "--run-id", "stopped", "--target-file-mb", "1")
    command = [LAKE, "export-run-slices", "--alerts", "data/demo/alerts.csv", *window]
    run = demo / "data/lake/runs/run_id=stopped"
    process = subprocess.Popen(
        command,
        cwd=demo,
        env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever started the tests may ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    # provenance.json is written by `alerts`, just before the candles begin.
    deadline = time.monotonic() + 120
    while not (run / "provenance.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted; what is committed stays" in stderr
    assert "Traceback" not in stderr
    assert not (run / "manifest.json").exists()
    again = subprocess.run(command, cwd=demo, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (run / "manifest.json").exists()


def test_a_setting_that_cannot_work_leaves_no_run_behind(demo):
    arguments = ("--alerts", "data/demo/alerts.csv", "--interval", "1m", "--window", "pre1_post2", "--run-id", "never")
    done = run_lake("export-run-slices", *arguments, "--threads", "0", cwd=demo)
    assert done.returncode == 2
    assert "threads: Input should be greater than or equal to 1" in done.stderr
    assert not (demo / "data/lake/runs/run_id=never").exists()


def test_export_slice_takes_all_of_history_by_an_early_from(demo):
    mint = pq.read_table(demo / "data/demo/candles.parquet", columns=["token_address"]).column(0)[0].as_py()
    span = ("--from", "0001-01-01", "--to", "9999-12-31", "--interval", "1m")
    done = run_lake("export-slice", "--mint", mint, *span, "--partition-by", "mint", "--format", "json", cwd=demo)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["files"], result["empty"]) == (1, [])
    data = demo / result["path"] / f"token_address={mint}" / "data.parquet"
    assert pq.read_metadata(data).num_rows == result["rows"] > 1000


def test_every_command_explains_itself():
    runner = CliRunner()
    names = set(lake.commands)
    assert names == {
        "demo",
        "load-candles",
        "plan",
        "export-run-slices",
        "export-slice",
        "export-slices-for-alerts",
        "runs",
        "show",
        "verify",
        "diff",
        "reproduce",
        "baseline",
        "strategy",
        "optimizer",
        "cache",
        "diff-results",
        "replay",
        "report",
    }
    for name in names:
        result = runner.invoke(lake, [name, "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 8
