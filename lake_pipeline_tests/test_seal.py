from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.errors import BucketsMissing, RunSealed, StoreError, VerificationFailed
from lake_pipeline.export import export_buckets
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline.seal import cover_run, seal_run
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, seal, sha1_bucket, start_run
from lake_pipeline_tests.conftest import Market


def folder_of(run: Run) -> Path:
    return Path(run.store.uri)


def state_of(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, modification time and inode of every file."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_manifest_written_last(exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(exported)
    cover_run(exported)
    assert not (folder / "manifest.json").exists()
    order: list[str] = []
    link, rename = os.link, Path.rename

    def watched_link(source: Path, target: Path) -> None:
        link(source, target)
        order.append(Path(target).relative_to(folder).as_posix())

    def watched_rename(source: Path, target: Path) -> Path:
        order.append(Path(target).relative_to(folder).as_posix())
        return rename(source, target)

    monkeypatch.setattr(os, "link", watched_link)
    monkeypatch.setattr(Path, "rename", watched_rename)
    seal_run(exported)
    assert order[-1] == "manifest.json"
    assert order.count("manifest.json") == 1
    assert {"SHA256SUMS", "provenance.json"} <= set(order)
    sealed_at = (folder / "manifest.json").stat().st_mtime_ns
    assert max(path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()) == sealed_at


def test_a_seal_that_fails_before_its_end_leaves_no_manifest_and_can_be_repeated(
    exported: Run, sealed_lake: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise OSError(28, "No space left on device")
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(StoreError, match=r"manifest\.json: the disk is full"):
            seal(exported)
    assert not exported.sealed
    seal(exported)
    assert exported.manifest() == load_run(sealed_lake, "plain").manifest()


@pytest.mark.parametrize("done", [[], ["00"], ["00", "01", "7f"]])
def test_missing_buckets_are_counted_and_named(
    lake: LocalStore, market: Market, market_source: ClickHouseSource, done: list[str]
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "plain")
    export_buckets(run, market_source, done)
    with pytest.raises(BucketsMissing) as caught:
        seal_run(run)
    assert f"{256 - len(done)} of 256 buckets missing" in str(caught.value)
    assert caught.value.buckets == tuple(bucket for bucket in ALL_BUCKETS if bucket not in done)
    assert not run.sealed


def test_coverage_of_an_unfinished_run_covers_what_is_there_and_names_what_is_not(
    lake: LocalStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "plain")
    done = market.buckets[:2]
    export_buckets(run, market_source, done)
    result = cover_run(run)
    assert result.missing_buckets == tuple(bucket for bucket in ALL_BUCKETS if bucket not in done)
    finished = pq.ParquetFile(folder_of(load_run(sealed_lake, "plain")) / "outputs/coverage.parquet").read()
    wanted = [row for row in finished.to_pylist() if row["mint_bucket"] in done]
    assert pq.ParquetFile(folder_of(run) / "outputs/coverage.parquet").read().to_pylist() == wanted
    assert (result.alerts, result.missing_alerts) == (len(wanted), len(market.alerts) - len(wanted))
    export_buckets(run, market_source)
    seal(run)
    assert run.manifest() == load_run(sealed_lake, "plain").manifest()


def test_with_one_bucket_done_255_of_256_are_missing(
    lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(lake, market_source, market.csv, MARKET_SPEC, "ci-1")
    export_buckets(run, market_source, ["00"])
    with pytest.raises(BucketsMissing, match=r"run ci-1: 255 of 256 buckets missing: 01\.\.ff\."):
        seal_run(run)


@pytest.mark.parametrize("damage", ["part changed", "part gone", "receipt cut", "receipt of another bucket"])
def test_a_bucket_that_is_not_what_its_receipt_says_counts_as_missing_with_the_reason(
    exported: Run, damage: str
) -> None:
    folder = folder_of(exported)
    part = min((folder / "slices").rglob("*.parquet"))
    bucket = part.parent.name.removeprefix("mint_bucket=")
    receipt = folder / f"receipts/mint_bucket={bucket}.json"
    reason = {
        "part changed": "has other content than its receipt says",
        "part gone": "is missing",
        "receipt cut": "is not a valid record",
        "receipt of another bucket": "its receipt is that of bucket",
    }[damage]
    if damage == "part changed":
        part.write_bytes(part.read_bytes() + b"x")
    elif damage == "part gone":
        part.unlink()
    elif damage == "receipt cut":
        receipt.write_bytes(b"{")
    else:
        other = "00" if bucket != "00" else "01"
        receipt.write_bytes((folder / f"receipts/mint_bucket={other}.json").read_bytes())
    with pytest.raises(BucketsMissing) as caught:
        seal_run(exported)
    assert caught.value.buckets == (bucket,)
    assert f"1 of 256 buckets missing: {bucket}" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "slices/ohlcv/interval=1m/window=pre10_post20/mint_bucket=00/part-0009.parquet",
        "slices/ohlcv/interval=1m/window=pre10_post20/mint_bucket=zz/part-0000.parquet",
        "inputs/more.parquet",
        "outputs/extra.parquet",
        "receipts/mint_bucket=gg.json",
        "receipts/mint_bucket=00.rejected.parquet",
    ],
)
def test_a_foreign_file_stops_the_seal_is_named_and_stays(exported: Run, path: str) -> None:
    foreign = folder_of(exported) / path
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(StoreError) as caught:
        seal(exported)
    assert "1 files in the run's folder are not part of it" in str(caught.value)
    assert path in str(caught.value)
    assert foreign.read_bytes() == b"mine"
    assert not exported.sealed
    foreign.unlink()
    assert seal(exported).created


def test_unfinished_writes_of_dead_processes_do_not_stop_the_seal(exported: Run) -> None:
    dead = folder_of(exported) / "receipts/.lake-tmp-1-0123456789abcdef"
    dead.write_bytes(b"half")
    assert seal(exported).created
    assert not dead.exists()


def test_a_folder_that_vanishes_before_the_seal_is_not_sealed_empty(
    exported: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def vanish(store: LocalStore, *folders: str) -> None:
        folder_of(exported).rename(tmp_path / "gone")

    cover_run(exported)
    monkeypatch.setattr(LocalStore, "settle", vanish)
    with pytest.raises(StoreError, match="vanished while run plain was at work in it"):
        seal_run(exported)
    assert not (folder_of(exported) / "manifest.json").exists()


def test_a_process_that_died_just_after_the_seal_spoils_nothing(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    left = folder_of(run) / ".lake-tmp-1-0123456789abcdef"
    left.hardlink_to(folder_of(run) / "manifest.json")
    assert verify_run(run.store, "plain").ok
    assert not seal_run(run).created
    assert not left.exists()


def test_sealing_a_sealed_run_verifies_it_and_changes_nothing(
    copied_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = load_run(copied_lake, "plain")
    before = state_of(folder_of(run))
    result = seal_run(run)
    assert not result.created
    assert result.manifest == run.manifest()
    start_run(copied_lake, market_source, market.csv, MARKET_SPEC, "plain")
    assert all(bucket.skipped for bucket in export_buckets(run, market_source))
    cover_run(run)
    assert state_of(folder_of(run)) == before


def test_sealing_a_sealed_run_that_was_changed_fails_and_says_what(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    (folder_of(run) / "outputs/coverage.parquet").write_bytes(b"x")
    with pytest.raises(VerificationFailed, match=r"outputs/coverage\.parquet has 1 bytes, sealed with") as caught:
        seal_run(run)
    assert "A sealed run is never repaired" in str(caught.value)
    assert len(caught.value.faults) == 1


def test_buckets_of_a_sealed_run_are_never_written_again(
    copied_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = load_run(copied_lake, "plain")
    bucket = sha1_bucket(market.alerts[0].mint)
    receipt = folder_of(run) / f"receipts/mint_bucket={bucket}.json"
    receipt.unlink()
    before = state_of(folder_of(run))
    with pytest.raises((VerificationFailed, RunSealed), match="is sealed"):
        export_buckets(run, market_source)
    assert state_of(folder_of(run)) == before


def test_coverage_written_before_a_bucket_was_exported_again_is_brought_up_to_date(
    exported: Run, sealed_lake: LocalStore
) -> None:
    cover_run(exported)
    path = folder_of(exported) / "outputs/coverage.parquet"
    path.write_bytes(b"stale")
    (folder_of(exported) / "outputs/rejected_candles.parquet").write_bytes(b"stale")
    seal_run(exported)
    assert exported.manifest() == load_run(sealed_lake, "plain").manifest()


def test_the_coverage_step_counts_what_it_wrote(exported: Run, market: Market) -> None:
    result = cover_run(exported)
    rows = pq.read_table(folder_of(exported) / "outputs/coverage.parquet").to_pylist()
    statuses = [row["status"] for row in rows]
    assert (result.alerts, result.kept, result.dropped) == (len(market.alerts), len(market.alerts), 0)
    assert (result.complete, result.partial, result.insufficient) == tuple(
        statuses.count(status) for status in ("complete", "partial", "insufficient")
    )
    rejected = pq.ParquetFile(folder_of(exported) / "outputs/rejected_candles.parquet")
    assert result.rejected_candles == rejected.metadata.num_rows


def test_the_manifest_says_nothing_of_time_host_place_or_threads(sealed_lake: LocalStore) -> None:
    import platform
    import time

    folder = folder_of(load_run(sealed_lake, "plain"))
    text = (folder / "manifest.json").read_text()
    assert str(sealed_lake.root) not in text
    assert platform.node() not in json.loads(text)["exporter"].values()
    for word in ("thread", "host", "embedded_path", "created_at", time.strftime("%Y-%m-%dT")):
        assert word not in text
    provenance = json.loads((folder / "provenance.json").read_text())
    assert [event["step"] for event in provenance["events"]] == ["alerts", "candles", "manifest"]


def test_the_content_hash_can_be_computed_with_the_shell(sealed_lake: LocalStore) -> None:
    run = load_run(sealed_lake, "plain")
    done = subprocess.run(
        "grep -E '  (inputs|outputs|slices)/' SHA256SUMS | sha256sum",
        shell=True,
        cwd=folder_of(run),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == run.manifest().content_sha256
