"""The few figures of a baseline that a person looks at first, and the order of those of a strategy."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest.baseline import STATUSES
from lake_pipeline.backtest.statistics import median

__all__ = ["CASES", "FIGURES", "summarise_baseline"]

# Of `trades.summarise`, as tables show them: the table's own order inside ambiguous candles, the better and the worse.
CASES: Final = ("case", "best_case", "worst_case")
FIGURES: Final = (
    "win_rate",
    "mean_ret",
    "median_ret",
    "profit_factor",
    "mean_r",
    "median_r",
    "max_losing_streak",
    "final_equity",
    "max_drawdown",
)

_MEDIANS: Final = ("ath_mult", "time_to_2x_s", "dd_initial", "dd_overall", "ret_end_pct")
_HITS: Final = ("2x", "3x", "4x", "5x", "10x")


def summarise_baseline(baseline: pa.Table) -> dict[str, Any]:
    """Counts, medians and hit rates of a baseline table as JSON values.

    Medians and hit rates are over the `ok` alerts, a median over those of them that have a value; None of nothing.
    `censored` of the `ok` alerts are lower bounds: their candles end before the horizon.
    """
    rows = baseline.select(
        ["caller", "status", "censoring", *_MEDIANS, *(f"time_to_{name}_s" for name in _HITS if name != "2x")]
    ).to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    statuses = Counter(row["status"] for row in rows)
    return {
        "alerts": len(rows),
        "statuses": {name: statuses[name] for name in STATUSES},
        "censored": sum(row["censoring"] == "lower_bound" for row in ok),
        "excluded": len(rows) - len(ok),
        "without_caller": sum(not (row["caller"] or "").strip() for row in rows),
        "medians": {name: median([row[name] for row in ok if row[name] is not None]) for name in _MEDIANS},
        "hit_rates": {
            name: sum(row[f"time_to_{name}_s"] is not None for row in ok) / len(ok) if ok else None for name in _HITS
        },
    }
