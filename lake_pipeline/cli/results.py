"""What the commands that compute a result of a sealed run share: which run, where the result goes, how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from lake_pipeline.cli.options import alerts_options, data_root_option, export_config, source_options
from lake_pipeline.cli.output import print_rows

if TYPE_CHECKING:
    from lake_pipeline.backtest import AlertSelection, Result
    from lake_pipeline.io.store import Store
    from lake_pipeline.run import Run

__all__ = [
    "Asked",
    "asked_for",
    "export_file",
    "export_folder",
    "file_option",
    "folder_option",
    "ordered",
    "percent",
    "print_table",
    "result_head",
    "say_state",
    "sealed_run_options",
    "short_number",
    "store_result",
]

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound="Result")

# The run that is made of alerts when nothing else is said: an hour before, two days and a half after.
_DEFAULT_RUN: Final = {"interval": "1m", "window": "pre52_post4948"}
_ALERT_OPTIONS: Final = ("alerts", "duckdb", "alerts_table", "chain", "table", "database", "interval", "window")


def sealed_run_options(function: F) -> F:
    """Which run, and what every command does with its result."""
    for option in reversed(
        (
            click.option(
                "--run", "run_id", metavar="RUN", help="A sealed run. Without it the run of the alerts below."
            ),
            alerts_options,
            click.option("--interval", metavar="I", help=f"Candle length. [default: {_DEFAULT_RUN['interval']}]"),
            click.option("--window", metavar="W", help=f"pre<N>_post<M>. [default: {_DEFAULT_RUN['window']}]"),
            source_options,
            data_root_option,
            click.option("-j", "--threads", type=int, metavar="N", help="Work at once. [default: cores, at most 8]"),
            click.option(
                "--horizon-hours",
                type=float,
                default=48.0,
                show_default=True,
                metavar="H",
                help="Length of a path after its entry.",
            ),
            click.option(
                "--caller", multiple=True, metavar="NAME", help="Only alerts of this caller; several times for several."
            ),
            click.option(
                "--store-duckdb",
                is_flag=True,
                help="Also into the database of --duckdb, in one transaction; repeating it changes nothing.",
            ),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Asked:
    """What the common options came to. `database` is where --store-duckdb goes."""

    lake: Store
    run: Run
    selection: AlertSelection
    threads: int
    database: str | None


def asked_for(values: dict[str, Any]) -> Asked:
    """The sealed run, found or exported, and the alerts of it.

    Raises LakeError and UsageError.
    """
    from lake_pipeline.backtest import AlertSelection
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings, SourceSettings, parse_day, parse_settings

    threads = values["threads"]
    thread_count = parse_settings(SourceSettings, {"threads": threads}).thread_count
    database = _database(values) if values["store_duckdb"] else None
    callers = values["caller"] or None
    if values["run_id"] is None:
        if not (values["alerts"] or values["duckdb"]):
            raise click.UsageError("give --run RUN, or the alerts to make a run of with --duckdb FILE or --alerts FILE")
        names = (*_ALERT_OPTIONS, "from_day", "to_day", "data_root", "threads", "wait_s")
        given = {name: values[name] for name in names}
        config = export_config({**_DEFAULT_RUN, **{name: value for name, value in given.items() if value is not None}})
        # The days chose the alerts of the run: all of them are selected.
        from lake_pipeline.cli.export import sealed_run

        return Asked(config.store(), sealed_run(config), AlertSelection(callers=callers), thread_count, database)
    foreign = [name for name in _ALERT_OPTIONS if values[name] is not None and not (name == "duckdb" and database)]
    if foreign:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise click.UsageError(
            f"--run {values['run_id']} has its alerts and settings; leave out {options} "
            "(--duckdb goes with --run only to say where --store-duckdb writes)"
        )
    lake = LakeSettings(data_root=values["data_root"]).store()
    days = (parse_day("--from", values["from_day"]), parse_day("--to", values["to_day"]))
    selection = AlertSelection(*days, callers)
    return Asked(lake, load_run(lake, values["run_id"]), selection, thread_count, database)


def _database(values: dict[str, Any]) -> str:
    path: str | None = values["duckdb"]
    if path is None:
        raise click.UsageError(
            "--store-duckdb writes into the database of --duckdb, and none is given. A run of other alerts is "
            "stored by --run RUN --duckdb FILE --store-duckdb"
        )
    return path


def store_result(asked: Asked, result: R, store: Callable[[str, Run, R], bool]) -> None:
    """Put a result into the database of --store-duckdb, by `store`, and say so."""
    if asked.database is None:
        return
    stored = store(asked.database, asked.run, result)
    what = "stored in" if stored else "is there already, nothing changed in"
    click.echo(f"{result.record.kind} {result.key} {what} {asked.database}", err=True)


def say_state(result: Result) -> None:
    """Whether a result was computed now or found, and where it is, on stderr."""
    state = "computed" if result.created else "was computed before; found, verified and used"
    click.echo(f"{result.record.kind} {result.key} {state}: {result.store.uri}", err=True)


def result_head(asked: Asked, result: Result) -> dict[str, Any]:
    """The first lines of what is printed of a result."""
    return {
        "run": asked.run.run_id,
        "key": result.key,
        "state": "computed" if result.created else "found",
        "path": result.store.uri,
    }


def export_file(result: Result, name: str, target: Path | None) -> None:
    """A copy of a file of the result; one that is there is replaced."""
    if target is None:
        return
    from lake_pipeline.io.store import LocalStore

    LocalStore(target.parent).replace(target.name, result.store.read(name))
    click.echo(f"written: {target}", err=True)


def export_folder(target: Path | None, names: Callable[[], Iterable[str]], write: Callable[[Store], None]) -> None:
    """Files of a result in a folder that holds no others. Raises ConfigError where it does."""
    if target is None:
        return
    from lake_pipeline.errors import ConfigError
    from lake_pipeline.io.store import LocalStore

    store = LocalStore(target)
    own = set(names())
    foreign = [file.path for file in store.files() if not file.temporary and file.path not in own]
    if foreign:
        raise ConfigError(
            f"folder {target} holds {len(foreign)} files that are not of this result, such as {foreign[0]}: "
            "give a new folder"
        )
    write(store)
    click.echo(f"written: {target}, {len(store.files()):,} files", err=True)


def file_option(name: str, what: str) -> Callable[[F], F]:
    """An option for a file to write."""
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=f"Write {what}.")


def folder_option(name: str, what: str) -> Callable[[F], F]:
    """An option for a folder to write."""
    return click.option(name, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help=f"Write {what}.")


def print_table(rows: Iterable[dict[str, Any]], empty: str = "none") -> None:
    """Rows for people: numbers to four digits after the point."""
    rounded = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]
    print_rows(rounded, "table", empty=empty)


def ordered(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """These values in this order."""
    return {name: values[name] for name in names}


def short_number(value: float | None) -> str:
    """Six digits, for people."""
    return "-" if value is None else f"{value:,.6g}"


def percent(value: float | None) -> str:
    """A share in percent, for people."""
    return "-" if value is None else f"{value:.1%}"
