"""What Dagster loads: `dagster dev -m lake_pipeline.definitions`, as the environment asks for."""

from __future__ import annotations

import os

from lake_pipeline.defs.deployment import definitions_from_environment

defs = definitions_from_environment(os.environ)
