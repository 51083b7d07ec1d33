"""The 256 mint buckets as Dagster partitions."""

from __future__ import annotations

import dagster as dg

from lake_pipeline.core.buckets import ALL_BUCKETS

__all__ = ["mint_buckets"]

mint_buckets = dg.StaticPartitionsDefinition(list(ALL_BUCKETS))
