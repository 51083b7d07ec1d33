"""A result as rows of the alerts database: dimension, facts and metrics, keyed by `result_key`.

    baseline.runs_d, bt.runs_d    one row a result: the run, the selection, parameters and code (JSON)
    baseline.alert_results_f      the baseline, one row an alert
    baseline.caller_stats_f       the caller table
    bt.alert_outcomes_f           the trades, one row an alert
    bt.metrics_f                  the summary, one row a caller (null for all) and case (case, best_case, worst_case)

Times are TIMESTAMP in UTC. A key stands for content: two runs with the same content share their rows, under the name of
the run that was stored first.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from lake_pipeline.backtest.baseline import STATUSES
from lake_pipeline.backtest.kernels import REASONS
from lake_pipeline.backtest.results import BaselineResult, Result, StrategyResult
from lake_pipeline.backtest.summary import CASES, FIGURES
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io.results_db import insert_once
from lake_pipeline.run import Run

__all__ = ["runs_row", "store_in_database"]

_RUNS_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("run_id", "content_sha256", "interval", "window", "chain")]
    + [(name, pa.string()) for name in ("selection", "parameters", "code")]
    + [("alerts", pa.int64())]
)
_METRICS_SCHEMA: Final = pa.schema(
    [
        ("caller", pa.string()),
        ("case", pa.string()),
        ("alerts", pa.int64()),
        ("n", pa.int64()),
        *((f"status_{name}", pa.int64()) for name in STATUSES),
        *((f"exit_{name}", pa.int64()) for name in REASONS),
        ("ambiguous_share", pa.float64()),
        *((name, pa.int64() if name == "max_losing_streak" else pa.float64()) for name in FIGURES),
    ]
)


def store_in_database(path: str, run: Run, result: BaselineResult | StrategyResult) -> bool:
    """Put a result into a DuckDB file in one transaction; False where it is there already and nothing was changed.

    Raises ConfigError and StoreError as `io.results_db.insert_once` does.
    """
    if isinstance(result, BaselineResult):
        baseline = result.baseline()
        tables = {
            "baseline.runs_d": runs_row(run, result, baseline.num_rows),
            "baseline.alert_results_f": _plain_times(baseline),
            "baseline.caller_stats_f": result.caller_stats(),
        }
    else:
        trades = result.trades()
        tables = {
            "bt.runs_d": runs_row(run, result, trades.num_rows),
            "bt.alert_outcomes_f": _plain_times(trades),
            "bt.metrics_f": _metrics(result.summary()),
        }
    return insert_once(path, result.key, tables)


def runs_row(run: Run, result: Result, alerts: int) -> pa.Table:
    """What a result was computed of, in one row: the begin of every table of runs."""
    identity = result.record.identity
    row = {
        "run_id": run.run_id,
        "content_sha256": identity["content_sha256"],
        "interval": run.spec.interval,
        "window": run.spec.window,
        "chain": run.spec.chain,
        **{name: canonical_json(identity[name]).decode() for name in ("selection", "parameters", "code")},
        "alerts": alerts,
    }
    return pa.Table.from_pylist([row], schema=_RUNS_SCHEMA)


def _plain_times(table: pa.Table) -> pa.Table:
    """Times without a zone: DuckDB would show the others in the reader's own."""
    fields = [
        pa.field(field.name, pa.timestamp("us")) if pa.types.is_timestamp(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _metrics(summary: dict[str, Any]) -> pa.Table:
    rows = []
    for caller, figures in ((None, summary["all"]), *summary["callers"].items()):
        counts = {
            "caller": caller,
            **{name: figures[name] for name in ("alerts", "n", "ambiguous_share")},
            **{f"status_{name}": count for name, count in figures["statuses"].items()},
            **{f"exit_{name}": count for name, count in figures["exit_reasons"].items()},
        }
        rows += [{**counts, "case": case, **figures[case]} for case in CASES]
    return pa.Table.from_pylist(rows, schema=_METRICS_SCHEMA)
