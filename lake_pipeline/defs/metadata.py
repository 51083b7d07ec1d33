"""What Dagster's UI shows of each result: frozen dataclasses in, metadata out.

Figures are plain numbers, one a name, so that the UI can plot them over time.
"""

from __future__ import annotations

import base64
import datetime as dt
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from lake_pipeline import plots as lake_plots
from lake_pipeline.backtest import plots
from lake_pipeline.backtest.statistics import median
from lake_pipeline.core.alerts import NormalisedAlerts
from lake_pipeline.core.coverage import bucket_shares, filled_share
from lake_pipeline.defs.columns import PRICE_ACTION_SCHEMA, column_schema
from lake_pipeline.export import BucketResult, SnapshotResult
from lake_pipeline.io import layout
from lake_pipeline.run import Run
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

# Tables travel in the event, so they show the beginning of what the files hold. Columns that are wide and seldom read
# are last: the UI cuts a table at the right.
_PREVIEW_ROWS: Final = 10
_SHOWN_ROWS: Final = 20
_LONGEST_CELL: Final = 120
_SHOWN_TYPES: Final = {pa.int64(): "int", pa.float64(): "float", pa.bool_(): "bool"}


def snapshot_metadata(result: SnapshotResult, alerts: NormalisedAlerts, uri: str) -> Metadata:
    """Of the asset `alerts`: counts, a look at the first rows, the callers, and the rows that were rejected."""
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
        "preview": _table(alerts.alerts.slice(0, _PREVIEW_ROWS), ("alert_id", "ts", "caller", "chain", "mint")),
        "alerts_by_caller": _table(_callers(alerts.alerts).slice(0, _SHOWN_ROWS)),
        "rejected_rows": _table(
            alerts.rejected.slice(0, _SHOWN_ROWS),
            ("row_number", "reason", "alert_id", "ts", "caller", "chain", "mint"),
        ),
    }


def _callers(alerts: pa.Table) -> pa.Table:
    """`caller, alerts, mints, first_ts, last_ts`, most alerts first."""
    found = alerts.group_by("caller", use_threads=False).aggregate(
        [("alert_id", "count"), ("mint", "count_distinct"), ("ts", "min"), ("ts", "max")]
    )
    found = found.rename_columns(["caller", "alerts", "mints", "first_ts", "last_ts"])
    return found.sort_by([("alerts", "descending"), ("caller", "ascending")])


def bucket_metadata(result: BucketResult, run: Run) -> Metadata:
    """Of one partition of `candles`; figures are numbers, to be plotted over the partitions."""
    where = {"dagster/uri": f"{run.store.uri}/{layout.bucket_folder(run.spec, result.bucket)}"} if result.files else {}
    return {
        **where,
        "dagster/partition_row_count": result.rows,
        "run_id": run.run_id,
        "files": result.files,
        "bytes": result.bytes,
        "mints": result.mints,
        "alerts": result.alerts,
        "source_rows": result.ledger.source_rows,
        "duplicates": result.ledger.duplicates,
        "rejected": result.ledger.rejected,
        "outside_kept_windows": result.ledger.outside_kept_windows,
        "zero_volume": result.ledger.zero_volume,
        "skipped": result.skipped,
        "reused": result.reused,
    }


def coverage_metadata(result: CoverageResult, run: Run) -> Metadata:
    """Of the asset `coverage`: counts, the buckets as a heat map, what is missing, and the alerts that lack most."""
    table = result.table
    # Of equal ones the first, by time.
    worst = table.take(pc.sort_indices(pc.negate(table.column("missing"))).slice(0, _SHOWN_ROWS))
    return {
        "dagster/uri": f"{run.store.uri}/{layout.COVERAGE}",
        "dagster/row_count": result.alerts,
        "run_id": result.run_id,
        "filled_share": filled_share(table),
        "kept": result.kept,
        "dropped": result.dropped,
        "complete": result.complete,
        "partial": result.partial,
        "insufficient": result.insufficient,
        "rejected_candles": result.rejected_candles,
        "missing_buckets": len(result.missing_buckets),
        "coverage_by_bucket": _picture(lake_plots.coverage_heat_map(bucket_shares(table))),
        "missing_candles": _picture(
            lake_plots.missing_histogram(table.column("missing").to_pylist(), run.spec.window_candles)
        ),
        "worst_alerts": _table(
            worst,
            ("alert_id", "caller", "status", "missing", "expected_total", "available_total", "gap_count", "largest_gap",
             "mint_bucket", "kept", "reason", "mint"),
        ),
    }  # fmt: skip


def seal_metadata(result: SealResult, run: Run) -> Metadata:
    """Of the asset `manifest`: totals, the root hash, and how anybody can check it."""
    manifest = result.manifest
    return {
        "dagster/uri": f"{run.store.uri}/{layout.MANIFEST}",
        "dagster/row_count": len(manifest.files),
        "run_id": manifest.run_id,
        "content_sha256": manifest.content_sha256,
        "sealed_now": result.created,
        "files": manifest.total_files,
        "rows": manifest.total_rows,
        "bytes": manifest.total_bytes,
        "previous_run": manifest.previous.run_id if manifest.previous else None,
        "ledger": manifest.ledger.model_dump(),
        "coverage": manifest.coverage.model_dump(),
        "how_to_check": _how_to_check(run),
    }


def _how_to_check(run: Run) -> dg.MarkdownMetadataValue:
    root = run.store.uri.removesuffix(f"/{layout.run_folder(run.run_id)}")
    lines = [
        "Every byte and every rule of the format:",
        f"```\nlake verify {run.run_id} --data-root {shlex.quote(root)}\n```",
    ]
    if "://" not in root:
        lines += [
            "The hashes alone, without this package:",
            f"```\ncd {shlex.quote(run.store.uri)} && sha256sum --check --quiet {layout.CHECKSUMS}\n```",
        ]
    return dg.MetadataValue.md("\n\n".join(lines))


def baseline_metadata(result: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `baseline`: the figures of `summarise_baseline`, one a name."""
    from lake_pipeline.backtest.summary import summarise_baseline

    table = result.baseline()
    figures = summarise_baseline(table)
    return {
        **_result_metadata(result, run_id, f"{result.store.uri}/baseline.parquet", table.num_rows, table.schema),
        **{f"alerts_{status}": count for status, count in figures["statuses"].items()},
        "alerts_censored": figures["censored"],
        "alerts_without_caller": figures["without_caller"],
        **{f"median_{name}": value for name, value in figures["medians"].items()},
        **{f"hit_{name}": value for name, value in figures["hit_rates"].items()},
        "ath_histogram": _picture(plots.ath_histogram(_values(table, "ath_mult"))),
    }


def price_action_metadata(result: Result, measured: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `price_action`."""
    candles = _values(measured.baseline(), "candles")
    files = result.record.files
    return {
        **_result_metadata(result, run_id, result.store.uri, sum(candles), PRICE_ACTION_SCHEMA),
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "alerts_without_candles": len(candles) - len(files),
        "median_candles": median([count for count in candles if count]),
        "baseline_key": measured.key,
    }


def caller_metadata(result: BaselineResult, run_id: str) -> Metadata:
    """Of the asset `caller_stats`."""
    table = result.caller_stats()
    alerts = result.baseline()
    known = {name for name in alerts.column("caller").to_pylist() if name and name.strip()}
    return {
        **_result_metadata(result, run_id, f"{result.store.uri}/caller_stats.parquet", table.num_rows, table.schema),
        "callers": table.num_rows,
        "callers_with_too_few_alerts": len(known) - table.num_rows,
        "alerts_counted": sum(_values(table, "n")),
        "alerts_censored": sum(_values(table, "n_censored")),
        "alerts_excluded": sum(_values(table, "n_excluded")),
        "top_callers": _table(
            table.slice(0, _SHOWN_ROWS),
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
        **_result_metadata(result, run_id, f"{result.store.uri}/trades.parquet", table.num_rows, table.schema),
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
    from lake_pipeline.optimizer.winner import why_no_winner

    last, winner = report["folds"][-1], report["winner"]
    trials = result.trials()
    shown: dict[str, Any] = {
        **_result_metadata(result, run_id, f"{result.store.uri}/trials.parquet", trials.num_rows, trials.schema),
        "trials_evaluated": last["trials"]["evaluated"],
        "folds": len(report["folds"]),
        "trials_passing_gates": last["trials"]["passed_gates"],
        **{name: last[name] for name in ("train_alerts", "purged_alerts", "test_alerts")},
    }
    if winner is None:
        shown["winner"] = f"none: {why_no_winner(report)}"
    else:
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


def _result_metadata(result: Result, run_id: str, uri: str, rows: int, schema: pa.Schema) -> dict[str, Any]:
    return {
        "dagster/uri": uri,
        "dagster/row_count": rows,
        "dagster/column_schema": column_schema(schema),
        "run_id": run_id,
        "result_key": result.key,
        "computed_now": result.created,
    }


def _values(table: pa.Table, name: str) -> list[Any]:
    """The values of a column that are not null."""
    values: list[Any] = table.column(name).drop_null().to_pylist()
    return values


def _table(table: pa.Table, names: Sequence[str] | None = None) -> dg.TableMetadataValue:
    """These columns, or all. Times are text; text is cut where it is long, as raw input may be anything."""
    table = table.select(names or table.schema.names)
    columns = [dg.TableColumn(field.name, _SHOWN_TYPES.get(field.type, "string")) for field in table.schema]
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in table.to_pylist()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def _cell(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, str) and len(value) > _LONGEST_CELL:
        return f"{value[:_LONGEST_CELL]}..."
    return value


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A picture that travels in the event itself, so that it is seen where the lake is out of reach."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")
