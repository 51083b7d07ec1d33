"""A sealed run made again from its source, into a scratch folder, and compared bucket by bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lake_pipeline.core.buckets import ALL_BUCKETS, check_buckets
from lake_pipeline.core.manifest import Receipt
from lake_pipeline.diff import CandleDiff, MintDiff, diff_candles
from lake_pipeline.errors import RunNotSealed, VerificationFailed
from lake_pipeline.export import DEFAULT_MAX_ROWS_IN_FLIGHT, BucketResult, export_buckets
from lake_pipeline.io import layout
from lake_pipeline.io.source import CandleSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run, load_run

__all__ = ["BucketChange", "Reproduction", "reproduce_run"]


@dataclass(frozen=True)
class BucketChange:
    """A bucket whose receipt is another today. `ledger` names the counts that differ, as `name: then -> now`.

    `same_candles`: what differs is only what was left out (duplicates, rejected candles), not what was written.
    """

    bucket: str
    same_candles: bool
    ledger: list[str]


@dataclass(frozen=True)
class Reproduction:
    """What the source gives today against what was sealed: A is the sealed run, B is today."""

    run_id: str
    buckets: int
    changed: list[BucketChange]
    mints: list[MintDiff]
    candles: list[CandleDiff]

    @property
    def identical(self) -> bool:
        """Whether every receipt, and with it every byte, came out the same."""
        return not self.changed


def reproduce_run(
    run: Run,
    source: CandleSource,
    buckets: Sequence[str] = ALL_BUCKETS,
    *,
    scratch: str | Path | None = None,
    threads: int = 2,
    max_rows_in_flight: int = DEFAULT_MAX_ROWS_IN_FLIGHT,
    max_candles: int = 1000,
    on_bucket: Callable[[BucketResult], None] = lambda result: None,
) -> Reproduction:
    """Export these buckets of a sealed run again and compare; the run is only read.

    `scratch` is a folder for the copy, which is removed at the end (default: the system's temporary folder).
    `candles` of the result are at most `max_candles`; `mints` count them all. Raises RunNotSealed, RunMismatch when
    the source is another one than the run's, and VerificationFailed when the sealed files are damaged themselves.
    """
    if not run.sealed:
        raise RunNotSealed(f"run {run.run_id!r} is not sealed: there is nothing to compare with yet")
    check_buckets(buckets)
    run.require(run.spec, source.identity())
    sealed = run.bucket_states(buckets, threads)
    damaged = [f"bucket {state.bucket}: {state.problem}" for state in sealed if not state.receipt]
    if damaged:
        raise VerificationFailed.of(run.run_id, damaged)
    changed: list[BucketChange] = []
    mints: list[MintDiff] = []
    candles: list[CandleDiff] = []
    with tempfile.TemporaryDirectory(prefix="lake-reproduce-", dir=scratch) as folder:
        lake = LocalStore(Path(folder))
        store = lake.sub(layout.run_folder(run.run_id))
        store.create(layout.RUN_RECORD, run.record.to_bytes())
        store.adopt(run.store, layout.ALERTS)
        again = load_run(lake, run.run_id)
        export_buckets(
            again, source, buckets, threads=threads, max_rows_in_flight=max_rows_in_flight, on_bucket=on_bucket
        )
        for then, now in zip(sealed, again.bucket_states(buckets, threads), strict=True):
            if then.receipt is None or now.receipt is None:
                raise AssertionError("both were checked")
            if then.receipt == now.receipt:
                continue
            same = [file.sha256 for file in then.receipt.files] == [file.sha256 for file in now.receipt.files]
            changed.append(BucketChange(then.bucket, same, _ledger_changes(then.receipt, now.receipt)))
            if not same:
                of_mints, of_candles = diff_candles(
                    then.bucket,
                    run.candles(then.receipt.files),
                    again.candles(now.receipt.files),
                    max_candles - len(candles),
                )
                mints += of_mints
                candles += of_candles
    return Reproduction(run.run_id, len(buckets), changed, mints, candles)


def _ledger_changes(then: Receipt, now: Receipt) -> list[str]:
    before, after = then.ledger.model_dump(), now.ledger.model_dump()
    return [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
