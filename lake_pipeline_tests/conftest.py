"""What every test may use: a quiet environment, one embedded engine per process, tables of one's own, an S3 server.

chDB takes one database path per process, so all tests of a worker share `engine_root`; a table is what a
test has to itself. The engine is kept open for a module and closed at its end, so that a module of tests
that needs another path can have it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings

from lake_pipeline.export import export_buckets
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.candles_for_tests import (
    MARKET_SPEC,
    STRICT_SPEC,
    T0_MS,
    Alert,
    Candle,
    create_table,
    seal,
    sealed_run,
    sha1_bucket,
    small_market,
    start_run,
    write_alerts,
)
from lake_pipeline_tests.gateway import Gateway

# Whatever machine this runs on, no test may reach for its server or its lake.
for name in [name for name in os.environ if name.startswith(("AWS_", "CLICKHOUSE_", "LAKE_"))]:
    del os.environ[name]

settings.register_profile("lake", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("lake")

_TABLE_NUMBERS = itertools.count(1)

SourceFactory = Callable[..., ClickHouseSource]


@pytest.fixture(scope="session")
def engine_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root whose `clickhouse` folder is this process's embedded database."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def engine(engine_root: Path) -> Iterator[ClickHouseSource]:
    """A source on the shared database that stays open for the module; for DDL and inserts."""
    with ClickHouseSource(SourceConfig(embedded_path=str(engine_root / "clickhouse"))) as source:
        source.database()
        yield source


@pytest.fixture
def table() -> str:
    """A table name nobody else uses."""
    return f"candles_{next(_TABLE_NUMBERS)}"


@pytest.fixture
def source_of(engine: ClickHouseSource) -> Iterator[SourceFactory]:
    """Makes sources on the shared database, by table name, and closes them."""
    opened: list[ClickHouseSource] = []

    def make(table: str, **config: Any) -> ClickHouseSource:
        source = ClickHouseSource(SourceConfig(embedded_path=engine.config.embedded_path, table=table, **config))
        opened.append(source)
        return source

    yield make
    for source in opened:
        source.close()


@pytest.fixture
def gateway(engine: ClickHouseSource) -> Iterator[Gateway]:
    """A ClickHouse server on loopback over the shared database, with a password."""
    with Gateway(engine.config.embedded_path, user="lake", password="s3cret-word") as gateway:
        yield gateway


@pytest.fixture
def http_source_of(gateway: Gateway) -> Iterator[SourceFactory]:
    """Makes sources on the gateway, by table name, that do not really wait; closes them."""
    opened: list[ClickHouseSource] = []

    def make(table: str, sleep: Callable[[float], None] = lambda seconds: None, **environment: str) -> ClickHouseSource:
        config = SourceConfig.from_environment(gateway.environment | environment, "not used", table=table)
        opened.append(ClickHouseSource(config, sleep=sleep))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


@pytest.fixture
def lake(tmp_path: Path) -> LocalStore:
    """An empty data root."""
    return LocalStore(tmp_path / "data")


@dataclass(frozen=True)
class Market:
    """A table of candles with every defect, the alerts on it and their file, with one row to reject."""

    table: str
    candles: list[Candle]
    alerts: list[Alert]
    csv: str

    @property
    def buckets(self) -> list[str]:
        """The buckets that have an alert, sorted."""
        return sorted({sha1_bucket(alert.mint) for alert in self.alerts})


@pytest.fixture(scope="module")
def market(engine: ClickHouseSource, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """The small market, in a table of the module's own."""
    candles, alerts = small_market()
    table = create_table(engine, f"market_{next(_TABLE_NUMBERS)}", candles)
    unusable = Alert("unusable", "", T0_MS)
    return Market(
        table, candles, alerts, write_alerts(tmp_path_factory.mktemp("alerts") / "alerts.csv", [*alerts, unusable])
    )


@pytest.fixture
def market_source(market: Market, source_of: SourceFactory) -> ClickHouseSource:
    """A source on the market's table."""
    return source_of(market.table)


@pytest.fixture(scope="module")
def unsealed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `sealed_lake` keeps a copy of its run `plain` as it was before the seal."""
    return tmp_path_factory.mktemp("unsealed")


@pytest.fixture(scope="module")
def sealed_lake(
    market: Market, engine: ClickHouseSource, unsealed_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> LocalStore:
    """A data root with two sealed runs of the market, `plain` and `strict`. Copy before you change it."""
    lake = LocalStore(tmp_path_factory.mktemp("sealed"))
    config = SourceConfig(embedded_path=engine.config.embedded_path, table=market.table)
    with ClickHouseSource(config) as source:
        run = start_run(lake, source, market.csv, MARKET_SPEC, "plain")
        export_buckets(run, source)
        shutil.copytree(lake.root, unsealed_root, dirs_exist_ok=True)
        seal(run)
        sealed_run(lake, source, market.csv, STRICT_SPEC, "strict")
    return lake


@pytest.fixture
def copied_lake(sealed_lake: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the sealed lake to spoil."""
    shutil.copytree(sealed_lake.root, tmp_path / "copy")
    return LocalStore(tmp_path / "copy")


@pytest.fixture
def exported(sealed_lake: LocalStore, unsealed_root: Path, tmp_path: Path) -> Run:
    """A run `plain` of the market with all its buckets, not sealed yet, to seal or spoil."""
    shutil.copytree(unsealed_root, tmp_path / "exported")
    return load_run(LocalStore(tmp_path / "exported"), "plain")


SECRET = "sEcReT-of-the-lake-tests"


@dataclass(frozen=True)
class S3:
    """A real S3 server on loopback, and what its log says."""

    port: int
    log: Path
    bucket: str = "lakes"

    def environment(self, access_key: str = "TESTER") -> dict[str, str]:
        """What a process needs to use it; lake_pipeline_tests.s3_server has the keys that meet faults."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def requests(self) -> list[dict[str, Any]]:
        """Every request answered so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The server process, with an empty bucket."""
    log = tmp_path_factory.mktemp("s3") / "requests.jsonl"
    command = [sys.executable, "-m", "lake_pipeline_tests.s3_server", str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin: IO[str] = process.stdin  # type: ignore[assignment]
        assert process.stdout
        server = S3(int(process.stdout.readline()), log)
        bucket = urllib.request.Request(f"http://127.0.0.1:{server.port}/{server.bucket}", method="PUT")
        urllib.request.urlopen(bucket).close()
        yield server
        stdin.close()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with this process's environment set up for it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_url(s3: S3) -> str:
    """A data root in the bucket nobody else uses."""
    return f"s3://{s3.bucket}/root-{next(_TABLE_NUMBERS)}"
