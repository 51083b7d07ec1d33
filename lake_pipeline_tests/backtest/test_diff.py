"""Two results compared: what moved, which ranks flipped, and every cause there can be."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.backtest import AlertSelection, BaselineConfig, CallerConfig, StrategyConfig, code
from lake_pipeline.backtest.diff import Causes, RankDiff, diff_results, find_causes
from lake_pipeline.backtest.results import StoredResult, baseline_result, find_result, strategy_result
from lake_pipeline.core.manifest import ResultRecord
from lake_pipeline.errors import InputError, VerificationFailed
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, Candle, create_table, sealed_run
from lake_pipeline_tests.conftest import Market, SourceFactory

CALLERS = CallerConfig(min_trades=1)


@pytest.fixture
def run(copied_lake: LocalStore) -> Run:
    return load_run(copied_lake, "plain")


def identity(**changes: Any) -> dict[str, Any]:
    return {
        "content_sha256": "a" * 64,
        "selection": {"from_day": None},
        "parameters": {"baseline": {"horizon_hours": 48.0}, "callers": {"min_trades": 10}},
        "code": {"modules": {"m.one": "1", "m.two": "2"}, "libraries": {"numpy": "2.0"}},
        **changes,
    }


def test_causes_name_data_parameters_and_code() -> None:
    nothing = find_causes(identity(), identity())
    assert nothing == Causes(None, {}, (), {})
    assert nothing.kinds == ()
    data = find_causes(identity(), identity(content_sha256="b" * 64))
    assert (data.data, data.kinds) == (("a" * 64, "b" * 64), ("data",))
    changed = {"baseline": {"horizon_hours": 24.0}, "callers": {"min_trades": 10}}
    parameters = find_causes(identity(), identity(parameters=changed, selection={"from_day": "2025-05-01"}))
    assert parameters.parameters == {
        "baseline.horizon_hours": (48.0, 24.0),
        "selection.from_day": (None, "2025-05-01"),
    }
    assert parameters.kinds == ("parameters",)
    other = {"modules": {"m.one": "1", "m.two": "changed", "m.new": "3"}, "libraries": {"numpy": "2.1"}}
    code_ = find_causes(identity(), identity(code=other))
    assert (code_.modules, code_.libraries) == (("m.new", "m.two"), {"numpy": ("2.0", "2.1")})
    assert code_.kinds == ("code",)
    assert find_causes(identity(), identity(content_sha256="b" * 64, code=other)).kinds == ("data", "code")


def test_a_revised_candle_moves_the_alerts_that_saw_it_and_data_is_the_cause(
    copied_lake: LocalStore, run: Run, market: Market, engine: ClickHouseSource, source_of: SourceFactory, table: str
) -> None:
    before = baseline_result(copied_lake, run, callers=CALLERS)
    rows = [row for row in before.baseline().to_pylist() if row["status"] == "ok"]
    mint = rows[0]["mint"]
    last = rows[0]["max_ts_read"].timestamp() * 1000

    def revised(candle: Candle) -> Candle:
        if candle.mint == mint and candle.ts_ms == last and candle.interval_s == 60:
            return dataclasses.replace(candle, high=50.0)
        return candle

    create_table(engine, table, [revised(candle) for candle in market.candles])
    other = sealed_run(copied_lake, source_of(table), market.csv, MARKET_SPEC, "revised")
    after = baseline_result(copied_lake, other, callers=CALLERS)
    found = diff_results(before, after)
    assert found.causes.kinds == ("data",)
    ids = {row["alert_id"] for row in rows if row["mint"] == mint}
    moved = {each.alert_id for each in found.moved}
    assert rows[0]["alert_id"] in moved
    assert moved <= ids
    (ath,) = [each for each in found.moved if (each.alert_id, each.metric) == (rows[0]["alert_id"], "ath_mult")]
    assert (ath.a, ath.b) == (rows[0]["ath_mult"], 50.0 / rows[0]["entry_price"])
    assert ath.delta == ath.b - ath.a
    (times,) = [each for each in found.moved if (each.alert_id, each.metric) == (rows[0]["alert_id"], "time_to_3x_s")]
    assert (times.a, times.delta) == (None, None)
    # Every caller whose score or rank moved, with both, as the two tables have them.
    tables = [
        {row["caller"]: (row["rank"], row["score"]) for row in result.caller_stats().to_pylist()}
        for result in (before, after)
    ]
    expected = [
        RankDiff(name, tables[0][name][0], tables[1][name][0], tables[0][name][1], tables[1][name][1])
        for name in tables[0]
        if tables[0][name] != tables[1][name]
    ]
    assert found.callers == expected
    assert rows[0]["caller"] in {each.caller for each in expected}
    assert not found.same


def test_alerts_of_one_side_only_are_named(copied_lake: LocalStore, run: Run) -> None:
    whole = baseline_result(copied_lake, run, callers=CALLERS)
    part = baseline_result(copied_lake, run, callers=CALLERS, selection=AlertSelection(callers=("caller-1",)))
    found = diff_results(whole, part)
    rows = whole.baseline().to_pylist()
    assert found.only_in_a == [row["alert_id"] for row in rows if row["caller"] != "caller-1"]
    assert diff_results(part, whole).only_in_b == found.only_in_a
    assert (found.moved, found.only_in_b) == ([], [])
    assert {(each.caller, each.rank_b) for each in found.callers} >= {("caller-0", None), ("caller-2", None)}
    assert found.causes.parameters == {"selection.callers": (None, ["caller-1"])}


def test_strategies_rank_callers_by_their_mean_return(copied_lake: LocalStore, run: Run) -> None:
    a, b = (strategy_result(copied_lake, run, StrategyConfig(tp=tp)) for tp in (2.0, 1.05))
    found = diff_results(a, b)
    assert {each.alert_id for each in found.moved if each.metric == "tp_sl_ret"}
    means = {name: each["case"]["mean_ret"] for name, each in a.summary()["callers"].items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    for each in found.callers:
        assert each.measure_a == means[each.caller]
        assert each.rank_a == sum(mean >= means[each.caller] for mean in means.values())
    same = diff_results(a, a)
    assert (same.same, same.causes.kinds) == (True, ())


def test_changed_code_is_named_by_module(copied_lake: LocalStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = baseline_result(copied_lake, run)
    real = code.module_digests
    code._digests_once.cache_clear()
    monkeypatch.setattr(
        code, "module_digests", lambda module: {**real(module), "lake_pipeline.backtest.kernels": "0" * 64}
    )
    try:
        after = baseline_result(copied_lake, run)
    finally:
        code._digests_once.cache_clear()
    found = diff_results(before, after)
    assert (found.causes.modules, found.causes.kinds) == (("lake_pipeline.backtest.kernels",), ("code",))
    assert found.same


def test_a_result_is_found_by_the_beginning_of_its_key(copied_lake: LocalStore, run: Run) -> None:
    results: list[StoredResult] = [
        baseline_result(copied_lake, run),
        baseline_result(copied_lake, run, BaselineConfig(max_entry_lag=3)),
        strategy_result(copied_lake, run),
    ]
    for result in results:
        found = find_result(copied_lake, result.key)
        assert (type(found), found.record, found.store.uri) == (type(result), result.record, result.store.uri)
        assert not found.created
    assert find_result(copied_lake, results[2].key[:11], "plain").record == results[2].record
    with pytest.raises(InputError, match=f"3 results under .*strategy={results[2].key}.*give more digits"):
        find_result(copied_lake, "")
    with pytest.raises(InputError, match="no results under"):
        find_result(copied_lake, results[0].key, "strict")
    with pytest.raises(InputError, match=r"is a baseline and .* a strategy"):
        diff_results(results[0], results[2])
    # The cache of paths beside them is no result.
    paths = [folder for folder in Path(copied_lake.uri, "results/run_id=plain").iterdir() if "paths=" in folder.name]
    assert paths
    with pytest.raises(InputError, match="no results under"):
        find_result(copied_lake, paths[0].name.removeprefix("paths="))


def test_an_edited_result_is_not_compared(copied_lake: LocalStore, run: Run) -> None:
    result = baseline_result(copied_lake, run)
    folder = Path(result.store.uri)
    (folder / "caller_stats.parquet").write_bytes(b"edited")
    with pytest.raises(VerificationFailed, match=r"caller_stats.parquet has other content"):
        find_result(copied_lake, result.key)
    other = result.record.model_copy(update={"identity": {**result.record.identity, "content_sha256": "0" * 64}})
    assert isinstance(other, ResultRecord)
    shutil.rmtree(folder)
    fresh = baseline_result(copied_lake, run)
    (Path(fresh.store.uri) / "result.json").write_bytes(other.to_bytes())
    with pytest.raises(VerificationFailed, match=r"result.json is not the one of this result"):
        find_result(copied_lake, result.key)
