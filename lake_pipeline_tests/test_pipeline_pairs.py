"""The pipeline between every pair of a candle source and a store: the same run, whatever is at its ends.

The reference is the embedded engine with local files. A pair is a row of PAIRS and a branch in `pair`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from lake_pipeline.core.manifest import Manifest
from lake_pipeline.errors import BucketsFailed, RunNotFound
from lake_pipeline.export import export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.load import load_candles
from lake_pipeline.io.store import LocalStore, Store, open_store
from lake_pipeline.reader import open_run
from lake_pipeline.run import load_run
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    STRICT_SPEC,
    arrow_candles,
    seal,
    sealed_run,
    sha1_bucket,
    small_market,
    start_run,
)
from lake_pipeline_tests.concurrency import PipelineProcess, read_during_exports, together
from lake_pipeline_tests.conftest import Market, SourceFactory
from lake_pipeline_tests.gateway import Fault, Gateway, Kind

PROJECT = Path(__file__).parents[1]
LAKE = Path(sys.executable).with_name("lake")

PAIRS = {"chdb+files": ("chdb", "files"), "http+files": ("http", "files"), "http+s3": ("http", "s3")}


@dataclass(frozen=True)
class Pair:
    """A source on the market's table and an empty data root."""

    source: ClickHouseSource
    lake: Store


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, market: Market, tmp_path: Path) -> Pair:
    source, store = PAIRS[request.param]
    factory: SourceFactory = request.getfixturevalue({"chdb": "source_of", "http": "http_source_of"}[source])
    lakes: dict[str, Callable[[], Store]] = {
        "files": lambda: LocalStore(tmp_path / "data"),
        "s3": lambda: open_store(request.getfixturevalue("s3_url")),
    }
    return Pair(factory(market.table), lakes[store]())


@pytest.fixture(scope="module")
def reference(sealed_lake: LocalStore) -> dict[str, Manifest]:
    """The manifests of the runs `plain` and `strict` as the embedded engine and local files give them."""
    return {run_id: load_run(sealed_lake, run_id).manifest() for run_id in ("plain", "strict")}


def assert_same(found: Manifest, expected: Manifest) -> None:
    """The same content, and every row of the source accounted for in the same way: nothing was read twice."""
    assert found.content_sha256 == expected.content_sha256
    assert found.ledger == expected.ledger


# --- every pair ----------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", ["plain", "strict"])
def test_every_pair_seals_the_same_run(pair: Pair, market: Market, reference: dict[str, Manifest], run_id: str) -> None:
    spec = {"plain": MARKET_SPEC, "strict": STRICT_SPEC}[run_id]
    run = sealed_run(pair.lake, pair.source, market.csv, spec, run_id)
    assert_same(run.manifest(), reference[run_id])
    assert run.manifest() == reference[run_id]
    assert verify_run(run.store, run_id).ok


def test_every_pair_streams_a_run_in_parts_to_the_same_content(
    pair: Pair, market: Market, reference: dict[str, Manifest]
) -> None:
    run = start_run(pair.lake, pair.source, market.csv, MARKET_SPEC, "parts")
    for first in range(0, 256, 64):
        buckets = [f"{number:02x}" for number in range(first, first + 64)]
        export_buckets(run, pair.source, buckets, threads=3, max_rows_in_flight=1)
    assert_same(seal(run).manifest, reference["plain"])


def test_every_pair_repeats_a_sealed_run_without_a_change(pair: Pair, market: Market) -> None:
    run = sealed_run(pair.lake, pair.source, market.csv, MARKET_SPEC, "again")
    before = run.store.read(layout.MANIFEST)
    repeated = start_run(pair.lake, pair.source, market.csv, MARKET_SPEC, "again")
    assert all(result.skipped for result in export_buckets(repeated, pair.source))
    assert not seal(repeated).created
    assert run.store.read(layout.MANIFEST) == before


# --- faults on the way -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind not in ("hang", "drip")])
def test_a_run_whose_every_query_fails_once_is_the_same_run(
    gateway: Gateway, market: Market, http_source_of: SourceFactory, lake: LocalStore, reference: dict[str, Manifest],
    kind: Kind,
) -> None:  # fmt: skip
    run = start_run(lake, http_source_of(market.table), market.csv, MARKET_SPEC, "storm")
    for first in range(0, 256, 32):
        code = 503 if kind == "status" else 241
        gateway.fail(Fault(kind, "lake_key", times=2, share=first / 256, code=code))
        buckets = [f"{number:02x}" for number in range(first, first + 32)]
        export_buckets(run, http_source_of(market.table), buckets)
        asked = [served for served in gateway.served if "lake_key" in served.sql]
        assert not asked or asked[0].fault == kind
    assert_same(seal(run).manifest, reference["plain"])


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", code=47),
        Fault("error", code=241),
        Fault("clean_cut"),
        Fault("reset"),
        Fault("clean_error_midway"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.code}",
)
def test_a_bucket_that_cannot_be_read_is_not_committed_and_can_be_made_good(
    gateway: Gateway, market: Market, http_source_of: SourceFactory, lake: LocalStore, reference: dict[str, Manifest],
    fault: Fault,
) -> None:  # fmt: skip
    bad = market.alerts[0].mint
    run = start_run(lake, http_source_of(market.table), market.csv, MARKET_SPEC, "poor")
    gateway.fail(Fault(fault.kind, bad, times=9999, code=fault.code))
    with pytest.raises(BucketsFailed) as caught:
        export_buckets(run, http_source_of(market.table))
    assert sha1_bucket(bad) in caught.value.failures
    if fault.code == 47:  # for good: its neighbours are asked for without it
        assert list(caught.value.failures) == [sha1_bucket(bad)]
    for bucket in caught.value.failures:
        assert run.bucket_state(bucket).problem == "missing"
    gateway.fail()
    export_buckets(run, http_source_of(market.table))
    assert_same(seal(run).manifest, reference["plain"])


# --- processes on one server ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a gateway that is a process of its own, over an empty engine."""
    credentials = ["--user", "lake", "--password", "s3cret-word"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lake_pipeline_tests.gateway",
            "--path",
            tmp_path_factory.mktemp("server"),
            *credentials,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert process.stdout
    port = process.stdout.readline().strip()
    yield {
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": port,
        "CLICKHOUSE_USER": "lake",
        "CLICKHOUSE_PASSWORD": "s3cret-word",
    }
    process.communicate()


def lake_command(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAKE, *map(str, arguments)],
        env={**os.environ, **environment, "DAGSTER_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_commands_load_export_and_verify_over_http(
    server: dict[str, str], market: Market, source_of: SourceFactory, tmp_path: Path
) -> None:
    candles, _ = small_market()
    file = tmp_path / "candles.parquet"
    pq.write_table(arrow_candles(candles), file)
    # The same by the embedded engine; the table's name is part of a run's identity.
    embedded = source_of("ohlcv_candles")
    expected_load = load_candles(embedded, [str(file)])
    expected = sealed_run(LocalStore(tmp_path / "embedded"), embedded, market.csv, MARKET_SPEC, "cli")

    loaded = lake_command(server, "load-candles", file, "--format", "json")
    assert loaded.returncode == 0, loaded.stderr
    counts = json.loads(loaded.stdout)
    assert (counts["rows"], counts["inserted"], counts["present"]) == (
        expected_load.rows,
        expected_load.inserted,
        expected_load.present,
    )
    again = lake_command(server, "load-candles", file, "--format", "json")
    assert json.loads(again.stdout)["inserted"] == 0

    root = tmp_path / "data"
    (tmp_path / "dagster").mkdir()
    server = {**server, "DAGSTER_HOME": str(tmp_path / "dagster")}
    export = ["export-run-slices", "--alerts", market.csv, "--interval", "1m", "--window", "pre10_post20"]
    exported = lake_command(server, *export, "--run-id", "cli", "--data-root", root)
    assert exported.returncode == 0, exported.stderr
    assert open_run("cli", root).manifest.to_bytes() == expected.manifest().to_bytes()
    assert lake_command(server, "verify", "cli", "--data-root", root).returncode == 0
    assert not (root / "clickhouse").exists()
    # Neither the lake nor Dagster's records nor what was printed knows the password.
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"run_id=cli/manifest.json" in data for data in kept)  # the haystack holds Dagster's events
    printed = [text.encode() for done in (exported, loaded) for text in (done.stdout, done.stderr)]
    assert not [data for data in [*kept, *printed] if b"s3cret-word" in data]

    wrong = lake_command({**server, "CLICKHOUSE_PASSWORD": "wr0ng"}, *export, "--data-root", root, "--run-id", "no")
    assert wrong.returncode == 2
    assert "authentication failed" in wrong.stderr
    assert "wr0ng" not in wrong.stdout + wrong.stderr
    with pytest.raises(RunNotFound):
        open_run("no", root)


@pytest.fixture
def three(gateway: Gateway, market: Market, tmp_path: Path) -> Iterator[list[PipelineProcess]]:
    """Three pipeline processes on the gateway and one data root, `tmp_path / "data"`."""
    with ExitStack() as stack:
        root = str(tmp_path / "data")
        yield [
            stack.enter_context(PipelineProcess(gateway.environment, root, market.table, market.csv)) for _ in range(3)
        ]


def test_processes_that_share_the_buckets_of_a_run_make_the_same_run(
    three: list[PipelineProcess], reference: dict[str, Manifest]
) -> None:
    for process, buckets in zip(three, [(0, 100), (100, 200), (200, 256)], strict=True):
        process.order("shared", buckets=buckets, seals=False)
    assert [process.answer() for process in three] == [{"exported": 100}, {"exported": 100}, {"exported": 56}]
    three[0].order("shared")
    sealed = three[0].answer()
    assert sealed == {"exported": 0, "created": True, "content": reference["plain"].content_sha256}


def test_processes_that_make_one_run_at_once_seal_it_exactly_once(
    three: list[PipelineProcess], reference: dict[str, Manifest], tmp_path: Path
) -> None:
    for number in range(3):
        answers = together(three, f"race-{number}")
        assert [answer.get("created") for answer in answers].count(True) == 1, answers
        assert {answer["content"] for answer in answers} == {reference["plain"].content_sha256}
        assert sum(answer["exported"] for answer in answers) == 256
        assert open_run(f"race-{number}", tmp_path / "data").verify().ok


def test_processes_that_seal_at_once_seal_exactly_once(
    three: list[PipelineProcess], reference: dict[str, Manifest]
) -> None:
    for number in range(5):
        three[0].order(f"seal-{number}", seals=False)
        assert three[0].answer() == {"exported": 256}
        answers = together(three, f"seal-{number}")
        assert sorted(answer["created"] for answer in answers) == [False, False, True]
        assert {answer["content"] for answer in answers} == {reference["plain"].content_sha256}


def test_a_reader_among_exports_sees_whole_runs_only(three: list[PipelineProcess], tmp_path: Path) -> None:
    log = read_during_exports(three[:2], str(tmp_path / "data"), reads=30)
    assert log.reads >= 30
    assert log.runs > 1


def test_a_run_that_is_being_created_is_not_found_yet_and_not_called_damaged(lake: LocalStore) -> None:
    folder = Path(lake.root, "lake/runs/run_id=new")
    folder.mkdir(parents=True)
    with pytest.raises(RunNotFound, match="no run 'new'"):
        load_run(lake, "new")
    (folder / ".lake-tmp-1234").write_bytes(b"{")
    with pytest.raises(RunNotFound, match="no run 'new'"):
        load_run(lake, "new")


def test_a_second_process_on_the_embedded_database_names_the_first(
    engine: ClickHouseSource, engine_root: Path, market: Market
) -> None:
    export = ["export-run-slices", "--alerts", market.csv, "--interval", "1m", "--window", "pre10_post20"]
    done = lake_command({}, *export, "--run-id", "late", "--table", market.table, "--data-root", engine_root)
    assert done.returncode == 2
    assert f"is in use by process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(RunNotFound):
        open_run("late", engine_root)
