"""`make faults`: every point of every suite, one line of result; exit code 1 if anything is not as promised."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lake_pipeline_tests.faults.points import Point, Suite, sample, trials
from lake_pipeline_tests.faults.scenario import Outcome, Scenario
from lake_pipeline_tests.faults.suites import SUITES

_LINE_EVERY_S = 60

Tried = tuple[Suite, Point, Outcome]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lake_pipeline_tests.faults", description=__doc__)
    parser.add_argument("--suite", choices=[suite.name for suite in SUITES], action="append", help="only this one")
    parser.add_argument("--sample", type=int, metavar="N", help="N points or a few more, of as many kinds of step")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="points at once")
    parser.add_argument("--folder", help="where to work; default: memory, else the folder for temporary files")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    tried: Counter[str] = Counter()
    partial = lost = duplicated = other = 0
    # In memory where that can be had: what outlives a process is the same there, and a sync takes no time.
    place = arguments.folder or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="lake-faults-", dir=place) as folder:
        scenario = Scenario(Path(folder))
        points = [
            (suite, point)
            for suite in SUITES
            if not arguments.suite or suite.name in arguments.suite
            for point in suite.points(scenario)
        ]
        if arguments.sample:
            points = sample(points, arguments.sample)
        try:
            for suite, point, outcome in shown(console, trials(scenario, points, arguments.jobs), len(points)):
                tried[suite.name] += 1
                if not outcome.ok:
                    console.print(f"{point.name}: {outcome}", markup=False, highlight=False, soft_wrap=True)
                partial += outcome.partial
                lost += outcome.lost
                duplicated += outcome.duplicated
                other += len(outcome.other)
        except KeyboardInterrupt:
            console.print(f"interrupted: {len(points) - tried.total():,} of {len(points):,} points were not tried")
        other += not scenario.base_unchanged()
    console.print("; ".join(f"{name} {count:,}" for name, count in tried.items()), highlight=False, soft_wrap=True)
    sys.stdout.write(
        f"{tried.total():,} points tried, {partial} partial runs visible, {lost} rows lost, "
        f"{duplicated} rows duplicated, {other} other findings\n"
    )
    if tried.total() < len(points):
        return 130
    return int(bool(partial or lost or duplicated or other))


def shown(
    console: Console, outcomes: Iterator[tuple[Suite, Point, Outcome]], total: int
) -> Iterator[tuple[Suite, Point, Outcome]]:
    """Pass outcomes on, with a bar on a terminal and a line now and then elsewhere."""
    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started = said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        for number, outcome in enumerate(outcomes, start=1):
            bar.advance(task)
            now = time.monotonic()
            if not console.is_terminal and now - said > _LINE_EVERY_S:
                said = now
                left_min = (now - started) / number * (total - number) / 60
                console.print(f"{number:,} of {total:,} points, some {left_min:.0f} min left", highlight=False)
            yield outcome


if __name__ == "__main__":
    sys.exit(main())
