"""A whole run by one call, for scripts and notebooks. The same functions as the assets, without Dagster."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lake_pipeline.core.manifest import Manifest
from lake_pipeline.errors import ConfigError
from lake_pipeline.export import BucketResult, export_buckets, snapshot_alerts
from lake_pipeline.io import layout
from lake_pipeline.run import load_run
from lake_pipeline.seal import seal_run
from lake_pipeline.settings import LakeSettings, RunSettings, SourceSettings, parse_settings

__all__ = ["ExportConfig", "ExportResult", "export_lake_run_slices"]


class ExportConfig(RunSettings, SourceSettings, LakeSettings):
    """Every setting of an export: those of the run, of the candle source and of the lake."""


@dataclass(frozen=True)
class ExportResult:
    """A sealed run. Paths are absolute; rows, files and bytes are those of the slices."""

    manifest: Manifest
    manifest_path: str
    coverage_path: str
    total_rows: int
    total_files: int
    total_bytes: int
    created: bool

    @classmethod
    def of(cls, manifest: Manifest, run_uri: str, *, created: bool) -> ExportResult:
        """The result a manifest stands for."""
        return cls(
            manifest=manifest,
            manifest_path=f"{run_uri}/{layout.MANIFEST}",
            coverage_path=f"{run_uri}/{layout.COVERAGE}",
            total_rows=manifest.total_rows,
            total_files=manifest.total_files,
            total_bytes=manifest.total_bytes,
            created=created,
        )


def export_lake_run_slices(
    config: ExportConfig | Mapping[str, Any] | Any, *, on_bucket: Callable[[BucketResult], None] = lambda result: None
) -> ExportResult:
    """Export and seal a run; on one that is sealed already, verify it and return the same result.

    `config` is an ExportConfig, a mapping of its fields or a dataclass with them; `interval`, `window` and
    `alerts` are required. `on_bucket` is called as each of the 256 buckets is done. Raises LakeError.
    """
    settings = _settings(config)
    lake = settings.store()
    alerts = settings.load_alerts()
    with settings.connect(settings.root) as source:
        run, _ = snapshot_alerts(lake, settings.identify(alerts, source), alerts, {"input": settings.alerts})
        export_buckets(
            run,
            source,
            threads=settings.thread_count,
            max_rows_in_flight=settings.max_rows_in_flight,
            reuse_from=lake if settings.reuse else None,
            check_source=settings.check_source,
            on_bucket=on_bucket,
        )
    previous = load_run(lake, settings.previous) if settings.previous else None
    sealed = seal_run(run, threads=settings.thread_count, previous=previous)
    return ExportResult.of(sealed.manifest, run.store.uri, created=sealed.created)


def _settings(config: Any) -> ExportConfig:
    if isinstance(config, ExportConfig):
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"config is a {type(config).__name__}; give an ExportConfig, a mapping or a dataclass")
    plain = {name: str(value) if isinstance(value, Path | dt.date) else value for name, value in config.items()}
    return parse_settings(ExportConfig, plain)
