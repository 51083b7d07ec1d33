"""Callers: what the alerts of each caller came to, and a score to rank them.

Over a caller's alerts with status `ok`; callers with at least `min_trades` of them. Alerts whose caller is null or
blank belong to nobody. `n_censored` of the `n` are lower bounds (`censoring`) and count; `n_excluded` alerts are not
`ok` and do not, and `n_missing + n_bad_entry + n_late_entry` says why. Quantiles interpolate linearly
(`statistics.quantile`); medians of nullable columns are over the rows that have a value. `hit_Nx` is the share of the n
that reached N times the entry price.

    score = conf * (base + tail) * (1 + 0.8 * fast) + conf * (discipline - penalty)

    conf       = sqrt(n / (n + 50))
    base       = max(median_ath - 1, 0) * hit_2x
    tail       = 0.15 * max(p75 - median, 0) + 0.10 * max(p95 - p75, 0)     of ath_mult
    fast       = exp(-median minutes to 2x / 60)         0 where 2x was never reached
    discipline = 0.6 if hit_2x >= 0.5 and |dd| <= 0.30, else 0
    penalty    = max(0, exp(15 * (|dd| - 0.30)) - 1)

dd is the median `dd_pre2x`; where 2x was never reached there is none, and discipline and penalty are 0. Every constant
is a field of CallerConfig. Rank 1 is the highest score; equal scores rank by name.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest.config import CallerConfig
from lake_pipeline.backtest.statistics import median, quantile

__all__ = ["CALLER_SCHEMA", "compute_caller_stats", "score_of"]

_HITS: Final = ("2x", "3x", "4x", "5x", "10x")

CALLER_SCHEMA: Final = pa.schema(
    [
        ("rank", pa.int64()),
        ("caller", pa.string()),
        ("score", pa.float64()),
        ("n", pa.int64()),
        ("n_censored", pa.int64()),
        ("n_excluded", pa.int64()),
        ("n_missing", pa.int64()),
        ("n_bad_entry", pa.int64()),
        ("n_late_entry", pa.int64()),
        ("median_ath_mult", pa.float64()),
        ("p25_ath_mult", pa.float64()),
        ("p75_ath_mult", pa.float64()),
        ("p95_ath_mult", pa.float64()),
        *((f"hit_{name}", pa.float64()) for name in _HITS),
        ("median_time_to_2x_s", pa.float64()),
        ("median_dd_initial", pa.float64()),
        ("median_dd_overall", pa.float64()),
        ("median_dd_pre2x", pa.float64()),
        ("median_ret_end_pct", pa.float64()),
    ]
)


def compute_caller_stats(baseline: pa.Table, config: CallerConfig = CallerConfig()) -> pa.Table:
    """One row of CALLER_SCHEMA a caller, by rank, from a baseline table."""
    used = ["caller", "status", "censoring", "ath_mult", "dd_initial", "dd_overall", "dd_pre2x", "ret_end_pct"]
    by_caller: dict[str, list[dict[str, Any]]] = {}
    for row in baseline.select([*used, *(f"time_to_{name}_s" for name in _HITS)]).to_pylist():
        if (row["caller"] or "").strip():
            by_caller.setdefault(row["caller"], []).append(row)
    rows = [_statistics(caller, alerts, config) for caller, alerts in by_caller.items()]
    rows = [row for row in rows if row["n"] >= config.min_trades]
    rows.sort(key=lambda row: (-row["score"], row["caller"].encode()))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    return pa.Table.from_pylist(rows, schema=CALLER_SCHEMA)


def _statistics(caller: str, alerts: list[dict[str, Any]], config: CallerConfig) -> dict[str, Any]:
    ok = [row for row in alerts if row["status"] == "ok"]
    statuses = Counter(row["status"] for row in alerts)

    def values(name: str) -> list[float]:
        return [row[name] for row in ok if row[name] is not None]

    ath = values("ath_mult")
    statistics: dict[str, Any] = {
        "caller": caller,
        "n": len(ok),
        "n_censored": sum(row["censoring"] == "lower_bound" for row in ok),
        "n_excluded": len(alerts) - len(ok),
        **{f"n_{status}": statuses[status] for status in ("missing", "bad_entry", "late_entry")},
        "median_ath_mult": median(ath),
        "p25_ath_mult": quantile(ath, 0.25),
        "p75_ath_mult": quantile(ath, 0.75),
        "p95_ath_mult": quantile(ath, 0.95),
        **{f"hit_{name}": len(values(f"time_to_{name}_s")) / len(ok) if ok else None for name in _HITS},
        "median_time_to_2x_s": median(values("time_to_2x_s")),
        **{f"median_{name}": median(values(name)) for name in ("dd_initial", "dd_overall", "dd_pre2x", "ret_end_pct")},
    }
    return {**statistics, "score": score_of(statistics, config)}


def score_of(statistics: dict[str, Any], config: CallerConfig) -> float:
    """The score of a caller's statistics, by the formula in this module's docstring; 0 without an `ok` alert."""
    n = statistics["n"]
    middle, p75, p95 = (statistics[f"{name}_ath_mult"] for name in ("median", "p75", "p95"))
    if n == 0 or middle is None:
        return 0.0
    hit_2x, time_to_2x_s, drawdown = (statistics[name] for name in ("hit_2x", "median_time_to_2x_s", "median_dd_pre2x"))
    confidence = math.sqrt(n / (n + config.confidence_n))
    base = max(middle - 1, 0.0) * hit_2x
    tail = config.tail_p75_weight * max(p75 - middle, 0.0) + config.tail_p95_weight * max(p95 - p75, 0.0)
    fast = 0.0 if time_to_2x_s is None else math.exp(-(time_to_2x_s / 60) / config.fast_minutes)
    discipline = penalty = 0.0
    if drawdown is not None:
        if hit_2x >= config.discipline_hit_2x and abs(drawdown) <= config.drawdown_limit:
            discipline = config.discipline_bonus
        penalty = max(0.0, math.exp(config.penalty_steepness * (abs(drawdown) - config.drawdown_limit)) - 1)
    upside: float = confidence * (base + tail) * (1 + config.fast_weight * fast)
    return upside + confidence * (discipline - penalty)
