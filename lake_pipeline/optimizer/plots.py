"""Pictures of a search, drawn from its stored files alone: heat map, trials, equity, folds.

Their style is that of `lake_pipeline.pictures`.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.pictures import (
    BLUE,
    DOWN,
    GRID,
    INK,
    QUIET,
    add_legend,
    new_figure,
    picture_bytes,
    say_nothing,
    style_axes,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["equity_picture", "folds_picture", "heat_map", "pictures", "trials_picture"]

Float64Array = npt.NDArray[np.float64]

_PERIODS: Final = ("train", "test")
_NUMBERS: Final = (
    "tp", "sl", "trail_distance", "trail_activation", "breakeven_trigger", "breakeven_offset", "time_stop_hours",
)  # fmt: skip
_MOST_CELLS: Final = 40
_MOST_FOLDS: Final = 6
# More panels would be more bytes than an event may have.
_MOST_CURVES: Final = 4


def pictures(trials: pa.Table, best: Mapping[str, Any], winner_trades: pa.Table) -> dict[str, bytes]:
    """All pictures of a search by name, as PNG: `heatmap`, `trials`, `equity`, `folds`."""
    last = trials.filter(pc.equal(trials.column("fold"), best["folds"][-1]["fold"]))
    return {
        "heatmap": heat_map(last, best),
        "trials": trials_picture(last, best),
        "equity": equity_picture(best, winner_trades),
        "folds": folds_picture(best),
    }


def heat_map(trials: pa.Table, best: Mapping[str, Any]) -> bytes:
    """The objective over take-profit and stop-loss, or the first two exits that vary: train and test on one scale.

    A cell is the median of its trials, whatever their other exits; where none was tried it is empty.
    """
    from matplotlib.colors import TwoSlopeNorm

    varied = [name for name in _NUMBERS if trials.num_rows and pc.count_distinct(trials.column(name)).as_py() > 1]
    figure = new_figure(9.6, 4.2)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    objectives = [_numbers(trials, name) for name in ("objective", "test_objective")]
    known = np.concatenate(objectives)
    known = known[~np.isnan(known)]
    if len(varied) < 2 or not len(known):
        for axes in panels:
            style_axes(axes, None, None)
        say_nothing(panels[0], "fewer than two exits were varied" if len(known) else "no trial has an objective")
        return picture_bytes(figure)
    x, y = (_numbers(trials, name) for name in varied[:2])
    cells = int(np.clip(math.sqrt(trials.num_rows / 1.5), 5, _MOST_CELLS))
    edges = [_cell_edges(values, cells) for values in (x, y)]
    low, high = np.quantile(known, (0.02, 0.98))
    # One scale for both, with zero in its middle, so that the sign is seen and the loss from train to test too.
    span = max(abs(low), abs(high)) or 1.0
    for axes, period, values in zip(panels, _PERIODS, objectives, strict=True):
        style_axes(axes, varied[0], varied[1] if period == "train" else None)
        axes.grid(visible=False)
        # Not a colour of the scale.
        axes.patch.set(hatch="////", edgecolor=GRID)
        axes.set_title(_period_title(period, best), color=INK, fontsize=10)
        image = axes.pcolormesh(
            edges[0], edges[1], _medians(x, y, values, edges).T, cmap="RdBu", norm=TwoSlopeNorm(0, -span, span)
        )
        if best["winner"] is not None:
            strategy = best["winner"]["strategy"]
            place = [strategy[name] for name in varied[:2]]
            if None not in place:
                marker: dict[str, Any] = {"markersize": 13, "markeredgecolor": INK, "markerfacecolor": "#ffd23f"}
                label = "winner (chosen on train)" if period == "train" else None
                axes.plot(*place, marker="*", linestyle="none", label=label, clip_on=False, **marker)
    bar = figure.colorbar(image, ax=panels, pad=0.02)  # that of either: they share it
    bar.set_label(f"{best['objective']}, median of the cell's trials", color=INK, fontsize=9)
    bar.ax.tick_params(colors=QUIET, labelsize=9)
    bar.outline.set_visible(False)
    if best["winner"] is not None:
        add_legend(figure, loc="outside lower center")  # no cell is under it
    return picture_bytes(figure)


def _period_title(period: str, best: Mapping[str, Any]) -> str:
    fold = best["folds"][-1]
    begin, end = (fold["train_from"], fold["test_from"]) if period == "train" else (fold["test_from"], fold["test_to"])
    return f"{period}: {begin[:10]} to {end[:10]}, {fold[f'{period}_alerts']:,} alerts"


def _cell_edges(values: Float64Array, cells: int) -> Float64Array:
    """Edges of cells around the values: one for each where they are few, else of one width."""
    distinct = np.unique(values[~np.isnan(values)])
    if len(distinct) > cells:
        return np.linspace(distinct[0], distinct[-1], cells + 1)
    half = np.diff(distinct) / 2
    middles = distinct[:-1] + half
    return np.concatenate(([distinct[0] - half[0]], middles, [distinct[-1] + half[-1]]))


def _medians(x: Float64Array, y: Float64Array, values: Float64Array, edges: Sequence[Float64Array]) -> Float64Array:
    """The median of the values in each cell, NaN where there are none."""
    shape = tuple(len(each) - 1 for each in edges)
    known = ~(np.isnan(x) | np.isnan(y) | np.isnan(values))
    places = [
        np.clip(np.searchsorted(edge, each[known], side="right") - 1, 0, size - 1)
        for edge, each, size in zip(edges, (x, y), shape, strict=True)
    ]
    cells = places[0] * shape[1] + places[1]
    found = np.full(shape[0] * shape[1], np.nan)
    order = np.argsort(cells, kind="stable")
    ordered, chosen = cells[order], values[known][order]
    for part in np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(ordered)) + 1):
        if len(part):
            found[ordered[part[0]]] = np.median(chosen[part])
    return found.reshape(shape)


def trials_picture(trials: pa.Table, best: Mapping[str, Any]) -> bytes:
    """The objective of each trial on train in the order they were tried, and the best so far."""
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    style_axes(axes, "trial", f"{best['objective']} on train")
    objective = _numbers(trials, "objective")
    if not len(objective) or np.isnan(objective).all():
        say_nothing(axes, "no trial has an objective")
        return picture_bytes(figure)
    number = trials.column("trial").to_numpy()
    passed = np.asarray(pc.is_null(trials.column("failed_gates")))
    size = 14 if len(number) < 1000 else 4
    for chosen, colour, label in ((passed, BLUE, "passes the gates"), (~passed, QUIET, "fails a gate")):
        if chosen.any():
            axes.scatter(number[chosen], objective[chosen], s=size, color=colour, alpha=0.5, linewidth=0, label=label)
    running = np.maximum.accumulate(np.where(passed & ~np.isnan(objective), objective, -np.inf))
    shown = np.isfinite(running)
    axes.plot(number[shown], running[shown], color=DOWN, linewidth=1.5, drawstyle="steps-post", label="best so far")
    axes.xaxis.set_major_locator(whole_numbers(8))
    # A few hopeless trials must not flatten all others.
    low, high = np.nanquantile(objective, 0.02), np.nanmax(objective)
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    axes.set_ylim(low - room, high + room)
    add_legend(axes, loc="lower right")
    return picture_bytes(figure)


def equity_picture(best: Mapping[str, Any], winner_trades: pa.Table) -> bytes:
    """The last folds' winners against buying and holding the same alerts to the horizon, train then test, each from 1.

    Both put the same share of the equity into each trade: what the winner's stop-loss and risk per trade come to.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    folds = [fold for fold in best["folds"] if fold["winner"] is not None][-_MOST_CURVES:]
    figure = new_figure(8.4, 1.0 + 2.6 * max(len(folds), 1))
    panels = figure.subplots(max(len(folds), 1), 1, squeeze=False)[:, 0]
    if not folds:
        style_axes(panels[0], None, None)
        say_nothing(panels[0], "no trial passes the gates")
        return picture_bytes(figure)
    for axes, fold in zip(panels, folds, strict=True):
        style_axes(axes, None, "equity")
        strategy = fold["winner"]["strategy"]
        share = strategy["risk_per_trade"] / (1 - (strategy["sl"] or 0.0))
        own = winner_trades.filter(pc.equal(winner_trades.column("fold"), fold["fold"]))
        name = f"fold {fold['fold']}: " if len(best["folds"]) > 1 else ""
        axes.set_title(f"{name}{_described(strategy)}, {share:.2%} of the equity a trade", color=INK, fontsize=10)
        for period, strong in (("train", 0.45), ("test", 1.0)):
            part = own.filter(pc.equal(own.column("period"), period))
            for prefix, colour, label in (("hold_", QUIET, "bought and held to the horizon"), ("", BLUE, "winner")):
                _draw_curve(axes, part, prefix, share, colour, strong, label if period == "test" else None, fold)
        axes.axhline(1, color=QUIET, linewidth=0.8, linestyle="--")
        axes.axvline(_moment(fold["test_from"]), color=INK, linewidth=1, linestyle=":", label="the test period begins")
        locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        add_legend(axes, loc="best")
    return picture_bytes(figure)


def _draw_curve(
    axes: Axes,
    trades: pa.Table,
    prefix: str,
    share: float,
    colour: str,
    alpha: float,
    label: str | None,
    fold: Mapping[str, Any],
) -> None:
    known = trades.filter(pc.is_valid(trades.column(f"{prefix}ret"))).sort_by(f"{prefix}exit_ts_utc")
    curve = np.cumprod(np.maximum(1 + share * known.column(f"{prefix}ret").to_numpy(), 0))
    begin = (
        fold["train_from"] if trades.num_rows and trades.column("period")[0].as_py() == "train" else fold["test_from"]
    )
    times = [_moment(begin), *(each.replace(tzinfo=None) for each in known.column(f"{prefix}exit_ts_utc").to_pylist())]
    values = np.concatenate(([1.0], curve))
    shown = label and f"{label}: {values[-1]:.4g} in test"
    axes.plot(times, values, color=colour, alpha=alpha, linewidth=1.6, drawstyle="steps-post", label=shown)


def folds_picture(best: Mapping[str, Any]) -> bytes:
    """The objective of each fold's winner on train and on test, side by side."""
    folds = best["folds"]
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    style_axes(axes, None, best["objective"])
    found = [
        [math.nan if fold["winner"] is None or fold["winner"][f"{period}_objective"] is None
         else fold["winner"][f"{period}_objective"] for fold in folds]
        for period in _PERIODS
    ]  # fmt: skip
    if np.isnan(found).all():
        say_nothing(axes, "no trial passes the gates")
        return picture_bytes(figure)
    places = np.arange(len(folds))
    for values, shift, colour, label in zip(
        found, (-0.2, 0.2), (GRID, BLUE), ("train, where it was chosen", "test"), strict=True
    ):
        bars = axes.bar(places + shift, values, 0.38, color=colour, edgecolor=QUIET, linewidth=0.6, label=label)
        if len(folds) <= _MOST_FOLDS:
            shown = ["" if math.isnan(value) else f"{value:.3f}" for value in values]
            axes.bar_label(bars, shown, padding=2, color=INK, fontsize=8)
    axes.axhline(0, color=INK, linewidth=0.8)
    few = len(folds) <= _MOST_FOLDS
    names = [f"fold {fold['fold']}, from {fold['test_from'][:10]}" if few else str(fold["fold"]) for fold in folds]
    axes.set_xticks(places, names, rotation=0 if len(folds) <= 3 or not few else 15)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
    if len(folds) == 1:
        axes.set_xlim(-1, 1)
    add_legend(axes, loc="best")
    return picture_bytes(figure)


def _described(strategy: Mapping[str, Any]) -> str:
    """The exits of a strategy that are on."""
    shown = [f"{name} {strategy[name]:g}" for name in ("tp", "sl") if strategy[name] is not None]
    shown += [
        f"{name.replace('_', ' ')} {strategy[name]:g}"
        for name in ("trail_distance", "trail_activation", "breakeven_trigger", "breakeven_offset", "time_stop_hours")
        if strategy[name]
    ]
    shown += [f"{reached:g}x to {stop:g}x" for reached, stop in strategy["tiers"]]
    return ", ".join(shown) or "no exits"


def _moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.removesuffix("Z"))


def _numbers(trials: pa.Table, name: str) -> Float64Array:
    """A column of numbers, NaN for null."""
    return np.asarray(pc.fill_null(trials.column(name), math.nan).to_numpy(), np.float64)
