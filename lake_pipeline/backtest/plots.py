"""Pictures of results. What they are of is computed elsewhere, and their style is that of `lake_pipeline.pictures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lake_pipeline.pictures import (
    BLUE,
    DOWN,
    GROUND,
    INK,
    QUIET,
    UP,
    PictureFormat,
    add_legend,
    new_figure,
    picture_bytes,
    say_nothing,
    style_axes,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lake_pipeline.backtest.replay import Replay

__all__ = ["ath_histogram", "equity_curve", "outcome_bars", "replay_picture"]

_REASONS: Final = {
    "tp": UP,
    "sl": DOWN,
    "trail": "#d97a2b",
    "breakeven": "#a8842c",
    "tier": "#8a5aa8",
    "time": BLUE,
    "horizon": QUIET,
}


def ath_histogram(ath_mults: Sequence[float], format_: PictureFormat = "png") -> bytes:
    """How many alerts reached which highest multiple of their entry price; logarithmic, with the median and 2x."""
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    style_axes(axes, "Highest price after entry, as a multiple of it", "alerts")
    if not ath_mults:
        say_nothing(axes, "no alert has a path")
        return picture_bytes(figure, format_)
    top = max(2.5, max(ath_mults) * 1.02)
    bottom = min(1.0, *ath_mults)
    edges = np.geomspace(bottom, top, 41).tolist()
    axes.hist(ath_mults, edges, color=BLUE, edgecolor=GROUND, linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlim(bottom, top)
    ticks = _multiples(bottom, top)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.margins(y=0.15)
    middle = float(np.median(ath_mults))
    reached = sum(value >= 2 for value in ath_mults)
    axes.axvline(middle, color=DOWN, linewidth=1.5, label=f"median {middle:.3g}x")
    axes.axvline(2, color=INK, linewidth=1, linestyle="--", label=f"2x: reached by {reached:,} of {len(ath_mults):,}")
    add_legend(axes)
    return picture_bytes(figure, format_)


def equity_curve(equity: Sequence[float], format_: PictureFormat = "png") -> bytes:
    """Equity after each trade in the order of exits, from 1, and below it how far it is under its peak."""
    figure = new_figure(7.2, 4.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(above, None, "equity")
    style_axes(below, "trades, in the order of exits", "drawdown")
    if not equity:
        say_nothing(above, "no trades, or no stop-loss to size them by")
        return picture_bytes(figure, format_)
    curve = np.concatenate(([1.0], np.asarray(equity, np.float64)))
    peak = np.maximum.accumulate(curve)
    drawdown = (curve / peak - 1) * 100
    trades = np.arange(len(curve))
    above.plot(trades, curve, color=BLUE, linewidth=1.5, drawstyle="steps-post")
    above.axhline(1, color=QUIET, linewidth=0.8, linestyle="--")
    above.annotate(
        f"{curve[-1]:.4g}", (trades[-1], curve[-1]), xytext=(5, 0), textcoords="offset points", color=BLUE,
        va="center", annotation_clip=False,
    )  # fmt: skip
    below.fill_between(trades, drawdown, 0, color=DOWN, alpha=0.35, linewidth=0, step="post")
    below.plot(trades, drawdown, color=DOWN, linewidth=1, drawstyle="steps-post")
    below.yaxis.set_major_formatter("{x:.0f} %")
    below.yaxis.set_major_locator(whole_numbers(4))
    below.xaxis.set_major_locator(whole_numbers(8))
    below.set_ylim(min(drawdown.min() * 1.15, -1), 0)
    below.set_xlim(0, max(len(equity), 1))
    below.annotate(
        f"worst {drawdown.min():.1f} %", (0.01, 0.1), xycoords="axes fraction", color=DOWN, fontsize=9
    )  # fmt: skip
    return picture_bytes(figure, format_)


def outcome_bars(exit_reasons: Mapping[str, int], format_: PictureFormat = "png") -> bytes:
    """How many trades ended for each reason."""
    figure = new_figure(7.2, 2.8)
    axes = figure.add_subplot()
    style_axes(axes, "trades", None)
    names = [name for name in _REASONS if name in exit_reasons][::-1]
    counts = [exit_reasons[name] for name in names]
    total = sum(counts)
    if not total:
        say_nothing(axes, "no trades")
        return picture_bytes(figure, format_)
    bars = axes.barh(names, counts, color=[_REASONS[name] for name in names], height=0.7)
    labels = [f"{count:,} ({100 * count / total:.1f} %)" if count else "0" for count in counts]
    axes.bar_label(bars, labels, padding=4, color=INK, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.xaxis.set_major_locator(whole_numbers(8))
    axes.margins(x=0.18)
    return picture_bytes(figure, format_)


_MOST_BARS: Final = 160


def replay_picture(replay: Replay, format_: PictureFormat = "png") -> bytes:
    """Candles and volume of one alert around its position, with entry, exit, take-profit and the effective stop.

    Shows the position and half as many candles after it; more than some 160 are drawn together, a few to a bar.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = new_figure(9.6, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    trade = replay.trade
    figure.suptitle(
        f"{replay.alert_id} · {replay.mint[:12]} · {replay.why}",
        x=0.01,
        ha="left",
        color=INK,
        fontsize=10,
        wrap=True,
    )
    style_axes(above, None, "price")
    path = replay.path
    if replay.exit_index is None or not len(path):
        style_axes(below, None, None)
        say_nothing(above, f"no trade: {replay.status}")
        return picture_bytes(figure, format_)
    held = replay.exit_index + 1
    shown = min(len(path), held + max(held // 2, 10))
    unit_ms, unit = _time_unit(int(path.ts[shown - 1] - replay.entry_ts))
    style_axes(below, f"{unit} since the entry", "volume")
    hours = (path.ts[:shown] - replay.entry_ts) / unit_ms
    width = replay.interval_s * 1000 / unit_ms

    per_bar = -(-shown // _MOST_BARS)
    cuts = np.arange(0, shown, per_bar)
    opens, closes = path.open[cuts], path.close[np.minimum(cuts + per_bar, shown) - 1]
    highs = np.maximum.reduceat(path.high[:shown], cuts)
    lows = np.minimum.reduceat(path.low[:shown], cuts)
    volumes = np.add.reduceat(path.volume[:shown], cuts)
    left = hours[cuts]
    middle = left + width * per_bar / 2
    colours = np.where(closes >= opens, UP, DOWN)
    above.vlines(middle, lows, highs, color=colours, linewidth=0.9)
    # A candle that opens and closes at one price is a line, not nothing.
    height = np.maximum(np.abs(closes - opens), (highs.max() - lows.min()) * 0.004)
    above.bar(middle, height, width * per_bar * 0.75, np.minimum(opens, closes), color=colours)
    below.bar(middle, volumes, width * per_bar * 0.75, color=colours)

    edges = np.append(hours[:held], hours[held - 1] + width)
    seen = [lows.min(), highs.max(), trade["entry_price"], trade["exit_price"]]
    _draw_levels(above, replay, edges, min(seen), max(seen))
    marker: dict[str, Any] = {"linestyle": "none", "markersize": 10, "markeredgecolor": GROUND, "zorder": 5}
    above.plot(left[0], trade["entry_price"], marker=">", color=BLUE, label="entry", **marker)
    ended = f"exit ({trade['tp_sl_exit_reason']})"
    above.plot(hours[held - 1] + width / 2, trade["exit_price"], marker="X", color=INK, label=ended, **marker)
    for axes in (above, below):
        axes.axvspan(edges[0], edges[-1], color=BLUE, alpha=0.06, linewidth=0)
    above.set_xlim(left[0] - width * per_bar, hours[-1] + width * (per_bar + 1))
    above.ticklabel_format(axis="y", useOffset=False, style="plain")
    thousands = EngFormatter(sep="")
    below.yaxis.set_major_formatter(lambda value, _: thousands(value) if value >= 1000 else f"{value:g}")
    below.yaxis.set_major_locator(MaxNLocator(3))
    entry = trade["entry_price"]
    multiples = above.secondary_yaxis("right", functions=(lambda price: price / entry, lambda times: times * entry))
    multiples.yaxis.set_major_formatter("{x:g}x")
    multiples.tick_params(colors=QUIET, labelcolor=QUIET, labelsize=9)
    multiples.spines["right"].set_visible(False)
    if per_bar > 1:
        below.annotate(
            f"{per_bar} candles a bar", (0.99, 0.85), xycoords="axes fraction", ha="right", va="top", color=QUIET,
            fontsize=8,
        )  # fmt: skip
    add_legend(above, loc="best", ncols=2)
    return picture_bytes(figure, format_)


def _draw_levels(axes: Axes, replay: Replay, edges: npt.NDArray[np.float64], low: float, high: float) -> None:
    """The stops by reason and the take-profit. One that would flatten the candles is named in the legend only."""
    held = len(edges) - 1
    reasons = np.array([reason or "" for reason in replay.stop_reason[:held]])
    levels = [
        (f"stop ({reason})", reason, np.where(reasons == reason, replay.stop[:held], np.nan))
        for reason in dict.fromkeys(filter(None, replay.stop_reason[:held]))
    ]
    if replay.target is not None:
        levels.append(("take-profit", "tp", np.full(held, replay.target)))
    room = (high - low) or high * 0.1
    nearest, farthest = low - room, high + room
    for label, reason, level in levels:
        near = (np.nanmin(level) >= nearest) and (np.nanmax(level) <= farthest)
        # The level of a candle holds from its open to its end.
        shown = np.append(level, level[-1]) if near else np.full(len(edges), np.nan)
        name = label if near else f"{label}, {level[~np.isnan(level)][-1]:.4g}: off the picture"
        axes.plot(edges, shown, color=_REASONS[reason], linewidth=1.4, drawstyle="steps-post", label=name)
        if near:
            low, high = min(low, np.nanmin(level)), max(high, np.nanmax(level))
    edge = 0.05 * ((high - low) or high * 0.1)
    axes.set_ylim(low - edge, high + edge)


def _time_unit(span_ms: int) -> tuple[int, str]:
    """The unit in which this span is a handy number."""
    for unit_ms, name in ((86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes")):
        if span_ms >= 4 * unit_ms:
            return unit_ms, name
    return 1000, "seconds"


def _multiples(bottom: float, top: float) -> list[float]:
    """Round multiples in this range, a dozen or so at most."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    inside: list[float] = []
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7), (1, 1.5, 2, 3, 5), (1, 2, 5), (1,)):
        inside = [step * 10.0**power for power in powers for step in steps if bottom <= step * 10.0**power <= top]
        if len(inside) <= 12:
            break
    return inside[:: -(-len(inside) // 12)]
