"""An S3 server on loopback for tests: moto's, in a process of its own, with a log of requests and faults on demand.

    python -m lake_pipeline_tests.s3_server LOG

prints its port and serves until its standard input ends. LOG gets a JSON line for each request. Some access keys
meet faults: DENIED is refused, BROKEN gets 503 for good, FLAKY gets 503 and CONFLICT 409 for the
first request of each kind, the latter for writes only.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

FAULTS = {
    "DENIED": ("403 FORBIDDEN", b"<Error><Code>AccessDenied</Code></Error>"),
    "BROKEN": ("503 SLOW DOWN", b"<Error><Code>SlowDown</Code></Error>"),
    "FLAKY": ("503 SLOW DOWN", b"<Error><Code>SlowDown</Code></Error>"),
    "CONFLICT": ("409 CONFLICT", b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
}


class Gateway:
    """WSGI around moto: its writes one at a time, so that conditions hold as they do in S3."""

    def __init__(self, app: Callable[..., Iterable[bytes]], log: Path) -> None:
        self.app = app
        self.log = log.open("a", buffering=1)
        self.lock = threading.Lock()
        self.met: set[tuple[str, str]] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        whole_request(environ)
        sent: dict[str, Any] = {"method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"]}
        sent |= {"query": environ["QUERY_STRING"], "range": environ.get("HTTP_RANGE")}

        def note(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            sent["status"] = int(status.split()[0])
            return start_response(status, headers, *rest)

        found = re.search("Credential=([A-Z]+)", environ.get("HTTP_AUTHORIZATION", ""))
        key = found[1] if found else ""
        fault = FAULTS.get(key)
        request = (sent["method"], sent["path"])
        passing = key in ("FLAKY", "CONFLICT") and request in self.met
        if fault and not passing and (key != "CONFLICT" or "HTTP_IF_NONE_MATCH" in environ):
            self.met.add(request)
            note(fault[0], [("Content-Type", "application/xml")])
            body = [fault[1]]
        elif sent["method"] in ("GET", "HEAD"):
            body = list(self.app(environ, note))
        else:
            with self.lock:
                body = list(self.app(environ, note))
        sent["bytes"] = sum(map(len, body))
        self.log.write(json.dumps(sent) + "\n")
        return body


def moto_s3() -> Callable[..., Iterable[bytes]]:
    """moto's S3 as a WSGI application, with the conditions and the multipart uploads of the real one."""
    from moto.moto_server.werkzeug_app import create_backend_app

    return create_backend_app("s3")


def server_of(app: Callable[..., Iterable[bytes]]) -> BaseWSGIServer:
    """A server on loopback that keeps connections, bound to a port and not yet serving."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class KeepAlive(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=KeepAlive)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def whole_request(environ: dict[str, Any]) -> None:
    """Read a request to its end, whoever answers it: the connection is kept for the next one."""
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))


def main() -> None:
    server = server_of(Gateway(moto_s3(), Path(sys.argv[1])))
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
