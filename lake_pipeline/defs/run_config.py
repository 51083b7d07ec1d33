"""Dagster run configs: of settings, and of another run for the same lake run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lake_pipeline.api import ExportConfig
from lake_pipeline.core.buckets import ALL_BUCKETS
from lake_pipeline.settings import LakeSettings, RunSettings, SourceSettings

__all__ = ["WHOLE_RANGE", "configured_run_id", "run_config_of", "same_run_config"]

# On a job over the whole group, one run exports every bucket and seals.
WHOLE_RANGE: Final[Mapping[str, str]] = {
    "dagster/asset_partition_range_start": ALL_BUCKETS[0],
    "dagster/asset_partition_range_end": ALL_BUCKETS[-1],
}
_MODELS: Final = (("lake", LakeSettings), ("candle_source", SourceSettings), ("lake_run", RunSettings))


def run_config_of(config: ExportConfig) -> dict[str, Any]:
    """The run config of these settings; what was not set is left to the environment and the defaults."""
    resources = {
        name: {"config": config.model_dump(include=set(model.model_fields), exclude_none=True)}
        for name, model in _MODELS
    }
    return {"resources": resources}


def configured_run_id(run_config: Mapping[str, Any]) -> str | None:
    """The run_id a run config names, None if it leaves it to the content or the environment."""
    run_id = _settings_of(run_config, "lake_run").get("run_id")
    return run_id if isinstance(run_id, str) else None


def same_run_config(run_config: Mapping[str, Any], run_id: str, resources: Sequence[str] = ()) -> dict[str, Any]:
    """The config of a further Dagster run for the lake run that one with this config has worked on.

    It keeps the settings of lake, source and run, and of the other `resources` named.
    """
    names = [*(name for name, _ in _MODELS), *resources]
    kept = {name: {"config": dict(settings)} for name in names if (settings := _settings_of(run_config, name))}
    kept["lake_run"]["config"]["run_id"] = run_id
    return {"resources": kept}


def _settings_of(run_config: Mapping[str, Any], resource: str) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = run_config.get("resources", {}).get(resource, {}).get("config", {})
    return settings
