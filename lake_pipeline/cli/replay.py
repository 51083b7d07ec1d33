"""`lake replay`: what a researcher opens when a number looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lake_pipeline.cli.options import data_root_option, strategy_config, strategy_options
from lake_pipeline.cli.output import format_option, print_mapping, print_rows

if TYPE_CHECKING:
    from lake_pipeline.backtest import Replay

__all__ = ["COMMANDS"]

_FIRST: Final = 5
_BEFORE_EXIT: Final = 8
_AFTER_EXIT: Final = 3
_PICTURES: Final = {".png": "png", ".svg": "svg"}


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("alert_id", metavar="ALERT_ID")
@strategy_options
@click.option("--horizon-hours", type=float, metavar="H", help="Length of the path from the entry on. [default: 48]")
@click.option("--max-entry-lag", type=int, metavar="N", help="Candles the first one may come late. [default: 15]")
@click.option("--plot", metavar="FILE", help="Also draw the candles with entry, exit and levels: a .png or .svg file.")
@data_root_option
@format_option
def replay(
    run_id: str,
    alert_id: str,
    horizon_hours: float | None,
    max_entry_lag: int | None,
    plot: str | None,
    data_root: str | None,
    format_: str,
    **strategy: Any,
) -> None:
    """Replay one alert of a sealed run: its candles with entry, exit and levels, and why the position ended.

    The table shows the first candles and those around the exit; json and csv have all of them.
    """
    from lake_pipeline.backtest import BaselineConfig, replay_alert
    from lake_pipeline.errors import ConfigError
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings

    if plot is not None and Path(plot).suffix.lower() not in _PICTURES:
        raise ConfigError(f"--plot {plot}: a picture is a .png or a .svg file")
    given = {"horizon_hours": horizon_hours, "max_entry_lag": max_entry_lag}
    config = BaselineConfig(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    lake = LakeSettings(data_root=data_root).store()
    found = replay_alert(load_run(lake, run_id), alert_id, strategy_config(strategy), config, lake=lake)
    if plot is not None:
        _draw(found, Path(plot))
    rows = found.rows()
    if format_ == "csv":
        print_rows(rows, format_)
        return
    document = {"why": found.why, "baseline": found.baseline, "trade": found.trade, "candles": rows}
    print_mapping(_facts(found), format_, document=document)
    if format_ == "table" and rows:
        click.echo()
        print_rows(_shortened(rows, found.exit_index), format_)
        if plot is not None:
            click.echo(f"\ndrawn in {plot}")


def _draw(found: Replay, file: Path) -> None:
    from lake_pipeline.backtest.plots import replay_picture
    from lake_pipeline.errors import StoreError

    picture = replay_picture(found, "svg" if file.suffix.lower() == ".svg" else "png")
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise StoreError(f"--plot {file} cannot be written: {error.strerror}") from error


def _facts(found: Replay) -> dict[str, Any]:
    """What is above the candles, of the alert's rows in baseline and trades."""
    baseline, trade = found.baseline, found.trade
    facts = {
        "alert_id": found.alert_id,
        "mint": found.mint,
        "caller": baseline["caller"],
        "alert_ts": baseline["alert_ts_utc"],
        "entry_ts": baseline["entry_ts_utc"],
        "status": f"{found.status}, {baseline['censoring']}, {baseline['candles']:,} candles",
        "why": found.why,
    }
    if found.exit_index is not None:
        facts |= {
            "entry_price": trade["entry_price"],
            "exit_price": trade["exit_price"],
            "return": f"{trade['tp_sl_ret']:+.6f}",
            "held": f"{trade['hold_time_s']:,} s",
            "ath": f"{baseline['ath_mult']:.4g}x after {baseline['time_to_ath_s']:,} s",
            "drawdown": f"{baseline['dd_overall']:.2%} below the entry at worst",
        }
        if trade["ambiguous"]:
            facts["return"] += f", worst {trade['ret_worst']:+.6f}, best {trade['ret_best']:+.6f}"
    return facts


def _shortened(rows: list[dict[str, Any]], exit_index: int | None) -> list[dict[str, Any]]:
    """The first candles and those around the exit, with a row for those between them that says how many."""
    around = range(0) if exit_index is None else range(exit_index - _BEFORE_EXIT, exit_index + _AFTER_EXIT + 1)
    shown = [index for index in range(len(rows)) if index < _FIRST or index in around]
    lines, expected = [], 0
    for index in [*shown, len(rows)]:
        if index > expected:
            left_out = f"... {index - expected:,} more ..."
            lines.append({name: left_out if name == "timestamp" else "" for name in rows[0]})
        if index < len(rows):
            lines.append({name: _short(value) for name, value in rows[index].items()})
        expected = index + 1
    return lines


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


COMMANDS = (replay,)
