"""Trades of a strategy: one row an alert, and what they come to together.

**Order.** Results become known when positions are closed, so the losing streak and the equity curve follow the exits:
by `exit_ts_utc`, then in the order of the table (the run's alerts).

**Sizing.** Each trade risks the fraction `risk_per_trade` of the equity at its turn: a stop at `sl`, before costs,
loses that fraction. With R = ret / (1 - sl), equity is multiplied by 1 + risk_per_trade * R, and is 0 from the first
time this is not positive (gaps can cost more than the stop). Overlapping positions are taken one after another, so the
curve compares strategies and is no account statement. Without `sl` there is no R and no curve.

A return that is too large for a double is null and in no figure, and so is an equity that has become that large.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from lake_pipeline.backtest.baseline import STATUSES
from lake_pipeline.backtest.config import AlertSelection, BaselineConfig, StrategyConfig
from lake_pipeline.backtest.exits import Exits, simulate
from lake_pipeline.backtest.kernels import REASONS
from lake_pipeline.backtest.paths import Paths, open_paths
from lake_pipeline.backtest.statistics import longest_run, mean, median, profit_factor
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline.run import Run

__all__ = ["TRADES_SCHEMA", "compute_trades", "summarise", "trade_paths"]

_TS: Final = ALERTS_SCHEMA.field("ts").type

TRADES_SCHEMA: Final = pa.schema(
    [
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("caller", pa.string()),
        ("alert_ts_utc", _TS),
        ("entry_ts_utc", _TS),
        ("entry_price", pa.float64()),
        ("exit_ts_utc", _TS),
        ("exit_price", pa.float64()),
        ("tp_sl_exit_reason", pa.string()),
        ("tp_sl_ret", pa.float64()),
        ("hold_time_s", pa.int64()),
        ("ambiguous", pa.bool_()),
        ("ret_worst", pa.float64()),
        ("ret_best", pa.float64()),
        ("mae", pa.float64()),
        ("mfe", pa.float64()),
        # Extras: the baseline's status (no trade unless ok), R, the equity after this trade (1 before the first), and
        # the last candle the row was computed from.
        ("status", pa.string()),
        ("r_multiple", pa.float64()),
        ("equity", pa.float64()),
        ("max_ts_read", _TS),
    ]
)


def compute_trades(
    run: Run,
    strategy: StrategyConfig = StrategyConfig(),
    config: BaselineConfig = BaselineConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    threads: int = 2,
) -> pa.Table:
    """The trades of a strategy on a sealed run: a table of TRADES_SCHEMA, sorted like the run's alerts.

    Nothing is stored: `results.strategy_result` does that. Raises RunNotSealed, VerificationFailed, InputError.
    """
    return trade_paths(open_paths(run, selection, config.horizon_ms), strategy, config, threads=threads)


def trade_paths(
    paths: Paths, strategy: StrategyConfig, config: BaselineConfig = BaselineConfig(), *, threads: int = 1
) -> pa.Table:
    """The trades on these paths, a row for each of their alerts; `config.horizon_ms` is that of the paths."""
    exits = simulate(paths, strategy, config, threads=threads)
    traded = exits.tradable

    def column(values: Any) -> pa.Array:
        mask = ~traded | ~np.isfinite(values) if values.dtype == np.float64 else ~traded
        return pa.array(values, mask=mask)

    r_multiple = np.full(len(traded), np.nan)
    if strategy.sl is not None:
        r_multiple = exits.ret / (1 - strategy.sl)
    columns = {
        **paths.identity_columns(),
        "entry_price": column(exits.entries.price),
        "exit_ts_utc": column(exits.exit_ts).cast(_TS),
        "exit_price": column(exits.exit_price),
        "tp_sl_exit_reason": pa.array(np.array(REASONS)[exits.reason], pa.string(), mask=~traded),
        "tp_sl_ret": column(exits.ret),
        "hold_time_s": column((exits.exit_ts - paths.entry_ts) // 1000),
        "ambiguous": column(exits.ambiguous),
        "ret_worst": column(exits.ret_worst),
        "ret_best": column(exits.ret_best),
        "mae": column(exits.mae),
        "mfe": column(exits.mfe),
        "status": pa.array(np.array(STATUSES)[exits.entries.status(config.max_entry_lag)], pa.string()),
        "r_multiple": column(r_multiple),
        "equity": column(_equity(exits, r_multiple, strategy.risk_per_trade)),
        "max_ts_read": column(exits.exit_ts).cast(_TS),
    }
    return pa.table([columns[name] for name in TRADES_SCHEMA.names], schema=TRADES_SCHEMA)


def _equity(exits: Exits, r_multiple: Any, risk: float) -> Any:
    """Equity after each trade, in the rows' own order."""
    equity = np.full(len(r_multiple), np.nan)
    rows = np.flatnonzero(exits.tradable & np.isfinite(r_multiple))
    rows = rows[np.argsort(exits.exit_ts[rows], kind="stable")]
    equity[rows] = _curve(r_multiple[rows].tolist(), risk)
    return equity


def _curve(r_multiples: Sequence[float], risk: float) -> list[float]:
    """Equity after each of these trades, from 1."""
    equity = 1.0
    curve = []
    for r_multiple in r_multiples:
        equity *= max(1 + risk * r_multiple, 0.0)
        curve.append(equity)
    return curve


def summarise(trades: pa.Table, strategy: StrategyConfig) -> dict[str, Any]:
    """Figures of a trades table as JSON values: of `all` trades, and in `callers` of each caller's alone.

    `case` is the table's own, `best_case` and `worst_case` take the other order inside ambiguous candles. A caller's
    equity is that of trading that caller only. Alerts without a caller count in `all`.
    """
    rows = trades.select(
        ["caller", "status", "exit_ts_utc", "tp_sl_exit_reason", "tp_sl_ret", "ambiguous", "ret_worst", "ret_best"]
    )
    rows = rows.set_column(2, "exit_ts_utc", rows.column("exit_ts_utc").cast(pa.int64())).to_pylist()
    by_caller: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if (row["caller"] or "").strip():
            by_caller.setdefault(row["caller"], []).append(row)
    return {
        "all": _figures(rows, strategy),
        "callers": {caller: _figures(by_caller[caller], strategy) for caller in sorted(by_caller, key=str.encode)},
    }


def _figures(rows: Sequence[dict[str, Any]], strategy: StrategyConfig) -> dict[str, Any]:
    traded = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["exit_ts_utc"])
    statuses = Counter(row["status"] for row in rows)
    reasons = Counter(row["tp_sl_exit_reason"] for row in traded)
    return {
        "alerts": len(rows),
        "n": len(traded),
        "statuses": {name: statuses[name] for name in STATUSES},
        "exit_reasons": {name: reasons[name] for name in REASONS},
        "ambiguous_share": mean([float(row["ambiguous"]) for row in traded]),
        "case": _case([row["tp_sl_ret"] for row in traded], strategy),
        "best_case": _case([row["ret_best"] for row in traded], strategy),
        "worst_case": _case([row["ret_worst"] for row in traded], strategy),
    }


def _case(column: Sequence[float | None], strategy: StrategyConfig) -> dict[str, Any]:
    """Figures of returns in the order of exits. A return of 0 neither wins nor loses."""
    returns = [value for value in column if value is not None]
    r_multiples = [] if strategy.sl is None else [value / (1 - strategy.sl) for value in returns]
    curve = _curve(r_multiples, strategy.risk_per_trade)
    # What has overflowed stays so: infinite, or not a number once it is multiplied by 0.
    sized = bool(curve) and math.isfinite(curve[-1])
    peak, drawdown = 1.0, 0.0
    for equity in curve:
        peak = max(peak, equity)
        drawdown = min(drawdown, equity / peak - 1)
    return {
        "win_rate": mean([float(value > 0) for value in returns]),
        "mean_ret": mean(returns),
        "median_ret": median(returns),
        "profit_factor": profit_factor(returns),
        "mean_r": mean(r_multiples),
        "median_r": median(r_multiples),
        "max_losing_streak": longest_run([value < 0 for value in returns]),
        "final_equity": curve[-1] if sized else None,
        "max_drawdown": drawdown if sized else None,
    }
