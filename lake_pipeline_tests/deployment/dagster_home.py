"""A DAGSTER_HOME with a real daemon: what a deployment runs, as commands a person would type."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import yaml

from lake_pipeline.core.buckets import ALL_BUCKETS

__all__ = ["DagsterHome"]

_LOCATION = "lake_pipeline_tests.deployment.definitions"
_BIN = Path(sys.executable).parent
_BACKFILL = """
mutation ($assets: [AssetKeyInput!]!, $partitions: [String!]!, $config: RunConfigData!) {
  launchPartitionBackfill(
    backfillParams: {assetSelection: $assets, partitionNames: $partitions, runConfigData: $config}
  ) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
Found = TypeVar("Found")


class DagsterHome:
    """Dagster's state in a folder, its instance, and commands on it. `environ` is that of every process."""

    def __init__(
        self, folder: Path, environ: Mapping[str, str], storage: Mapping[str, Any] | None = None, runs_at_once: int = 2
    ) -> None:
        self.folder = folder
        folder.mkdir()
        settings: dict[str, Any] = {
            "telemetry": {"enabled": False},
            "concurrency": {"runs": {"max_concurrent_runs": runs_at_once}},
            "run_coordinator": {
                "module": "dagster.core.run_coordinator",
                "class": "QueuedRunCoordinator",
                "config": {"dequeue_interval_seconds": 1},
            },
        }
        if storage:
            settings["storage"] = dict(storage)
        (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
        self._workspace = folder / "workspace.yaml"
        self._workspace.write_text("load_from:\n  - python_module: " + _LOCATION + "\n")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LAKE_", "AWS_"))}
        self.environ = {**inherited, **environ, "DAGSTER_HOME": str(folder), "PYTHONWARNINGS": "ignore"}
        self.instance = dg.DagsterInstance.from_config(str(folder))

    def close(self) -> None:
        """Let go of the instance."""
        self.instance.dispose()

    def command(self, *arguments: str) -> str:
        """A command of Dagster's; what it prints. AssertionError when it fails."""
        done = subprocess.run(
            [_BIN / arguments[0], *arguments[1:], "-w", str(self._workspace)],
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def backfill(self, assets: Sequence[str], run: Mapping[str, Any], source: Mapping[str, Any]) -> str:
        """Launch a backfill over all buckets with one config for all its runs, as the UI does; its id."""
        variables = {
            "assets": [{"path": [name]} for name in assets],
            "partitions": list(ALL_BUCKETS),
            "config": {"resources": {"lake_run": {"config": dict(run)}, "candle_source": {"config": dict(source)}}},
        }
        launched = self.query(_BACKFILL, variables)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def turn_on(self, *names: str) -> None:
        """Turn schedules and sensors on."""
        selector = f'repositoryName: "__repository__", repositoryLocationName: "{_LOCATION}"'
        fields = []
        for name in names:
            kind = "schedule" if name == "nightly_export" else "sensor"
            start = "startSchedule" if kind == "schedule" else "startSensor"
            fields.append(f'{name}: {start}({kind}Selector: {{{selector}, {kind}Name: "{name}"}}) {{ __typename }}')
        answers = self.query(f"mutation {{ {' '.join(fields)} }}", {})
        assert {each["__typename"] for each in answers.values()} <= {"Sensor", "ScheduleStateResult"}, answers

    def query(self, text: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What GraphQL answers."""
        printed = self.command("dagster-graphql", "-t", text, "-v", json.dumps(variables))
        answer = next(line for line in printed.splitlines() if line.startswith("{"))
        data: dict[str, Any] = json.loads(answer)["data"]
        return data

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run the daemon, and end it with every process it has started. Its log is in daemon.log."""
        with (self.folder / "daemon.log").open("a") as log:
            process = subprocess.Popen(
                [_BIN / "dagster-daemon", "run", "-w", str(self._workspace)],
                env=self.environ,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(120)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def until(self, what: str, look: Callable[[], Found | None], timeout_s: float = 600) -> Found:
        """What `look` finds, as soon as it finds something; AssertionError with the daemon's log after the time-out."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            if time.monotonic() > deadline:
                log = (self.folder / "daemon.log").read_text()[-6000:]
                raise AssertionError(f"waited {timeout_s} s for {what}\n{self.report()}\n{log}")
            time.sleep(1)
        return found

    def runs(self, **tags: str) -> list[dg.DagsterRun]:
        """Runs with these tags, oldest first; `started_by` stands for its tag."""
        wanted = {f"lake/{name}": value for name, value in tags.items()}
        return list(reversed(self.instance.get_runs(dg.RunsFilter(tags=wanted))))

    def ticks(self, name: str, since: float = 0) -> list[Any]:
        """Ticks of a schedule or sensor that began after `since` (Unix seconds) and have ended, oldest first.

        One that is running, or was cut off with its daemon, has no result to look at.
        """
        for state in self.instance.all_instigator_state():
            if state.instigator_name == name:
                ticks = self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
                ended = [each for each in ticks if each.timestamp > since and each.status.value != "STARTED"]
                return list(reversed(ended))
        return []

    def cursor(self, name: str) -> str | None:
        """The cursor Dagster keeps for a sensor."""
        (state,) = [each for each in self.instance.all_instigator_state() if each.instigator_name == name]
        return state.instigator_data.cursor  # type: ignore[no-any-return, union-attr]

    def report(self) -> str:
        """Every run and its state, for a test that failed."""
        return "\n".join(
            f"{run.job_name} {run.status.value} {dict(run.tags).get('lake/run_id')} {run.run_id}"
            for run in reversed(self.instance.get_runs())
        )
