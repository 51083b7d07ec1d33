"""`reproduce_run`: what the source gives today against what was sealed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lake_pipeline.cli import lake as cli
from lake_pipeline.errors import ConfigError, RunMismatch, RunNotSealed, VerificationFailed
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.reproduce import reproduce_run
from lake_pipeline.run import Run, load_run
from lake_pipeline.verify import require_verified
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    Candle,
    create_table,
    float_order,
    sealed_run,
    sha1_bucket,
    small_market,
    write_alerts,
)
from lake_pipeline_tests.conftest import Market, SourceFactory

CANDLES, ALERTS = small_market()


@pytest.fixture
def sealed(tmp_path: Path, engine: ClickHouseSource, table: str, source_of: SourceFactory) -> Run:
    create_table(engine, table, CANDLES)
    return sealed_run(
        LocalStore(tmp_path), source_of(table), write_alerts(tmp_path / "a.csv", ALERTS), MARKET_SPEC, "run"
    )


def written(run: Run) -> list[dict[str, object]]:
    receipts = [state.receipt for state in run.bucket_states()]
    return run.candles(file for receipt in receipts if receipt for file in receipt.files).to_pylist()


def replace_candles(engine: ClickHouseSource, table: str, candles: list[Candle]) -> None:
    engine.call("drop", lambda c: c.command(f"DROP TABLE {table} SYNC"))
    create_table(engine, table, candles)


def test_an_unchanged_source_gives_every_byte_again_and_leaves_nothing_behind(
    sealed: Run, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = {file.path: sealed.store.read(file.path) for file in sealed.store.files()}
    found = reproduce_run(sealed, source_of(table), scratch=scratch)
    assert found.identical
    assert (found.buckets, found.changed, found.mints, found.candles) == (256, [], [], [])
    assert list(scratch.iterdir()) == []
    assert {file.path: sealed.store.read(file.path) for file in sealed.store.files()} == before


def test_removed_revised_and_added_candles_are_named_with_their_values(
    sealed: Run, table: str, engine: ClickHouseSource, source_of: SourceFactory
) -> None:
    rows = [row for row in written(sealed) if row["mint"] == ALERTS[0].mint]
    revised, removed = (int(row["ts"].timestamp() * 1000) for row in rows[2:4])  # type: ignore[attr-defined]
    mint, bucket = ALERTS[0].mint, sha1_bucket(ALERTS[0].mint)
    kept = [c for c in CANDLES if (c.mint, c.ts_ms) != (mint, removed)]
    taken = {c.ts_ms for c in CANDLES if c.mint == mint}
    added = next(ts for ts in range(revised, revised + 10**9, 60_000) if ts not in taken)
    changed = [
        replace(c, volume=c.volume + 7, quality_score=9) if (c.mint, c.ts_ms) == (mint, revised) else c for c in kept
    ]
    replace_candles(engine, table, [*changed, Candle(mint, added)])
    found = reproduce_run(sealed, source_of(table))
    assert [each.bucket for each in found.changed] == [bucket]
    (of_mint,) = found.mints
    assert (of_mint.mint, of_mint.only_in_a, of_mint.changed) == (mint, 1, 1)
    by_change = {candle.change: candle for candle in found.candles}
    assert by_change["removed"].ts_ms == removed
    assert by_change["removed"].b is None
    assert by_change["revised"].ts_ms == revised
    a, b = by_change["revised"].a, by_change["revised"].b
    assert a is not None
    assert b is not None
    assert float_order(b["volume"]) != float_order(a["volume"])
    assert {name for name in a if a[name] != b[name]} <= {"volume", "open", "high", "low", "close", "source"}


def test_a_merged_duplicate_changes_the_ledger_and_no_candle(
    sealed: Run, table: str, engine: ClickHouseSource, source_of: SourceFactory
) -> None:
    again = next(c for c in CANDLES if any((c.mint, c.ts_ms) == (r["mint"], _ms(r)) for r in written(sealed)))
    replace_candles(engine, table, [*CANDLES, again])
    found = reproduce_run(sealed, source_of(table))
    (change,) = found.changed
    assert change.bucket == sha1_bucket(again.mint)
    assert change.same_candles
    assert [line.split(":")[0] for line in change.ledger] == ["source_rows", "duplicates"]
    assert found.mints == []


def _ms(row: dict[str, object]) -> int:
    return int(row["ts"].timestamp() * 1000)  # type: ignore[attr-defined]


def test_only_the_buckets_asked_for_are_tried(
    sealed: Run, table: str, engine: ClickHouseSource, source_of: SourceFactory
) -> None:
    replace_candles(engine, table, [])
    changed = sha1_bucket(ALERTS[0].mint)
    quiet = next(b for b in ("00", "01", "02", "03", "04", "05") if b not in {sha1_bucket(a.mint) for a in ALERTS})
    assert reproduce_run(sealed, source_of(table), [quiet]).identical
    found = reproduce_run(sealed, source_of(table), [quiet, changed], max_candles=3)
    assert [each.bucket for each in found.changed] == [changed]
    assert len(found.candles) == 3
    assert sum(each.only_in_a for each in found.mints) > 3


def test_what_cannot_be_compared_is_refused(
    sealed: Run, exported: Run, market: Market, table: str, engine: ClickHouseSource, source_of: SourceFactory
) -> None:
    with pytest.raises(RunNotSealed):
        reproduce_run(exported, source_of(market.table))
    with pytest.raises(RunMismatch, match=r"source\.table"):
        reproduce_run(sealed, source_of(market.table))
    with pytest.raises(ConfigError, match="'zz' is not a bucket"):
        reproduce_run(sealed, source_of(table), ["zz"])
    part = Path(sealed.store.uri, next(e.path for e in sealed.manifest().files if "part-" in e.path))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(VerificationFailed, match="has other content"):
        reproduce_run(sealed, source_of(table))


def test_the_command_says_identical_or_what_changed(
    tmp_path: Path, engine: ClickHouseSource, engine_root: Path, table: str, source_of: SourceFactory
) -> None:
    create_table(engine, table, CANDLES)
    lake = LocalStore(engine_root)
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", ALERTS), MARKET_SPEC, f"run-{table}")
    arguments = ["reproduce", run.run_id, "--data-root", str(engine_root)]
    same = CliRunner().invoke(cli, arguments)
    assert (same.exit_code, same.stdout) == (0, f"identical: 256 of 256 buckets of run {run.run_id}, every byte\n")

    replace_candles(engine, table, [replace(c, volume=c.volume + 1) for c in CANDLES])
    table_text = CliRunner().invoke(cli, arguments)
    assert table_text.exit_code == 1
    assert "buckets of run" in table_text.stdout
    assert "volume" in table_text.stdout
    document = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    assert document.exit_code == 1
    found = json.loads(document.stdout)
    assert found["identical"] is False
    assert {candle["change"] for candle in found["candles"]} == {"revised"}
    assert all(candle["b"]["volume"] == candle["a"]["volume"] + 1 for candle in found["candles"])
    lines = CliRunner().invoke(cli, [*arguments, "--format", "csv"]).stdout.splitlines()
    assert len(lines) == 1 + len(found["candles"])
    require_verified(load_run(lake, run.run_id))
