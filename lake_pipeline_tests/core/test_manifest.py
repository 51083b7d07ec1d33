from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.canonical import canonical_json, root_hash, sha256_hex
from lake_pipeline.core.manifest import (
    Exporter,
    FileEntry,
    Ledger,
    Manifest,
    Receipt,
    Record,
    RunRecord,
    build_manifest,
    parse_record,
)
from lake_pipeline.core.spec import RunSpec, run_fingerprint
from lake_pipeline.errors import RunError

SPEC = RunSpec("1m", "pre2_post3")
SOURCE = {"database": "d", "table": "t", "columns": {"open": "o"}}
DIGEST = "cd" * 32
FINGERPRINT = run_fingerprint(SPEC, DIGEST, SOURCE)
RUN = RunRecord(run_id="r", run_fingerprint=FINGERPRINT, spec=SPEC.canonical(), alerts_digest=DIGEST, source=SOURCE)
SLICES = "slices/ohlcv/interval=1m/window=pre2_post3"


def entry(path: str, rows: int = 1) -> FileEntry:
    return FileEntry(path=path, sha256=sha256_hex(path.encode()), bytes=10, rows=rows, min_ts_ms=None, max_ts_ms=None)


def receipt(bucket: str, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "run_fingerprint": FINGERPRINT,
        "mint_bucket": bucket,
        "mints": 0,
        "ledger": Ledger(),
        "files": [],
        "rejected": None,
        "coverage": {"alert_id": []},
    }
    return Receipt(**values | changes)


def manifest(receipts: list[Receipt]) -> Manifest:
    coverage = pa.table({"status": ["complete", "partial", "insufficient"], "kept": [True, True, False]})
    return build_manifest(
        RUN,
        Exporter(name="lake-pipeline", version="0"),
        receipts,
        [Record(path="receipts/x", sha256="0" * 64, bytes=1)],
        [entry("inputs/alerts.parquet", 3)],
        [entry("outputs/coverage.parquet", 3)],
        coverage,
        SLICES,
    )


def with_files() -> list[Receipt]:
    receipts = [receipt(bucket) for bucket in ALL_BUCKETS]
    files = [
        entry(f"{SLICES}/mint_bucket=05/part-0000.parquet", 4),
        entry(f"{SLICES}/mint_bucket=05/part-0001.parquet"),
    ]
    ledger = Ledger(source_rows=9, written=5, duplicates=2, rejected=1, outside_kept_windows=1, zero_volume=3)
    receipts[5] = receipt("05", files=files, ledger=ledger)
    return receipts


@pytest.mark.parametrize(
    "coverage",
    [
        {},
        {"missing": [1]},
        {"alert_id": ["a"], "missing": []},
        {"alert_id": ["a"], "missing": ["1"]},
        {"alert_id": ["a"], "missing": [True]},
        {"alert_id": ["a"], "missing": [1.0]},
        {"alert_id": ["a"], "missing": [None]},
        {"alert_id": ["a"], "missing": [2**63]},
        {"alert_id": [["a"]], "missing": [1]},
        {"alert_id": 1},
    ],
    ids=str,
)
def test_a_receipt_whose_coverage_is_no_table_of_integers_is_not_one(coverage: dict[str, Any]) -> None:
    data = canonical_json({**receipt("00").model_dump(mode="json"), "coverage": coverage})
    with pytest.raises(RunError, match="is not a valid record"):
        parse_record(Receipt, data, "receipts/x")


def test_a_manifest_keeps_the_keys_existing_readers_need() -> None:
    stored = manifest(with_files()).model_dump(mode="json")
    assert stored["lake_version"] == "v1"
    assert stored["run_id"] == "r"
    assert stored["exporter"] == {"name": "lake-pipeline", "version": "0"}
    assert stored["inputs"]["alerts"] | {"path": "inputs/alerts.parquet", "rows": 3} == stored["inputs"]["alerts"]
    assert len(stored["inputs"]["alerts"]["sha256"]) == 64
    assert stored["inputs"]["source_snapshot"]["clickhouse"] == SOURCE
    assert stored["slice_spec"] == {
        "dataset": "ohlcv",
        "interval": "1m",
        "window": "pre2_post3",
        "anchor_rule": "floor_to_interval(ts, interval)",
        "chain": "solana",
    }
    assert stored["outputs"] == {SLICES: {"mint_buckets": 1, "files": 2, "rows": 5, "bytes": 20}}
    assert stored["coverage"] == {
        "min_required_pre": 2,
        "target_total": 5,
        "kept_events": 2,
        "dropped_events": 1,
        "complete": 1,
        "partial": 1,
        "insufficient": 1,
    }
    assert stored["run_fingerprint"] == FINGERPRINT
    assert stored["ledger"]["source_rows"] == 9
    assert [set(file) for file in stored["files"]] == [
        {"path", "sha256", "bytes", "rows", "min_ts_ms", "max_ts_ms"}
    ] * 4


def test_the_content_hash_is_the_root_over_the_files_and_not_the_run_id() -> None:
    made = manifest(with_files())
    assert [file.path for file in made.files] == sorted(file.path for file in made.files)
    assert made.content_sha256 == root_hash((file.path, file.sha256) for file in made.files)
    other = made.model_copy(update={"run_id": "other"})
    assert other.content_sha256 == made.content_sha256


def test_a_manifest_is_canonical_json_and_implies_its_run_record() -> None:
    made = manifest(with_files())
    assert made.to_bytes() == canonical_json(made.model_dump(mode="json", exclude={"previous"}))
    assert parse_record(Manifest, made.to_bytes(), "x") == made
    assert made.run_record == RUN


def test_checksums_name_every_sealed_file_once() -> None:
    made = manifest(with_files())
    lines = made.checksums(made.to_bytes()).decode().splitlines()
    named = [line.split("  ", 1)[1] for line in lines]
    wanted = {file.path for file in made.files} | {"receipts/x", "run.json", "manifest.json"}
    assert named == sorted(wanted)
    assert f"{sha256_hex(made.to_bytes())}  manifest.json" in lines


@pytest.mark.parametrize("drop", [0, 100, 255])
def test_a_manifest_needs_all_256_receipts(drop: int) -> None:
    receipts = with_files()
    del receipts[drop]
    with pytest.raises(RunError, match="all 256 buckets"):
        manifest(receipts)


@pytest.mark.parametrize(
    "ledger",
    [
        Ledger(source_rows=1),
        Ledger(written=1),
        Ledger(source_rows=4, written=1, duplicates=1, rejected=1),
        Ledger(source_rows=1, written=1),  # but no file has the row
    ],
)
def test_a_ledger_that_does_not_balance_is_refused_naming_the_bucket(ledger: Ledger) -> None:
    receipts = with_files()
    receipts[0x1F] = receipt("1f", ledger=ledger)
    with pytest.raises(RunError, match="ledger of bucket 1f does not balance"):
        manifest(receipts)


def test_ledgers_add_up_field_by_field() -> None:
    one = Ledger(source_rows=6, written=1, duplicates=2, rejected=3, zero_volume=1)
    both = one + Ledger(source_rows=4, outside_kept_windows=4)
    assert both == Ledger(source_rows=10, written=1, duplicates=2, rejected=3, outside_kept_windows=4, zero_volume=1)
    assert both.balanced


def test_differences_name_each_setting_source_and_alerts() -> None:
    spec = RunSpec("5m", "pre2_post3", strict_coverage=True)
    other = RUN.model_copy(
        update={
            "spec": spec.canonical(),
            "alerts_digest": "ef" * 32,
            "source": SOURCE | {"table": "u", "columns": {"open": "p"}},
        }
    )
    assert RUN.differences(other) == [
        "alerts: 'cdcdcdcdcdcd' != 'efefefefefef'",
        "interval: '1m' != '5m'",
        "source.columns.open: 'o' != 'p'",
        "source.table: 't' != 'u'",
        "strict_coverage: False != True",
    ]
    assert RUN.differences(RUN.model_copy(update={"run_id": "s"})) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"run_id": 5}'])
def test_a_record_that_is_none_is_refused_naming_its_path(data: bytes) -> None:
    with pytest.raises(RunError, match=r"some/run\.json is not a valid record"):
        parse_record(RunRecord, data, "some/run.json")


def test_a_record_with_a_key_too_many_is_refused() -> None:
    data = canonical_json(RUN.model_dump(mode="json") | {"more": 1})
    with pytest.raises(RunError, match="more"):
        parse_record(RunRecord, data, "run.json")
