"""The export job, run in this process: the same assets, events and run record as from the Dagster UI."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lake_pipeline.api import ExportConfig, ExportResult
from lake_pipeline.errors import LakeError
from lake_pipeline.run import load_run

if TYPE_CHECKING:
    from lake_pipeline.export import BucketResult

__all__ = ["run_export_job"]

# By this tag the UI lists a run on the page of its job; the name of the location is that of workspace.yaml.
_IN_THE_UI: Final = {".dagster/repository": "__repository__@lake_pipeline"}


def run_export_job(config: ExportConfig, on_bucket: Callable[[BucketResult], None]) -> ExportResult:
    """Run job `export_run` over all buckets and return the sealed run.

    The run is recorded where DAGSTER_HOME says, and nowhere when that is not set. Raises the LakeError
    that failed a step.
    """
    import dagster as dg

    from lake_pipeline.defs.build import EXPORT_JOB, build_definitions
    from lake_pipeline.defs.run_config import WHOLE_RANGE, run_config_of

    # What a failed step has to say is raised below; its stack trace helps nobody at a prompt.
    run_config = run_config_of(config) | {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = build_definitions(on_bucket=on_bucket).resolve_job_def(EXPORT_JOB)
    with dg.DagsterInstance.get() if os.environ.get("DAGSTER_HOME") else dg.DagsterInstance.ephemeral() as instance:
        try:
            result = job.execute_in_process(
                run_config=run_config,
                instance=instance,
                tags={**WHOLE_RANGE, **_IN_THE_UI},
            )
        except dg.Failure as failure:
            if isinstance(failure.__cause__, LakeError):
                raise failure.__cause__ from None
            raise
        except dg.DagsterExecutionInterruptedError as interrupt:
            raise KeyboardInterrupt from interrupt
    (seal,) = result.asset_materializations_for_node("manifest")
    run = load_run(config.store(), str(seal.metadata["run_id"].value))
    return ExportResult.of(run.manifest(), run.store.uri, created=bool(seal.metadata["sealed_now"].value))
