"""A lake in an object store is the lake on disk, byte for byte, and holds without locks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lake_pipeline import open_run
from lake_pipeline.cli import lake as lake_command
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.candles import CandleBlock
from lake_pipeline.diff import diff_runs
from lake_pipeline.errors import BucketsFailed, BucketsMissing, RunNotSealed, VerificationFailed
from lake_pipeline.export import export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.objects import ObjectStore
from lake_pipeline.io.source import CandleSource, SliceRequest
from lake_pipeline.io.store import LocalStore, Store, StoredFile
from lake_pipeline.run import Run, list_run_ids, load_run
from lake_pipeline.seal import SealResult, cover_run, seal_run
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    Candle,
    create_table,
    reason_against,
    sealed_run,
    start_run,
)
from lake_pipeline_tests.conftest import S3, SECRET, Market, SourceFactory

BIN = Path(sys.executable).parent
EXAMPLES = Path(__file__).parents[1] / "examples"


def contents(store: Store) -> dict[str, bytes]:
    """Every file of a run but its provenance."""
    return {file.path: store.read(file.path) for file in store.files() if file.path != layout.PROVENANCE}


@pytest.fixture
def objects(s3_url: str) -> ObjectStore:
    """An empty data root in the object store."""
    return ObjectStore(s3_url)


@pytest.fixture(scope="module")
def sealed_url(sealed_lake: LocalStore, s3_server: S3) -> str:
    """The sealed lake, copied object by object."""
    url = f"s3://{s3_server.bucket}/sealed-{os.getpid()}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        store = ObjectStore(url)
        for file in sealed_lake.files():
            store.create(file.path, sealed_lake.read(file.path))
    return url


@pytest.fixture
def unsealed(exported: Run, objects: ObjectStore) -> Run:
    """The run `plain` with all its buckets, not sealed yet, in the object store."""
    for file in exported.store.files():
        objects.sub(layout.run_folder("plain")).create(file.path, exported.store.read(file.path))
    return load_run(objects, "plain")


# --- the same lake -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows_in_flight", [8_000_000, 1])
def test_a_run_has_the_bytes_of_one_on_disk(
    objects: ObjectStore,
    sealed_lake: LocalStore,
    market: Market,
    market_source: ClickHouseSource,
    max_rows_in_flight: int,
) -> None:
    run = sealed_run(
        objects, market_source, market.csv, MARKET_SPEC, "plain", threads=4, max_rows_in_flight=max_rows_in_flight
    )
    assert contents(run.store) == contents(load_run(sealed_lake, "plain").store)
    assert verify_run(run.store, "plain").faults == []
    events = json.loads(run.store.read(layout.PROVENANCE))["events"]
    assert [event["step"] for event in events] == ["alerts", "candles", "manifest"]
    assert list_run_ids(objects) == ["plain"]
    # Again: everything is skipped and verified, nothing written.
    again = contents(run.store)
    assert all(result.skipped for result in export_buckets(run, market_source))
    assert not seal_run(run).created
    assert contents(run.store) == again


def test_what_is_read_from_it_is_what_is_read_from_disk(s3: S3, sealed_url: str, sealed_lake: LocalStore) -> None:
    local = open_run("plain", str(sealed_lake.root))
    for run in (open_run("plain", sealed_url), open_run(f"{sealed_url}/lake/runs/run_id=plain/")):
        assert run.path == f"{sealed_url}/lake/runs/run_id=plain"
        assert run.manifest == local.manifest
        assert run.alerts().equals(local.alerts())
        assert run.coverage().equals(local.coverage())
        assert run.scan().to_table().equals(local.scan().to_table())
        assert run.verify().ok
        for alert_id in run.alerts().column("alert_id").to_pylist():
            assert run.slice(alert_id).equals(local.slice(alert_id))
        assert run.candles("nobody").num_rows == 0
    a, b = (load_run(ObjectStore(sealed_url), run_id) for run_id in ("plain", "strict"))
    there = [load_run(sealed_lake, run_id) for run_id in ("plain", "strict")]
    assert diff_runs(a, b) == diff_runs(*there)


def test_a_damaged_object_is_found(objects: ObjectStore, sealed_lake: LocalStore) -> None:
    for file in sealed_lake.files(layout.run_folder("plain")):
        objects.create(file.path, sealed_lake.read(file.path))
    run = load_run(objects, "plain")
    part = run.manifest().files[-1].path
    data = bytearray(run.store.read(part))
    data[len(data) // 2] ^= 1
    run.store.replace(part, bytes(data))
    run.store.create("notes.txt", b"")
    assert verify_run(run.store, "plain").faults == [
        f"{part} has other content than was sealed",
        "notes.txt is not part of the run",
    ]


def test_a_slice_fetches_footers_and_the_row_groups_it_needs(
    objects: ObjectStore, sealed_lake: LocalStore, s3: S3
) -> None:
    for file in sealed_lake.files(layout.run_folder("plain")):
        objects.create(file.path, sealed_lake.read(file.path))
    run = open_run("plain", objects.uri)
    alert = next(row for row in run.alerts().to_pylist() if run.slice(row["alert_id"]).num_rows)
    entry = next(file for file in run.manifest.files if f"mint_bucket={_bucket(alert['mint'])}/" in file.path)
    # The same file, with other mints around its own in row groups of their own.
    name = f"{layout.run_folder('plain')}/{entry.path}"
    table = pq.read_table(pa.BufferReader(objects.read(name)))
    rows = 60_000
    strangers = [
        pa.table(
            {**{name: pa.repeat(table.column(name)[0], rows) for name in table.column_names}, "mint": [mint] * rows}
        )
        .set_column(3, "open", pa.array(np.random.default_rng(0).random(rows)))
        .cast(table.schema)
        for mint in ("0" * 44, "z" * 44)
    ]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        for part in (strangers[0], table, strangers[1]):
            writer.write_table(part, row_group_size=rows)
    data = sink.getvalue().to_pybytes()
    objects.replace(name, data)
    before = len(s3.requests())
    found = run.slice(alert["alert_id"])
    sealed, *made = s3.requests()[before:]
    assert found.num_rows > 0
    assert sealed["path"].endswith(layout.MANIFEST)
    assert {each["path"] for each in made} == {f"/{s3.bucket}/{objects.uri.split('/')[3]}/{name}"}
    assert [each["method"] for each in made[:2]] == ["HEAD", "GET"]
    assert len(made) <= 5
    assert len(data) > 800_000
    assert sum(each["bytes"] for each in made) < 200_000


def _bucket(mint: str) -> str:
    from lake_pipeline.core.buckets import compute_mint_bucket

    return compute_mint_bucket(mint)


def test_requests_are_those_that_carry_bytes_and_a_few_listings(
    objects: ObjectStore, market: Market, market_source: ClickHouseSource, s3: S3
) -> None:
    """Requests are what an object store costs, in time and money: no bucket is looked for by name."""
    made: dict[str, list[dict[str, Any]]] = {}

    @contextlib.contextmanager
    def counted(step: str) -> Iterator[None]:
        before = len(s3.requests())
        yield
        made[step] = s3.requests()[before:]

    with counted("alerts"):
        run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    with counted("export"):
        export_buckets(run, market_source)
    with counted("coverage"):
        cover_run(run)
    with counted("seal"):
        seal_run(run)
    with counted("verify"):
        assert verify_run(run.store, "plain").ok
    with counted("again"):
        assert all(result.skipped for result in export_buckets(run, market_source))

    files = len(run.manifest().files) + len(run.manifest().records)
    buckets = len(ALL_BUCKETS)
    assert files == buckets + 14  # receipts; parts, rejected candles of buckets, inputs and outputs
    assert {step: len(requests) <= buckets + 35 for step, requests in made.items()} == dict.fromkeys(made, True)
    assert len(made["alerts"]) <= 15
    assert sum(map(len, made.values())) <= 5 * buckets + 150
    receipts = [
        (step, each["method"]) for step, requests in made.items() for each in requests if "/receipts/" in each["path"]
    ]
    assert ("export", "HEAD") not in receipts
    assert Counter(receipts) <= Counter(
        {
            ("export", "PUT"): buckets + 4,
            ("coverage", "GET"): buckets + 4,
            ("seal", "GET"): buckets + 8,
            ("verify", "GET"): buckets + 8,
            ("again", "GET"): buckets + 4,
        }
    )


# --- without locks -------------------------------------------------------------------------------


def test_coverage_of_an_unfinished_run_is_counted_and_not_written(
    objects: ObjectStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    export_buckets(run, market_source, market.buckets[:2])
    result = cover_run(run)
    assert result.alerts > 0
    assert len(result.missing_buckets) == 254
    assert run.store.files("outputs") == []
    with pytest.raises(BucketsMissing):
        seal_run(run)
    with pytest.raises(RunNotSealed):
        open_run("plain", objects.uri)


def test_of_two_seals_at_once_one_creates_and_the_other_verifies(unsealed: Run, sealed_lake: LocalStore) -> None:
    barrier, sealed = threading.Barrier(2), threading.Event()
    wrote: list[int] = []
    results: list[SealResult] = []

    class Together(ObjectStore):
        """Both are about to seal before either does; the one that wrote SHA256SUMS last then loses."""

        def replace(self, path: str, data: bytes | memoryview, *, durable: bool = True) -> None:
            super().replace(path, data)
            if path == layout.CHECKSUMS:
                wrote.append(threading.get_ident())

        def create(self, path: str, data: bytes) -> None:
            if path == layout.MANIFEST:
                barrier.wait(60)
                if threading.get_ident() == wrote[-1]:
                    assert sealed.wait(60)
            super().create(path, data)
            sealed.set()

    store = unsealed.store
    store.__class__ = Together  # type: ignore[assignment]
    # Their manifests differ, and so do their SHA256SUMS.
    before = load_run(sealed_lake, "strict")
    threads = [
        threading.Thread(target=lambda previous=previous: results.append(seal_run(unsealed, previous=previous)))
        for previous in (None, before)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.created for result in results) == [False, True]
    assert results[0].manifest == results[1].manifest
    assert verify_run(store, "plain").faults == []


def test_a_seal_that_finds_another_just_made_verifies_it(unsealed: Run) -> None:
    class Late(ObjectStore):
        """Looks for foreign files when another has sealed."""

        def files(self, path: str = "") -> list[StoredFile]:
            store.__class__ = ObjectStore  # type: ignore[assignment]
            assert seal_run(unsealed).created
            return ObjectStore.files(self, path)

    store = unsealed.store
    store.__class__ = Late  # type: ignore[assignment]
    assert not seal_run(unsealed).created
    assert verify_run(store, "plain").faults == []


class Meanwhile:
    """A source that lets something happen once, after it has read its first candles."""

    def __init__(self, source: CandleSource, action: Callable[[], object]) -> None:
        self.source = source
        self.action: Callable[[], object] | None = action

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def read(self, request: SliceRequest) -> CandleBlock:
        block = self.source.read(request)
        action, self.action = self.action, None
        if action:
            action()
        return block

    def state(self, from_ms: int, to_ms: int) -> str | None:
        return self.source.state(from_ms, to_ms)

    def close(self) -> None:
        self.source.close()


@pytest.fixture
def versions(
    engine: ClickHouseSource, source_of: SourceFactory, market: Market, table: str
) -> tuple[CandleSource, CandleSource, str]:
    """The market before and after a broken candle came in, under one name, and that candle's bucket."""
    alert = market.alerts[0]
    broken = Candle(alert.mint, alert.ts_ms // 60_000 * 60_000, high=0.0)
    others = [c for c in market.candles if c.mint != alert.mint or not (reason_against(c) or c.ts_ms == broken.ts_ms)]
    create_table(engine, table, others)
    create_table(engine, f"{table}_later", [*others, broken])
    before, after = source_of(table), source_of(f"{table}_later")

    class Renamed(Meanwhile):
        def identity(self) -> dict[str, Any]:
            return before.identity()

    return before, Renamed(after, lambda: None), _bucket(alert.mint)


def test_a_quicker_commit_counts_and_what_only_the_slower_one_wrote_is_removed(
    objects: ObjectStore, market: Market, versions: tuple[CandleSource, CandleSource, str]
) -> None:
    before, after, bucket = versions
    run = start_run(objects, before, market.csv, MARKET_SPEC, "r")
    quicker = Meanwhile(after, lambda: export_buckets(run, before, [bucket]))
    # One candle at a time in flight: it reads while it commits.
    (result,) = export_buckets(run, quicker, [bucket], max_rows_in_flight=1)
    assert result.skipped
    receipt = run.bucket_state(bucket).receipt
    assert receipt
    listed = {file.path for file in (*receipt.files, receipt.rejected) if file}
    assert receipt.rejected is None
    assert set(run.bucket_files(bucket)) == listed
    export_buckets(run, before)
    assert seal_run(run).created
    assert verify_run(run.store, "r").faults == []


def test_leftovers_with_the_right_bytes_are_taken_over(
    objects: ObjectStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    finished = load_run(sealed_lake, "plain")
    for file in finished.store.files("slices"):
        run.store.create(file.path, finished.store.read(file.path))
    export_buckets(run, market_source)
    cover_run(run)
    assert seal_run(run).created
    assert contents(run.store) == contents(finished.store)


def test_leftovers_with_other_bytes_are_named_and_not_touched(
    objects: ObjectStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    bucket = market.buckets[0]
    path = layout.part_path(MARKET_SPEC, bucket, 0)
    run.store.create(path, b"of an earlier attempt")
    with pytest.raises(BucketsFailed) as caught:
        export_buckets(run, market_source)
    assert list(caught.value.failures) == [bucket]
    assert f"{run.store.uri}/{path} exists with other content" in str(caught.value)
    assert "when no process exports this run, delete the object and run again" in str(caught.value)
    assert run.store.read(path) == b"of an earlier attempt"
    run.store.delete(path)
    export_buckets(run, market_source)
    assert seal_run(run).created


def test_buckets_of_a_sealed_run_are_taken_over_by_the_store(
    objects: ObjectStore, market: Market, market_source: ClickHouseSource
) -> None:
    first = sealed_run(objects, market_source, market.csv, MARKET_SPEC, "first")
    second = start_run(objects, market_source, market.csv, MARKET_SPEC, "second")
    results = export_buckets(second, market_source, market.buckets, reuse_from=objects)
    assert all(result.reused for result in results)
    export_buckets(second, market_source)
    assert seal_run(second).manifest.content_sha256 == first.manifest().content_sha256
    assert verify_run(second.store, "second").faults == []


def test_a_sealed_run_that_lacks_an_object_is_not_exported_again(
    objects: ObjectStore, sealed_lake: LocalStore, market_source: ClickHouseSource
) -> None:
    for file in sealed_lake.files(layout.run_folder("plain")):
        objects.create(file.path, sealed_lake.read(file.path))
    run = load_run(objects, "plain")
    part = next(file.path for file in run.manifest().files if file.path.startswith("slices/"))
    run.store.delete(part)
    with pytest.raises(VerificationFailed, match=part):
        export_buckets(run, market_source)
    assert not run.store.exists(part)


def test_processes_exporting_one_run_at_once_make_one_run(
    objects: ObjectStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource
) -> None:
    run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            export_buckets(run, market_source, list(ALL_BUCKETS))
            cover_run(run)
            seal_run(run)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(run.store) == contents(load_run(sealed_lake, "plain").store)


@pytest.mark.parametrize("look", [1, 2])
def test_a_run_that_others_seal_while_its_buckets_are_looked_at_is_taken_as_it_is(
    objects: ObjectStore, sealed_lake: LocalStore, market: Market, market_source: ClickHouseSource, look: int
) -> None:
    run = start_run(objects, market_source, market.csv, MARKET_SPEC, "plain")
    looks = 0

    class Overtaken(ObjectStore):
        """After the list of the receipts there are, another process exports and seals."""

        def files(self, path: str = "") -> list[StoredFile]:
            nonlocal looks
            found = super().files(path)
            if path == layout.RECEIPTS:
                looks += 1
                if looks == look:
                    export_buckets(run, market_source)
                    seal_run(run)
            return found

    results = export_buckets(replace(run, store=Overtaken(run.store.uri)), market_source)
    assert all(result.skipped for result in results)
    assert contents(run.store) == contents(load_run(sealed_lake, "plain").store)


# --- as people run it ----------------------------------------------------------------------------


def test_dagster_and_the_commands_work_by_url_and_tell_no_secret(s3: S3, s3_url: str, tmp_path: Path) -> None:
    from lake_pipeline.demo import write_demo_inputs

    candles, _ = write_demo_inputs(tmp_path / "inputs")
    alerts = str(EXAMPLES / "alerts.csv")
    home = tmp_path / "dagster"
    home.mkdir()
    environment = {**os.environ, **s3.environment(), "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"}
    said: list[str] = []

    def command(*arguments: str, root: str = s3_url, code: int = 0) -> str:
        done = subprocess.run(
            [BIN / arguments[0], *arguments[1:]],
            cwd=tmp_path,
            env={**environment, "LAKE_DATA_ROOT": root},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stderr[-3000:]
        said.append(done.stdout + done.stderr)
        return done.stdout

    def look(*arguments: str) -> str:
        """A command that needs no engine and goes well, in this process."""
        done = CliRunner().invoke(lake_command, [*arguments, "--data-root", s3_url])
        assert done.exit_code == 0, done.output
        said.append(done.output)
        return done.stdout

    command("lake", "load-candles", str(candles))
    assert (tmp_path / "data/clickhouse").is_dir()  # the embedded engine stays local
    settings = {"alerts": alerts, "interval": "1m", "window": "pre52_post4948", "run_id": "one"}
    config = json.dumps({"resources": {"lake_run": {"config": settings}}})
    select = ["--select", "*", "--partition-range", "00...ff", "--config-json", config]
    command("dagster", "asset", "materialize", "-m", "lake_pipeline.definitions", *select)
    options = [f"--{name}={value}" for name, value in settings.items() if name != "run_id"]
    # The same run once more is verified; the same engine makes the same on disk.
    again = json.loads(
        command("lake", "export-run-slices", *options, "--run-id=one", "--data-root", s3_url, "--format=json")
    )
    assert again["manifest_path"] == f"{s3_url}/lake/runs/run_id=one/manifest.json"
    command("lake", "export-run-slices", *options, "--run-id=one", root="data")
    run = load_run(ObjectStore(s3_url), "one")
    local = load_run(LocalStore(tmp_path / "data"), "one")
    assert again["manifest"] == local.manifest().document()
    assert contents(run.store) == contents(local.store)

    assert [row["state"] for row in json.loads(look("runs", "--format", "json"))] == ["sealed"]
    assert s3_url in look("show", "one")
    assert "verified, nothing differs" in command("lake", "verify", "one")
    assert "content: identical" in look("diff", "one", "one")
    command("lake", "runs", root=f"s3://me:{SECRET}@lakes/x", code=2)

    # Neither the lake nor Dagster's records nor what was printed knows the secret.
    stored = [run.store.read(file.path) for file in run.store.files()]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(stored) > 256
    assert any(b"run_id=one/manifest.json" in data for data in kept)  # the haystack holds Dagster's events
    assert not [data for data in [*stored, *kept, *(text.encode() for text in said)] if SECRET.encode() in data]
