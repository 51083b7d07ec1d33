from __future__ import annotations

import dataclasses
import math
import struct
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.core.candles import (
    REJECT_REASONS,
    VALUE_COLUMNS,
    CandleBlock,
    candle_keys,
    float_rank,
    key_mint,
    key_ts_ms,
    reconcile,
)
from lake_pipeline_tests.candles_for_tests import T0_MS, Candle, float_order, reason_against, surviving

MINTS = ("a", "b", "c")
SOME_FLOATS = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0, math.nan, math.inf, -math.inf])
CANDLES = st.builds(
    Candle,
    mint=st.sampled_from(MINTS),
    ts_ms=st.sampled_from([T0_MS, T0_MS + 60_000, T0_MS + 120_000]),
    **dict.fromkeys(VALUE_COLUMNS, SOME_FLOATS),
    source=st.sampled_from([None, "", "B", "a", "é"]),
    quality_score=st.sampled_from([-1, 0, 1]),
    ingested_ms=st.sampled_from([0, 1]),
)
GOOD_CANDLES = st.builds(
    Candle,
    mint=st.sampled_from(MINTS),
    ts_ms=st.integers(T0_MS, T0_MS + 5),
    close=st.sampled_from([0.5, 1.0, 2.0]),
    source=st.sampled_from([None, "x"]),
)
VERSIONS = ("quality_score", "ingested_ms")


def block_of(candles: list[Candle], versions: tuple[str, ...] = VERSIONS, *, source: bool = True) -> CandleBlock:
    def numbers(name: str) -> np.ndarray:
        return np.array([getattr(candle, name) for candle in candles], dtype=np.int64)

    return CandleBlock(
        keys=candle_keys(np.array([MINTS.index(c.mint) for c in candles], dtype=np.int64), numbers("ts_ms")),
        values={n: np.array([getattr(c, n) for c in candles], dtype=np.float64) for n in VALUE_COLUMNS},
        source=pa.array([c.source for c in candles], pa.string()) if source else None,
        versions=tuple(numbers(name) for name in versions),
    )


def rows_of(block: CandleBlock) -> list[tuple[object, ...]]:
    """Rows that compare bit by bit: NaN equals NaN, -0.0 does not equal 0.0."""
    sources = [None] * len(block) if block.source is None else block.source.to_pylist()
    return [
        (
            MINTS[int(key_mint(block.keys)[row])],
            int(key_ts_ms(block.keys)[row]),
            struct.pack("<5d", *(block.values[name][row] for name in VALUE_COLUMNS)),
            sources[row],
        )
        for row in range(len(block))
    ]


def as_row(candle: Candle) -> tuple[object, ...]:
    return candle.mint, candle.ts_ms, struct.pack("<5d", *candle.values), candle.source


@given(pairs=st.lists(st.tuples(st.integers(0, 2**18 - 1), st.integers(-(2**44), 2**44 - 1)), min_size=1, max_size=20))
def test_keys_sort_like_mint_and_time_and_give_both_back(pairs: list[tuple[int, int]]) -> None:
    mint, ts = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    keys = candle_keys(mint, ts)
    assert key_mint(keys).tolist() == mint.tolist()
    assert key_ts_ms(keys).tolist() == ts.tolist()
    assert sorted(zip(keys.tolist(), pairs, strict=True)) == sorted(
        zip(keys.tolist(), pairs, strict=True), key=lambda item: item[1]
    )


@given(st.lists(st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, math.nan]), max_size=20))
def test_float_rank_orders_floats_totally(values: list[float]) -> None:
    ranks = float_rank(np.array(values, dtype=np.float64)).tolist()
    by_rank = [value for _, value in sorted(zip(ranks, values, strict=True), key=lambda item: item[0])]
    by_value = sorted(values, key=float_order)
    assert [struct.pack("<d", value) for value in by_rank] == [struct.pack("<d", value) for value in by_value]


@given(st.lists(CANDLES, max_size=25))
def test_reconcile_keeps_the_largest_row_of_each_key_and_judges_it_afterwards(candles: list[Candle]) -> None:
    unique = surviving(candles)
    result = reconcile(block_of(candles), len(MINTS))
    assert rows_of(result.candles) == [as_row(c) for c in unique if reason_against(c) is None]
    assert rows_of(result.rejected) == [as_row(c) for c in unique if reason_against(c) is not None]
    assert [REJECT_REASONS[code] for code in result.reasons.tolist()] == [
        reason for c in unique if (reason := reason_against(c))
    ]
    rows, kept = Counter(c.mint for c in candles), Counter(c.mint for c in unique)
    assert result.source_rows.tolist() == [rows[mint] for mint in MINTS]
    assert result.duplicates.tolist() == [rows[mint] - kept[mint] for mint in MINTS]


@given(st.lists(CANDLES, max_size=25))
def test_without_versions_the_largest_values_win(candles: list[Candle]) -> None:
    result = reconcile(block_of(candles, versions=()), len(MINTS))
    expected = [as_row(c) for c in surviving(candles, versions=()) if reason_against(c) is None]
    assert rows_of(result.candles) == expected


@given(st.lists(GOOD_CANDLES, max_size=25))
def test_a_table_without_a_source_column_gives_candles_without_source(candles: list[Candle]) -> None:
    bare = [dataclasses.replace(c, source=None) for c in candles]
    result = reconcile(block_of(bare, source=False), len(MINTS))
    assert result.candles.source is None
    assert rows_of(result.candles) == [as_row(c) for c in surviving(bare)]


@given(st.lists(CANDLES, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(candles: list[Candle], random: object) -> None:
    shuffled = list(candles)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = (reconcile(block_of(rows), len(MINTS)) for rows in (candles, shuffled))
    assert rows_of(one.candles) == rows_of(two.candles)
    assert rows_of(one.rejected) == rows_of(two.rejected)
    assert one.reasons.tolist() == two.reasons.tolist()


def reconciled(*candles: Candle) -> tuple[list[tuple[object, ...]], list[str]]:
    result = reconcile(block_of(list(candles)), len(MINTS))
    return rows_of(result.candles), [REJECT_REASONS[code] for code in result.reasons.tolist()]


def test_a_good_row_does_not_come_back_when_its_newer_row_is_bad() -> None:
    good = Candle("a", T0_MS, quality_score=1)
    bad = Candle("a", T0_MS, high=0.1, quality_score=2)
    assert reconciled(good, bad) == ([], ["high_below_low"])


def test_a_bad_row_is_no_matter_when_its_newer_row_is_good() -> None:
    bad = Candle("a", T0_MS, high=0.1, quality_score=1)
    good = Candle("a", T0_MS, quality_score=2)
    assert reconciled(bad, good) == ([as_row(good)], [])


def test_quality_counts_before_the_time_of_ingestion() -> None:
    better = Candle("a", T0_MS, close=1.0, quality_score=2, ingested_ms=0)
    later = Candle("a", T0_MS, close=1.2, quality_score=1, ingested_ms=9)
    assert reconciled(later, better)[0] == [as_row(better)]


def test_of_two_zeros_the_positive_one_wins() -> None:
    negative, positive = Candle("a", T0_MS, volume=-0.0), Candle("a", T0_MS, volume=0.0)
    assert reconciled(positive, negative)[0] == reconciled(negative, positive)[0] == [as_row(positive)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"volume": 0.0}, None),
        ({"volume": -0.0}, None),
        ({"open": 2.0, "close": 0.5}, None),
        ({"high": 1.0, "low": 1.0, "open": 1.0, "close": 1.0}, None),
        ({"volume": -1.0}, "negative"),
        ({"open": -1.0, "low": -2.0}, "negative"),
        *(({name: 0.0}, "zero_price") for name in ("open", "high", "low", "close")),
        ({"low": -0.0}, "zero_price"),
        *(({name: bad}, "not_finite") for name in VALUE_COLUMNS for bad in (math.nan, math.inf, -math.inf)),
        ({"high": 0.4}, "high_below_low"),
        ({"open": 2.1}, "open_outside_low_high"),
        ({"open": 0.4}, "open_outside_low_high"),
        ({"close": 2.1}, "close_outside_low_high"),
        ({"close": 0.4}, "close_outside_low_high"),
        ({"open": 9.0, "close": 9.0}, "open_outside_low_high"),
        ({"high": 0.4, "volume": math.nan}, "not_finite"),
        ({"volume": -5.0, "high": 0.0}, "negative"),
    ],
)
def test_the_first_sanity_rule_a_candle_breaks_is_its_reason(changes: dict[str, float], reason: str | None) -> None:
    candle = dataclasses.replace(Candle("a", T0_MS), **changes)
    assert reason_against(candle) == reason
    assert reconciled(candle) == ([] if reason else [as_row(candle)], [reason] if reason else [])


def test_an_empty_block_stays_empty() -> None:
    result = reconcile(block_of([]), 2)
    assert (len(result.candles), len(result.rejected)) == (0, 0)
    assert (result.source_rows.tolist(), result.duplicates.tolist()) == ([0, 0], [0, 0])
