"""provenance.json: when, where and by what a run was made. Never sealed.

Nothing in it decides what a run holds; `reuse` reads it to learn which state of the source a bucket was read from.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import sys
from importlib.metadata import version
from typing import Any, Final

from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.errors import RunError
from lake_pipeline.io.layout import PROVENANCE
from lake_pipeline.io.store import Store

__all__ = ["append_event", "read_events"]

_PACKAGES: Final = ("lake-pipeline", "dagster", "clickhouse-connect", "pyarrow", "numpy", "pandas")


def read_events(run: Store) -> list[dict[str, Any]]:
    """The run's events so far. Raises RunError for a file that holds none."""
    return _events(run, run.read(PROVENANCE)) if run.exists(PROVENANCE) else []


def append_event(run: Store, step: str, details: dict[str, Any]) -> None:
    """Add one event to the run's provenance. The caller holds the run's exclusive lock."""
    event = {
        "step": step,
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "host": platform.node(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in _PACKAGES},
        **details,
    }

    def append(present: bytes | None) -> bytes:
        return canonical_json({"events": [*(_events(run, present) if present is not None else []), event]})

    run.update(PROVENANCE, append)


def _events(run: Store, data: bytes) -> list[dict[str, Any]]:
    try:
        events: list[dict[str, Any]] = json.loads(data)["events"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.uri}/{PROVENANCE} is not readable: {error}; move it away, the run needs none") from error
    return events
