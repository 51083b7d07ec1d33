"""ClickHouse's HTTP protocol on loopback in front of a chDB engine, with faults on demand.

What belongs here: what a ClickHouse server does on the wire and what can go wrong there. Queries, bound
parameters, settings, databases, credentials, formats, inserts, compression and errors are those of the real engine;
nothing is made up. One gateway lets several processes share an engine: inside a test by `Gateway(...)`, or as

    python -m lake_pipeline_tests.gateway --path ENGINE_FOLDER [--port 0]

which prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import base64
import email
import gzip
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import lz4.frame
from clickhouse_connect.driver.binding import quote_identifier

__all__ = ["Fault", "Gateway", "Served"]

Kind = Literal[
    "drop",  # the connection ends before the first byte of the response
    "reset",  # it is reset within the body
    "short_length",  # the body ends before its Content-Length
    "cut",  # the chunked body ends early, without its terminator
    "clean_cut",  # it ends early, with its terminator: HTTP sees nothing wrong
    "block_cut",  # the same after a whole block of an Arrow result, which looks like the end of an ArrowStream
    "error",  # HTTP 500 with a ClickHouse error
    "error_midway",  # status 200, part of the rows, the text of an error, no terminator
    "clean_error_midway",  # the same with a terminator, as old servers do
    "status",  # a plain HTTP error that is not ClickHouse's, as of a proxy
    "hang",  # no answer for `seconds`
    "drip",  # the whole body in fifty pieces over `seconds`
]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` queries in which `match`, a regular expression, is found.

    The first `skip` of them pass. `share` of the body is sent by the kinds that cut it; `code` is the ClickHouse error
    or the HTTP status.
    """

    kind: Kind
    match: str = ""
    times: int = 1
    share: float = 0.5
    code: int = 241
    seconds: float = 0.0
    skip: int = 0


@dataclass(frozen=True)
class Served:
    """One query that came in, and what went wrong with it."""

    sql: str
    fault: Kind | None


class EngineError(Exception):
    """A ClickHouse exception as it goes to the client."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


# URL parameters that are the protocol's, not the engine's settings.
_RESERVED = frozenset(
    {"query", "database", "user", "password", "default_format", "session_id", "session_timeout", "session_check"}
    | {"query_id", "wait_end_of_query", "compress", "decompress", "enable_http_compression", "buffer_size"}
    | {"send_progress_in_http_headers", "http_headers_progress_interval_ms", "client_protocol_version"}
    | {"quota_key", "role"}
)
_STATUS_OF_CODE = {60: 404, 62: 400, 81: 404, 47: 404, 46: 404, 48: 501, 192: 403, 193: 403, 194: 401, 516: 403}
_ARROW_MESSAGE = b"\xff\xff\xff\xff"  # begins each
_CODE = re.compile(r"Code: ([0-9]+)\.")
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_INSERT = re.compile(rb"\s*(INSERT\s+INTO\s.*?)\s+FORMAT\s+(\w+)\s*?(?:\n|$)", re.IGNORECASE | re.DOTALL)


class Gateway:
    """A server on 127.0.0.1 over the engine of one folder; a context manager that serves in threads.

    `profile` holds the settings its user has from the server. Set `version` to make it say another than the engine's.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        port: int = 0,
        user: str = "default",
        password: str = "",
        profile: Mapping[str, str] | None = None,
    ) -> None:
        self.user, self.password = user, password
        self.profile = dict(profile or {})
        self.version: str | None = None
        self.served: list[Served] = []
        # Requests since the faults were set, and what is told of each, by its number, before it is looked at.
        self.requests = 0
        self.on_request: Callable[[int], None] = lambda request: None
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        # Spelt as clickhouse-connect does: chDB compares paths by their text.
        self._path = os.path.realpath(path)
        # Not at import: a process that has chDB must not be forked, and one that knows of gateways may be.
        import chdb

        self._chdb = chdb
        self.engine_version = str(chdb.engine_version)
        self._engine = chdb.connect(self._path)
        self._server = _Server(("127.0.0.1", port), self)
        self.port = int(self._server.server_address[1])
        self._server.start()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and let go of the engine."""
        self._server.stop()
        self._engine.close()

    @property
    def environment(self) -> dict[str, str]:
        """How the pipeline is told of this server."""
        return {
            "CLICKHOUSE_HOST": "127.0.0.1",
            "CLICKHOUSE_PORT": str(self.port),
            "CLICKHOUSE_USER": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
        }

    def fail(self, *faults: Fault) -> None:
        """Let these happen, from now on and in this order where several match; forget the queries served so far."""
        with self._lock:
            self._faults = list(faults)
            self.served.clear()
            self.requests = 0

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Meanwhile nobody listens at the port, and connections that were open are gone."""
        self.suspend()
        try:
            yield
        finally:
            self.resume()

    def suspend(self) -> None:
        """Stop listening and drop every connection."""
        self._server.stop()

    def resume(self) -> None:
        """Listen at the same port again."""
        self._server = _Server(("127.0.0.1", self.port), self)
        self._server.start()

    def count_request(self) -> None:
        """Number a request and tell of it."""
        with self._lock:
            number, self.requests = self.requests, self.requests + 1
        self.on_request(number)

    def take_fault(self, sql: str) -> Fault | None:
        """The fault of this query, counted as used."""
        with self._lock:
            found = next((fault for fault in self._faults if re.search(fault.match, sql)), None)
            if found:
                position = self._faults.index(found)
                if found.skip:
                    self._faults[position], found = replace(found, skip=found.skip - 1), None
                else:
                    self._faults[position : position + 1] = (
                        [replace(found, times=found.times - 1)] if found.times > 1 else []
                    )
            self.served.append(Served(sql, found.kind if found else None))
            return found

    def execute(self, statement: bytes, parameters: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        """Run one statement as its URL parameters ask: its output and what the server counts of it."""
        connection = self._chdb.connect(self._path)  # a session of its own, so that no setting outlives its request
        try:
            if parameters.get("database"):
                connection.query(f"USE {quote_identifier(parameters['database'])}")
            settings = {
                name: value
                for name, value in parameters.items()
                if name not in _RESERVED and not name.startswith("param_")
            }
            for name, value in (self.profile | settings).items():
                escaped = value.replace("\\", "\\\\").replace("'", "\\'")
                connection.query(f"SET {quote_identifier(name)} = '{escaped}'")
            insert = _INSERT.match(statement)
            if insert and re.search(rb"\bVALUES\b|\bSELECT\b", insert[1], re.IGNORECASE) is None:
                result = _insert(connection, insert[1], insert[2].decode(), statement[insert.end() :])
            else:
                bound = {name[6:]: value for name, value in parameters.items() if name.startswith("param_")}
                result = connection.query(statement, parameters.get("default_format", "TabSeparated"), params=bound)
            body = result.bytes() or b""
            summary = {
                "read_rows": str(result.rows_read()),
                "read_bytes": str(result.bytes_read()),
                "written_rows": str(result.rows_written()),
                "written_bytes": str(result.bytes_written()),
                "elapsed_ns": str(int(result.elapsed() * 1e9)),
            }
        except Exception as error:
            text = str(error)
            code = _CODE.search(text)
            raise EngineError(int(code[1]) if code else 1001, text[code.start() if code else 0 :]) from error
        finally:
            connection.close()
        if self.version is not None and statement.strip().lower().startswith(b"select version()"):
            body = f"{self.version}\tUTC\n".encode()
        return body, summary


def _insert(connection: Any, insert: bytes, format_: str, data: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".data") as file:
        file.write(data)
        file.flush()
        return connection.query(f"{insert.decode()} FROM INFILE '{file.name}' COMPRESSION 'none' FORMAT {format_}")


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], gateway: Gateway) -> None:
        super().__init__(address, _Handler)
        self.gateway = gateway
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that left is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    # --- the request -----------------------------------------------------------------------------

    def _answer(self) -> None:
        gateway = self.server.gateway
        url = urlsplit(self.path)
        body = self._body()
        if url.path == "/ping":
            self._send(200, {}, b"Ok.\n")
            return
        gateway.count_request()
        parameters = dict(parse_qsl(url.query, keep_blank_values=True))
        if self.headers.get_content_type() == "multipart/form-data":
            parameters |= self._form(body)
            body = b""
        if not self._authenticated(parameters):
            text = f"Code: 516. DB::Exception: {gateway.user}: Authentication failed: password is incorrect, or there "
            self._send_error(516, text + "is no user with such name. (AUTHENTICATION_FAILED)")
            return
        statement = b"\n".join(part for part in (parameters.get("query", "").encode(), body) if part)
        sql = statement[:100_000].decode(errors="replace")
        fault = gateway.take_fault(sql)
        if fault and self._fails_before(fault):
            return
        # An insert that fails midway adds nothing; a query that does has its first rows.
        refused = fault and fault.kind.endswith("error_midway") and sql.startswith("INSERT")
        try:
            output, summary = (b"", {}) if refused else gateway.execute(statement, parameters)
        except EngineError as error:
            self._send_error(error.code, str(error))
            return
        headers = {
            "X-ClickHouse-Server-Display-Name": "gateway",
            "X-ClickHouse-Query-Id": parameters.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Summary": json.dumps(summary),
        }
        if output:
            named = _FORMAT.search(sql[-200:])
            headers["X-ClickHouse-Format"] = named[1] if named else parameters.get("default_format", "TabSeparated")
        encoding = self._encoding(parameters)
        if encoding and output:
            output = _compress(output, encoding)
            headers["Content-Encoding"] = encoding
        if fault:
            self._fail_within(fault, headers, output)
        else:
            self._send(200, headers, output)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return _decompress(body, self.headers.get("Content-Encoding", ""))

    def _form(self, body: bytes) -> dict[str, str]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts: Any = email.message_from_bytes(head + body).get_payload()
        return {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True).decode()
            for part in parts
        }

    def _authenticated(self, parameters: Mapping[str, str]) -> bool:
        gateway = self.server.gateway
        user = self.headers.get("X-ClickHouse-User") or parameters.get("user") or "default"
        password = self.headers.get("X-ClickHouse-Key") or parameters.get("password") or ""
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            user, _, password = base64.b64decode(encoded).decode().partition(":")
        return (user, password) == (gateway.user, gateway.password)

    def _encoding(self, parameters: Mapping[str, str]) -> str | None:
        if parameters.get("enable_http_compression") != "1":
            return None
        accepted = [name.strip() for name in self.headers.get("Accept-Encoding", "").split(",")]
        return next((name for name in ("lz4", "gzip", "deflate") if name in accepted), None)

    # --- the response ----------------------------------------------------------------------------

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._start(status, {**headers, "Transfer-Encoding": "chunked"})
        self._chunks(body)
        self.wfile.write(b"0\r\n\r\n")

    def _send_error(self, code: int, text: str) -> None:
        body = f"{text} (version {self.server.gateway.version or self.server.gateway.engine_version})\n".encode()
        headers = {"X-ClickHouse-Exception-Code": str(code), "Content-Length": str(len(body))}
        self._start(_STATUS_OF_CODE.get(code, 500), headers)
        self.wfile.write(body)

    def _chunks(self, body: bytes, size: int = 1 << 20) -> None:
        for start in range(0, len(body), size):
            chunk = body[start : start + size]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    # --- faults ----------------------------------------------------------------------------------

    def _fails_before(self, fault: Fault) -> bool:
        """Whether the fault is one that keeps the query from the engine."""
        match fault.kind:
            case "drop":
                self._hang_up()
            case "error":
                self._send_error(fault.code, _exception_text(fault.code))
            case "status":
                body = b"<html><body>not ClickHouse's answer</body></html>"
                self._start(fault.code, {"Content-Length": str(len(body)), "Content-Type": "text/html"})
                self.wfile.write(body)
            case "hang":
                time.sleep(fault.seconds)
                self._hang_up()
            case _:
                return False
        return True

    def _fail_within(self, fault: Fault, headers: Mapping[str, str], body: bytes) -> None:
        length = int(len(body) * fault.share)
        if fault.kind == "block_cut":
            length = max(body.rfind(_ARROW_MESSAGE, 0, length), 0)
        part = body[:length]
        if fault.kind == "short_length":
            self._start(200, {**headers, "Content-Length": str(len(body))})
            self.wfile.write(part)
            self._hang_up()
            return
        self._start(200, {**headers, "Transfer-Encoding": "chunked"})
        match fault.kind:
            case "reset":
                self._chunks(part)
                self._reset()
            case "cut":
                self._chunks(part)
                self._hang_up()
            case "clean_cut" | "block_cut":
                self._chunks(part)
                self.wfile.write(b"0\r\n\r\n")
            case "error_midway" | "clean_error_midway":
                self._chunks(part + _exception_text(fault.code).encode())
                if fault.kind == "error_midway":
                    self._hang_up()
                else:
                    self.wfile.write(b"0\r\n\r\n")
            case "drip":
                size = max(1, -(-len(body) // 50))
                for start in range(0, len(body), size):
                    time.sleep(fault.seconds / 50)
                    self._chunks(body[start : start + size])
                self.wfile.write(b"0\r\n\r\n")
            case _:
                raise AssertionError(fault.kind)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def _exception_text(code: int) -> str:
    return f"Code: {code}. DB::Exception: injected by the test gateway. (INJECTED_{code})"


def _compress(body: bytes, encoding: str) -> bytes:
    if encoding == "lz4":
        return bytes(lz4.frame.compress(body))
    return gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1)


def _decompress(body: bytes, encoding: str) -> bytes:
    known = {"lz4": lz4.frame.decompress, "gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}
    return bytes(known[encoding](body))


def main() -> None:
    """Serve one engine folder until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="the folder of the engine")
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument("--user", default="default")
    parser.add_argument("--password", default="")
    arguments = parser.parse_args()
    with Gateway(arguments.path, port=arguments.port, user=arguments.user, password=arguments.password) as gateway:
        sys.stdout.write(f"{gateway.port}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
