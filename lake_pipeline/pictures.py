"""What all pictures have in common: PNG (or SVG) bytes, small enough for an event log, the same for the same figures.

They have a light ground of their own, so that they are read on a dark page too. matplotlib is loaded when the first
one is drawn, without pyplot and its global state. What is on a picture is in `plots` and `backtest.plots`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "DOWN",
    "GRID",
    "GROUND",
    "INK",
    "PICTURE_LIMIT",
    "QUIET",
    "UP",
    "PictureFormat",
    "add_legend",
    "new_figure",
    "picture_bytes",
    "say_nothing",
    "style_axes",
    "whole_numbers",
]

PictureFormat = Literal["png", "svg"]

GROUND: Final = "#ffffff"
INK: Final = "#24292f"
QUIET: Final = "#6e7781"
GRID: Final = "#e4e7eb"
BLUE: Final = "#2563a8"
# Up and down differ in brightness too, for whom red and green are one colour.
UP: Final = "#3fa37c"
DOWN: Final = "#c23b3b"
# What a page that has grounds of its own may put others in place of, in an SVG.
COLOURS: Final = {
    "ground": GROUND,
    "ink": INK,
    "quiet": QUIET,
    "grid": GRID,
    "blue": BLUE,
    "up": UP,
    "down": DOWN,
}
_DPI: Final = 100
# Bytes of a PNG, at most, whatever is on it. As text in an event it is a third more.
PICTURE_LIMIT: Final = 65_000


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, 100 pixels each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=_DPI, facecolor=GROUND, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture_bytes(figure: Figure, format_: PictureFormat = "png") -> bytes:
    """The picture, without date and version. A PNG has 256 colours, which is half the size and looks the same."""
    import matplotlib as mpl
    from PIL import Image

    buffer = io.BytesIO()
    if format_ == "svg":
        # Ids in an SVG are random without a salt, which is no argument of savefig.
        with mpl.rc_context({"svg.hashsalt": "lake"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        # Maximum coverage keeps colours of which there is little: the ends of a scale, a lone mark.
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def style_axes(axes: Axes, x: str | None, y: str | None) -> None:
    """Ground, grid and labels of a plot."""
    axes.set_facecolor(GROUND)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=QUIET, labelsize=9)
    axes.set_xlabel(x or "", color=INK, fontsize=10)
    axes.set_ylabel(y or "", color=INK, fontsize=10)


def add_legend(labelled: Axes | Figure, **placed: Any) -> None:
    """A legend of what was labelled, where `placed` says."""
    style: dict[str, Any] = {"frameon": True, "framealpha": 0.9, "edgecolor": GRID, "facecolor": GROUND, "fontsize": 9}
    labelled.legend(**style, labelcolor=INK, **placed)


def say_nothing(axes: Axes, why: str) -> None:
    """The reason why a plot is empty, in its middle."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET)


def whole_numbers(most: int) -> Any:
    """A tick locator for counts, with about so many ticks."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=True)
