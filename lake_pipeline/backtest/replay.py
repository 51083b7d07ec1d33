"""One alert of a sealed run, candle by candle: where it was entered, which levels were active, where it ended and why.

Computed by the functions that compute the tables, on the one path, so it says what the tables say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from lake_pipeline.backtest.baseline import measure_paths
from lake_pipeline.backtest.config import BaselineConfig, StrategyConfig
from lake_pipeline.backtest.exits import REASONS, stop_levels
from lake_pipeline.backtest.paths import CandlePath, PathBlock, Paths, open_paths
from lake_pipeline.backtest.trades import trade_paths
from lake_pipeline.io.store import Store
from lake_pipeline.run import Run

__all__ = ["Replay", "replay_alert", "replay_path"]


@dataclass(frozen=True)
class Replay:
    """One alert's path with the levels in each candle; `exit_index` is None where there was no trade.

    `stop` and `stop_reason` hold for the candles up to the exit, NaN and None where no stop was active; `trade` and
    `baseline` are the alert's rows of the two tables, but for what depends on other alerts.
    """

    alert_id: str
    mint: str
    interval_s: int
    entry_ts: int
    path: CandlePath
    baseline: dict[str, Any]
    trade: dict[str, Any]
    stop: npt.NDArray[np.float64]
    stop_reason: list[str | None]
    target: float | None
    exit_index: int | None
    why: str

    @property
    def status(self) -> str:
        """Of the baseline: `ok`, `missing`, `bad_entry` or `late_entry`."""
        return str(self.baseline["status"])

    def rows(self) -> list[dict[str, Any]]:
        """One row a candle of the path; levels up to the exit, `event` says `entry` and the reason of the exit."""
        candles: list[dict[str, Any]] = self.path.table().to_pylist()
        for index, row in enumerate(candles):
            held = self.exit_index is not None and index <= self.exit_index
            stop = float(self.stop[index])
            events = []
            if index == 0 and self.exit_index is not None:
                events.append("entry")
            if index == self.exit_index:
                events.append(f"exit: {self.trade['tp_sl_exit_reason']}")
            row["timestamp"] = row["timestamp"].isoformat().replace("+00:00", "Z")
            row["stop_level"] = stop if held and not np.isnan(stop) else None
            row["stop_reason"] = self.stop_reason[index] if held else None
            row["tp_level"] = self.target if held else None
            row["event"] = ", ".join(events)
        return candles


def replay_alert(
    run: Run,
    alert_id: str,
    strategy: StrategyConfig = StrategyConfig(),
    config: BaselineConfig = BaselineConfig(),
    *,
    lake: Store | None = None,
) -> Replay:
    """One alert of a sealed run; with `lake`, cached paths are used. Raises as `open_paths` and `Paths.path` do."""
    paths = open_paths(run, horizon_ms=config.horizon_ms, lake=lake, fill_cache=False)
    return replay_path(paths, alert_id, strategy, config)


def replay_path(paths: Paths, alert_id: str, strategy: StrategyConfig, config: BaselineConfig) -> Replay:
    """One alert of these paths. Raises InputError for an alert that is not among them."""
    path = paths.path(alert_id)
    row = pc.index(paths.alerts.column("alert_id"), alert_id).as_py()
    one = _only(paths, row, path)
    (baseline,) = measure_paths(one, config).to_pylist()
    (trade,) = trade_paths(one, strategy, config).to_pylist()
    del trade["equity"]  # that of this trade alone means nothing
    stop = np.full(len(path), np.nan)
    reasons: list[str | None] = [None] * len(path)
    exit_index = target = None
    if baseline["status"] == "ok":
        levels = stop_levels(path, strategy)
        active = levels.stop > 0
        stop = np.where(active, levels.stop, np.nan)
        names = zip(levels.reason, active, strict=True)
        reasons = [REASONS[reason] if there else None for reason, there in names]
        exit_index = int(np.searchsorted(path.ts, round(trade["exit_ts_utc"].timestamp() * 1000)))
        target = None if strategy.tp is None else float(path.open[0] * strategy.tp)
    return Replay(
        alert_id=alert_id,
        mint=baseline["mint"],
        interval_s=paths.interval_s,
        entry_ts=int(paths.entry_ts[row]),
        path=path,
        baseline=baseline,
        trade=trade,
        stop=stop,
        stop_reason=reasons,
        target=target,
        exit_index=exit_index,
        why=_why(path, baseline, trade, stop, exit_index, target, strategy, config),
    )


def _only(paths: Paths, row: int, path: CandlePath) -> Paths:
    """Paths of one alert."""
    zero, stop = np.zeros(1, np.int64), np.array([len(path)], np.int64)
    block = PathBlock(path.ts, path.open, path.high, path.low, path.close, path.volume, zero, zero.copy(), stop)
    alerts = paths.alerts.slice(row, 1)
    inside = slice(row, row + 1)
    return Paths(alerts, paths.interval_s, paths.entry_ts[inside], paths.end_ts[inside], ("",), lambda _: block, ("",))


def _why(
    path: CandlePath,
    baseline: dict[str, Any],
    trade: dict[str, Any],
    stop: npt.NDArray[np.float64],
    exit_index: int | None,
    target: float | None,
    strategy: StrategyConfig,
    config: BaselineConfig,
) -> str:
    """What ended the position, or why there was none, in a sentence."""
    if exit_index is None:
        return {
            "missing": "no trade: there is no candle in the path",
            "bad_entry": "no trade: the open of the first candle is no price",
            "late_entry": f"no trade: the first candle opens {baseline['entry_lag_s']} s after the entry was due, more "
            f"than {config.max_entry_lag} candles",
        }[baseline["status"]]
    reason, price = trade["tp_sl_exit_reason"], trade["exit_price"]
    high, low, level = (float(values[exit_index]) for values in (path.high, path.low, stop))
    if reason == "horizon":
        return f"horizon: no level was reached, left at the last close {price:.6g}"
    if reason == "time":
        return f"time: {strategy.time_stop_hours:g} h are over, left at the open {price:.6g}"
    if reason == "tp":
        why = f"tp: the high {high:.6g} reached {strategy.tp:g}x = {target:.6g}, filled there"
    else:
        why = f"{reason}: the low {low:.6g} reached the stop {level:.6g}, filled "
        why += f"at the open {price:.6g}, already below it" if price < level else "there"
    if trade["ambiguous"]:
        why += f"; ambiguous, both levels are in this candle and {strategy.intrabar_order} decides"
    return why
