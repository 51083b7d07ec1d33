from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.window import (
    check_window_span,
    compute_window_slice,
    floor_to_interval,
    interval_to_seconds,
    merge_windows,
    parse_window_spec,
)
from lake_pipeline.errors import ConfigError

INTERVALS_S = st.sampled_from([1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400]) | st.integers(1, 1_000_000)
TIMES_MS = st.integers(-(10**12), 10**13)


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [
        ("1s", 1), ("5s", 5), ("15s", 15), ("1m", 60), ("5m", 300), ("15m", 900), ("1h", 3600), ("4h", 14_400),
        ("1d", 86_400), ("7m", 420), ("90s", 90), ("2147483647s", 2**31 - 1),
    ],
)  # fmt: skip
def test_an_interval_is_a_count_and_a_unit(interval: str, seconds: int) -> None:
    assert interval_to_seconds(interval) == seconds


@pytest.mark.parametrize(
    "interval",
    [
        "",
        "m",
        "1",
        "0s",
        "0d",
        "1w",
        "1M",
        "1 m",
        " 1m",
        "1m ",
        "1m\n",
        "-1m",
        "1.5m",
        "1e3s",
        "\u0661m",  # Arabic-Indic one
        "1\uff4d",  # full-width m
        "2147483648s",
        "99999999999d",
    ],
)
def test_an_interval_of_no_length_or_unknown_unit_is_refused(interval: str) -> None:
    with pytest.raises(ConfigError, match="is not a candle length") as caught:
        interval_to_seconds(interval)
    assert repr(interval) in str(caught.value)
    assert "1m" in str(caught.value)


@given(ts_ms=TIMES_MS, interval_s=INTERVALS_S)
def test_floor_to_interval(ts_ms: int, interval_s: int) -> None:
    floor = floor_to_interval(ts_ms, interval_s)
    assert floor % (interval_s * 1000) == 0
    assert floor <= ts_ms < floor + interval_s * 1000
    assert floor_to_interval(floor, interval_s) == floor


@pytest.mark.parametrize(
    ("ts_ms", "interval_s", "floor"),
    [
        (1_746_057_659_999, 60, 1_746_057_600_000),
        (1_746_057_600_000, 60, 1_746_057_600_000),
        (1_746_057_599_999, 60, 1_746_057_540_000),
        (-1, 60, -60_000),
        (0, 86_400, 0),
    ],
)
def test_floor_of_known_times(ts_ms: int, interval_s: int, floor: int) -> None:
    assert floor_to_interval(ts_ms, interval_s) == floor


@given(pre=st.integers(0, 10**6), post=st.integers(0, 10**6))
def test_a_window_spec_says_how_many_candles_before_and_after(pre: int, post: int) -> None:
    assert parse_window_spec(f"pre{pre}_post{post}") == (pre, post)


@pytest.mark.parametrize(
    "window",
    [
        "",
        "pre5",
        "post5",
        "pre5_post",
        "pre_post5",
        "pre5-post5",
        "pre-5_post5",
        "pre5_post5 ",
        " pre5_post5",
        "PRE5_POST5",
        "pre5_post5\n",
        "pre\u0665_post5",
        "pre1.5_post2",
    ],
)
def test_a_window_spec_of_another_form_is_refused(window: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form pre<N>_post<M>") as caught:
        parse_window_spec(window)
    assert repr(window) in str(caught.value)


def test_a_window_over_a_hundred_years_is_refused() -> None:
    check_window_span("1d", "pre0_post36000")
    with pytest.raises(ConfigError, match="more than 100 years"):
        check_window_span("1d", "pre0_post40000")


@given(ts_ms=TIMES_MS, interval_s=INTERVALS_S, pre=st.integers(0, 6000), post=st.integers(0, 6000))
def test_compute_window_slice(ts_ms: int, interval_s: int, pre: int, post: int) -> None:
    window = compute_window_slice(ts_ms, interval_s, pre, post)
    assert set(window) == {"anchor_ts", "start_ts", "end_ts"}
    interval_ms = interval_s * 1000
    candles = range(window["start_ts"], window["end_ts"], interval_ms)
    assert len(candles) == pre + 1 + post
    assert candles[pre] == window["anchor_ts"]
    assert window["anchor_ts"] <= ts_ms < window["anchor_ts"] + interval_ms


def test_the_default_window_of_a_known_alert() -> None:
    assert compute_window_slice(1_746_057_659_999, 60, 52, 4948) == {
        "anchor_ts": 1_746_057_600_000,
        "start_ts": 1_746_057_600_000 - 52 * 60_000,
        "end_ts": 1_746_057_600_000 + 4949 * 60_000,
    }


@given(
    length=st.integers(1, 6),
    windows=st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 40)), max_size=30),
)
def test_merged_windows_cover_the_same_slots_and_neither_overlap_nor_touch(
    length: int, windows: list[tuple[int, int]]
) -> None:
    groups = np.array([group for group, _ in windows], dtype=np.int64)
    starts = np.array([start for _, start in windows], dtype=np.int64)
    merged = list(zip(*(column.tolist() for column in merge_windows(groups, starts, starts + length)), strict=True))

    wanted = {(group, start + step) for group, start in windows for step in range(length)}
    covered = [(group, slot) for group, start, end in merged for slot in range(start, end)]
    assert len(covered) == len(set(covered))
    assert set(covered) == wanted
    assert merged == sorted(merged)
    for (group, _, end), (next_group, next_start, _) in itertools.pairwise(merged):
        assert group != next_group or next_start > end


def test_windows_that_touch_become_one() -> None:
    one = np.zeros(2, np.int64)
    merged = merge_windows(one, np.array([0, 10]), np.array([10, 20]))
    assert [column.tolist() for column in merged] == [[0], [0], [20]]


def test_a_window_inside_another_is_refused() -> None:
    with pytest.raises(ValueError, match="ends are sorted"):
        merge_windows(np.zeros(2, np.int64), np.array([0, 5]), np.array([20, 10]))


def test_no_windows_merge_to_none() -> None:
    empty = np.empty(0, np.int64)
    assert [len(column) for column in merge_windows(empty, empty, empty)] == [0, 0, 0]
