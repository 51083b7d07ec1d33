"""Group `optimize`: optimization, the search over the exits of a sealed run."""

from typing import Final

import dagster as dg

from lake_pipeline.defs import checks, metadata
from lake_pipeline.defs.assets.lake import reads
from lake_pipeline.defs.failures import as_failure, interruptible
from lake_pipeline.defs.resources import (
    BaselineResource,
    CandleSourceResource,
    LakeResource,
    LakeRunResource,
    OptimizerResource,
)

__all__ = ["GROUP", "build_optimize_assets"]

GROUP: Final = "optimize"


def build_optimize_assets() -> list[dg.AssetsDefinition]:
    """The asset, of the settings in `baseline_settings` and `optimizer_settings`."""

    @dg.asset(
        group_name=GROUP,
        kinds={"parquet"},
        tags=reads("sealed-run"),
        check_specs=checks.check_specs("optimization"),
        deps=["manifest"],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def optimization(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        baseline_settings: BaselineResource,
        optimizer_settings: OptimizerResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """Trials of exits chosen on train alerts, every one kept, and the winner with what speaks against it.

        - **Reads** a sealed run, and nothing else: every number can be replayed from its files.
        - **Writes** `trials.parquet`, `best.json`, `winner_trades.parquet` and pictures in
          `results/run_id=.../optimize=<key>`. Where the alerts are too few or too close together to be split, and no
          lengths of train and test periods were asked for, it writes nothing and its check warns.
        - **Fails** on a run that is not sealed or is not what was sealed, on a stored result that was edited, and when
          no alert is selected. Computed once for the same run, settings and code; found after that.
        """
        # Loaded here: looking at definitions takes neither numba nor matplotlib.
        from lake_pipeline.optimizer.results import optimize_result, pictures_result
        from lake_pipeline.optimizer.splits import NothingToSplit

        with as_failure(), interruptible():
            run = lake_run.find(lake, candle_source)
            store, threads = lake.store(), candle_source.thread_count
            search = optimizer_settings.search()
            try:
                result = optimize_result(
                    store,
                    run,
                    search,
                    baseline_settings.baseline(),
                    baseline_settings.selection(),
                    threads=threads,
                    resume=True,
                    on_batch=lambda state: context.log.info(f"{state.done:,} of {state.total:,} trials"),
                )
            except NothingToSplit as error:
                if search.split.fixed or search.split.folds > 1:
                    raise
                # A materialisation all the same: without, a backfill of the whole graph would count as failed.
                return dg.MaterializeResult(
                    metadata={"dagster/row_count": 0, "run_id": run.run_id, "trials_evaluated": 0},
                    check_results=checks.log_failed(context, checks.search_checks(str(error))),
                )
            pictures = pictures_result(store, run, result, threads=threads)
            shown = metadata.optimization_metadata(result, result.report(store, run), pictures, run.run_id)
        context.log.info(f"optimize {result.key} {'computed' if result.created else 'found'}: {result.store.uri}")
        return dg.MaterializeResult(metadata=shown, check_results=checks.search_checks())

    return [optimization]
