"""Settings as people write them: run config, JSON files, keyword arguments. One model for all edges.

The values are checked in `core.spec` and `io.clickhouse`; here are names, defaults and descriptions. The
environment is read when a property or method is used, never at import.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lake_pipeline.core.alerts import NormalisedAlerts
from lake_pipeline.core.manifest import RunRecord
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import ConfigError
from lake_pipeline.export import DEFAULT_MAX_ROWS_IN_FLIGHT, identify_run, load_alerts
from lake_pipeline.io.source import DEFAULT_TABLE, CandleSource
from lake_pipeline.io.store import Store, open_store

if TYPE_CHECKING:
    from lake_pipeline.io.clickhouse import ClickHouseSource

__all__ = ["LakeSettings", "RunSettings", "SourceSettings", "local_root", "parse_day", "parse_settings"]

DEFAULT_DATA_ROOT = "data"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def local_root(data_root: str) -> str:
    """The folder for what cannot live in an object store: the data root itself, or `data` where that is a URL."""
    return DEFAULT_DATA_ROOT if "://" in data_root else data_root


class LakeSettings(_Settings):
    """Where lakes are kept."""

    data_root: str | None = Field(
        default=None,
        description="Folder of the lake, or its URL: s3://bucket/prefix, gs://..., az://... "
        "Default: the environment's LAKE_DATA_ROOT, else `data`.",
    )

    @property
    def root(self) -> str:
        """The data root in effect."""
        return self.data_root or os.environ.get("LAKE_DATA_ROOT") or DEFAULT_DATA_ROOT

    def store(self) -> Store:
        """The store of the data root."""
        return open_store(self.root)


class SourceSettings(_Settings):
    """The ClickHouse table candles are read from, and how hard it is worked.

    Without `dsn`, CLICKHOUSE_DSN or CLICKHOUSE_HOST it is the embedded engine under `<data_root>/clickhouse`, or
    `data/clickhouse` if data_root is a URL; LAKE_ENGINE_PATH names another folder.
    """

    dsn: str | None = Field(
        default=None,
        description="clickhouse://host:8123/database, without a password: that comes from CLICKHOUSE_PASSWORD, "
        "or a whole DSN from CLICKHOUSE_DSN.",
    )
    database: str | None = Field(default=None, description="Default: CLICKHOUSE_DATABASE, else the server's.")
    table: str = Field(default=DEFAULT_TABLE, description="The candle table.")
    columns: dict[str, str] = Field(
        default={}, description="Role to column name where they differ, e.g. {token_address: mint}."
    )
    threads: int | None = Field(
        default=None, ge=1, le=256, description="Queries and encoders at once. Default: the number of cores, at most 8."
    )
    max_rows_in_flight: int = Field(
        default=DEFAULT_MAX_ROWS_IN_FLIGHT, ge=1, description="Candles held in memory at once, some 60 bytes each."
    )
    reuse: bool = Field(
        default=True,
        description="Take buckets from sealed runs of this data root where alerts, settings and source are unchanged.",
    )

    @property
    def thread_count(self) -> int:
        """Threads in effect."""
        return self.threads if self.threads is not None else min(os.cpu_count() or 1, 8)

    def connect(self, data_root: str) -> ClickHouseSource:
        """The source, to be closed by the caller (`with`)."""
        # The driver is a third of the start-up time of commands that only look at files.
        from lake_pipeline.io.clickhouse import ClickHouseSource, SourceConfig

        config = SourceConfig.from_environment(
            os.environ,
            embedded_path=os.environ.get("LAKE_ENGINE_PATH") or str(Path(local_root(data_root), "clickhouse")),
            dsn=self.dsn,
            database=self.database,
            table=self.table,
            columns=self.columns,
        )
        return ClickHouseSource(config)


class RunSettings(_Settings):
    """The settings of one run."""

    interval: str = Field(description="Candle length: <n><s|m|h|d>, such as 1m.")
    window: str = Field(description="pre<N>_post<M>: candles before and after the alert's own, e.g. pre52_post4948.")
    alerts: str = Field(description="Alerts: a .parquet, .csv or .duckdb file; a URL for the first two.")
    run_id: str | None = Field(
        default=None, description="Name of the run. Default: derived from settings, alerts and source."
    )
    chain: str = Field(default="solana", description="The one chain of this run; aliases such as SOL are known.")
    compression: str = Field(default="zstd", description="zstd, snappy or none.")
    target_file_mb: int = Field(default=512, description="A slice file closes at about this size.")
    strict_coverage: bool = Field(default=False, description="Drop alerts below the two thresholds, and their candles.")
    min_required_pre: int | None = Field(
        default=None, description="Strict: candles before the anchor at least. Default: the window's N."
    )
    target_total: int | None = Field(default=None, description="Strict: candles at least. Default: the window's N+M.")
    from_day: str | None = Field(default=None, description="First UTC day of alerts, YYYY-MM-DD.")
    to_day: str | None = Field(default=None, description="Last UTC day of alerts, inclusive, YYYY-MM-DD.")
    previous: str | None = Field(
        default=None, description="The sealed run that this one's manifest names as the one before it."
    )
    alerts_table: str | None = Field(
        default=None, description="Table of a DuckDB file. Default: the first usual one with rows."
    )

    def spec(self) -> RunSpec:
        """The validated settings. Raises ConfigError."""
        return RunSpec(
            interval=self.interval,
            window=self.window,
            chain=self.chain,
            compression=self.compression,  # type: ignore[arg-type]  # checked by RunSpec
            target_file_mb=self.target_file_mb,
            strict_coverage=self.strict_coverage,
            min_required_pre=self.min_required_pre,
            target_total=self.target_total,
            from_day=parse_day("from_day", self.from_day),
            to_day=parse_day("to_day", self.to_day),
        )

    def load_alerts(self) -> NormalisedAlerts:
        """The alerts input, normalised."""
        return load_alerts(self.spec(), self.alerts, self.alerts_table)

    def identify(self, alerts: NormalisedAlerts, source: CandleSource) -> RunRecord:
        """The identity of the run these settings make of these alerts and this source."""
        return identify_run(self.spec(), alerts, source.identity(), self.run_id)


_SettingsT = TypeVar("_SettingsT", bound=BaseModel)


def parse_settings(model: type[_SettingsT], values: Mapping[str, Any]) -> _SettingsT:
    """Settings from a mapping. Raises ConfigError that names each bad key and the known ones."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{problems}. The settings are {', '.join(model.model_fields)}") from error


def parse_day(name: str, text: str | None) -> dt.date | None:
    """A UTC day from YYYY-MM-DD. Raises ConfigError."""
    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} is not a day: write YYYY-MM-DD") from error
