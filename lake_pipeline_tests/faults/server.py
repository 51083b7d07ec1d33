"""An export from a ClickHouse server: every fault of the gateway at every request, and readers among exporters.

The gateway and its engine are in the process of the points, as many as a batch holds; the export is beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, get_args

from lake_pipeline.errors import LakeError
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline_tests.candles_for_tests import create_table, small_market, write_alerts
from lake_pipeline_tests.concurrency import PipelineProcess, read_during_exports
from lake_pipeline_tests.faults.points import Point, Suite
from lake_pipeline_tests.faults.scenario import TABLE, Outcome, Scenario, export, in_child, market
from lake_pipeline_tests.gateway import Fault, Gateway, Kind

# --- faults of the gateway -------------------------------------------------------------------------------------------

# A server that is silent for so long counts as gone: soon where it is to be silent, else not while it is only slow.
_PATIENCE_S: Final = 60
_PATIENCE_WITH_SILENCE_S: Final = 1
_ALWAYS: Final = 1_000_000
# Beside the gateway's own kinds: nobody listens, the account is another, the server is.
_REFUSED, _PASSWORD, _VERSION = "refused", "wrong password", "wrong version"


def _faults() -> dict[str, Fault | None]:
    """Name -> what goes wrong with a request; None for what goes wrong with the server."""
    faults: dict[str, Fault | None] = dict.fromkeys((_REFUSED, _PASSWORD, _VERSION))
    for kind in get_args(Kind):
        codes = {"error": (241, 47), "status": (503, 404)}.get(kind, (241,))
        for code in codes:
            name = f"{kind} {code}" if len(codes) > 1 else kind
            faults[name] = Fault(
                kind, code=code, seconds={"hang": _PATIENCE_WITH_SILENCE_S + 1.0, "drip": 0.2}.get(kind, 0.0)
            )
    return faults


_FAULTS: Final = _faults()
# These are no reason to try again: the same question has the same answer.
_PERMANENT: Final = ("error 47", "status 404", _PASSWORD, _VERSION)


@functools.cache
def _gateway(folder: Path) -> Gateway:
    """A server with the candles, for all points of this process; both end together."""
    gateway = Gateway(folder / f"gateway-{os.getpid()}", user="lake", password="s3cret-word")
    with ClickHouseSource(_config(gateway)) as source:
        create_table(source, TABLE, market()[0])
    return gateway


def _config(gateway: Gateway, patience_s: int = _PATIENCE_S) -> SourceConfig:
    dsn = f"http://lake:s3cret-word@127.0.0.1:{gateway.port}/?send_receive_timeout={patience_s}"
    return SourceConfig("not used", dsn=dsn, table=TABLE)


def _exported(scenario: Scenario, root: Path, name: str | None, number: int, lasting: bool) -> tuple[str | None, bool]:
    """Export over HTTP, with this fault from a certain request on: its error's message, and whether it was ours."""
    gateway = _gateway(scenario.folder)
    fault = _FAULTS[name] if name else None
    gateway.fail(*[dataclasses.replace(fault, skip=number, times=_ALWAYS if lasting else 1)] if fault else [])
    config = _config(gateway, _PATIENCE_WITH_SILENCE_S if name == "hang" else _PATIENCE_S)
    down = False

    def happen(request: int) -> None:
        nonlocal down
        if request != number:
            return
        if name == _REFUSED and not down:
            down = True
            gateway.suspend()
        elif name == _PASSWORD:
            gateway.password = "another"
        elif name == _VERSION:
            gateway.version = "20.3.19.4"

    def recover() -> None:
        nonlocal down
        if down:
            gateway.resume()
        down = False

    gateway.on_request = happen
    try:
        with ClickHouseSource(config, sleep=lambda seconds: None if lasting else recover()) as source:
            export(root, scenario.alerts, source)
    except LakeError as error:
        return str(error), True
    except Exception as error:
        return f"{type(error).__name__}: {error}", False
    finally:
        recover()
        gateway.on_request = lambda request: None
        gateway.password, gateway.version = "s3cret-word", None
    return None, True


def _server_points(scenario: Scenario) -> list[Point]:
    recording = scenario.folder / "queries.json"

    def record() -> None:
        root = scenario.lake("over HTTP")
        said, _ = _exported(scenario, root, None, 0, lasting=False)
        requests = _gateway(scenario.folder).requests
        if said or not scenario.judge(root).ok:
            raise AssertionError(f"the undisturbed export over HTTP failed: {said}")
        recording.write_text(json.dumps(requests))

    if in_child(record):
        raise RuntimeError("the undisturbed export over HTTP failed")
    requests = json.loads(recording.read_text())
    return [
        Point(
            f"{name}{' for good' if lasting else ''} at query {number} of {requests}", (name, lasting),
            (name, number, lasting),
        )
        for name in _FAULTS
        for number in range(requests)
        for lasting in ((True,) if name in _PERMANENT else (False, True))
    ]  # fmt: skip


def _server(scenario: Scenario, point: Point) -> Outcome:
    """What passes is waited for, what stays is named; the run is right in the end."""
    name, number, lasting = point.details
    root = scenario.lake(f"server {point.name}")
    said, ours = _exported(scenario, root, name, number, lasting)
    outcome = scenario.judge(root)
    shutil.rmtree(root)
    if not ours:
        outcome.other.append(f"not an error of ours: {said}")
    if said and not lasting:
        outcome.other.append(f"what passes was not waited for: {said}")
    if said and "127.0.0.1" not in said:
        outcome.other.append(f"an error without place: {said}")
    if said and "s3cret-word" in said:
        outcome.other.append(f"an error that tells the password: {said}")
    return outcome


# --- readers among exporters -----------------------------------------------------------------------------------------

READS: Final = 1_000


def _readers_points(scenario: Scenario) -> list[Point]:
    return [Point(f"{READS} reads while two processes export and seal the same runs", ("readers",), ())]


def _readers(scenario: Scenario, point: Point) -> Outcome:
    folder = scenario.folder / "readers"
    candles, alerts = small_market()
    table = "market"

    def fill() -> None:
        with ClickHouseSource(SourceConfig(str(folder / "clickhouse"), table=table)) as engine:
            create_table(engine, table, candles)

    if in_child(fill):
        raise RuntimeError("the candles of the readers' runs could not be written")
    csv = write_alerts(folder / "alerts.csv", alerts)
    served = subprocess.Popen(
        [sys.executable, "-m", "lake_pipeline_tests.gateway", "--path", str(folder / "clickhouse")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pipes: Any = served
    port = pipes.stdout.readline().strip()
    environment = {"CLICKHOUSE_HOST": "127.0.0.1", "CLICKHOUSE_PORT": port, "CLICKHOUSE_USER": "default"}
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            processes = [
                stack.enter_context(PipelineProcess(environment, str(folder / "data"), table, csv)) for _ in range(2)
            ]
            log = read_during_exports(processes, str(folder / "data"), READS)
        if log.reads < READS or log.runs < 2:
            outcome.other.append(f"too little happened: {log}")
    except AssertionError as error:
        outcome.partial += 1
        outcome.other.append(str(error))
    finally:
        pipes.stdin.close()
        served.wait()
        shutil.rmtree(folder)
    return outcome


# One engine for many points: to open it takes longer than a point.
SERVER = Suite("server", _server_points, _server, batch=60)
READERS = Suite("readers", _readers_points, _readers, slow=True)
