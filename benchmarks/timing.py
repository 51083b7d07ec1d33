"""Where the time goes: wall seconds a thread spends in each part of an export, parts inside others taken out.

The package knows nothing of this: functions are wrapped from outside, for one process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

PARTS = (
    "query",
    "engine start",
    "sort, dedupe, split",
    "encode",
    "write",
    "fsync",
    "hash",
    "coverage",
    "alerts and plan",
    "receipts and manifest",
    "imports",
    "Dagster",
    "Dagster events",
)
seconds: dict[str, float] = defaultdict(float)
_lock = threading.Lock()
_stack = threading.local()


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Count the time of this block under `name`, and no longer under the section around it."""
    inner: list[float] = getattr(_stack, "inner", [])
    _stack.inner = inner
    inner.append(0.0)
    started = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - started
        own = spent - inner.pop()
        if inner:
            inner[-1] += spent
        with _lock:
            seconds[name] += own


def wrap(owner: Any, attribute: str, name: str) -> None:
    """Make every call of `owner.attribute` a section."""
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with section(name):
            return original(*args, **kwargs)

    setattr(owner, attribute, timed)


class _TimedHash:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: Any) -> None:
        with section("hash"):
            self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def instrument() -> None:
    """Wrap the parts of the export in this process."""
    from types import SimpleNamespace

    from lake_pipeline import export, run, seal, settings
    from lake_pipeline.core.manifest import Receipt
    from lake_pipeline.defs.assets import lake
    from lake_pipeline.io import clickhouse, parquet, store

    wrap(clickhouse.ClickHouseSource, "call", "query")
    wrap(clickhouse.ClickHouseSource, "_connect", "engine start")
    wrap(clickhouse, "_block", "sort, dedupe, split")
    wrap(export._Exporter, "_read_slice", "sort, dedupe, split")
    wrap(export, "measure_windows", "coverage")
    wrap(settings, "load_alerts", "alerts and plan")
    wrap(export, "build_plan", "alerts and plan")
    wrap(parquet.SliceWriter, "write", "encode")
    wrap(parquet.SliceWriter, "__exit__", "encode")
    wrap(Receipt, "to_bytes", "receipts and manifest")
    wrap(run, "parse_record", "receipts and manifest")
    wrap(export._Exporter, "_write_bucket", "receipts and manifest")
    wrap(lake, "cover_run", "coverage")
    wrap(seal, "gather_coverage", "coverage")
    wrap(lake, "seal_run", "receipts and manifest")
    wrap(seal, "build_manifest", "receipts and manifest")
    wrap(store.Sink, "write", "write")
    wrap(store.LocalStore, "_publish", "write")
    wrap(store, "_sync", "fsync")
    wrap(store, "_sync_folder", "fsync")
    wrap(store, "_make_folder", "write")
    store.hashlib = SimpleNamespace(sha256=_TimedHash)  # type: ignore[assignment]
    # The thread that hands out the work does nothing meanwhile.
    wrap(lake, "export_buckets", "waiting")
    wrap(run.Run, "bucket_states", "waiting")


def instrument_dagster() -> None:
    """Wrap what Dagster stores while the job runs."""
    import dagster as dg

    wrap(dg.DagsterInstance, "handle_new_event", "Dagster events")
