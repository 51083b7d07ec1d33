"""An S3 server on loopback for tests: moto's, in a process of its own, with a log of requests and faults on demand.

    python -m lake_pipeline_tests.s3_server LOG

prints its port and serves until its standard input ends. LOG gets a JSON line for each request. Some access keys
meet faults: DENIED is refused, BROKEN gets 503 for good, FLAKY gets 503 and CONFLICT 409 for the
first request of each kind, the latter for writes only.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


def main() -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    gateway = Gateway(DomainDispatcherApplication(create_backend_app), Path(sys.argv[1]))
    server = make_server("127.0.0.1", 0, gateway, threaded=True)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
