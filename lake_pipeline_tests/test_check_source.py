"""`check_source`: a source that changes while it is exported is found out, and one that only looks different is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline import export_lake_run_slices
from lake_pipeline.core.candles import CandleBlock
from lake_pipeline.core.plan import build_plan
from lake_pipeline.errors import BucketsFailed, SourceChanged
from lake_pipeline.export import export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.source import SliceRequest
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    T0_MS,
    Alert,
    Candle,
    arrow_candles,
    create_table,
    mint_in_bucket,
    seal,
    start_run,
    write_alerts,
)
from lake_pipeline_tests.conftest import Market, SourceFactory

MINTS = {bucket: mint_in_bucket(bucket) for bucket in ("11", "22", "33")}
ALERTS = [Alert(bucket, mint, T0_MS + 10 * 60_000) for bucket, mint in MINTS.items()]
CANDLES = [Candle(mint, T0_MS + minute * 60_000) for mint in MINTS.values() for minute in range(30)]
EXTRA = Candle(MINTS["22"], T0_MS + 30 * 60_000)


@dataclass
class Changing:
    """A source on a table of its own where something happens once, when so many reads are done."""

    source: ClickHouseSource
    engine: ClickHouseSource
    table: str
    csv: str
    lake: LocalStore

    def after_reads(self, count: int, happen: Callable[[], object]) -> None:
        real, left = self.source.read, [count]

        def read(request: SliceRequest) -> CandleBlock:
            block = real(request)
            left[0] -= 1
            if left[0] == 0:
                happen()
            return block

        self.source.read = read  # type: ignore[method-assign]

    def insert(self, *candles: Candle) -> None:
        self.engine.call("insert", lambda client: client.insert_arrow(self.table, arrow_candles(candles)))

    def command(self, statement: str) -> None:
        self.engine.call("change", lambda client: client.command(statement))

    def start(self, run_id: str = "run") -> Run:
        return start_run(self.lake, self.source, self.csv, MARKET_SPEC, run_id)

    def export(self, run: Run, **options: Any) -> dict[str, str]:
        """Bucket -> why it failed."""
        failures: dict[str, Exception] = {}
        try:
            export_buckets(run, self.source, **{"check_source": True, "threads": 1, **options})
        except BucketsFailed as error:
            failures = error.failures
        assert all(isinstance(each, SourceChanged) and each.transient for each in failures.values())
        return {bucket: str(each) for bucket, each in failures.items()}


@pytest.fixture
def changing(
    engine: ClickHouseSource, table: str, source_of: SourceFactory, tmp_path: Path, lake: LocalStore
) -> Changing:
    create_table(engine, table, CANDLES)
    return Changing(source_of(table), engine, table, write_alerts(tmp_path / "alerts.csv", ALERTS), lake)


def told(run: Run) -> list[tuple[bool, list[str]]]:
    """What provenance says of each export: whether the source was checked, and where it changed."""
    events = json.loads(run.store.read(layout.PROVENANCE))["events"]
    return [(each["check_source"], each["source_changed"]) for each in events if each["step"] == "candles"]


@pytest.mark.parametrize("max_rows_in_flight", [6_000_000, 1])
def test_a_source_that_stays_is_exported_to_the_same_bytes(changing: Changing, max_rows_in_flight: int) -> None:
    plain, checked = changing.start("plain"), changing.start("checked")
    assert changing.export(plain, check_source=False) == {}
    assert changing.export(checked, max_rows_in_flight=max_rows_in_flight) == {}
    receipts = {
        run.run_id: [run.store.read(file.path) for file in run.store.files(layout.RECEIPTS)] for run in (plain, checked)
    }
    assert receipts["plain"] == receipts["checked"]
    assert (told(plain), told(checked)) == ([(False, [])], [(True, [])])


@pytest.mark.parametrize("max_rows_in_flight", [6_000_000, 1])
def test_a_bucket_that_gains_a_row_is_not_committed_until_it_stays(changing: Changing, max_rows_in_flight: int) -> None:
    run = changing.start()
    # One bucket at a time: that of the second one comes in while it is read.
    changing.after_reads(1 if max_rows_in_flight > 1 else 2, lambda: changing.insert(EXTRA))
    failures = changing.export(run, max_rows_in_flight=max_rows_in_flight)
    assert list(failures) == ["22"]
    assert "(30 rows before, 30 read, 31 after)" in failures["22"]
    assert "run again when nothing writes" in failures["22"]
    assert run.bucket_state("22").problem == "missing"
    assert run.bucket_state("11").receipt
    assert told(run) == [(True, ["22"])]

    assert changing.export(run) == {}
    receipt = run.bucket_state("22").receipt
    assert receipt
    assert receipt.ledger.source_rows == 31
    assert told(run) == [(True, ["22"]), (True, [])]
    assert seal(run).created


def test_without_the_check_nobody_notices(changing: Changing) -> None:
    run = changing.start()
    changing.after_reads(1, lambda: changing.insert(EXTRA))
    assert changing.export(run, check_source=False) == {}
    assert told(run) == [(False, [])]


@pytest.mark.parametrize(
    "change",
    [
        "close = 1.25", "volume = 11", "source = NULL", "source = 'other'", "quality_score = 1",
        "ingested_at = ingested_at + 1",
    ],
)  # fmt: skip
def test_a_value_that_changes_is_noticed_whatever_it_is(changing: Changing, change: str) -> None:
    run = changing.start()
    changing.after_reads(
        1,
        lambda: changing.command(
            f"ALTER TABLE {changing.table} UPDATE {change} WHERE token_address = '{MINTS['33']}' "
            f"AND timestamp = fromUnixTimestamp64Milli(toInt64({T0_MS + 15 * 60_000}), 'UTC') "
            "SETTINGS mutations_sync = 2"
        ),
    )
    failures = changing.export(run)
    assert list(failures) == ["33"]
    assert "30 after, with other values" in failures["33"]


def test_a_row_that_comes_a_second_time_or_goes_is_noticed(changing: Changing) -> None:
    run = changing.start()
    twice = CANDLES[0]
    changing.after_reads(
        1, lambda: changing.insert(replace(EXTRA, ts_ms=T0_MS + 15 * 60_000), replace(twice, ts_ms=T0_MS + 11 * 60_000))
    )
    assert list(changing.export(run)) == ["11", "22"]
    changing.after_reads(
        1, lambda: changing.command(f"DELETE FROM {changing.table} WHERE token_address = '{MINTS['22']}'")
    )
    assert list(changing.export(run)) == ["22"]


def test_rows_that_are_only_stored_otherwise_have_not_changed(
    changing: Changing, caplog: pytest.LogCaptureFixture
) -> None:
    changing.insert(*[replace(candle, chain="ethereum") for candle in CANDLES])
    run = changing.start()
    outside = replace(EXTRA, ts_ms=T0_MS + 500 * 60_000)

    def move() -> None:
        changing.command(f"OPTIMIZE TABLE {changing.table} FINAL")
        changing.insert(outside, replace(EXTRA, chain="base"), replace(EXTRA, interval_s=300))

    changing.after_reads(1, move)
    with caplog.at_level(logging.WARNING):
        assert changing.export(run) == {}
    assert told(run) == [(True, [])]
    assert "changed" not in caplog.text


def test_a_bucket_that_changes_after_its_commit_is_named_loudly(
    changing: Changing, caplog: pytest.LogCaptureFixture
) -> None:
    run = changing.start()
    changing.after_reads(3, lambda: changing.insert(EXTRA))
    with caplog.at_level(logging.WARNING):
        assert changing.export(run, max_rows_in_flight=1) == {}
    assert told(run) == [(True, ["22"])]
    assert "in 1 buckets the source has changed since they were committed, or cannot tell (22)" in caplog.text
    assert "export under another run_id" in caplog.text
    receipt = run.bucket_state("22").receipt
    assert receipt
    assert receipt.ledger.source_rows == 30


def test_the_count_is_that_of_the_rows_that_are_read(
    market_source: ClickHouseSource, market: Market, lake: LocalStore
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC)
    plan = build_plan(run.alerts(), MARKET_SPEC)
    request = SliceRequest.of(plan, range(len(plan.mints)))
    found = market_source.fingerprint(request)
    assert found.rows.sum() == len(market_source.read(request).keys) > 200
    assert len(set(found.checksum.tolist())) == len(plan.mints)
    again = market_source.fingerprint(request)
    assert (found.rows == again.rows).all()
    assert (found.checksum == again.checksum).all()


def test_the_setting_reaches_the_export(engine_root: Path, changing: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_ENGINE_PATH", str(engine_root / "clickhouse"))
    settings = {"alerts": changing.csv, "interval": "1m", "window": "pre10_post20", "table": changing.table}
    for run_id, check in (("checked", True), ("plain", False)):
        export_lake_run_slices(
            {**settings, "run_id": run_id, "data_root": str(changing.lake.root), "check_source": check, "reuse": False}
        )
    events = {
        run_id: json.loads(changing.lake.read(f"{layout.run_folder(run_id)}/{layout.PROVENANCE}"))["events"]
        for run_id in ("checked", "plain")
    }
    assert [each["check_source"] for each in events["checked"] if each["step"] == "candles"] == [True]
    assert [each["check_source"] for each in events["plain"] if each["step"] == "candles"] == [False]
