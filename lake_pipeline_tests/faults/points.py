"""What a suite of faults is, how its points are chosen and how they are tried."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lake_pipeline_tests.faults.scenario import Outcome, Scenario

__all__ = ["Point", "Suite", "sample", "trials"]

# A point takes a second or, of the slow ones, minutes. One that takes so long on a loaded machine hangs.
_LONGEST_S = 3600


@dataclass(frozen=True)
class Point:
    """One disturbance; `family` is what a sample takes one of."""

    name: str
    family: tuple[Any, ...]
    details: tuple[Any, ...]


@dataclass(frozen=True)
class Suite:
    """`attempt` tries a point in a forked process in which nothing but imports happened before.

    The process is the point's own, or that of `batch` points one after the other, where there is something to set up.
    A sample has no point of a suite that is `slow`.
    """

    name: str
    points: Callable[[Scenario], list[Point]]
    attempt: Callable[[Scenario, Point], Outcome]
    batch: int = 1
    slow: bool = False


def sample(points: Sequence[tuple[Suite, Point]], count: int) -> list[tuple[Suite, Point]]:
    """At least `count` points, if there are so many families, of families far apart."""
    families: dict[tuple[Any, ...], list[tuple[Suite, Point]]] = {}
    for suite, point in points:
        if not suite.slow:
            families.setdefault((suite.name, *point.family), []).append((suite, point))
    chosen = [members[len(members) // 2] for members in families.values()]
    return chosen[:: max(1, len(chosen) // count)]


def trials(
    scenario: Scenario, points: Sequence[tuple[Suite, Point]], jobs: int
) -> Iterator[tuple[Suite, Point, Outcome]]:
    """Try points in forked processes, `jobs` at once; yields them as they are done. Closed early, it ends them."""
    waiting = list(enumerate(_batches(points)))[::-1]
    running: dict[int, tuple[Suite, list[Point], Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, (suite, batch) = waiting.pop()
                result = scenario.folder / f"{number}.jsonl"
                pid = os.fork()
                if pid == 0:
                    _try(scenario, suite, batch, result)
                with suppress(OSError):  # as the process itself does, whoever is first
                    os.setpgid(pid, pid)
                running[pid] = suite, batch, result
            pid, _ = os.wait()
            _kill_group(pid)
            suite, batch, result = running.pop(pid)
            lines = result.read_text().splitlines() if result.exists() else []
            result.unlink(missing_ok=True)
            outcomes = [Outcome(**json.loads(line)) for line in lines]
            missing = [Outcome(other=["the trial's process died"]) for _ in batch[len(outcomes) :]]
            for point, outcome in zip(batch, [*outcomes, *missing], strict=True):
                yield suite, point, outcome
    finally:
        for pid in running:
            _kill_group(pid)
            os.waitpid(pid, 0)


def _kill_group(pid: int) -> None:
    """Kill the process of a trial, if it is there, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _batches(points: Sequence[tuple[Suite, Point]]) -> Iterator[tuple[Suite, list[Point]]]:
    batch: list[Point] = []
    for number, (suite, point) in enumerate(points):
        batch.append(point)
        if len(batch) == suite.batch or number + 1 == len(points) or points[number + 1][0] is not suite:
            yield suite, batch
            batch = []


def _try(scenario: Scenario, suite: Suite, batch: Sequence[Point], result: Path) -> None:
    """Try points and write an outcome a line. Never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setpgrp()
        with result.open("w", buffering=1) as file:
            for point in batch:
                signal.alarm(_LONGEST_S)
                try:
                    outcome = suite.attempt(scenario, point)
                except BaseException as error:
                    outcome = Outcome(other=[f"the trial itself failed: {type(error).__name__}: {error}"])
                file.write(json.dumps(asdict(outcome)) + "\n")
    finally:
        os._exit(0)
