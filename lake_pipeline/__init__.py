"""Sealed, reproducible Parquet lakes of the candles around trading alerts.

    from lake_pipeline import open_run
    open_run("ci-1").slice("call-0007").to_pandas()

The names below are the public interface; they are loaded when first used, so that importing the package
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake_pipeline.api import ExportConfig, ExportResult, export_lake_run_slices
    from lake_pipeline.core.buckets import compute_mint_bucket
    from lake_pipeline.core.coverage import compute_coverage
    from lake_pipeline.core.spec import RunSpec
    from lake_pipeline.core.window import (
        compute_window_slice,
        floor_to_interval,
        interval_to_seconds,
        parse_window_spec,
    )
    from lake_pipeline.errors import LakeError
    from lake_pipeline.reader import OpenRun, open_run
    from lake_pipeline.seal import write_manifest_json

__all__ = [
    "ExportConfig",
    "ExportResult",
    "LakeError",
    "OpenRun",
    "RunSpec",
    "compute_coverage",
    "compute_mint_bucket",
    "compute_window_slice",
    "export_lake_run_slices",
    "floor_to_interval",
    "interval_to_seconds",
    "open_run",
    "parse_window_spec",
    "write_manifest_json",
]

_HOME = {
    "ExportConfig": "api",
    "ExportResult": "api",
    "LakeError": "errors",
    "OpenRun": "reader",
    "RunSpec": "core.spec",
    "compute_coverage": "core.coverage",
    "compute_mint_bucket": "core.buckets",
    "compute_window_slice": "core.window",
    "export_lake_run_slices": "api",
    "floor_to_interval": "core.window",
    "interval_to_seconds": "core.window",
    "open_run": "reader",
    "parse_window_spec": "core.window",
    "write_manifest_json": "seal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
