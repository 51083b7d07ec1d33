"""A sealed run that was tampered with, clumsily or with every hash made right again, does not verify."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.errors import RunNotFound, RunNotSealed, VerificationFailed
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline.verify import require_verified, verify_run
from lake_pipeline_tests.faults.suites import undetected

SLICES = "slices/ohlcv/interval=1m/window=pre10_post20"


def folder_of(lake: LocalStore, run_id: str = "plain") -> Path:
    return lake.root / f"lake/runs/run_id={run_id}"


def faults_of(folder: Path) -> list[str]:
    run_id = folder.name.removeprefix("run_id=")
    return verify_run(LocalStore(folder), run_id).faults


def a_part(folder: Path) -> Path:
    """The largest slice file."""
    return max((folder / "slices").rglob("*.parquet"), key=lambda path: (path.stat().st_size, path.as_posix()))


def bucket_of(part: Path) -> str:
    return part.parent.name.removeprefix("mint_bucket=")


@pytest.mark.parametrize("run_id", ["plain", "strict"])
def test_a_sealed_run_verifies(sealed_lake: LocalStore, run_id: str) -> None:
    run = load_run(sealed_lake, run_id)
    sizes: list[int] = []
    report = verify_run(run.store, run_id, on_file=sizes.append)
    assert (report.faults, report.ok) == ([], True)
    manifest = run.manifest()
    assert report.rows == manifest.total_rows > 0
    assert report.files == len(sizes) == len(manifest.files) + len(manifest.records)
    assert report.bytes == sum(sizes)
    assert require_verified(run) == manifest


def test_provenance_is_not_sealed(copied_lake: LocalStore) -> None:
    (folder_of(copied_lake) / "provenance.json").unlink()
    assert faults_of(folder_of(copied_lake)) == []


def test_a_run_may_be_moved(copied_lake: LocalStore, tmp_path: Path) -> None:
    shutil.move(folder_of(copied_lake), tmp_path / "run_id=plain")
    assert faults_of(tmp_path / "run_id=plain") == []


def test_there_must_be_something_to_verify(exported: Run, tmp_path: Path) -> None:
    with pytest.raises(RunNotSealed, match=r"run plain is not sealed: it has no manifest\.json"):
        verify_run(exported.store, "plain")
    with pytest.raises(RunNotFound, match="no run at"):
        verify_run(LocalStore(tmp_path / "nothing"), "nothing")


# --- clumsy ----------------------------------------------------------------------------------------


def kinds(folder: Path) -> dict[str, Path]:
    """One file of every sealed kind."""
    part = a_part(folder)
    return {
        "run record": folder / "run.json",
        "alerts": folder / "inputs/alerts.parquet",
        "rejected alerts": folder / "inputs/rejected_alerts.parquet",
        "slice": part,
        "receipt": folder / f"receipts/mint_bucket={bucket_of(part)}.json",
        "empty receipt": folder / "receipts/mint_bucket=00.json",
        "rejected of a bucket": min((folder / "receipts").glob("*.rejected.parquet")),
        "coverage": folder / "outputs/coverage.parquet",
        "rejected candles": folder / "outputs/rejected_candles.parquet",
        "checksums": folder / "SHA256SUMS",
        "manifest": folder / "manifest.json",
    }


KINDS = [
    "run record", "alerts", "rejected alerts", "slice", "receipt", "empty receipt", "rejected of a bucket",
    "coverage", "rejected candles", "checksums", "manifest",
]  # fmt: skip


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first byte", "middle", "last byte"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(
    copied_lake: LocalStore, kind: str, place: float
) -> None:
    folder = folder_of(copied_lake)
    path = kinds(folder)[kind]
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    faults = faults_of(folder)
    assert faults
    named = "manifest.json" if kind == "manifest" else path.relative_to(folder).as_posix()
    assert any(named in fault for fault in faults)


@pytest.fixture(scope="module")
def spoilt(sealed_lake: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run `plain` in which each example changes a byte and puts it back."""
    folder = tmp_path_factory.mktemp("spoilt") / "run_id=plain"
    shutil.copytree(folder_of(sealed_lake), folder)
    return folder


@given(data=st.data())
def test_any_changed_byte_of_any_sealed_file_is_found_and_the_file_named(spoilt: Path, data: st.DataObject) -> None:
    files = sorted(path.relative_to(spoilt).as_posix() for path in spoilt.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([name for name in files if name != "provenance.json"]))
    place = data.draw(st.integers(0, (spoilt / path).stat().st_size - 1))
    assert undetected(spoilt, path, place, data.draw(st.integers(1, 255))) is None


def test_every_file_is_missed_and_each_cut_short_is_named(spoilt: Path) -> None:
    files = [path for path in sorted(spoilt.rglob("*")) if path.is_file() and path.name != "provenance.json"]
    for path in files[::5]:
        name = path.relative_to(spoilt).as_posix()
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert any(name in fault for fault in faults_of(spoilt)), name
        path.unlink()
        if name != "manifest.json":
            assert any(name in fault for fault in faults_of(spoilt)), name
        path.write_bytes(whole)
    assert faults_of(spoilt) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "a\0b", "x" * 5000, "receipts", "inputs/."])
def test_a_manifest_that_lists_another_place_is_a_fault_and_no_error(copied_lake: LocalStore, path: str) -> None:
    folder = folder_of(copied_lake)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][0]["path"] = path
    (folder / "manifest.json").write_bytes(canonical(manifest))
    assert any("manifest.json" in fault for fault in faults_of(folder))


def test_requiring_a_verified_run_raises_every_fault(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "inputs/alerts.parquet").write_bytes(b"x")
    with pytest.raises(VerificationFailed, match="2 things are not what") as caught:
        require_verified(load_run(copied_lake, "plain"))
    assert list(caught.value.faults) == faults_of(folder)
    assert all(fault in str(caught.value) for fault in caught.value.faults)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "manifest"])
def test_a_missing_file_is_named(copied_lake: LocalStore, kind: str) -> None:
    folder = folder_of(copied_lake)
    path = kinds(folder)[kind]
    path.unlink()
    assert f"{path.relative_to(folder).as_posix()} is missing" in faults_of(folder)


@pytest.mark.parametrize("kind", ["alerts", "slice", "receipt", "coverage"])
def test_a_truncated_file_is_named_with_its_sizes(copied_lake: LocalStore, kind: str) -> None:
    folder = folder_of(copied_lake)
    path = kinds(folder)[kind]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    name = path.relative_to(folder).as_posix()
    assert faults_of(folder) == [f"{name} has {size // 2} bytes, sealed with {size}"]


@pytest.mark.parametrize(
    "path", ["notes.txt", f"{SLICES}/mint_bucket=00/part-0000.parquet", "outputs/other.parquet", "receipts/x.json"]
)
def test_an_extra_file_is_named(copied_lake: LocalStore, path: str) -> None:
    extra = folder_of(copied_lake) / path
    extra.parent.mkdir(parents=True, exist_ok=True)
    extra.write_bytes(b"x")
    assert faults_of(folder_of(copied_lake)) == [f"{path} is not part of the run"]


def test_swapped_files_are_both_named(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    one, two, *_ = sorted((folder / "slices").rglob("*.parquet"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    faults = "\n".join(faults_of(folder))
    for path in (one, two):
        assert path.relative_to(folder).as_posix() in faults


def test_swapped_receipts_are_both_named(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    one, two = (folder / f"receipts/mint_bucket={bucket}.json" for bucket in ("00", "01"))
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    two.write_bytes(first)
    assert faults_of(folder) == [
        f"receipts/mint_bucket={bucket}.json has other content than was sealed" for bucket in ("00", "01")
    ]


def test_a_receipt_of_another_run_is_named(copied_lake: LocalStore) -> None:
    plain, strict = folder_of(copied_lake), folder_of(copied_lake, "strict")
    shutil.copy(strict / "receipts/mint_bucket=00.json", plain / "receipts/mint_bucket=00.json")
    assert any("receipts/mint_bucket=00.json" in fault for fault in faults_of(plain))


def test_a_run_under_another_name_is_found(copied_lake: LocalStore) -> None:
    shutil.copytree(folder_of(copied_lake), folder_of(copied_lake, "renamed"))
    assert "manifest.json is that of run 'plain', not 'renamed'" in faults_of(folder_of(copied_lake, "renamed"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(run_id="other"),
        lambda m: m.update(run_fingerprint="0" * 64),
        lambda m: m.update(content_sha256="0" * 64),
        lambda m: m["exporter"].update(version="9.9.9"),
        lambda m: m["spec"].update(target_file_mb=511),
        lambda m: m["inputs"]["alerts"].update(rows=1),
        lambda m: m["inputs"]["source_snapshot"]["clickhouse"].update(table="other"),
        lambda m: m["slice_spec"].update(chain="base"),
        lambda m: m["coverage"].update(kept_events=0),
        lambda m: m["ledger"].update(duplicates=0),
        lambda m: next(iter(m["outputs"].values())).update(rows=0),
        lambda m: m["files"].pop(),
        lambda m: m["records"].pop(),
        lambda m: m["files"][0].update(rows=0),
        lambda m: m.update(lake_version="v2"),
        lambda m: m.update(extra=1),
    ],
)
def test_an_edited_manifest_is_found(copied_lake: LocalStore, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder_of(copied_lake) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    edit(manifest)
    path.write_bytes(canonical(manifest))
    assert faults_of(folder_of(copied_lake))


@pytest.mark.parametrize("spelling", [json.dumps, lambda value: json.dumps(value, indent=2), lambda value: "{}", str])
def test_a_manifest_that_is_not_canonical_json_is_found(
    copied_lake: LocalStore, spelling: Callable[[Any], str]
) -> None:
    path = folder_of(copied_lake) / "manifest.json"
    path.write_text(spelling(json.loads(path.read_bytes())))
    assert faults_of(folder_of(copied_lake))


# --- with every hash made right again --------------------------------------------------------------


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rehash(folder: Path) -> None:
    """Make every hash, size, row count and sum of the run agree with its files, as a forger would."""

    def refresh(entry: dict[str, Any]) -> None:
        path = folder / entry["path"]
        entry.update(sha256=sha256(path), bytes=path.stat().st_size)
        if "rows" not in entry or path.suffix != ".parquet":
            return
        try:
            table = pq.ParquetFile(path).read()
        except (pa.ArrowInvalid, OSError):
            return
        entry["rows"] = table.num_rows
        if entry["min_ts_ms"] is not None and table.num_rows:
            ts = table.column("ts").cast(pa.int64())
            entry.update(min_ts_ms=pc.min(ts).as_py(), max_ts_ms=pc.max(ts).as_py())

    manifest = json.loads((folder / "manifest.json").read_bytes())
    totals: dict[str, int] = dict.fromkeys(manifest["ledger"], 0)
    for path in sorted((folder / "receipts").glob("*.json")):
        receipt = json.loads(path.read_bytes())
        for entry in [*receipt["files"], *([receipt["rejected"]] if receipt["rejected"] else [])]:
            refresh(entry)
        written = sum(entry["rows"] for entry in receipt["files"])
        receipt["ledger"]["source_rows"] += written - receipt["ledger"]["written"]
        receipt["ledger"]["written"] = written
        for name in totals:
            totals[name] += receipt["ledger"][name]
        path.write_bytes(canonical(receipt))
    for entry in [*manifest["files"], *manifest["records"]]:
        refresh(entry)
    slices = [entry for entry in manifest["files"] if entry["path"].startswith("slices/")]
    [summary] = manifest["outputs"].values()
    summary.update(bytes=sum(e["bytes"] for e in slices), rows=sum(e["rows"] for e in slices))
    manifest["ledger"] = totals
    coverage = pq.ParquetFile(folder / "outputs/coverage.parquet").read()
    kept = coverage.column("kept").to_pylist().count(True)
    manifest["coverage"].update(kept_events=kept, dropped_events=coverage.num_rows - kept)
    for status in ("complete", "partial", "insufficient"):
        manifest["coverage"][status] = coverage.column("status").to_pylist().count(status)
    [alerts] = [entry for entry in manifest["files"] if entry["path"] == "inputs/alerts.parquet"]
    manifest["inputs"]["alerts"].update(sha256=alerts["sha256"], rows=alerts["rows"])
    lines = "".join(f"{entry['sha256']}  {entry['path']}\n" for entry in manifest["files"])
    manifest["content_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest.json").write_bytes(canonical(manifest))
    names = [entry["path"] for entry in [*manifest["files"], *manifest["records"]]] + ["run.json", "manifest.json"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(names, key=str.encode))
    (folder / "SHA256SUMS").write_text(sums)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], footer: dict[str, str] | None = None) -> None:
    table = change(pq.ParquetFile(path).read())
    with pq.ParquetWriter(path, table.schema.with_metadata(None), store_schema=False) as writer:
        writer.add_key_value_metadata({"lake_format": "v1"} if footer is None else footer)
        writer.write_table(table)


def edited(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    position = table.column_names.index(column)
    return table.set_column(position, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def with_value(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        return edited(table, column, values)

    return change


def test_the_forger_of_these_tests_forges_well(copied_lake: LocalStore) -> None:
    for run_id in ("plain", "strict"):
        before = {path: path.read_bytes() for path in folder_of(copied_lake, run_id).rglob("*") if path.is_file()}
        rehash(folder_of(copied_lake, run_id))
        assert {path: path.read_bytes() for path in before} == before
        rewrite(a_part(folder_of(copied_lake, run_id)), lambda table: table)
        rehash(folder_of(copied_lake, run_id))
        assert faults_of(folder_of(copied_lake, run_id)) == []


def test_receipts_of_another_run_are_found_though_every_hash_is_right(copied_lake: LocalStore) -> None:
    plain, strict = folder_of(copied_lake), folder_of(copied_lake, "strict")
    empty = "receipts/mint_bucket=00.json"
    assert json.loads((strict / empty).read_bytes())["files"] == []
    shutil.copy(strict / empty, plain / empty)
    rehash(plain)
    assert f"{empty} is not a receipt of bucket 00 of this run" in faults_of(plain)


def later(ms: int) -> Callable[[Any], Any]:
    return lambda ts: ts + dt.timedelta(milliseconds=ms)


def without_a_traded_candle(table: pa.Table) -> pa.Table:
    """The ledger's count of candles without volume stays right."""
    row = pc.index(pc.greater(table.column("volume"), 0), True).as_py()
    return table.take([each for each in range(table.num_rows) if each != row])


FORGED_SLICES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a high below its low": (with_value("high", 3, 1e-9), "candles break a sanity rule"),
    "a price that is no number": (with_value("open", 3, float("nan")), "candles break a sanity rule"),
    "a candle twice": (lambda t: pa.concat_tables([t.slice(0, 1), t]), "sorted and unique"),
    "two candles swapped": (lambda t: t.take([1, 0, *range(2, t.num_rows)]), "sorted and unique"),
    "mints out of order": (lambda t: t.take(list(range(t.num_rows))[::-1]), "order|sorted and unique"),
    "a candle removed": (lambda t: t.slice(1), "has available_|zero|no volume"),
    "a traded candle removed": (without_a_traded_candle, "its candles say"),
    "a candle out of every window": (with_value("ts", -1, later(86_400_000)), "lie in no kept alert's window"),
    "another interval": (with_value("interval_s", 0, 300), "interval_s is not 60 everywhere"),
    "a foreign mint": (with_value("mint", -1, "zzzz"), "'zzzz' is not a mint of this bucket's alerts"),
    "volume taken away": (
        lambda t: edited(t, "volume", [0.0] * t.num_rows),
        "have no volume, the ledger says",
    ),
    "a column too many": (lambda t: t.append_column("more", pa.array([1] * t.num_rows)), "has another schema"),
    "columns in another order": (lambda t: t.select(t.column_names[::-1]), "has another schema"),
    "no rows": (lambda t: t.slice(0, 0), ""),
}


@pytest.mark.parametrize("forgery", FORGED_SLICES)
def test_a_forged_slice_is_found_though_every_hash_is_right(copied_lake: LocalStore, forgery: str) -> None:
    change, message = FORGED_SLICES[forgery]
    folder = folder_of(copied_lake)
    part = a_part(folder)
    rewrite(part, change)
    rehash(folder)
    faults = faults_of(folder)
    assert faults
    assert any(re.search(message, fault) for fault in faults), faults
    assert any(bucket_of(part) in fault or "coverage" in fault for fault in faults)


def test_a_slice_without_the_formats_name_in_its_footer_is_found(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    rewrite(a_part(folder), lambda table: table, footer={"lake_format": "v0"})
    rehash(folder)
    assert any("does not name lake format v1 in its footer" in fault for fault in faults_of(folder))


@pytest.mark.parametrize("kind", ["alerts", "slice", "coverage", "rejected candles", "rejected alerts"])
def test_a_file_that_is_no_parquet_at_all_is_a_fault_and_no_crash(copied_lake: LocalStore, kind: str) -> None:
    folder = folder_of(copied_lake)
    path = kinds(folder)[kind]
    original = path.read_bytes()
    rehash(folder)
    path.write_bytes(b"PAR1" + bytes(len(original) - 8) + b"PAR1")
    if kind == "coverage":
        # `rehash` reads the coverage itself: give it the good one, then only swap hashes.
        junk = path.read_bytes()
        old, new = hashlib.sha256(original).hexdigest(), hashlib.sha256(junk).hexdigest()
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for entry in manifest["files"]:
            entry["sha256"] = new if entry["sha256"] == old else entry["sha256"]
        lines = "".join(f"{entry['sha256']}  {entry['path']}\n" for entry in manifest["files"])
        manifest["content_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
        (folder / "manifest.json").write_bytes(canonical(manifest))
        names = [entry["path"] for entry in [*manifest["files"], *manifest["records"]]] + ["run.json", "manifest.json"]
        sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(names, key=str.encode))
        (folder / "SHA256SUMS").write_text(sums)
    else:
        rehash(folder)
    name = path.relative_to(folder).as_posix()
    assert any(name in fault or (kind == "slice" and bucket_of(path) in fault) for fault in faults_of(folder))


FORGED_COVERAGE: dict[str, Callable[[pa.Table], pa.Table]] = {
    "one candle more": with_value("available_pre", 0, lambda n: n + 1),
    "nothing missing": with_value("missing", 0, 0),
    "no gap": with_value("largest_gap", 0, 0),
    "zero volume": with_value("zero_volume", 0, 99),
    "no anchor": with_value("has_anchor", 0, lambda known: not known),
    "complete": with_value("status", 0, "complete"),
    "another window": with_value("window_end_ms", 0, lambda ms: ms + 60_000),
    "another caller": with_value("caller", 0, "nobody"),
    "another bucket": with_value("mint_bucket", 0, "zz"),
    "another alert": with_value("alert_id", 0, "nobody"),
    "a reason on a kept alert": with_value("reason", 0, "because"),
    "an alert fewer": lambda t: t.slice(1),
    "the last alert gone": lambda t: t.slice(0, t.num_rows - 1),
    "an alert twice": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "another order": lambda t: t.take(list(range(t.num_rows))[::-1]),
    "a column fewer": lambda t: t.drop(["expected_total"]),
}


@pytest.mark.parametrize("hashes", ["left alone", "made right"])
@pytest.mark.parametrize("forgery", FORGED_COVERAGE)
def test_edited_coverage_is_found(copied_lake: LocalStore, forgery: str, hashes: str) -> None:
    folder = folder_of(copied_lake)
    rewrite(folder / "outputs/coverage.parquet", FORGED_COVERAGE[forgery])
    if hashes == "made right":
        rehash(folder)
    assert any("coverage" in fault for fault in faults_of(folder))


@pytest.mark.parametrize("column", ["available_pre", "available_total", "missing", "reason", "status", "zero_volume"])
def test_edited_coverage_of_a_dropped_alert_is_found(copied_lake: LocalStore, column: str) -> None:
    folder = folder_of(copied_lake, "strict")
    path = folder / "outputs/coverage.parquet"
    dropped = pq.ParquetFile(path).read().column("kept").to_pylist().index(False)
    value: Any = {"reason": "because", "status": "complete"}.get(column, 7777)
    rewrite(path, with_value(column, dropped, value))
    rehash(folder)
    assert any("coverage" in fault for fault in faults_of(folder))


def test_an_alert_dropped_by_hand_is_found_even_if_it_had_no_candle(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    path = folder / "outputs/coverage.parquet"
    row = pq.ParquetFile(path).read().column("alert_id").to_pylist().index("no-candles")
    rewrite(path, with_value("kept", row, False))
    rehash(folder)
    assert any("coverage" in fault for fault in faults_of(folder))


def test_a_dropped_alert_kept_by_hand_is_found(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake, "strict")
    path = folder / "outputs/coverage.parquet"
    row = pq.ParquetFile(path).read().column("kept").to_pylist().index(False)
    rewrite(path, with_value("kept", row, True))
    rehash(folder)
    assert any("coverage" in fault for fault in faults_of(folder))


def test_edited_alerts_are_found(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    rewrite(folder / "inputs/alerts.parquet", with_value("caller", 0, "nobody"))
    rehash(folder)
    assert any("inputs/alerts.parquet" in fault for fault in faults_of(folder))


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.update(mint_bucket="01"),
        lambda r: r.update(run_fingerprint="0" * 64),
        lambda r: r["ledger"].update(duplicates=r["ledger"]["duplicates"] + 1),
        lambda r: r["ledger"].update(zero_volume=r["ledger"]["zero_volume"] + 1),
        lambda r: r.update(files=[]),
        lambda r: r.update(extra=1),
        lambda r: r["coverage"].pop("missing"),
        lambda r: r["coverage"]["missing"].append(0),
        lambda r: r["coverage"]["missing"].__setitem__(0, "many"),
        lambda r: r["coverage"]["missing"].__setitem__(0, 2**63),
        lambda r: r["coverage"]["missing"].__setitem__(0, 1.5),
        lambda r: r["coverage"]["alert_id"].__setitem__(0, ["a"]),
    ],
)
def test_an_edited_receipt_is_found_though_every_hash_is_right(
    copied_lake: LocalStore, edit: Callable[[dict[str, Any]], Any]
) -> None:
    folder = folder_of(copied_lake)
    path = folder / f"receipts/mint_bucket={bucket_of(a_part(folder))}.json"
    receipt = json.loads(path.read_bytes())
    edit(receipt)
    path.write_bytes(canonical(receipt))
    rehash(folder)
    assert faults_of(folder)


def rename(folder: Path, old: str, new: str) -> None:
    """Give a file of the run another name in every record."""
    (folder / new).parent.mkdir(exist_ok=True)
    (folder / old).rename(folder / new)
    for path in (*(folder / "receipts").glob("*.json"), folder / "manifest.json"):
        path.write_bytes(path.read_bytes().replace(f'"{old}"'.encode(), f'"{new}"'.encode()))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name in ("files", "records"):
        manifest[name].sort(key=lambda entry: entry["path"].encode())
    (folder / "manifest.json").write_bytes(canonical(manifest))


@pytest.mark.parametrize("new", ["mint_bucket=00/part-0000.parquet", "part-0001.parquet", "other.parquet"])
def test_a_slice_of_another_name_is_found_though_every_hash_is_right(copied_lake: LocalStore, new: str) -> None:
    """Readers look for a mint's candles by the name of its bucket."""
    folder = folder_of(copied_lake)
    part = a_part(folder)
    bucket = bucket_of(part)
    assert bucket != "00"
    target = (part.parent.parent if "/" in new else part.parent) / new
    rename(folder, part.relative_to(folder).as_posix(), target.relative_to(folder).as_posix())
    rehash(folder)
    assert f"receipts/mint_bucket={bucket}.json lists other files than those of its bucket" in faults_of(folder)


def test_rejected_candles_of_another_name_are_found_though_every_hash_is_right(copied_lake: LocalStore) -> None:
    folder = folder_of(copied_lake)
    rejected = min((folder / "receipts").glob("*.rejected.parquet")).name
    rename(folder, f"receipts/{rejected}", "receipts/rejected.parquet")
    rehash(folder)
    receipt = rejected.replace(".rejected.parquet", ".json")
    assert f"receipts/{receipt} lists other files than those of its bucket" in faults_of(folder)
