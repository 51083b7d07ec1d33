"""What the columns of each asset's table mean, as Dagster's catalog shows them. The contract is docs/format.md."""

from __future__ import annotations

import re
from typing import Final

import dagster as dg
import pyarrow as pa

from lake_pipeline.core.schemas import SLICE_SCHEMA

__all__ = ["MANIFEST_FILES_SCHEMA", "PRICE_ACTION_SCHEMA", "column_schema"]

PRICE_ACTION_SCHEMA: Final = pa.schema(
    [("timestamp", SLICE_SCHEMA.field("ts").type), *(SLICE_SCHEMA.field(index) for index in range(3, 8))]
)
# The list `files` of manifest.json.
MANIFEST_FILES_SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("rows", pa.int64()),
        ("min_ts_ms", pa.int64()),
        ("max_ts_ms", pa.int64()),
    ]
)

_MEANINGS: Final = {
    "alert_id": "the alert, unique in the run",
    "alert_ts_utc": "time of the alert",
    "ambiguous": "both levels were in one candle: their order is unknown",
    "ambiguous_share": "share of trades with both levels in one candle",
    "anchor_ts_ms": "open time of the candle that contains the alert",
    "ath_mult": "highest high over the entry price",
    "ath_volume_backed": "ath_mult over candles with volume",
    "available_post": "candles from the anchor's on",
    "available_pre": "candles before the anchor",
    "available_total": "candles in the window",
    "breakeven_offset": "how far above the entry the break-even stop is",
    "breakeven_trigger": "gain that moves the stop to break-even",
    "bytes": "size of the file",
    "caller": "who called, if known",
    "candles": "candles of the path",
    "censoring": "complete, or lower_bound: the candles end before the horizon",
    "chain": "the run's chain",
    "close": "last price",
    "dd_after_ath": "lowest low after the highest high, over it, minus 1",
    "dd_initial": "lowest low before the price first exceeds the entry, over the entry, minus 1",
    "dd_initial_worst": "dd_initial with the low of the recovery candle",
    "dd_overall": "lowest low over the entry, minus 1",
    "dd_pre2x": "lowest low up to the 2x candle over the entry, minus 1",
    "entry_lag_s": "seconds from the entry time to the first candle",
    "entry_price": "open of the first candle at or after the entry time",
    "entry_ts_utc": "the alert's time, rounded up to a candle's open",
    "equity": "equity after this trade, 1 before the first",
    "exit_price": "price of the exit, before costs",
    "exit_ts_utc": "open time of the candle of the exit",
    "expected_total": "candle slots of the window",
    "failed_gates": "gates the trial failed; empty if none",
    "fee_bps": "fees of the round trip, basis points",
    "fill": "gap or level",
    "final_equity": "equity after the last trade, from 1",
    "first_ts_ms": "first candle in the window",
    "fold": "number of the train and test periods",
    "gap_candles": "candles missing between the first and the last",
    "gap_count": "number of gaps",
    "has_anchor": "whether the alert's own candle is there",
    "high": "highest price",
    "hold_time_s": "seconds from entry to exit",
    "horizon_hours": "length of the path, as set",
    "interval_s": "candle length in seconds",
    "interval_seconds": "candle length in seconds",
    "intrabar_order": "sl_first or tp_first",
    "kept": "whether the run keeps the alert",
    "largest_gap": "slots in the longest gap",
    "last_ts_ms": "last candle in the window",
    "low": "lowest price",
    "mae": "lowest low while held, over the entry, minus 1",
    "max_drawdown": "worst fall of the equity under its peak",
    "max_losing_streak": "most losses in a row",
    "max_ts_ms": "last candle in the file",
    "max_ts_read": "the last candle this row was computed from",
    "mean_r": "mean of the R multiples",
    "mean_ret": "mean return",
    "mean_ret_best": "mean return with the better order inside ambiguous candles",
    "mean_ret_worst": "mean return with the worse order inside ambiguous candles",
    "median_ath_mult": "median of ath_mult",
    "mfe": "highest high while held, over the entry, minus 1",
    "min_ts_ms": "first candle in the file",
    "mint": "token address",
    "mint_bucket": "first byte of SHA-1(mint), two hex digits",
    "missing": "slots without a candle",
    "n": "alerts with status ok",
    "n_bad_entry": "alerts without a usable entry price",
    "n_censored": "of the n, those whose candles end before the horizon",
    "n_excluded": "alerts that are not ok",
    "n_late_entry": "alerts whose first candle is too late",
    "n_missing": "alerts without a candle",
    "objective": "what the search makes large",
    "open": "first price",
    "path": "path in the run's folder",
    "peak_pnl_pct": "(ath_mult - 1) * 100",
    "profit_factor": "gains over losses",
    "r_multiple": "return over what a stop would lose",
    "rank": "1 is the highest score",
    "reason": "why the alert was dropped",
    "ret_best": "return with the better order inside an ambiguous candle",
    "ret_end_pct": "last close over the entry, minus 1, in %",
    "ret_worst": "return with the worse order inside an ambiguous candle",
    "risk_per_trade": "fraction of the equity a stop costs",
    "rows": "rows of the file",
    "score": "as docs/backtest.md defines it",
    "seed": "of the search",
    "sha256": "hash of the file",
    "sharpe": "mean return over its standard deviation, a trade",
    "sl": "stop-loss, a multiple of the entry",
    "slippage_bps": "slippage of each side, basis points",
    "source": "as the candle table has it",
    "status": "complete, partial or insufficient; of a backtest: ok, missing, bad_entry or late_entry",
    "std_ret": "standard deviation of the returns",
    "tiers": "stop ladder",
    "time_stop_hours": "close after so long",
    "time_to_ath_s": "seconds from entry to the highest high",
    "time_underwater_pct": "share of candles that close below the entry, in %",
    "timestamp": "open time of the candle",
    "tp": "take-profit, a multiple of the entry",
    "tp_sl_exit_reason": "tp, sl, trail, breakeven, tier, time or horizon",
    "tp_sl_ret": "return after costs",
    "trail_activation": "gain that starts the trailing stop",
    "trail_distance": "fraction below the peak",
    "trial": "number of the trial",
    "trial_id": "hash of the trial's parameters",
    "ts": "of an alert its time, of a candle its open time",
    "volume": "traded volume, may be 0",
    "win_rate": "share of trades with a gain",
    "window_end_ms": "end of the window, exclusive",
    "window_start_ms": "start of the window",
    "zero_volume": "candles without volume",
    "zero_volume_candles": "candles without volume",
}
_FAMILIES: Final = (
    (r"time_to_(\d+)(?:_(\d+))?x_s", "seconds from entry to the first high of {}x; empty if never"),
    (r"dd_after_(\d+)(?:_(\d+))?x", "lowest low after the {0}x candle over {0}x the entry, minus 1"),
    (r"hit_(\d+)(?:_(\d+))?x", "share of the n that reached {}x"),
    (r"p(\d+)_ath_mult()", "{}th percentile of ath_mult"),
)


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The columns of a table with their Arrow types and meanings."""
    return dg.TableSchema([dg.TableColumn(each.name, str(each.type), _meaning(each.name)) for each in schema])


def _meaning(name: str) -> str:
    if name in _MEANINGS:
        return _MEANINGS[name]
    for pattern, meaning in _FAMILIES:
        if found := re.fullmatch(pattern, name):
            return meaning.format(".".join(filter(None, found.groups())))
    # Medians and periods of what is explained above.
    for prefix, meaning in (("median_", "median of {}"), ("train_", "on train: {}"), ("test_", "on test: {}")):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return meaning.format(rest if prefix == "median_" else "trades" if rest == "n" else _meaning(rest))
    return ""
