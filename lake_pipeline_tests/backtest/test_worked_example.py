"""The worked example of docs/backtest.md, read from the page and computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.backtest.baseline import BASELINE_SCHEMA, measure_paths
from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig, parse_tiers
from lake_pipeline.backtest.paths import Paths
from lake_pipeline.backtest.trades import trade_paths
from lake_pipeline_tests.backtest.paths_for_tests import bar, paths_of

PAGE = Path(__file__).parents[2] / "docs/backtest.md"
CONFIG = BaselineConfig(horizon_hours=0.1)


def table(title: str) -> list[list[str]]:
    """Rows of the page's table whose head begins with this title."""
    lines = PAGE.read_text(encoding="utf-8").split(f"\n| {title} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def paths() -> Paths:
    bars = []
    for time, *values in table("candle"):
        open_, high, low, close, volume = map(float, values)
        bars.append(bar(int(time.removeprefix("10:")) - 1, open_, high, low, close, volume))
    return paths_of([bars], horizon_minutes=6)  # the entry is due at the first candle


def test_every_metric_of_the_page_is_computed(paths: Paths) -> None:
    (row,) = measure_paths(paths, CONFIG).to_pylist()
    rows = table("metric")
    assert len(rows) > 15
    for name, value, _ in rows:
        metric = row[name.strip("`")]
        shown = "null" if metric is None else str(round(metric, 6) if isinstance(metric, float) else metric)
        assert (name, shown) == (name, value)


def test_every_strategy_of_the_page_ends_as_it_says(paths: Paths) -> None:
    rows = table("strategy")
    assert {row[1] for row in rows} == {"tp", "sl", "trail", "breakeven", "tier", "time", "horizon"}
    for text, reason, exit_price, ret, because in rows:
        (trade,) = trade_paths(paths, strategy_of(text), CONFIG).to_pylist()
        found = (trade["tp_sl_exit_reason"], round(trade["exit_price"], 6), round(trade["tp_sl_ret"], 6))
        assert (text, *found) == (text, reason, float(exit_price), float(ret))
        assert trade["ambiguous"] == ("ambiguous" in because or "the other order" in because)


def strategy_of(text: str) -> StrategyConfig:
    settings: dict[str, Any] = {}
    for setting in text.split(", "):
        name, value = setting.split("=")
        if name == "tiers":
            settings[name] = parse_tiers(value)
        elif name in ("fill", "intrabar_order"):
            settings[name] = value
        else:
            settings[name] = None if value == "none" else float(value)
    return StrategyConfig(**settings)


def test_the_page_defines_every_column_of_the_baseline() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in BASELINE_SCHEMA.names:
        multiple = name.removeprefix("time_to_").removeprefix("dd_after_").removesuffix("_s")
        assert f"`{name}`" in page or f"`{multiple}`" in page, name
