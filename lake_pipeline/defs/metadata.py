"""What Dagster's UI shows of each result: frozen dataclasses in, metadata out.

Figures are plain numbers, one a name, so that the UI can plot them over time.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline.backtest import plots
from lake_pipeline.backtest.statistics import median
from lake_pipeline.export import BucketResult, SnapshotResult
from lake_pipeline.seal import CoverageResult, SealResult

if TYPE_CHECKING:
    from lake_pipeline.backtest import BaselineResult, Result, StrategyResult
    from lake_pipeline.optimizer.results import OptimizeResult

__all__ = [
    "baseline_metadata",
    "bucket_metadata",
    "caller_metadata",
    "coverage_metadata",
    "optimization_metadata",
    "price_action_metadata",
    "seal_metadata",
    "snapshot_metadata",
    "trades_metadata",
]

Metadata = Mapping[str, Any]


def snapshot_metadata(result: SnapshotResult, uri: str) -> Metadata:
    """Of the asset `alerts`."""
    return {
        "dagster/uri": uri,
        "dagster/row_count": result.alerts,
        "run_id": result.run_id,
        "run_fingerprint": result.run_fingerprint,
        "rows_in": result.rows_in,
        "rejected": result.rejected,
        "rejected_reasons": dict(sorted(result.reasons.items())),
        "outside_date_range": result.outside_range,
        "mints": result.mints,
        "callers": result.callers,
    }


def bucket_metadata(result: BucketResult, run_id: str) -> Metadata:
    """Of one partition of `candles`."""
    return {
        "dagster/partition_row_count": result.rows,
        "run_id": run_id,
        "files": result.files,
        "bytes": result.bytes,
        "mints": result.mints,
        "alerts": result.alerts,
        "duplicates": result.ledger.duplicates,
        "rejected": result.ledger.rejected,
        "zero_volume": result.ledger.zero_volume,
        "skipped": result.skipped,
        "reused": result.reused,
    }


def coverage_metadata(result: CoverageResult, uri: str) -> Metadata:
    """Of the asset `coverage`."""
    return {
        "dagster/uri": uri,
        "dagster/row_count": result.alerts,
        "run_id": result.run_id,
        "kept": result.kept,
        "dropped": result.dropped,
        "complete": result.complete,
        "partial": result.partial,
        "insufficient": result.insufficient,
        "rejected_candles": result.rejected_candles,
        "missing_buckets": len(result.missing_buckets),
    }


def seal_metadata(result: SealResult, uri: str) -> Metadata:
    """Of the asset `manifest`."""
    manifest = result.manifest
    return {
        "dagster/uri": uri,
        "run_id": manifest.run_id,
        "content_sha256": manifest.content_sha256,
        "sealed_now": result.created,
        "files": manifest.total_files,
        "rows": manifest.total_rows,
        "bytes": manifest.total_bytes,
        "ledger": manifest.ledger.model_dump(),
        "coverage": manifest.coverage.model_dump(),
    }


def baseline_metadata(result: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `baseline`."""
    table = result.baseline()
    ath = _values(table, "ath_mult")
    ok = len(_values(table, "entry_price"))
    statuses = table.column("status").to_pylist()
    return {
        **_result_metadata(result, run_id, f"{result.store.uri}/baseline.parquet", table.num_rows),
        **{f"alerts_{status}": statuses.count(status) for status in ("ok", "missing", "bad_entry", "late_entry")},
        "alerts_censored": table.column("censoring").to_pylist().count("lower_bound"),
        "median_ath_mult": median(ath),
        **{f"hit_{n}x": len(_values(table, f"time_to_{n}x_s")) / ok if ok else None for n in (2, 3, 5, 10)},
        "median_time_to_2x_s": median(_values(table, "time_to_2x_s")),
        **{f"median_{name}": median(_values(table, name)) for name in ("dd_initial", "dd_overall", "ret_end_pct")},
        "ath_histogram": _picture(plots.ath_histogram(ath)),
    }


def price_action_metadata(result: Result, measured: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `price_action`."""
    candles = _values(measured.baseline(), "candles")
    files = result.record.files
    return {
        **_result_metadata(result, run_id, result.store.uri, sum(candles)),
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "alerts_without_candles": len(candles) - len(files),
        "median_candles": median([count for count in candles if count]),
        "baseline_key": measured.key,
    }


_SHOWN_CALLERS: Final = 20


def caller_metadata(result: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `caller_stats`."""
    table = result.caller_stats()
    alerts = result.baseline()
    known = {name for name in alerts.column("caller").to_pylist() if name and name.strip()}
    return {
        **_result_metadata(result, run_id, f"{result.store.uri}/caller_stats.parquet", table.num_rows),
        "callers": table.num_rows,
        "callers_with_too_few_alerts": len(known) - table.num_rows,
        "alerts_counted": sum(_values(table, "n")),
        "alerts_censored": sum(_values(table, "n_censored")),
        "alerts_excluded": sum(_values(table, "n_excluded")),
        "top_callers": _table(
            table.slice(0, _SHOWN_CALLERS),
            ("rank", "caller", "score", "n", "n_censored", "n_excluded", "median_ath_mult", "p95_ath_mult", "hit_2x",
             "hit_3x", "median_time_to_2x_s", "median_dd_initial", "median_dd_overall", "median_ret_end_pct"),
        ),
    }  # fmt: skip


def trades_metadata(result: StrategyResult, run_id: str) -> Metadata:
    """Of the asset `trades`."""
    table, figures = result.trades(), result.summary()["all"]
    case = figures["case"]
    order = table.filter(pc.is_valid(table.column("exit_ts_utc"))).sort_by("exit_ts_utc")
    return {
        **_result_metadata(result, run_id, f"{result.store.uri}/trades.parquet", table.num_rows),
        "trades": figures["n"],
        **{f"alerts_{status}": count for status, count in figures["statuses"].items()},
        **{f"exits_{reason}": count for reason, count in figures["exit_reasons"].items()},
        "ambiguous_share": figures["ambiguous_share"],
        **case,
        "best_case_mean_ret": figures["best_case"]["mean_ret"],
        "worst_case_mean_ret": figures["worst_case"]["mean_ret"],
        "strategy": result.record.identity["parameters"]["strategy"],
        "outcomes": _picture(plots.outcome_bars(figures["exit_reasons"])),
        "equity_curve": _picture(plots.equity_curve(_values(order, "equity"))),
    }


def optimization_metadata(result: OptimizeResult, report: Mapping[str, Any], pictures: Result, run_id: str) -> Metadata:
    """Of the asset `optimization`; `report` is that of the result."""
    last, winner = report["folds"][-1], report["winner"]
    shown: dict[str, Any] = {
        **_result_metadata(result, run_id, f"{result.store.uri}/trials.parquet", last["trials"]["evaluated"]),
        "folds": len(report["folds"]),
        "trials_passing_gates": last["trials"]["passed_gates"],
        **{name: last[name] for name in ("train_alerts", "purged_alerts", "test_alerts")},
    }
    if winner is not None:
        luck = winner["luck_on_run"]
        shown |= {
            "winner": winner["strategy"],
            "objective": report["objective"],
            **{f"{period}_objective": winner[f"{period}_objective"] for period in ("train", "test")},
            **{
                f"{period}_{name}": winner[period][name]
                for period in ("train", "test")
                for name in ("n", "mean_ret", "win_rate", "sharpe", "ambiguous_share", "mean_ret_worst")
            },
            "test_interval": winner["test_interval"],
            "trials_on_run": luck["trials"],
            **{name: luck[name] for name in ("deflated_sharpe", "published_deflated_sharpe")},
            "plateau_ratio": winner["plateau"]["ratio"],
            "worst_lane": winner["lanes"][0]["worst"],
            "concerns": dg.MetadataValue.md("".join(f"- {each}\n" for each in winner["concerns"]) or "none"),
        }
    return {
        **shown,
        **{name: _picture(pictures.store.read(f"{name}.png")) for name in ("heatmap", "trials", "equity")},
        "folds_picture": _picture(pictures.store.read("folds.png")),
    }


def _result_metadata(result: Result, run_id: str, uri: str, rows: int) -> dict[str, Any]:
    return {
        "dagster/uri": uri,
        "dagster/row_count": rows,
        "run_id": run_id,
        "result_key": result.key,
        "computed_now": result.created,
    }


def _values(table: pa.Table, name: str) -> list[Any]:
    """The values of a column that are not null."""
    values: list[Any] = table.column(name).drop_null().to_pylist()
    return values


def _table(table: pa.Table, names: Sequence[str]) -> dg.TableMetadataValue:
    types = {pa.int64(): "int", pa.float64(): "float", pa.string(): "string"}
    columns = [dg.TableColumn(name, types[table.schema.field(name).type]) for name in names]
    records = [dg.TableRecord(row) for row in table.select(names).to_pylist()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A picture that travels in the event itself, so that it is seen where the lake is out of reach."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")
