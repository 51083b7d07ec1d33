"""Printing results: a table for people, JSON and CSV for programs; progress bars on a terminal only."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

__all__ = ["Advance", "format_option", "print_mapping", "print_rows", "progress", "readable_bytes"]

format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="table for people, json (one document) or csv for programs.",
)


def print_rows(rows: Sequence[Mapping[str, Any]], format_: str, *, empty: str = "nothing to show") -> None:
    """Print rows that share their keys."""
    if format_ == "json":
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    if format_ == "csv":
        if rows:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(rows[0].keys())
            writer.writerows(["" if value is None else value for value in row.values()] for row in rows)
        return
    if not rows:
        click.echo(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if _is_number(value) else "left", overflow="fold")
    for row in rows:
        # Text, not str: values are not markup, whatever brackets they hold.
        table.add_row(*(Text(_shown(name, value)) for name, value in row.items()))
    # Piped output is not cut at a terminal's width.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_mapping(values: Mapping[str, Any], format_: str, *, document: Mapping[str, Any] | None = None) -> None:
    """Print one thing; `document` is what json shows instead of the values."""
    if format_ == "json":
        click.echo(json.dumps(document if document is not None else values, indent=2, default=str))
    elif format_ == "csv":
        print_rows([values], format_)
    else:
        width = max(map(len, values), default=0)
        for name, value in values.items():
            click.echo(f"{name:<{width}}  {_shown(name, value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return readable_bytes(value) if name == "bytes" or name.endswith("_bytes") else f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(key, each)}" for key, each in value.items())
    return str(value)


def readable_bytes(size: int) -> str:
    """12.3 MB, decimal units."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


class Advance(Protocol):
    """Moves a progress bar by a count, and shows a note beside it."""

    def __call__(self, count: int, note: str = "") -> None:
        """Move it."""


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr where that is a terminal; yields a function to advance it by a count."""
    if not sys.stderr.isatty():
        yield lambda count, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    note_column = TextColumn("{task.fields[note]}")
    with Progress(*columns, TimeRemainingColumn(), note_column, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(count: int, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance
