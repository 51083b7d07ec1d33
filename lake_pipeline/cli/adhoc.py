"""Commands that export candles without a run: export-slice, export-slices-for-alerts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lake_pipeline.cli.options import alerts_options, data_root_option, export_config, source_options
from lake_pipeline.cli.output import format_option, print_mapping, progress

if TYPE_CHECKING:
    from lake_pipeline.adhoc import AdhocResult

__all__ = ["COMMANDS"]


def _print(result: AdhocResult, format_: str) -> None:
    values = asdict(result)
    shown = {**values, "empty": len(result.empty)}
    print_mapping(shown, format_, document=values)
    if format_ == "table" and result.empty:
        click.echo(f"no candle for: {', '.join(result.empty[:10])}{' ...' if len(result.empty) > 10 else ''}")


@click.command("export-slice")
@click.option("--mint", "mints", multiple=True, required=True, metavar="M", help="A token address; may be repeated.")
@click.option("--from", "from_", required=True, metavar="T", help="First instant, ISO 8601, in UTC or with a zone.")
@click.option("--to", required=True, metavar="T", help="End, exclusive.")
@click.option("--interval", required=True, metavar="I", help="Candle length, such as 1m.")
@click.option("--chain", default="solana", show_default=True, metavar="NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE|DIR", help="[default: named by content]")
@click.option("--partition-by", type=click.Choice(["mint"]), help="A folder of token_address=<mint>/data.parquet.")
@data_root_option
@source_options
@format_option
def export_slice_command(
    mints: tuple[str, ...],
    from_: str,
    to: str,
    interval: str,
    chain: str,
    output: Path | None,
    partition_by: str | None,
    data_root: str | None,
    table: str | None,
    database: str | None,
    wait_s: float | None,
    format_: str,
) -> None:
    """Export candles of some mints in a time range to Parquet.

    The default name is slices/slice_<from>_<to>_<fingerprint>.parquet; the fingerprint covers mints, times,
    interval, chain and table, everything that changes the rows.

    \b
    Example:
      lake export-slice --mint So11111111111111111111111111111111111111112 \\
        --from 2025-05-01 --to 2025-05-02T12:00:00Z --interval 1m
    """
    from lake_pipeline.adhoc import export_slice, parse_instant
    from lake_pipeline.core.spec import RunSpec
    from lake_pipeline.settings import LakeSettings, SourceSettings, parse_settings

    spec = RunSpec(interval, "pre0_post0", chain=chain)
    from_ms, to_ms = parse_instant("from", from_), parse_instant("to", to)
    source_given = {"table": table, "database": database, "wait_s": wait_s}
    given = {name: value for name, value in source_given.items() if value is not None}
    with parse_settings(SourceSettings, given).connect(LakeSettings(data_root=data_root).root) as source:
        result = export_slice(
            source, mints, from_ms, to_ms, spec, output=output, partition_by_mint=partition_by == "mint"
        )
    _print(result, format_)


@click.command("export-slices-for-alerts")
@click.option("--interval", metavar="I", help="Candle length, such as 1m.")
@click.option("--window", metavar="W", help="pre<N>_post<M>: candles before and after the alert's own.")
@alerts_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: named by content]")
@data_root_option
@source_options
@format_option
def export_slices_for_alerts(output: Path | None, format_: str, **values: Any) -> None:
    """Export each alert's window to a Parquet file of its own.

    Files are alert_<alert_id>_<mint[:8]>.parquet in slices/alerts_<interval>_<window>_<fingerprint>. For
    anything you want to keep or compare, export a run instead: it is sealed, and stores shared candles once.
    """
    from lake_pipeline.adhoc import export_alert_slices

    config = export_config(values)
    alerts = config.load_alerts()
    with (
        config.connect(config.root) as source,
        progress("exporting alerts", alerts.alerts.num_rows) as advance,
    ):
        result = export_alert_slices(
            source,
            alerts.alerts,
            config.spec(),
            output=output,
            max_rows_in_flight=config.max_rows_in_flight,
            on_alert=lambda: advance(1),
        )
    _print(result, format_)


COMMANDS = (export_slice_command, export_slices_for_alerts)
