"""`lake replay`: it must say what the tables say."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from lake_pipeline.backtest import (
    BaselineConfig,
    StrategyConfig,
    baseline_result,
    compute_trades,
    open_paths,
    per_trade_result,
    strategy_result,
)
from lake_pipeline.cli import lake as command
from lake_pipeline.cli import main
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import load_run

OPTIONS = "--tp 1.3 --sl 0.8 --trail-activation 0.05 --trail-distance 0.1 --tiers 1.2x:1.01"
STRATEGY = StrategyConfig(tp=1.3, sl=0.8, trail_activation=0.05, trail_distance=0.1, tiers=((1.2, 1.01),))


def replay(lake: LocalStore, *arguments: str) -> Result:
    result = CliRunner().invoke(command, ["replay", "plain", *arguments, "--data-root", str(lake.root)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(lake: LocalStore, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(replay(lake, *arguments, "--format", "json").stdout)
    return found


def test_a_replay_is_the_row_of_the_trades_and_the_candles_of_the_trade(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    result = strategy_result(copied_lake, run, STRATEGY)
    parts = per_trade_result(copied_lake, run, result, STRATEGY, open_paths(run))
    reasons = set()
    for row in result.trades().to_pylist():
        found = document(copied_lake, row["alert_id"], *OPTIONS.split())
        expected = {name: value for name, value in row.items() if name != "equity"}
        assert found["trade"] == json.loads(json.dumps(expected, default=str))
        if row["status"] != "ok":
            assert found["candles"] == []
            assert found["why"].startswith("no trade: ")
            continue
        reasons.add(row["tp_sl_exit_reason"])
        assert found["why"].startswith(f"{row['tp_sl_exit_reason']}: ")
        (file,) = [each.path for each in parts.record.files if f"_{row['alert_id']}_" in each.path]
        candles = pq.read_table(Path(parts.store.uri) / file).to_pylist()
        held = found["candles"][: len(candles)]
        for ours, theirs in zip(held, candles, strict=True):
            assert all(ours[name] == theirs[name] for name in theirs if name != "timestamp")
        assert held[0]["event"].startswith("entry")
        assert held[-1]["event"].endswith(f"exit: {row['tp_sl_exit_reason']}")
        assert all(each["stop_level"] is each["tp_level"] is None for each in found["candles"][len(candles) :])
    assert len(reasons) >= 3  # the market must have something to tell


def test_json_has_the_row_of_the_baseline_and_csv_every_candle(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    row = baseline_result(copied_lake, run).baseline().to_pylist()[0]
    found = document(copied_lake, row["alert_id"])
    assert found["baseline"] == json.loads(json.dumps(row, default=str))
    assert len(found["candles"]) == row["candles"]
    lines = list(csv.DictReader(io.StringIO(replay(copied_lake, row["alert_id"], "--format", "csv").stdout)))
    assert [line["timestamp"] for line in lines] == [candle["timestamp"] for candle in found["candles"]]


def test_the_table_shows_the_beginning_and_the_exit_and_counts_what_it_leaves_out(copied_lake: LocalStore) -> None:
    trades = compute_trades(load_run(copied_lake, "plain"), StrategyConfig(tp=None, sl=None)).to_pylist()
    alert_id = next(row["alert_id"] for row in trades if row["status"] == "ok")
    options = ("--tp", "none", "--sl", "none")
    candles = document(copied_lake, alert_id, *options)["candles"]
    assert len(candles) > 14
    shown = replay(copied_lake, alert_id, *options).stdout
    lines = [line for line in shown.splitlines() if line.startswith(("2025-", "..."))]
    assert [line.split()[0] for line in lines[:5]] == [candle["timestamp"] for candle in candles[:5]]
    assert lines[5].startswith(f"... {len(candles) - 14} more ...")
    assert [line.split()[0] for line in lines[6:]] == [candle["timestamp"] for candle in candles[-9:]]
    assert lines[0].split()[-1] == "entry"
    assert lines[-1].endswith("exit: horizon")
    assert "horizon: no level was reached, left at the last close" in shown


@pytest.mark.parametrize(("name", "magic"), [("trade.png", b"\x89PNG"), ("trade.SVG", b"<?xml")])
def test_the_picture_is_of_the_kind_its_name_says(copied_lake, tmp_path, name, magic) -> None:
    file = tmp_path / name
    assert f"drawn in {file}" in replay(copied_lake, "000-0", "--plot", str(file)).stdout
    assert file.read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "alert 'nobody' is not among the"),
        (["000-0", "--plot", "trade.gif"], "a picture is a .png or a .svg file"),
        (["000-0", "--plot", "no/such/folder/trade.png"], "cannot be written"),
        (["000-0", "--tp", "0.5"], "tp 0.5 cannot work"),
        (["000-0", "--tp", "twice"], "'twice' is neither a multiple"),
        (["000-0", "--tiers", "2x"], "is not of the form 2x:1.2"),
        (["000-0", "--horizon-hours", "0"], "horizon_hours 0 cannot work"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(copied_lake, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.setattr(sys, "argv", ["lake", "replay", "plain", *arguments, "--data-root", str(copied_lake.root)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_run_that_is_not_sealed_is_refused(exported: Any) -> None:
    lake = LocalStore(exported.store.root.parents[2])
    with pytest.raises(Exception, match="is not sealed"):
        replay(lake, "000-0")


def test_a_shorter_horizon_is_a_shorter_path(copied_lake: LocalStore) -> None:
    assert len(document(copied_lake, "000-0", "--horizon-hours", "0.1")["candles"]) <= 6
    assert BaselineConfig().horizon_hours == 48
