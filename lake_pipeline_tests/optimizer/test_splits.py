"""Splits in time: no train path reaches into the test period, every alert is where the definition puts it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_pipeline.errors import ConfigError, InputError
from lake_pipeline.optimizer.splits import NothingToSplit, SplitConfig, make_folds

DAY = 86_400_000
HOUR = 3_600_000
T0 = 1_746_057_600_000

# Some every quarter of a day, so that hardly any days are without an alert to train on or to test.
times = st.lists(st.integers(0, 40 * DAY - 1), max_size=80).map(lambda ts: sorted([*ts, *range(0, 40 * DAY, DAY // 4)]))
periods = st.tuples(st.sampled_from([None, 1.0, 4.0, 9.5]), st.sampled_from([None, 1.0, 2.0, 3.25]))


@given(times, st.integers(0, DAY), periods, st.integers(1, 3))
def test_no_train_path_reaches_into_the_test_period_and_folds_walk_forward(entries, horizon, days, count):
    entry_ts = T0 + np.array(entries, np.int64)
    end_ts = entry_ts + horizon
    folds = make_folds(entry_ts, end_ts, SplitConfig(*days, count))
    assert [fold.number for fold in folds] == list(range(1, count + 1))
    for fold in folds:
        assert fold.train.any()
        assert fold.test.any()
        assert (end_ts[fold.train] <= fold.test_from).all()
        for row, (entry, end) in enumerate(zip(entry_ts.tolist(), end_ts.tolist(), strict=True)):
            in_train = fold.train_from <= entry < fold.test_from
            assert fold.train[row] == (in_train and end <= fold.test_from)
            assert fold.test[row] == (fold.test_from <= entry < fold.test_to)
        purged = sum(fold.train_from <= entry < fold.test_from for entry in entry_ts.tolist()) - fold.train.sum()
        assert fold.purged == purged
        assert fold.test_from - fold.train_from >= fold.test_to - fold.test_from > 0 or days != (None, None)
    for earlier, later in itertools.pairwise(folds):
        assert later.test_from == earlier.test_to
        assert later.train_from - earlier.train_from == earlier.test_to - earlier.test_from
    assert folds[-1].test_to > entry_ts.max()


def test_given_days_are_utc_days_up_to_the_end_of_the_last_one():
    entry_ts = T0 + np.arange(0, 30 * 24, 5) * HOUR
    last = entry_ts.max()
    (fold,) = make_folds(entry_ts, entry_ts + HOUR, SplitConfig(14, 7))
    assert fold.test_to == (last // DAY + 1) * DAY == T0 + 30 * DAY
    assert (fold.train_from, fold.test_from) == (T0 + 9 * DAY, T0 + 23 * DAY)
    only_train = make_folds(entry_ts, entry_ts + HOUR, SplitConfig(train_days=14))[0]
    only_test = make_folds(entry_ts, entry_ts + HOUR, SplitConfig(test_days=7))[0]
    for other in (only_train, only_test):
        assert (other.train_from, other.test_from, other.test_to) == (fold.train_from, fold.test_from, fold.test_to)


def test_without_days_every_alert_is_used_and_train_is_twice_test():
    entry_ts = T0 + np.arange(0, 30 * 24, 5) * HOUR
    (fold,) = make_folds(entry_ts, entry_ts, SplitConfig())
    assert (fold.train | fold.test).all()
    assert fold.train_from <= entry_ts[0]
    assert fold.test_from - fold.train_from == 2 * (fold.test_to - fold.test_from)
    in_seconds = make_folds(T0 + np.arange(12), T0 + np.arange(12), SplitConfig())[0]
    assert (in_seconds.train.sum(), in_seconds.test.sum()) == (8, 4)


def test_what_cannot_be_split_says_why():
    entry_ts = T0 + np.arange(0, 48) * HOUR
    with pytest.raises(NothingToSplit, match=r"nothing to train on: the paths of all 32 alerts.*48 hours long"):
        make_folds(entry_ts, entry_ts + 48 * HOUR, SplitConfig())
    with pytest.raises(NothingToSplit, match=r"1 fold of 14 days to train and 7 to test take 21 days.*span 2"):
        make_folds(entry_ts, entry_ts, SplitConfig(14, 7))
    alone = np.array([T0])
    with pytest.raises(NothingToSplit, match="no alert in its train period"):
        make_folds(alone, alone, SplitConfig())
    gap = T0 + np.array([0, 1, 20 * DAY, 20 * DAY + 1])
    with pytest.raises(NothingToSplit, match="fold 1 of 2 has no alert in its test period"):
        make_folds(gap, gap, SplitConfig(folds=2))
    assert issubclass(NothingToSplit, InputError)


@pytest.mark.parametrize("values", [{"train_days": 0}, {"test_days": -1}, {"folds": 0}, {"folds": 10**6}])
def test_lengths_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} .* cannot work"):
        SplitConfig(**values)
