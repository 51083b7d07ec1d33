"""SIGKILL at every request of an export to an object store: moto's S3, on loopback, kills its client.

The server is in the process of the point and the export in a child of it. Small files are uploaded in parts here as
large ones are elsewhere.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickle
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from lake_pipeline.core.canonical import sha256_hex
from lake_pipeline.io import layout, objects
from lake_pipeline_tests.faults.points import Point, Suite
from lake_pipeline_tests.faults.scenario import RUN_ID, Outcome, Scenario, export, in_child, timeless
from lake_pipeline_tests.s3_server import moto_s3, server_of, whole_request

_BUCKET = "lakes"
_ROOT = "root"
_URL = f"s3://{_BUCKET}/{_ROOT}"
# Some parts of the run are larger, so they take a multipart upload and a copy.
_BLOCK = 256 << 10
_ENVIRONMENT = {
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "TESTER",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
}
_CHANGES = ("PUT", "POST", "DELETE")
# Gets a request's number, method and path, and what has the store do it; returns what the store answered.
Handler = Callable[[int, str, str, Callable[[], Any]], Any]


class Killed(Exception):
    """The client of a request is gone, so nobody is answered."""


class Store:
    """The S3 of this process: WSGI around moto that numbers the requests of one client and hands each to a handler."""

    def __init__(self) -> None:
        self._app = _application()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.handler: Handler | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        whole_request(environ)
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{_BUCKET}/{_ROOT}/")
        query = "&".join(name for name, _ in parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        path = f"{path}?{query}" if query else path

        def answer() -> list[bytes]:
            return list(self._app(environ, start_response))

        with self._lock:
            if self.handler is None:
                return answer()
            return self.handler(next(self._numbers), method, path, answer)

    def objects(self) -> dict[str, bytes]:
        """Name -> content of every object there is."""
        from moto.s3.models import s3_backends

        (backend,) = (account["aws"] for account in s3_backends.values())
        return {name: bytes(key.value) for name, key in backend.buckets[_BUCKET].keys.items()}

    def hashes(self) -> dict[str, str]:
        """Path -> SHA-256 of every file of the run."""
        folder = f"{_ROOT}/{layout.run_folder(RUN_ID)}/"
        return {
            name.removeprefix(folder): sha256_hex(data)
            for name, data in self.objects().items()
            if name.startswith(folder)
        }

    def state(self) -> str:
        """A hash over every object, times left out; the name of a dead upload is random."""
        lines = sorted(
            f"{re.sub(r'lake-tmp-.*', '', name)} {sha256_hex(timeless(name, data))}"
            for name, data in self.objects().items()
        )
        return sha256_hex("\n".join(lines).encode())


@functools.cache
def _application() -> Callable[..., Iterable[bytes]]:
    """moto with an empty bucket. Made before the processes of the points are forked, so that each has its own."""
    os.environ["S3_UPLOAD_PART_MIN_SIZE"] = "1"
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)  # in memory, which a fork copies
    app = moto_s3()
    _request(app, "PUT", f"/{_BUCKET}", b"")
    return app


def _request(app: Callable[..., Iterable[bytes]], method: str, path: str, body: bytes) -> None:
    said: list[str] = []
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "RAW_URI": path, "REQUEST_URI": path, "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "HTTP_HOST": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr,
        "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)),
    }  # fmt: skip
    list(app(environ, lambda status, headers, *rest: said.append(status)))
    if not said[0].startswith("200"):
        raise AssertionError(f"{method} {path}: {said[0]}")


def _exported(scenario: Scenario, handler: Callable[[int], Handler]) -> tuple[Store, int]:
    """Export `second` to an S3 that holds `base`, in a child whose pid `handler` gets; the store and a wait status."""
    os.environ.update(_ENVIRONMENT)
    objects._BLOCK = _BLOCK  # type: ignore[misc]
    store = Store()
    listener = server_of(store)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{listener.port}"
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        listener.server_close()
        try:
            export(_URL, scenario.alerts, scenario.source)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(ready)
    store.handler = handler(pid)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    os.close(go)
    status = os.waitpid(pid, 0)[1]
    with store._lock:
        store.handler = None
    return store, status


def _points(scenario: Scenario) -> list[Point]:
    """Before the first request, and after each that changed something, before its answer: that is before the next."""
    recording = scenario.folder / "requests.pickle"
    for path in sorted(path for path in scenario.base.rglob("*") if path.is_file()):
        name = path.relative_to(scenario.base).as_posix()
        _request(_application(), "PUT", f"/{_BUCKET}/{_ROOT}/{name}", path.read_bytes())

    def record() -> None:
        made: list[tuple[int, str, str]] = []

        def handler(pid: int) -> Handler:
            def handle(number: int, method: str, path: str, answer: Callable[[], Any]) -> Any:
                made.append((number, method, path))
                return answer()

            return handle

        store, status = _exported(scenario, handler)
        found = store.hashes()
        del found["provenance.json"]
        if status or found != scenario.expected:
            raise AssertionError("an export to the object store is not the export to a folder")
        recording.write_bytes(pickle.dumps(made))

    if in_child(record):
        raise RuntimeError("the undisturbed export to the object store failed")
    points = []
    for number, method, path in pickle.loads(recording.read_bytes()):
        for when in [*["before"][number:], *(["after"] if method in _CHANGES else [])]:
            family = (method, re.sub(r"mint_bucket=[0-9a-f]{2}|part-\d+|lake-tmp-[0-9a-f]+", "*", path), when)
            points.append(Point(f"kill {when} request {number}: {method} {path}", family, (number, when)))
    return points


def _kill(scenario: Scenario, point: Point) -> Outcome:
    wanted, when = point.details

    def handler(pid: int) -> Handler:
        gone = False

        def handle(number: int, method: str, path: str, answer: Callable[[], Any]) -> Any:
            nonlocal gone
            if gone:
                raise Killed
            if number != wanted:
                return answer()
            gone = True
            if when == "after":
                answer()
            os.kill(pid, signal.SIGKILL)
            raise Killed

        return handle

    store, status = _exported(scenario, handler)
    outcome = scenario.once(f"objects-{store.state()}", lambda: scenario.judged(_URL, store.hashes))
    if status != signal.SIGKILL:
        outcome.other.append(f"the process was not killed: status {status}")
    return outcome


OBJECTS = Suite("object store", _points, _kill)
