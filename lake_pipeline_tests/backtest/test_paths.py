"""Paths of a sealed run: which candles they hold, that they are the sealed ones, and what the cache may answer."""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lake_pipeline.backtest import paths as paths_module
from lake_pipeline.backtest.config import AlertSelection
from lake_pipeline.backtest.paths import PathBlock, Paths, open_paths
from lake_pipeline.errors import InputError, RunNotSealed, VerificationFailed
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.backtest.paths_for_tests import SPOILS
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, expected_run, window_of
from lake_pipeline_tests.conftest import Market

CHAINS = ("solana", "SOL", "Solana", "sol")
HOUR_MS = 3_600_000
EVERYTHING = AlertSelection()


def as_lists(paths: Paths) -> dict[str, list[list[float]]]:
    """alert_id -> the six columns of its path."""
    found: dict[str, list[list[float]]] = {}
    for bucket in paths.buckets:
        block = paths.load(bucket)
        for index, row in enumerate(block.rows.tolist()):
            path = block.path(index)
            columns = (path.ts, path.open, path.high, path.low, path.close, path.volume)
            alert_id = paths.alerts.column("alert_id")[row].as_py()
            assert alert_id not in found
            found[alert_id] = [column.tolist() for column in columns]
    return found


def expected_paths(market: Market, horizon_ms: int) -> dict[str, list[list[float]]]:
    written = expected_run(market.candles, market.alerts, MARKET_SPEC, CHAINS).written
    found = {}
    for alert in market.alerts:
        entry_ts = -(-alert.ts_ms // 60_000) * 60_000
        end = min(entry_ts + horizon_ms, window_of(alert.ts_ms, 60, MARKET_SPEC.pre, MARKET_SPEC.post)[2])
        own = [c for c in written if c.mint == alert.mint and entry_ts <= c.ts_ms < end]
        found[alert.alert_id] = [[c.ts_ms for c in own], *([c.values[n] for c in own] for n in range(5))]
    return found


@pytest.fixture
def run(sealed_lake: LocalStore) -> Run:
    return load_run(sealed_lake, "plain")


@pytest.mark.parametrize("horizon_ms", [60_000, 7 * 60_000, HOUR_MS, 48 * HOUR_MS])
def test_a_path_holds_the_candles_of_its_own_window_and_horizon_only(run: Run, market: Market, horizon_ms: int) -> None:
    # The market's mints are called twice with overlapping windows, so the run holds later candles than the first's.
    expected = expected_paths(market, horizon_ms)
    assert as_lists(open_paths(run, EVERYTHING, horizon_ms)) == expected
    assert any(len(columns[0]) for columns in expected.values())


def test_a_path_does_not_depend_on_which_other_alerts_are_selected(run: Run, market: Market) -> None:
    whole = as_lists(open_paths(run))
    for caller in ("caller-0", "caller-1"):
        part = as_lists(open_paths(run, AlertSelection(callers=(caller,))))
        assert set(part) == {alert.alert_id for alert in market.alerts if alert.caller == caller}
        assert part == {alert_id: whole[alert_id] for alert_id in part}


def test_days_are_utc_and_inclusive(run: Run) -> None:
    day = dt.date(2025, 5, 1)
    whole = open_paths(run).alerts
    assert open_paths(run, AlertSelection(from_day=day, to_day=day)).alerts.equals(whole)
    for selection in (
        AlertSelection(from_day=day + dt.timedelta(days=1)),
        AlertSelection(to_day=day - dt.timedelta(days=1)),
        AlertSelection(callers=("nobody",)),
    ):
        with pytest.raises(InputError, match=r"none of the run's 13 alerts is selected.* of 2025-05-01 to .*, by ca"):
            open_paths(run, selection)


def test_a_caller_without_an_alert_is_named(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    some = open_paths(run, AlertSelection(callers=("caller-0", "caller-O")))
    assert some.alerts.equals(open_paths(run, AlertSelection(callers=("caller-0",))).alerts)
    assert [record.message for record in caplog.records] == ["no alert of the run is of the callers caller-O"]


def test_alerts_that_strict_coverage_dropped_are_not_selected(sealed_lake: LocalStore) -> None:
    run = load_run(sealed_lake, "strict")
    paths = open_paths(run)
    assert 0 < paths.alerts.num_rows == run.manifest().coverage.kept_events < run.alerts().num_rows


def test_an_alert_on_a_boundary_enters_at_it_and_any_other_at_the_next(run: Run) -> None:
    paths = open_paths(run)
    ts_ms = paths.alerts.column("ts").cast(pa.int64()).to_numpy()
    assert np.all(paths.entry_ts % 60_000 == 0)
    assert np.all((paths.entry_ts >= ts_ms) & (paths.entry_ts < ts_ms + 60_000))


def test_one_alert_by_its_id(run: Run, market: Market) -> None:
    paths = open_paths(run)
    alert_id = market.alerts[0].alert_id
    path = paths.path(alert_id)
    assert path.ts.tolist() == expected_paths(market, 48 * HOUR_MS)[alert_id][0]
    assert path.table().column_names == ["timestamp", "open", "high", "low", "close", "volume"]
    with pytest.raises(InputError, match="alert 'nobody' is not among the 13 selected"):
        paths.path("nobody")


def test_an_unsealed_run_is_refused(exported: Run) -> None:
    with pytest.raises(RunNotSealed, match="is not sealed"):
        open_paths(exported)


@pytest.mark.parametrize("name", ["manifest.json", "inputs/alerts.parquet", "outputs/coverage.parquet", "run.json"])
def test_an_edited_record_is_refused(copied_lake: LocalStore, name: str) -> None:
    run = load_run(copied_lake, "plain")
    path = Path(run.store.uri, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed):
        open_paths(run)


def test_an_edited_or_missing_slice_is_refused_when_it_is_read(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    paths = open_paths(run)
    part = next(Path(run.store.uri).glob("slices/**/*.parquet"))
    bucket = part.parent.name.removeprefix("mint_bucket=")
    data = bytearray(part.read_bytes())
    data[10] ^= 1
    part.write_bytes(data)
    with pytest.raises(VerificationFailed, match="other content than was sealed"):
        paths.load(bucket)
    part.unlink()
    with pytest.raises(VerificationFailed, match="cannot be read"):
        paths.load(bucket)


# --- the cache -------------------------------------------------------------------------------------


def cached(lake: LocalStore, run: Run, **settings: Any) -> Paths:
    return open_paths(run, lake=lake, **settings)


def cache_files(lake: LocalStore) -> list[Path]:
    return sorted(Path(lake.uri).glob("results/run_id=plain/paths=*/*.paths"))


def no_slices(self: Any, bucket: str) -> Any:
    raise AssertionError(f"bucket {bucket} was read from its slices")


def test_cached_paths_are_the_same_and_need_no_slices(
    copied_lake: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_run(copied_lake, "plain")
    with caplog.at_level(logging.INFO, "lake_pipeline.backtest"):
        expected = as_lists(cached(copied_lake, run))
        assert "none are cached yet" in caplog.text
        assert expected == as_lists(open_paths(run))
        monkeypatch.setattr(paths_module._Loader, "load", no_slices)
        assert as_lists(cached(copied_lake, run)) == expected
        assert "are used" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_cache_is_filled_on_demand_only(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    as_lists(cached(copied_lake, run, fill_cache=False))
    assert cache_files(copied_lake) == []
    paths = cached(copied_lake, run)
    paths.load(paths.buckets[0])
    assert [file.stem for file in cache_files(copied_lake)] == [paths.buckets[0]]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__)
def test_a_spoilt_cache_is_a_miss_with_a_warning_and_is_mended(
    copied_lake: LocalStore, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    run = load_run(copied_lake, "plain")
    expected = as_lists(cached(copied_lake, run))
    before = {file: file.read_bytes() for file in cache_files(copied_lake)}
    assert before
    for file, data in before.items():
        file.write_bytes(spoil(data))
    assert as_lists(cached(copied_lake, run)) == expected
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "are damaged or of another version" in caplog.text
    assert {file: file.read_bytes() for file in cache_files(copied_lake)} == before


def test_a_cache_file_of_another_bucket_selection_or_run_is_a_miss(
    copied_lake: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_run(copied_lake, "plain")
    expected = as_lists(cached(copied_lake, run))
    first, second, *_ = cache_files(copied_lake)
    first.write_bytes(second.read_bytes())
    assert as_lists(cached(copied_lake, run)) == expected
    assert caplog.records
    caplog.clear()
    as_lists(cached(copied_lake, run, horizon_ms=60_000))
    shorter = next(file for file in cache_files(copied_lake) if file.parent != first.parent and file.name == first.name)
    first.write_bytes(shorter.read_bytes())
    assert as_lists(cached(copied_lake, run)) == expected
    assert caplog.records


def test_a_price_that_only_moved_within_its_file_is_noticed(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    expected = as_lists(cached(copied_lake, run))
    for file in cache_files(copied_lake):
        words = np.frombuffer(file.read_bytes(), np.int64).copy()
        words[[-1, -2]] = words[[-2, -1]]
        words[-3:] ^= np.int64(-(2**63))
        file.write_bytes(words.tobytes())
    assert as_lists(cached(copied_lake, run)) == expected


def test_a_cached_block_keeps_only_the_candles_its_paths_need_each_once(copied_lake: LocalStore) -> None:
    run = load_run(copied_lake, "plain")
    as_lists(cached(copied_lake, run))
    paths = cached(copied_lake, run)
    for bucket in paths.buckets:
        block = paths.load(bucket)
        covered = np.zeros(len(block.ts), np.int64)
        for start, stop in zip(block.starts, block.stops, strict=True):
            covered[start:stop] += 1
        assert np.all(covered > 0)
        assert not block.ts.flags.writeable


def test_packing_keeps_every_path_whatever_lies_between() -> None:
    columns = [np.arange(40, dtype=np.int64), *(np.arange(40) + 100.0 * number for number in range(5))]
    starts = np.array([3, 5, 30, 7, 20, 12, 39])
    stops = np.array([9, 5, 35, 12, 25, 12, 40])
    block = PathBlock(*columns, np.arange(7), starts, stops)
    packed = paths_module._unpacked(paths_module._packed(block))
    for index in range(7):
        mine, theirs = block.path(index), packed.path(index)
        assert mine.ts.tolist() == theirs.ts.tolist()
        assert mine.volume.tolist() == theirs.volume.tolist()
    assert len(packed.ts) == 20


def test_a_mint_that_runs_on_into_the_next_row_group_is_one_range() -> None:
    def group(mints: list[str], ts: list[int]) -> pa.Table:
        values = {name: pa.array(ts, pa.float64()) for name in ("open", "high", "low", "close", "volume")}
        times = pa.array(ts, pa.int64()).cast(pa.timestamp("ms", "UTC"))
        return pa.table({"mint": pa.array(mints).dictionary_encode(), "ts": times, **values})

    ranges, columns = paths_module._gather([group(["a", "a", "b"], [1, 2, 5]), group(["b", "c"], [6, 1])])
    assert ranges == {"a": (0, 2), "b": (2, 4), "c": (4, 5)}
    assert columns[0].tolist() == [1, 2, 5, 6, 1]
