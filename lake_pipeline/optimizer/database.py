"""A search as rows of the alerts database, keyed by `result_key`.

optimizer.runs_d      one row a search: the run, the selection, parameters and code (JSON), trials, the winner (JSON)
optimizer.trials_f    the trials, one row a fold and trial
"""

from __future__ import annotations

import pyarrow as pa

from lake_pipeline.backtest.database import runs_row
from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io.results_db import insert_once
from lake_pipeline.optimizer.results import OptimizeResult
from lake_pipeline.run import Run

__all__ = ["store_in_database"]


def store_in_database(path: str, run: Run, result: OptimizeResult) -> bool:
    """Put a search into a DuckDB file in one transaction; False where it is there already and nothing was changed.

    Raises ConfigError and StoreError as `io.results_db.insert_once` does.
    """
    trials, best = result.trials(), result.best()
    row = runs_row(run, result, best["alerts"])
    row = row.append_column("trials", pa.array([trials.num_rows], pa.int64()))
    winner = None if best["winner"] is None else canonical_json(best["winner"]).decode()
    row = row.append_column("winner", pa.array([winner], pa.string()))
    return insert_once(path, result.key, {"optimizer.runs_d": row, "optimizer.trials_f": trials})
