"""The definitions of a deployment: what the environment decides when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from lake_pipeline.automation import buckets_per_run
from lake_pipeline.defs.build import build_definitions
from lake_pipeline.defs.schedules import DEFAULT_NIGHTLY_CRON

__all__ = ["definitions_from_environment"]


def definitions_from_environment(environ: Mapping[str, str]) -> dg.Definitions:
    """Definitions with LAKE_BUCKETS_PER_RUN and LAKE_NIGHTLY_CRON. Raises ConfigError for a value that cannot work."""
    buckets = buckets_per_run(environ)
    return build_definitions(
        backfill_policy=dg.BackfillPolicy.multi_run(buckets) if buckets else None,
        nightly_cron=environ.get("LAKE_NIGHTLY_CRON") or DEFAULT_NIGHTLY_CRON,
    )
