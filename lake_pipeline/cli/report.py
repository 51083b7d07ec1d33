"""`lake report`: one page about a sealed run, to send to a colleague."""

from __future__ import annotations

from pathlib import Path

import click

from lake_pipeline.cli.options import data_root_option
from lake_pipeline.cli.output import format_option, print_mapping

__all__ = ["COMMANDS"]


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The page; one that is there is replaced.",
)
@click.option("--baseline", metavar="KEY", help="The baseline to show, as `lake baseline` prints its key.")
@click.option("--strategy", metavar="KEY", help="The strategy to show, as `lake strategy` prints its key.")
@click.option("--optimizer", metavar="KEY", help="The search to show, as `lake optimizer` prints its key.")
@click.option("--threads", type=int, metavar="N", help="Work at once. [default: cores, at most 8]")
@data_root_option
@format_option
def report(
    run_id: str,
    output: Path,
    baseline: str | None,
    strategy: str | None,
    optimizer: str | None,
    threads: int | None,
    data_root: str | None,
    format_: str,
) -> None:
    """Write one HTML page about a sealed run: coverage, ledger, baseline, callers, trades, optimizer.

    The page holds all it shows, pictures too: it can be mailed, and asks the network for nothing.

    Results are those kept beside the lake. Without a KEY it is the only baseline (and the only strategy) of the run;
    where there are several or none, that of the default settings, which is computed and kept if it is not there. Of
    searches it is the one with most trials. All strategies and searches of the run are listed. The same run and
    results give the same page, byte for byte.

    \b
    Examples:
      lake report demo
      lake strategy --run demo --tp 3 --sl 0.6
      lake report demo --strategy KEY -o report.html
    """
    from lake_pipeline.io.store import LocalStore
    from lake_pipeline.report import gather_report, render_report
    from lake_pipeline.run import load_run
    from lake_pipeline.settings import LakeSettings, SourceSettings, parse_settings

    lake = LakeSettings(data_root=data_root).store()
    content = gather_report(
        lake,
        load_run(lake, run_id),
        baseline=baseline,
        strategy=strategy,
        search=optimizer,
        threads=parse_settings(SourceSettings, {"threads": threads}).thread_count,
    )
    page = render_report(content).encode()
    LocalStore(output.parent).replace(output.name, page)
    values = {"report": str(output), "bytes": len(page), "run": run_id}
    for result in content.results:
        how = "computed" if result.created else "found"
        values[result.record.kind] = f"{result.key}, {how}" if format_ == "table" else result.key
    print_mapping(values, format_)


COMMANDS = (report,)
