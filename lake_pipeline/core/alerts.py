"""Normalising alerts: whatever table came in, one sorted table of usable alerts and one of rejected rows.

What belongs here: column names, times, identity and the reasons for a rejection. Reading files and
databases belongs in `io.alerts`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.core.canonical import table_digest
from lake_pipeline.core.chains import canonical_chain
from lake_pipeline.core.schemas import ALERTS_SCHEMA, REJECTED_ALERTS_SCHEMA
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import InputError

__all__ = [
    "COLUMN_NAMES",
    "END_OF_TIME_MS",
    "FIRST_MILLISECOND_VALUE",
    "NormalisedAlerts",
    "RawAlerts",
    "normalise_alerts",
    "parse_text_time",
]

# Role -> accepted column names, compared without regard to case, best first.
COLUMN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "alert_id": ("alert_id", "id"),
    "mint": ("mint", "token_address", "address"),
    "ts": ("ts", "timestamp", "ts_ms", "alert_ts_ms", "trigger_ts_ms", "call_ts_ms"),
    "caller": ("caller", "caller_name", "trigger_from_name"),
    "chain": ("chain",),
}
_ROLES: Final = tuple(COLUMN_NAMES)
# Numbers from here on are milliseconds (1973-03-03), below it seconds (up to the year 5138).
FIRST_MILLISECOND_VALUE: Final = 100_000_000_000
END_OF_TIME_MS: Final = 10_413_792_000_000  # 2300-01-01, the end of ClickHouse's DateTime64
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Arrow's units of time as a fraction of milliseconds.
_UNIT_MS: Final = {"day": (86_400_000, 1), "s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?", re.ASCII)
_COMPACT_DATE = re.compile(r"(19|20|21|22)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])", re.ASCII)

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RawAlerts:
    """Alerts as they were read: one table, and the rows that could not even be put into it.

    `row_numbers[i]` is the 1-based data row (a header does not count) of `table[i]`. `unreadable` maps
    the other rows' numbers to (raw text, reason).
    """

    table: pa.Table
    row_numbers: Sequence[int]
    unreadable: Mapping[int, tuple[str, str]]

    @property
    def rows(self) -> int:
        """All rows that came in."""
        return int(self.table.num_rows) + len(self.unreadable)


@dataclass(frozen=True)
class NormalisedAlerts:
    """`rows_in == alerts.num_rows + rejected.num_rows + outside_range`, always."""

    alerts: pa.Table
    rejected: pa.Table
    rows_in: int
    outside_range: int

    @property
    def digest(self) -> str:
        """SHA-256 over the normalised alerts' values."""
        return table_digest(self.alerts)


def normalise_alerts(raw: RawAlerts, spec: RunSpec) -> NormalisedAlerts:
    """Usable alerts sorted by (ts, alert_id), and rejected rows with their reasons, sorted by row number.

    An alert without an id gets one from its content; one without a chain takes the run's. Raises
    InputError for a missing column, a duplicate id, or when no usable alert remains.
    """
    columns = _find_columns(raw.table)
    text = {role: _text_column(raw.table, columns.get(role)) for role in _ROLES}
    mints = _stripped(text["mint"])
    callers = _stripped(text["caller"])
    chains = [canonical_chain(chain) if chain else spec.chain for chain in _stripped(text["chain"])]
    ts_ms, reasons = _parse_times(raw.table.column(columns["ts"]), columns["ts"])
    for row, chain in enumerate(chains):
        if chain != spec.chain:
            reasons.setdefault(row, f"chain {chain!r} is not the run's {spec.chain!r}")
    for row, mint in enumerate(mints):
        if not mint:
            reasons[row] = "mint is empty"

    from_ms, to_ms = spec.range_ms
    usable = [row for row in range(raw.table.num_rows) if row not in reasons]
    times = ts_ms.tolist()
    kept = [
        row for row in usable if (from_ms is None or times[row] >= from_ms) and (to_ms is None or times[row] < to_ms)
    ]
    ids = _alert_ids(usable, _stripped(text["alert_id"]), mints, ts_ms, callers, chains, raw.row_numbers)
    rejected = _rejected_table(raw, text, reasons)
    if not kept:
        raise InputError(_nothing_left(raw.rows, len(usable), rejected, spec))
    kept.sort(key=lambda row: (times[row], ids[row].encode()))
    alerts = pa.table(
        {
            "alert_id": [ids[row] for row in kept],
            "mint": [mints[row] for row in kept],
            "ts": pa.array(ts_ms[kept], pa.int64()).cast(ALERTS_SCHEMA.field("ts").type),
            "caller": [callers[row] for row in kept],
            "chain": [chains[row] for row in kept],
        },
        schema=ALERTS_SCHEMA,
    )
    return NormalisedAlerts(
        alerts=alerts,
        rejected=rejected,
        rows_in=raw.rows,
        outside_range=len(usable) - len(kept),
    )


def _rejected_table(raw: RawAlerts, text: Mapping[str, pa.ChunkedArray], reasons: Mapping[int, str]) -> pa.Table:
    """The rows that have a reason, with their raw values, and those that could not be read, by row number."""
    rows = sorted(reasons)
    indices = pa.array(rows, pa.int64())
    unusable = pa.table(
        {
            "row_number": [raw.row_numbers[row] for row in rows],
            **{role: text[role].take(indices) for role in _ROLES},
            "reason": [reasons[row] for row in rows],
        },
        schema=REJECTED_ALERTS_SCHEMA,
    )
    if not raw.unreadable:
        return unusable
    unreadable = [
        {"row_number": number, "mint": line, "reason": reason} for number, (line, reason) in raw.unreadable.items()
    ]
    return pa.concat_tables([unusable, pa.Table.from_pylist(unreadable, schema=REJECTED_ALERTS_SCHEMA)]).sort_by(
        "row_number"
    )


def _find_columns(table: pa.Table) -> dict[str, str]:
    """Role -> the input's own column name; the best accepted name wins."""
    by_name: dict[str, str] = {}
    for name in table.column_names:
        by_name.setdefault(name.strip().lower(), name)
    found = {}
    for role, names in COLUMN_NAMES.items():
        match = next((by_name[name] for name in names if name in by_name), None)
        if match is not None:
            found[role] = match
    for role in ("mint", "ts"):
        if role not in found:
            raise InputError(
                f"the alerts have no {role} column: name one of {', '.join(COLUMN_NAMES[role])}. "
                f"Columns found: {', '.join(map(repr, table.column_names)) or 'none'}"
            )
    return found


def _text_column(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    """A column as strings, all null where the input has no such column."""
    if name is None:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    column = table.column(name)
    if pa.types.is_nested(column.type):
        raise InputError(f"alerts column {name!r} holds {column.type} values; one plain value a row is needed")
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"alerts column {name!r} ({column.type}) cannot be read as text: {error}") from error


def _stripped(column: pa.ChunkedArray) -> list[str | None]:
    """Values without surrounding white space, each distinct one held once; None for null and blank ones."""
    values: list[str | None] = []
    for chunk in column.dictionary_encode().chunks:
        distinct = [value.strip() or None for value in chunk.dictionary.to_pylist()]
        values += [None if index is None else distinct[index] for index in chunk.indices.to_pylist()]
    return values


def _parse_times(column: pa.ChunkedArray, name: str) -> tuple[Int64Array, dict[int, str]]:
    """Epoch milliseconds per row (0 where unusable) and the reasons of the unusable rows."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_ms = name.strip().lower().endswith("_ms")
    values: list[int | None] = []
    reasons: dict[int, str] = {}
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        times, per = _UNIT_MS["day" if pa.types.is_date32(column.type) else getattr(column.type, "unit", "ms")]
        numbers = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64()).to_pylist()
        # In Python's integers: Arrow's casts between units refuse a whole column for one instant out of range.
        # Floor, not truncate, so that no instant moves into a later millisecond.
        values = [None if value is None else value * times // per for value in numbers]
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        for row, text in enumerate(column.to_pylist()):
            try:
                values.append(parse_text_time(text, is_ms))
            except ValueError as error:
                values.append(0)
                reasons[row] = str(error)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = [_number_to_ms(value, is_ms) for value in column.to_pylist()]
    else:
        raise InputError(
            f"alerts column {name!r} holds {column.type} values; times are ISO 8601 text, "
            "epoch seconds or milliseconds, or datetimes"
        )
    result = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if row in reasons:
            continue
        if value is None:
            reasons[row] = "time is empty"
        elif not 0 <= value < END_OF_TIME_MS:
            reasons[row] = "time is outside 1970-01-01 .. 2299-12-31 (epoch micro- or nanoseconds are not accepted)"
        else:
            result[row] = value
    return result, reasons


def _number_to_ms(value: Any, is_ms: bool) -> int | None:
    """An epoch number as ms; NaN is empty, infinity is out of any range."""
    if value is None or value != value:
        return None
    if value in (float("inf"), float("-inf")):
        return -1
    ms = value if is_ms or abs(value) >= FIRST_MILLISECOND_VALUE else value * 1000
    # A float of seconds is a hair off its millisecond: rounded to microseconds first, then floored.
    return math.floor(round(ms, 3) if isinstance(ms, float) else ms)


def parse_text_time(text: str | None, is_ms: bool) -> int | None:
    """Text as epoch ms; None where blank. Raises ValueError with the reason."""
    text = (text or "").strip()
    if not text:
        return None
    if not is_ms and _COMPACT_DATE.fullmatch(text):
        raise ValueError(f"time {text!r} reads as a date and as epoch seconds; write it as YYYY-MM-DD")
    if len(text) <= 40 and _NUMBER.fullmatch(text):
        whole, _, fraction = text.partition(".")
        # Text keeps its decimals exactly; a float would move 0.1 ms here and there.
        return _number_to_ms(int(whole) if not fraction.strip("0") else Decimal(text), is_ms)
    try:
        instant = dt.datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(
            f"time {shown!r} does not parse: write ISO 8601, epoch seconds or epoch milliseconds"
        ) from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=dt.UTC)
    return (instant - _EPOCH) // dt.timedelta(milliseconds=1)


def _alert_ids(
    rows: Sequence[int],
    given: Sequence[str | None],
    mints: Sequence[str | None],
    ts_ms: Int64Array,
    callers: Sequence[str | None],
    chains: Sequence[str],
    row_numbers: Sequence[int],
) -> dict[int, str]:
    """Row -> alert_id. Rows without one get a hash of their content, with -2, -3 ... for equal rows."""
    ids: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for row in rows:
        alert_id = given[row]
        if alert_id is None:
            content = "\0".join([mints[row] or "", str(ts_ms[row]), callers[row] or "", chains[row]])
            alert_id = "a" + hashlib.sha256(content.encode()).hexdigest()[:16]
            seen[alert_id] += 1
            if seen[alert_id] > 1:
                alert_id = f"{alert_id}-{seen[alert_id]}"
        ids[row] = alert_id
    counts = Counter(ids.values())
    duplicates = [alert_id for alert_id, count in counts.items() if count > 1]
    if duplicates:
        shown = [
            f"{alert_id!r} in rows {_shown([row_numbers[row] for row in rows if ids[row] == alert_id])}"
            for alert_id in duplicates[:5]
        ]
        raise InputError(
            f"{len(duplicates)} alert ids are not unique: {'; '.join(shown)}"
            f"{' ...' if len(duplicates) > 5 else ''}. Give each alert its own id, or leave the id empty "
            "to have one derived from the content"
        )
    return ids


def _shown(numbers: Sequence[int], count: int = 10) -> str:
    return (
        f"{', '.join(map(str, numbers[:count]))}{f' and {len(numbers) - count} more' if len(numbers) > count else ''}"
    )


def _nothing_left(rows: int, usable: int, rejected: pa.Table, spec: RunSpec) -> str:
    if rows == 0:
        return "the alerts input has no rows; a run needs at least one alert"
    if usable:
        return (
            f"none of {usable} usable alerts lies in the date range {spec.from_day or 'start'} to "
            f"{spec.to_day or 'end'} (UTC days, both inclusive)"
        )
    all_reasons = rejected.column("reason").to_pylist()
    reasons = Counter(all_reasons)
    chains = {
        canonical_chain(chain)
        for chain, reason in zip(rejected.column("chain").to_pylist(), all_reasons, strict=True)
        if reason.startswith("chain ")
    }
    top = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    hint = f" Set the run's chain to theirs, if that is meant: --chain {chains.pop()}" if len(chains) == 1 else ""
    return f"all {rows} alerts were rejected: {top}. Nothing is left to export.{hint}"
