"""The backtest a second time: slow, obvious, plain Python, written from the definitions and not from the engine.

A path is a list of candles and every number is one expression over lists. Nothing here imports the engine, NumPy or
Arrow, so that the two can only agree by computing the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

Row = dict[str, Any]
MULTIPLES = (("2x", 2), ("3x", 3), ("4x", 4), ("5x", 5), ("10x", 10))
STATUSES = ("ok", "missing", "bad_entry", "late_entry")
REASONS = ("tp", "sl", "trail", "breakeven", "tier", "time", "horizon")


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
    risk: float = 0.02


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
        "horizon_hours": setting.horizon / 3_600_000,
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
    row |= dict.fromkeys(("dd_initial", "dd_initial_worst", "dd_overall", "dd_pre2x", "dd_after_ath"))
    row |= {f"dd_after_{name}": None for name, _ in MULTIPLES}
    row |= dict.fromkeys(("peak_pnl_pct", "ret_end_pct", "zero_volume_candles", "gap_candles"))
    row |= dict.fromkeys(("ath_volume_backed", "time_underwater_pct"))
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
        row[f"time_to_{name}_s"] = seconds(first(lambda candle, m=multiple: candle.high >= m * entry))
    for name, multiple in MULTIPLES:
        hit = first(lambda candle, m=multiple: candle.high >= m * entry)
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


def trade_return(price: float, entry: float, rules: Rules) -> float:
    paid = entry * (1 + rules.slippage_bps / 1e4)
    return price * (1 - (rules.fee_bps + rules.slippage_bps) / 1e4) / paid - 1


def stops_during(entry: float, earlier: Sequence[Candle], rules: Rules) -> list[tuple[float, str]]:
    """The stops in force during a candle, by the candles before it; equal levels are named by the first of these."""
    peak = max((candle.high for candle in earlier), default=0.0)
    stops = []
    if rules.sl is not None:
        stops.append((entry * rules.sl, "sl"))
    if earlier and rules.trail_distance is not None and peak >= entry * (1 + rules.trail_activation):
        stops.append((peak * (1 - rules.trail_distance), "trail"))
    if earlier and rules.breakeven_trigger is not None and peak >= entry * (1 + rules.breakeven_trigger):
        stops.append((entry * (1 + rules.breakeven_offset), "breakeven"))
    for reached, level in rules.tiers:
        if earlier and peak >= entry * reached:
            stops.append((entry * level, "tier"))
    return stops


def effective_stop(entry: float, earlier: Sequence[Candle], rules: Rules) -> tuple[float, str]:
    """The highest stop in force and its name; one at 0, which no price touches, if there is none."""
    stops = stops_during(entry, earlier, rules)
    highest = max((level for level, _ in stops), default=0.0)
    return highest, next((name for level, name in stops if level == highest), "")


def exit_of(path: Sequence[Candle], start: int, rules: Rules) -> Row:
    """How an ok path's position is closed."""
    entry = path[0].open
    target = math.inf if rules.tp is None else entry * rules.tp
    for number, candle in enumerate(path):
        if rules.time_stop is not None and candle.ts >= start + rules.time_stop:
            seen = [*path[:number], Candle(candle.ts, *[candle.open] * 4, 0.0)]
            return exit_row(seen, start, rules, "time", candle.open)
        stop, name = effective_stop(entry, path[:number], rules)
        stop_fill = stop if rules.level_fill else min(stop, candle.open)
        taken, stopped = candle.high >= target, candle.low <= stop
        seen = list(path[: number + 1])
        if taken and stopped:
            row = exit_row(seen, start, rules, *(("tp", target) if rules.tp_first else (name, stop_fill)))
            both = trade_return(target, entry, rules), trade_return(stop_fill, entry, rules)
            return row | {"ambiguous": True, "ret_worst": finite(min(both)), "ret_best": finite(max(both))}
        if taken:
            return exit_row(seen, start, rules, "tp", target)
        if stopped:
            return exit_row(seen, start, rules, name, stop_fill)
    return exit_row(path, start, rules, "horizon", path[-1].close)


def exit_row(seen: Sequence[Candle], start: int, rules: Rules, reason: str, price: float) -> Row:
    """The columns of a position that saw these candles and was closed in the last of them."""
    entry, last = seen[0].open, seen[-1]
    ret = trade_return(price, entry, rules)
    return {
        "entry_price": entry,
        "exit_ts_utc": last.ts,
        "exit_price": price,
        "tp_sl_exit_reason": reason,
        "tp_sl_ret": finite(ret),
        "hold_time_s": (last.ts - start) // 1000,
        "ambiguous": False,
        "ret_worst": finite(ret),
        "ret_best": finite(ret),
        "mae": finite(min(candle.low for candle in seen) / entry - 1),
        "mfe": finite(max(candle.high for candle in seen) / entry - 1),
        "r_multiple": None if rules.sl is None else finite(ret / (1 - rules.sl)),
        "max_ts_read": last.ts,
    }


def trades(calls: Sequence[tuple[Alert, Sequence[Candle]]], rules: Rules, setting: Setting) -> list[Row]:
    """One row an alert, in the order given; each comes with the candles of its mint."""
    rows: list[Row] = []
    for alert, candles in calls:
        path = path_of(alert, candles, setting)
        row: Row = {"alert_id": alert.alert_id, "mint": alert.mint, "caller": alert.caller, "alert_ts_utc": alert.ts}
        row |= {"entry_ts_utc": entry_ts(alert, setting), "status": status_of(alert, path, setting), "equity": None}
        if row["status"] == "ok":
            row |= exit_of(path, row["entry_ts_utc"], rules)
        else:
            one = Candle(0, 1.0, 1.0, 1.0, 1.0, 1.0)
            row |= dict.fromkeys(exit_row([one], 0, rules, "", 1.0))
        rows.append(row)
    closed = by_exit(rows)
    for row, equity in zip(closed, equity_curve([row["r_multiple"] for row in closed], rules), strict=True):
        row["equity"] = equity
    return rows


def by_exit(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["exit_ts_utc"])


def equity_curve(r_multiples: Sequence[float | None], rules: Rules) -> list[float | None]:
    """Equity after each trade from 1, null without R; a trade that would cost more than all there is ends at 0."""
    equity = 1.0
    curve: list[float | None] = []
    for r_multiple in r_multiples:
        if r_multiple is not None:
            equity = equity * max(1 + rules.risk * r_multiple, 0.0)
        curve.append(None if r_multiple is None else finite(equity))
    return curve


def exact_sum(values: Sequence[float]) -> float:
    return float(sum((Fraction(value) for value in values), Fraction(0)))


def mean(values: Sequence[float]) -> float | None:
    return exact_sum(values) / len(values) if values else None


def quantile(values: Sequence[float], q: float) -> float | None:
    """Linear interpolation between the two nearest ranks."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def figures(rows: Sequence[Row], rules: Rules) -> Row:
    """The summary of some rows of trades."""
    done = by_exit(rows)
    return {
        "alerts": len(rows),
        "n": len(done),
        "statuses": {name: sum(row["status"] == name for row in rows) for name in STATUSES},
        "exit_reasons": {name: sum(row["tp_sl_exit_reason"] == name for row in done) for name in REASONS},
        "ambiguous_share": sum(row["ambiguous"] for row in done) / len(done) if done else None,
        "case": case([row["tp_sl_ret"] for row in done], rules),
        "best_case": case([row["ret_best"] for row in done], rules),
        "worst_case": case([row["ret_worst"] for row in done], rules),
    }


def case(column: Sequence[float | None], rules: Rules) -> Row:
    """Figures of returns in the order of exits; one that no double holds is left out."""
    returns = [ret for ret in column if ret is not None]
    gains, losses = [ret for ret in returns if ret > 0], [-ret for ret in returns if ret < 0]
    r_multiples = [] if rules.sl is None else [ret / (1 - rules.sl) for ret in returns]
    equities = equity_curve(r_multiples, rules)
    streaks = "".join("L" if ret < 0 else " " for ret in returns).split()
    falls = [0.0]
    if None not in equities:
        falls += [equity / max(1.0, *equities[: number + 1]) - 1 for number, equity in enumerate(equities)]
    return {
        "win_rate": len(gains) / len(returns) if returns else None,
        "mean_ret": mean(returns),
        "median_ret": quantile(returns, 0.5),
        "profit_factor": exact_sum(gains) / exact_sum(losses) if losses else None,
        "mean_r": mean(r_multiples),
        "median_r": quantile(r_multiples, 0.5),
        "max_losing_streak": max(map(len, streaks), default=0),
        "final_equity": equities[-1] if equities else None,
        "max_drawdown": min(falls) if equities and None not in equities else None,
    }


def summary(rows: Sequence[Row], rules: Rules) -> Row:
    """The summary of a table of trades."""
    names = sorted({row["caller"] for row in rows if row["caller"] and row["caller"].strip()})
    callers = {name: figures([row for row in rows if row["caller"] == name], rules) for name in names}
    return {"all": figures(rows, rules), "callers": callers}


def score(n: int, hit2x: float, ath: tuple[float, float, float], t2x_s: float | None, dd: float | None) -> float:
    """A caller's score by median, p75 and p95 of `ath_mult`; time and drawdown are null where 2x was never hit."""
    median, p75, p95 = ath
    conf = math.sqrt(n / (n + 50))
    base = max(median - 1, 0) * hit2x
    tail = 0.15 * max(p75 - median, 0) + 0.10 * max(p95 - p75, 0)
    fast = 0.0 if t2x_s is None else math.exp(-(t2x_s / 60) / 60)
    discipline = 0.6 if dd is not None and hit2x >= 0.5 and abs(dd) <= 0.30 else 0.0
    penalty = 0.0 if dd is None else max(0.0, math.exp(15 * (abs(dd) - 0.30)) - 1)
    return conf * (base + tail) * (1 + 0.8 * fast) + conf * (discipline - penalty)


def caller_stats(rows: Sequence[Row], min_trades: int = 10) -> list[Row]:
    """The caller table of baseline rows, best first."""
    found: list[Row] = []
    for name in sorted({row["caller"] for row in rows if row["caller"] and row["caller"].strip()}):
        every = [row for row in rows if row["caller"] == name]
        ok = [row for row in every if row["status"] == "ok"]
        if len(ok) < min_trades:
            continue
        values = {column: [row[column] for row in ok if row[column] is not None] for column in rows[0]}
        stats: Row = {"caller": name, "n": len(ok)}
        stats["n_censored"] = sum(row["censoring"] == "lower_bound" for row in ok)
        stats["n_excluded"] = len(every) - len(ok)
        stats |= {f"n_{status}": sum(row["status"] == status for row in every) for status in STATUSES[1:]}
        for column, q in (("median", 0.5), ("p25", 0.25), ("p75", 0.75), ("p95", 0.95)):
            stats[f"{column}_ath_mult"] = quantile(values["ath_mult"], q)
        for multiple, _ in MULTIPLES:
            stats[f"hit_{multiple}"] = len(values[f"time_to_{multiple}_s"]) / len(ok)
        for column in ("time_to_2x_s", "dd_initial", "dd_overall", "dd_pre2x", "ret_end_pct"):
            stats[f"median_{column}"] = quantile(values[column], 0.5)
        ath = stats["median_ath_mult"], stats["p75_ath_mult"], stats["p95_ath_mult"]
        stats["score"] = score(len(ok), stats["hit_2x"], ath, stats["median_time_to_2x_s"], stats["median_dd_pre2x"])
        found.append(stats)
    found.sort(key=lambda stats: (-stats["score"], stats["caller"]))
    return [stats | {"rank": rank} for rank, stats in enumerate(found, 1)]
