"""The baseline: what the price did after each alert, one row an alert.

The 28 columns of `BASELINE_COLUMNS` in that order, then the extras. Definitions, with `entry` the entry price and
high, low, close those of the path's candles; "first" is by time:

- **status**: `missing` (the path has no candle), else `bad_entry` (the open of its first candle is not a finite number
  above 0), else `late_entry` (that candle opens more than `max_entry_lag` candles after `entry_ts`), else `ok`. Metrics
  are null unless `ok`; `candles`, `entry_lag_s`, `censoring` and `max_ts_read` are facts about the path, not metrics.
- **entry_price**: open of the first candle, `ath_mult` = max(high) / entry, `time_to_ath_s` to the first such candle.
- **time_to_Nx_s**: from `entry_ts` to the open of the first candle with high >= N * entry, whole seconds.
- **dd_overall** = min(low) / entry - 1. The recovery is the first candle with high > entry. **dd_initial** is over the
  lows strictly before it, 0 if the entry candle recovers, `dd_overall` if none does; **dd_initial_worst** includes the
  low of the recovery candle.
- **dd_pre2x** over the lows up to and including the 2x candle; **dd_after_Nx** = min(low strictly after the Nx candle)
  / (N * entry) - 1; **dd_after_ath** the same after the first candle with the highest high, over that high. Null where
  the multiple was never reached or no candle follows.
- **peak_pnl_pct** = (ath_mult - 1) * 100, **ret_end_pct** = (last close / entry - 1) * 100.
- **censoring**: `complete` if the last candle opens at most `max_entry_lag` candles before the path's end
  (`min(entry_ts + horizon, window_end)`), else `lower_bound`; a missing path is `lower_bound`.
- **horizon_hours** is the setting, also where the window ends before it.
- **zero_volume_candles** counts candles with volume 0; **gap_candles** the candles of the interval that are missing
  between the first and the last candle; **ath_volume_backed** is `ath_mult` over candles with volume > 0, null if
  there are none; **time_underwater_pct** is the share of candles that close below entry, times 100.
- **max_ts_read**: open time of the last candle of the path, which is the last one any metric of the row saw.

A number too large for a double is null: a table holds no infinity and no NaN.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lake_pipeline.backtest.config import AlertSelection, BaselineConfig
from lake_pipeline.backtest.kernels import FLOAT_METRICS, INTEGER_METRICS, LEVELS, measure
from lake_pipeline.backtest.paths import PathBlock, Paths, open_paths
from lake_pipeline.core.schemas import ALERTS_SCHEMA
from lake_pipeline.run import Run

__all__ = ["BASELINE_COLUMNS", "BASELINE_SCHEMA", "STATUSES", "Entries", "compute_baseline", "measure_paths"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

STATUSES: Final = ("ok", "missing", "bad_entry", "late_entry")
_CENSORING: Final = ("complete", "lower_bound")
_TS: Final = ALERTS_SCHEMA.field("ts").type
_MULTIPLES: Final = {f"{level:g}x".replace(".", "_"): level for level in LEVELS}
_WHOLE: Final = tuple(name for name, level in _MULTIPLES.items() if level >= 2)

BASELINE_SCHEMA: Final = pa.schema(
    [
        ("alert_id", pa.string()),
        ("mint", pa.string()),
        ("caller", pa.string()),
        ("alert_ts_utc", _TS),
        ("entry_ts_utc", _TS),
        ("interval_seconds", pa.int32()),
        ("horizon_hours", pa.float64()),
        ("status", pa.string()),
        ("candles", pa.int64()),
        ("entry_price", pa.float64()),
        ("ath_mult", pa.float64()),
        ("time_to_ath_s", pa.int64()),
        *((f"time_to_{name}_s", pa.int64()) for name in _WHOLE),
        ("dd_initial", pa.float64()),
        ("dd_overall", pa.float64()),
        ("dd_pre2x", pa.float64()),
        *((f"dd_after_{name}", pa.float64()) for name in _WHOLE),
        ("dd_after_ath", pa.float64()),
        ("peak_pnl_pct", pa.float64()),
        ("ret_end_pct", pa.float64()),
        # Extras.
        ("time_to_1_2x_s", pa.int64()),
        ("time_to_1_5x_s", pa.int64()),
        ("entry_lag_s", pa.int64()),
        ("censoring", pa.string()),
        ("zero_volume_candles", pa.int64()),
        ("gap_candles", pa.int64()),
        ("ath_volume_backed", pa.float64()),
        ("dd_initial_worst", pa.float64()),
        ("time_underwater_pct", pa.float64()),
        ("max_ts_read", _TS),
    ]
)
BASELINE_COLUMNS: Final = tuple(BASELINE_SCHEMA.names[:28])


def compute_baseline(
    run: Run,
    config: BaselineConfig = BaselineConfig(),
    selection: AlertSelection = AlertSelection(),
    *,
    threads: int = 2,
) -> pa.Table:
    """The baseline of a sealed run as a table of BASELINE_SCHEMA, sorted like the run's alerts.

    Nothing is stored: `results.baseline_result` does that. Raises RunNotSealed, VerificationFailed, InputError.
    """
    return measure_paths(open_paths(run, selection, config.horizon_ms), config, threads=threads)


def measure_paths(paths: Paths, config: BaselineConfig, *, threads: int = 1) -> pa.Table:
    """The baseline of these paths, a row for each of their alerts; `config.horizon_ms` is that of the paths."""
    found = Entries(paths)
    size = len(paths.entry_ts)
    integers = np.empty((size, len(INTEGER_METRICS)), np.int64)
    floats = np.empty((size, len(FLOAT_METRICS)), np.float64)

    def measure_block(block: PathBlock) -> None:
        found.take(block)
        measure(
            block.ts, block.open, block.high, block.low, block.close, block.volume,
            block.rows, block.starts, block.stops, paths.entry_ts, integers, floats,
        )  # fmt: skip

    paths.map(measure_block, threads)
    return _table(paths, config, found, integers, floats)


class Entries:
    """The entry of each path: its price, and first and last candle's times (-1 where it has none)."""

    def __init__(self, paths: Paths) -> None:
        size = len(paths.entry_ts)
        self.paths = paths
        self.candles = np.zeros(size, np.int64)
        self.first_ts = np.full(size, -1, np.int64)
        self.last_ts = np.full(size, -1, np.int64)
        self.price = np.full(size, np.nan)

    def take(self, block: PathBlock) -> None:
        """Fill the rows of one block's paths."""
        there = block.stops > block.starts
        rows, starts, stops = block.rows[there], block.starts[there], block.stops[there]
        self.candles[rows] = stops - starts
        self.first_ts[rows] = block.ts[starts]
        self.last_ts[rows] = block.ts[stops - 1]
        self.price[rows] = block.open[starts]

    def status(self, max_entry_lag: int, rows: Int64Array | slice = slice(None)) -> npt.NDArray[np.int64]:
        """Positions in STATUSES, of these rows."""
        price = self.price[rows]
        late = self.first_ts[rows] - self.paths.entry_ts[rows] > max_entry_lag * self.paths.interval_s * 1000
        bad = ~(np.isfinite(price) & (price > 0))
        return np.select([self.candles[rows] == 0, bad, late], [1, 2, 3], 0)


def _table(
    paths: Paths, config: BaselineConfig, found: Entries, integers: Int64Array, floats: Float64Array
) -> pa.Table:
    whole = dict(zip(INTEGER_METRICS, integers.T, strict=True))
    real = dict(zip(FLOAT_METRICS, floats.T, strict=True))
    status = found.status(config.max_entry_lag)
    ok = status == 0
    there = found.candles > 0
    entry = found.price
    interval_ms = paths.interval_s * 1000
    censored = ~there | (paths.end_ts - found.last_ts > config.max_entry_lag * interval_ms)
    gaps = np.maximum((found.last_ts - found.first_ts) // interval_ms + 1 - found.candles, 0)

    with np.errstate(all="ignore"):
        ath_mult = real["ath"] / entry
        dd_overall = real["min_low"] / entry - 1
        initial = np.where(np.isnan(real["min_low_initial"]), 0.0, real["min_low_initial"] / entry - 1)
        metrics: dict[str, pa.Array] = {
            "entry_price": _floats(entry, ok),
            "ath_mult": _floats(ath_mult, ok),
            "dd_initial": _floats(initial, ok),
            "dd_overall": _floats(dd_overall, ok),
            "dd_pre2x": _floats(real["min_low_pre2x"] / entry - 1, ok),
            "dd_after_ath": _floats(real["min_low_after_ath"] / real["ath"] - 1, ok),
            "peak_pnl_pct": _floats((ath_mult - 1) * 100, ok),
            "ret_end_pct": _floats((real["last_close"] / entry - 1) * 100, ok),
            "ath_volume_backed": _floats(real["volume_backed_ath"] / entry, ok),
            "dd_initial_worst": _floats(real["min_low_initial_worst"] / entry - 1, ok),
            "time_underwater_pct": _floats(100 * real["underwater_candles"] / found.candles, ok),
        }
        for name, level in _MULTIPLES.items():
            reached = real[f"min_low_after_{level:g}x"]
            metrics[f"dd_after_{name}"] = _floats(reached / (level * entry) - 1, ok)
    for name, level in _MULTIPLES.items():
        metrics[f"time_to_{name}_s"] = _seconds(whole[f"time_to_{level:g}x"], ok)
    columns = {
        **paths.identity_columns(),
        "interval_seconds": pa.array(np.full(len(ok), paths.interval_s, np.int32)),
        "horizon_hours": pa.array(np.full(len(ok), config.horizon_hours)),
        "status": pa.array(np.array(STATUSES)[status], pa.string()),
        "candles": pa.array(found.candles),
        "time_to_ath_s": _seconds(whole["time_to_ath"], ok),
        "entry_lag_s": _seconds(found.first_ts - paths.entry_ts, there),
        "censoring": pa.array(np.array(_CENSORING)[censored.astype(np.int64)], pa.string()),
        "zero_volume_candles": _integers(whole["zero_volume_candles"], ok),
        "gap_candles": _integers(gaps, ok),
        "max_ts_read": _integers(found.last_ts, there).cast(_TS),
        **metrics,
    }
    return pa.table([columns[name] for name in BASELINE_SCHEMA.names], schema=BASELINE_SCHEMA)


def _floats(values: Float64Array, valid: BoolArray) -> pa.Array:
    return pa.array(values, mask=~(valid & np.isfinite(values)))


def _integers(values: Int64Array, valid: BoolArray) -> pa.Array:
    return pa.array(values, mask=~valid)


def _seconds(values_ms: Int64Array, valid: BoolArray) -> pa.Array:
    """Whole seconds of milliseconds; null where not valid or below 0, the kernel's null."""
    return pa.array(values_ms // 1000, mask=~(valid & (values_ms >= 0)))
