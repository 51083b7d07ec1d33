"""Lake, candle source, run and backtest settings as Dagster resources: the models of `settings`, configurable."""

from __future__ import annotations

from typing import Final

import dagster as dg
import yaml
from pydantic import Field

from lake_pipeline.core.spec import RunSpec
from lake_pipeline.demo import DEMO_INTERVAL, DEMO_WINDOW
from lake_pipeline.errors import ConfigError
from lake_pipeline.run import Run, load_run
from lake_pipeline.settings import (
    BaselineSettings,
    CheckSettings,
    LakeSettings,
    OptimizerSettings,
    RunSettings,
    SourceSettings,
    StrategySettings,
)

__all__ = [
    "DEMO_RUN",
    "BaselineResource",
    "CandleSourceResource",
    "CheckResource",
    "LakeResource",
    "LakeRunResource",
    "OptimizerResource",
    "StrategyResource",
]


class LakeResource(LakeSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where lakes are kept."""


class CandleSourceResource(SourceSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The ClickHouse table candles are read from."""


# What a run of the demo's data is configured with, and what others copy.
DEMO_RUN: Final = {"alerts": "examples/alerts.csv", "interval": DEMO_INTERVAL, "window": DEMO_WINDOW}


class LakeRunResource(RunSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The settings of one run, given at launch; one config serves every run of a backfill.

    `alerts`, `interval` and `window` are needed, but Dagster does not ask for them: it would open another editor for
    "Materialize all", one without partitions, and its message would not show what to write.
    """

    alerts: str = Field(default="", description=f"Needed. {RunSettings.model_fields['alerts'].description}")
    interval: str = Field(default="", description=f"Needed. {RunSettings.model_fields['interval'].description}")
    window: str = Field(default="", description=f"Needed. {RunSettings.model_fields['window'].description}")

    def spec(self) -> RunSpec:
        """The validated settings. Raises ConfigError, with what to paste when a setting is missing."""
        missing = [name for name in DEMO_RUN if not getattr(self, name)]
        if missing:
            raise ConfigError(
                f"the run config does not say which run this is: {', '.join(missing)} of lake_run "
                f"{'is' if len(missing) == 1 else 'are'} missing. Paste this as the config and put your values in:\n\n"
                f"{self._example()}"
            )
        return super().spec()

    def _example(self) -> str:
        """Run config as YAML: what is set, and for the rest the demo's values."""
        given = self.model_dump(include=set(RunSettings.model_fields), exclude_defaults=True)
        config = {"resources": {"lake_run": {"config": {**DEMO_RUN, **given}}}}
        text: str = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        return text

    def find(self, lake: LakeSettings, candle_source: SourceSettings) -> Run:
        """The run of this config, which `alerts` must have created; RunMismatch if its settings differ.

        A run_id that is not given follows from the input, which is read again for it. With a run_id and neither
        interval nor window, what is not set is as the run has it.
        """
        if self.run_id and not self.interval and not self.window:
            run = load_run(lake.store(), self.run_id)
            given = self.model_dump(include=set(RunSettings.model_fields), exclude_defaults=True)
            run.require(RunSettings(**{**run.record.spec, "alerts": self.alerts, **given}).spec())
            return run
        spec = self.spec()
        run_id = self.run_id
        if run_id is None:
            with candle_source.connect(lake.root) as source:
                run_id = self.identify(self.load_alerts(), source).run_id
        run = load_run(lake.store(), run_id)
        run.require(spec)
        return run


class CheckResource(CheckSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The limits that asset checks compare a run with, all unset by default."""


class BaselineResource(BaselineSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The settings of the baseline and the caller table, all with defaults."""


class StrategyResource(StrategySettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The strategy of the trades, all with defaults."""


class OptimizerResource(OptimizerSettings, dg.ConfigurableResource):  # type: ignore[type-arg]
    """The search over exits, all with defaults."""
