"""Commands of the optimizer: optimizer, and cache with ls and rm."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lake_pipeline.cli.options import data_root_option, search_options
from lake_pipeline.cli.output import format_option, print_mapping, print_rows, progress, readable_bytes
from lake_pipeline.cli.results import (
    asked_for,
    export_file,
    file_option,
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
    from lake_pipeline.backtest.cache import Cache
    from lake_pipeline.backtest.config import AlertSelection
    from lake_pipeline.optimizer.search import Progress

__all__ = ["COMMANDS"]


@click.command()
@sealed_run_options
@search_options
@click.option("--trials", type=int, metavar="N", help="Trials in each fold. [default: 100; a grid has all its points]")
@click.option(
    "--sampler",
    type=click.Choice(["random", "grid", "tpe"]),
    help="random: no point twice; grid: all points; tpe: Optuna learns from earlier trials. [default: random]",
)
@click.option("--seed", type=int, metavar="N", help="Of the sampler and of the bootstrap. [default: 0]")
@click.option("--train-days", type=float, metavar="D", help="Train period. [default: two thirds of the alerts' time]")
@click.option("--test-days", type=float, metavar="D", help="Test period after it. [default: half of --train-days]")
@click.option("--folds", type=int, metavar="K", help="Walk-forward folds, a test period apart. [default: 1]")
@click.option("--objective", metavar="O", help="Figure, or figure:weight,... to make large on train. [default: sharpe]")
@click.option(
    "--gates",
    metavar="G",
    help="What a trial needs on train: min_trades=N,min_hit_rate=F,max_drawdown=F. [default: min_trades=10]",
)
@click.option(
    "--figures",
    type=click.Choice(["all", "means"]),
    help="means: no median, streak, equity and drawdown; many times faster for 100,000 trials. [default: all]",
)
@click.option("--top", type=int, metavar="K", help="Trials that go through the robustness lanes. [default: 5]")
@click.option("--resume", is_flag=True, help="Go on from the trials an interrupted search left.")
@click.option("--no-cache", is_flag=True, help="Neither use nor write cached paths and records.")
@file_option("--export-trials-parquet", "every trial, one row a fold and trial")
@format_option
def optimizer(export_trials_parquet: Path | None, resume: bool, no_cache: bool, format_: str, **values: Any) -> None:
    """Search exits on train alerts only, and report how much of the winner is luck.

    On a sealed run (--run), or on alerts, as `lake baseline`. Alerts are split in time, train first; those whose path
    reaches into the test period are left out. The trial that passes the gates with the largest objective on train is
    chosen, and only then looked at on test. Every trial is kept, and counts in the run's ledger for good.

    A range is lo:hi:step with both ends; an exit that is not given is not used. What was interrupted goes on with
    --resume. Exit code 1 when no trial passes the gates. --format csv prints the trials.

    \b
    Examples:
      lake optimizer --run RUN --trials 1000 --train-days 14 --test-days 7 --folds 3
      lake optimizer --run RUN --tp 2,3,5,none --sl .5:.8:.05 --sampler grid --gates min_trades=50,max_drawdown=.3
      lake optimizer --run RUN --sampler tpe --trail-distance none,.1:.5:.05 --time-stop-hours none,6:48:6
    """
    from lake_pipeline.backtest import BaselineConfig
    from lake_pipeline.optimizer.database import store_in_database
    from lake_pipeline.optimizer.results import optimize_result, pictures_result
    from lake_pipeline.settings import OptimizerSettings, parse_settings

    names = set(OptimizerSettings.model_fields)
    given = {name: values.pop(name) for name in sorted(names & values.keys())}
    given["tiers"] = list(given["tiers"])
    settings = parse_settings(OptimizerSettings, {name: value for name, value in given.items() if value is not None})
    config = settings.search()
    baseline = BaselineConfig(horizon_hours=values["horizon_hours"])
    asked = asked_for(values)
    trials = (config.trials or config.space.size) * config.split.folds
    with _caches_explained(), progress("trials", trials) as advance:
        shown = _Shown()

        def on_batch(state: Progress) -> None:
            shown.last = state
            advance(state.done - shown.done, _best_so_far(state))
            shown.done = state.done

        try:
            result = optimize_result(
                asked.lake,
                asked.run,
                config,
                baseline,
                asked.selection,
                threads=asked.threads,
                use_cache=not no_cache,
                resume=resume,
                on_batch=on_batch,
            )
        except KeyboardInterrupt:
            kept = "what was evaluated is kept"
            if shown.last is not None:
                kept = f"{shown.last.done:,} of {shown.last.total:,} trials are kept, {_best_so_far(shown.last)}"
            click.echo(f"{kept}; the same command with --resume goes on", err=True)
            raise
    say_state(result)
    pictures = pictures_result(asked.lake, asked.run, result, threads=asked.threads)
    export_file(result, "trials.parquet", export_trials_parquet)
    store_result(asked, result, store_in_database)
    report = result.report(asked.lake, asked.run)
    head = {**result_head(asked, result), "pictures": pictures.store.uri}
    if format_ == "csv":
        print_rows(result.trials().to_pylist(), format_)
    elif format_ == "json":
        print_mapping({}, format_, document={**head, **report})
    else:
        _print_report(head, report, asked.selection)
    if report["winner"] is None:
        raise click.exceptions.Exit(1)


class _Shown:
    """What the progress bar shows."""

    done = 0
    last: Progress | None = None


@contextmanager
def _caches_explained() -> Iterator[None]:
    """Let the package say which cache it uses or makes, and why."""
    loggers = [logging.getLogger(f"lake_pipeline.{name}") for name in ("backtest.paths", "optimizer")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _best_so_far(state: Progress) -> str:
    if state.best is None or state.best_objective is None:
        return "none passes the gates yet"
    from lake_pipeline.backtest.config import canonical_values, strategy_options

    return f"best {state.best_objective:.4f}: {strategy_options(canonical_values(state.best))}"


def _alerts(selection: AlertSelection) -> str:
    """Which alerts of the run, as options of `lake strategy`."""
    days = (("from", selection.from_day), ("to", selection.to_day))
    chosen = [f" --{name} {day}" for name, day in days if day]
    return "".join([*chosen, *(f" --caller {shlex.quote(caller)}" for caller in selection.callers or ())])


# Figures of both periods, in the order they are shown.
_FIGURES: Final = (
    "n",
    "win_rate",
    "mean_ret",
    "mean_ret_worst",
    "median_ret",
    "sharpe",
    "profit_factor",
    "mean_r",
    "ambiguous_share",
    "max_losing_streak",
    "final_equity",
    "max_drawdown",
)


_PERIODS: Final = ("train", "test")
_LANE_FIGURES: Final = ("train_mean_ret", "test_mean_ret", "train_objective", "test_objective")
_LATENCY_FIGURES: Final = tuple(
    f"{period}_{name}" for name in ("n", "mean_ret", "sharpe", "win_rate") for period in _PERIODS
)


def _print_report(head: Mapping[str, Any], report: Mapping[str, Any], selection: AlertSelection) -> None:
    from lake_pipeline.backtest.config import format_number, strategy_options
    from lake_pipeline.optimizer.winner import why_no_winner

    last, winner = report["folds"][-1], report["winner"]
    trials = last["trials"]
    lines = {
        **head,
        "objective": f"{report['objective']} on train; gates: {_gates(report['gates'])}",
        "split": _split(report["folds"]),
        "trials": f"{trials['evaluated']:,} a fold, {trials['different']:,} different, {trials['passed_gates']:,} pass "
        f"the gates{' (last fold)' if len(report['folds']) > 1 else ''}",
    }
    if winner is None:
        print_mapping({**lines, "winner": f"none: {why_no_winner(report)}"}, "table")
        _print_folds(report)
        return
    luck = winner["luck_on_run"]
    plateau, options = winner["plateau"], strategy_options(winner["strategy"])
    lines |= {
        "winner": f"trial {winner['trial']}: {options}",
        "trade it": f"lake strategy --run {head['run']} {options} --horizon-hours "
        f"{format_number(report['horizon_hours'])}{_alerts(selection)}",
        "luck": f"best of {luck['trials']:,} trials ever evaluated on this run: deflated Sharpe ratio "
        f"{_probability(luck['deflated_sharpe'])} (above 0.95 is a sign of more than luck; by the trials' own spread "
        f"{_probability(luck['published_deflated_sharpe'])})",
        "plateau": f"median of {plateau['neighbours']:,} neighbours {short_number(plateau['median'])}, peak "
        f"{short_number(plateau['peak'])}, lowest {short_number(plateau['lowest'])}",
        "degradation": f"objective {short_number(winner['train_objective'])} on train, "
        f"{short_number(winner['test_objective'])} on test{_kept(winner['degradation']['kept_share'])}",
    }
    print_mapping(lines, "table")
    click.echo()
    shown = {period: _period_figures(winner, period) for period in _PERIODS}
    print_table({"figure": name, **{period: shown[period][name] for period in _PERIODS}} for name in shown["train"])
    _print_folds(report)
    click.echo("\nthe winner under worse conditions (json has those of the next best):")
    print_table(ordered(row, ("lane", *_LANE_FIGURES)) for row in winner["lanes"][0]["lanes"])
    click.echo(f"worst: {winner['lanes'][0]['worst']['lane']}")
    click.echo("\nthe winner entered some candles later:")
    print_table(ordered(row, ("candles", *_LATENCY_FIGURES)) for row in winner["latency"])
    click.echo()
    if winner["concerns"]:
        click.echo("do not believe it yet:")
        for concern in winner["concerns"]:
            click.echo(f"- {concern}")
    else:
        click.echo("nothing here speaks against it; a new test period is the next thing to ask")


def _print_folds(report: Mapping[str, Any]) -> None:
    if len(report["folds"]) == 1:
        return
    click.echo("\nfolds, each tested by what won on its train period:")
    print_table(_fold_row(fold) for fold in report["folds"])
    forward = report["walk_forward"]
    click.echo(
        f"all test trades together: n {forward['n']:,}, mean {short_number(forward['mean_ret'])}, 95 % "
        f"{_interval(forward['interval'])}, held {short_number(forward['hold_mean_ret'])}"
    )


def _period_figures(winner: Mapping[str, Any], period: str) -> dict[str, Any]:
    low, high = winner[f"{period}_interval"] or (None, None)
    return {
        **ordered(winner[period], _FIGURES),
        "mean_ret, 95 % from": low,
        "mean_ret, 95 % to": high,
        "mean_ret if held": winner[f"{period}_hold_mean_ret"],
    }


def _probability(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _kept(share: float | None) -> str:
    return f" ({percent(share)} kept)" if share is not None and share > 0 else ""


def _gates(gates: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in gates.items() if value is not None)


def _split(folds: Sequence[Mapping[str, Any]]) -> str:
    last = folds[-1]
    several = f"{len(folds)} folds, the last: " if len(folds) > 1 else ""
    return (
        f"{several}train {last['train_alerts']:,} alerts from {last['train_from']}, test {last['test_alerts']:,} from "
        f"{last['test_from']} to {last['test_to']}, {last['purged_alerts']:,} purged"
    )


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _fold_row(fold: Mapping[str, Any]) -> dict[str, Any]:
    from lake_pipeline.backtest.config import strategy_options

    winner = fold["winner"]
    row = {
        "fold": fold["fold"],
        "test_from": fold["test_from"],
        **{name: fold[name] for name in ("train_alerts", "purged_alerts", "test_alerts")},
    }
    for name in ("train_objective", "test_objective"):
        row[name] = winner and winner[name]
    row["test_mean_ret"] = winner and winner["test"]["mean_ret"]
    row["winner"] = winner and strategy_options(winner["strategy"])
    return row


@click.group()
def cache() -> None:
    """List and remove cached price paths and records.

    Caches make repeated searches and strategies quick. They are no results: any may be removed at any time, and is made
    again when it is needed.
    """


@cache.command("ls")
@data_root_option
@format_option
def cache_ls(data_root: str | None, format_: str) -> None:
    """List the caches of a data root, and say of each whether it is usable and, if not, why.

    Every file is read and compared with its checksum.

    \b
    Example:
      lake cache ls
    """
    rows = [
        {
            "run": each.run_id,
            "kind": each.kind,
            "key": each.key,
            "files": each.files,
            "bytes": each.bytes,
            "usable": each.problem is None,
            "why": each.problem,
        }
        for each in _caches(data_root)
    ]
    print_rows(rows, format_, empty="no caches")


@cache.command("rm")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--run", "run_id", metavar="RUN", help="Caches of this run only.")
@click.option("--unusable", is_flag=True, help="Those that `lake cache ls` says are not usable.")
@click.option("--all", "all_", is_flag=True, help="All of them.")
@data_root_option
def cache_rm(keys: tuple[str, ...], run_id: str | None, unusable: bool, all_: bool, data_root: str | None) -> None:
    """Remove caches: by key (its first digits are enough), of a run, the unusable ones, or all. Results stay.

    \b
    Examples:
      lake cache rm 3f1c
      lake cache rm --run RUN --unusable
    """
    from lake_pipeline.backtest.cache import remove_cache
    from lake_pipeline.errors import InputError

    if not (keys or run_id or unusable or all_):
        raise click.UsageError("say which: give KEY, --run RUN, --unusable or --all")
    if all_ and (keys or run_id or unusable):
        raise click.UsageError("--all is all of them: give it alone")
    known = _caches(data_root)
    for key in keys:
        if not any(each.key.startswith(key) for each in known):
            raise InputError(f"no cache has a key that begins with {key!r}: `lake cache ls` shows them")
    chosen = [
        each
        for each in known
        if (not keys or each.key.startswith(keys))
        and (run_id is None or each.run_id == run_id)
        and (not unusable or each.problem is not None)
    ]
    for each in chosen:
        remove_cache(each)
        click.echo(f"removed: {each.store.uri}")
    click.echo(f"{len(chosen):,} caches removed, {readable_bytes(sum(each.bytes for each in chosen))}")


def _caches(data_root: str | None) -> list[Cache]:
    from lake_pipeline.backtest import paths
    from lake_pipeline.backtest.cache import list_caches
    from lake_pipeline.optimizer import records
    from lake_pipeline.settings import LakeSettings

    checks = {module.CACHE_KIND: module.cache_problem for module in (paths, records)}
    return list_caches(LakeSettings(data_root=data_root).store(), checks)


COMMANDS: Sequence[click.Command] = (optimizer, cache)
