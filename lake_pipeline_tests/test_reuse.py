"""Buckets taken from sealed runs: exactly those that a query would give again, and never any other."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lake_pipeline.core.candles import CandleBlock
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import SourceError
from lake_pipeline.export import BucketResult, export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.queries import CREATE_CANDLES
from lake_pipeline.io.source import SliceRequest
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline.verify import require_verified
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    T0_MS,
    Alert,
    Candle,
    arrow_candles,
    create_table,
    seal,
    sha1_bucket,
    small_market,
    start_run,
    write_alerts,
)
from lake_pipeline_tests.conftest import SourceFactory

CANDLES, ALERTS = small_market()


class Lake:
    """A data root, a table, and what each export asked the engine for."""

    def __init__(self, root: Path, source: ClickHouseSource) -> None:
        self.root = root
        self.store = LocalStore(root)
        self.source = source
        self.asked: set[str] = set()
        read = source.read

        def recording(request: SliceRequest) -> CandleBlock:
            self.asked |= set(request.mints)
            return read(request)

        source.read = recording  # type: ignore[method-assign]

    def export(
        self,
        run_id: str,
        alerts: Sequence[Alert] = ALERTS,
        spec: RunSpec = MARKET_SPEC,
        *,
        reuse: bool = True,
        sealed: bool = True,
    ) -> tuple[Run, list[BucketResult]]:
        path = write_alerts(self.root / f"{run_id}.csv", alerts)
        run = start_run(self.store, self.source, path, spec, run_id)
        self.asked.clear()
        results = export_buckets(run, self.source, reuse_from=self.store if reuse else None)
        if sealed:
            seal(run)
            require_verified(run)
        return run, results


@pytest.fixture
def lake(tmp_path: Path, engine: ClickHouseSource, table: str, source_of: SourceFactory) -> Lake:
    create_table(engine, table, CANDLES)
    return Lake(tmp_path, source_of(table))


def mints_of(alerts: Sequence[Alert]) -> set[str]:
    return {alert.mint for alert in alerts}


def candles_event(run: Run) -> dict[str, object]:
    events = json.loads(run.store.read(layout.PROVENANCE))["events"]
    (found,) = [event for event in events if event["step"] == "candles"]
    return dict(found)


def contents(run: Run) -> dict[str, bytes]:
    skipped = (layout.PROVENANCE,)
    return {file.path: run.store.read(file.path) for file in run.store.files() if file.path not in skipped}


def test_an_identical_export_asks_for_no_candle_and_seals_the_same_bytes(lake: Lake) -> None:
    first, _ = lake.export("run")
    assert lake.asked == mints_of(ALERTS)
    second, results = lake.export("again")
    assert lake.asked == set()
    with_candles = {sha1_bucket(mint) for mint in mints_of(ALERTS)}
    assert {result.bucket for result in results if result.reused} == with_candles
    assert candles_event(second)["reused"] == len(with_candles)
    assert candles_event(second)["reused_from"] == ["run"]

    # The same again without reuse, under the same name in another root: not a byte may differ.
    elsewhere = Lake(lake.root / "elsewhere", lake.source)
    queried, results = elsewhere.export("again", reuse=False)
    assert elsewhere.asked == mints_of(ALERTS)
    assert not any(result.reused for result in results)
    assert contents(queried) == contents(second)
    assert contents(first).keys() == contents(second).keys()


def test_files_are_shared_not_copied_and_outlive_the_run_they_came_from(lake: Lake) -> None:
    first, _ = lake.export("run")
    second, _ = lake.export("again")
    paths = [entry.path for entry in second.manifest().files if layout.is_part(entry.path)]
    assert paths
    for path in paths:
        assert Path(first.store.uri, path).samefile(Path(second.store.uri, path))
        Path(first.store.uri, path).unlink()
    require_verified(second)


def test_one_added_alert_costs_one_bucket(lake: Lake) -> None:
    lake.export("run")
    added = Alert("added", ALERTS[0].mint, ALERTS[0].ts_ms + 60_000)
    run, results = lake.export("more", [*ALERTS, added])
    bucket = sha1_bucket(added.mint)
    assert {sha1_bucket(mint) for mint in lake.asked} == {bucket}
    assert [result.bucket for result in results if result.rows and not result.reused] == [bucket]
    queried, _ = Lake(lake.root / "elsewhere", lake.source).export("more", [*ALERTS, added], reuse=False)
    assert contents(run) == contents(queried)


def test_a_changed_caller_changes_no_candle(lake: Lake) -> None:
    lake.export("run")
    run, _ = lake.export("renamed", [replace(alert, caller="someone else") for alert in ALERTS])
    assert lake.asked == set()
    assert set(run.alerts().column("caller").to_pylist()) == {"someone else"}


@pytest.mark.parametrize(
    "change",
    [
        {"window": "pre4_post11"},
        {"target_file_mb": 1},
        {"compression": "snappy"},
        {"strict_coverage": True},
        {"chain": "base"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_reuse_nothing(lake: Lake, change: dict[str, object]) -> None:
    lake.export("run")
    values = {**MARKET_SPEC.canonical(), "min_required_pre": None, "target_total": None}
    alerts = [replace(alert, chain=None) for alert in ALERTS] if "chain" in change else ALERTS
    _, results = lake.export("other", alerts, RunSpec.from_canonical({**values, **change}))
    assert not any(result.reused for result in results)
    assert lake.asked == mints_of(alerts)


def test_a_moved_alert_is_queried(lake: Lake) -> None:
    lake.export("run")
    moved = [replace(ALERTS[0], ts_ms=ALERTS[0].ts_ms + 1), *ALERTS[1:]]
    lake.export("moved", moved)
    assert {sha1_bucket(mint) for mint in lake.asked} == {sha1_bucket(ALERTS[0].mint)}


CHANGES = {
    "insert": "INSERT INTO {table} SELECT * "
    "REPLACE (volume + 1 AS volume, quality_score + 99 AS quality_score) FROM {table}",
    "update": "ALTER TABLE {table} UPDATE volume = volume + 1 WHERE volume > 0 SETTINGS mutations_sync = 2",
    "delete": "DELETE FROM {table} WHERE volume > 0",
    "drop": "TRUNCATE TABLE {table}",
    "definition": "ALTER TABLE {table} MODIFY COLUMN quality_score DEFAULT 7",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_is_queried_again(lake: Lake, table: str, engine: ClickHouseSource, change: str) -> None:
    first, _ = lake.export("run")
    engine.call("change", lambda c: c.command(CHANGES[change].format(table=table)))
    second, results = lake.export("again")
    assert not any(result.reused for result in results)
    assert lake.asked == mints_of(ALERTS)
    if change != "definition":
        assert first.manifest().content_sha256 != second.manifest().content_sha256


def test_rows_of_other_months_change_nothing(
    tmp_path: Path, engine: ClickHouseSource, table: str, source_of: SourceFactory
) -> None:
    """In the table `lake load-candles` makes, whose parts know their times."""
    engine.call("create", lambda c: c.command(CREATE_CANDLES.format(table=table)))
    engine.call("insert", lambda c: c.insert_arrow(table, arrow_candles(CANDLES)))
    lake = Lake(tmp_path, source_of(table))
    lake.export("run")
    later = [Candle(ALERTS[0].mint, T0_MS + 90 * 86_400_000)]
    engine.call("insert", lambda c: c.insert_arrow(table, arrow_candles(later)))
    lake.export("again")
    assert lake.asked == set()
    engine.call("insert", lambda c: c.insert_arrow(table, arrow_candles(CANDLES)))
    lake.export("once-more")
    assert lake.asked == mints_of(ALERTS)


@pytest.mark.parametrize("engine_type", ["Memory", "Log"])
def test_an_engine_that_cannot_vouch_for_its_rows_is_queried(
    tmp_path: Path, engine: ClickHouseSource, table: str, source_of: SourceFactory, engine_type: str
) -> None:
    create_table(engine, f"{table}_base", CANDLES)
    engine.call(
        "copy", lambda c: c.command(f"CREATE TABLE {table} ENGINE = {engine_type} AS SELECT * FROM {table}_base")
    )
    lake = Lake(tmp_path, source_of(table))
    run, _ = lake.export("run")
    assert candles_event(run)["source_state"] is None
    lake.export("again")
    assert lake.asked == mints_of(ALERTS)


def test_an_unsealed_run_is_not_reused(lake: Lake) -> None:
    lake.export("run", sealed=False)
    lake.export("again")
    assert lake.asked == mints_of(ALERTS)


def test_a_source_that_changed_during_the_export_vouches_for_nothing(
    lake: Lake, table: str, engine: ClickHouseSource
) -> None:
    read = lake.source.read

    def change_and_read(request: SliceRequest) -> CandleBlock:
        engine.call("change", lambda c: c.command(CHANGES["insert"].format(table=table)))
        return read(request)

    lake.source.read = change_and_read  # type: ignore[method-assign]
    run, _ = lake.export("run")
    lake.source.read = read  # type: ignore[method-assign]
    assert candles_event(run)["source_state"] is None
    lake.export("again")
    assert lake.asked == mints_of(ALERTS)


def test_buckets_committed_before_a_crash_are_not_vouched_for(lake: Lake, table: str, engine: ClickHouseSource) -> None:
    """The first attempt left buckets of an older state; only what the second one read is of the state it recorded."""
    early = sha1_bucket(ALERTS[0].mint)
    path = write_alerts(lake.root / "alerts.csv", ALERTS)
    run = start_run(lake.store, lake.source, path, MARKET_SPEC, "run")
    export_buckets(run, lake.source, [early])
    run.store.delete(layout.PROVENANCE)  # as if killed before its event was written
    engine.call("change", lambda c: c.command(CHANGES["update"].format(table=table)))
    export_buckets(run, lake.source)
    seal(run)
    fresh, _ = lake.export("fresh")
    assert {sha1_bucket(mint) for mint in lake.asked} == {early}
    queried, _ = lake.export("queried", reuse=False)
    assert fresh.manifest().content_sha256 == queried.manifest().content_sha256
    assert fresh.manifest().content_sha256 != run.manifest().content_sha256


def some_part(run: Run) -> Path:
    return Path(run.store.uri, next(e.path for e in run.manifest().files if layout.is_part(e.path)))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_receipt(run: Run) -> str:
    bucket = sha1_bucket(ALERTS[0].mint)
    path = Path(run.store.uri, layout.receipt_path(bucket))
    receipt = json.loads(path.read_bytes())
    receipt["ledger"]["zero_volume"] += 1
    path.write_bytes(canonical_json(receipt))
    return bucket


def test_a_damaged_part_is_exported_anew(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = lake.export("run")
    good = first.manifest().content_sha256
    flip(some_part(first))
    second, _ = lake.export("again")
    assert second.manifest().content_sha256 == good
    assert "exported anew, not reused" in caplog.text
    assert len({sha1_bucket(mint) for mint in lake.asked}) == 1


def test_an_edited_receipt_is_exported_anew(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = lake.export("run")
    bucket = edit_receipt(first)
    second, _ = lake.export("again")
    assert {sha1_bucket(mint) for mint in lake.asked} == {bucket}
    assert "not the sealed one" in caplog.text
    assert second.manifest().content_sha256 == first.manifest().content_sha256


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"events": 5}', '{"events": [5]}', '{"events": [{"source_state": {"sha256": 1}}]}',
     '{"events": [{"source_state": [1, 2, "x"], "exported": []}]}'],
)  # fmt: skip
def test_a_damaged_provenance_is_a_reason_to_query(lake: Lake, text: str, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = lake.export("run")
    Path(first.store.uri, layout.PROVENANCE).write_text(text)
    lake.export("again")
    assert lake.asked == mints_of(ALERTS)


def test_a_user_without_system_tables_reuses_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lake.export("run")
    call = lake.source.call

    def refuse(what: str, action: object) -> object:
        if "state" in what:
            raise SourceError("not enough privileges")
        return call(what, action)  # type: ignore[arg-type]

    monkeypatch.setattr(lake.source, "call", refuse)
    with caplog.at_level(logging.INFO):
        lake.export("again")
    assert lake.asked == mints_of(ALERTS)
    assert "nothing is reused" in caplog.text


def test_the_newest_of_several_runs_is_taken(lake: Lake) -> None:
    for run_id in ("b-first", "a-second", "c-third"):
        lake.export(run_id, reuse=False)
    third, _ = lake.export("d-fourth")
    assert candles_event(third)["reused_from"] == ["c-third"]
