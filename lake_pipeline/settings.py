"""Settings as people write them: run config, JSON files, keyword arguments. One model for all edges.

The values are checked in `core.spec`, `io.clickhouse` and `backtest.config`; here are names, defaults and
descriptions. The environment is read when a property or method is used, never at import.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lake_pipeline.backtest.config import (
    AlertSelection,
    BaselineConfig,
    CallerConfig,
    StrategyConfig,
    parse_tiers,
)
from lake_pipeline.core.alerts import NormalisedAlerts
from lake_pipeline.core.manifest import RunRecord
from lake_pipeline.core.spec import RunSpec
from lake_pipeline.errors import ConfigError
from lake_pipeline.export import DEFAULT_MAX_ROWS_IN_FLIGHT, identify_run, load_alerts
from lake_pipeline.io.source import DEFAULT_TABLE, CandleSource
from lake_pipeline.io.store import Store, open_store
from lake_pipeline.limits import Limits, parse_limits

if TYPE_CHECKING:
    from lake_pipeline.backtest import BaselineResult
    from lake_pipeline.io.clickhouse import ClickHouseSource
    from lake_pipeline.optimizer.search import SearchConfig
    from lake_pipeline.run import Run

__all__ = [
    "BaselineSettings",
    "CheckSettings",
    "LakeSettings",
    "OptimizerSettings",
    "RunSettings",
    "SourceSettings",
    "StrategySettings",
    "local_root",
    "parse_day",
    "parse_settings",
    "read_json_object",
]

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
    check_source: bool = Field(
        default=False,
        description="Count and checksum the rows of each bucket in the source before they are read and before they are "
        "committed; a bucket that changed in between is not committed.",
    )
    wait_s: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Seconds to wait for the embedded engine while another process has it. Default: the environment's "
        "LAKE_WAIT_S, else 0.",
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
            wait_s=self.wait_s,
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


class CheckSettings(_Settings):
    """What a team expects of a run. It is shown as asset checks and stops nothing.

    What is not set here is taken from the environment's LAKE_CHECKS; a limit that is set nowhere always holds.
    """

    min_filled_share: float | None = Field(
        default=None, description="The least share of candle slots that hold a candle, over all windows, 0 to 1."
    )
    max_rejected_alerts: float | None = Field(
        default=None, description="The largest share of rows of the alerts input that cannot be used, 0 to 1."
    )
    max_rejected_candles: float | None = Field(
        default=None, description="The largest share of the source's rows that fail the sanity rules, 0 to 1."
    )
    max_source_lag_hours: float | None = Field(
        default=None,
        description="How far the newest candle may be behind the end of the last window, or behind now if that is "
        "earlier.",
    )
    severity: str | None = Field(
        default=None, description="How a figure beyond its limit is shown: warn or error. Default: warn."
    )

    def limits(self) -> Limits:
        """The limits in effect. Raises ConfigError."""
        given = self.model_dump(include=set(CheckSettings.model_fields), exclude_none=True)
        return Limits(**{**parse_limits(os.environ.get("LAKE_CHECKS", "")), **given})


class BaselineSettings(_Settings):
    """Which alerts of a run are measured, for how long, and how their callers are scored.

    The constants of the score are explained in `lake_pipeline.backtest.callers`.
    """

    horizon_hours: float = Field(
        default=BaselineConfig.horizon_hours,
        description="Length of a path from the entry on; the window may end first.",
    )
    max_entry_lag: int = Field(
        default=BaselineConfig.max_entry_lag, description="Candles the first one may come late before it is late_entry."
    )
    from_day: str | None = Field(default=None, description="First UTC day of alerts, YYYY-MM-DD.")
    to_day: str | None = Field(default=None, description="Last UTC day of alerts, inclusive, YYYY-MM-DD.")
    callers: list[str] | None = Field(default=None, description="Only alerts of these callers. Default: of all.")
    min_trades: int = Field(
        default=CallerConfig.min_trades, description="Alerts with status ok a caller needs to be in the caller table."
    )
    confidence_n: float = Field(default=CallerConfig.confidence_n, description="Score: conf = sqrt(n / (n + this)).")
    tail_p75_weight: float = Field(
        default=CallerConfig.tail_p75_weight, description="Score: weight of p75 over the median ATH."
    )
    tail_p95_weight: float = Field(
        default=CallerConfig.tail_p95_weight, description="Score: weight of p95 over the p75 of the ATH."
    )
    fast_weight: float = Field(default=CallerConfig.fast_weight, description="Score: weight of reaching 2x quickly.")
    fast_minutes: float = Field(
        default=CallerConfig.fast_minutes, description="Score: fast = exp(-median minutes to 2x / this)."
    )
    discipline_bonus: float = Field(
        default=CallerConfig.discipline_bonus, description="Score: bonus of many 2x with a small drawdown before."
    )
    discipline_hit_2x: float = Field(
        default=CallerConfig.discipline_hit_2x, description="Score: share of 2x the bonus needs."
    )
    drawdown_limit: float = Field(
        default=CallerConfig.drawdown_limit, description="Score: median drawdown before 2x that is still no fault."
    )
    penalty_steepness: float = Field(
        default=CallerConfig.penalty_steepness, description="Score: how fast the penalty grows beyond that limit."
    )

    def selection(self) -> AlertSelection:
        """The validated selection. Raises ConfigError."""
        return AlertSelection(
            parse_day("from_day", self.from_day),
            parse_day("to_day", self.to_day),
            None if self.callers is None else tuple(self.callers),
        )

    def baseline(self) -> BaselineConfig:
        """The validated settings of paths and metrics. Raises ConfigError."""
        return BaselineConfig(self.horizon_hours, self.max_entry_lag)

    def caller_config(self) -> CallerConfig:
        """The validated settings of the caller table. Raises ConfigError."""
        return CallerConfig(**self.model_dump(include={field.name for field in dataclasses.fields(CallerConfig)}))

    def result(self, lake: Store, run: Run, threads: int) -> BaselineResult:
        """The baseline of a sealed run with its caller table, found or computed (`backtest.baseline_result`)."""
        from lake_pipeline.backtest import baseline_result

        return baseline_result(lake, run, self.baseline(), self.caller_config(), self.selection(), threads=threads)


class StrategySettings(_Settings):
    """One strategy; the rules are those of `lake_pipeline.backtest.exits`."""

    tp: float | None = Field(default=StrategyConfig.tp, description="Take-profit, a multiple of the entry price.")
    sl: float | None = Field(default=StrategyConfig.sl, description="Stop-loss, a multiple of the entry price.")
    intrabar_order: str = Field(
        default=StrategyConfig.intrabar_order, description="Both levels in one candle: sl_first or tp_first."
    )
    fill: str = Field(
        default=StrategyConfig.fill,
        description="gap: a stop the open is beyond fills at the open; level: at the stop.",
    )
    fee_bps: float = Field(default=StrategyConfig.fee_bps, description="Fees of the round trip, basis points.")
    slippage_bps: float = Field(default=StrategyConfig.slippage_bps, description="Slippage of each side, basis points.")
    time_stop_hours: float | None = Field(default=None, description="Close after so long at the latest.")
    trail_activation: float | None = Field(
        default=None, description="Gain that starts the trailing stop (0.5 is +50 %). Default: none is needed."
    )
    trail_distance: float | None = Field(default=None, description="Trailing stop: fraction below the earlier peak.")
    breakeven_trigger: float | None = Field(default=None, description="Gain that moves the stop to break-even.")
    breakeven_offset: float | None = Field(default=None, description="Where to, over the entry price. Default: 0.")
    tiers: str = Field(default="", description="Stop ladder 2x:1.2,3x:1.6: at 2x the stop moves to 1.2x, and so on.")
    risk_per_trade: float = Field(
        default=StrategyConfig.risk_per_trade, description="Fraction of the equity that a stop at `sl` costs."
    )

    def strategy(self) -> StrategyConfig:
        """The validated strategy. Raises ConfigError."""
        return StrategyConfig(**{**self.model_dump(), "tiers": parse_tiers(self.tiers)})


class OptimizerSettings(_Settings):
    """A search over exits: ranges as text, `lo:hi:step`, values and `none`, separated by commas.

    An exit that is not given is not used, but for tp and sl; the rules are those of `lake_pipeline.optimizer`.
    """

    trials: int | None = Field(
        default=None, description="Trials in each fold. Default: 100; for a grid as many as it has points."
    )
    sampler: str = Field(default="random", description="random (no trial twice), grid, or tpe (Optuna).")
    seed: int = Field(default=0, description="Of the sampler and of the bootstrap.")
    tp: str = Field(default="1.5:3.5:.01", description="Take-profits, multiples of the entry price.")
    sl: str = Field(default=".3:.6:.01", description="Stop-losses, multiples of the entry price.")
    time_stop_hours: str | None = Field(default=None, description="Ages at which a position is left.")
    trail_activation: str | None = Field(default=None, description="Gains that start the trailing stop.")
    trail_distance: str | None = Field(default=None, description="Fractions the stop trails below the earlier peak.")
    breakeven_trigger: str | None = Field(default=None, description="Gains that move the stop to break-even.")
    breakeven_offset: str | None = Field(default=None, description="Where to, over the entry price.")
    tiers: list[str] = Field(default=[], description="Stop ladders to choose from, such as 2x:1.2,3x:1.6, or none.")
    intrabar_order: str = Field(default=StrategyConfig.intrabar_order, description="As in strategy_settings.")
    fill: str = Field(default=StrategyConfig.fill, description="As in strategy_settings.")
    fee_bps: float = Field(default=StrategyConfig.fee_bps, description="Fees of the round trip, basis points.")
    slippage_bps: float = Field(default=StrategyConfig.slippage_bps, description="Slippage of each side, basis points.")
    risk_per_trade: float = Field(
        default=StrategyConfig.risk_per_trade, description="Fraction of the equity that a stop at `sl` costs."
    )
    train_days: float | None = Field(
        default=None, description="Length of a train period. Default: two thirds of the alerts' time (one fold)."
    )
    test_days: float | None = Field(default=None, description="Length of a test period. Default: half of train_days.")
    folds: int = Field(default=1, description="Walk-forward folds, each one test period later than the one before.")
    objective: str = Field(
        default="sharpe", description="A figure of docs/optimizer.md, or several with weights: mean_ret:1,sharpe:0.1."
    )
    gates: str = Field(
        default="min_trades=10", description="What a trial needs on train: min_trades=N,min_hit_rate=F,max_drawdown=F."
    )
    figures: str = Field(
        default="all", description="means leaves out what needs each trade: medians, streaks, equity, drawdown."
    )
    top: int = Field(default=5, description="Trials that go through the robustness lanes.")

    def search(self) -> SearchConfig:
        """The validated search. Raises ConfigError."""
        from lake_pipeline.optimizer.objective import Gates, Objective
        from lake_pipeline.optimizer.search import SearchConfig
        from lake_pipeline.optimizer.space import RANGED, SearchSpace
        from lake_pipeline.optimizer.splits import SplitConfig

        values = self.model_dump()
        fixed = {name: values[name] for name in StrategyConfig.__dataclass_fields__ if name not in RANGED}
        return SearchConfig(
            space=SearchSpace.of({name: values[name] for name in RANGED if values[name] not in (None, [])}, fixed),
            split=SplitConfig(self.train_days, self.test_days, self.folds),
            objective=Objective.parse(self.objective),
            gates=Gates.parse(self.gates),
            **{name: values[name] for name in ("sampler", "trials", "seed", "figures", "top")},
        )


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


def read_json_object(path: str) -> dict[str, Any]:
    """The settings in a JSON file. Raises ConfigError."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {path} must hold one JSON object of settings")
    return settings
