"""Every trial ever evaluated on a run, across invocations; and what an interrupted search goes on from.

    <data_root>/results/run_id=<id>/ledger/search=<key>/<number>-<digest>.parquet

A file for each batch of a search, written when it was evaluated, its rows those of `trials.parquet`. `<digest>` is 12
hex digits of the SHA-256 of the file itself: the same batch is the same file, whoever writes it and how often, and a
file that is cut short or edited is not the one its name says. So writers need no lock, and repeating a search adds
nothing.

A trial is a strategy on a selection, a horizon and a train period: `trial_id` says which. Each counts once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from lake_pipeline.core.canonical import sha256_hex
from lake_pipeline.io import layout
from lake_pipeline.io.parquet import parquet_table, table_bytes
from lake_pipeline.io.store import Store

__all__ = ["Ledger", "TrialCount", "count_trials"]

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"([0-9]{6,})-([0-9a-f]{12})\.parquet")


@dataclass(frozen=True)
class TrialCount:
    """Different trials, and the variance (n - 1) of the Sharpe ratios of those that have one."""

    trials: int
    sharpe_variance: float


def count_trials(tables: Sequence[pa.Table]) -> TrialCount:
    """The different trials of these tables with `trial_id` and `train_sharpe`."""
    sharpes: dict[str, float | None] = {}
    for table in tables:
        ids, values = (table.column(name).to_pylist() for name in ("trial_id", "train_sharpe"))
        sharpes |= dict(zip(ids, values, strict=True))
    # In the order of ids, so that the sum does not depend on who wrote first.
    known = [value for _, value in sorted(sharpes.items()) if value is not None]
    return TrialCount(len(sharpes), float(np.var(known, ddof=1)) if len(known) > 1 else 0.0)


class Ledger:
    """The ledger of one run."""

    def __init__(self, lake: Store, run_id: str) -> None:
        self._store = lake.sub(layout.ledger_folder(run_id))

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._store.uri

    def add(self, key: str, number: int, trials: pa.Table) -> None:
        """Keep batch `number` (from 0) of the search with this key."""
        data = table_bytes(trials)
        self._store.replace(f"search={key}/{number:06d}-{sha256_hex(data)[:12]}.parquet", data)

    def batches(self, key: str, schema: pa.Schema) -> dict[int, pa.Table]:
        """The batches of a search that are there and as they were written."""
        found = {}
        for path in self._files(f"search={key}"):
            table = self._read(path)
            match = _NAME.fullmatch(path.rpartition("/")[2])
            if table is not None and match and table.schema.equals(schema):
                found[int(match[1])] = table
        return found

    def count(self, more: Sequence[pa.Table] = ()) -> TrialCount:
        """The different trials of all searches, and of these tables."""
        tables = [self._read(path, ["trial_id", "train_sharpe"]) for path in self._files("")]
        return count_trials([*(table for table in tables if table is not None), *more])

    def _files(self, folder: str) -> list[str]:
        return [
            file.path
            for file in self._store.files(folder)
            if file.path.startswith("search=") and _NAME.fullmatch(file.path.rpartition("/")[2])
        ]

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table | None:
        data = self._store.read(path)
        match = _NAME.fullmatch(path.rpartition("/")[2])
        if not match or sha256_hex(data)[:12] != match[2]:
            logger.warning("%s/%s is damaged, its trials are not counted and not used", self._store.uri, path)
            return None
        # Its name says that these are the bytes that were written, so it is a table of trials.
        return parquet_table(data, columns)
