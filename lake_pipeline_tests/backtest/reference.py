"""The backtest a second time: slow, obvious, plain Python, written from the definitions and not from the engine.

A path is a list of candles and every number is one expression over lists. Nothing here imports the engine, NumPy or
Arrow, so that the two can only agree by computing the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = dict[str, Any]
MULTIPLES = (("2x", 2), ("3x", 3), ("4x", 4), ("5x", 5), ("10x", 10))


class Candle(NamedTuple):
    """One candle of a mint; `ts` is its open in epoch ms."""

    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Alert(NamedTuple):
    alert_id: str
    mint: str
    caller: str | None
    ts: int


@dataclass(frozen=True)
class Setting:
    """What a path depends on: times in ms, `window_post` in candles after the anchor."""

    interval: int
    window_post: int
    horizon: int = 48 * 3_600_000
    max_entry_lag: int = 15


@dataclass(frozen=True)
class Rules:
    """A strategy: levels are multiples of the entry price, `trail_*` and `breakeven_*` fractions of it, time in ms."""

    tp: float | None = 2.0
    sl: float | None = 0.5
    tp_first: bool = False
    level_fill: bool = False
    fee_bps: float = 30
    slippage_bps: float = 50
    time_stop: int | None = None
    trail_activation: float = 0.0
    trail_distance: float | None = None
    breakeven_trigger: float | None = None
    breakeven_offset: float = 0.0
    tiers: Sequence[tuple[float, float]] = ()


def finite(value: float | None) -> float | None:
    """Never inf, never NaN."""
    return value if value is not None and math.isfinite(value) else None


def entry_ts(alert: Alert, setting: Setting) -> int:
    return -(-alert.ts // setting.interval) * setting.interval


def path_end(alert: Alert, setting: Setting) -> int:
    """The horizon's end, or the window's if that comes first."""
    window_end = alert.ts // setting.interval * setting.interval + (setting.window_post + 1) * setting.interval
    return min(entry_ts(alert, setting) + setting.horizon, window_end)


def path_of(alert: Alert, candles: Sequence[Candle], setting: Setting) -> list[Candle]:
    """The alert's path among all candles of its mint."""
    start, end = entry_ts(alert, setting), path_end(alert, setting)
    return sorted(candle for candle in candles if start <= candle.ts < end)


def status_of(alert: Alert, path: Sequence[Candle], setting: Setting) -> str:
    if not path:
        return "missing"
    if not math.isfinite(path[0].open) or path[0].open <= 0:
        return "bad_entry"
    if path[0].ts - entry_ts(alert, setting) > setting.max_entry_lag * setting.interval:
        return "late_entry"
    return "ok"


def baseline(alert: Alert, candles: Sequence[Candle], setting: Setting) -> Row:
    """One row of the baseline."""
    start, end = entry_ts(alert, setting), path_end(alert, setting)
    path = path_of(alert, candles, setting)
    status = status_of(alert, path, setting)
    near_the_end = path and end - path[-1].ts <= setting.max_entry_lag * setting.interval
    row: Row = {
        "alert_id": alert.alert_id,
        "mint": alert.mint,
        "caller": alert.caller,
        "alert_ts_utc": alert.ts,
        "entry_ts_utc": start,
        "interval_seconds": setting.interval // 1000,
        "horizon_hours": (end - start) / 3_600_000,
        "status": status,
        "candles": len(path),
        "entry_lag_s": (path[0].ts - start) // 1000 if path else None,
        "censoring": "complete" if near_the_end else "lower_bound",
        "max_ts_read": path[-1].ts if path else None,
    }
    return row | metrics(path, start, setting.interval if status == "ok" else None)


def metrics(path: Sequence[Candle], start: int, interval: int | None) -> Row:
    """The numbers of one path; all null without an interval, which is how a path that is not ok arrives."""
    row: Row = {"entry_price": None, "ath_mult": None, "time_to_ath_s": None}
    row |= {f"time_to_{name}_s": None for name in ("1_2x", "1_5x", "2x", "3x", "4x", "5x", "10x")}
    row |= {name: None for name in ("dd_initial", "dd_initial_worst", "dd_overall", "dd_pre2x", "dd_after_ath")}
    row |= {f"dd_after_{name}": None for name, _ in MULTIPLES}
    row |= {name: None for name in ("peak_pnl_pct", "ret_end_pct", "zero_volume_candles", "gap_candles")}
    row |= {name: None for name in ("ath_volume_backed", "time_underwater_pct")}
    if interval is None:
        return row
    entry = path[0].open

    def first(holds: Callable[[Candle], bool]) -> int | None:
        return next((number for number, candle in enumerate(path) if holds(candle)), None)

    def fall(part: Sequence[Candle], price: float) -> float | None:
        return finite(min(candle.low for candle in part) / price - 1) if part else None

    def seconds(number: int | None) -> int | None:
        return None if number is None else (path[number].ts - start) // 1000

    peak = max(candle.high for candle in path)
    peak_at = first(lambda candle: candle.high == peak)
    assert peak_at is not None
    row["entry_price"] = entry
    row["ath_mult"] = finite(peak / entry)
    row["time_to_ath_s"] = seconds(peak_at)
    for name, multiple in (("1_2x", 1.2), ("1_5x", 1.5), *MULTIPLES):
        row[f"time_to_{name}_s"] = seconds(first(lambda candle, m=multiple: candle.high >= m * entry))  # type: ignore[misc]
    for name, multiple in MULTIPLES:
        hit = first(lambda candle, m=multiple: candle.high >= m * entry)  # type: ignore[misc]
        row[f"dd_after_{name}"] = None if hit is None else fall(path[hit + 1 :], multiple * entry)
    hit = first(lambda candle: candle.high >= 2 * entry)
    row["dd_pre2x"] = None if hit is None else fall(path[: hit + 1], entry)
    row["dd_overall"] = fall(path, entry)
    recovery = first(lambda candle: candle.high > entry)
    if recovery is None:
        row["dd_initial"] = row["dd_initial_worst"] = row["dd_overall"]
    else:
        row["dd_initial"] = 0.0 if recovery == 0 else fall(path[:recovery], entry)
        row["dd_initial_worst"] = fall(path[: recovery + 1], entry)
    row["dd_after_ath"] = fall(path[peak_at + 1 :], peak)
    row["peak_pnl_pct"] = finite((peak / entry - 1) * 100)
    row["ret_end_pct"] = finite((path[-1].close / entry - 1) * 100)
    backed = [candle.high for candle in path if candle.volume > 0]
    row["ath_volume_backed"] = finite(max(backed) / entry) if backed else None
    row["zero_volume_candles"] = sum(candle.volume == 0 for candle in path)
    row["gap_candles"] = (path[-1].ts - path[0].ts) // interval + 1 - len(path)
    row["time_underwater_pct"] = 100 * sum(candle.close < entry for candle in path) / len(path)
    return row


def price_action(alert: Alert, candles: Sequence[Candle], setting: Setting) -> list[Candle]:
    return path_of(alert, candles, setting)


def trade_return(price: float, entry: float, rules: Rules) -> float:
    paid = entry * (1 + rules.slippage_bps / 1e4)
    return price * (1 - (rules.fee_bps + rules.slippage_bps) / 1e4) / paid - 1


def active_stops(entry: float, earlier: Sequence[Candle], rules: Rules) -> list[tuple[float, str]]:
    """The stops in force during a candle, by what candles before it reached; the nearest reason first where levels tie."""
    stops: list[tuple[float, str]] = []
    peak = max((candle.high for candle in earlier), default=None)
    if rules.sl is not None:
        stops.append((entry * rules.sl, "sl"))
    if peak is not None and rules.trail_distance is not None and peak >= entry * (1 + rules.trail_activation):
        stops.append((peak * (1 - rules.trail_distance), "trail"))
    if peak is not None and rules.breakeven_trigger is not None and peak >= entry * (1 + rules.breakeven_trigger):
        stops.append((entry * (1 + rules.breakeven_offset), "breakeven"))
    for reached, level in rules.tiers:
        if peak is not None and peak >= entry * reached:
            stops.append((entry * level, "tier"))
    return stops


def trade(path: Sequence[Candle], start: int, rules: Rules) -> Row:
    """The trade of an ok path."""
    entry = path[0].open
    for number, candle in enumerate(path):
        if rules.time_stop is not None and candle.ts - start >= rules.time_stop:
            return closed(path[:number], candle, candle.open, "time", start, rules, at_open=True)
        target = None if rules.tp is None else entry * rules.tp
        stops = active_stops(entry, path[:number], rules)
        highest = max((level for level, _ in stops), default=None)
        taken = target is not None and candle.high >= target
        stopped = highest is not None and candle.low <= highest
        if not taken and not stopped:
            continue
        reason = next((reason for level, reason in stops if level == highest), "")
        stop_price = highest
        if highest is not None and not rules.level_fill and candle.open < highest:
            stop_price = candle.open
        if taken and stopped:
            assert target is not None and stop_price is not None
            price, name = (target, "tp") if rules.tp_first else (stop_price, reason)
            row = closed(path[:number], candle, price, name, start, rules)
            returns = (trade_return(target, entry, rules), trade_return(stop_price, entry, rules))
            return row | {"ambiguous": True, "ret_best": max(returns), "ret_worst": min(returns)}
        price, name = (target, "tp") if taken else (stop_price, reason)  # type: ignore[assignment]
        return closed(path[:number], candle, price, name, start, rules)
    return closed(path[:-1], path[-1], path[-1].close, "horizon", start, rules)


def closed(
    before: Sequence[Candle], last: Candle, price: float, reason: str, start: int, rules: Rules, at_open: bool = False
) -> Row:
    entry = before[0].open if before else last.open
    ret = trade_return(price, entry, rules)
    lows = [candle.low for candle in before] + [last.open if at_open else last.low]
    highs = [candle.high for candle in before] + [last.open if at_open else last.high]
    return {
        "entry_ts_utc": start,
        "entry_price": entry,
        "exit_ts_utc": last.ts,
        "exit_price": price,
        "tp_sl_exit_reason": reason,
        "tp_sl_ret": finite(ret),
        "hold_time_s": (last.ts - start) // 1000,
        "ambiguous": False,
        "ret_worst": finite(ret),
        "ret_best": finite(ret),
        "mae": finite(min(lows) / entry - 1),
        "mfe": finite(max(highs) / entry - 1),
    }


def quantile(values: Sequence[float], q: float) -> float | None:
    """Linear interpolation between the two nearest ranks."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def score(n: int, hit2x: float, median: float, p75: float, p95: float, t2x_s: float | None, dd: float | None) -> float:
    """The caller's score; `dd` is the median dd_pre2x and null where 2x was never hit."""
    conf = math.sqrt(n / (n + 50))
    base = max(median - 1, 0) * hit2x
    tail = 0.15 * max(p75 - median, 0) + 0.10 * max(p95 - p75, 0)
    fast = 0.0 if t2x_s is None else math.exp(-(t2x_s / 60) / 60)
    discipline = 0.6 if dd is not None and hit2x >= 0.5 and abs(dd) <= 0.30 else 0.0
    penalty = 0.0 if dd is None else max(0.0, math.exp(15 * (abs(dd) - 0.30)) - 1)
    return conf * (base + tail) * (1 + 0.8 * fast) + conf * (discipline - penalty)


def callers(rows: Sequence[Row], min_trades: int = 10) -> list[Row]:
    """The caller table of baseline rows, best first."""
    found: list[Row] = []
    for name in sorted({row["caller"] for row in rows if row["caller"] and row["caller"].strip()}):
        every = [row for row in rows if row["caller"] == name]
        ok = [row for row in every if row["status"] == "ok"]
        if len(ok) < min_trades:
            continue

        def values(column: str, ok: Sequence[Row] = ok) -> list[float]:
            return [row[column] for row in ok if row[column] is not None]

        stats: Row = {"caller": name, "n": len(ok)}
        stats["n_censored"] = sum(row["censoring"] == "lower_bound" for row in ok)
        stats["n_excluded"] = len(every) - len(ok)
        for column, q in (("median", 0.5), ("p25", 0.25), ("p75", 0.75), ("p95", 0.95)):
            stats[f"{column}_ath_mult"] = quantile(values("ath_mult"), q)
        for multiple, _ in MULTIPLES:
            stats[f"hit_rate_{multiple}"] = len(values(f"time_to_{multiple}_s")) / len(ok)
        for column in ("time_to_2x_s", "dd_initial", "dd_overall", "dd_pre2x", "ret_end_pct"):
            stats[f"median_{column}"] = quantile(values(column), 0.5)
        stats["score"] = score(
            len(ok),
            stats["hit_rate_2x"],
            stats["median_ath_mult"],
            stats["p75_ath_mult"],
            stats["p95_ath_mult"],
            stats["median_time_to_2x_s"],
            stats["median_dd_pre2x"],
        )
        found.append(stats)
    found.sort(key=lambda stats: (-stats["score"], stats["caller"]))
    return [stats | {"rank": rank} for rank, stats in enumerate(found, 1)]


def summary(trades: Sequence[Row], sl: float | None, risk: float = 0.02) -> Row:
    """The summary of trades in the order they were made."""
    returns = [row["tp_sl_ret"] for row in trades]
    gains, losses = [ret for ret in returns if ret > 0], [ret for ret in returns if ret < 0]
    streak = longest = 0
    equity, curve = 1.0, []
    for ret in returns:
        streak = streak + 1 if ret < 0 else 0
        longest = max(longest, streak)
        equity *= 1 + risk * (ret if sl is None else ret / (1 - sl))
        curve.append(equity)
    return {
        "n": len(returns),
        "win_rate": len(gains) / len(returns) if returns else None,
        "mean_ret": sum(returns) / len(returns) if returns else None,
        "median_ret": quantile(returns, 0.5),
        "profit_factor": sum(gains) / -sum(losses) if losses else None,
        "mean_r": None if sl is None or not returns else sum(ret / (1 - sl) for ret in returns) / len(returns),
        "max_losing_streak": longest,
        "equity": curve,
        "ambiguous_share": sum(row["ambiguous"] for row in trades) / len(trades) if trades else None,
    }
