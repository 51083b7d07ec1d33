"""The 256 mint buckets as Dagster partitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import dagster as dg

from lake_pipeline.core.buckets import ALL_BUCKETS

__all__ = ["WHOLE_RANGE", "mint_buckets"]

mint_buckets = dg.StaticPartitionsDefinition(list(ALL_BUCKETS))

# As tags of a run over the whole group `lake`: it exports every bucket and seals.
WHOLE_RANGE: Final[Mapping[str, str]] = {
    "dagster/asset_partition_range_start": ALL_BUCKETS[0],
    "dagster/asset_partition_range_end": ALL_BUCKETS[-1],
}
