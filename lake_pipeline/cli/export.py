"""Commands that make runs: demo, load-candles, plan, export-run-slices."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lake_pipeline.cli.options import data_root_option, export_config, run_options, source_options
from lake_pipeline.cli.output import format_option, print_mapping, print_rows, progress

if TYPE_CHECKING:
    from lake_pipeline.api import ExportConfig, ExportResult
    from lake_pipeline.export import BucketResult
    from lake_pipeline.run import Run

__all__ = ["COMMANDS", "sealed_run"]


def _export(config: ExportConfig) -> ExportResult:
    from lake_pipeline.cli.dagster_run import run_export_job
    from lake_pipeline.core.buckets import ALL_BUCKETS

    reused = 0
    with progress("exporting buckets", len(ALL_BUCKETS)) as advance:

        def on_bucket(result: BucketResult) -> None:
            nonlocal reused
            reused += result.reused
            advance(1)

        exported = run_export_job(config, on_bucket)
    if reused:
        click.echo(f"{reused} of 256 buckets were taken from sealed runs: nothing they hold has changed", err=True)
    return exported


def sealed_run(config: ExportConfig) -> Run:
    """The sealed run these settings stand for: found by the id that its content gives it, else exported and sealed."""
    from lake_pipeline.io.layout import MANIFEST, run_folder
    from lake_pipeline.run import load_run

    lake = config.store()
    with config.connect(config.root) as source:
        record = config.identify(config.load_alerts(), source)
    if lake.exists(f"{run_folder(record.run_id)}/{MANIFEST}"):
        click.echo(f"run {record.run_id} is sealed already and is used", err=True)
    else:
        click.echo(f"run {record.run_id} is exported and sealed first", err=True)
        _export(config)
    run = load_run(lake, record.run_id)
    run.require_same(record)
    return run


def _summary(result: ExportResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "run": manifest.run_id,
        "state": "sealed" if result.created else "was sealed before; verified, nothing changed",
        "slices": f"{manifest.slice_spec.interval} {manifest.slice_spec.window}, chain {manifest.slice_spec.chain}",
        "alerts": f"{manifest.coverage.kept_events} kept, {manifest.coverage.dropped_events} dropped",
        "coverage": {name: getattr(manifest.coverage, name) for name in ("complete", "partial", "insufficient")},
        "candles": manifest.total_rows,
        "files": manifest.total_files,
        "bytes": manifest.total_bytes,
        "ledger": manifest.ledger.model_dump(),
        "content_sha256": manifest.content_sha256,
        "manifest": result.manifest_path,
    }


def _print_export(result: ExportResult, format_: str) -> None:
    document = {
        "manifest": result.manifest.document(),
        "manifest_path": result.manifest_path,
        "coverage_path": result.coverage_path,
        "total_rows": result.total_rows,
        "total_files": result.total_files,
        "total_bytes": result.total_bytes,
    }
    flat = {name: value for name, value in document.items() if name != "manifest"}
    if format_ == "csv":
        print_rows([{"run_id": result.manifest.run_id, **flat}], format_)
    else:
        print_mapping(_summary(result), format_, document=document)


@click.command("export-run-slices")
@run_options
@data_root_option
@source_options
@click.option("--threads", type=int, metavar="N", help="Queries and encoders at once. [default: cores, at most 8]")
@click.option(
    "--check-source/--no-check-source",
    default=None,
    help="Refuse buckets whose candles change in the source meanwhile. [default: no]",
)
@click.option(
    "--reuse/--no-reuse", default=None, help="Take unchanged buckets from sealed runs of this data root. [default: yes]"
)
@click.option(
    "--config", metavar="FILE", help="A JSON object of settings (docs/configuration.md); options win over it."
)
@format_option
def export_run_slices(format_: str, config: str | None, **values: Any) -> None:
    """Export the candles around every alert and seal the run.

    Runs the Dagster job `export_run` in this process, so that the run shows in the UI when DAGSTER_HOME is
    set. Buckets that are done are skipped; on a sealed run everything is verified and nothing changed.

    \b
    Example:
      lake export-run-slices --interval 1m --window pre52_post4948 --alerts examples/alerts.csv
    """
    _print_export(_export(export_config(values, config)), format_)


@click.command()
@click.option("--load-only", is_flag=True, help="Only write and load the candles: what to export is left to you.")
@data_root_option
@format_option
def demo(load_only: bool, data_root: str | None, format_: str) -> None:
    """Make synthetic candles and alerts, export them, and show the sealed run.

    Everything goes through the real parts: an embedded ClickHouse engine, the Dagster job, the seal. The data
    has gaps, duplicates, zero volume, broken rows, a late listing and overlapping windows, and is the same
    for everybody. A second run finds the sealed run, verifies it and changes nothing.
    """
    from lake_pipeline.demo import DEMO_INTERVAL, DEMO_WINDOW, write_demo_inputs
    from lake_pipeline.settings import LakeSettings, local_root

    root = LakeSettings(data_root=data_root).root
    candles, alerts = write_demo_inputs(Path(local_root(root), "demo"))
    # The demo's broken alerts are meant to be: they show in its summary, not as a warning.
    logging.getLogger("lake_pipeline.export").setLevel(logging.ERROR)
    loaded = _load([str(candles)], data_root, {}, None, None)
    if load_only:
        print_mapping({"candles": str(candles), "alerts": str(alerts), **asdict(loaded)}, format_)
        return
    config = export_config(
        {"data_root": root, "alerts": str(alerts), "interval": DEMO_INTERVAL, "window": DEMO_WINDOW, "run_id": "demo"}
    )
    result = _export(config)
    if format_ != "table":
        _print_export(result, format_)
        return
    click.echo(
        f"candles loaded into the embedded engine: {loaded.rows:,} rows, {loaded.inserted:,} new, "
        f"{loaded.present:,} already there\n"
        "alerts: 64, of which four are broken on purpose and set apart with their reasons\n"
    )
    print_mapping(_summary(result), format_)
    click.echo("\nlongest gaps:")
    _print_worst_alerts(config)
    # In a fresh clone the command is not on the PATH yet: what is shown here must work where it is pasted.
    program = "lake" if shutil.which("lake") else sys.argv[0]
    option = "" if root == LakeSettings().root else f" --data-root {shlex.quote(root)}"
    click.echo(
        "\nNext:\n"
        f"  {program} verify demo{option}\n"
        f"  {program} report demo{option} -o report.html\n"
        "  make ui\n"
        "or in Python:\n"
        f"  from lake_pipeline import open_run; print(open_run('demo', {root!r}).slice('0001').to_pandas())"
    )


def _print_worst_alerts(config: ExportConfig) -> None:
    from lake_pipeline.reader import open_run

    columns = ["alert_id", "caller", "available_total", "expected_total", "missing", "largest_gap", "status"]
    worst = open_run("demo", config.root).coverage().sort_by([("largest_gap", "descending"), ("alert_id", "ascending")])
    print_rows(worst.select(columns).slice(0, 5).to_pylist(), "table")


def _load(
    files: list[str], data_root: str | None, source: dict[str, Any], chain: str | None, interval_s: int | None
) -> Any:
    from lake_pipeline.io.load import load_candles
    from lake_pipeline.settings import LakeSettings, SourceSettings, parse_settings

    settings = parse_settings(SourceSettings, {name: value for name, value in source.items() if value is not None})
    with (
        settings.connect(LakeSettings(data_root=data_root).root) as connection,
        progress("loading candles", None) as advance,
    ):
        return load_candles(connection, files, chain=chain, interval_s=interval_s, on_rows=advance)


@click.command("load-candles")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@data_root_option
@source_options
@click.option("--chain", metavar="NAME", help="For files without a chain column.")
@click.option("--interval", metavar="I", help="For files without an interval column, such as 1m.")
@format_option
def load_candles_command(
    files: tuple[str, ...],
    data_root: str | None,
    table: str | None,
    database: str | None,
    wait_s: float | None,
    chain: str | None,
    interval: str | None,
    format_: str,
) -> None:
    """Load Parquet or CSV candles into the source table, creating it if absent.

    Rows the table has already are not added again, so loading twice is the same as loading once. Columns:
    token_address (or mint), timestamp, open, high, low, close, volume; chain and interval_seconds, unless given
    here; source, quality_score and ingested_at if there are any.
    """
    from lake_pipeline.core.window import interval_to_seconds

    source = {"table": table, "database": database, "wait_s": wait_s}
    loaded = _load(list(files), data_root, source, chain, interval_to_seconds(interval) if interval else None)
    print_mapping(asdict(loaded), format_)


@click.command()
@run_options
@data_root_option
@click.option(
    "--config", metavar="FILE", help="A JSON object of settings (docs/configuration.md); options win over it."
)
@format_option
def plan(format_: str, config: str | None, **values: Any) -> None:
    """Show what an export would do: alerts, mints, windows, upper bounds of rows. Touches nothing.

    Reads the alerts only; no engine is asked. Bounds come from the windows: no candle can add to them.
    """
    from lake_pipeline.core.plan import build_plan

    settings = export_config(values, config)
    alerts = settings.load_alerts()
    found = build_plan(alerts.alerts, settings.spec())
    by_bucket = found.rows_by_bucket()
    summary = {
        "alerts": alerts.alerts.num_rows,
        "rejected": alerts.rejected.num_rows,
        "outside_date_range": alerts.outside_range,
        "mints": len(found.mints),
        "windows": len(found.starts),
        "buckets": len(by_bucket),
        "max_rows": sum(by_bucket.values()),
        "largest_bucket_rows": max(by_bucket.values()),
    }
    if format_ == "csv":
        print_rows([{"bucket": bucket, "max_rows": rows} for bucket, rows in by_bucket.items()], format_)
        return
    reasons = alerts.rejected.select(["row_number", "reason"]).to_pylist()
    print_mapping(summary, format_, document={**summary, "max_rows_by_bucket": by_bucket, "rejected_rows": reasons})
    if format_ == "table" and reasons:
        click.echo("\nrejected alerts:")
        print_rows(reasons[:10], format_)


COMMANDS = (demo, load_candles_command, plan, export_run_slices)
