"""Schedules and sensors under a real daemon, with run processes of its own, and over a restart of it."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.automation import AutomationSettings, InboxFile
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore, hash_file
from lake_pipeline.reader import open_run
from lake_pipeline_tests.candles_for_tests import T0_MS, create_table, sha1_bucket, small_market, write_alerts
from lake_pipeline_tests.deployment.dagster_home import DagsterHome
from lake_pipeline_tests.gateway import Gateway


@pytest.fixture
def chat() -> Iterator[tuple[str, list[str]]]:
    """A webhook on loopback and what it was told."""
    told: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", told
        server.shutdown()


def test_everything_fires_under_a_daemon_and_a_restart_repeats_nothing(
    engine: ClickHouseSource, gateway: Gateway, table: str, chat: tuple[str, list[str]], tmp_path: Path
) -> None:
    now = dt.datetime.now(dt.UTC)
    if now.hour == 23 and now.minute >= 45:
        pytest.skip("would run over midnight, where the day of the nightly run is another one")
    candles, alerts = small_market(mints=4)
    days = [now.date() - dt.timedelta(days=back) for back in (2, 1)]
    shifts = [int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp() * 1000) - T0_MS for day in days]
    create_table(engine, table, [replace(each, ts_ms=each.ts_ms + shift) for shift in shifts for each in candles])
    for day, shift in zip(days, shifts, strict=True):
        write_alerts(tmp_path / f"{day}.csv", [replace(each, ts_ms=each.ts_ms + shift) for each in alerts])
    settings = {"interval": "1m", "window": "pre10_post20"}
    source = {"table": table, "threads": 1}
    (tmp_path / "run.json").write_text(json.dumps({"alerts": f"{tmp_path}/{{day}}.csv", **settings, **source}))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    webhook, told = chat
    environ = {
        **gateway.environment,
        "LAKE_DATA_ROOT": str(tmp_path / "data"),
        "LAKE_RUN_CONFIG": str(tmp_path / "run.json"),
        "LAKE_INBOX": str(inbox),
        "LAKE_CATCH_UP_DAYS": "2",
        "LAKE_BUCKETS_PER_RUN": "128",
        "LAKE_FAILURE_WEBHOOK": webhook,
    }
    home = DagsterHome(tmp_path / "home", environ)
    lake = LocalStore(tmp_path / "data")

    def is_sealed(run_id: str) -> bool:
        return lake.exists(f"lake/runs/run_id={run_id}/manifest.json")

    def settled() -> bool:
        return all(run.is_finished for run in home.instance.get_runs())

    # A file in the inbox whose run fails at one bucket, because something is in that bucket's way.
    write_alerts(inbox / "good.csv", [replace(each, ts_ms=each.ts_ms + shifts[1]) for each in alerts])
    write_alerts(inbox / "bad.csv", [replace(each, ts_ms=each.ts_ms + shifts[1]) for each in alerts[1:]])
    bad_bucket = sha1_bucket(alerts[1].mint)
    bad_file = InboxFile("bad.csv", str(inbox / "bad.csv"), hash_file(LocalStore(inbox), "bad.csv").sha256)
    bad_run = str(AutomationSettings(run_config=str(tmp_path / "run.json")).of_file(bad_file).run_id)
    lake.create(
        f"lake/runs/run_id={bad_run}/slices/ohlcv/interval=1m/window=pre10_post20/mint_bucket={bad_bucket}", b""
    )

    home.turn_on("nightly_export", "alerts_inbox", "seal_when_complete", "sealed_run_backtest", "failed_run")
    with home.daemon():
        home.until("a first tick", lambda: home.ticks("sealed_run_backtest"))
        run = {"alerts": str(tmp_path / f"{days[1]}.csv"), "run_id": "multi", **settings}
        home.backfill(["alerts", "candles"], run, source)
        home.until("the multi_run backfill to be sealed", lambda: is_sealed("multi"))
        home.until("the nightly run to be sealed", lambda: is_sealed(f"nightly_{days[1]}"))
        (good,) = home.until("the inbox", lambda: [r for r in home.runs(started_by="alerts_inbox") if r.is_success])
        home.until("the message of the failed run", lambda: told)
        home.until(
            "three backtests", lambda: sum(r.is_success for r in home.runs(started_by="sealed_run_backtest")) == 3
        )
        home.until("all runs to end", settled)

    parts = [each for each in home.instance.get_runs() if "candles" in str(each.asset_selection)]
    ranges = sorted(each.tags["dagster/asset_partition_range_start"] for each in parts)
    assert ranges == ["00", "80"]
    (seal,) = home.runs(started_by="seal_when_complete")
    assert seal.is_success
    assert open_run("multi", str(lake.root)).verify().ok
    (nightly,) = home.runs(started_by="nightly_export")
    assert nightly.tags["lake/run_id"] == f"nightly_{days[1]}"
    assert open_run(good.tags["lake/run_id"], str(lake.root)).alerts().num_rows == len(alerts)
    (message,) = told
    assert f"lake run {bad_run}" in message
    assert f"1 of 256 buckets failed, 255 are committed:\n  {bad_bucket}: " in message

    before = {sensor: home.cursor(sensor) for sensor in ("alerts_inbox", "seal_when_complete", "sealed_run_backtest")}
    home.command("dagster", "schedule", "stop", "nightly_export")
    home.turn_on("catch_up")
    restarted = time.time()

    def inbox_found_nothing_new() -> bool:
        reasons = [each.skip_reason or "" for each in home.ticks("alerts_inbox", since=restarted)]
        return any("2 files known, 0 to be looked at again" in each for each in reasons)

    with home.daemon():
        home.until("the missed day to be sealed", lambda: is_sealed(f"nightly_{days[0]}"))
        home.until("ticks after the restart", lambda: all(home.ticks(each, since=restarted) for each in before))
        home.until("a tick of the inbox that finds nothing new", inbox_found_nothing_new)
        home.until("all runs to end", settled)
    (caught,) = home.runs(started_by="catch_up", run_id=f"nightly_{days[0]}")
    assert caught.is_success
    assert len(home.runs(started_by="alerts_inbox")) == 2
    assert len(home.runs(started_by="seal_when_complete")) == 1
    assert home.cursor("alerts_inbox") == before["alerts_inbox"]
    assert json.loads(str(before["seal_when_complete"]))["sealed"]
    home.close()
