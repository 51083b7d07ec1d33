"""The backtest of a sealed run: price paths, path metrics, exits, callers, trades, and the results they are kept in.

    from lake_pipeline.backtest import StrategyConfig, compute_baseline, compute_trades
    compute_baseline(run).to_pandas()
    compute_trades(run, StrategyConfig(tp=3.0, trail_distance=0.2)).to_pandas()

`run` is a `lake_pipeline.run.Run` (of `load_run(store, run_id)`): what the export, the seal and `verify` work on too.
Pure but for reading the run and, in `results`, keeping what was computed. Names are loaded when first used: numba alone
takes a third of a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake_pipeline.backtest.baseline import BASELINE_COLUMNS, BASELINE_SCHEMA, compute_baseline, measure_paths
    from lake_pipeline.backtest.callers import CALLER_SCHEMA, compute_caller_stats
    from lake_pipeline.backtest.config import (
        AlertSelection,
        BaselineConfig,
        CallerConfig,
        StrategyConfig,
        parse_tiers,
    )
    from lake_pipeline.backtest.exits import simulate, stop_levels
    from lake_pipeline.backtest.paths import CandlePath, PathBlock, Paths, open_paths
    from lake_pipeline.backtest.replay import Replay, replay_alert
    from lake_pipeline.backtest.results import (
        BaselineResult,
        Result,
        StrategyResult,
        baseline_result,
        per_alert_result,
        per_caller_result,
        per_trade_result,
        strategy_result,
        write_per_alert,
        write_per_caller,
        write_per_trade,
    )
    from lake_pipeline.backtest.trades import TRADES_SCHEMA, compute_trades, summarise, trade_paths

_HOME = {
    "BASELINE_COLUMNS": "baseline",
    "BASELINE_SCHEMA": "baseline",
    "CALLER_SCHEMA": "callers",
    "TRADES_SCHEMA": "trades",
    "AlertSelection": "config",
    "BaselineConfig": "config",
    "BaselineResult": "results",
    "CallerConfig": "config",
    "CandlePath": "paths",
    "PathBlock": "paths",
    "Paths": "paths",
    "Replay": "replay",
    "Result": "results",
    "StrategyConfig": "config",
    "StrategyResult": "results",
    "baseline_result": "results",
    "compute_baseline": "baseline",
    "compute_caller_stats": "callers",
    "compute_trades": "trades",
    "measure_paths": "baseline",
    "open_paths": "paths",
    "parse_tiers": "config",
    "per_alert_result": "results",
    "per_caller_result": "results",
    "per_trade_result": "results",
    "replay_alert": "replay",
    "simulate": "exits",
    "stop_levels": "exits",
    "strategy_result": "results",
    "summarise": "trades",
    "trade_paths": "trades",
    "write_per_alert": "results",
    "write_per_caller": "results",
    "write_per_trade": "results",
}
__all__ = [
    "BASELINE_COLUMNS",
    "BASELINE_SCHEMA",
    "CALLER_SCHEMA",
    "TRADES_SCHEMA",
    "AlertSelection",
    "BaselineConfig",
    "BaselineResult",
    "CallerConfig",
    "CandlePath",
    "PathBlock",
    "Paths",
    "Replay",
    "Result",
    "StrategyConfig",
    "StrategyResult",
    "baseline_result",
    "compute_baseline",
    "compute_caller_stats",
    "compute_trades",
    "measure_paths",
    "open_paths",
    "parse_tiers",
    "per_alert_result",
    "per_caller_result",
    "per_trade_result",
    "replay_alert",
    "simulate",
    "stop_levels",
    "strategy_result",
    "summarise",
    "trade_paths",
    "write_per_alert",
    "write_per_caller",
    "write_per_trade",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
