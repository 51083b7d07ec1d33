"""`dagster dev` on loopback, as `make ui` starts it, and what the UI sends to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
LOCATION = "lake_pipeline"
REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
_DEADLINE_S = 1800.0
_DONE = {"SUCCESS", "FAILURE", "CANCELED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED"}


@dataclass(frozen=True)
class DagsterServer:
    """A web server with its daemon and code location."""

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        """The one field of a GraphQL query's answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer
        (found,) = answer["data"].values()
        return found

    def launchpad(self, job: str) -> dict[str, Any]:
        """What a job's Launchpad opens with: its config as YAML, and the tags it puts on a run."""
        found = self.ask(
            """query Launchpad($selector: PipelineSelector!) { pipelineOrError(params: $selector) { ... on Pipeline {
                 presets { runConfigYaml } tags { key value } } } }""",
            selector={**REPOSITORY, "pipelineName": job},
        )
        (preset,) = found["presets"]
        return {"yaml": preset["runConfigYaml"], "tags": found["tags"]}

    def launch(
        self, job: str, yaml: str, tags: list[dict[str, str]] | None = None, assets: tuple[str, ...] = ()
    ) -> str:
        """Launch a run as a Launchpad does; its id."""
        selector: dict[str, Any] = {**REPOSITORY, "pipelineName": job}
        if assets:
            selector |= {"assetSelection": [{"path": [name]} for name in assets]}
        answer = self.ask(
            """mutation Launch($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
                 __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
                 ... on RunConfigValidationInvalid { errors { message } } } }""",
            params={
                "selector": selector,
                "mode": "default",
                "runConfigData": yaml,
                "executionMetadata": {"tags": tags or []},
            },
        )
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def backfill(self, **params: Any) -> str:
        """Launch a backfill as "Materialize all" does; its id."""
        answer = self.ask(
            """mutation Backfill($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
                 __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params=params,
        )
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        backfill_id: str = answer["backfillId"]
        return backfill_id

    def finished(self, run_id: str) -> dict[str, Any]:
        """A run once it has ended: status, tags, run config, steps and the messages of failed steps."""
        query = """query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } runConfigYaml
                     stats { ... on RunStatsSnapshot { stepsSucceeded stepsFailed } }
                     eventConnection(limit: 5000) { events { ... on ExecutionStepFailureEvent {
                       stepKey error { message } } } } } } }"""
        return self._wait_for(query, run_id)

    def finished_backfill(self, backfill_id: str) -> dict[str, Any]:
        """A backfill once it has ended: status and its runs."""
        query = """query Backfill($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
                     status error { message } runs(limit: 300) { runId status runConfigYaml } } } }"""
        return self._wait_for(query, backfill_id)

    def _wait_for(self, query: str, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.ask(query, id=what)
            if found["status"] in _DONE:
                return found
            time.sleep(0.5)
        raise AssertionError(f"{what} did not end: {found}")


def failure_messages(run: Mapping[str, Any]) -> dict[str, str]:
    """Step to message, of the failed steps of a finished run."""
    events = run["eventConnection"]["events"]
    return {event["stepKey"]: event["error"]["message"] for event in events if event}


@contextmanager
def dagster_server(folder: Path, **environment: str) -> Iterator[DagsterServer]:
    """`dagster dev` with this working directory and its state in `.dagster` there, until the block ends."""
    home = folder / ".dagster"
    home.mkdir(exist_ok=True)
    shutil.copyfile(PROJECT / "dagster.yaml", home / "dagster.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("dagster"), "dev", "-w", PROJECT / "workspace.yaml"]
    log = folder / "dagster-dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env={**os.environ, "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = DagsterServer(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                server.ask("{ version }")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        # What it started is in its process group, unless it has ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
