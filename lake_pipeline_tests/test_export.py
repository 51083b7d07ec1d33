"""Runs on the real embedded engine, by the plain functions."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake_pipeline.core import plan as plan_module
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.manifest import Ledger
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import BucketsFailed, ConfigError, RunError, RunMismatch, RunNotFound, SourceError, StoreError
from lake_pipeline.export import BucketResult, export_buckets, identify_run, load_alerts, snapshot_alerts
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore, Sink, StoredFile
from lake_pipeline.run import Run, list_run_ids, load_run
from lake_pipeline.seal import cover_run, seal_run
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    SOLANA,
    STRICT_SPEC,
    T0_MS,
    Alert,
    Candle,
    create_table,
    expected_run,
    float_order,
    mint_in_bucket,
    mint_name,
    seal,
    sealed_run,
    sha1_bucket,
    start_run,
    write_alerts,
)
from lake_pipeline_tests.conftest import Market, SourceFactory

Row = tuple[Any, ...]


def folder_of(run: Run) -> Path:
    return Path(run.store.uri)


def slices_of(folder: Path) -> list[Row]:
    """Every row of a run in the order of buckets, parts and rows."""
    rows: list[Row] = []
    for path in sorted((folder / "slices").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        table = table.set_column(1, "ts", table.column("ts").cast(pa.int64()))
        rows += [tuple(row.values()) for row in table.to_pylist()]
    return rows


def as_slices(candles: list[Candle]) -> list[Row]:
    ordered = sorted(candles, key=lambda c: (sha1_bucket(c.mint), c.mint.encode(), c.ts_ms))
    return [(c.mint, c.ts_ms, c.interval_s, *c.values, c.source) for c in ordered]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slice_bytes(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in contents(folder).items() if path.startswith("slices/")}


# --- the happy path ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [MARKET_SPEC, STRICT_SPEC], ids=["all alerts", "strict"])
def test_a_run_holds_exactly_the_candles_coverage_and_ledger_of_the_design(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, spec: RunSpec
) -> None:
    run = sealed_run(lake, market_source, market.csv, spec)
    expected = expected_run(market.candles, market.alerts, spec, SOLANA)
    assert slices_of(folder_of(run)) == as_slices(expected.written)

    manifest = run.manifest()
    assert manifest.ledger.model_dump() == expected.ledger
    assert manifest.ledger.balanced
    assert min(expected.ledger[name] for name in ("written", "duplicates", "rejected", "zero_volume")) > 0

    rows = pq.read_table(folder_of(run) / "outputs/coverage.parquet").to_pylist()
    assert [row["alert_id"] for row in rows] == [
        a.alert_id for a in sorted(market.alerts, key=lambda a: (a.ts_ms, a.alert_id.encode()))
    ]
    for row in rows:
        wanted = expected.coverage[row["alert_id"]]
        assert {name: row[name] for name in wanted} == wanted
        assert (row["reason"] is None) == row["kept"]

    rejected = pq.read_table(folder_of(run) / "outputs/rejected_candles.parquet")
    found = [
        (row["mint"], int(row["ts"].timestamp() * 1000), row["reason"], float_order(row["volume"]), row["source"])
        for row in rejected.to_pylist()
    ]
    assert found == [(c.mint, c.ts_ms, reason, float_order(c.volume), c.source) for c, reason in expected.rejected]


def test_strict_coverage_really_drops_the_rows_only_dropped_alerts_needed(
    sealed_lake: LocalStore, market: Market
) -> None:
    plain, strict = (load_run(sealed_lake, name) for name in ("plain", "strict"))
    kept, all_rows = slices_of(folder_of(strict)), slices_of(folder_of(plain))
    assert 0 < len(kept) < len(all_rows)
    assert set(map(repr, kept)) < set(map(repr, all_rows))
    counts = strict.manifest().coverage
    assert counts.kept_events > 0
    assert counts.dropped_events > 0
    assert counts.kept_events + counts.dropped_events == len(market.alerts)
    ledger = strict.manifest().ledger
    assert ledger.outside_kept_windows == len(all_rows) - len(kept)


def test_each_bucket_has_a_receipt_and_only_those_with_candles_have_files(
    sealed_lake: LocalStore, market: Market
) -> None:
    folder = folder_of(load_run(sealed_lake, "plain"))
    receipts = {path.name: json.loads(path.read_bytes()) for path in (folder / "receipts").glob("*.json")}
    assert sorted(receipts) == [f"mint_bucket={bucket}.json" for bucket in ALL_BUCKETS]
    written = {sha1_bucket(mint) for mint, *_ in slices_of(folder)}
    assert {path.name[12:] for path in (folder / "slices/ohlcv/interval=1m/window=pre10_post20").iterdir()} == written
    for bucket in ALL_BUCKETS:
        receipt = receipts[f"mint_bucket={bucket}.json"]
        assert bool(receipt["files"]) == (bucket in written)
        assert receipt["mints"] == len({a.mint for a in market.alerts if sha1_bucket(a.mint) == bucket})
        ledger = receipt["ledger"]
        assert ledger["source_rows"] == sum(
            ledger[name] for name in ("written", "duplicates", "rejected", "outside_kept_windows")
        )


def test_a_receipt_covers_its_alerts_in_the_order_of_the_inputs(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    one, two = sorted(mint_in_bucket("5e", n) for n in range(2))
    create_table(engine, table, [Candle(one, T0_MS), Candle(two, T0_MS)])
    # By mint it would be b, d, a, c.
    alerts = [Alert(name, mint, T0_MS + n) for n, (name, mint) in enumerate(zip("abcd", (two, one) * 2, strict=True))]
    run = start_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", alerts), MARKET_SPEC)
    export_buckets(run, source_of(table), ["5e"])
    receipt = json.loads((folder_of(run) / "receipts/mint_bucket=5e.json").read_bytes())
    assert receipt["coverage"]["alert_id"] == ["a", "b", "c", "d"]
    inputs = pq.ParquetFile(folder_of(run) / "inputs/alerts.parquet").read()
    assert inputs.column("alert_id").to_pylist() == ["a", "b", "c", "d"]


def test_the_inputs_are_snapshotted_sorted_with_what_was_rejected(sealed_lake: LocalStore, market: Market) -> None:
    folder = folder_of(load_run(sealed_lake, "plain"))
    alerts = pq.read_table(folder / "inputs/alerts.parquet").to_pylist()
    assert len(alerts) == len(market.alerts)
    assert [(row["ts"], row["alert_id"]) for row in alerts] == sorted((row["ts"], row["alert_id"]) for row in alerts)
    assert {row["chain"] for row in alerts} == {"solana"}
    [rejected] = pq.read_table(folder / "inputs/rejected_alerts.parquet").to_pylist()
    assert (rejected["row_number"], rejected["alert_id"], rejected["reason"]) == (
        len(market.alerts) + 1,
        "unusable",
        "mint is empty",
    )


def test_without_anything_rejected_there_are_no_files_for_it(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    create_table(engine, table, [Candle("a", T0_MS)])
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", [Alert("1", "a", T0_MS)]), MARKET_SPEC)
    assert not [path for path in contents(folder_of(run)) if "rejected" in path]


def test_an_alert_of_a_mint_nobody_traded_is_covered_as_insufficient(sealed_lake: LocalStore) -> None:
    rows = pq.read_table(folder_of(load_run(sealed_lake, "plain")) / "outputs/coverage.parquet").to_pylist()
    [row] = [row for row in rows if row["alert_id"] == "no-candles"]
    assert (row["status"], row["available_total"], row["missing"], row["kept"]) == ("insufficient", 0, 31, True)


def test_candles_of_overlapping_windows_are_stored_once(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    create_table(engine, table, [Candle("a", T0_MS + n * 60_000) for n in range(-20, 60)])
    alerts = [Alert(str(n), "a", T0_MS + n * 60_000) for n in (0, 0, 1, 7, 30)]
    alerts = [Alert(f"{n}", a.mint, a.ts_ms) for n, a in enumerate(alerts)]
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", alerts), MARKET_SPEC)
    rows = slices_of(folder_of(run))
    assert [row[1] for row in rows] == [T0_MS + n * 60_000 for n in range(-10, 51)]
    assert run.manifest().ledger == Ledger(source_rows=61, written=61)


def test_mints_are_sorted_as_bytes_in_a_bucket(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    names = [f"{letter}{n}" for letter in "aZéz" for n in range(2000)]
    names = sorted((name for name in names if sha1_bucket(name) == "11"), key=str.encode)
    assert {name[0] for name in names} == set("aZéz")
    create_table(engine, table, [Candle(name, T0_MS) for name in reversed(names)])
    alerts = [Alert(name, name, T0_MS) for name in names]
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", alerts), MARKET_SPEC)
    assert [row[0] for row in slices_of(folder_of(run))] == names


def test_a_large_bucket_is_cut_into_parts_at_mint_boundaries(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    mints = [mint_in_bucket("3c", n) for n in range(5)]
    quoted = ", ".join(f"'{mint}'" for mint in mints)
    create_table(engine, table)
    engine.call(
        "fill",
        lambda c: c.command(
            f"INSERT INTO {table} SELECT mint, 'sol', fromUnixTimestamp64Milli(toInt64({T0_MS} + number * 1000)), 1, "
            "price, price * 2, price / 2, price, reinterpretAsUInt32(reverse(reinterpretAsString(h))) / 7, 'x', 0, 0 "
            f"FROM (SELECT *, sipHash64(mint, number) AS h, 1 + h / 1e19 AS price FROM (SELECT arrayJoin([{quoted}]) "
            "AS mint, number FROM numbers(12000)))"
        ),
    )
    alerts = [Alert(mint, mint, T0_MS) for mint in mints]
    spec = RunSpec("1s", "pre0_post11999", target_file_mb=1)
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", alerts), spec)
    [summary] = run.manifest().outputs.values()
    assert (summary.mint_buckets, summary.rows) == (1, 60_000)
    assert summary.files > 1
    parts = sorted((folder_of(run) / "slices").rglob("*.parquet"))
    assert [part.name for part in parts] == [f"part-{n:04d}.parquet" for n in range(summary.files)]
    held = [set(pq.ParquetFile(part).read(["mint"]).column("mint").to_pylist()) for part in parts]
    assert sum(map(len, held)) == 5
    assert [row[:2] for row in slices_of(folder_of(run))] == [
        (mint, T0_MS + n * 1000) for mint in sorted(mints) for n in range(12_000)
    ]


def test_the_result_counts_what_came_in_and_what_became_of_it(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        normalised = load_alerts(MARKET_SPEC, market.csv)
    assert f"1 of {len(market.alerts) + 1} alerts rejected: 1 x mint is empty" in caplog.text
    record = identify_run(MARKET_SPEC, normalised, market_source.identity(), None)
    _, result = snapshot_alerts(lake, record, normalised, {})
    assert (result.rows_in, result.alerts, result.rejected, result.outside_range) == (
        len(market.alerts) + 1,
        len(market.alerts),
        1,
        0,
    )
    assert (result.mints, result.callers, result.created) == (7, 4, True)
    assert result.reasons == {"mint is empty": 1}
    _, again = snapshot_alerts(lake, record, normalised, {})
    assert not again.created


# --- how the work is cut does not show ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "threads", "slice_rows"), [(1, 1, 500_000), (1, 3, 20), (100, 2, 20), (10**9, 2, 1), (40, 1, 500_000)]
)
def test_the_memory_budget_slices_and_threads_do_not_show_in_the_bytes(
    lake: LocalStore,
    sealed_lake: LocalStore,
    market: Market,
    market_source: ClickHouseSource,
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
    threads: int,
    slice_rows: int,
) -> None:
    monkeypatch.setattr(plan_module, "SLICE_ROWS", slice_rows)
    run = sealed_run(lake, market_source, market.csv, MARKET_SPEC, "plain", threads=threads, max_rows_in_flight=budget)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()
    assert slice_bytes(folder_of(run)) == slice_bytes(folder_of(load_run(sealed_lake, "plain")))


def test_a_single_bucket_over_the_budget_is_streamed_to_the_same_bytes(
    tmp_path: Path, engine: ClickHouseSource, table: str, source_of: SourceFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mints = [mint_in_bucket("b7", n) for n in range(12)]
    create_table(engine, table, [Candle(mint, T0_MS + n * 60_000) for mint in mints for n in range(30)])
    csv = write_alerts(tmp_path / "a.csv", [Alert(mint, mint, T0_MS + 600_000) for mint in mints])
    whole = sealed_run(LocalStore(tmp_path / "1"), source_of(table), csv, MARKET_SPEC, "r")
    monkeypatch.setattr(plan_module, "SLICE_ROWS", 62)  # two mints to a slice
    streamed = sealed_run(
        LocalStore(tmp_path / "2"), source_of(table), csv, MARKET_SPEC, "r", threads=3, max_rows_in_flight=1
    )
    assert streamed.manifest() == whole.manifest()
    assert len(slices_of(folder_of(streamed))) == 12 * 30


def test_buckets_may_be_asked_for_in_any_order_and_number_of_calls(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "plain")
    backwards = list(reversed(ALL_BUCKETS))
    for part in (backwards[:1], backwards[1:100], backwards[50:]):
        results = export_buckets(run, market_source, part)
        assert [result.bucket for result in results] == part
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


def test_each_bucket_is_reported_once_and_skipped_the_second_time(
    lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC)
    seen: list[BucketResult] = []
    first = export_buckets(run, market_source, on_bucket=seen.append)
    assert sorted(result.bucket for result in seen) == list(ALL_BUCKETS)
    assert not any(result.skipped for result in first)
    before = contents(folder_of(run))
    second = export_buckets(run, market_source)
    assert all(result.skipped for result in second)
    assert [(r.bucket, r.rows, r.bytes, r.files, r.mints, r.alerts, r.ledger) for r in second] == [
        (r.bucket, r.rows, r.bytes, r.files, r.mints, r.alerts, r.ledger) for r in first
    ]
    assert contents(folder_of(run)) == before
    assert sum(result.alerts for result in second) == len(market.alerts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buckets": ["zz"]}, "'zz' is not a bucket: buckets are 00 to ff"),
        ({"buckets": ["0A"]}, "'0A' is not a bucket"),
        ({"threads": 0}, "threads 0 is not between 1 and 256"),
        ({"max_rows_in_flight": 0}, "max_rows_in_flight 0 must be at least 1"),
    ],
)
def test_limits_that_cannot_work_are_refused(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, arguments: dict[str, Any], message: str
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC)
    with pytest.raises(ConfigError, match=message):
        export_buckets(run, market_source, **arguments)


# --- failures and what is left of them ----------------------------------------------------------------


def test_a_failed_bucket_leaves_the_others_committed_and_a_second_run_does_only_it(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "plain")
    bad = sha1_bucket(market.alerts[0].mint)
    obstacle = folder_of(run) / f"slices/ohlcv/interval=1m/window=pre10_post20/mint_bucket={bad}"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_bytes(b"in the way")
    with pytest.raises(BucketsFailed) as caught:
        export_buckets(run, market_source)
    assert list(caught.value.failures) == [bad]
    message = str(caught.value)
    assert "run plain: 1 of 256 buckets failed, 255 are committed" in message
    assert f"\n  {bad}: " in message
    assert str(obstacle) in message
    assert "Run again to export only what is missing" in message
    assert len(list((folder_of(run) / "receipts").glob("*.json"))) == 255
    assert obstacle.read_bytes() == b"in the way"

    obstacle.unlink()
    again = export_buckets(run, market_source)
    assert [result.bucket for result in again if not result.skipped] == [bad]
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


def test_a_source_that_fails_fails_every_bucket_it_was_needed_for_and_says_so_once(
    lake: LocalStore, market: Market, engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    create_table(engine, table, market.candles)
    source = source_of(table)
    run = start_run(lake, source, market.csv, MARKET_SPEC)
    engine.call("drop", lambda c: c.command(f"DROP TABLE {table}"))
    with pytest.raises(BucketsFailed) as caught:
        export_buckets(run, source)
    assert list(caught.value.failures) == market.buckets
    assert all(isinstance(error, SourceError) for error in caught.value.failures.values())
    assert f"{len(market.buckets)} of 256 buckets failed, {256 - len(market.buckets)} are committed" in str(
        caught.value
    )
    assert str(caught.value).count("the table does not exist") == 1


@pytest.mark.parametrize("leftover", ["part-0000.parquet", "part-0007.parquet", ".lake-tmp-1-dead"])
def test_leftovers_of_an_interrupted_attempt_are_cleared(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource, leftover: str
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "plain")
    bucket = sha1_bucket(market.alerts[0].mint)
    path = folder_of(run) / f"slices/ohlcv/interval=1m/window=pre10_post20/mint_bucket={bucket}/{leftover}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    (folder_of(run) / "receipts").mkdir()
    (folder_of(run) / f"receipts/mint_bucket={bucket}.rejected.parquet").write_bytes(b"half")
    export_buckets(run, market_source)
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


@pytest.mark.parametrize(
    "damage",
    ["receipt cut", "receipt of another run", "receipt of another file", "part cut", "part gone", "part flipped"],
)
def test_a_bucket_whose_receipt_is_not_valid_is_exported_again(
    exported: Run, sealed_lake: LocalStore, market_source: ClickHouseSource, damage: str
) -> None:
    run = exported
    folder = folder_of(run)
    part = min((folder / "slices").rglob("*.parquet"))
    bucket = part.parent.name.removeprefix("mint_bucket=")
    receipt = folder / f"receipts/mint_bucket={bucket}.json"
    if damage == "receipt cut":
        receipt.write_bytes(receipt.read_bytes()[:-30])
    elif damage == "receipt of another run":
        values = json.loads(receipt.read_bytes()) | {"run_fingerprint": "0" * 64}
        receipt.write_text(json.dumps(values))
    elif damage == "receipt of another file":
        values = json.loads(receipt.read_bytes())
        values["files"][0]["path"] = "copy.parquet"
        part.rename(folder / "copy.parquet")
        receipt.write_text(json.dumps(values))
        assert "lists other files than those of its bucket" in str(run.bucket_state(bucket).problem)
        (folder / "copy.parquet").rename(part)
    elif damage == "part cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "part gone":
        part.unlink()
    else:
        data = bytearray(part.read_bytes())
        data[50] ^= 1
        part.write_bytes(data)
    results = export_buckets(run, market_source)
    assert [result.bucket for result in results if not result.skipped] == [bucket]
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


def test_a_receipt_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    exported: Run, market_source: ClickHouseSource
) -> None:
    path = layout.receipt_path("00")

    class Unreadable(LocalStore):
        def read(self, name: str) -> bytes:
            if name == path:
                raise StoreError("cannot read it: the disk reported an I/O error")
            return super().read(name)

    run = replace(exported, store=Unreadable(exported.store.root))
    before = exported.store.read(path)
    for action in (lambda: export_buckets(run, market_source), lambda: seal_run(run), lambda: cover_run(run)):
        with pytest.raises(StoreError, match="I/O error"):
            action()
    assert exported.store.read(path) == before
    assert not exported.sealed


def test_what_goes_while_it_is_looked_at_is_missing(exported: Run, market: Market) -> None:
    """As when another process clears what an interrupted attempt left."""
    bucket = market.buckets[0]
    receipt, part = layout.receipt_path(bucket), layout.part_path(MARKET_SPEC, bucket, 0)

    class Going(LocalStore):
        def read(self, name: str) -> bytes:
            if name == receipt and not self.exists(part):
                self.delete(receipt)
            return super().read(name)

        def open(self, name: str) -> BinaryIO:
            if name == part:
                self.delete(part)
            return super().open(name)

    run = replace(exported, store=Going(exported.store.root))
    assert run.bucket_states([bucket])[0].problem == f"{part} is missing"
    assert run.bucket_states([bucket])[0].problem == "missing"


def test_a_run_that_others_seal_while_its_buckets_are_looked_at_is_taken_as_it_is(
    lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "overtaken")
    export_buckets(run, market_source, ALL_BUCKETS[1:])

    class Overtaken(LocalStore):
        """After the list of the receipts there are, another process commits the one that lacks and seals."""

        def files(self, path: str = "") -> list[StoredFile]:
            found = super().files(path)
            if path == layout.RECEIPTS and not run.sealed:
                export_buckets(run, market_source)
                seal(run)
            return found

    results = export_buckets(replace(run, store=Overtaken(run.store.root)), market_source)
    assert [each.bucket for each in results] == list(ALL_BUCKETS)
    assert all(each.skipped for each in results)


def test_a_snapshot_that_is_slow_writes_nothing_into_a_run_that_was_sealed_meanwhile(
    lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    normalised = load_alerts(MARKET_SPEC, market.csv)
    without = load_alerts(MARKET_SPEC, write_alerts(lake.root / "fewer.csv", market.alerts))
    assert normalised.rejected.num_rows > without.rejected.num_rows == 0
    assert normalised.digest == without.digest
    record = identify_run(MARKET_SPEC, normalised, market_source.identity(), "slow")

    def seal_it() -> None:
        run, _ = snapshot_alerts(lake, record, without, {})
        export_buckets(run, market_source)
        seal(run)

    quick = threading.Thread(target=seal_it)

    class Slow(LocalStore):
        """After it saw that there are no alerts yet, another process gets some time."""

        def sub(self, path: str) -> LocalStore:
            return Slow(super().sub(path).root)

        def exists(self, path: str) -> bool:
            found = super().exists(path)
            if path == layout.ALERTS and not quick.ident:
                quick.start()
                quick.join(3)
            return found

    snapshot_alerts(Slow(lake.root), record, normalised, {})
    quick.join()
    assert verify_run(load_run(lake, "slow").store, "slow").faults == []


def test_a_folder_that_vanishes_during_the_snapshot_loses_no_rejected_alerts(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource, tmp_path: Path
) -> None:
    normalised = load_alerts(MARKET_SPEC, market.csv)
    record = identify_run(MARKET_SPEC, normalised, market_source.identity(), "plain")

    class Vanishing(LocalStore):
        """The run's folder is moved away when its rejected alerts are there and its alerts are not yet."""

        def sub(self, path: str) -> LocalStore:
            return Vanishing(super().sub(path).root)

        def writer(self, path: str, *, durable: bool = True) -> AbstractContextManager[Sink]:
            if path == layout.ALERTS:
                assert self.exists(layout.REJECTED_ALERTS)
                self.root.rename(tmp_path / "gone")
            return super().writer(path, durable=durable)

    with pytest.raises(StoreError, match="vanished while run plain was at work in it"):
        snapshot_alerts(Vanishing(lake.root), record, normalised, {})
    run, result = snapshot_alerts(lake, record, normalised, {})
    assert result.created
    export_buckets(run, market_source)
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


@pytest.mark.parametrize("blocked", ["inputs/alerts.parquet", "inputs/rejected_alerts.parquet"])
def test_a_snapshot_interrupted_half_way_is_completed_by_the_next(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource, blocked: str
) -> None:
    normalised = load_alerts(MARKET_SPEC, market.csv)
    record = identify_run(MARKET_SPEC, normalised, market_source.identity(), "plain")
    # A folder in the way of either file stops the snapshot there, as a crash or a full disk would.
    obstacle = lake.root / "lake/runs/run_id=plain" / blocked
    obstacle.mkdir(parents=True)
    with pytest.raises(StoreError):
        snapshot_alerts(lake, record, normalised, {})
    obstacle.rmdir()
    run, _ = snapshot_alerts(lake, record, normalised, {})
    export_buckets(run, market_source)
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


# --- identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": "pre10_post21"}, ["window: 'pre10_post20' != 'pre10_post21'", "target_total: 30 != 31"]),
        ({"interval": "5m"}, ["interval: '1m' != '5m'"]),
        ({"chain": "base"}, ["chain: 'solana' != 'base'", "alerts: "]),
        ({"compression": "none"}, ["compression: 'zstd' != 'none'"]),
        ({"strict_coverage": True}, ["strict_coverage: False != True"]),
        ({"target_file_mb": 1}, ["target_file_mb: 512 != 1"]),
    ],
)
def test_a_run_id_of_another_identity_is_refused_naming_what_differs(
    lake: LocalStore,
    market: Market,
    market_source: ClickHouseSource,
    tmp_path: Path,
    changes: dict[str, Any],
    named: list[str],
) -> None:
    csv = write_alerts(tmp_path / "a.csv", [Alert("1", "a", T0_MS)])
    run = start_run(lake, market_source, csv, MARKET_SPEC, "ci-1")
    before = contents(folder_of(run))
    spec = RunSpec(**{"interval": "1m", "window": "pre10_post20"} | changes)
    with pytest.raises(RunMismatch) as caught:
        start_run(lake, market_source, csv, spec, "ci-1")
    message = str(caught.value)
    assert "run_id 'ci-1' exists with another identity" in message
    assert "(existing != requested)" in message
    for difference in named:
        assert difference in message
    assert contents(folder_of(run)) == before
    with pytest.raises(RunMismatch):
        load_run(lake, "ci-1").require(spec)


def test_other_alerts_or_another_table_are_another_identity(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, engine: ClickHouseSource, table: str,
    source_of: SourceFactory, tmp_path: Path,
) -> None:  # fmt: skip
    csv = write_alerts(tmp_path / "a.csv", [Alert("1", "a", T0_MS)])
    run = start_run(lake, market_source, csv, MARKET_SPEC, "ci-1")
    other = write_alerts(tmp_path / "b.csv", [Alert("1", "a", T0_MS + 1)])
    with pytest.raises(RunMismatch, match=r"identity: alerts: '[0-9a-f]{12}' != '[0-9a-f]{12}' \("):
        start_run(lake, market_source, other, MARKET_SPEC, "ci-1")
    create_table(engine, table)
    with pytest.raises(RunMismatch, match=rf"source\.table: '{market.table}' != '{table}'"):
        start_run(lake, source_of(table), csv, MARKET_SPEC, "ci-1")
    assert start_run(lake, market_source, csv, MARKET_SPEC, "ci-1").record == run.record


def test_without_a_run_id_it_comes_from_the_content_and_is_the_same_tomorrow(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, tmp_path: Path
) -> None:
    one = start_run(lake, market_source, market.csv, MARKET_SPEC)
    two = start_run(LocalStore(tmp_path / "elsewhere"), market_source, market.csv, MARKET_SPEC)
    assert one.run_id == two.run_id == f"1m-pre10_post20-{one.record.run_fingerprint[:12]}"
    assert folder_of(one) == lake.root / f"lake/runs/run_id={one.run_id}"
    other = start_run(lake, market_source, market.csv, STRICT_SPEC)
    assert list_run_ids(lake) == sorted([one.run_id, other.run_id])


def test_edited_alerts_of_a_run_are_noticed(lake: LocalStore, market: Market, market_source: ClickHouseSource) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC)
    path = folder_of(run) / "inputs/alerts.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(1), path, store_schema=False)
    with pytest.raises(RunError, match=r"is not what was snapshotted"):
        export_buckets(run, market_source)


def test_a_run_that_is_not_there_is_named_with_those_that_are(lake: LocalStore, sealed_lake: LocalStore) -> None:
    with pytest.raises(RunNotFound, match=r"no run 'x' under .*no runs here yet"):
        load_run(lake, "x")
    with pytest.raises(RunNotFound, match="runs here: plain, strict"):
        load_run(sealed_lake, "x")
    with pytest.raises(ConfigError, match="is not usable"):
        load_run(sealed_lake, "../plain")


# --- other people's tools --------------------------------------------------------------------------


def test_sha256sum_agrees(sealed_lake: LocalStore) -> None:
    for run_id in ("plain", "strict"):
        folder = folder_of(load_run(sealed_lake, run_id))
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        checked = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
        assert checked == set(contents(folder)) - {"SHA256SUMS", "provenance.json"}


def test_duckdb_pandas_and_polars_read_the_run_by_hive_partitions(sealed_lake: LocalStore, market: Market) -> None:
    folder = folder_of(load_run(sealed_lake, "plain"))
    expected = slices_of(folder)
    bucket = sha1_bucket(expected[0][0])
    in_bucket = sum(sha1_bucket(mint) == bucket for mint, *_ in expected)
    root = folder / "slices" / "ohlcv"

    [(rows, zone_free)] = duckdb.execute(
        "SELECT count(*), min(epoch_ms(ts)) FROM read_parquet(?, hive_partitioning = true, "
        "hive_types = {'mint_bucket': VARCHAR, 'interval': VARCHAR})",
        [f"{root}/**/*.parquet"],
    ).fetchall()
    assert (rows, zone_free) == (len(expected), min(row[1] for row in expected))
    [(rows,)] = duckdb.execute(
        "SELECT count(*) FROM read_parquet(?, hive_partitioning = true, hive_types = {'mint_bucket': VARCHAR}) "
        "WHERE mint_bucket = ? AND \"window\" = 'pre10_post20'",
        [f"{root}/**/*.parquet", bucket],
    ).fetchall()
    assert rows == in_bucket

    frame = pd.read_parquet(root)
    assert len(frame) == len(expected)
    assert set(frame["interval"].astype(str)) == {"1m"}
    assert frame["mint_bucket"].nunique() == len({sha1_bucket(mint) for mint, *_ in expected})
    assert math.isclose(frame["close"].sum(), sum(row[6] for row in expected))

    lazy = pl.scan_parquet(root, hive_partitioning=True, hive_schema={
        "interval": pl.String, "window": pl.String, "mint_bucket": pl.String
    })  # fmt: skip
    assert lazy.select(pl.len()).collect().item() == len(expected)
    assert lazy.filter(pl.col("mint_bucket") == bucket).collect().height == in_bucket


def test_a_mint_named_like_a_path_makes_no_path(
    lake: LocalStore, engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path
) -> None:
    names = ["../../etc/passwd", "a/b", "o'x\\", mint_name("plain"), "{x:String}", "%s", "🚀"]
    create_table(engine, table, [Candle(name, T0_MS) for name in names])
    alerts = [Alert(str(n), name, T0_MS) for n, name in enumerate(names)]
    run = sealed_run(lake, source_of(table), write_alerts(tmp_path / "a.csv", alerts), MARKET_SPEC)
    assert sorted(row[0] for row in slices_of(folder_of(run))) == sorted(names)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("a.csv", "data")] == []
