"""Candles and alerts for the benchmarks, made the same everywhere from a seed.

    python benchmarks/generate.py --scale full FOLDER

fills `FOLDER/clickhouse` (an embedded engine) and writes `FOLDER/alerts*.csv`. Scales: `full` is 60 M one-minute
candles of 6,000 mints and 5,000 alerts on 3,000 of them; `long` has the same windows in histories 4.4 times as long;
`small` is a twentieth of `full`, `tiny` takes no time; `seconds` is 1-second candles with two-day histories, where
reading too much matters.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from lake_pipeline.core.window import parse_window_spec
from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig, quote_table
from lake_pipeline.io.queries import CREATE_CANDLES

START_MS = 1_746_057_600_000  # 2025-05-01
BASE58 = np.frombuffer(b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", dtype=np.uint8)


@dataclass(frozen=True)
class Scale:
    """`candles` a mint, `interval_s` long; alerts fall on `called` of the mints, within the first `alerted` candles."""

    mints: int
    candles: int
    interval_s: int
    called: int
    alerts: int
    window: str
    alerted: int

    @property
    def interval(self) -> str:
        return "1m" if self.interval_s == 60 else f"{self.interval_s}s"


SCALES = {
    "full": Scale(6_000, 10_000, 60, 3_000, 5_000, "pre52_post4948", 10_000),
    "long": Scale(6_000, 44_000, 60, 3_000, 5_000, "pre52_post4948", 10_000),
    "small": Scale(300, 10_000, 60, 150, 250, "pre52_post4948", 10_000),
    "tiny": Scale(20, 1_000, 60, 10, 40, "pre52_post248", 1_000),
    "seconds": Scale(600, 172_800, 1, 400, 500, "pre60_post900", 172_800),
}


def mint_names(count: int) -> list[str]:
    digits = np.random.RandomState(1).randint(0, 58, (count, 44))
    return [BASE58[row].tobytes().decode() for row in digits]


def candle_batches(scale: Scale, start_ms: int = START_MS) -> Iterator[pa.Table]:
    """Random walks with a third of the volume zero and 0.3 % duplicates, some ten mints a batch."""
    names = mint_names(scale.mints)
    size = scale.candles
    for first in range(0, scale.mints, 50):
        batch = []
        for index in range(first, min(first + 50, scale.mints)):
            random = np.random.RandomState(100 + index)
            close = 0.001 * np.exp(np.cumsum(0.003 * random.standard_normal(size)))
            open_ = np.concatenate((close[:1], close[:-1]))
            wick = 1 + 0.002 * random.random_sample((2, size))
            volume = np.where(random.random_sample(size) < 0.3, 0.0, 1000 * random.random_sample(size))
            rows = np.concatenate((np.arange(size), np.sort(random.randint(0, size, size * 3 // 1000))))
            times = start_ms + rows * scale.interval_s * 1000
            high, low = np.maximum(open_, close) * wick[0], np.minimum(open_, close) / wick[1]
            columns = {"open": open_, "high": high, "low": low, "close": close, "volume": volume}
            batch.append(
                pa.table(
                    {
                        "token_address": pa.array([names[index]] * len(rows), pa.string()),
                        "chain": pa.array(["solana"] * len(rows), pa.string()),
                        "timestamp": pa.array(times, pa.int64()).cast(pa.timestamp("ms", "UTC")),
                        "interval_seconds": pa.array(np.full(len(rows), scale.interval_s, np.uint32)),
                        **{name: values[rows] for name, values in columns.items()},
                        "source": pa.array(["bench"] * len(rows), pa.string()),
                        "quality_score": pa.array(np.zeros(len(rows), np.int32)),
                        "ingested_at": pa.array(times, pa.int64()).cast(pa.timestamp("ms", "UTC")),
                    }
                )
            )
        yield pa.concat_tables(batch)


def write_alerts(scale: Scale, path: Path, alerts: int, seed: int = 7) -> None:
    """Alerts on the first `called` mints, early enough that most windows are complete."""
    random = np.random.RandomState(seed)
    names = mint_names(scale.mints)
    pre, post = parse_window_spec(scale.window)
    latest = max(pre + 1, scale.alerted - post // 2)
    lines = ["alert_id,mint,ts_ms,caller"]
    for number in range(alerts):
        candle = int(random.randint(pre, latest))
        ts = START_MS + candle * scale.interval_s * 1000 + int(random.randint(0, scale.interval_s * 1000))
        lines.append(f"{number:07d},{names[int(random.randint(0, scale.called))]},{ts},caller-{number % 20}")
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def generate(scale: Scale, folder: Path) -> None:
    """Fill `folder`; one that is complete already is left alone, if its data are these."""
    done = folder / "complete"
    if done.exists():
        if done.read_text(encoding="utf-8") != repr(scale):
            raise RuntimeError(f"{folder} holds other data than {scale}: remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_alerts(scale, folder / "alerts.csv", scale.alerts)
    write_alerts(scale, folder / "alerts_16x.csv", scale.alerts * 16)
    with ClickHouseSource(SourceConfig(embedded_path=str(folder / "clickhouse"))) as source:
        table = quote_table(source.database(), source.config.table)
        source.call("create", lambda client: client.command(CREATE_CANDLES.format(table=table)))
        for batch in candle_batches(scale):
            source.call("insert", lambda client, batch=batch: client.insert_arrow(source.config.table, batch))
        # Merged as a whole, or merges would go on beside the contestants: OPTIMIZE waits two minutes for one that runs,
        # and neither then nor on a disk too full does it fail, if not told otherwise.
        patience = f"ALTER TABLE {table} MODIFY SETTING lock_acquire_timeout_for_background_operations = 7200"
        source.call("merge", lambda client: client.command(patience))
        merge = f"OPTIMIZE TABLE {table} FINAL SETTINGS optimize_throw_if_noop = 1"
        source.call("merge", lambda client: client.command(merge))
    done.write_text(repr(scale), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    generate(SCALES[arguments.scale], arguments.folder)
