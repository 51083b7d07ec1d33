"""What a run prints where nobody looks at the UI: a line for what the assets say, a line for what failed.

Dagster's own console logger prints each of the hundreds of events of a run, and a failure's stack trace twice. This one
stands under the same name with the same settings, and is used where a run configuration asks for it:

    loggers: {console: {config: {log_level: INFO}}}
"""

from __future__ import annotations

import logging
import time

import dagster as dg

__all__ = ["console_logger"]


class _Line(logging.Formatter):
    """`09:17:16 candles: 256 of 256 buckets ...`, in UTC; the level where it is a warning or worse."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        said = getattr(record, "dagster_meta", None) or {}
        step, message = said.get("step_key"), said.get("orig_message") or record.getMessage()
        event = said.get("dagster_event")
        if isinstance(event, dg.DagsterEvent) and event.is_step_failure:
            raised = event.step_failure_data.user_failure_data
            # What the package raises on purpose explains itself; anything else is shown as Dagster shows it.
            message = raised.description if raised and raised.description else record.getMessage()
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{f'{step}: ' if step else ''}{message}"


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, default_value="INFO", description="The least that is printed."),
    },
    description="One line for what the assets say and for each failure, on stderr.",
)
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """The logger `console` of all jobs."""
    logger = logging.Logger("lake_pipeline.console", context.logger_config["log_level"].upper())
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    logger.addHandler(handler)
    return logger
