"""The suites that disturb an export to local files, and the list of all. To add one, write it and name it in SUITES.

Those of an object store are in `objects`, those of a ClickHouse server in `server`.
"""

from __future__ import annotations

import datetime as dt
import errno
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lake_pipeline.io.store import TEMPORARY_PREFIX, LocalStore
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.faults import memory
from lake_pipeline_tests.faults.objects import OBJECTS
from lake_pipeline_tests.faults.points import Point, Suite
from lake_pipeline_tests.faults.scenario import RUN_ID, Outcome, Scenario, in_child
from lake_pipeline_tests.faults.server import READERS, SERVER
from lake_pipeline_tests.faults.steps import Handler, Step, failer, killer, surprise


def _representatives(steps: Sequence[Step]) -> list[Step]:
    """The first and the last step of each family."""
    families: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        families.setdefault(step.family, []).append(step)
    return sorted({end for members in families.values() for end in (members[0], members[-1])}, key=lambda s: s.number)


# --- SIGKILL ---------------------------------------------------------------------------------------------------------

# Four threads take their steps in no certain order: there a point is the number of a step, whatever it is.
_THREADS = 4
_THREADED_EVERY = 20


def _kill_points(scenario: Scenario) -> list[Point]:
    """In the middle of each write and after each step, which is before the next."""
    first = scenario.steps[0]
    points = [Point(f"kill before {first.kind} {first.path}", (*first.family, "before"), (first.number, "before", 1))]
    for step in scenario.steps:
        for when in ("during", "after") if step.kind == "write" else ("after",):
            points.append(Point(f"kill {when} {step.kind} {step.path}", (*step.family, when), (step.number, when, 1)))
    for number in range(0, len(scenario.steps), _THREADED_EVERY):
        points.append(Point(f"kill {_THREADS} threads at step {number}", ("threads",), (number, "before", _THREADS)))
    return points


def _kill(scenario: Scenario, point: Point) -> Outcome:
    number, when, threads = point.details
    root = scenario.lake(f"kill-{number}-{when}-{threads}")
    status, said, _ = scenario.disturbed(root, killer(number, when), threads=threads)
    outcome = _judged(scenario, root)
    if status != signal.SIGKILL:
        outcome.other.append(f"the process was not killed: status {status}, {said}")
    return outcome


# --- errors of the system --------------------------------------------------------------------------------------------

_CHANGES = frozenset({"mkdir", "open", "link", "rename", "unlink"})
_SPACE = frozenset({"mkdir", "open", "write", "flush", "fsync", "link", "rename"})
# Which steps an error can come from, and whether it stays: a full disk does, a bad sector is one.
_ERRORS: dict[str, tuple[frozenset[str], bool]] = {
    "ENOSPC": (_SPACE, True),
    "EDQUOT": (_SPACE, True),
    "EROFS": (_CHANGES, True),
    "EACCES": (_CHANGES, True),
    "EIO": (_CHANGES | _SPACE, False),
}
_ADVICE = {
    "ENOSPC": "the disk is full: free some space and run again",
    "EDQUOT": "the disk quota is used up: free some space and run again",
    "EROFS": "the file system is read-only: choose another data_root or remount it",
    "EACCES": "permission denied: check the owner and mode of the folder",
    "EIO": "the disk reported an I/O error: check it before trusting anything on it",
}


def _error_points(scenario: Scenario) -> list[Point]:
    """At every step the errors in turn; at the first and last step of each family all of them, before and after."""
    turn = itertools.cycle(_ERRORS)
    wanted: dict[tuple[int, str, str], Step] = {}
    for step in scenario.steps:
        name = next(name for name in turn if step.kind in _ERRORS[name][0])
        wanted[step.number, name, "before"] = step
    for step in _representatives(scenario.steps):
        for name, (kinds, _) in _ERRORS.items():
            if step.kind in kinds:
                wanted[step.number, name, "before"] = step
        wanted[step.number, "EIO", "after"] = step
        if step.kind == "write":
            wanted[step.number, "ENOSPC", "during"] = step
    return [
        Point(f"{name} {when} {step.kind} {step.path}", (*step.family, when), (number, name, when))
        for (number, name, when), step in wanted.items()
    ]


def _error(scenario: Scenario, point: Point) -> Outcome:
    number, name, when = point.details
    kinds, lasting = _ERRORS[name]
    root = scenario.lake(f"error-{number}-{name}-{when}")
    handler = failer(number, getattr(errno, name), kinds, when, lasting=lasting)
    return _explained(scenario, root, handler, _ADVICE[name])


# --- errors while looking --------------------------------------------------------------------------------------------


def _look_points(scenario: Scenario) -> list[Point]:
    """At the first and last look of each family: the disk fails once, or what is there may not be looked at."""
    return [
        Point(f"{name} before {step.kind} {step.path}", (*step.family, name), (step.number, name))
        for step in _representatives(scenario.looks)
        if step.kind in ("stat", "scandir", "read", "lock")
        for name in ("EIO", "EACCES")
    ]


def _look(scenario: Scenario, point: Point) -> Outcome:
    number, name = point.details
    root = scenario.lake(f"look-{number}-{name}")
    handler = failer(number, getattr(errno, name), frozenset(), "before", lasting=False)
    return _explained(scenario, root, handler, _ADVICE[name], looks=True)


# --- folders that vanish ---------------------------------------------------------------------------------------------


def _vanish_points(scenario: Scenario) -> list[Point]:
    steps = {step.number: step for step in (*_representatives(scenario.steps), *scenario.steps[::20])}
    return [
        Point(f"{what} vanishes before {step.kind} {step.path}", (*step.family, what), (number, what))
        for number, step in sorted(steps.items())
        for what in ("the run", "every run")
    ]


def _vanish(scenario: Scenario, point: Point) -> Outcome:
    number, what = point.details
    root = scenario.lake(f"vanish-{number}-{what.partition(' ')[0]}")
    folder = root / "lake/runs" if what == "every run" else root / f"lake/runs/run_id={RUN_ID}"
    rename = os.rename

    def vanish() -> None:
        if folder.exists():
            rename(folder, root.with_suffix(".gone"))

    return _explained(scenario, root, surprise(number, vanish), None)


# --- clocks that jump ------------------------------------------------------------------------------------------------

_YEAR_S = 31_557_600
_JUMPS_S = {
    "back ten years": (0, -10 * _YEAR_S),
    "back to 1970": (0, -(10**12)),
    "on sixty years": (0, 60 * _YEAR_S),
    "to and fro": (0, 86_400, -86_400, 40 * _YEAR_S, -20 * _YEAR_S),
}


def _clock_points(scenario: Scenario) -> list[Point]:
    return [Point(f"the clock jumps {name}", ("clock", name), (name,)) for name in _JUMPS_S]


def _clock(scenario: Scenario, point: Point) -> Outcome:
    """Every look at the clock finds it somewhere else, and every file is dated accordingly."""
    (name,) = point.details
    root = scenario.lake(f"clock-{name.replace(' ', '-')}")
    jumps = itertools.cycle(_JUMPS_S[name])
    real_time, real_datetime = time.time, dt.datetime

    def jumping() -> float:
        return max(0.0, real_time() + next(jumps))

    class Jumping(real_datetime):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real_datetime.fromtimestamp(jumping(), tz)

    def dated(step: Step, action: Callable[[], Any], half: Callable[[], Any]) -> Any:
        time.time, dt.datetime = jumping, Jumping  # type: ignore[assignment,misc]
        result = action()
        if step.kind in ("link", "rename"):
            os.utime(root / step.path, (jumping(), jumping()))
        return result

    status, said, _ = scenario.disturbed(root, dated)
    outcome = _judged(scenario, root)
    if status or said:
        outcome.other.append(f"a jump of the clock was no reason to fail: {said}")
    return outcome


# --- power ------------------------------------------------------------------------------------------------------------

_NAMES = ("mkdir", "link", "rename")


def _power_points(scenario: Scenario) -> list[Point]:
    """After each kind of step that gives a name the process is killed; and once nothing happens."""
    named = [step for step in _representatives(scenario.steps) if step.kind in _NAMES]
    return [Point("nothing is left unsynced", ("power",), (None,))] + [
        Point(
            f"nothing is left unsynced after a kill at {step.kind} {step.path}", ("power", *step.family), (step.number,)
        )
        for step in named
    ]


def _power(scenario: Scenario, point: Point) -> Outcome:
    """What a process leaves behind may never have been synced: whoever goes on must see to it before the seal."""
    (number,) = point.details
    root = scenario.lake(f"power-{number}")
    before = [] if number is None else scenario.steps[: number + 1]
    if before:
        scenario.disturbed(root, killer(before[-1].number, "after"))
    steps = scenario.recorded(root)
    outcome = _judged(scenario, root)
    outcome.other += unsynced([*before, *steps])
    return outcome


def unsynced(steps: Sequence[Step]) -> list[str]:
    """What of a run a power loss just after its seal could take although the seal stays."""
    names: set[str] = set()
    contents: set[str] = set()
    for step in steps:
        folder, _, name = step.path.rpartition("/")
        if step.kind in ("open", "write"):
            contents.add(step.path)
        elif step.kind in _NAMES:
            if name == "manifest.json":
                break
            if step.kind != "mkdir" and f"{folder}/{TEMPORARY_PREFIX}" in contents:
                return [f"{step.path} got its name before its content was synced"]
            names.add(step.path)
        elif step.kind == "fsync":
            contents.discard(step.path)
            names = {each for each in names if each.rpartition("/")[0] != step.path}
        elif step.kind == "unlink":
            names.discard(step.path)
            contents.discard(step.path)
    return [f"the name {each} was not synced before the seal" for each in sorted(names)]


# --- tampering -------------------------------------------------------------------------------------------------------

FLIPS = 500
_FLIPS_A_POINT = 10


def _flip_points(scenario: Scenario) -> list[Point]:
    """Random bytes of random files: half the files drawn evenly, half by their size. provenance.json is not sealed."""
    rng = random.Random(5)
    files = {path: (scenario.run_folder / path).stat().st_size for path in sorted(scenario.expected)}
    names, sizes = list(files), list(files.values())
    flips = []
    for number in range(FLIPS):
        path = rng.choice(names) if number % 2 else rng.choices(names, sizes)[0]
        flips.append((path, rng.randrange(files[path]), rng.randrange(1, 256)))
    return [
        Point(f"flips {start} to {start + _FLIPS_A_POINT - 1}", ("flip", start % 50), tuple(some))
        for start in range(0, FLIPS, _FLIPS_A_POINT)
        for some in [flips[start : start + _FLIPS_A_POINT]]
    ]


def _flip(scenario: Scenario, point: Point) -> Outcome:
    folder = scenario.folder / "points" / point.name.replace(" ", "-") / f"run_id={RUN_ID}"
    shutil.copytree(scenario.run_folder, folder)
    outcome = Outcome()
    for path, place, mask in point.details:
        missed = undetected(folder, path, place, mask)
        if missed:
            outcome.other.append(missed)
    shutil.rmtree(folder.parent)
    return outcome


def undetected(folder: Path, path: str, place: int, mask: int) -> str | None:
    """Change one byte of a sealed run, verify, put it back: what verify failed to do, if anything."""
    whole = (folder / path).read_bytes()
    data = bytearray(whole)
    data[place] ^= mask
    (folder / path).write_bytes(data)
    try:
        faults = verify_run(LocalStore(folder), folder.name.removeprefix("run_id=")).faults
    except Exception as error:
        return f"byte {place} of {path} ^ {mask}: verify raised {type(error).__name__}: {error}"
    finally:
        (folder / path).write_bytes(whole)
    if not any(path in fault for fault in faults):
        return f"byte {place} of {path} ^ {mask} was not found: {faults}"
    return None


# --- too little memory -----------------------------------------------------------------------------------------------


def _memory_points(scenario: Scenario) -> list[Point]:
    return [
        Point(f"a bucket ten times larger than {memory.ROOM_MB} MB", ("bucket",), (_large_bucket,)),
        Point(f"{memory.ALERTS:,} alerts", ("alerts",), (_many_alerts,)),
    ]


def _memory(scenario: Scenario, point: Point) -> Outcome:
    (attempt,) = point.details
    outcome: Outcome = attempt(scenario)
    return outcome


def _many_alerts(scenario: Scenario) -> Outcome:
    """Very many alerts take memory in proportion to their number."""
    path = scenario.folder / "many.parquet"
    if in_child(lambda: memory.write_many_alerts(path, memory.ALERTS)):
        raise RuntimeError("the alerts could not be written")
    done = memory.load_within(path, memory.ALERTS)
    path.unlink()
    said = f"{memory.ALERTS} alerts\n"
    return Outcome(other=[] if done.stdout == said else [f"not read within the limit: {done.stderr[-1000:]}"])


def _large_bucket(scenario: Scenario) -> Outcome:
    """Within `max_rows_in_flight` the bucket is exported; without that bound the limit is met, so it is a limit."""
    folder = scenario.folder / "memory"
    alerts = memory.fill(folder)
    candles = memory.MINTS * memory.MINT_ROWS
    outcome = Outcome()
    done = memory.export_within(folder, alerts, folder / "bounded", 100_000)
    if done.returncode or done.stdout != f"{candles} candles\n":
        outcome.other.append(f"not exported within the limit: {done.stdout} {done.stderr[-1000:]}")
    if memory.export_within(folder, alerts, folder / "whole", candles).returncode == 0:
        outcome.other.append("the limit limits nothing")
    shutil.rmtree(folder)
    return outcome


# --- all -------------------------------------------------------------------------------------------------------------


def _judged(scenario: Scenario, root: Path) -> Outcome:
    outcome = scenario.judge(root)
    shutil.rmtree(root)
    shutil.rmtree(root.with_suffix(".gone"), ignore_errors=True)
    return outcome


def _explained(scenario: Scenario, root: Path, handler: Handler, advice: str | None, *, looks: bool = False) -> Outcome:
    """The export either ends well or with an error of ours that says where and what to do."""
    status, said, ours = scenario.disturbed(root, handler, looks=looks)
    outcome = _judged(scenario, root)
    if status:
        outcome.other.append(f"the process ended with status {status}")
    if not ours:
        outcome.other.append(f"not an error of ours: {said}")
    elif said is not None and ((advice and advice not in said) or (str(root) not in said and RUN_ID not in said)):
        outcome.other.append(f"an error without place or advice: {said}")
    return outcome


KILLS = Suite("kill", _kill_points, _kill)
ERRORS = Suite("I/O errors", _error_points, _error)
VANISHED = Suite("vanished folders", _vanish_points, _vanish)
CLOCKS = Suite("clocks", _clock_points, _clock)
MEMORY = Suite("memory", _memory_points, _memory, slow=True)
POWER = Suite("power loss", _power_points, _power)
LOOKS = Suite("errors while looking", _look_points, _look)
FLIPPED = Suite("flipped bytes", _flip_points, _flip)
SUITES = (KILLS, ERRORS, LOOKS, VANISHED, CLOCKS, POWER, FLIPPED, SERVER, READERS, MEMORY, OBJECTS)
