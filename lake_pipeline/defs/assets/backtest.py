"""Group `backtest`: baseline, price_action, caller_stats, trades, all of a sealed run.

Each finds its result in the lake or computes it there (`backtest.results`), so any of them can be launched alone once
`manifest` has sealed the run.
"""

from typing import Final

import dagster as dg

# Its functions are loaded when they are called: looking at definitions takes neither numba nor matplotlib.
from lake_pipeline import backtest
from lake_pipeline.defs import metadata
from lake_pipeline.defs.assets.lake import reads
from lake_pipeline.defs.failures import as_failure, interruptible
from lake_pipeline.defs.resources import (
    BaselineResource,
    CandleSourceResource,
    LakeResource,
    LakeRunResource,
    StrategyResource,
)

__all__ = ["GROUP", "build_backtest_assets"]

GROUP: Final = "backtest"


def build_backtest_assets() -> list[dg.AssetsDefinition]:
    """The four assets, of the settings in `baseline_settings` and `strategy_settings`."""
    single_run = dg.BackfillPolicy.single_run()

    @dg.asset(
        group_name=GROUP, kinds={"parquet"}, tags=reads("sealed-run"), deps=["manifest"], backfill_policy=single_run
    )
    def baseline(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        baseline_settings: BaselineResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """What the price did after each alert: 28 columns and extras, one row an alert (docs/backtest.md defines each).

        - **Reads** a sealed run, and nothing else: every number can be replayed from its files.
        - **Writes** `baseline.parquet` and `caller_stats.parquet` in `results/run_id=.../baseline=<key>`.
        - **Fails** on a run that is not sealed or is not what was sealed, on a stored result that was edited, and when
          no alert is selected. Computed once for the same run, settings and code; found after that.
        """
        with as_failure(), interruptible():
            run = lake_run.find(lake, candle_source)
            result = baseline_settings.result(lake.store(), run, candle_source.thread_count)
            shown = metadata.baseline_metadata(result, run.run_id)
        _log(context, result)
        return dg.MaterializeResult(metadata=shown)

    @dg.asset(
        group_name=GROUP, kinds={"parquet"}, tags=reads("sealed-run"), deps=[baseline], backfill_policy=single_run
    )
    def price_action(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        baseline_settings: BaselineResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """The candles each row of the baseline was measured on, from the entry candle on.

        - **Reads** a sealed run, and nothing else: every number can be replayed from its files.
        - **Writes** a Parquet file an alert, in `per_alert` of the baseline's folder; none for one without candles.
        - **Fails** on a run that is not sealed or is not what was sealed, on a stored result that was edited, and when
          no alert is selected. Computed once for the same run, settings and code; found after that.
        """
        with as_failure(), interruptible():
            run = lake_run.find(lake, candle_source)
            store, threads = lake.store(), candle_source.thread_count
            measured = baseline_settings.result(store, run, threads)
            paths = backtest.open_paths(
                run,
                baseline_settings.selection(),
                baseline_settings.baseline().horizon_ms,
                lake=store,
                fill_cache=False,
            )
            result = backtest.per_alert_result(store, run, measured, paths, threads=threads)
            shown = metadata.price_action_metadata(result, measured, run.run_id)
        _log(context, result)
        return dg.MaterializeResult(metadata=shown)

    @dg.asset(
        group_name=GROUP, kinds={"parquet"}, tags=reads("sealed-run"), deps=[baseline], backfill_policy=single_run
    )
    def caller_stats(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        baseline_settings: BaselineResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """The callers by score: quantiles of the highest multiple, hit rates, drawdowns.

        - **Reads** a sealed run, and nothing else: every number can be replayed from its files.
        - **Writes** `caller_stats.parquet` beside the baseline: callers with `min_trades` usable alerts or more. Its
          metadata counts those with fewer.
        - **Fails** on a run that is not sealed or is not what was sealed, on a stored result that was edited, and when
          no alert is selected. Computed once for the same run, settings and code; found after that.
        """
        with as_failure(), interruptible():
            run = lake_run.find(lake, candle_source)
            result = baseline_settings.result(lake.store(), run, candle_source.thread_count)
            shown = metadata.caller_metadata(result, run.run_id)
        _log(context, result)
        return dg.MaterializeResult(metadata=shown)

    @dg.asset(
        group_name=GROUP, kinds={"parquet"}, tags=reads("sealed-run"), deps=["manifest"], backfill_policy=single_run
    )
    def trades(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        baseline_settings: BaselineResource,
        strategy_settings: StrategyResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """One strategy on the same paths: entry, exit, reason and return of each alert, and what they come to together.

        - **Reads** a sealed run, and nothing else: every number can be replayed from its files.
        - **Writes** `trades.parquet` and `summary.json` in `results/run_id=.../strategy=<key>`.
        - **Fails** on a run that is not sealed or is not what was sealed, on a stored result that was edited, and when
          no alert is selected. Computed once for the same run, settings and code; found after that.
        """
        with as_failure(), interruptible():
            run = lake_run.find(lake, candle_source)
            result = backtest.strategy_result(
                lake.store(),
                run,
                strategy_settings.strategy(),
                baseline_settings.baseline(),
                baseline_settings.selection(),
                threads=candle_source.thread_count,
            )
            shown = metadata.trades_metadata(result, run.run_id)
        _log(context, result)
        return dg.MaterializeResult(metadata=shown)

    return [baseline, price_action, caller_stats, trades]


def _log(context: dg.AssetExecutionContext, result: "backtest.Result") -> None:
    how = "computed" if result.created else "was there already and is used"
    context.log.info(f"{result.record.kind} {result.key} {how}: {result.store.uri}")
