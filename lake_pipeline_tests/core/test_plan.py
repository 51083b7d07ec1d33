from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core import plan as plan_module
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.plan import build_plan, group_buckets
from lake_pipeline.core.spec import RunSpec
from lake_pipeline_tests.candles_for_tests import T0_MS, mint_in_bucket, sha1_bucket, window_of

SPEC = RunSpec("1m", "pre2_post3")
ALERTS = st.lists(st.tuples(st.integers(0, 40).map(lambda n: f"mint-{n}"), st.integers(0, 30 * 60_000)), max_size=60)


def alerts_table(alerts: list[tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "mint": pa.array([mint for mint, _ in alerts], pa.string()),
            "ts": pa.array([T0_MS + ms for _, ms in alerts], pa.int64()).cast(pa.timestamp("ms", "UTC")),
        }
    )


@given(ALERTS)
def test_a_plan_asks_for_the_union_of_each_mints_windows(alerts: list[tuple[str, int]]) -> None:
    plan = build_plan(alerts_table(alerts), SPEC)
    assert plan.mints == sorted({mint for mint, _ in alerts}, key=str.encode)
    assert plan.buckets == [sha1_bucket(mint) for mint in plan.mints]
    for index, mint in enumerate(plan.mints):
        windows = range(plan.window_offsets[index], plan.window_offsets[index + 1])
        planned = [t for w in windows for t in range(plan.starts[w], plan.ends[w], 60_000)]
        wanted = set()
        for alert_mint, ms in alerts:
            start, _, end = window_of(T0_MS + ms, 60, 2, 3)
            wanted |= set(range(start, end, 60_000)) if alert_mint == mint else set()
        assert sorted(wanted) == planned
        assert plan.max_rows[index] == len(wanted)
        rows = plan.alert_rows[plan.alert_offsets[index] : plan.alert_offsets[index + 1]].tolist()
        assert rows == [row for row, (alert_mint, _) in enumerate(alerts) if alert_mint == mint]
        assert plan.anchors[rows].tolist() == [(T0_MS + alerts[row][1]) // 60_000 * 60_000 for row in rows]


@given(alerts=ALERTS, budget=st.integers(1, 200), buckets=st.permutations(ALL_BUCKETS), count=st.integers(0, 256))
def test_groups_hold_every_bucket_and_mint_once_and_stay_in_the_budget(
    alerts: list[tuple[str, int]], budget: int, buckets: list[str], count: int
) -> None:
    plan = build_plan(alerts_table(alerts), SPEC)
    asked = buckets[:count]
    groups = group_buckets(plan, asked, budget)
    assert [bucket for group in groups for bucket in group.buckets] == asked
    mints = sorted(index for group in groups for slice_ in group.slices for index in slice_)
    assert mints == [index for index, bucket in enumerate(plan.buckets) if bucket in set(asked)]
    for group in groups:
        members = [index for slice_ in group.slices for index in slice_]
        assert members == sorted(members)
        assert {plan.buckets[index] for index in members} <= set(group.buckets)
        assert group.max_rows == sum(int(plan.max_rows[index]) for index in members)
        assert group.max_rows <= budget or len(group.buckets) == 1


def test_without_a_tight_budget_all_buckets_are_one_group() -> None:
    plan = build_plan(alerts_table([(f"mint-{n}", 0) for n in range(50)]), SPEC)
    [group] = group_buckets(plan, ALL_BUCKETS, 1000)
    assert group.buckets == ALL_BUCKETS
    assert group.max_rows == 50 * 6


def test_a_slice_is_cut_at_its_limits_of_rows_and_mints(monkeypatch: pytest.MonkeyPatch) -> None:
    mints = [mint_in_bucket("07", n) for n in range(7)]
    plan = build_plan(alerts_table([(mint, 0) for mint in mints]), SPEC)
    monkeypatch.setattr(plan_module, "SLICE_ROWS", 13)  # two mints of six candles
    [group] = group_buckets(plan, ["07"], 1000)
    assert [len(slice_) for slice_ in group.slices] == [2, 2, 2, 1]
    monkeypatch.setattr(plan_module, "SLICE_ROWS", 1000)
    monkeypatch.setattr(plan_module, "SLICE_MINTS", 3)
    [group] = group_buckets(plan, ["07"], 1000)
    assert [len(slice_) for slice_ in group.slices] == [3, 3, 1]


def test_rows_by_bucket_bounds_each_bucket_that_has_an_alert() -> None:
    one, two = mint_in_bucket("02", 1), mint_in_bucket("fe", 2)
    plan = build_plan(alerts_table([(two, 0), (one, 0), (one, 60_000), (one, 50 * 60_000)]), SPEC)
    assert plan.rows_by_bucket() == {"02": 6 + 1 + 6, "fe": 6}
