"""Ad-hoc exports: candles of some mints, or of each alert, straight to files. No run, no seal.

The rows follow the same rules as a run's: one per (mint, ts), sanity checked, sorted.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from lake_pipeline.core.alerts import END_OF_TIME_MS
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.core.candles import candle_keys, candle_table, reconcile
from lake_pipeline.core.canonical import canonical_json, sha256_hex, table_digest
from lake_pipeline.core.plan import build_plan, group_buckets
from lake_pipeline.core.schemas import SLICE_SCHEMA
from lake_pipeline.core.spec import LAKE_VERSION, RunSpec
from lake_pipeline.errors import ConfigError
from lake_pipeline.io.parquet import table_bytes
from lake_pipeline.io.source import CandleSource, SliceRequest
from lake_pipeline.io.store import LocalStore

__all__ = ["AdhocResult", "alert_file_name", "export_alert_slices", "export_slice", "parse_instant"]


@dataclass(frozen=True)
class AdhocResult:
    """What was written. `source_rows == rows + duplicates + rejected` for distinct windows."""

    path: str
    files: int
    rows: int
    duplicates: int
    rejected: int
    empty: tuple[str, ...]


def parse_instant(name: str, text: str) -> int:
    """ISO 8601 as epoch ms; without a zone it is UTC, without a time midnight. Raises ConfigError."""
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--{name} {text!r} is not a time: write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ") from error
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=dt.UTC)
    return (instant - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def export_slice(
    source: CandleSource,
    mints: Sequence[str],
    from_ms: int,
    to_ms: int,
    spec: RunSpec,
    *,
    output: Path | None = None,
    partition_by_mint: bool = False,
) -> AdhocResult:
    """Candles of `mints` in `[from_ms, to_ms)` as one Parquet file, or a folder with a file for each mint.

    The default name carries a fingerprint of everything that changes the rows. A file of that name is
    replaced. `empty` names mints without a candle there, for which no file is written in a folder.
    """
    wanted = sorted(set(mints), key=str.encode)
    if not wanted or not all(wanted):
        raise ConfigError("name at least one mint, and none of them empty")
    # No candle lies outside these years, and file names and keys hold no others.
    from_ms, to_ms = max(from_ms, 0), min(to_ms, END_OF_TIME_MS)
    if from_ms >= to_ms:
        raise ConfigError("the time range is empty: --from must be before --to")
    fingerprint = _fingerprint(source, spec, {"mints": wanted, "from_ms": from_ms, "to_ms": to_ms})
    count = len(wanted)
    request = SliceRequest(
        spec, wanted, np.arange(count), np.full(count, from_ms, np.int64), np.full(count, to_ms, np.int64)
    )
    result = reconcile(source.read(request), count)
    table = candle_table(result.candles, pa.array(wanted, pa.string()), spec.interval_s)
    bounds = np.searchsorted(result.candles.keys, candle_keys(np.arange(count + 1), np.full(count + 1, from_ms)))
    sizes = np.diff(bounds).tolist()
    stem = f"slice_{_day(from_ms)}_{_day(to_ms)}_{fingerprint}"
    if partition_by_mint:
        target = output or Path("slices", stem)
        for mint, start, size in zip(wanted, bounds.tolist(), sizes, strict=False):
            if size:
                _write(target / f"token_address={quote(mint, safe='')}" / "data.parquet", table.slice(start, size))
    else:
        target = output or Path("slices", f"{stem}.parquet")
        _write(target, table)
    return AdhocResult(
        path=str(target),
        files=sum(size > 0 for size in sizes) if partition_by_mint else 1,
        rows=table.num_rows,
        duplicates=int(result.duplicates.sum()),
        rejected=len(result.rejected),
        empty=tuple(mint for mint, size in zip(wanted, sizes, strict=True) if not size),
    )


def export_alert_slices(
    source: CandleSource,
    alerts: pa.Table,
    spec: RunSpec,
    *,
    output: Path | None = None,
    max_rows_in_flight: int,
    on_alert: Callable[[], None] = lambda: None,
) -> AdhocResult:
    """One Parquet file for each alert's window in a folder, empty ones included; `empty` names those alerts.

    Each mint's windows are read once, however many alerts share them. `rows` counts what is in the files,
    so that a candle in two windows counts twice.
    """
    plan = build_plan(alerts, spec)
    fingerprint = _fingerprint(source, spec, {"alerts": table_digest(alerts)})
    target = output or Path("slices", f"alerts_{spec.interval}_{spec.window}_{fingerprint}")
    ids = alerts.column("alert_id").to_pylist()
    rows = duplicates = rejected = 0
    empty: list[str] = []
    for group in group_buckets(plan, ALL_BUCKETS, max_rows_in_flight):
        for indices in group.slices:
            result = reconcile(source.read(SliceRequest.of(plan, indices)), len(indices))
            duplicates += int(result.duplicates.sum())
            rejected += len(result.rejected)
            mints = pa.array([plan.mints[index] for index in indices], pa.string())
            table = candle_table(result.candles, mints, spec.interval_s)
            for local, index in enumerate(indices):
                for row in plan.alert_rows[plan.alert_offsets[index] : plan.alert_offsets[index + 1]].tolist():
                    window = np.concatenate(spec.windows(plan.anchors[[row]]))
                    low, high = np.searchsorted(result.candles.keys, candle_keys(np.full(2, local), window)).tolist()
                    _write(target / alert_file_name(ids[row], plan.mints[index]), table.slice(low, high - low))
                    rows += high - low
                    if high == low:
                        empty.append(ids[row])
                    on_alert()
    return AdhocResult(str(target), alerts.num_rows, rows, duplicates, rejected, tuple(sorted(empty)))


def alert_file_name(alert_id: str, mint: str) -> str:
    """`alert_<alert_id>_<mint[:8]>.parquet`, with characters unsafe in a file name replaced.

    Where anything was replaced or cut, a hash of the id and mint is added, so that two alerts never share a name.
    """
    plain = f"{alert_id}_{mint[:8]}"
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", plain)[:120]
    digest = hashlib.sha256("\0".join((alert_id, mint)).encode()).hexdigest()[:12]
    suffix = "" if safe == plain else f"_{digest}"
    return f"alert_{safe}{suffix}.parquet"


def _fingerprint(source: CandleSource, spec: RunSpec, selection: dict[str, object]) -> str:
    values = {"lake_version": LAKE_VERSION, "source": source.identity(), "spec": spec.canonical(), **selection}
    return sha256_hex(canonical_json(values))[:12]


def _write(path: Path, table: pa.Table) -> None:
    LocalStore(path.parent).replace(path.name, table_bytes(table.cast(SLICE_SCHEMA).combine_chunks()))


def _day(ts_ms: int) -> str:
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ts_ms)).strftime("%Y%m%d")
