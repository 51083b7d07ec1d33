"""A ClickHouse server over HTTP and what can go wrong: retried, or a clear error, never a short result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import SourceError, SourceUnavailable
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.load import load_candles
from lake_pipeline_tests.candles_for_tests import T0_MS, Alert, Candle, arrow_candles, create_table
from lake_pipeline_tests.conftest import SourceFactory
from lake_pipeline_tests.gateway import Fault, Gateway, Kind
from lake_pipeline_tests.io.test_clickhouse import HOSTILE, PLAIN, Row, inside, make_variant, read, rows_of_candles

CANDLES = [
    Candle(mint, T0_MS + minute * 60_000, volume=float(minute), source="feed" if minute % 2 else None)
    for mint in ("MintA", "MintB", "MintC")
    for minute in range(-10, 10)
]
ALERTS = [Alert(str(number), f"Mint{letter}", T0_MS) for number, letter in enumerate("ABC")]
EXPECTED: list[Row] = rows_of_candles(inside(CANDLES, ALERTS))

# Each passes by itself when the server is well again. Twice, as the driver itself sends a query again once when a
# connection ends before its answer, which is how a connection that idled too long shows.
SHARES = (0.0, 0.4, 0.999)
PASSING = {
    **{
        f"{kind} at {share}": Fault(kind, times=2, share=share)
        for kind in ("reset", "short_length", "cut", "clean_cut", "block_cut", "error_midway", "clean_error_midway")
        for share in SHARES
    },
    "drop": Fault("drop", times=2),
    **{f"error {code}": Fault("error", times=2, code=code) for code in (159, 202, 210, 236, 241, 745)},
    **{f"status {code}": Fault("status", times=2, code=code) for code in (429, 500, 502, 503, 504)},
}
ONE_OF_EACH_KIND = {
    name: fault
    for name, fault in PASSING.items()
    if fault.share == SHARES[1] or name in ("clean_cut at 0.0", "drop", "error 241", "status 503")
}
LASTING = {
    **{f"error {code}": Fault("error", times=99, code=code) for code in (47, 60, 62, 81, 192, 193, 497, 516)},
    **{f"status {code}": Fault("status", times=99, code=code) for code in (401, 403, 404)},
}


@pytest.fixture(scope="module")
def base(engine: ClickHouseSource) -> str:
    return create_table(engine, "http_base", CANDLES)


def failed(gateway: Gateway) -> list[Kind]:
    """The faults that happened."""
    return [served.fault for served in gateway.served if served.fault]


# --- a server that is well -----------------------------------------------------------------------


def test_a_server_gives_the_rows_and_the_identity_of_the_embedded_engine(
    base: str, source_of: SourceFactory, http_source_of: SourceFactory
) -> None:
    source = http_source_of(base)
    assert read(source, ALERTS) == read(source_of(base), ALERTS) == EXPECTED
    assert source.identity() == source_of(base).identity()


def test_hostile_mints_are_only_names_to_a_server(
    engine: ClickHouseSource, table: str, http_source_of: SourceFactory
) -> None:
    candles = [Candle(mint, T0_MS, volume=float(n)) for n, mint in enumerate(HOSTILE)]
    create_table(engine, table, candles)
    alerts = [Alert(str(n), mint, T0_MS) for n, mint in enumerate(HOSTILE)]
    assert read(http_source_of(table), alerts) == rows_of_candles(candles)


def test_the_gateway_speaks_every_format_parameter_and_insert_of_the_driver(gateway: Gateway, table: str) -> None:
    import clickhouse_connect

    address = {"host": "127.0.0.1", "port": gateway.port, "username": gateway.user, "password": gateway.password}
    for compress in (True, False, "gzip"):
        client = clickhouse_connect.get_client(**address, compress=compress)
        assert client.ping()
        long = "o'c\\\n\t" * 5000  # too long for a URL: a form
        query = "SELECT {a:String} AS a, number AS n FROM numbers({n:UInt32})"
        for text in ("o'c\\\n\t🚀", long):
            rows = [(text, 0), (text, 1)]
            assert client.query(query, {"a": text, "n": 2}).result_rows == rows
            assert [tuple(row.values()) for row in client.query_arrow(query, {"a": text, "n": 2}).to_pylist()] == rows
        with client.query_arrow_stream("SELECT number FROM numbers(10)") as batches:
            assert sum(batch.num_rows for batch in batches) == 10
        name = f"{table}_{str(compress).lower()}"
        client.command(f"CREATE TABLE {name} (a Int64, b String) ENGINE = MergeTree ORDER BY a")
        client.insert(name, [[1, "native"]], column_names=["a", "b"])
        summary = client.insert_arrow(name, pa.table({"a": [2, 3], "b": ["arrow", "o'c"]}))
        assert summary.written_rows == 2
        assert client.query(f"SELECT * FROM {name} ORDER BY a").result_rows == [(1, "native"), (2, "arrow"), (3, "o'c")]
        assert client.query("SELECT 1", settings={"max_threads": 3}).result_rows == [(1,)]
        client.close()


# --- faults that pass ----------------------------------------------------------------------------


def test_every_kind_of_fault_is_tried_here() -> None:
    tried = {fault.kind for fault in (*PASSING.values(), *LASTING.values())} | {"hang", "drip"}
    assert tried == set(get_args(Kind))


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_waited_out_and_the_result_is_whole(
    gateway: Gateway, base: str, http_source_of: SourceFactory, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    waits: list[float] = []
    gateway.profile = {"max_block_size": "4"}  # a result of several blocks, any of which may be the last to come
    source = http_source_of(base, sleep=waits.append)
    source.table()
    fault = replace(PASSING[name], match="lake_key")
    gateway.fail(fault)
    assert read(source, ALERTS) == EXPECTED
    assert failed(gateway) == [fault.kind] * 2
    assert waits in ([0.5], [0.5, 2.0])
    lines = [record.getMessage() for record in caplog.records if record.name == "lake_pipeline.io.clickhouse"]
    assert len(lines) == len(waits)
    assert lines[0].startswith(
        f"could not read 3 mints, attempt 1, next in 0.5 s: ClickHouse at 127.0.0.1:{gateway.port}"
    )


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_does_not_pass_is_a_transient_error_after_four_attempts(
    gateway: Gateway, base: str, http_source_of: SourceFactory, name: str
) -> None:
    waits: list[float] = []
    source = http_source_of(base, sleep=waits.append)
    source.table()
    gateway.fail(replace(PASSING[name], match="lake_key", times=99))
    with pytest.raises(SourceUnavailable, match=r"\(tried 4 times\)$"):
        read(source, ALERTS)
    assert waits == [0.5, 2.0, 8.0]
    assert 4 <= len(failed(gateway)) <= 8


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
@pytest.mark.parametrize("asked", ["version", r"system\.settings", "currentDatabase", "DESCRIBE", r"SELECT min\("])
def test_the_table_is_described_wholly_or_not_at_all(
    engine: ClickHouseSource, gateway: Gateway, base: str, source_of: SourceFactory, http_source_of: SourceFactory,
    asked: str, name: str,
) -> None:  # fmt: skip
    integers = "http_integers"  # an integer timestamp: its unit is asked for as well
    engine.call(
        "create",
        lambda client: client.command(
            f"CREATE TABLE IF NOT EXISTS {integers} ENGINE = MergeTree ORDER BY tuple() AS "
            f"SELECT * REPLACE (toUnixTimestamp(timestamp) AS timestamp) FROM {base}"
        ),
    )
    expected = source_of(integers).table()
    for times in (2, 99):
        gateway.fail(replace(ONE_OF_EACH_KIND[name], match=asked, times=times))
        # The end of the handshake, the server's zone, may be missing: times are read as integers.
        with contextlib.suppress(SourceError) if times == 99 else contextlib.nullcontext():
            assert http_source_of(integers).table() == expected
        assert failed(gateway)


def test_a_server_that_refuses_connections_for_a_while_is_waited_for(
    gateway: Gateway, base: str, http_source_of: SourceFactory
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            gateway.resume()

    source = http_source_of(base, sleep=sleep)
    source.table()
    gateway.suspend()
    assert read(source, ALERTS) == EXPECTED
    assert waits == [0.5, 2.0]


def test_a_server_that_is_silent_is_an_error_and_not_a_hang(
    gateway: Gateway, base: str, http_source_of: SourceFactory
) -> None:
    dsn = f"clickhouse://127.0.0.1:{gateway.port}?send_receive_timeout=1"
    source = http_source_of(base, CLICKHOUSE_DSN=dsn)
    source.table()
    gateway.fail(Fault("hang", "lake_key", seconds=3))
    assert read(source, ALERTS) == EXPECTED
    gateway.fail(Fault("hang", "lake_key", times=99, seconds=30))
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"did not answer: .*[Tt]imed out.*\(tried 4 times\)"):
        read(source, ALERTS)
    assert time.monotonic() - started < 60  # four silences waited out are 120


def test_without_a_word_in_the_dsn_a_silent_server_has_five_minutes(base: str, http_source_of: SourceFactory) -> None:
    timeout = http_source_of(base).call("look", lambda client: client.timeout)
    assert (timeout.connect_timeout, timeout.read_timeout) == (10, 300)


def test_a_slow_answer_is_waited_for(gateway: Gateway, base: str, http_source_of: SourceFactory) -> None:
    waits: list[float] = []
    source = http_source_of(base, sleep=waits.append)
    source.table()
    gateway.fail(Fault("drip", "lake_key", seconds=1))
    assert read(source, ALERTS) == EXPECTED
    assert failed(gateway) == ["drip"]
    assert waits == []


# --- faults that last ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_cannot_pass_is_named_at_once(
    gateway: Gateway, base: str, http_source_of: SourceFactory, name: str
) -> None:
    waits: list[float] = []
    source = http_source_of(base, sleep=waits.append)
    source.table()
    gateway.fail(replace(LASTING[name], match="lake_key"))
    with pytest.raises(SourceError, match=f"ClickHouse at 127.0.0.1:{gateway.port}") as caught:
        read(source, ALERTS)
    assert not caught.value.transient
    assert str(LASTING[name].code) in str(caught.value)
    assert waits == []


def test_a_wrong_password_is_named_at_once_and_not_shown(
    gateway: Gateway, base: str, http_source_of: SourceFactory
) -> None:
    waits: list[float] = []
    source = http_source_of(base, sleep=waits.append, CLICKHOUSE_PASSWORD="wr0ng-word")
    with pytest.raises(SourceError, match="authentication failed: set CLICKHOUSE_USER and CLICKHOUSE_PASS") as caught:
        source.table()
    assert not caught.value.transient
    assert "wr0ng-word" not in str(caught.value)
    assert gateway.password not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("version", ["20.3.19.4", "23.5.1.1", "banana", ""])
def test_a_server_of_another_version_is_refused_with_the_one_that_is_needed(
    gateway: Gateway, base: str, http_source_of: SourceFactory, version: str
) -> None:
    waits: list[float] = []
    gateway.version = version
    with pytest.raises(SourceError, match=rf"says its version is '{version}': ClickHouse 23\.6 or newer is needed"):
        http_source_of(base, sleep=waits.append).table()
    assert waits == []


def test_a_user_who_may_not_change_settings_is_told_what_is_needed(
    gateway: Gateway, base: str, http_source_of: SourceFactory
) -> None:
    waits: list[float] = []
    gateway.profile = {"readonly": "1"}
    with pytest.raises(SourceError, match="readonly = 2"):
        read(http_source_of(base, sleep=waits.append), ALERTS)
    assert waits == []


# --- short results -------------------------------------------------------------------------------


def test_an_arrow_file_shows_every_cut_where_an_arrow_stream_does_not(gateway: Gateway, base: str) -> None:
    import clickhouse_connect

    address = {"host": "127.0.0.1", "port": gateway.port, "username": gateway.user, "password": gateway.password}
    client = clickhouse_connect.get_client(**address)
    query = f"SELECT timestamp, volume FROM {base} ORDER BY timestamp"
    settings = {"max_block_size": 16}
    file = client.raw_query(query, settings=settings, fmt="Arrow")
    assert pa.ipc.open_file(file).num_record_batches > 1
    for length in range(len(file)):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            pa.ipc.open_file(file[:length]).read_all()
    stream = client.raw_query(query, settings=settings, fmt="ArrowStream")
    short = 0
    for length in range(len(stream)):
        with contextlib.suppress(pa.ArrowInvalid, OSError):
            short += pa.ipc.open_stream(stream[:length]).read_all().num_rows < len(CANDLES)
    assert short > 0


PROFILES = {
    "read": {"max_rows_to_read": "500", "read_overflow_mode": "break"},
    "read of a shard": {"max_rows_to_read_leaf": "500", "read_overflow_mode_leaf": "break"},
}


@pytest.fixture(scope="module")
def long_table(engine: ClickHouseSource) -> str:
    candles = [Candle(mint, T0_MS + minute * 60_000) for mint in ("MintA", "MintB", "MintC") for minute in range(3000)]
    base = create_table(engine, "http_long_base", candles)
    make_variant(engine, "http_long", base, PLAIN, "index_granularity = 64")  # limits are looked at between blocks
    return "http_long"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_cuts_results_short_is_an_error(
    gateway: Gateway, long_table: str, http_source_of: SourceFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = RunSpec("1m", "pre0_post2999")
    profile = {**PROFILES[name], "max_block_size": "64"}
    source = http_source_of(long_table)
    assert len(read(source, ALERTS, spec)) == 9000
    gateway.profile = profile
    with pytest.raises(SourceError, match="Code: 158"):
        read(source, ALERTS, spec)
    gateway.profile = {}
    monkeypatch.setattr("lake_pipeline.io.clickhouse._CLIENT_SETTINGS", {})
    unguarded = http_source_of(long_table)
    unguarded.table()
    gateway.profile = profile
    assert len(read(unguarded, ALERTS, spec)) < 9000


# --- loading -------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[str], str]] = {
    "create": lambda table: "CREATE TABLE IF NOT EXISTS",
    "stage": lambda table: r"^INSERT INTO .*_load_[^ ]* \(.* FORMAT Arrow",
    "count": lambda table: "AS staged",
    "add": lambda table: rf"^INSERT INTO [^ ]*{table}` \(.* SELECT DISTINCT",
    "drop": lambda table: "^DROP TABLE",
}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_loaded_is_there_once_whatever_went_wrong(
    gateway: Gateway, table: str, http_source_of: SourceFactory, tmp_path: Path, step: str
) -> None:
    file = str(tmp_path / "candles.parquet")
    pq.write_table(arrow_candles([replace(candle, source="feed") for candle in CANDLES]), file)
    for number, (name, fault) in enumerate(ONE_OF_EACH_KIND.items()):
        target = f"{table}_{number}"
        gateway.fail(replace(fault, match=STEPS[step](target)))
        source = http_source_of(target)
        loaded = load_candles(source, [file])
        assert failed(gateway), name
        assert loaded.rows == loaded.inserted + loaded.present == len(CANDLES), name
        assert len(read(source, ALERTS)) == len(EXPECTED), name
        gateway.fail()
        again = load_candles(source, [file])
        assert (again.inserted, again.present) == (0, len(CANDLES)), name


@pytest.mark.parametrize(
    ("step", "kind"),
    [*((step, "error") for step in STEPS), ("create", "clean_error_midway"), ("add", "clean_error_midway")],
)
def test_a_load_that_fails_for_good_says_so_at_once(
    gateway: Gateway, table: str, http_source_of: SourceFactory, tmp_path: Path, step: str, kind: Kind
) -> None:
    file = str(tmp_path / "candles.parquet")
    pq.write_table(arrow_candles([replace(candle, source="feed") for candle in CANDLES]), file)
    waits: list[float] = []
    gateway.fail(Fault(kind, STEPS[step](table), times=99, code=243))  # NOT_ENOUGH_SPACE
    with pytest.raises(SourceError, match="243") as caught:
        load_candles(http_source_of(table, sleep=waits.append), [file])
    assert not caught.value.transient
    assert waits == []
