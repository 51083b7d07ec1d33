"""Putting the definitions together; every part can be replaced, so tests need no monkeypatching."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from lake_pipeline.defs.assets import backtest, lake, optimize
from lake_pipeline.defs.console import console_logger
from lake_pipeline.defs.jobs import BACKTEST_JOB, EXPORT_JOB, OPTIMIZE_JOB, build_jobs
from lake_pipeline.defs.resources import (
    BaselineResource,
    CandleSourceResource,
    CheckResource,
    LakeResource,
    LakeRunResource,
    OptimizerResource,
    StrategyResource,
)
from lake_pipeline.defs.schedules import DEFAULT_NIGHTLY_CRON, build_schedules
from lake_pipeline.defs.sensors import build_sensors
from lake_pipeline.export import BucketResult

__all__ = ["BACKTEST_JOB", "EXPORT_JOB", "OPTIMIZE_JOB", "build_definitions"]


def build_definitions(
    *,
    resources: Mapping[str, Any] | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    on_bucket: Callable[[BucketResult], None] | None = None,
    nightly_cron: str = DEFAULT_NIGHTLY_CRON,
    sensor_interval_s: int | None = None,
) -> dg.Definitions:
    """Fresh Definitions.

    `resources` replaces resources by name (`lake`, `candle_source`, `lake_run`, `check_settings`, `baseline_settings`,
    `strategy_settings`, `optimizer_settings`); `backfill_policy` that of `candles` (default: one run for all
    partitions); `on_bucket` sees each exported bucket. `nightly_cron` is when `nightly_export`
    ticks, in UTC; `sensor_interval_s` replaces the time between two ticks of each sensor.
    """
    policy = backfill_policy or dg.BackfillPolicy.single_run()
    with warnings.catch_warnings():
        # Backfill policies on assets are beta in this minor, which the pin allows for.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = [
            *lake.build_lake_assets(policy, on_bucket),
            *backtest.build_backtest_assets(),
            *optimize.build_optimize_assets(),
        ]
    parts: dict[str, Any] = {
        "assets": assets,
        "resources": {
            "lake": LakeResource.configure_at_launch(),
            "candle_source": CandleSourceResource.configure_at_launch(),
            "lake_run": LakeRunResource.configure_at_launch(),
            "check_settings": CheckResource.configure_at_launch(),
            "baseline_settings": BaselineResource.configure_at_launch(),
            "strategy_settings": StrategyResource.configure_at_launch(),
            "optimizer_settings": OptimizerResource.configure_at_launch(),
            **(resources or {}),
        },
        "loggers": {"console": console_logger},
        # A process per step costs seconds of imports each; the work itself runs in threads.
        "executor": dg.in_process_executor,
    }
    return dg.Definitions(
        **parts,
        jobs=build_jobs(parts),
        schedules=build_schedules(EXPORT_JOB, nightly_cron),
        sensors=build_sensors(EXPORT_JOB, BACKTEST_JOB, interval_s=sensor_interval_s),
    )
