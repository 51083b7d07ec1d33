"""Records: which candles they are, and what their cache may answer."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lake_pipeline.backtest import code
from lake_pipeline.backtest import paths as paths_module
from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, StrategyConfig
from lake_pipeline.backtest.paths import CandlePath, open_paths
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.optimizer import records as records_module
from lake_pipeline.optimizer.evaluate import SCAN_BELOW, Evaluator, Outcomes, open_evaluator
from lake_pipeline.optimizer.passage import BLOCK
from lake_pipeline.optimizer.records import Records, cache_problem, load_records, records_cached
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.backtest.markets import Market as WalkMarket
from lake_pipeline_tests.backtest.markets import long_market
from lake_pipeline_tests.backtest.paths_for_tests import SPOILS
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, Candle, create_table, sealed_run
from lake_pipeline_tests.conftest import Market, SourceFactory

# Enough to find records for, of every family but a time stop, which reads candles.
TRIALS = [
    StrategyConfig(
        tp=1 + number / 64,
        sl=1 - number / 128,
        trail_distance=0.125 if number % 3 else None,
        tiers=((1.25, 1.0),) if number % 2 else (),
    )
    for number in range(1, SCAN_BELOW + 1)
]


@pytest.fixture
def run(copied_lake: LocalStore) -> Run:
    return load_run(copied_lake, "plain")


def evaluated(lake: LocalStore | None, run: Run, **settings: Any) -> Outcomes:
    return open_evaluator(run, lake=lake, **settings).outcomes(TRIALS)


def as_bytes(outcomes: Outcomes) -> list[bytes]:
    return [getattr(outcomes, field.name).tobytes() for field in dataclasses.fields(outcomes)]


def record_files(lake: LocalStore) -> list[Path]:
    return sorted(Path(lake.uri).glob("results/run_id=*/records=*/*.records"))


# --- what they are -----------------------------------------------------------------------------------


def expected_records(path: CandlePath) -> dict[str, list[Any]]:
    """By definition, candle by candle."""
    found: dict[str, list[Any]] = {name: [] for name in ("highs", "lows", "legs", "leg_lows")}
    for number in range(len(path)):
        if not number or path.high[number] > path.high[:number].max():
            found["highs"].append((path.ts[number], path.high[number]))
        if not number or path.low[number] < path.low[:number].min():
            found["lows"].append((path.ts[number], path.low[number], path.open[number]))
    at = [int(np.searchsorted(path.ts, ts)) for ts, _ in found["highs"]]
    for first, last in itertools.pairwise([*at, len(path) - 1]):
        leg = slice(first + 1, last + 1)
        ts, open_, low = path.ts[leg], path.open[leg], path.low[leg]
        found["legs"].append([(ts[n], low[n], open_[n]) for n in range(len(ts)) if not n or low[n] < low[:n].min()])
        found["leg_lows"].append(float(low.min()) if len(low) else math.nan)
    return found


def found_records(records: Records, row: int) -> dict[str, list[Any]]:
    levels = records.levels
    highs = slice(levels.high_first[row], levels.high_last[row])
    lows = slice(levels.low_first[row], levels.low_last[row])
    dips = list(zip(records.legs.dip_ts, records.legs.dip_value, records.legs.dip_open, strict=True))
    ends = [int(records.legs.dip_first[row]), *records.legs.leg_end[highs].tolist()]
    return {
        "highs": list(zip(levels.high_ts[highs], levels.high_value[highs], strict=True)),
        "lows": list(zip(levels.low_ts[lows], levels.low_value[lows], levels.low_open[lows], strict=True)),
        "legs": [dips[first:last] for first, last in itertools.pairwise(ends)],
        "leg_lows": records.legs.leg_low[highs].tolist(),
    }


@pytest.mark.parametrize("seed", range(8))
def test_records_are_the_candles_with_a_new_high_a_new_low_or_a_new_low_since_the_last_high(seed: int) -> None:
    market: WalkMarket = long_market(seed)
    paths = market.paths()
    records = load_records(paths, threads=2)
    entries = records.entries(paths)
    for row, (alert, _) in enumerate(market.calls):
        path = paths.path(alert.alert_id)
        assert entries.candles[row] == len(path)
        if len(path):
            # As text, for an entry's open may be NaN.
            assert str(found_records(records, row)) == str(expected_records(path))
            assert (entries.first_ts[row], entries.last_ts[row]) == (path.ts[0], path.ts[-1])
            assert records.levels.last_close[row] == path.close[-1]
            legs = range(records.levels.high_first[row], records.levels.high_last[row])
            for block, first in enumerate(legs[::BLOCK], int(records.legs.block_first[row])):
                lows = records.legs.leg_low[first : min(first + BLOCK, legs.stop)]
                assert records.legs.block_low[block] == min(lows[~np.isnan(lows)], default=math.inf)
        else:
            assert records.levels.high_first[row] == records.levels.high_last[row]
            assert (entries.first_ts[row], entries.last_ts[row]) == (-1, -1)


def test_records_say_which_alerts_are_traded_as_paths_do() -> None:
    for seed in range(8):
        market = long_market(seed)
        scan, records = (Evaluator(market.paths(), market.config, scan_below=below) for below in (1, 0))
        assert scan.status.tolist() == records.status.tolist()


# --- the cache ---------------------------------------------------------------------------------------


def refuse(*args: Any) -> Any:
    raise AssertionError("candles were read")


def test_a_second_evaluation_reads_neither_slices_nor_paths(
    copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lake_pipeline.optimizer"):
        first = as_bytes(evaluated(copied_lake, run))
        assert "records: none are cached yet; they are found in the paths and cached" in caplog.text
        assert record_files(copied_lake)
        shutil.rmtree(Path(run.store.uri, "slices"))
        for folder in Path(copied_lake.uri).glob("results/run_id=plain/paths=*"):
            shutil.rmtree(folder)
        monkeypatch.setattr(paths_module._Cache, "load", refuse)
        caplog.clear()
        assert as_bytes(evaluated(copied_lake, run)) == first
        assert "records: those cached" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    # However few the trials are.
    alone = open_evaluator(run, lake=copied_lake).outcomes(TRIALS[:1])
    assert as_bytes(alone)[0] == first[0][: len(as_bytes(alone)[0])]


def test_few_trials_are_walked_and_leave_no_records(copied_lake: LocalStore, run: Run) -> None:
    evaluator = open_evaluator(run, lake=copied_lake)
    for trial in TRIALS[:-1]:
        evaluator.outcomes([trial])
    assert not record_files(copied_lake)
    walked = evaluator.outcomes(TRIALS[:1])
    assert record_files(copied_lake)
    assert as_bytes(walked) == as_bytes(open_evaluator(run, lake=copied_lake).outcomes(TRIALS[:1]))


def test_without_a_lake_slices_are_read_once_and_nothing_is_written(
    copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = as_bytes(evaluated(copied_lake, run))
    shutil.rmtree(Path(copied_lake.uri, "results"))
    evaluator = open_evaluator(run)
    evaluator.outcomes(TRIALS[:1])
    monkeypatch.setattr(paths_module._Loader, "load", refuse)
    assert as_bytes(evaluator.outcomes(TRIALS)) == first
    assert evaluator.totals(TRIALS, np.ones((1, 13), np.bool_)).n.min() > 0
    assert not Path(copied_lake.uri, "results").exists()


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__)
def test_spoilt_records_are_a_miss_with_a_warning_and_are_mended(
    copied_lake: LocalStore, run: Run, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    expected = as_bytes(evaluated(copied_lake, run))
    before = {file: file.read_bytes() for file in record_files(copied_lake)}
    identity = open_paths(run, lake=copied_lake).cache
    assert identity is not None
    store = LocalStore(record_files(copied_lake)[0].parent)
    assert cache_problem(store, identity.identity) is None
    for file, data in before.items():
        file.write_bytes(spoil(data))
    assert f"{record_files(copied_lake)[0].name} " in str(cache_problem(store, identity.identity))
    assert as_bytes(evaluated(copied_lake, run)) == expected
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cached records" in caplog.text
    assert {file: file.read_bytes() for file in record_files(copied_lake)} == before


def test_records_of_another_bucket_are_a_miss(
    copied_lake: LocalStore, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    expected = as_bytes(evaluated(copied_lake, run))
    first, second, *_ = record_files(copied_lake)
    first.write_bytes(second.read_bytes())
    assert as_bytes(evaluated(copied_lake, run)) == expected
    assert "cached records" in caplog.text


def test_another_selection_or_horizon_has_records_of_its_own(copied_lake: LocalStore, run: Run) -> None:
    evaluated(copied_lake, run)
    evaluated(copied_lake, run, config=BaselineConfig(horizon_hours=1))
    evaluated(copied_lake, run, selection=AlertSelection(callers=("caller-0",)))
    # How late an entry may be is no matter of records.
    evaluated(copied_lake, run, config=BaselineConfig(max_entry_lag=1))
    assert len({file.parent for file in record_files(copied_lake)}) == 3


def test_one_changed_candle_is_a_miss(
    copied_lake: LocalStore, run: Run, market: Market, engine: ClickHouseSource, source_of: SourceFactory, table: str
) -> None:
    before = evaluated(copied_lake, run)
    paths = open_paths(run)
    row = int(np.flatnonzero(open_evaluator(run).status == 0)[0])
    mint = paths.alerts.column("mint")[row].as_py()
    last = int(paths.path(paths.alerts.column("alert_id")[row].as_py()).ts[-1])

    def revised(candle: Candle) -> Candle:
        changed = candle.mint == mint and candle.ts_ms == last and candle.interval_s == 60
        return dataclasses.replace(candle, high=50.0) if changed else candle

    create_table(engine, table, [revised(candle) for candle in market.candles])
    other = sealed_run(copied_lake, source_of(table), market.csv, MARKET_SPEC, "revised")
    # What the first run cached, under the other's name.
    shutil.copytree(Path(copied_lake.uri, "results/run_id=plain"), Path(copied_lake.uri, "results/run_id=revised"))
    paths_of_other = open_paths(other, lake=copied_lake)
    assert not records_cached(paths_of_other)
    after = evaluated(copied_lake, other)
    assert as_bytes(after) == as_bytes(evaluated(None, other))
    assert as_bytes(after) != as_bytes(before)


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that a module has changed, or the version of a library has; undone with None."""
    real_digests, real_version = code.module_digests, code.version

    def forget() -> None:
        code._digests_once.cache_clear()
        code._version_once.cache_clear()

    def pretend(name: str | None) -> None:
        forget()
        changed = {f"lake_pipeline.{name}": "0" * 64} if name else {}
        monkeypatch.setattr(code, "module_digests", lambda module: {**real_digests(module), **changed})
        monkeypatch.setattr(code, "version", lambda library: "0" if library == name else real_version(library))

    yield pretend
    forget()


@pytest.mark.parametrize("name", ["optimizer.passage", "backtest.kernels", "core.window", "numba", "numpy"])
def test_one_changed_helper_or_library_is_a_miss_and_nothing_changed_is_a_hit(
    copied_lake: LocalStore, run: Run, other_code: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    expected = as_bytes(evaluated(copied_lake, run))
    assert records_cached(open_paths(run, lake=copied_lake))
    other_code(name)
    with caplog.at_level(logging.INFO, "lake_pipeline.optimizer"):
        assert not records_cached(open_paths(run, lake=copied_lake))
        assert as_bytes(evaluated(copied_lake, run)) == expected
    assert "records: those cached were made with other code" in caplog.text
    assert name in caplog.text
    assert records_cached(open_paths(run, lake=copied_lake))
    other_code(None)
    assert not records_cached(open_paths(run, lake=copied_lake))


def test_the_code_of_records_is_all_that_finds_them() -> None:
    found = code.module_digests(records_module.__name__)
    for name in ("optimizer.passage", "backtest.paths", "backtest.kernels", "backtest.words", "core.canonical"):
        assert f"lake_pipeline.{name}" in found
