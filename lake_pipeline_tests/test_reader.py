"""`open_run`: what notebooks read is what the files hold, and an unfinished run is not read by accident."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lake_pipeline
from lake_pipeline import open_run
from lake_pipeline.errors import RunError, RunNotFound, RunNotSealed
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, expected_run, window_of
from lake_pipeline_tests.conftest import Market

CHAINS = ("solana", "SOL", "Solana", "sol")


def test_a_slice_holds_exactly_the_valid_candles_of_the_alerts_window(sealed_lake: LocalStore, market: Market) -> None:
    run = open_run("plain", str(sealed_lake.root))
    written = expected_run(market.candles, market.alerts, MARKET_SPEC, CHAINS).written
    for alert in market.alerts:
        start, _, end = window_of(alert.ts_ms, 60, 10, 20)
        expected = [c.ts_ms for c in written if c.mint == alert.mint and start <= c.ts_ms < end]
        found = run.slice(alert.alert_id)
        assert found.column("ts").cast(pa.int64()).to_pylist() == expected
        assert set(found.column("mint").to_pylist()) <= {alert.mint}


def test_candles_of_a_mint_are_all_of_its_rows_in_order_and_none_for_a_stranger(
    sealed_lake: LocalStore, market: Market
) -> None:
    run = open_run("plain", str(sealed_lake.root))
    written = expected_run(market.candles, market.alerts, MARKET_SPEC, CHAINS).written
    mint = market.alerts[0].mint
    found = run.candles(mint)
    assert found.column("ts").cast(pa.int64()).to_pylist() == [c.ts_ms for c in written if c.mint == mint]
    assert run.candles("nobody").num_rows == 0


def test_scan_is_the_whole_run_with_its_buckets(sealed_lake: LocalStore) -> None:
    run = open_run("plain", str(sealed_lake.root))
    table = run.scan().to_table()
    assert table.num_rows == run.manifest.total_rows > 0
    paths = [Path(entry.path) for entry in run.manifest.files if entry.path.startswith("slices/")]
    assert set(table.column("mint_bucket").to_pylist()) == {
        path.parent.name.removeprefix("mint_bucket=") for path in paths
    }
    assert run.scan().to_table(columns=["close"]).to_pandas().shape == (table.num_rows, 1)


def test_alerts_coverage_manifest_and_verify_are_those_of_the_run(sealed_lake: LocalStore) -> None:
    run = open_run("plain", str(sealed_lake.root))
    assert run.sealed
    assert run.alerts().equals(pq.ParquetFile(Path(run.path, "inputs/alerts.parquet")).read())
    assert run.coverage().column("alert_id").equals(run.alerts().column("alert_id"))
    assert run.manifest.run_id == run.run_id == "plain"
    assert run.verify().ok
    assert repr(run) == f"<OpenRun 'plain' at {run.path}>"


def test_a_run_opens_by_its_folder_too(sealed_lake: LocalStore) -> None:
    folder = sealed_lake.root / "lake/runs/run_id=plain"
    assert open_run(str(folder)).manifest == open_run("plain", str(sealed_lake.root)).manifest


def test_the_data_root_defaults_to_the_environment(sealed_lake: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_DATA_ROOT", str(sealed_lake.root))
    assert open_run("plain").run_id == "plain"


def test_an_unsealed_run_is_refused_unless_asked_for(exported: Run) -> None:
    root = str(Path(exported.store.uri).parents[2])
    with pytest.raises(RunNotSealed, match="pass allow_unsealed=True"):
        open_run("plain", root)
    run = open_run("plain", root, allow_unsealed=True)
    assert not run.sealed
    assert run.scan().count_rows() > 0
    with pytest.raises(RunNotSealed):
        _ = run.manifest


def test_unknown_runs_and_alerts_are_named(sealed_lake: LocalStore) -> None:
    root = str(sealed_lake.root)
    with pytest.raises(RunNotFound, match=r"no run 'nope' under .*runs here: plain, strict"):
        open_run("nope", root)
    with pytest.raises(RunError, match="has no alert 'nope'"):
        open_run("plain", root).slice("nope")


def test_every_public_name_exists_and_is_listed() -> None:
    for name in lake_pipeline.__all__:
        assert getattr(lake_pipeline, name) is not None
        assert name in dir(lake_pipeline)
    with pytest.raises(AttributeError):
        _ = lake_pipeline.nothing_of_this_name
