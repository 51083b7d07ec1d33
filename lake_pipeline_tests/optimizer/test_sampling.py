"""Samplers: no point twice, more trials only add, and Optuna only where it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lake_pipeline.optimizer.sampling import TPE_BATCH, make_sampler
from lake_pipeline.optimizer.space import SearchSpace

SPACE = SearchSpace.of({"tp": "1.5:3.5:.01", "sl": ".3:.6:.01"}, {})
HUGE = SearchSpace.of(dict.fromkeys(("sl", "trail_distance", "trail_activation"), ".1:.9:.0001"), {})


@pytest.mark.parametrize("space", [SPACE, HUGE])
def test_random_points_are_distinct_and_a_longer_search_begins_with_the_shorter(space):
    points = make_sampler("random", space, 5000, 3).ask(5000)
    assert len(set(points)) == 5000
    assert make_sampler("random", space, 70, 3).ask(70) == points[:70]
    assert make_sampler("random", space, 5000, 4).ask(5000) != points
    in_parts = make_sampler("random", space, 5000, 3)
    assert in_parts.ask(1) + in_parts.ask(4000) + in_parts.ask(5000) == points


def test_random_points_fill_the_space_evenly():
    points = make_sampler("random", SPACE, 3000, 0).ask(3000)
    for dimension, size in enumerate((201, 31)):
        quarters = [0] * 4
        for point in points:
            quarters[point[dimension] * 4 // size] += 1
        assert min(quarters) > 0.8 * 3000 / 4


@pytest.mark.parametrize("seed", range(5))
def test_random_points_leave_fewer_gaps_than_chance(seed):
    """Of 10 x 10 cells a hundred points of chance leave 37 empty."""
    points = make_sampler("random", SPACE, 100, seed).ask(100)
    assert len({(tp * 10 // 201, sl * 10 // 31) for tp, sl in points}) > 70


def test_a_random_search_of_all_there_is_has_every_point_once():
    for ranges in ({"tp": "2:3:.1", "sl": ".3:.6:.01", "trail_distance": "none,.1"}, {"tp": "2,3"}, {"tp": "2"}):
        space = SearchSpace.of(ranges, {})
        points = make_sampler("random", space, space.size, 1).ask(space.size)
        assert sorted(points) == [space.point(place) for place in range(space.size)]


def test_a_grid_has_every_point_in_order():
    assert make_sampler("grid", SPACE, None, 0).ask(10**6) == [SPACE.point(place) for place in range(SPACE.size)]


def climb(batches: int, seed: int) -> list[tuple[int, ...]]:
    """Points of TPE on a hill with its top at (50, 10)."""
    sampler = make_sampler("tpe", SPACE, batches * TPE_BATCH, seed)
    points = []
    for _ in range(batches):
        asked = sampler.ask(TPE_BATCH)
        # Some have no objective, as a trial that fails its gates.
        sampler.tell([None if tp > 150 else -abs(tp - 50) / 100 - abs(sl - 10) / 30 for tp, sl in asked])
        points += asked
    return points


def test_tpe_repeats_itself_and_climbs():
    points = climb(12, 1)
    assert climb(12, 1) == points
    assert climb(12, 2) != points
    assert all(0 <= tp <= 200 and 0 <= sl <= 30 for tp, sl in points)

    def miss(chosen: list[tuple[int, ...]]) -> float:
        return sum(abs(tp - 50) for tp, _ in chosen) / len(chosen)

    assert miss(points[-40:]) < miss(points[:20]) / 2


def test_only_tpe_loads_optuna():
    for name, loaded in (("random", False), ("grid", False), ("tpe", True)):
        trials = None if name == "grid" else 50
        code = (
            "import sys; from lake_pipeline.optimizer import results; "
            "from lake_pipeline.optimizer.sampling import make_sampler; "
            "from lake_pipeline.optimizer.space import SearchSpace; "
            f"make_sampler({name!r}, SearchSpace.of({{'tp': '2:9:.1'}}, {{}}), {trials}, 0).ask(10); "
            f"sys.exit(('optuna' in sys.modules) != {loaded})"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0, name
