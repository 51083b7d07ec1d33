"""Deterministic synthetic candles and alerts with everything that real ones have.

Gaps, duplicates in several versions, zero volume, rows no market could print, a token listed after its
first alert, one without any candle, overlapping windows, several callers. Seeded and of a fixed stream,
so that everybody's demo is the same.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["DEMO_INTERVAL", "DEMO_WINDOW", "demo_alerts_csv", "demo_candles", "write_demo_inputs"]

DEMO_INTERVAL: Final = "1m"
DEMO_WINDOW: Final = "pre52_post4948"

_START: Final = dt.datetime(2025, 5, 1, tzinfo=dt.UTC)
_MINUTES: Final = 6 * 1440
_TOKENS: Final = 24
_CALLERS: Final = ("lambo_larry", "on_chain_olga", "degen_dave", "quiet_quinn", "late_lena")
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SILENT_TOKEN: Final = 7  # alerts, but no candle at all
_LATE_TOKEN: Final = 3  # listed two days after its first alert
_SEED: Final = 20250501

Float64Array = npt.NDArray[np.float64]


def _mints() -> list[str]:
    random = np.random.RandomState(_SEED)  # its stream is frozen across NumPy versions
    return ["".join(_BASE58[digit] for digit in random.randint(0, 58, 44)) for _ in range(_TOKENS)]


def demo_candles() -> pa.Table:
    """About 190,000 one-minute candles with the columns of the candle table."""
    tables = [_token_candles(index, mint) for index, mint in enumerate(_mints()) if index != _SILENT_TOKEN]
    return pa.concat_tables(tables).combine_chunks()


def _token_candles(index: int, mint: str) -> pa.Table:
    random = np.random.RandomState(_SEED + 1 + index)
    steps = 0.004 * random.standard_normal(_MINUTES)
    pump = random.randint(200, _MINUTES - 1500)
    steps[pump : pump + 90] += 0.02 * random.random_sample()
    steps[pump + 90 : pump + 1400] -= 0.001
    # Rounded, so that a difference in the last bit between two machines' exp() does not show.
    close = np.round(0.002 * (1 + index) * np.exp(np.cumsum(steps)), 9) + 1e-9
    open_ = np.concatenate(([close[0]], close[:-1]))
    wick = np.round(np.abs(0.002 * random.standard_normal((2, _MINUTES))) * close, 9)
    high, low = np.maximum(open_, close) + wick[0], np.minimum(open_, close) - wick[1]
    low = np.maximum(low, 1e-9)
    volume = np.round(1000 * random.random_sample(_MINUTES), 3)
    volume[random.random_sample(_MINUTES) < 0.3] = 0.0

    minute = np.arange(_MINUTES)
    present = random.random_sample(_MINUTES) >= 0.03
    gap = random.randint(0, _MINUTES - 600)
    present[gap : gap + random.randint(5, 240)] = False
    if index % 3 == 0:
        present[:] = True  # a third of the market trades without a pause
    if index == _LATE_TOKEN:
        present[: 2 * 1440] = False
    rows = np.flatnonzero(present)
    # Some candles came in twice: the second is a correction, with a better score and a later time.
    repeated = rows[random.random_sample(len(rows)) < 0.003]
    broken = rows[random.randint(0, len(rows), 2)]
    high[broken] = low[broken] / 2

    def column(values: Float64Array, correction: float) -> Float64Array:
        return np.concatenate((values[rows], values[repeated] * correction))

    minutes = np.concatenate((minute[rows], minute[repeated]))
    count = len(minutes)
    start_ms = int(_START.timestamp()) * 1000
    score = np.concatenate((np.zeros(len(rows)), np.ones(len(repeated)))).astype(np.int32)
    return pa.table(
        {
            "token_address": pa.array([mint] * count, pa.string()),
            "chain": pa.array(["solana"] * count, pa.string()),
            "timestamp": pa.array(start_ms + minutes * 60_000, pa.int64()).cast(pa.timestamp("ms", "UTC")),
            "interval_seconds": pa.array(np.full(count, 60, np.uint32)),
            "open": column(open_, 1.0),
            "high": column(high, 1.0),
            "low": column(low, 1.0),
            "close": column(close, 1.0),
            "volume": column(volume, 2.0),
            "source": pa.array(["demo"] * count, pa.string()),
            "quality_score": score,
            "ingested_at": pa.array(start_ms + (minutes + 5 + 60 * score) * 60_000, pa.int64()).cast(
                pa.timestamp("ms", "UTC")
            ),
        }
    )


def demo_alerts_csv() -> str:
    """60 alerts on the demo's tokens, and four rows that cannot be used, as CSV text."""
    random = np.random.RandomState(_SEED)
    mints = _mints()
    rows = []
    for number in range(60):
        token = int(random.randint(0, _TOKENS)) if number >= _TOKENS else number
        # Early enough for most windows to be complete; several alerts a token, so that windows overlap.
        minute = int(random.randint(60, 3700))
        seconds, milliseconds = int(random.randint(0, 60)), int(random.randint(0, 1000))
        ts = _START + dt.timedelta(minutes=minute, seconds=seconds, milliseconds=milliseconds)
        caller = _CALLERS[int(random.randint(0, len(_CALLERS)))]
        rows.append((f"{number + 1:04d}", mints[token], ts.isoformat(timespec="milliseconds"), caller, "SOL"))
    rows += [
        ("0061", "", "2025-05-02T10:00:00Z", "degen_dave", "SOL"),
        ("0062", mints[0], "last tuesday", "degen_dave", "SOL"),
        ("0063", mints[1], "2025-05-02T11:00:00Z", "quiet_quinn", "ethereum"),
        ("0064", mints[2], "", "late_lena", ""),
    ]
    lines = [",".join(row) for row in rows]
    return "\n".join(["alert_id,mint,ts,caller,chain", *lines, ""])


def write_demo_inputs(folder: Path) -> tuple[Path, Path]:
    """Write `candles.parquet` and `alerts.csv` into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    candles, alerts = folder / "candles.parquet", folder / "alerts.csv"
    pq.write_table(demo_candles(), candles, compression="zstd")
    alerts.write_text(demo_alerts_csv(), encoding="utf-8")
    return candles, alerts
