"""Commands that look at runs: runs, show, verify, diff, reproduce."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lake_pipeline.cli.options import data_root_option
from lake_pipeline.cli.output import format_option, print_mapping, print_rows, progress, readable_bytes

if TYPE_CHECKING:
    from lake_pipeline.diff import CandleDiff
    from lake_pipeline.io.store import Store

__all__ = ["COMMANDS"]


@click.command()
@data_root_option
@format_option
def runs(data_root: str | None, format_: str) -> None:
    """List all runs, sealed or not, with their sizes and coverage."""
    from lake_pipeline.errors import LakeError
    from lake_pipeline.run import list_run_ids
    from lake_pipeline.settings import LakeSettings

    lake = LakeSettings(data_root=data_root).store()
    rows: list[dict[str, Any]] = []
    for run_id in list_run_ids(lake):
        row: dict[str, Any] = dict.fromkeys(
            ("run_id", "state", "interval", "window", "alerts", "kept", "complete", "candles", "files", "bytes")
        )
        row["run_id"] = run_id
        try:
            row |= _sealed_row(lake, run_id) or _unsealed_row(lake, run_id)
        except LakeError as error:
            row["state"] = f"damaged: {error}"
        rows.append(row)
    print_rows(rows, format_, empty=f"no runs under {lake.uri}; `lake demo` makes one")


def _sealed_row(lake: Store, run_id: str) -> dict[str, Any] | None:
    from lake_pipeline.core.manifest import Summary, parse_record
    from lake_pipeline.errors import RunError
    from lake_pipeline.io import layout

    path = f"{layout.run_folder(run_id)}/{layout.MANIFEST}"
    if not lake.exists(path):
        return None
    summary = parse_record(Summary, lake.read(path), path)
    if summary.run_id != run_id:
        raise RunError(f"{path} is that of run {summary.run_id!r}")
    outputs = summary.outputs.values()
    return {
        "state": "sealed",
        "interval": summary.slice_spec.interval,
        "window": summary.slice_spec.window,
        "alerts": summary.inputs.alerts.rows,
        "kept": summary.coverage.kept_events,
        "complete": summary.coverage.complete,
        "candles": sum(output.rows for output in outputs),
        "files": sum(output.files for output in outputs),
        "bytes": sum(output.bytes for output in outputs),
    }


def _unsealed_row(lake: Store, run_id: str) -> dict[str, Any]:
    from lake_pipeline.core.buckets import ALL_BUCKETS
    from lake_pipeline.io import layout
    from lake_pipeline.run import load_run

    run = load_run(lake, run_id)
    done = sum(run.store.exists(layout.receipt_path(bucket)) for bucket in ALL_BUCKETS)
    return {
        "state": f"{done} of {len(ALL_BUCKETS)} buckets",
        "interval": run.spec.interval,
        "window": run.spec.window,
    }


@click.command()
@click.argument("run_id", metavar="RUN")
@data_root_option
@format_option
def show(run_id: str, data_root: str | None, format_: str) -> None:
    """Show one run: its settings, inputs, coverage, ledger and files."""
    from lake_pipeline.core.buckets import format_buckets
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings

    run = load_run(LakeSettings(data_root=data_root).store(), run_id)
    record = run.record
    values: dict[str, Any] = {"run_id": run_id, "path": run.store.uri, "run_fingerprint": record.run_fingerprint}
    values |= {name: value for name, value in record.spec.items() if value is not None}
    values["source"] = f"{record.source['database']}.{record.source['table']}"
    if run.sealed:
        manifest = run.manifest()
        values |= {
            "state": "sealed",
            "alerts": manifest.inputs.alerts.rows,
            "coverage": manifest.coverage.model_dump(),
            "ledger": manifest.ledger.model_dump(),
            "candles": manifest.total_rows,
            "files": manifest.total_files,
            "bytes": manifest.total_bytes,
            "content_sha256": manifest.content_sha256,
        }
        print_mapping(values, format_, document=manifest.document())
        return
    bad = [state for state in run.bucket_states() if not state.receipt]
    values["state"] = "not sealed"
    values["buckets_missing"] = f"{len(bad)} of 256: {format_buckets(state.bucket for state in bad)}" if bad else "none"
    print_mapping(values, format_)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--chain", is_flag=True, help="Also the run its manifest names as previous, and so on to the first.")
@data_root_option
@format_option
def verify(run_id: str, chain: bool, data_root: str | None, format_: str) -> None:
    """Check every byte and every rule of a sealed run; name each fault. Exit code 1 if there are any.

    Hashes all files, looks for missing and foreign ones, recounts rows, rebuilds the manifest from the receipts,
    and reads every candle: schema, order, uniqueness, sanity, windows, coverage.
    """
    from lake_pipeline.io.layout import run_folder
    from lake_pipeline.settings import LakeSettings
    from lake_pipeline.verify import verify_chain, verify_run

    lake = LakeSettings(data_root=data_root).store()
    with progress("hashing bytes", None) as advance:
        if chain:
            reports = verify_chain(lake, run_id, on_file=advance)
        else:
            reports = [verify_run(lake.sub(run_folder(run_id)), run_id, on_file=advance)]
    documents = [{**asdict(report), "ok": report.ok} for report in reports]
    if format_ == "json":
        print_mapping(
            {"runs": documents, "ok": all(each["ok"] for each in documents)} if chain else documents[0], format_
        )
    elif format_ == "csv":
        print_rows([{"run_id": each.run_id, "fault": fault} for each in reports for fault in each.faults], format_)
    for report in reports if format_ == "table" else ():
        for fault in report.faults:
            click.echo(f"FAULT  {fault}")
        verdict = "verified, nothing differs" if report.ok else f"NOT verified: {len(report.faults)} faults"
        size = readable_bytes(report.bytes)
        click.echo(f"run {report.run_id} {verdict} ({report.files} files, {size}, {report.rows:,} candles)")
    if not all(report.ok for report in reports):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@data_root_option
@format_option
def diff(run_a: str, run_b: str, data_root: str | None, format_: str) -> None:
    """Show which settings, buckets, mints and alerts differ between two sealed runs. Exit code 1 if content does."""
    from lake_pipeline.diff import diff_runs
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings

    lake = LakeSettings(data_root=data_root).store()
    found = diff_runs(load_run(lake, run_a), load_run(lake, run_b))
    if format_ == "json":
        print_mapping(asdict(found), format_)
    elif format_ == "csv":
        print_rows([asdict(mint) for mint in found.mints], format_)
    else:
        click.echo("content: " + ("identical" if found.same_content else "differs"))
        for line in found.settings:
            click.echo(f"setting  {line}")
        if not found.same_content:
            click.echo(f"{len(found.buckets)} buckets differ{': ' if found.buckets else ''}{', '.join(found.buckets)}")
            if found.mints:
                print_rows([asdict(mint) for mint in found.mints], format_)
            for alert_id, what in found.alerts.items():
                click.echo(f"alert {alert_id}: {what}")
    if not found.same_content:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--bucket", "buckets", multiple=True, metavar="HH", help="Only this bucket; may be repeated.")
@click.option(
    "--scratch", metavar="DIR", help="Where the copy is made and removed again. [default: a temporary folder]"
)
@data_root_option
@format_option
def reproduce(run_id: str, buckets: tuple[str, ...], scratch: str | None, data_root: str | None, format_: str) -> None:
    """Export a sealed run again from its source and compare, bucket by bucket.

    Says "identical", or what the source has changed since: which mints, and which candles were added, removed or
    revised. The sealed run is only read. Exit code 0 if identical, 1 if something differs, 2 if it could not be tried.
    """
    from lake_pipeline.core.buckets import ALL_BUCKETS
    from lake_pipeline.reproduce import reproduce_run
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings, SourceSettings

    lake = LakeSettings(data_root=data_root)
    run = load_run(lake.store(), run_id)
    settings = SourceSettings(**run.record.source)
    chosen = buckets or ALL_BUCKETS
    with settings.connect(lake.root) as source, progress("exporting buckets again", len(chosen)) as advance:
        found = reproduce_run(
            run,
            source,
            chosen,
            scratch=scratch,
            threads=settings.thread_count,
            on_bucket=lambda result: advance(1),
        )
    if format_ == "json":
        print_mapping({**asdict(found), "identical": found.identical}, format_)
    elif format_ == "csv":
        print_rows([_candle_columns(candle) for candle in found.candles], format_)
    elif found.identical:
        click.echo(f"identical: {found.buckets} of {found.buckets} buckets of run {run_id}, every byte")
    else:
        click.echo(f"{len(found.changed)} of {found.buckets} buckets of run {run_id} differ from what was sealed")
        print_rows([{**asdict(each), "ledger": "; ".join(each.ledger)} for each in found.changed], format_)
        if found.mints:
            click.echo("\nmints, by candles removed (only_in_a), added (only_in_b) and revised (changed):")
            print_rows([asdict(mint) for mint in found.mints], format_)
            click.echo("\nthe first candles (--format csv has more):")
            print_rows([_candle_row(candle) for candle in found.candles[:10]], format_)
    if not found.identical:
        raise click.exceptions.Exit(1)


def _candle_columns(candle: CandleDiff) -> dict[str, Any]:
    values = asdict(candle)
    for side in ("a", "b"):
        found = values.pop(side) or {}
        values |= {f"{side}_{name}": found.get(name) for name in ("open", "high", "low", "close", "volume", "source")}
    return values


def _candle_row(candle: CandleDiff) -> dict[str, Any]:
    """A changed candle in a line: of a revised one, only the values that differ."""
    a, b = candle.a or {}, candle.b or {}
    if candle.change == "revised":
        what = ", ".join(f"{name} {a[name]} -> {b[name]}" for name in a if a[name] != b[name])
    else:
        what = ", ".join(f"{name} {value}" for name, value in (a or b).items())
    return {"mint": candle.mint, "ts_ms": candle.ts_ms, "change": candle.change, "values": what}


COMMANDS = (runs, show, verify, diff, reproduce)
