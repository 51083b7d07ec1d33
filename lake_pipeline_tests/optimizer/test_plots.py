"""Pictures of a search: drawn from its files, the same bytes for the same figures, and of nothing too."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest
from PIL import Image

from lake_pipeline.optimizer.objective import Gates, Objective
from lake_pipeline.optimizer.plots import pictures
from lake_pipeline.optimizer.results import optimize_result
from lake_pipeline.optimizer.search import SearchConfig
from lake_pipeline.optimizer.space import SearchSpace
from lake_pipeline.optimizer.splits import SplitConfig
from lake_pipeline.pictures import PICTURE_LIMIT
from lake_pipeline_tests.optimizer.runs_for_tests import BASELINE

CONFIGS = {
    "one fold": {"trials": 80},
    "many trials": {"trials": 4000, "figures": "means"},
    "folds": {"trials": 40, "split": SplitConfig(folds=3)},
    "many folds": {"trials": 10, "split": SplitConfig(folds=8), "gates": Gates(min_trades=1)},
    "a grid": {"sampler": "grid", "space": SearchSpace.of({"tp": "1.1:1.5:.1", "sl": ".5:.9:.1"}, {})},
    "one exit": {"sampler": "grid", "space": SearchSpace.of({"tp": "1.1:1.5:.1"}, {})},
    "one trial": {"trials": 1},
    "no stop": {"space": SearchSpace.of({"tp": "1.1:1.5:.1", "sl": "none", "time_stop_hours": "1:5:1"}, {})},
    "nothing passes": {"trials": 20, "gates": Gates(min_trades=10_000)},
    "no objective": {
        "trials": 5,
        "space": SearchSpace.of({"tp": "1.1:1.5:.1", "sl": "none"}, {}),
        "objective": Objective.parse("mean_r"),
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_are_png_of_the_searchs_files_alone(lake, run, name):
    space = SearchSpace.of({"tp": "1.1:2:.01", "sl": ".5:.95:.01"}, {})
    result = optimize_result(lake, run, SearchConfig(**{"space": space, **CONFIGS[name]}), BASELINE)
    drawn = pictures(result.trials(), result.best(), result.winner_trades())
    assert list(drawn) == ["heatmap", "trials", "equity", "folds"]
    for png in drawn.values():
        with Image.open(io.BytesIO(png)) as image:
            assert image.width >= 700
            assert len(set(image.convert("L").tobytes())) > 8  # something is on it
        assert len(png) < PICTURE_LIMIT
    assert pictures(result.trials(), result.best(), result.winner_trades()) == drawn


def test_other_figures_are_other_pictures(lake, run):
    space = SearchSpace.of({"tp": "1.1:2:.01", "sl": ".5:.95:.01"}, {})
    result = optimize_result(lake, run, SearchConfig(space, trials=80), BASELINE)
    usual = pictures(result.trials(), result.best(), result.winner_trades())
    trials = result.trials()
    worse = trials.set_column(
        trials.column_names.index("test_objective"),
        "test_objective",
        pa.array([-each for each in trials.column("test_objective").to_pylist()], pa.float64()),
    )
    changed = pictures(worse, result.best(), result.winner_trades())
    assert changed["heatmap"] != usual["heatmap"]
    assert changed["trials"] == usual["trials"]  # train only
    assert pictures(trials, result.best(), result.winner_trades().slice(0, 30))["equity"] != usual["equity"]
