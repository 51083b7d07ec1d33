"""Paths made of plain candles, and ways to spoil cached ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lake_pipeline.backtest.paths import PathBlock, Paths
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline_tests.candles_for_tests import T0_MS

MINUTE_MS = 60_000
Bar = tuple[int, float, float, float, float, float]  # minutes after entry_ts, then open, high, low, close, volume


def bar(minute: int, open_: float, high: float, low: float, close: float, volume: float = 1.0) -> Bar:
    assert low <= min(open_, close) <= max(open_, close) <= high
    return (minute, open_, high, low, close, volume)


def paths_of(paths: Sequence[Sequence[Bar]], horizon_minutes: int = 2880, callers: Sequence[str] = ()) -> Paths:
    """One alert a path, all at T0 on a minute's boundary, in one block."""
    count = len(paths)
    names = list(callers) or ["caller-a"] * count
    alerts = pa.table(
        {
            "alert_id": [f"alert-{number}" for number in range(count)],
            "mint": [f"mint-{number}" for number in range(count)],
            "ts": pa.array([T0_MS] * count, pa.int64()).cast(ALERTS_SCHEMA.field("ts").type),
            "caller": pa.array(names, pa.string()),
            "chain": ["solana"] * count,
        },
        schema=ALERTS_SCHEMA,
    )
    bars = [each for path in paths for each in path]
    columns = [np.array([each[number] for each in bars], np.float64) for number in range(6)]
    ts = T0_MS + columns[0].astype(np.int64) * MINUTE_MS
    lengths = np.array([len(path) for path in paths], np.int64)
    stops = np.cumsum(lengths)
    block = PathBlock(ts, *columns[1:], np.arange(count), stops - lengths, stops)
    entry_ts = np.full(count, T0_MS, np.int64)
    return Paths(alerts, 60, entry_ts, entry_ts + horizon_minutes * MINUTE_MS, ("00",), {"00": block}.__getitem__)


# --- what may happen to a cached file


def truncate(data: bytes) -> bytes:
    return data[:-8]


def odd_length(data: bytes) -> bytes:
    return data[:-3]


def flip_price(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def flip_start(data: bytes) -> bytes:
    return data[:88] + bytes([data[88] ^ 1]) + data[89:]


def other_version(data: bytes) -> bytes:
    return data[:7] + b"0" + data[8:]


def other_code(data: bytes) -> bytes:
    return data[:24] + bytes(16) + data[40:]


def nothing(data: bytes) -> bytes:
    return b""


SPOILS = (truncate, odd_length, flip_price, flip_start, other_version, other_code, nothing)
