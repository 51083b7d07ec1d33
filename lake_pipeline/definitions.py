"""What Dagster loads: `dagster dev -m lake_pipeline.definitions`."""

from __future__ import annotations

from lake_pipeline.defs.build import build_definitions

defs = build_definitions()
