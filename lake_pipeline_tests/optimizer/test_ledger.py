"""The ledger: safe against others, against repeats and against damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer.ledger import Ledger, count_trials

SCHEMA = pa.schema([("trial_id", pa.string()), ("train_sharpe", pa.float64()), ("n", pa.int64())])


def batch(ids: str, sharpes: list[float | None]) -> pa.Table:
    return pa.table({"trial_id": list(ids), "train_sharpe": sharpes, "n": range(len(ids))}, SCHEMA)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(LocalStore(tmp_path), "some-run")


def test_trials_count_once_whoever_evaluated_them_and_variance_is_of_those_with_a_ratio(ledger):
    ledger.add("aaa", 0, batch("xyz", [0.1, 0.3, None]))
    ledger.add("bbb", 0, batch("zw", [None, 0.8]))
    ledger.add("bbb", 1, batch("x", [0.1]))
    count = ledger.count()
    assert count.trials == 4
    assert count.sharpe_variance == pytest.approx(0.13)  # of 0.1, 0.3, 0.8
    assert ledger.count([batch("xq", [0.1, 0.4])]).trials == 5
    assert count_trials([]).trials == 0
    assert count_trials([batch("x", [0.4])]).sharpe_variance == 0


def test_repeating_a_batch_changes_nothing(ledger):
    ledger.add("aaa", 0, batch("xy", [0.1, 0.3]))
    before = sorted(Path(ledger.uri).rglob("*"))
    ledger.add("aaa", 0, batch("xy", [0.1, 0.3]))
    assert sorted(Path(ledger.uri).rglob("*")) == before
    assert ledger.count().trials == 2


def test_batches_come_back_by_number_and_of_that_search_and_schema_only(ledger):
    for number, ids in enumerate(("xy", "z")):
        ledger.add("aaa", number, batch(ids, [0.1] * len(ids)))
    ledger.add("bbb", 0, batch("q", [0.2]))
    found = ledger.batches("aaa", SCHEMA)
    assert {number: table.column("trial_id").to_pylist() for number, table in found.items()} == {
        0: ["x", "y"],
        1: ["z"],
    }
    assert ledger.batches("ccc", SCHEMA) == {}
    assert ledger.batches("bbb", pa.schema([*SCHEMA, ("more", pa.int8())])) == {}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:50] + b"x" + data[51:]]
)
def test_what_is_damaged_does_not_count_and_is_said(ledger, caplog, damage):
    ledger.add("aaa", 0, batch("xy", [0.1, 0.3]))
    ledger.add("aaa", 1, batch("z", [0.1]))
    first = min(Path(ledger.uri).rglob("*.parquet"))
    first.write_bytes(damage(first.read_bytes()))
    assert ledger.count().trials == 1
    assert list(ledger.batches("aaa", SCHEMA)) == [1]
    assert f"{first} is damaged" in caplog.text


def test_foreign_files_are_left_alone(ledger):
    ledger.add("aaa", 0, batch("xy", [0.1, 0.3]))
    for name in (
        "notes.txt",
        "search=aaa/.lake-tmp-1-ab",
        "search=aaa/000001.parquet",
        "other/000000-0123456789ab.parquet",
    ):
        path = Path(ledger.uri, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    assert ledger.count().trials == 2
    assert list(ledger.batches("aaa", SCHEMA)) == [0]


def test_processes_add_at_the_same_time(ledger, tmp_path):
    code = """
import sys
from pathlib import Path
import pyarrow as pa
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer.ledger import Ledger
ledger = Ledger(LocalStore(Path(sys.argv[1])), "some-run")
for number in range(30):
    ids = [f"{number}-shared", f"{number}-{sys.argv[2]}"]
    same = pa.table({"trial_id": [f"{number}-shared"], "train_sharpe": [0.5], "n": [1]})
    ledger.add("shared", number, same)
    ledger.add(sys.argv[2], number, pa.table({"trial_id": ids, "train_sharpe": [0.5, 0.1], "n": [1, 2]}))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("one", "two")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert ledger.count().trials == 30 * 3
    assert len(ledger.batches("shared", SCHEMA)) == 30
