"""Pictures: what is on them comes from the figures, and the same figures are the same bytes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image

from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.plots import ath_histogram, equity_curve, outcome_bars, replay_picture
from lake_pipeline.backtest.replay import Replay, replay_path
from lake_pipeline.pictures import PICTURE_LIMIT
from lake_pipeline.plots import coverage_heat_map, missing_histogram
from lake_pipeline_tests.backtest.paths_for_tests import Bar, bar, paths_of

STRATEGY = StrategyConfig(tp=30.0, sl=0.5, trail_activation=0.3, trail_distance=0.4, tiers=((1.2, 0.9),))
_OUTCOMES = {"tp": 3, "sl": 5, "trail": 0, "breakeven": 0, "tier": 1, "time": 0, "horizon": 2}


def random_path(seed: int, length: int, step: float = 0.05) -> list[Bar]:
    """A random walk with gaps, spikes and candles without volume."""
    rng = random.Random(seed)
    price, minute, bars = 64, 0, []
    for _ in range(length):
        open_ = max(1, price + (rng.randrange(-12, 13) if rng.random() < 0.1 else 0))
        close = max(1, round(open_ * math.exp(rng.gauss(0, step))))
        high = max(open_, close) + rng.choice((0, 0, 1, 3, 40 if rng.random() < 0.05 else 2))
        low = max(1, min(open_, close) - rng.choice((0, 0, 1, 3)))
        bars.append(bar(minute, open_ / 64, high / 64, low / 64, close / 64, rng.choice((0.0, 1.0))))
        price, minute = close, minute + (1 if rng.random() < 0.9 else rng.randrange(2, 5))
    return bars


def replay_of(path: list[Bar], strategy: StrategyConfig = STRATEGY) -> Replay:
    paths = dataclasses.replace(paths_of([path], horizon_minutes=100_000), bucket_of=("00",))
    return replay_path(paths, "alert-0", strategy, BaselineConfig())


_SHARES = {f"{bucket:02x}": (bucket * 37 % 256) / 255 for bucket in range(256)}

PICTURES: dict[str, Callable[[], bytes]] = {
    "heat map": lambda: coverage_heat_map({"00": 1.0, "35": 0.5, "ff": 0.0}),
    "heat map of all": lambda: coverage_heat_map(_SHARES),
    "heat map of nothing": lambda: coverage_heat_map({}),
    "missing": lambda: missing_histogram([0, 0, 3, 40, 5001], 5001),
    "missing of one candle": lambda: missing_histogram([0, 1, 1], 1),
    "missing of nothing": lambda: missing_histogram([], 26),
    "histogram": lambda: ath_histogram([1.0, 1.1, 1.1, 2.5, 40.0]),
    "histogram of thousands": lambda: ath_histogram([1 + number**2 / 50_000 for number in range(5000)]),
    "histogram of one": lambda: ath_histogram([1.0]),
    "histogram of nothing": lambda: ath_histogram([]),
    "equity": lambda: equity_curve([1.02, 0.98, 1.4, 0.9]),
    "equity of thousands": lambda: equity_curve([1 + (number % 97) / 50 for number in range(5000)]),
    "equity lost": lambda: equity_curve([0.5, 0.0, 0.0]),
    "equity of nothing": lambda: equity_curve([]),
    "outcomes": lambda: outcome_bars(_OUTCOMES),
    "outcomes of nothing": lambda: outcome_bars(dict.fromkeys(_OUTCOMES, 0)),
    "replay": lambda: replay_picture(replay_of(random_path(3, 60))),
    "replay of thousands": lambda: replay_picture(replay_of(random_path(5, 5000, 0.01))),
    "replay of one candle": lambda: replay_picture(replay_of(random_path(3, 1))),
    "replay without levels": lambda: replay_picture(replay_of(random_path(3, 60), StrategyConfig(tp=None, sl=None))),
    "replay of nothing": lambda: replay_picture(replay_of([])),
    "replay as svg": lambda: replay_picture(replay_of(random_path(3, 60)), "svg"),
}


@functools.cache
def digests() -> str:
    return "\n".join(f"{name} {hashlib.sha256(draw()).hexdigest()}" for name, draw in PICTURES.items())


@pytest.mark.parametrize("name", [name for name in PICTURES if "svg" not in name])
def test_a_picture_is_a_small_png_with_a_ground_of_its_own(name: str) -> None:
    data = PICTURES[name]()
    assert len(data) < PICTURE_LIMIT
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width <= 1000
        assert not image.info  # no version, no date, nothing to see through
        pixels = image.convert("RGB")
        assert min(pixels.getpixel((0, 0))) > 250
        assert len(pixels.getcolors(1 << 24)) > 10  # something is on it


def test_pictures_are_the_same_bytes_in_every_process() -> None:
    code = "from lake_pipeline_tests.backtest.test_plots import digests; print(digests())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digests()


def test_other_figures_are_another_picture() -> None:
    assert len(set(digests().splitlines())) == len(PICTURES)
    assert outcome_bars(_OUTCOMES) != outcome_bars({**_OUTCOMES, "tp": 4})
    assert coverage_heat_map(_SHARES) != coverage_heat_map({**_SHARES, "9a": 0.5})
    assert missing_histogram([0, 1], 100) != missing_histogram([0, 2, 3], 100)
    assert ath_histogram([1.0, 3.0]) != ath_histogram([1.0, 3.1])


def test_an_svg_says_the_levels_and_the_reason_and_neither_date_nor_version() -> None:
    # A text of an SVG is drawn as glyphs with the text as a comment.
    svg = replay_picture(replay_of(random_path(3, 60)), "svg").decode()
    for text in ("entry", "take-profit", "stop (sl)", "minutes since the entry", "alert-0"):
        assert f"<!-- {text}" in svg, text
    assert "<dc:date>" not in svg


def test_a_heat_map_says_each_share_rounded_down_and_a_histogram_each_count() -> None:
    svg = coverage_heat_map({"00": 0.999, "a1": 0.5}, "svg").decode()
    for text in ("99", "50", "254 of 256 buckets have no alert"):
        assert re.search(f"<!-- .*{text}", svg), text
    assert "<!-- 100 -->" not in svg
    svg = missing_histogram([0, 1, 9, 10, 25, 26], 26, "svg").decode()
    assert re.findall("<!-- (none|1 to 9|10 to 25|all) -->", svg) == ["none", "1 to 9", "10 to 25", "all"]
    assert re.findall(r"<!-- ([12]) -->", svg)[-4:] == ["1", "2", "2", "1"]


def test_neither_matplotlib_nor_its_state_is_touched_before_or_after_drawing() -> None:
    code = (
        "import sys, lake_pipeline.backtest.plots as plots, lake_pipeline.plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "before = list(dict.items(matplotlib.rcParams))\n"  # by dict: a look at the backend would set it
        "plots.outcome_bars({'tp': 1})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert list(dict.items(matplotlib.rcParams)) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
