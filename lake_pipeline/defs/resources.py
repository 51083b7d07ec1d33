"""Lake, candle source, run and backtest settings as Dagster resources: the models of `settings`, configurable."""

from __future__ import annotations

import dagster as dg

from lake_pipeline.run import Run, load_run
from lake_pipeline.settings import (
    BaselineSettings,
    LakeSettings,
    OptimizerSettings,
    RunSettings,
    SourceSettings,
    StrategySettings,
)

__all__ = [
    "BaselineResource",
    "CandleSourceResource",
    "LakeResource",
    "LakeRunResource",
    "OptimizerResource",
    "StrategyResource",
]


class LakeResource(LakeSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where lakes are kept."""


class CandleSourceResource(SourceSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The ClickHouse table candles are read from."""


class LakeRunResource(RunSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The settings of one run, given at launch; one config serves every run of a backfill."""

    def find(self, lake: LakeSettings, candle_source: SourceSettings) -> Run:
        """The run of this config, which `alerts` must have created; RunMismatch if its settings differ.

        A run_id that is not given follows from the input, which is read again for it.
        """
        spec = self.spec()
        run_id = self.run_id
        if run_id is None:
            with candle_source.connect(lake.root) as source:
                run_id = self.identify(self.load_alerts(), source).run_id
        run = load_run(lake.store(), run_id)
        run.require(spec)
        return run


class BaselineResource(BaselineSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The settings of the baseline and the caller table, all with defaults."""


class StrategyResource(StrategySettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The strategy of the trades, all with defaults."""


class OptimizerResource(OptimizerSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The search over exits, all with defaults."""
