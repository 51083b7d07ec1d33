"""The definitions of the environment, with ticks as often as a test can wait for."""

from __future__ import annotations

import os

import dagster as dg

from lake_pipeline.automation import buckets_per_run
from lake_pipeline.defs.build import build_definitions

_BUCKETS = buckets_per_run(os.environ)

defs = build_definitions(
    backfill_policy=dg.BackfillPolicy.multi_run(_BUCKETS) if _BUCKETS else None,
    nightly_cron="* * * * *",
    sensor_interval_s=1,
)
