"""provenance.json: when, where and by what a run was made. Never sealed, never read back by a rule."""

from __future__ import annotations

import datetime as dt
import json
import platform
import sys
from importlib.metadata import version
from typing import Any, Final

from lake_pipeline.core.canonical import canonical_json
from lake_pipeline.io.layout import PROVENANCE
from lake_pipeline.io.store import Store

__all__ = ["append_event"]

_PACKAGES: Final = ("lake-pipeline", "dagster", "clickhouse-connect", "pyarrow", "numpy", "pandas")


def append_event(run: Store, step: str, details: dict[str, Any]) -> None:
    """Add one event to the run's provenance. The caller holds the run's exclusive lock."""
    events = json.loads(run.read(PROVENANCE))["events"] if run.exists(PROVENANCE) else []
    event = {
        "step": step,
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "host": platform.node(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in _PACKAGES},
        **details,
    }
    run.replace(PROVENANCE, canonical_json({"events": [*events, event]}))
