"""Group `lake`: alerts, candles, coverage, manifest.

They are built by a function because the backfill policy is fixed when an asset is defined: one run for
all partitions by default, several under a run launcher.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import dagster as dg

from lake_pipeline.core.schemas import ALERTS_SCHEMA, COVERAGE_SCHEMA, SLICE_SCHEMA
from lake_pipeline.defs import checks, metadata
from lake_pipeline.defs.columns import MANIFEST_FILES_SCHEMA, column_schema
from lake_pipeline.defs.failures import as_failure, interruptible, is_transient
from lake_pipeline.defs.partitions import mint_buckets
from lake_pipeline.defs.resources import CandleSourceResource, CheckResource, LakeResource, LakeRunResource
from lake_pipeline.defs.run_config import WHOLE_RANGE
from lake_pipeline.errors import BucketsFailed, ConfigError, LakeError
from lake_pipeline.export import BucketResult, export_buckets, snapshot_alerts
from lake_pipeline.io import layout
from lake_pipeline.run import load_run
from lake_pipeline.seal import SealResult, cover_run, seal_run

__all__ = ["GROUP", "build_lake_assets", "reads"]

GROUP: Final = "lake"
_PROGRESS_EVERY_S: Final = 5.0
# For the long step only: the source retries each query by itself. Only transient errors come back here
# (see failures), and buckets that are done are skipped then.
_RETRY: Final = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)


def build_lake_assets(
    backfill_policy: dg.BackfillPolicy, on_bucket: Callable[[BucketResult], None] | None = None
) -> list[dg.AssetsDefinition]:
    """The four assets; `backfill_policy` is that of `candles`, `on_bucket` sees each bucket as it is done.

    Dagster takes no other policy than one run for an unpartitioned asset.
    """
    single_run = dg.BackfillPolicy.single_run()

    @dg.asset(
        group_name=GROUP,
        kinds={"parquet"},
        tags=reads("clickhouse"),
        metadata={"dagster/column_schema": column_schema(ALERTS_SCHEMA)},
        check_specs=checks.check_specs("alerts"),
        backfill_policy=single_run,
    )
    def alerts(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        check_settings: CheckResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """The run's identity (run.json) and its alerts, normalised, sorted by time and frozen.

        - **Reads** the file or table that `lake_run.alerts` names, and the candle table's columns.
        - **Writes** `run.json`, `inputs/alerts.parquet`, and `inputs/rejected_alerts.parquet` for rows that cannot be
          used, each with its reason.
        - **Fails** when a setting or a column is missing, ids repeat, nothing usable remains, or the `run_id` is taken
          by a run with other settings, alerts or source. Launched again on the same input it changes nothing.
        """
        with as_failure():
            limits = check_settings.limits()
            normalised = lake_run.load_alerts()
            with interruptible(), candle_source.connect(lake.root) as source:
                record = lake_run.identify(normalised, source)
            run, result = snapshot_alerts(lake.store(), record, normalised, _details(context, input=lake_run.alerts))
        if result.rejected:
            context.log.warning(f"{result.rejected} of {result.rows_in} alerts rejected: {result.reasons}")
        uri = f"{run.store.uri}/{layout.ALERTS}"
        return dg.MaterializeResult(
            metadata=metadata.snapshot_metadata(result, normalised, uri),
            check_results=checks.log_failed(context, checks.snapshot_checks(result, limits)),
        )

    @dg.asset(
        group_name=GROUP,
        kinds={"clickhouse", "parquet"},
        tags=reads("clickhouse"),
        metadata={"dagster/column_schema": column_schema(SLICE_SCHEMA)},
        deps=[alerts],
        partitions_def=mint_buckets,
        backfill_policy=backfill_policy,
        retry_policy=_RETRY,
    )
    def candles(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """The candles around the alerts, one partition a mint bucket (the first byte of SHA-1 of the mint).

        - **Reads** the union of each mint's windows out of ClickHouse: once, however many alerts share it.
        - **Writes** for each bucket Parquet parts sorted by mint and time, one row per (mint, ts), the rejected candles
          with their reasons, and last the receipt that commits the bucket. Buckets with a valid receipt are skipped;
          unchanged ones of sealed runs are taken from there.
        - **Fails** when the source does not answer after its retries, a bucket's ledger does not add up, or the run has
          other settings. A bucket that fails does not stop the others: the run fails with the list of the bad ones, and
          the next one does only what is missing.
        """
        with as_failure():
            if not (context.has_partition_key or context.has_partition_key_range):
                tags = ", ".join(f"{name}={key}" for name, key in WHOLE_RANGE.items())
                raise ConfigError(
                    "this run names no buckets. Launch the job export_run, which does them all; or choose partitions "
                    f"of `candles`; or add the two tags {tags}"
                )
            run = lake_run.find(lake, candle_source)
            progress = _Progress(context, len(context.partition_keys), on_bucket)
            try:
                with interruptible(), candle_source.connect(lake.root) as source:
                    run.require(run.spec, source.identity())
                    export_buckets(
                        run,
                        source,
                        context.partition_keys,
                        threads=candle_source.thread_count,
                        max_rows_in_flight=candle_source.max_rows_in_flight,
                        reuse_from=lake.store() if candle_source.reuse else None,
                        check_source=candle_source.check_source,
                        details=_details(context),
                        on_bucket=progress,
                    )
            except BucketsFailed as error:
                # The last attempt: what is done shows as done, although the step fails.
                if not is_transient(error) or context.retry_number >= _RETRY.max_retries:
                    for result in progress.results:
                        context.log_event(
                            dg.AssetMaterialization(
                                context.asset_key,
                                partition=result.bucket,
                                metadata=metadata.bucket_metadata(result, run),
                            )
                        )
                raise
        for result in progress.results:
            context.add_asset_metadata(metadata.bucket_metadata(result, run), partition_key=result.bucket)
        return dg.MaterializeResult()

    @dg.asset(
        group_name=GROUP,
        kinds={"parquet"},
        tags=reads("receipts"),
        metadata={"dagster/column_schema": column_schema(COVERAGE_SCHEMA)},
        check_specs=checks.check_specs("coverage"),
        deps=[candles],
        backfill_policy=single_run,
    )
    def coverage(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        check_settings: CheckResource,
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        """How much of each alert's window the candles fill: one row per alert.

        - **Reads** the receipts of the buckets, not the candles.
        - **Writes** `outputs/coverage.parquet`, and `outputs/rejected_candles.parquet` with the rejected candles of all
          buckets, if any.
        - **Fails** when receipts are those of other alerts. While buckets are missing, so are their alerts here: the
          table is then a look at an unfinished run, and the seal writes it anew.
        """
        with as_failure():
            limits = check_settings.limits()
            run = lake_run.find(lake, candle_source)
            result = cover_run(run, threads=candle_source.thread_count)
        checked = checks.coverage_checks(result, run, limits, now_ms=time.time_ns() // 1_000_000)
        return dg.MaterializeResult(
            metadata=metadata.coverage_metadata(result, run), check_results=checks.log_failed(context, checked)
        )

    @dg.asset(
        group_name=GROUP,
        kinds={"json"},
        tags=reads("receipts"),
        metadata={"dagster/column_schema": column_schema(MANIFEST_FILES_SCHEMA)},
        check_specs=checks.check_specs("manifest"),
        deps=[coverage],
        backfill_policy=single_run,
    )
    def manifest(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        lake_run: LakeRunResource,
        candle_source: CandleSourceResource,
        check_settings: CheckResource,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:  # type: ignore[type-arg]
        """The seal: `manifest.json`, written last and once. A sealed run never changes.

        - **Reads** every file of the run: it trusts the store, not Dagster's green partitions.
        - **Writes** `SHA256SUMS` and `manifest.json`, which lists each file with its hash, and one root hash over them.
          On a sealed run it verifies every byte and writes nothing.
        - **Fails** while buckets are missing or damaged, naming them; where a ledger does not add up; on foreign files
          in the run's folder; and on a sealed run that is not what was sealed.
        """
        with as_failure():
            limits = check_settings.limits()
            run = lake_run.find(lake, candle_source)
            previous = load_run(lake.store(), lake_run.previous) if lake_run.previous else None
            try:
                result = seal_run(run, threads=candle_source.thread_count, previous=previous, details=_details(context))
            except LakeError as error:
                if not error.transient:
                    yield checks.refused_seal(error)
                raise
        context.log.info(_summary(result))
        yield dg.MaterializeResult(
            metadata=metadata.seal_metadata(result, run),
            check_results=checks.log_failed(context, checks.seal_checks(result, limits)),
        )

    return [alerts, candles, coverage, manifest]


def reads(what: str) -> dict[str, str]:
    """The tag that says what an asset works on: `clickhouse`, `receipts` or `sealed-run`."""
    return {"lake/reads": what}


def _details(context: dg.AssetExecutionContext, **more: str) -> dict[str, str]:
    """What provenance.json says of the Dagster run."""
    return {"dagster_run_id": context.run.run_id, **more}


def _summary(result: SealResult) -> str:
    """The sealed run in three lines, for whoever reads the log of a job and nothing else."""
    manifest = result.manifest
    counts, ledger = manifest.coverage, manifest.ledger
    return (
        f"run {manifest.run_id} {'is sealed' if result.created else 'was sealed before and verifies'}, "
        f"content {manifest.content_sha256}\n"
        f"  alerts: {counts.kept_events:,} kept, {counts.dropped_events:,} dropped; {counts.complete:,} complete, "
        f"{counts.partial:,} partial, {counts.insufficient:,} insufficient\n"
        f"  candles: {ledger.written:,} written of {ledger.source_rows:,} rows, {ledger.duplicates:,} duplicates, "
        f"{ledger.rejected:,} rejected, {ledger.outside_kept_windows:,} outside kept windows; {manifest.total_files:,} "
        f"files, {manifest.total_bytes:,} bytes"
    )


class _Progress:
    """Collects bucket results and logs a line every few seconds, with rate and time to go."""

    def __init__(
        self, context: dg.AssetExecutionContext, total: int, on_bucket: Callable[[BucketResult], None] | None
    ) -> None:
        self.results: list[BucketResult] = []
        self._context = context
        self._total = total
        self._on_bucket = on_bucket
        self._started = self._logged = time.monotonic()

    def __call__(self, result: BucketResult) -> None:
        self.results.append(result)
        if self._on_bucket:
            self._on_bucket(result)
        now = time.monotonic()
        done = len(self.results)
        if done == self._total or now - self._logged >= _PROGRESS_EVERY_S:
            rows = sum(each.rows for each in self.results)
            elapsed = now - self._started
            to_go = elapsed / done * (self._total - done)
            self._context.log.info(
                f"{done} of {self._total} buckets, {rows:,} candles, {rows / max(elapsed, 0.001):,.0f} a second, "
                f"{to_go:.0f} s to go"
            )
            self._logged = now
