"""The `lake` command. Exit codes: 0 done, 1 a check failed, 2 usage or environment.

Commands live in modules by topic and import what they need when they run: `lake --help` is quick.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

import click

from lake_pipeline.cli import adhoc, backtest, export, inspect, optimizer, replay, report
from lake_pipeline.errors import LakeError

__all__ = ["lake", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lake-pipeline")
def lake() -> None:
    """Sealed, reproducible Parquet lakes of the candles around your trading alerts.

    Start with `lake demo`. With your own data: load candles into the embedded engine (or set
    CLICKHOUSE_HOST), look at what an export would do, export, and verify:

    \b
        lake load-candles candles.parquet
        lake plan --alerts alerts.csv --interval 1m --window pre52_post4948
        lake export-run-slices --alerts alerts.csv --interval 1m --window pre52_post4948
        lake runs
        lake verify RUN

    What the price did after each alert, and what trading them would have come to:

    \b
        lake baseline --run RUN
        lake strategy --run RUN --tp 2.0 --sl 0.5
        lake optimizer --run RUN --trials 1000
        lake report RUN -o report.html

    Exit codes: 0 done, 1 a check failed, 2 usage or environment.
    """


_TOPICS = (export, adhoc, inspect, backtest, replay, optimizer, report)
for command in (command for topic in _TOPICS for command in topic.COMMANDS):
    lake.add_command(command)


def _not_said_before() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets each message through once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in said
        said.add(message)
        return new

    return is_new


def main() -> None:
    """Run the command line; errors of the package become one message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for noisy in ("urllib3", "clickhouse_connect"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what they log is in the error that follows
    # Each step of a job reads the alerts, and has the same to say of them.
    exporting, once = logging.getLogger("lake_pipeline.export"), _not_said_before()
    exporting.addFilter(once)
    try:
        # Without standalone mode click returns what ctx.exit or Exit was given, and None after a command.
        sys.exit(lake(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what is committed stays, run again to go on", err=True)
        sys.exit(130)
    except LakeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        click.echo("error: this is a defect of lake-pipeline; please report the lines above", err=True)
        sys.exit(2)
    finally:
        exporting.removeFilter(once)
