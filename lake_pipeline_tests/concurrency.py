"""Several processes on one lake: a process that exports and seals on order, and a reader among them.

    python -m lake_pipeline_tests.concurrency DATA_ROOT TABLE ALERTS

takes orders from standard input, a JSON object a line, and answers each with another. The candle source is that of
the environment, as everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.errors import LakeError, RunNotFound, RunNotSealed
from lake_pipeline.export import export_buckets
from lake_pipeline.io.store import open_store
from lake_pipeline.reader import open_run
from lake_pipeline.run import list_run_ids
from lake_pipeline.settings import SourceSettings
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, seal, start_run

__all__ = ["PipelineProcess", "ReadLog", "read_during_exports", "together"]


class PipelineProcess:
    """A process that makes runs; a context manager that ends it."""

    def __init__(self, environment: Mapping[str, str], data_root: str, table: str, alerts: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lake_pipeline_tests.concurrency", data_root, table, alerts],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        if self._stdout.readline() != "ready\n":
            raise AssertionError("the process did not start")

    def __enter__(self) -> PipelineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def order(self, run_id: str, *, buckets: tuple[int, int] = (0, 256), seals: bool = True) -> None:
        """Start the run if it is not there, export these buckets and, if asked to, seal it."""
        stdin: Any = self._process.stdin
        stdin.write(json.dumps({"run_id": run_id, "buckets": buckets, "seals": seals}) + "\n")

    def answer(self) -> dict[str, Any]:
        """What became of the order: `exported` buckets, `created` and `content` of the seal, or `error`."""
        return dict(json.loads(self._stdout.readline()))


def together(processes: Sequence[PipelineProcess], run_id: str, **order: Any) -> list[dict[str, Any]]:
    """One order to all at once, and their answers."""
    for process in processes:
        process.order(run_id, **order)
    return [process.answer() for process in processes]


@dataclass
class ReadLog:
    """What a reader met: `reads` of sealed runs, all whole; `early` looks at runs that were not sealed yet."""

    reads: int = 0
    early: int = 0
    runs: int = 0


def read_during_exports(processes: Sequence[PipelineProcess], data_root: str, reads: int) -> ReadLog:
    """Read sealed runs so many times, verifying each, while the processes export and seal run after run at once.

    Raises AssertionError when a read shows anything but a whole run, or when a run is not sealed exactly once.
    """
    log, stop, contents = ReadLog(), threading.Event(), set[str]()
    failures: list[str] = []

    def export() -> None:
        while not stop.is_set() and not failures:
            answers = together(processes, f"round-{log.runs:05d}")
            if [answer.get("created") for answer in answers].count(True) != 1:
                failures.append(f"round {log.runs}: {answers}")
            log.runs += 1

    exporter = threading.Thread(target=export)
    exporter.start()
    try:
        while (log.reads < reads or log.runs < 2) and exporter.is_alive() and not failures:
            for run_id in list_run_ids(open_store(data_root))[-2:]:
                try:
                    run = open_run(run_id, data_root)
                except (RunNotSealed, RunNotFound):
                    log.early += 1
                    continue
                report = run.verify()
                if not report.ok:
                    failures.append(f"{run_id}: {report.faults}")
                if run.coverage().num_rows != run.alerts().num_rows:
                    failures.append(f"{run_id}: coverage is not of its alerts")
                contents.add(run.manifest.content_sha256)
                log.reads += 1
    finally:
        stop.set()
        exporter.join()
    if failures or len(contents) > 1:
        raise AssertionError(f"after {log}: {failures or contents}")
    return log


def _obey(data_root: str, table: str, alerts: str, order: Mapping[str, Any]) -> dict[str, Any]:
    with SourceSettings(table=table).connect(data_root) as source:
        try:
            run = start_run(open_store(data_root), source, alerts, MARKET_SPEC, order["run_id"])
            results = export_buckets(run, source, ALL_BUCKETS[slice(*order["buckets"])])
            answer: dict[str, Any] = {"exported": sum(not result.skipped for result in results)}
            if order["seals"]:
                sealed = seal(run)
                answer |= {"created": sealed.created, "content": sealed.manifest.content_sha256}
        except LakeError as error:
            return {"error": f"{type(error).__name__}: {error}"}
    return answer


def main() -> None:
    """Obey until standard input ends."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_obey(*sys.argv[1:], json.loads(line))) + "\n")  # type: ignore[misc]
        sys.stdout.flush()


if __name__ == "__main__":
    main()
