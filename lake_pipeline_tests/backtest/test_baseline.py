"""The baseline: the corners of its definitions by hand; `test_reference` has every column."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from lake_pipeline.backtest.baseline import BASELINE_COLUMNS, BASELINE_SCHEMA, measure_paths
from lake_pipeline.backtest.config import BaselineConfig
from lake_pipeline_tests.backtest.paths_for_tests import Bar, bar, paths_of

CONFIG = BaselineConfig()


def measured(path: list[Bar], horizon_minutes: int = 2880, config: BaselineConfig = CONFIG) -> dict[str, object]:
    [row] = measure_paths(paths_of([path], horizon_minutes), config).to_pylist()
    return row


def test_the_28_columns_come_first_in_their_order() -> None:
    assert ",".join(BASELINE_COLUMNS) == (
        "alert_id,mint,caller,alert_ts_utc,entry_ts_utc,interval_seconds,horizon_hours,status,candles,entry_price,"
        "ath_mult,time_to_ath_s,time_to_2x_s,time_to_3x_s,time_to_4x_s,time_to_5x_s,time_to_10x_s,dd_initial,"
        "dd_overall,dd_pre2x,dd_after_2x,dd_after_3x,dd_after_4x,dd_after_5x,dd_after_10x,dd_after_ath,peak_pnl_pct,"
        "ret_end_pct"
    )


def test_a_first_candle_that_reaches_2x_and_falls_before_counts_wholly() -> None:
    row = measured([bar(0, 1.0, 2.0, 0.5, 1.5), bar(1, 1.5, 1.6, 1.4, 1.5)])
    assert row["time_to_2x_s"] == 0
    assert row["dd_pre2x"] == -0.5
    assert row["dd_after_2x"] == pytest.approx(-0.3)
    assert row["dd_initial"] == 0.0
    assert row["dd_initial_worst"] == -0.5


def test_a_high_equal_to_the_entry_is_no_recovery() -> None:
    row = measured([bar(0, 1.0, 1.0, 0.75, 0.75), bar(1, 0.75, 1.0, 0.5, 1.0), bar(2, 1.0, 1.25, 0.25, 1.0)])
    assert row["dd_initial"] == -0.5
    assert row["dd_initial_worst"] == -0.75


def test_the_first_of_equal_highs_is_the_ath() -> None:
    row = measured([bar(0, 1.0, 1.5, 1.0, 1.0), bar(1, 1.0, 1.5, 0.75, 1.0), bar(2, 1.0, 1.25, 0.9, 1.0)])
    assert row["time_to_ath_s"] == 0
    assert row["dd_after_ath"] == -0.5


def test_nothing_after_the_ath_is_null() -> None:
    row = measured([bar(0, 1.0, 1.0, 1.0, 1.0), bar(1, 1.0, 3.0, 1.0, 2.0)])
    assert row["dd_after_ath"] is None
    assert row["dd_after_2x"] is None
    assert row["time_to_3x_s"] == 60


def test_no_candle_is_missing_and_has_no_metric() -> None:
    row = measured([])
    assert (row["status"], row["candles"], row["censoring"]) == ("missing", 0, "lower_bound")
    facts = {"alert_id", "mint", "caller", "alert_ts_utc", "entry_ts_utc", "interval_seconds", "horizon_hours"}
    facts |= {"status", "candles", "censoring"}
    assert {name for name, value in row.items() if value is not None} == facts


@pytest.mark.parametrize(("minute", "status"), [(15, "ok"), (16, "late_entry")])
def test_a_first_candle_later_than_the_allowed_lag_is_a_late_entry(minute: int, status: str) -> None:
    row = measured([bar(minute, 1.0, 2.0, 0.5, 1.5)])
    assert row["status"] == status
    assert row["entry_lag_s"] == minute * 60
    assert (row["ath_mult"] is None) == (status == "late_entry")


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan, math.inf])
def test_an_entry_price_that_is_none_is_a_bad_entry(price: float) -> None:
    row = measured([(0, price, 1.0, 1.0, 1.0, 1.0)])
    assert row["status"] == "bad_entry"
    assert row["entry_price"] is row["ath_mult"] is row["dd_overall"] is None


@pytest.mark.parametrize(("last", "censoring"), [(85, "complete"), (84, "lower_bound")])
def test_a_path_that_ends_too_early_is_a_lower_bound(last: int, censoring: str) -> None:
    row = measured([bar(0, 1, 1, 1, 1), bar(last, 1, 1, 1, 1)], horizon_minutes=100)
    assert row["censoring"] == censoring


def test_a_table_holds_no_infinity() -> None:
    row = measured([bar(0, 1e-300, 1e300, 1e-300, 1.0)])
    assert row["status"] == "ok"
    assert row["ath_mult"] is None
    assert row["ret_end_pct"] == pytest.approx(1e302)


def test_the_table_has_the_schema_and_null_caller_stays() -> None:
    table = measure_paths(paths_of([[bar(0, 1, 1, 1, 1)]]), CONFIG)
    assert table.schema.equals(BASELINE_SCHEMA)
    assert table.column("max_ts_read").type == pa.timestamp("ms", "UTC")
