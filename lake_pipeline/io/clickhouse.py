"""ClickHouse by `clickhouse_connect`: an HTTP(S) server, or the embedded engine (chDB) in this process.

What belongs here: connecting, describing, reading, retrying, and saying clearly what went wrong. The SQL
itself is in `io.queries`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.core.candles import VALUE_COLUMNS, CandleBlock, float_rank
from lake_pipeline.core.canonical import sha256_hex
from lake_pipeline.errors import ConfigError, EngineBusy, SourceError, SourceUnavailable
from lake_pipeline.io.queries import (
    TABLE_STATE,
    VERSION_COLUMNS,
    CandleTable,
    fingerprint_query,
    needs_unit_probe,
    resolve_columns,
    slice_query,
)
from lake_pipeline.io.source import DEFAULT_TABLE, RowsFingerprint, SliceRequest

__all__ = ["ClickHouseSource", "SourceConfig", "fetch_rows", "quote_table", "run_statement"]

logger = logging.getLogger(__name__)

_RETRY_WAITS_S: Final = (0.5, 2.0, 8.0)
# What ClickHouse calls conditions that pass by themselves.
_TRANSIENT_CODES: Final = frozenset(
    {
        159,  # TIMEOUT_EXCEEDED
        198,  # DNS_ERROR, of a cluster's other hosts
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        203,  # NO_FREE_CONNECTION
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        236,  # ABORTED, by a server that shuts down
        241,  # MEMORY_LIMIT_EXCEEDED, most often by the neighbours
        252,  # TOO_MANY_PARTS, until merges catch up
        279,  # ALL_CONNECTION_TRIES_FAILED
        319,  # UNKNOWN_STATUS_OF_INSERT
        394,  # QUERY_WAS_CANCELLED
        439,  # CANNOT_SCHEDULE_TASK
        745,  # SERVER_OVERLOADED
        999,  # KEEPER_EXCEPTION
    }
)
_ADVICE: Final[Mapping[int, str]] = {
    60: "the table does not exist: create and fill it with `lake load-candles FILE...`, or set candle_source.table",
    81: "the database does not exist: set candle_source.database or CLICKHOUSE_DATABASE",
    192: "unknown user: set CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    193: "wrong password: set CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    194: "a password is needed: set CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    497: "the user may not read this: grant SELECT on the candle table",
    516: "authentication failed: set CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
}
# Set once for each client: the driver's settings for a single query cost the embedded engine nine statements more.
# Windows are literals, so the text of a query is long. A profile on the server may make its limits, or a shard that is
# down, cut results short silently: here they raise.
_CLIENT_SETTINGS: Final[dict[str, Any]] = {
    "max_query_size": 1 << 28,
    **dict.fromkeys(
        (
            "distinct_overflow_mode",
            "join_overflow_mode",
            "read_overflow_mode",
            "read_overflow_mode_leaf",
            "result_overflow_mode",
            "set_overflow_mode",
            "timeout_overflow_mode",
            "timeout_overflow_mode_leaf",
        ),
        "throw",
    ),
    "skip_unavailable_shards": 0,
}
# A server that is silent for so long is an error. While a long query runs it sends progress, well within this.
_TIMEOUTS_S: Final = {"connect_timeout": 10, "send_receive_timeout": 300}
_OLDEST_VERSION: Final = (23, 6)  # session_timezone
# How often a process that waits for the embedded engine looks whether it is free.
_ENGINE_POLL_S: Final = 0.2
_SOME_MILLISECONDS: Final = 100_000_000_000
_RANK_OF_NULL: Final = np.iinfo(np.int64).min

T = TypeVar("T")


@dataclass(frozen=True)
class SourceConfig:
    """Where the candles are. With neither `dsn` nor `host`, the embedded engine under `embedded_path`.

    `columns` maps roles (`token_address`, `timestamp`, `open` ...) to the table's own names. `wait_s` is how long to
    wait for the embedded engine while another process has it.
    """

    embedded_path: str
    dsn: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    table: str = DEFAULT_TABLE
    columns: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        embedded_path: str,
        *,
        dsn: str | None = None,
        database: str | None = None,
        table: str | None = None,
        columns: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> SourceConfig:
        """Settings given here, completed by CLICKHOUSE_DSN, _HOST, _PORT, _USER, _PASSWORD, _DATABASE and LAKE_WAIT_S.

        Raises ConfigError for a `dsn` argument that carries a password: configuration is stored and shown
        by Dagster, so secrets come from the environment only.
        """
        if dsn and urlsplit(dsn).password:
            raise ConfigError(
                "candle_source.dsn holds a password, and run configuration is stored in the clear: "
                "move it to CLICKHOUSE_PASSWORD, or the whole DSN to CLICKHOUSE_DSN"
            )
        port = environment.get("CLICKHOUSE_PORT") or None
        if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise ConfigError(f"CLICKHOUSE_PORT {port!r} is not a port number")
        return cls(
            embedded_path=embedded_path,
            dsn=dsn or environment.get("CLICKHOUSE_DSN") or None,
            host=environment.get("CLICKHOUSE_HOST") or None,
            port=int(port) if port else None,
            user=environment.get("CLICKHOUSE_USER") or None,
            password=environment.get("CLICKHOUSE_PASSWORD") or None,
            database=database or environment.get("CLICKHOUSE_DATABASE") or None,
            table=table or DEFAULT_TABLE,
            columns=dict(columns or {}),
            wait_s=_seconds(environment, "LAKE_WAIT_S") if wait_s is None else wait_s,
        )

    @property
    def embedded(self) -> bool:
        """Whether this is the engine in this process."""
        return not (self.dsn or self.host)

    @property
    def location(self) -> str:
        """For messages: where this is, without credentials."""
        if self.embedded:
            return f"the embedded engine at {self.embedded_path}"
        where = self.connection()
        port = f":{where['port']}" if where["port"] else ""
        return f"ClickHouse at {where['host']}{port}"

    def connection(self) -> dict[str, Any]:
        """Arguments for the driver. A DSN names the server; user, password and database fill in what it leaves out.

        TLS by `https://`, `clickhouses://`, `?secure=true` or the ports 443 and 8443. Raises ConfigError for a DSN
        that is not one.
        """
        try:
            dsn = urlsplit(self.dsn or "")
            options = dict(parse_qsl(dsn.query, strict_parsing=bool(dsn.query)))
            host, port = (dsn.hostname, dsn.port) if self.dsn else (self.host, self.port)
        except ValueError:
            raise ConfigError(
                "the ClickHouse DSN does not parse: write clickhouse://user@host:8123/database, "
                "with ?secure=true for TLS"
            ) from None
        secure = options.pop("secure", "").lower() in ("1", "true") or dsn.scheme in ("https", "clickhouses")
        tls = secure or options.pop("interface", "") == "https" or port in (443, 8443)
        return {
            "host": host or "localhost",
            "port": port or 0,
            "username": unquote(dsn.username) if dsn.username else self.user,
            "password": unquote(dsn.password) if dsn.password else self.password or "",
            "database": unquote(dsn.path.strip("/")) or self.database,
            "interface": "https" if tls else "http",
            **options,
        }


def quote_table(database: str, table: str) -> str:
    """Quoted `database.table`."""
    return CandleTable(database, table, {}, {}).qualified


def fetch_rows(client: Any, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows of a small result.

    Every result here and in `ClickHouseSource.read` travels in Arrow's file format. Its last bytes are a footer that
    lists every block, so an answer that was cut anywhere does not open, even where HTTP saw a proper end. ArrowStream
    and Native promise less: both may end after any block. A row count or X-ClickHouse-Summary would not do either:
    the one costs a second query, the other is sent before the body.
    """
    rows: list[dict[str, Any]] = client.query_arrow(query, parameters=parameters).to_pylist()
    return rows


def run_statement(client: Any, statement: str) -> None:
    """Run a statement that has no result. Raises the driver's error if there is one in its place.

    Once its headers are sent, a server can report an error only in the body.
    """
    from clickhouse_connect.driver.exceptions import OperationalError
    from clickhouse_connect.driver.summary import QuerySummary

    answer = client.command(statement)
    if not isinstance(answer, QuerySummary):
        code = re.search(r"Code: ([0-9]+)", str(answer))
        raise OperationalError(str(answer), code=int(code[1]) if code else None)


class ClickHouseSource:
    """A candle table in ClickHouse; see `io.source.CandleSource`. A context manager: leaving it closes it."""

    def __init__(self, config: SourceConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.config = config
        self._sleep = sleep
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._table: CandleTable | None = None
        self._lock = Lock()

    def __enter__(self) -> ClickHouseSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all connections; the embedded engine shuts down with its last one."""
        with contextlib.suppress(Empty):
            while True:
                self._idle.get_nowait().close()

    def identity(self) -> dict[str, Any]:
        """Database, table and the columns in use."""
        table = self.table()
        return {
            "database": table.database,
            "table": table.table,
            "columns": dict(sorted(table.columns.items())),
        }

    def database(self) -> str:
        """The database the candle table is in."""
        return self.call("connect", lambda client: _database(client, self.config))

    def table(self) -> CandleTable:
        """The candle table as DESCRIBE TABLE shows it; asked once."""
        with self._lock:
            if self._table is None:
                self._table = self.call("describe the candle table", self._describe)
            return self._table

    def read(self, request: SliceRequest) -> CandleBlock:
        """Every row inside the request's windows."""
        table = self.table()
        query, parameters = slice_query(table, request)
        rows = self.call(
            f"read {len(request.mints)} mints",
            lambda client: client.query_arrow(query, parameters=parameters),
        )
        return _block(rows)

    def fingerprint(self, request: SliceRequest) -> RowsFingerprint:
        """Count and checksum of the rows inside the request's windows, per mint."""
        query, parameters = fingerprint_query(self.table(), request)
        found = self.call(
            f"count the candles of {len(request.mints)} mints",
            lambda client: client.query_arrow(query, parameters=parameters),
        )
        rows, checksum = np.zeros(len(request.mints), np.int64), np.zeros(len(request.mints), np.uint64)
        mint = found.column("m").to_numpy()
        rows[mint] = found.column("row_count").to_numpy()
        checksum[mint] = found.column("checksum").to_numpy()
        return RowsFingerprint(rows, checksum)

    def state(self, start_ms: int, end_ms: int) -> str | None:
        """A hash over the definition of a MergeTree table and its parts; None for other engines."""
        table = self.table()
        parameters = {"database": table.database, "table": table.table, "start": start_ms, "end": end_ms}
        try:
            found = self.call("read the table's state", lambda client: fetch_rows(client, TABLE_STATE, parameters))
        except SourceError as error:  # a user without access to system tables
            logger.info("the state of %s cannot be read, so nothing is reused: %s", table.qualified, error)
            return None
        lines = sorted(row["line"] for row in found)
        return sha256_hex("\n".join(lines).encode()) if any(line.startswith("CREATE") for line in lines) else None

    def call(self, what: str, action: Callable[[Any], T]) -> T:
        """Run `action` on a client of its own, again after a wait while the error is transient.

        Raises SourceError or, after the last attempt, SourceUnavailable.
        """
        for attempt, wait_s in enumerate((*_RETRY_WAITS_S, None), start=1):
            try:
                with self._client() as client:
                    return action(client)
            except SourceUnavailable as error:
                if wait_s is None:
                    raise SourceUnavailable(f"{error} (tried {attempt} times)") from error
                logger.warning("could not %s, attempt %d, next in %s s: %s", what, attempt, wait_s, error)
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """A client nobody else uses meanwhile; one that failed is closed, not reused."""
        try:
            client = self._idle.get_nowait()
        except Empty:
            client = self._connect_when_free()
        try:
            with self._explained():
                yield client
        except BaseException:
            with contextlib.suppress(Exception):
                client.close()
            raise
        self._idle.put(client)

    def _connect_when_free(self) -> Any:
        """Connect; while another process has the embedded engine, wait for it as long as the config says."""
        started = time.monotonic()
        deadline = started + self.config.wait_s
        waited = too_late = False
        while True:
            try:
                return self._connect()
            except EngineBusy as error:
                if not error.passes or not self.config.wait_s:
                    raise
                if time.monotonic() >= deadline:
                    raise EngineBusy(f"{error} (waited {self.config.wait_s:g} s)") from error
                if not waited:
                    logger.warning("%s. Waiting for it, at most %g s", error, self.config.wait_s)
                waited = True
            except SourceError:
                # Of several that wait, another was quicker, and gone before it could be named. Twice is a real fault.
                if not waited or too_late:
                    raise
                too_late = True
            while self._engine_owner() and time.monotonic() < deadline:
                self._sleep(_ENGINE_POLL_S)

    def _connect(self) -> Any:
        import clickhouse_connect

        config = self.config
        with self._explained():
            if config.embedded:
                _require_chdb()
                Path(config.embedded_path).mkdir(parents=True, exist_ok=True)
                if not os.access(config.embedded_path, os.W_OK):
                    raise SourceError(
                        f"no permission to write {config.embedded_path}, which the embedded engine needs even to "
                        "read: check the folder's owner and mode"
                    )
                client = clickhouse_connect.get_client(
                    interface="chdb", path=config.embedded_path, database=config.database
                )
                # Nothing travels: packing results only to unpack them is a tenth of a query.
                client.set_client_setting("output_format_arrow_compression_method", "none")
            else:
                # Retries are those of `call`, which says so; a DSN may set other timeouts.
                arguments = {"query_retries": 0, **_TIMEOUTS_S, **config.connection()}
                try:
                    client = clickhouse_connect.get_client(**arguments, client_name="lake-pipeline")
                except TypeError as error:  # DSN options are keyword arguments of the driver
                    raise ConfigError(f"the ClickHouse DSN has an option the driver does not take: {error}") from error
                self._require_version(client)
            for name, value in _CLIENT_SETTINGS.items():
                client.set_client_setting(name, value)
            return client

    def _require_version(self, client: Any) -> None:
        version = str(client.server_version)
        found = re.match(r"([0-9]+)\.([0-9]+)", version)
        if not found or (int(found[1]), int(found[2])) < _OLDEST_VERSION:
            raise SourceError(
                f"{self.config.location} says its version is {version[:40]!r}: ClickHouse "
                f"{'.'.join(map(str, _OLDEST_VERSION))} or newer is needed"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the driver's errors into SourceError, with the place and what to do next."""
        from clickhouse_connect.driver.exceptions import ClickHouseError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ClickHouseError, HTTPError, OSError, pa.ArrowInvalid) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> SourceError:
        from clickhouse_connect.driver.exceptions import ProgrammingError

        text = str(error).strip()
        if self.config.embedded and ("chdb engine" in text or "EmbeddedServer" in text):
            return self._explain_engine(text)
        code: int | None = getattr(error, "code", None)
        if code is not None and code in _ADVICE:
            return SourceError(f"{self.config.location}: {_ADVICE[code]}. It said: {_first_line(text)}")
        if code is not None and code not in _TRANSIENT_CODES:
            return SourceError(f"{self.config.location} refused the query: {_first_line(text)}")
        if code is not None:
            return SourceUnavailable(f"{self.config.location} cannot answer now: {_first_line(text)}")
        if self.config.embedded:
            return SourceError(f"{self.config.location}: {_first_line(text)}")
        if isinstance(error, pa.ArrowInvalid):
            return SourceUnavailable(f"{self.config.location} sent an incomplete answer: {_first_line(text)}")
        if isinstance(error, ProgrammingError):  # found by the driver before anything was sent
            return SourceError(
                f"{self.config.location} cannot be asked: {_first_line(text)}. A user who may only read needs "
                "readonly = 2, which lets it change settings"
            )
        if re.search(r"HTTP status 4(?!08|29)[0-9]{2}", text):
            return SourceError(
                f"{self.config.location} is not ClickHouse, or something in front of it refuses: {_first_line(text)}. "
                "Check CLICKHOUSE_HOST and CLICKHOUSE_PORT, which is that of HTTP"
            )
        return SourceUnavailable(
            f"{self.config.location} did not answer: {_first_line(text)}. Check that the server runs and that "
            "CLICKHOUSE_HOST and CLICKHOUSE_PORT are right"
        )

    def _explain_engine(self, text: str) -> SourceError:
        path = self.config.embedded_path
        if "already initialized with path" in text:
            return EngineBusy(
                f"this process has another embedded database open, so {path} cannot be opened: "
                "one process, one database; use a process for each data root",
                passes=False,
            )
        owner = self._engine_owner()
        if owner:
            return EngineBusy(
                f"the embedded database {path} is in use by {owner}, and it takes one process at a time: wait for "
                "that process (wait_s, --wait), stop it, or use a ClickHouse server (CLICKHOUSE_HOST)"
            )
        return SourceError(f"cannot open the embedded database {path}: {_first_line(text)}")

    def _engine_owner(self) -> str | None:
        """Who else has the embedded database, by its process id where that can be known; None if nobody has."""
        with contextlib.suppress(OSError), Path(self.config.embedded_path, "status").open("rb") as status:
            try:
                fcntl.flock(status, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found = re.search(rb"PID: ([0-9]+)", status.read())
                if found and int(found[1]) == os.getpid():
                    return None
                return f"process {int(found[1])}" if found and _exists(int(found[1])) else "another process"
        return None

    def _describe(self, client: Any) -> CandleTable:
        config = self.config
        database = _database(client, config)
        qualified = quote_table(database, config.table)
        described = {row["name"]: row["type"] for row in fetch_rows(client, f"DESCRIBE TABLE {qualified}")}
        where = f"table {database}.{config.table} of {config.location}"
        columns, types = resolve_columns(where, described, config.columns)
        table = CandleTable(database, config.table, columns, types)
        if not needs_unit_probe(types):
            return table
        column = table.column("timestamp")
        (bounds,) = fetch_rows(client, f"SELECT min({column}) AS low, max({column}) AS high FROM {qualified} AS c")  # noqa: S608
        low, high = bounds["low"], bounds["high"]
        is_ms = (high or 0) >= _SOME_MILLISECONDS
        if is_ms and 0 < low < _SOME_MILLISECONDS:
            raise SourceError(
                f"{where}: integer timestamps run from {low} to {high}, which mixes seconds and milliseconds; "
                "convert the column or remove the wrong rows"
            )
        return CandleTable(database, config.table, columns, types, "ms" if is_ms else "s")


def _exists(pid: int) -> bool:
    """Whether there is such a process here; one in another container has a number of its own there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def _seconds(environment: Mapping[str, str], name: str) -> float:
    text = environment.get(name) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{name} {text!r} is not a number of seconds")
    return seconds


def _database(client: Any, config: SourceConfig) -> str:
    named = config.database if config.embedded else config.connection()["database"]
    return named or str(fetch_rows(client, "SELECT currentDatabase() AS name")[0]["name"])


def _first_line(text: str) -> str:
    line = text.splitlines()[0] if text else "no message"
    return line if len(line) <= 300 else line[:297] + "..."


def _require_chdb() -> None:
    try:
        import chdb  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the embedded engine is not installed: pip install 'lake-pipeline[embedded]', "
            "or set CLICKHOUSE_HOST to use a server"
        ) from error


def _block(rows: pa.Table) -> CandleBlock:
    """Arrow columns as the arrays the core works on."""

    def numbers(name: str, dtype: npt.DTypeLike) -> Any:
        return rows.column(name).to_numpy().astype(dtype, copy=False)

    versions = tuple(_version_rank(rows.column(role)) for role in VERSION_COLUMNS if role in rows.column_names)
    source = None
    if "source" in rows.column_names:
        source = pa.concat_arrays(
            [pa.array([], pa.string()), *rows.column("source").cast(pa.string()).chunks]
        ).dictionary_encode()
    return CandleBlock(
        keys=numbers("lake_key", np.int64),
        values={name: numbers(name, np.float64) for name in VALUE_COLUMNS},
        source=source,
        versions=versions,
    )


def _version_rank(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Integers that sort like the versions; null and NaN are the smallest."""
    if pa.types.is_floating(column.type):
        values = column.to_numpy().astype(np.float64)
        return np.where(np.isnan(values), _RANK_OF_NULL, float_rank(values))
    filled: npt.NDArray[np.int64] = column.cast(pa.int64()).fill_null(_RANK_OF_NULL).to_numpy()
    return filled
