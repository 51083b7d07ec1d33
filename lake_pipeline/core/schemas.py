"""Arrow schemas of every table in a run, column order included."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

__all__ = [
    "ALERTS_SCHEMA",
    "COVERAGE_SCHEMA",
    "REJECTED_ALERTS_SCHEMA",
    "REJECTED_CANDLES_SCHEMA",
    "SLICE_SCHEMA",
]

_TS: Final = pa.timestamp("ms", tz="UTC")
_OHLCV: Final = [(name, pa.float64()) for name in ("open", "high", "low", "close", "volume")]

SLICE_SCHEMA: Final = pa.schema(
    [("mint", pa.string()), ("ts", _TS), ("interval_s", pa.int32()), *_OHLCV, ("source", pa.string())]
)
ALERTS_SCHEMA: Final = pa.schema(
    [
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("ts", _TS),
        ("caller", pa.string()),
        ("chain", pa.string()),
    ]
)
# The raw values are kept as text, whatever they were.
REJECTED_ALERTS_SCHEMA: Final = pa.schema(
    [
        ("row_number", pa.int64()),
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("ts", pa.string()),
        ("caller", pa.string()),
        ("chain", pa.string()),
        ("reason", pa.string()),
    ]
)
REJECTED_CANDLES_SCHEMA: Final = SLICE_SCHEMA.append(pa.field("reason", pa.string()))
COVERAGE_SCHEMA: Final = pa.schema(
    [
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("caller", pa.string()),
        ("mint_bucket", pa.string()),
        ("anchor_ts_ms", pa.int64()),
        ("window_start_ms", pa.int64()),
        ("window_end_ms", pa.int64()),
        ("available_pre", pa.int64()),
        ("available_post", pa.int64()),
        ("available_total", pa.int64()),
        ("expected_total", pa.int64()),
        ("first_ts_ms", pa.int64()),
        ("last_ts_ms", pa.int64()),
        ("missing", pa.int64()),
        ("gap_count", pa.int64()),
        ("largest_gap", pa.int64()),
        ("zero_volume", pa.int64()),
        ("has_anchor", pa.bool_()),
        ("status", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)
