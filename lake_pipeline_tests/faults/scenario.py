"""The export that is disturbed: one of everything a run can hold, in little, and what it is like undisturbed.

A sealed run `base` is there already. Run `second` takes some buckets from it by links, writes one of several parts,
rejects candles and alerts, covers and seals. The rows come from a real engine once; each point replays them, since an
engine writes nothing to the lake and opening one would be most of a point's time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner

from lake_pipeline.cli import lake as command
from lake_pipeline.core.candles import CandleBlock, candle_keys, key_mint, key_ts_ms
from lake_pipeline.core.canonical import sha256_hex
from lake_pipeline.core.plan import build_plan
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import LakeError
from lake_pipeline.export import export_buckets, identify_run, load_alerts, snapshot_alerts
from lake_pipeline.io import layout
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig
from lake_pipeline.io.source import CandleSource, SliceRequest
from lake_pipeline.io.store import TEMPORARY_PREFIX, LocalStore, Store, open_store
from lake_pipeline.reader import open_run
from lake_pipeline.seal import cover_run, seal_run
from lake_pipeline.verify import verify_run
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    Candle,
    create_table,
    mint_name,
    sealed_run,
    small_market,
    write_alerts,
)
from lake_pipeline_tests.faults.steps import Handler, Step, intercepted, recorder

SPEC = RunSpec("1m", "pre10_post6000", target_file_mb=1)
RUN_ID = "second"
TABLE = "candles"
_LARGE_MINUTES = 42_000  # of random values, some 1.8 MB: two parts


@dataclass
class Outcome:
    """What one point led to; all zero and empty is what is promised."""

    partial: int = 0
    lost: int = 0
    duplicated: int = 0
    other: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.partial or self.lost or self.duplicated or self.other)


@dataclass(frozen=True)
class Recorded:
    """A candle source that answers with rows a real engine gave: a `CandleSource`."""

    about: dict[str, Any]
    mints: list[str]
    block: CandleBlock
    states: dict[tuple[int, int], str | None]

    @classmethod
    def of(cls, source: CandleSource, alerts: Sequence[Any]) -> Recorded:
        """Everything these alerts' tables can ask; the last one's windows hold all others'."""
        plans = [build_plan(table, SPEC) for table in alerts]
        spans = [(int(plan.starts.min()), int(plan.ends.max())) for plan in plans]
        everything = SliceRequest.of(plans[-1], range(len(plans[-1].mints)))
        return cls(
            source.identity(), plans[-1].mints, source.read(everything), {span: source.state(*span) for span in spans}
        )

    def identity(self) -> dict[str, Any]:
        return self.about

    def read(self, request: SliceRequest) -> CandleBlock:
        position = np.full(len(self.mints), -1, dtype=np.int64)
        for index, mint in enumerate(request.mints):
            position[self.mints.index(mint)] = index
        mint = position[key_mint(self.block.keys)]
        rows = np.flatnonzero(mint >= 0)
        return CandleBlock(
            keys=candle_keys(mint[rows], key_ts_ms(self.block.keys[rows])),
            values={name: column[rows] for name, column in self.block.values.items()},
            source=self.block.source.take(rows),
            versions=tuple(version[rows] for version in self.block.versions),
        )

    def state(self, start_ms: int, end_ms: int) -> str | None:
        return self.states[start_ms, end_ms]

    def close(self) -> None:
        pass


def market() -> tuple[list[Candle], list[Alert], list[Alert]]:
    """Candles, the alerts of `base` and those of `second`, which holds the former."""
    rng = random.Random(11)
    candles, alerts = small_market()
    mints = sorted({alert.mint for alert in alerts})
    large = mint_name("large")
    for minute in range(_LARGE_MINUTES):
        low, *middle, high = sorted(rng.random() + 1 for _ in range(4))
        candles.append(Candle(large, T0_MS + minute * 60_000, middle[0], high, low, middle[1], rng.random() * 100))
    more = [Alert(f"large-{n}", large, T0_MS + (n * 6_000 + 10) * 60_000) for n in range(_LARGE_MINUTES // 6_000)]
    return candles, [alert for alert in alerts if alert.mint in mints[:4]], [*alerts, *more, Alert("bad", "", T0_MS)]


def export(root: str | Path, alerts: str, source: CandleSource, *, threads: int = 1) -> None:
    """Run `second`, from its alerts to its seal."""
    lake = open_store(str(root))
    normalised = load_alerts(SPEC, alerts)
    run, _ = snapshot_alerts(lake, identify_run(SPEC, normalised, source.identity(), RUN_ID), normalised, {})
    export_buckets(run, source, threads=threads, reuse_from=lake)
    cover_run(run, threads=threads)
    seal_run(run, threads=threads)


def hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def timeless(path: str, data: bytes) -> bytes:
    """What a file says but for when it was written and how long that took."""
    if not path.endswith("/provenance.json"):
        return data
    events = json.loads(data)["events"]
    return json.dumps([{**event, "at": None, "seconds": None} for event in events]).encode()


def in_child(action: Callable[[], Any]) -> int:
    """Run `action` in a forked process and return its wait status; 0 if it ended without an exception.

    A process that has used pyarrow's threads or imported chDB must not be forked, so whoever forks only waits.
    """
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Scenario:
    """Made once in a folder of its own; its points can then be tried by several processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.base = self.folder / "base"
        self.undisturbed = self.folder / "undisturbed"
        self._recording = self.folder / "recording.pickle"
        if in_child(self._prepare):
            raise RuntimeError("the undisturbed export failed")
        self.alerts, self.source, self.expected, self.steps, self.looks = pickle.loads(self._recording.read_bytes())
        self._base = hashes(self.base)
        self._base_files = {(self.base / path).stat().st_ino: path for path in self._base}

    @property
    def run_folder(self) -> Path:
        """The undisturbed run's folder."""
        return self.undisturbed / f"lake/runs/run_id={RUN_ID}"

    def _prepare(self) -> None:
        candles, few, many = market()
        few_csv = write_alerts(self.folder / "few.csv", few)
        many_csv = write_alerts(self.folder / "many.csv", many)
        with ClickHouseSource(SourceConfig(str(self.folder / "clickhouse"), table=TABLE)) as engine:
            create_table(engine, TABLE, candles)
            sealed_run(LocalStore(self.base), engine, few_csv, SPEC, "base")
            source = Recorded.of(engine, [load_alerts(SPEC, path).alerts for path in (few_csv, many_csv)])
            shutil.copytree(self.base, self.undisturbed)
            export(self.undisturbed, many_csv, engine, threads=2)
        report = verify_run(LocalStore(self.run_folder), RUN_ID)
        assert report.ok, report.faults
        expected = hashes(self.run_folder)
        del expected["provenance.json"]
        steps: list[Step] = []
        looks: list[Step] = []
        for name, found in (("steps", steps), ("looks", looks)):
            shutil.copytree(self.base, self.folder / name)
            with intercepted(self.folder / name, recorder(found), looks=found is looks):
                export(self.folder / name, many_csv, source)
        self._recording.write_bytes(pickle.dumps((many_csv, source, expected, steps, looks)))

    def lake(self, name: str) -> Path:
        """A data root that holds `base`, by links."""
        root = self.folder / "points" / _file_name(name)
        for path in self._base:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.base / path, root / path)
        return root

    def base_unchanged(self) -> bool:
        """Whether no point wrote to the sealed run whose files it linked."""
        return hashes(self.base) == self._base

    def disturbed(
        self, root: Path, handler: Handler, *, threads: int = 1, looks: bool = False
    ) -> tuple[int, str | None, bool]:
        """Export in a child with `handler` in its way: wait status, message of its error, and if that was ours."""
        said = root.with_suffix(".said")

        def victim() -> None:
            try:
                with intercepted(root, handler, looks=looks):
                    export(root, self.alerts, self.source, threads=threads)
            except Exception as error:
                text = str(error) if isinstance(error, LakeError) else "".join(traceback.format_exception(error))
                said.write_text(json.dumps([text, isinstance(error, LakeError)]))

        status = in_child(victim)
        text, ours = json.loads(said.read_text()) if said.exists() else (None, True)
        said.unlink(missing_ok=True)
        return status, text, ours

    def recorded(self, root: Path) -> list[Step]:
        """Export in a child and return the steps it took."""
        found = root.with_suffix(".steps")

        def record() -> None:
            steps: list[Step] = []
            with intercepted(root, recorder(steps)):
                export(root, self.alerts, self.source)
            found.write_bytes(pickle.dumps(steps))

        if in_child(record):
            raise RuntimeError("the export failed")
        steps: list[Step] = pickle.loads(found.read_bytes())
        found.unlink()
        return steps

    def judge(self, root: Path) -> Outcome:
        """`judged` of a folder as it was left behind. What is left the same, byte for byte, is judged once."""
        folder = root / layout.run_folder(RUN_ID)
        return self.once(f"files-{self._state(root)}", lambda: self.judged(str(root), lambda: hashes(folder)))

    def once(self, state: str, judge: Callable[[], Outcome]) -> Outcome:
        """The outcome of `judge`, or that of another point, in whatever process, which left the same state."""
        known = self.folder / "judged" / state
        if known.exists():
            return Outcome(**json.loads(known.read_text()))
        outcome = judge()
        known.parent.mkdir(exist_ok=True)
        finished = known.with_name(f"{state}.{os.getpid()}")
        finished.write_text(json.dumps(asdict(outcome)))
        finished.rename(known)
        return outcome

    def _state(self, root: Path) -> str:
        """A hash over everything below a data root that a process can find there, times left out."""
        digest = hashlib.sha256()
        for path in sorted(root.rglob("*")):
            found = path.lstat()
            name = re.sub(rf"{re.escape(TEMPORARY_PREFIX)}\S+", TEMPORARY_PREFIX, path.relative_to(root).as_posix())
            content = self._base_files.get(found.st_ino)
            if content is None and path.is_file():
                content = sha256_hex(timeless(path.as_posix(), path.read_bytes()))
            digest.update(f"{name}\0{found.st_mode}\0{content}\n".encode())
        return digest.hexdigest()

    def judged(self, root: str, hashes_now: Callable[[], dict[str, str]]) -> Outcome:
        """What a reader sees of `second` as it is, and whether another export brings it to its one right end."""
        outcome = Outcome()
        self._look(root, hashes_now(), outcome)
        try:
            export(root, self.alerts, self.source)
        except Exception as error:
            outcome.other.append(f"the rerun failed: {type(error).__name__}: {error}")
            return outcome
        found = hashes_now()
        found.pop("provenance.json")
        if found == self.expected:
            return outcome
        outcome.other += [
            f"after the rerun {path} {'is left' if path not in self.expected else 'differs or is missing'}"
            for path in sorted(found.keys() | self.expected.keys())
            if found.get(path) != self.expected.get(path)
        ]
        ours, theirs = _rows(open_store(root)), _rows(LocalStore(self.undisturbed))
        outcome.lost = (theirs - ours).total()
        outcome.duplicated = (ours - theirs).total()
        return outcome

    def _look(self, root: str, found: dict[str, str], outcome: Outcome) -> None:
        listed = CliRunner().invoke(command, ["runs", "--data-root", root, "--format", "json"])
        if listed.exit_code:
            outcome.other.append(f"`lake runs` failed: {listed.output} {listed.exception}")
        try:
            run = open_run(RUN_ID, root)
        except LakeError:
            run = None
        except Exception as error:
            outcome.other.append(f"open_run raised {type(error).__name__}: {error}")
            run = None
        if run is not None and (not run.verify().ok or run.manifest.to_bytes() != _manifest(self.run_folder)):
            outcome.partial += 1
        try:
            open_run(RUN_ID, root, allow_unsealed=True)
        except LakeError:
            pass
        except Exception as error:
            outcome.other.append(f"open_run(allow_unsealed=True) raised {type(error).__name__}: {error}")
        for path, digest in found.items():
            if path == "provenance.json":
                json.loads(open_store(root).read(f"{layout.run_folder(RUN_ID)}/{path}"))
            elif Path(path).name.startswith(TEMPORARY_PREFIX):
                continue
            elif digest != self.expected.get(path):
                outcome.partial += 1
                outcome.other.append(f"{path} was visible with other content than the undisturbed run's")


def _manifest(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()


def _file_name(point: str) -> str:
    return re.sub(r"[^\w-]+", "-", point)


def _rows(lake: Store) -> Counter[tuple[Any, ...]]:
    rows: Counter[tuple[Any, ...]] = Counter()
    run = lake.sub(layout.run_folder(RUN_ID))
    for file in run.files("slices"):
        if file.temporary:
            continue
        table = pq.read_table(io.BytesIO(run.read(file.path)), columns=["mint", "ts"])
        rows.update(zip(table.column("mint").to_pylist(), table.column("ts").to_pylist(), strict=True))
    return rows
