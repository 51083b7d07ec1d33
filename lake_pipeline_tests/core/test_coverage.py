from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline import compute_coverage
from lake_pipeline.core.coverage import source_lag_ms
from lake_pipeline.core.schemas import COVERAGE_SCHEMA
from lake_pipeline.core.spec import RunSpec
from lake_pipeline_tests.candles_for_tests import T0_MS, coverage_of, sha1_bucket

MINUTE_MS = 60_000
UTC_MS = pa.timestamp("ms", "UTC")

# (mint, ms after T0, volume): on the grid or off it, unique on (mint, ts).
ON_GRID = st.tuples(st.sampled_from("ab"), st.integers(-4, 14).map(lambda slot: slot * MINUTE_MS))
OFF_GRID = st.tuples(st.sampled_from("ab"), st.integers(-4 * MINUTE_MS, 14 * MINUTE_MS))
CANDLES = st.lists(
    st.tuples(ON_GRID | OFF_GRID, st.sampled_from([0.0, -0.0, 3.0])), max_size=25, unique_by=lambda item: item[0]
)
ALERTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10 * MINUTE_MS)), min_size=1, max_size=6)


def alerts_table(alerts: list[tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "alert_id": [f"id-{row}" for row in range(len(alerts))],
            "mint": [mint for mint, _ in alerts],
            "ts": pa.array([T0_MS + ms for _, ms in alerts], pa.int64()).cast(UTC_MS),
            "caller": pa.array([None if row % 2 else "x" for row in range(len(alerts))], pa.string()),
        }
    )


def candles_table(candles: list[tuple[tuple[str, int], float]]) -> pa.Table:
    return pa.table(
        {
            "mint": pa.array([mint for (mint, _), _ in candles], pa.string()),
            "ts": pa.array([T0_MS + ms for (_, ms), _ in candles], pa.int64()).cast(UTC_MS),
            "volume": pa.array([volume for _, volume in candles], pa.float64()),
        }
    )


@given(candles=CANDLES, alerts=ALERTS, pre=st.integers(0, 3), post=st.integers(0, 4))
def test_compute_coverage_per_alert(
    candles: list[tuple[tuple[str, int], float]], alerts: list[tuple[str, int]], pre: int, post: int
) -> None:
    table = compute_coverage(alerts_table(alerts), candles_table(candles), RunSpec("1m", f"pre{pre}_post{post}"))
    assert table.schema.equals(COVERAGE_SCHEMA)
    for row, (mint, ms) in zip(table.to_pylist(), alerts, strict=True):
        own = [(T0_MS + at, volume) for (candle_mint, at), volume in candles if candle_mint == mint]
        expected = coverage_of(T0_MS + ms, own, 60, pre, post)
        assert {name: row[name] for name in expected} == expected
        assert (row["mint"], row["mint_bucket"]) == (mint, sha1_bucket(mint))
        assert (row["kept"], row["reason"]) == (True, None)
    assert table.column("alert_id").to_pylist() == [f"id-{row}" for row in range(len(alerts))]


@given(candles=CANDLES, alerts=ALERTS, min_required_pre=st.integers(0, 2), target_total=st.integers(0, 6))
def test_strict_coverage_keeps_exactly_the_alerts_that_reach_both_thresholds(
    candles: list[tuple[tuple[str, int], float]],
    alerts: list[tuple[str, int]],
    min_required_pre: int,
    target_total: int,
) -> None:
    spec = RunSpec(
        "1m", "pre2_post3", strict_coverage=True, min_required_pre=min_required_pre, target_total=target_total
    )
    for row in compute_coverage(alerts_table(alerts), candles_table(candles), spec).to_pylist():
        reasons = []
        if row["available_pre"] < min_required_pre:
            reasons.append(f"available_pre {row['available_pre']} < min_required_pre {min_required_pre}")
        if row["available_total"] < target_total:
            reasons.append(f"available_total {row['available_total']} < target_total {target_total}")
        assert row["kept"] is (not reasons)
        assert row["reason"] == ("; ".join(reasons) or None)


@given(candles=CANDLES, alerts=ALERTS, random=st.randoms(use_true_random=False))
def test_the_order_of_candles_does_not_matter(
    candles: list[tuple[tuple[str, int], float]], alerts: list[tuple[str, int]], random: object
) -> None:
    spec = RunSpec("1m", "pre2_post3")
    shuffled = list(candles)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = (compute_coverage(alerts_table(alerts), candles_table(rows), spec) for rows in (candles, shuffled))
    assert one.equals(two)


def covered(slots: list[int], alert_slot: int = 10, window: str = "pre3_post4") -> dict[str, object]:
    candles = [(("a", slot * MINUTE_MS), 1.0) for slot in slots]
    alerts = alerts_table([("a", alert_slot * MINUTE_MS + 59_999)])
    [row] = compute_coverage(alerts, candles_table(candles), RunSpec("1m", window)).to_pylist()
    return row


def test_the_anchor_candle_counts_as_post() -> None:
    row = covered([9, 10, 11])
    assert (row["available_pre"], row["available_post"], row["has_anchor"]) == (1, 2, True)
    assert covered([9, 11])["has_anchor"] is False


def test_the_first_candle_of_the_window_is_inside_and_the_one_at_its_end_is_not() -> None:
    row = covered([6, 7, 14, 15])
    assert (row["first_ts_ms"], row["last_ts_ms"]) == (T0_MS + 7 * MINUTE_MS, T0_MS + 14 * MINUTE_MS)
    assert row["available_total"] == 2


def test_gaps_at_the_edges_of_the_window_count() -> None:
    row = covered([9, 10])  # window 7..14: empty 7, 8 and 11, 12, 13, 14
    assert (row["missing"], row["gap_count"], row["largest_gap"]) == (6, 2, 4)


def test_a_full_window_has_no_gap() -> None:
    row = covered(list(range(7, 15)))
    assert (row["missing"], row["gap_count"], row["largest_gap"], row["status"]) == (0, 0, 0, "complete")


def test_an_empty_window_is_one_gap_and_has_no_times() -> None:
    row = covered([])
    assert (row["missing"], row["gap_count"], row["largest_gap"], row["status"]) == (8, 1, 8, "insufficient")
    assert (row["first_ts_ms"], row["last_ts_ms"], row["has_anchor"]) == (None, None, False)


def test_one_missing_candle_after_the_alert_still_is_complete() -> None:
    assert covered([7, 8, 9, 10, 11, 12, 13])["status"] == "complete"
    assert covered([7, 8, 9, 10, 11, 12])["status"] == "partial"


def test_one_missing_candle_before_the_alert_is_partial() -> None:
    assert covered([8, 9, 10, 11, 12, 13, 14])["status"] == "partial"


@pytest.mark.parametrize(
    ("window", "thresholds"),
    [("pre52_post4948", (52, 5000)), ("pre3_post4", (3, 7)), ("pre0_post0", (0, 0))],
)
def test_the_thresholds_default_to_n_and_n_plus_m(window: str, thresholds: tuple[int, int]) -> None:
    spec = RunSpec("1m", window)
    assert (spec.required_pre, spec.required_total) == thresholds


def test_the_source_lags_from_the_end_of_its_newest_candle_to_the_last_window_end_or_now() -> None:
    spec = RunSpec("1m", "pre1_post3")
    candles = candles_table([(("a", slot * MINUTE_MS), 1.0) for slot in (-1, 0)])
    table = compute_coverage(alerts_table([("a", 0), ("b", MINUTE_MS)]), candles, spec)
    end = T0_MS + 5 * MINUTE_MS
    assert source_lag_ms(table, 60, end + 10**12) == 4 * MINUTE_MS
    assert source_lag_ms(table, 60, end - MINUTE_MS) == 3 * MINUTE_MS
    assert source_lag_ms(table, 60, T0_MS) == 0
    assert source_lag_ms(table.filter([False, True]), 60, end) is None
    assert source_lag_ms(table.slice(0, 0), 60, end) is None
