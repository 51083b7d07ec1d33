"""`make faults`: every point of every suite, one line of result; exit code 1 if anything is not as promised."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lake_pipeline_tests.faults.scenario import Scenario
from lake_pipeline_tests.faults.suites import SUITES, sample, trials


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lake_pipeline_tests.faults", description=__doc__)
    parser.add_argument("--suite", choices=[suite.name for suite in SUITES], action="append", help="only this one")
    parser.add_argument("--sample", type=int, metavar="N", help="N points or a few more, of as many kinds of step")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="points at once")
    parser.add_argument("--folder", help="where to work; default: memory, else the folder for temporary files")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    console = Console(stderr=True)
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
        columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=len(points))
            for point, outcome in trials(scenario, points, arguments.jobs):
                bar.advance(task)
                if not outcome.ok:
                    console.print(f"{point.name}: {outcome}", markup=False, highlight=False, soft_wrap=True)
                partial += outcome.partial
                lost += outcome.lost
                duplicated += outcome.duplicated
                other += len(outcome.other)
        other += not scenario.base_unchanged()
    sys.stdout.write(
        f"{len(points):,} points tried, {partial} partial runs visible, {lost} rows lost, "
        f"{duplicated} rows duplicated, {other} other findings\n"
    )
    return int(bool(partial or lost or duplicated or other))


if __name__ == "__main__":
    sys.exit(main())
