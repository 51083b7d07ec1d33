"""Statistics against published values, closed forms and simulations that share no code with them."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from lake_pipeline.optimizer.statistics import (
    Moments,
    bootstrap_interval,
    deflated_sharpe,
    expected_maximum_sharpe,
    moments,
    probabilistic_sharpe,
)


def test_the_deflated_sharpe_ratio_is_that_of_the_papers_example():
    """Bailey and López de Prado (2014): an annual ratio of 2.5 on 1,250 days, skewness -3, kurtosis 10, 100 trials with
    a variance of 1/2 of the annual ratios give a threshold of 0.1132 a day and 0.9004; 46 trials give 0.9505."""
    best = Moments(1250, 2.5 / math.sqrt(250), -3, 10)
    assert expected_maximum_sharpe(0.5 / 250, 100) == pytest.approx(0.1132, abs=5e-5)
    assert deflated_sharpe(best, 0.5 / 250, 100) == pytest.approx(0.9004, abs=5e-5)
    assert deflated_sharpe(best, 0.5 / 250, 46) == pytest.approx(0.9505, abs=5e-5)


def test_the_expected_maximum_is_that_of_simulated_normals():
    generator = np.random.default_rng(1)
    for trials in (10, 100, 1000):
        simulated = generator.normal(0, 0.3, (4000, trials)).max(axis=1).mean()
        assert expected_maximum_sharpe(0.09, trials) == pytest.approx(simulated, rel=0.03)
    assert expected_maximum_sharpe(0.09, 1) == 0
    assert expected_maximum_sharpe(0.0, 100) == 0


def test_one_trial_is_not_deflated_and_a_normal_ratio_has_its_closed_form():
    normal = Moments(101, 0.2, 0.0, 3.0)
    expected = 0.5 * math.erfc(-0.2 * 10 / math.sqrt(1 + 0.2**2 / 2) / math.sqrt(2))
    assert probabilistic_sharpe(normal, 0.0) == pytest.approx(expected, rel=1e-12)
    assert deflated_sharpe(normal, 0.5, 1) == probabilistic_sharpe(normal, 0.0)
    assert probabilistic_sharpe(Moments(101, 2.0, 2.0, 5.0), 0.0) == pytest.approx(1.0)  # spread 1 - 4 + 4 > 0
    assert probabilistic_sharpe(Moments(101, 1.0, 2.0, 3.0), 0.0) is None  # a spread below 0 has no root


def test_pure_luck_is_significant_as_often_as_it_should_be():
    """The best of 20 independent strategies without edge passes 0.95 in about one search of twenty."""
    generator = np.random.default_rng(2)
    passed = 0
    for _ in range(400):
        returns = generator.normal(0, 1, (20, 120))
        ratios = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
        best = moments(returns[ratios.argmax()].tolist())
        assert best is not None
        passed += (deflated_sharpe(best, float(ratios.var(ddof=1)), 20) or 0) > 0.95
    assert passed / 400 < 0.1


def test_moments_are_the_textbooks():
    values = [0.97, -0.5, -0.5, 0.2, 0.97, -0.1]
    found = moments(values)
    assert found is not None
    assert found.n == 6
    assert found.sharpe == pytest.approx(statistics.mean(values) / statistics.stdev(values))
    centred = [value - statistics.mean(values) for value in values]
    deviation = statistics.pstdev(values)
    assert found.skewness == pytest.approx(sum(each**3 for each in centred) / 6 / deviation**3)
    assert found.kurtosis == pytest.approx(sum(each**4 for each in centred) / 6 / deviation**4)
    rng = random.Random(0)
    normal = moments([rng.gauss(0.1, 1) for _ in range(50_000)])
    assert normal is not None
    assert normal.skewness == pytest.approx(0, abs=0.05)
    assert normal.kurtosis == pytest.approx(3, abs=0.1)
    assert moments([1.0]) is None
    assert moments([0.3] * 40) is None
    assert moments([0.0] * 40) is None
    assert moments([]) is None


def test_returns_that_differ_by_rounding_alone_have_no_ratio():
    """Take-profits filled at their level: one return, but for the last bit of each price's."""
    rng = random.Random(0)
    entries = [math.exp(rng.gauss(0, 3)) for _ in range(40)]
    returns = [entry * 1.1 * 0.992 / (entry * 1.005) - 1 for entry in entries]
    assert len(set(returns)) > 1
    assert moments(returns) is None
    assert moments([*returns, returns[0] + 1e-4]) is not None


def test_the_bootstrap_interval_is_near_the_normal_one_and_repeats_itself():
    rng = random.Random(3)
    returns = np.array([rng.gauss(0.05, 0.4) for _ in range(500)])
    alone = np.arange(500)
    low, high = bootstrap_interval(returns, alone, 0)
    error = returns.std(ddof=1) / math.sqrt(500)
    assert low == pytest.approx(returns.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(returns.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(returns, alone, 0) == (low, high)
    assert bootstrap_interval(returns, alone, 1) != (low, high)
    assert (
        low < bootstrap_interval(returns, alone, 0, level=0.5)[0] < bootstrap_interval(returns, alone, 0, level=0.5)[1]
    )


def test_alerts_of_one_mint_are_drawn_together():
    """A hundred copies of ten returns say no more than the ten do."""
    ten = np.array([0.5, -0.4, 0.9, -0.5, 0.1, -0.3, 1.2, -0.5, 0.0, 0.2])
    copies = np.repeat(ten, 100)
    together = bootstrap_interval(copies, np.repeat(np.arange(10), 100), 0)
    assert together == pytest.approx(bootstrap_interval(ten, np.arange(10), 0))
    apart = bootstrap_interval(copies, np.arange(1000), 0)
    assert together[1] - together[0] > 5 * (apart[1] - apart[0])


def test_no_interval_of_one_mint_and_null_returns_do_not_count():
    assert bootstrap_interval(np.array([0.1, 0.2]), np.array([3, 3]), 0) is None
    assert bootstrap_interval(np.array([]), np.array([], np.int64), 0) is None
    some = bootstrap_interval(np.array([0.1, np.nan, -0.2, 0.4]), np.array([0, 1, 2, 3]), 0)
    assert some == bootstrap_interval(np.array([0.1, -0.2, 0.4]), np.array([0, 1, 2]), 0)
