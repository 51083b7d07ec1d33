"""Runs that name the one before them: what `verify_chain` walks, and what breaks a chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from lake_pipeline.cli import lake as cli
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.errors import RunNotFound, RunNotSealed
from lake_pipeline.export import export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline.seal import cover_run, seal_run
from lake_pipeline.verify import verify_chain
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, start_run
from lake_pipeline_tests.conftest import Market


def sealed_after(lake: LocalStore, source: ClickHouseSource, market: Market, run_id: str, previous: Run | None) -> Run:
    run = start_run(lake, source, market.csv, MARKET_SPEC, run_id)
    export_buckets(run, source, reuse_from=lake)
    cover_run(run)
    seal_run(run, previous=previous)
    return run


@pytest.fixture
def chain(lake: LocalStore, market: Market, market_source: ClickHouseSource) -> list[Run]:
    """Three runs, oldest first."""
    runs: list[Run] = []
    for run_id in ("monday", "tuesday", "wednesday"):
        runs.append(sealed_after(lake, market_source, market, run_id, runs[-1] if runs else None))
    return runs


def test_a_chain_is_walked_from_the_newest_to_the_first(lake: LocalStore, chain: list[Run]) -> None:
    reports = verify_chain(lake, "wednesday")
    assert [report.run_id for report in reports] == ["wednesday", "tuesday", "monday"]
    assert all(report.ok for report in reports)
    first, second = chain[0].manifest(), chain[1].manifest()
    assert first.previous is None
    assert b"previous" not in chain[0].store.read(layout.MANIFEST)
    assert second.previous == first.as_previous()
    assert second.content_sha256 == first.content_sha256


def test_a_damaged_run_ends_the_walk_with_its_own_fault(lake: LocalStore, chain: list[Run]) -> None:
    path = Path(chain[1].store.uri, layout.receipt_path("00"))
    path.write_bytes(path.read_bytes() + b" ")
    reports = verify_chain(lake, "wednesday")
    assert [report.ok for report in reports] == [True, False]
    assert "receipts/mint_bucket=00.json" in reports[1].faults[0]


def test_a_run_that_was_made_again_is_not_the_one_that_was_named(
    lake: LocalStore, chain: list[Run], market: Market, market_source: ClickHouseSource
) -> None:
    """Same name, same content, whole by itself: only the chain shows that it is another."""
    shutil.rmtree(Path(chain[1].store.uri))
    sealed_after(lake, market_source, market, "tuesday", None)
    reports = verify_chain(lake, "wednesday")
    assert reports[0].faults == ["its previous run 'tuesday' is not the one that was sealed before it"]
    assert reports[1].ok


def test_a_missing_run_is_a_fault_of_the_run_that_names_it(lake: LocalStore, chain: list[Run]) -> None:
    shutil.rmtree(Path(chain[0].store.uri))
    reports = verify_chain(lake, "wednesday")
    assert [report.run_id for report in reports] == ["wednesday", "tuesday"]
    assert "cannot be followed" in reports[1].faults[0]
    with pytest.raises(RunNotFound):
        verify_chain(lake, "monday")


def test_an_edited_previous_is_found_without_the_chain(lake: LocalStore, chain: list[Run]) -> None:
    path = Path(chain[2].store.uri, layout.MANIFEST)
    manifest = json.loads(path.read_bytes())
    manifest["previous"]["run_id"] = "monday"
    path.write_bytes(canonical_json(manifest))
    reports = verify_chain(lake, "wednesday")
    assert any("SHA256SUMS" in fault for fault in reports[0].faults)


def test_an_unsealed_run_cannot_be_the_one_before(
    lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    unsealed = start_run(lake, market_source, market.csv, MARKET_SPEC, "open")
    with pytest.raises(RunNotSealed, match="'open' is not sealed"):
        sealed_after(lake, market_source, market, "next", unsealed)
    assert not load_run(lake, "next").sealed


def test_the_command_walks_the_chain(lake: LocalStore, chain: list[Run]) -> None:
    arguments = ["verify", "wednesday", "--data-root", str(lake.root)]
    alone = CliRunner().invoke(cli, arguments)
    walked = CliRunner().invoke(cli, [*arguments, "--chain"])
    assert (alone.exit_code, walked.exit_code) == (0, 0)
    assert len(alone.stdout.splitlines()) == 1
    assert [line.split()[1] for line in walked.stdout.splitlines()] == ["wednesday", "tuesday", "monday"]
    shutil.rmtree(Path(chain[0].store.uri))
    document = CliRunner().invoke(cli, [*arguments, "--chain", "--format", "json"])
    assert document.exit_code == 1
    assert [run["ok"] for run in json.loads(document.stdout)["runs"]] == [True, False]
