"""Candles and alerts for tests, and plain, slow models of the rules to hold the package against.

The models are written from DESIGN.md, one row and one candle slot at a time, and share no code with the package.
"""

from __future__ import annotations

import csv
import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lake_pipeline.core.spec import RunSpec
from lake_pipeline.export import export_buckets, identify_run, load_alerts, snapshot_alerts
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore
from lake_pipeline.run import Run
from lake_pipeline.seal import SealResult, cover_run, seal_run

T0_MS = 1_746_057_600_000  # 2025-05-01T00:00:00Z, the start of a minute, an hour and a day
PRICES = ("open", "high", "low", "close")
VALUES = (*PRICES, "volume")


@dataclass(frozen=True)
class Candle:
    """One row of a candle table."""

    mint: str
    ts_ms: int
    open: float = 1.0
    high: float = 2.0
    low: float = 0.5
    close: float = 1.5
    volume: float = 10.0
    source: str | None = "feed"
    chain: str = "solana"
    interval_s: int = 60
    quality_score: int = 0
    ingested_ms: int = T0_MS

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(getattr(self, name) for name in VALUES)


@dataclass(frozen=True)
class Alert:
    """One alert as it goes into a CSV file."""

    alert_id: str
    mint: str
    ts_ms: int
    caller: str = "caller-a"
    chain: str = ""


def mint_name(seed: object) -> str:
    """A token address like Solana's: 44 characters of Base58, decided by the seed."""
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    digest = hashlib.sha512(repr(seed).encode()).digest()
    return "".join(alphabet[byte % 58] for byte in digest[:44])


def sha1_bucket(mint: str) -> str:
    """The format's bucket, by its definition."""
    return hashlib.sha1(mint.encode()).hexdigest()[:2]


def mint_in_bucket(bucket: str, seed: object = 0) -> str:
    """A token address of this bucket."""
    return next(name for name in (mint_name((seed, n)) for n in range(100_000)) if sha1_bucket(name) == bucket)


# --- candle tables -------------------------------------------------------------------------------

BASE_TYPES = {
    "token_address": "String",
    "chain": "LowCardinality(String)",
    "timestamp": "DateTime64(3, 'UTC')",
    "interval_seconds": "UInt32",
    **dict.fromkeys(VALUES, "Float64"),
    "source": "Nullable(String)",
    "quality_score": "Int32",
    "ingested_at": "DateTime64(3, 'UTC')",
}


def arrow_candles(candles: Sequence[Candle]) -> pa.Table:
    """Candles with the columns of BASE_TYPES."""
    times = pa.timestamp("ms", "UTC")
    columns: dict[str, Any] = {
        "token_address": pa.array([c.mint for c in candles], pa.string()),
        "chain": pa.array([c.chain for c in candles], pa.string()),
        "timestamp": pa.array([c.ts_ms for c in candles], pa.int64()).cast(times),
        "interval_seconds": pa.array([c.interval_s for c in candles], pa.uint32()),
        **{name: pa.array([getattr(c, name) for c in candles], pa.float64()) for name in VALUES},
        "source": pa.array([c.source for c in candles], pa.string()),
        "quality_score": pa.array([c.quality_score for c in candles], pa.int32()),
        "ingested_at": pa.array([c.ingested_ms for c in candles], pa.int64()).cast(times),
    }
    return pa.table(columns)


def create_table(engine: ClickHouseSource, table: str, candles: Sequence[Candle] = ()) -> str:
    """A plain MergeTree with every column, holding exactly these rows: nothing is merged away."""
    ddl = ", ".join(f"{name} {type_}" for name, type_ in BASE_TYPES.items())
    engine.call(
        "create",
        lambda client: client.command(
            f"CREATE TABLE {table} ({ddl}) ENGINE = MergeTree ORDER BY (token_address, timestamp)"
        ),
    )
    if candles:
        engine.call("insert", lambda client: client.insert_arrow(table, arrow_candles(candles)))
    return table


# --- alerts and runs -----------------------------------------------------------------------------


def write_alerts(path: Path, alerts: Iterable[Alert]) -> str:
    """A CSV of alerts; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["alert_id", "mint", "ts", "caller", "chain"])
        writer.writerows([a.alert_id, a.mint, a.ts_ms, a.caller, a.chain] for a in alerts)
    return str(path)


def start_run(lake: LocalStore, source: ClickHouseSource, alerts: str, spec: RunSpec, run_id: str | None = None) -> Run:
    """The run's identity and its alerts snapshot."""
    normalised = load_alerts(spec, alerts)
    run, _ = snapshot_alerts(lake, identify_run(spec, normalised, source.identity(), run_id), normalised, {})
    return run


def seal(run: Run) -> SealResult:
    """Coverage and the seal."""
    cover_run(run)
    return seal_run(run)


def sealed_run(
    lake: LocalStore,
    source: ClickHouseSource,
    alerts: str,
    spec: RunSpec,
    run_id: str | None = None,
    **export: Any,
) -> Run:
    """A whole run by the plain functions."""
    run = start_run(lake, source, alerts, spec, run_id)
    export_buckets(run, source, **export)
    seal(run)
    return run


# --- a small market with every defect real tables have ---------------------------------------------


def small_market(seed: int = 7, mints: int = 6, minutes: int = 90) -> tuple[list[Candle], list[Alert]]:
    """Candles and alerts: gaps, duplicates, bad candles, no volume, a late listing, overlapping windows.

    Prices are multiples of 1/64, so that no decimal or platform rounding can creep in.
    """
    rng = random.Random(seed)
    candles: list[Candle] = []
    alerts: list[Alert] = []
    for number in range(mints):
        mint = mint_name((seed, number))
        listed = 45 if number == 1 else 0
        price = 64 + rng.randrange(64)
        for minute in range(listed, minutes):
            if rng.random() < 0.15:
                continue
            price = max(8, price + rng.randrange(-6, 7))
            low, high = price - rng.randrange(1, 5), price + rng.randrange(1, 5)
            candle = Candle(
                mint,
                T0_MS + minute * 60_000,
                open=price / 64,
                high=high / 64,
                low=low / 64,
                close=rng.randrange(low, high + 1) / 64,
                volume=0.0 if rng.random() < 0.5 else rng.randrange(1, 1000) / 4,
                source=rng.choice(["birdeye", "dune", None]),
                chain=rng.choice(["solana", "SOL", "Solana", "sol"]),
                quality_score=rng.randrange(3),
            )
            roll = rng.random()
            if roll < 0.04:
                candle = replace(candle, high=candle.low / 2)
            elif roll < 0.06:
                candle = replace(candle, volume=math.nan)
            elif roll < 0.08:
                candle = replace(candle, close=0.0)
            candles.append(candle)
            if rng.random() < 0.12:
                candles.append(
                    replace(
                        candle,
                        close=candle.open,
                        quality_score=rng.randrange(3),
                        ingested_ms=T0_MS + rng.randrange(3),
                        source=rng.choice(["birdeye", "dune", None]),
                    )
                )
            if rng.random() < 0.1:
                candles.append(replace(candle, chain=rng.choice(["ethereum", "base"])))
            if rng.random() < 0.1:
                candles.append(replace(candle, interval_s=300))
        for call in range(2):
            offset_ms = rng.randrange(20 * 60_000, 60 * 60_000)
            alerts.append(
                Alert(f"{number:03d}-{call}", mint, T0_MS + offset_ms, f"caller-{number % 3}", rng.choice(["", "SOL"]))
            )
    alerts.append(Alert("no-candles", mint_name((seed, "never listed")), T0_MS + 30 * 60_000))
    rng.shuffle(candles)
    return candles, alerts


MARKET_SPEC = RunSpec("1m", "pre10_post20")
STRICT_SPEC = RunSpec("1m", "pre10_post20", strict_coverage=True, min_required_pre=8, target_total=24)
SOLANA = ("solana", "SOL", "Solana", "sol")

# --- models --------------------------------------------------------------------------------------


def float_order(value: float) -> tuple[int, float, float]:
    """Sorts floats totally: -0.0 before 0.0, NaN last."""
    return (1, 0.0, 0.0) if math.isnan(value) else (0, value, math.copysign(1.0, value))


def wins_over(candle: Candle, versions: Sequence[str] = ("quality_score", "ingested_ms")) -> tuple[Any, ...]:
    """The key by which the largest of several rows for one (mint, ts) survives."""
    return (
        *(getattr(candle, name) for name in versions),
        *(float_order(value) for value in candle.values),
        (candle.source is not None, (candle.source or "").encode()),
    )


def reason_against(candle: Candle) -> str | None:
    """The first sanity rule a candle breaks."""
    if any(math.isnan(value) or math.isinf(value) for value in candle.values):
        return "not_finite"
    if any(value < 0 for value in candle.values):
        return "negative"
    if any(getattr(candle, name) == 0 for name in PRICES):
        return "zero_price"
    if candle.high < candle.low:
        return "high_below_low"
    if not candle.low <= candle.open <= candle.high:
        return "open_outside_low_high"
    if not candle.low <= candle.close <= candle.high:
        return "close_outside_low_high"
    return None


def surviving(candles: Iterable[Candle], versions: Sequence[str] = ("quality_score", "ingested_ms")) -> list[Candle]:
    """One candle per (mint, ts), sorted by mint as bytes, then time."""
    best: dict[tuple[bytes, int], Candle] = {}
    for candle in candles:
        key = (candle.mint.encode(), candle.ts_ms)
        if key not in best or wins_over(candle, versions) > wins_over(best[key], versions):
            best[key] = candle
    return [best[key] for key in sorted(best)]


def window_of(ts_ms: int, interval_s: int, pre: int, post: int) -> tuple[int, int, int]:
    """(start, anchor, end) in ms."""
    anchor = ts_ms - ts_ms % (interval_s * 1000)
    return anchor - pre * interval_s * 1000, anchor, anchor + (post + 1) * interval_s * 1000


def coverage_of(
    ts_ms: int, candles: Sequence[tuple[int, float]], interval_s: int, pre: int, post: int
) -> dict[str, Any]:
    """Coverage of one alert by its mint's (ts_ms, volume) pairs, counted slot by slot."""
    start, anchor, end = window_of(ts_ms, interval_s, pre, post)
    inside = sorted((ts, volume) for ts, volume in candles if start <= ts < end)
    total_slots = pre + 1 + post
    filled = [False] * total_slots
    for ts, _ in inside:
        filled[(ts - start) // (interval_s * 1000)] = True
    gaps = []
    length = 0
    for slot in [*filled, True]:
        if not slot:
            length += 1
        elif length:
            gaps.append(length)
            length = 0
    available_pre = sum(ts < anchor for ts, _ in inside)
    status = "partial"
    if not inside:
        status = "insufficient"
    elif available_pre >= pre and len(inside) >= pre + post:
        status = "complete"
    return {
        "anchor_ts_ms": anchor,
        "window_start_ms": start,
        "window_end_ms": end,
        "available_pre": available_pre,
        "available_post": len(inside) - available_pre,
        "available_total": len(inside),
        "expected_total": total_slots,
        "first_ts_ms": inside[0][0] if inside else None,
        "last_ts_ms": inside[-1][0] if inside else None,
        "missing": filled.count(False),
        "gap_count": len(gaps),
        "largest_gap": max(gaps, default=0),
        "zero_volume": sum(volume == 0 for _, volume in inside),
        "has_anchor": filled[pre],
        "status": status,
    }


@dataclass(frozen=True)
class ExpectedRun:
    """What a run over a table has to hold."""

    written: list[Candle]
    rejected: list[tuple[Candle, str]]
    coverage: Mapping[str, dict[str, Any]]
    ledger: Mapping[str, int]


def expected_run(
    candles: Sequence[Candle], alerts: Sequence[Alert], spec: RunSpec, chains: Sequence[str]
) -> ExpectedRun:
    """A run by the letter of the design, candle by candle."""
    windows: dict[str, list[tuple[int, int]]] = {}
    for alert in alerts:
        start, _, end = window_of(alert.ts_ms, spec.interval_s, spec.pre, spec.post)
        windows.setdefault(alert.mint, []).append((start, end))
    source = [
        candle
        for candle in candles
        if candle.chain in chains
        and candle.interval_s == spec.interval_s
        and any(start <= candle.ts_ms < end for start, end in windows.get(candle.mint, ()))
    ]
    unique = surviving(source)
    good = [candle for candle in unique if reason_against(candle) is None]
    rejected = [(candle, reason) for candle in unique if (reason := reason_against(candle))]
    coverage: dict[str, dict[str, Any]] = {}
    kept_windows: dict[str, list[tuple[int, int]]] = {}
    for alert in alerts:
        own = [(candle.ts_ms, candle.volume) for candle in good if candle.mint == alert.mint]
        measures = coverage_of(alert.ts_ms, own, spec.interval_s, spec.pre, spec.post)
        enough = measures["available_pre"] >= spec.required_pre and measures["available_total"] >= spec.required_total
        measures["kept"] = enough or not spec.strict_coverage
        coverage[alert.alert_id] = measures
        if measures["kept"]:
            kept_windows.setdefault(alert.mint, []).append((measures["window_start_ms"], measures["window_end_ms"]))
    written = [
        candle
        for candle in good
        if any(start <= candle.ts_ms < end for start, end in kept_windows.get(candle.mint, ()))
    ]
    return ExpectedRun(
        written,
        rejected,
        coverage,
        {
            "source_rows": len(source),
            "written": len(written),
            "duplicates": len(source) - len(unique),
            "rejected": len(rejected),
            "outside_kept_windows": len(good) - len(written),
            "zero_volume": sum(candle.volume == 0 for candle in written),
        },
    )
