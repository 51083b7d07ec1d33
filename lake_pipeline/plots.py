"""Pictures of a run's coverage. What they are of is computed elsewhere; their style is that of `pictures`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.pictures import (
    BLUE,
    DOWN,
    GRID,
    GROUND,
    INK,
    QUIET,
    UP,
    PictureFormat,
    new_figure,
    picture_bytes,
    say_nothing,
    style_axes,
    whole_numbers,
)

__all__ = ["coverage_heat_map", "missing_histogram"]


def coverage_heat_map(shares: Mapping[str, float], format_: PictureFormat = "png") -> bytes:
    """The coverage (0 to 1) of each bucket, by the two digits of its name; those without alerts are empty."""
    from matplotlib.colors import LinearSegmentedColormap

    figure = new_figure(7.2, 6.2)
    axes = figure.add_subplot()
    style_axes(axes, "second digit of the bucket", "first digit")
    axes.grid(visible=False)
    axes.set_facecolor(GRID)
    cells = np.array([shares.get(bucket, np.nan) for bucket in ALL_BUCKETS]).reshape(16, 16)
    colours = LinearSegmentedColormap.from_list("coverage", [DOWN, "#f3dfae", UP])
    image = axes.imshow(np.ma.masked_invalid(cells), colours, vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(16, 16):
        share = cells[row, column]
        # Rounded down: 100 is said of nothing that lacks a candle.
        text = "" if np.isnan(share) else f"{np.floor(share * 100):.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=INK)
    digits = [f"{digit:x}" for digit in range(16)]
    axes.set_xticks(range(16), digits)
    axes.set_yticks(range(16), digits)
    axes.set_xticks(np.arange(-0.5, 16), minor=True)
    axes.set_yticks(np.arange(-0.5, 16), minor=True)
    axes.grid(which="minor", color=GROUND, linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, format=lambda value, _: f"{value * 100:.0f} %", pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET, labelcolor=QUIET, labelsize=9)
    figure.suptitle(
        f"candles there are, in % of the windows' slots; {256 - len(shares)} of 256 buckets have no alert",
        x=0.01, ha="left", color=INK, fontsize=10,
    )  # fmt: skip
    return picture_bytes(figure, format_)


def missing_histogram(missing: Sequence[int], window_candles: int, format_: PictureFormat = "png") -> bytes:
    """How many alerts lack how many of their window's candles, by powers of ten."""
    figure = new_figure(7.2, 3.0)
    axes = figure.add_subplot()
    style_axes(axes, f"candles missing, of {window_candles:,} a window", "alerts")
    if not missing:
        say_nothing(axes, "no alerts")
        return picture_bytes(figure, format_)
    edges = [1]
    while edges[-1] * 10 < window_candles:
        edges.append(edges[-1] * 10)
    if edges[-1] < window_candles:
        edges.append(window_candles)
    counts, _ = np.histogram(missing, [0, *edges, window_candles + 1])
    names = ["none", *(_range(low, high - 1) for low, high in itertools.pairwise(edges)), "all"]
    colours = [UP, *([BLUE] * (len(names) - 2)), DOWN]
    bars = axes.bar(names, counts, color=colours, width=0.75)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=2, color=INK, fontsize=9)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    axes.yaxis.set_major_locator(whole_numbers(6))
    axes.margins(y=0.15)
    return picture_bytes(figure, format_)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
