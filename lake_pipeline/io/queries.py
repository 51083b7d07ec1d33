"""The SQL this package sends, and how a candle table's columns are understood.

Identifiers are quoted and values bound or quoted by the driver's own functions; no quoting of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from clickhouse_connect.driver.binding import format_query_value, quote_identifier

from lake_pipeline.core.candles import KEY_TS_BITS, VALUE_COLUMNS, candle_keys
from lake_pipeline.core.chains import chain_spellings
from lake_pipeline.errors import ConfigError, SourceError
from lake_pipeline.io.source import SliceRequest

__all__ = [
    "CREATE_CANDLES",
    "OPTIONAL_COLUMNS",
    "REQUIRED_COLUMNS",
    "TABLE_STATE",
    "VERSION_COLUMNS",
    "CandleTable",
    "fingerprint_query",
    "needs_unit_probe",
    "resolve_columns",
    "slice_query",
]

REQUIRED_COLUMNS: Final = ("token_address", "timestamp", *VALUE_COLUMNS)
VERSION_COLUMNS: Final = ("quality_score", "ingested_at")
OPTIONAL_COLUMNS: Final = ("chain", "interval_seconds", *VERSION_COLUMNS, "source")
# Names that are looked for when the mapping does not say, besides the role's own.
_OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {"interval_seconds": ("interval",)}

_UNSIGNED_32_END: Final = 2**32 - 1
_WRAPPER = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)", re.ASCII)
_DATETIME64 = re.compile(r"DateTime64\(([0-9])(?:,.*)?\)", re.ASCII)
_INTEGER = re.compile(r"U?Int(8|16|32|64)", re.ASCII)
_NUMERIC = re.compile(r"(?:U?Int[0-9]+|Float(?:32|64)|BFloat16|Decimal(?:[0-9]*)\(.*\))", re.ASCII)

# The table `lake load-candles` creates. Keyed so that one mint's candles of one interval lie together. Not a
# ReplacingMergeTree: rows would vanish in background merges, and with them the ledger's reproducibility; the
# loader adds no row twice, and the export picks the newest version of each.
CREATE_CANDLES: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    token_address String,
    chain LowCardinality(String),
    timestamp DateTime64(3, 'UTC'),
    interval_seconds UInt32,
    open Float64,
    high Float64,
    low Float64,
    close Float64,
    volume Float64,
    source LowCardinality(String),
    quality_score Int32 DEFAULT 0,
    ingested_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (token_address, chain, interval_seconds, timestamp)
"""

# One thread per query: the export runs several queries at once. Blocks are not cut short for wide rows: a tenth less
# for a query.
_SETTINGS: Final = "SETTINGS max_threads = 1, preferred_block_size_bytes = 0, session_timezone = 'UTC'"

# Windows are shown to the primary index when the time from the slice's first window to its last holds this many
# times the candles of the windows: below, there is little to skip and the index analysis costs some 5 %.
_PRUNE_ABOVE: Final = 4

# Everything that the rows of a MergeTree table between two times follow from: its definition and the content of its
# parts. A part's times are known where the partition key has a DateTime; where they are not, they are zero, and times
# beyond what the columns hold are cut off: such parts count for every range.
TABLE_STATE: Final = """
SELECT create_table_query AS line FROM system.tables
WHERE database = {database:String} AND name = {table:String} AND engine LIKE '%MergeTree'
UNION ALL
SELECT hash_of_all_files AS line FROM system.parts
WHERE database = {database:String} AND table = {table:String} AND active
    AND ((toUnixTimestamp(min_time) * 1000 < {end:Int64} AND toUnixTimestamp(max_time) * 1000 + 1000 > {start:Int64})
        OR toUnixTimestamp(min_time) = 0 OR toUnixTimestamp(max_time) > 4102444800)
"""

TimeUnit = Literal["s", "ms"]


@dataclass(frozen=True)
class CandleTable:
    """A candle table as it was found: role -> column name and ClickHouse type.

    `integer_unit` says what an integer timestamp counts; None where the column is a DateTime.
    """

    database: str
    table: str
    columns: Mapping[str, str]
    types: Mapping[str, str]
    integer_unit: TimeUnit | None = None

    @property
    def qualified(self) -> str:
        """Quoted `database.table`."""
        return f"{quote_identifier(self.database)}.{quote_identifier(self.table)}"

    def column(self, role: str) -> str:
        """The quoted column of a role, as column of `c`."""
        return f"c.{quote_identifier(self.columns[role])}"

    @property
    def time_unit(self) -> TimeUnit:
        """What the timestamp column counts."""
        if self.integer_unit:
            return self.integer_unit
        return "s" if _bare(self.types["timestamp"]).partition("(")[0] == "DateTime" else "ms"

    @property
    def time_expression(self) -> str:
        """The candle's epoch time in ms: the instant, whatever zone column, server or process have."""
        column = self.column("timestamp")
        if self.types["timestamp"].startswith("Nullable"):
            column = f"assumeNotNull({column})"  # slice_query's range has dropped the nulls
        if self.integer_unit:
            return f"toInt64({column})" + (" * 1000" if self.integer_unit == "s" else "")
        return f"toUnixTimestamp({column}) * 1000" if self.time_unit == "s" else f"toUnixTimestamp64Milli({column})"

    def time_literal(self, ts_ms: int, *, up: bool) -> str:
        """A bound on the timestamp column itself, so that its index and partitions prune."""
        seconds = -(-ts_ms // 1000) if up else ts_ms // 1000
        if self.integer_unit:
            return str(seconds if self.integer_unit == "s" else ts_ms)
        if self.time_unit == "s":
            return f"toDateTime({min(max(seconds, 0), _UNSIGNED_32_END)}, 'UTC')"
        return f"fromUnixTimestamp64Milli(toInt64({ts_ms}), 'UTC')"


def resolve_columns(
    where: str, described: Mapping[str, str], mapping: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(role -> column, role -> type) from DESCRIBE TABLE's names and types and the configured mapping.

    Raises ConfigError for a mapping of unknown roles, SourceError for missing columns or unusable types.
    """
    roles = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    unknown = sorted(set(mapping) - set(roles))
    if unknown:
        raise ConfigError(f"columns: {', '.join(unknown)} is not a role; the roles are {', '.join(roles)}")
    columns: dict[str, str] = {}
    for role in roles:
        names = [mapping[role]] if role in mapping else [role, *_OTHER_NAMES.get(role, ())]
        found = next((name for name in names if name in described), None)
        if found:
            columns[role] = found
        elif role in mapping or role in REQUIRED_COLUMNS:
            raise SourceError(
                f"{where} has no column {names[0]!r} (for {role}); it has {', '.join(sorted(described))}. "
                f"Map the role to a column of the table with candle_source.columns, e.g. {{{role}: my_name}}"
            )
    types = {role: described[column] for role, column in columns.items()}
    _check_types(where, columns, types)
    return columns, types


def _bare(type_: str) -> str:
    """A type without Nullable and LowCardinality."""
    while match := _WRAPPER.fullmatch(type_):
        type_ = match[1]
    return type_


def _check_types(where: str, columns: Mapping[str, str], types: Mapping[str, str]) -> None:
    def is_time(type_: str) -> bool:
        return type_.partition("(")[0] == "DateTime" or bool(_DATETIME64.fullmatch(type_) or _INTEGER.fullmatch(type_))

    def is_version(type_: str) -> bool:
        return bool(_NUMERIC.fullmatch(type_)) or is_time(type_) or type_ in ("Date", "Date32")

    def is_text(type_: str) -> bool:
        return type_ == "String" or type_.startswith(("Enum", "FixedString"))

    checks: dict[str, tuple[Any, str]] = {
        "token_address": (lambda type_: type_ == "String", "String"),
        "timestamp": (is_time, "DateTime, DateTime64 or an integer"),
        "chain": (is_text, "String"),
        "interval_seconds": (lambda type_: bool(_INTEGER.fullmatch(type_)), "an integer, in seconds"),
        "source": (is_text, "String"),
        **dict.fromkeys(VERSION_COLUMNS, (is_version, "a number or a time")),
        **dict.fromkeys(VALUE_COLUMNS, (_NUMERIC.fullmatch, "a number")),
    }
    for role, type_ in types.items():
        accepts, wanted = checks[role]
        if not accepts(_bare(type_)):
            raise SourceError(
                f"{where} column {columns[role]!r} is {type_}; {role} must be {wanted}. "
                "Map the role to another column with candle_source.columns"
            )


def needs_unit_probe(types: Mapping[str, str]) -> bool:
    """Whether the timestamp is an integer, whose unit only its values can tell."""
    return bool(_INTEGER.fullmatch(_bare(types["timestamp"])))


def version_expression(table: CandleTable, role: str) -> str:
    """A version column as a number that sorts like it and fits 64 bits with a sign."""
    column, type_ = table.column(role), _bare(table.types[role])
    if type_.partition("(")[0] == "DateTime":
        return f"toUnixTimestamp({column})"
    if scale := _DATETIME64.fullmatch(type_):
        # The coarsest that loses nothing: nanoseconds end with the year 2262.
        unit = "Milli" if int(scale[1]) <= 3 else "Micro" if int(scale[1]) <= 6 else "Nano"
        return f"toUnixTimestamp64{unit}({column})"
    if type_ in ("Date", "Date32"):
        return f"toInt32({column})"
    if type_ == "UInt64":
        return f"toInt64(bitXor({column}, 9223372036854775808))"
    return column if _INTEGER.fullmatch(type_) else f"toFloat64({column})"


def slice_query(table: CandleTable, request: SliceRequest) -> tuple[str, dict[str, Any]]:
    """The query of one slice and its bound parameters: each row with its `candle_keys` key, as `lake_key`."""
    rows, parameters = _rows_of(table, request)
    columns = "".join(f", {column} AS {name}" for name, column in _row_columns(table).items())
    return f"SELECT lake_key{columns} {rows} {_SETTINGS}", parameters


def fingerprint_query(table: CandleTable, request: SliceRequest) -> tuple[str, dict[str, Any]]:
    """How many rows `slice_query` gives for each mint index `m`, and a sum of their hashes, which no order changes."""
    rows, parameters = _rows_of(table, request)
    # A tuple has a hash where a column of it is null; a sum, unlike xor, tells two equal rows from none.
    columns = ", ".join(("lake_key", *_row_columns(table).values()))
    return (
        f"SELECT bitShiftRight(lake_key, {KEY_TS_BITS}) AS m, toInt64(count()) AS row_count, "
        f"sum(cityHash64(tuple({columns}))) AS checksum {rows} GROUP BY m {_SETTINGS}"
    ), parameters


def _row_columns(table: CandleTable) -> dict[str, str]:
    """Name -> expression of what is read of a row beside its mint and its time."""
    columns = {}
    for name in VALUE_COLUMNS:
        column = table.column(name)
        columns[name] = column if _bare(table.types[name]) == "Float64" else f"toFloat64({column})"
    columns |= {role: version_expression(table, role) for role in VERSION_COLUMNS if role in table.columns}
    if "source" in table.columns:
        columns["source"] = f"toString({table.column('source')})"
    return columns


def _rows_of(table: CandleTable, request: SliceRequest) -> tuple[str, dict[str, Any]]:
    """FROM and WHERE of a request's rows, as `c` and with their `lake_key`, and the bound parameters.

    The windows, disjoint per mint, are ranges of keys: a row is inside the last one that starts at or before its key,
    or in none. That takes one look-up of the mint and two of the window, however many windows there are, and no join.
    """
    token, time = table.column("token_address"), table.column("timestamp")
    mints = format_query_value(list(request.mints))
    epoch = candle_keys(np.arange(len(request.mints)), np.zeros(len(request.mints), np.int64))
    starts, ends = (_int64s(candle_keys(request.mint, bounds)) for bounds in (request.starts, request.ends))
    # What `transform` gives for a value it does not know is never seen: other mints are dropped by IN, and each start
    # has its end.
    key = f"transform({token}, {mints}, {_int64s(epoch)}, toInt64(0)) + {table.time_expression}"
    where = [
        f"{token} IN {_in_list(request.mints)}",
        f"{time} >= {table.time_literal(int(request.starts.min()), up=True)}",
        f"{time} < {table.time_literal(int(request.ends.max()), up=True)}",
        f"({key} AS lake_key) >= (roundDown(lake_key, {starts}) AS lake_start)",
        f"lake_key < transform(lake_start, {starts}, {ends}, toInt64(0))",
    ]
    span_ms = (int(request.ends.max()) - int(request.starts.min())) * len(request.mints)
    if span_ms > _PRUNE_ABOVE * int((request.ends - request.starts).sum()):
        where.append(_near_windows(table, request))
    parameters: dict[str, Any] = {}
    if "chain" in table.columns:
        where.append(f"{table.column('chain')} IN {{chains:Array(String)}}")
        parameters["chains"] = chain_spellings(request.spec.chain)
    if "interval_seconds" in table.columns:
        where.append(f"{table.column('interval_seconds')} = {{interval:UInt32}}")
        parameters["interval"] = request.spec.interval_s
    return f"FROM {table.qualified} AS c WHERE {' AND '.join(where)}", parameters


def _int64s(values: npt.NDArray[np.int64]) -> str:
    return f"CAST({values.tolist()} AS Array(Int64))"


def _near_windows(table: CandleTable, request: SliceRequest) -> str:
    """The windows as (mint, time step) pairs, for the primary index alone.

    A condition on mints and one time range reads all of each mint's history in between. Steps are half a window
    long on average, a few pairs a window; `intDiv(toInt64(...))` is a form the index analysis sees through.
    """
    unit_ms = 1 if table.integer_unit == "ms" else 1000
    starts, ends = request.starts // unit_ms, -(-request.ends // unit_ms)
    step = max(1, int((ends - starts).mean()) // 2)
    # As ClickHouse divides, towards zero, and a step wider at both ends: fractions of a second before 1970.
    first, last = (np.trunc(bound / step).astype(np.int64) for bound in (starts - 1, ends))
    counts = last - first + 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    mints = [request.mints[index] for index in np.repeat(request.mint, counts).tolist()]
    pairs = tuple(zip(mints, (np.repeat(first, counts) + within).tolist(), strict=True))
    token, time = table.column("token_address"), table.column("timestamp")
    return f"indexHint(({token}, intDiv(toInt64({time}), {step})) IN {format_query_value(pairs)})"


def _in_list(values: Sequence[str]) -> str:
    return str(format_query_value(tuple(values)))
