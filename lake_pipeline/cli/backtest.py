"""Commands of the backtest: baseline, strategy, diff-results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lake_pipeline.cli.options import data_root_option, strategy_config, strategy_options
from lake_pipeline.cli.output import format_option, print_mapping, print_rows
from lake_pipeline.cli.results import (
    asked_for,
    export_file,
    export_folder,
    file_option,
    folder_option,
    ordered,
    percent,
    print_table,
    result_head,
    say_state,
    sealed_run_options,
    short_number,
    store_result,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from lake_pipeline.backtest.diff import AlertDiff, Causes

__all__ = ["COMMANDS"]


@click.command()
@sealed_run_options
@click.option(
    "--min-trades", type=int, default=10, show_default=True, metavar="N", help="Alerts a ranked caller has at least."
)
@click.option("--top", type=click.IntRange(min=0), default=50, show_default=True, metavar="N", help="Callers to show.")
@file_option("--export-baseline-parquet", "the baseline, one row an alert (in a folder: baseline_cache_<days>.parquet)")
@folder_option("--export-per-alert-parquet", "a file of candles for each alert, from its entry on")
@folder_option("--export-per-caller-parquet", "a file of baseline rows for each caller")
@format_option
def baseline(
    min_trades: int,
    top: int,
    export_baseline_parquet: Path | None,
    export_per_alert_parquet: Path | None,
    export_per_caller_parquet: Path | None,
    format_: str,
    **values: Any,
) -> None:
    """Measure what the price did after every alert, and rank the callers.

    On a sealed run (--run), or on alerts: then the run they need is exported and sealed first, unless it is there. The
    result is kept beside the lake and found again by its key: the same question is not computed twice. --from and --to
    are days, both inclusive. --format csv prints the ranked callers.

    \b
    Examples:
      lake baseline --duckdb data/alerts.duckdb --from 2025-05-01 --to 2025-05-02
      lake baseline --run RUN --horizon-hours 24 --top 10 --export-baseline-parquet baseline.parquet
      lake baseline --run RUN --duckdb data/alerts.duckdb --store-duckdb
    """
    from lake_pipeline.backtest import (
        BaselineConfig,
        CallerConfig,
        baseline_result,
        open_paths,
        write_per_alert,
        write_per_caller,
    )
    from lake_pipeline.backtest.database import store_in_database
    from lake_pipeline.backtest.results import alert_file_names, caller_file_names
    from lake_pipeline.backtest.summary import summarise_baseline

    config, callers = BaselineConfig(horizon_hours=values["horizon_hours"]), CallerConfig(min_trades=min_trades)
    asked = asked_for(values)
    result = baseline_result(asked.lake, asked.run, config, callers, asked.selection, threads=asked.threads)
    say_state(result)
    table, ranked = result.baseline(), result.caller_stats()
    if export_baseline_parquet and export_baseline_parquet.is_dir():
        export_baseline_parquet /= _cache_name(table, values["from_day"], values["to_day"])
    export_file(result, "baseline.parquet", export_baseline_parquet)
    export_folder(
        export_per_alert_parquet,
        lambda: alert_file_names("alert", table),
        lambda store: write_per_alert(
            store,
            open_paths(asked.run, asked.selection, config.horizon_ms, lake=asked.lake, fill_cache=False),
            threads=asked.threads,
        ),
    )
    export_folder(
        export_per_caller_parquet,
        lambda: caller_file_names(table).values(),
        lambda store: write_per_caller(store, table, threads=asked.threads),
    )
    store_result(asked, result, store_in_database)
    rows = ranked.slice(0, top).to_pylist()
    if format_ == "csv":
        print_rows(rows, format_)
        return
    summary = summarise_baseline(table)
    document = {**result_head(asked, result), **summary, "ranked_callers": ranked.num_rows, "callers": rows}
    print_mapping(_baseline_lines(result_head(asked, result), summary), format_, document=document)
    if format_ == "table":
        click.echo(f"\ncallers with at least {min_trades} ok alerts: {ranked.num_rows:,}, by score")
        print_table(map(_caller_row, rows), empty="none; --min-trades asks for fewer alerts")


def _cache_name(baseline: pa.Table, from_day: str | None, to_day: str | None) -> str:
    """The name of a baseline by the days asked for, else by those of its first and last alert."""
    times = baseline.column("alert_ts_utc")  # in order
    return f"baseline_cache_{from_day or times[0].as_py().date()}_{to_day or times[-1].as_py().date()}.parquet"


def _baseline_lines(head: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    ok = summary["statuses"]["ok"]
    return {
        **head,
        "alerts": summary["alerts"],
        "status": summary["statuses"],
        "censored": f"{summary['censored']:,} of {ok:,} ok alerts: candles end before the horizon, figures are bounds",
        "excluded": f"{summary['excluded']:,} alerts that are not ok have no figures",
        "no caller": summary["without_caller"],
        "medians": {name: short_number(value) for name, value in summary["medians"].items()},
        "reached": {name: percent(value) for name, value in summary["hit_rates"].items()},
    }


def _caller_row(row: dict[str, Any]) -> dict[str, Any]:
    """A caller in a line a terminal holds; csv and json have every column."""
    return {
        **ordered(row, ("rank", "caller", "score", "n", "n_censored", "n_excluded")),
        "median_ath": row["median_ath_mult"],
        "p95_ath": row["p95_ath_mult"],
        **ordered(row, ("hit_2x", "hit_3x", "hit_5x", "hit_10x")),
        "t2x_s": row["median_time_to_2x_s"],
        "dd_initial": row["median_dd_initial"],
        "dd_overall": row["median_dd_overall"],
        "ret_end_pct": row["median_ret_end_pct"],
    }


@click.command()
@sealed_run_options
@strategy_options
@file_option("--export-trades-parquet", "the trades, one row an alert")
@folder_option("--export-per-trade-parquet", "a file of candles and levels for each trade, from entry to exit")
@format_option
def strategy(
    export_trades_parquet: Path | None,
    export_per_trade_parquet: Path | None,
    format_: str,
    **values: Any,
) -> None:
    """Trade every alert by one set of exits, and sum up the trades.

    On a sealed run (--run), or on alerts, as `lake baseline`. The case is that of --intrabar-order; the best and the
    worst case take each order where one candle reaches the take-profit and a stop (ambiguous trades). --tp none and
    --sl none turn an exit off. Of several stops the highest active one counts. --format csv prints a row for each case.

    \b
    Examples:
      lake strategy --duckdb data/alerts.duckdb --from 2025-05-01 --to 2025-05-02 --tp 3 --sl 0.6
      lake strategy --run RUN --tp none --trail-activation 0.5 --trail-distance 0.2 --time-stop-hours 24
      lake strategy --run RUN --tiers 2x:1.2,3x:1.6 --export-trades-parquet trades.parquet
    """
    from lake_pipeline.backtest import (
        BaselineConfig,
        StrategyConfig,
        open_paths,
        strategy_result,
        write_per_trade,
    )
    from lake_pipeline.backtest.database import store_in_database
    from lake_pipeline.backtest.results import alert_file_names

    config = BaselineConfig(horizon_hours=values["horizon_hours"])
    exits = strategy_config({field.name: values.pop(field.name) for field in fields(StrategyConfig)})
    asked = asked_for(values)
    result = strategy_result(asked.lake, asked.run, exits, config, asked.selection, threads=asked.threads)
    say_state(result)
    export_file(result, "trades.parquet", export_trades_parquet)
    if export_per_trade_parquet:
        trades = result.trades()
        export_folder(
            export_per_trade_parquet,
            lambda: alert_file_names("trade", trades),
            lambda store: write_per_trade(
                store,
                open_paths(asked.run, asked.selection, config.horizon_ms, lake=asked.lake),
                trades,
                exits,
                threads=asked.threads,
            ),
        )
    store_result(asked, result, store_in_database)
    _print_strategy(result_head(asked, result), result.summary(), format_)


def _print_strategy(head: dict[str, Any], summary: dict[str, Any], format_: str) -> None:
    from lake_pipeline.backtest.baseline import STATUSES
    from lake_pipeline.backtest.kernels import REASONS
    from lake_pipeline.backtest.summary import CASES, FIGURES

    figures = summary["all"]
    if format_ == "csv":
        share = figures["ambiguous_share"]
        print_rows(
            [
                {"case": case, "n": figures["n"], **ordered(figures[case], FIGURES), "ambiguous_share": share}
                for case in CASES
            ],
            format_,
        )
        return
    lines = {
        **head,
        "alerts": figures["alerts"],
        "status": ordered(figures["statuses"], STATUSES),
        "trades": figures["n"],
        "exits": ordered(figures["exit_reasons"], REASONS),
        "ambiguous": f"{percent(figures['ambiguous_share'])} of the trades: one candle reached take-profit and stop",
    }
    print_mapping(lines, format_, document={**head, **summary})
    if format_ != "table":
        return
    click.echo()
    print_table({"case": case, **ordered(figures[case], FIGURES)} for case in CASES)
    callers = sorted(summary["callers"].items(), key=lambda item: (-item[1]["n"], item[0].encode()))
    if callers:
        click.echo(f"\nthe callers with most trades, of {len(callers):,} (json has all):")
        print_table({"caller": name, "n": each["n"], **ordered(each["case"], FIGURES)} for name, each in callers[:10])


@click.command("diff-results")
@click.argument("key_a", metavar="KEY_A")
@click.argument("key_b", metavar="KEY_B")
@click.option("--run", "run_id", metavar="RUN", help="Look in this run only. [default: in all runs]")
@click.option(
    "--top", type=click.IntRange(min=0), default=20, show_default=True, metavar="N", help="Rows a table shows."
)
@data_root_option
@format_option
def diff_results(key_a: str, key_b: str, run_id: str | None, top: int, data_root: str | None, format_: str) -> None:
    """Show which metrics and callers' ranks differ between two baselines or two strategies, and why.

    The keys are those `lake baseline` and `lake strategy` print; their first digits are enough. The causes are other
    data, other parameters and other code. Exit code 1 if any number differs. --format csv prints the metrics.

    \b
    Example:
      lake diff-results 3f1c 9a07
    """
    from lake_pipeline.backtest.diff import diff_results
    from lake_pipeline.backtest.results import find_result
    from lake_pipeline.settings import LakeSettings

    lake = LakeSettings(data_root=data_root).store()
    found = diff_results(find_result(lake, key_a, run_id), find_result(lake, key_b, run_id))
    moved = [asdict(each) for each in found.moved]
    if format_ == "json":
        print_mapping({**asdict(found), "same": found.same, "cause": found.causes.kinds}, format_)
    elif format_ == "csv":
        print_rows(moved, format_)
    else:
        click.echo(f"{found.kind} {found.key_a} -> {found.key_b}: {'identical' if found.same else 'differs'}")
        _print_causes(found.causes)
        for side, alerts in (("A", found.only_in_a), ("B", found.only_in_b)):
            if alerts:
                shown = f"{', '.join(alerts[:top])}{' ...' if len(alerts) > top else ''}"
                click.echo(f"{len(alerts):,} alerts only in {side}: {shown}")
        if moved:
            alerts_moved = len({each.alert_id for each in found.moved})
            click.echo(f"\n{len(moved):,} metrics of {alerts_moved:,} alerts moved; by metric, then the first:")
            print_table(_by_metric(found.moved))
            click.echo()
            # The equity of every trade after the first that moved has moved too.
            print_table([row for row in moved if row["metric"] != "equity"][:top], empty="nothing but equity moved")
        if found.callers:
            flipped = [each for each in found.callers if each.rank_a != each.rank_b]
            click.echo(f"\n{len(flipped):,} callers have another rank, {len(found.callers):,} another measure or rank:")
            print_table(asdict(each) for each in found.callers[:top])
    if not found.same:
        raise click.exceptions.Exit(1)


def _print_causes(causes: Causes) -> None:
    if causes.data:
        click.echo(
            f"data       content_sha256 {causes.data[0][:12]} -> {causes.data[1][:12]} (`lake diff` compares runs)"
        )
    for name, (a, b) in causes.parameters.items():
        click.echo(f"parameter  {name}: {a} -> {b}")
    if causes.modules:
        click.echo(f"code       {', '.join(causes.modules)}")
    for name, (a, b) in causes.libraries.items():
        click.echo(f"code       {name} {a} -> {b}")
    if len(causes.kinds) > 1:
        click.echo(
            f"{' and '.join(causes.kinds)} differ at once: results that change one of them tell which moved what"
        )


def _by_metric(moved: Iterable[AlertDiff]) -> list[dict[str, Any]]:
    """How many alerts of each metric moved, and the largest movement."""
    found: dict[str, dict[str, Any]] = {}
    for each in moved:
        row = found.setdefault(each.metric, {"metric": each.metric, "alerts": 0, "largest": None, "of_alert": None})
        row["alerts"] += 1
        if each.delta is not None and (row["largest"] is None or abs(each.delta) > abs(row["largest"])):
            row |= {"largest": each.delta, "of_alert": each.alert_id}
    return list(found.values())


COMMANDS: Sequence[click.Command] = (baseline, strategy, diff_results)
