"""A whole sealed run whose root hash is checked in: the format changes on purpose or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lake_pipeline
from lake_pipeline.errors import ConfigError
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline_tests.candles_for_tests import create_table, small_market, write_alerts

# What the slices hold, value by value: whatever library writes the files.
GOLDEN_ROWS = "a733e07c45ff63d287f662e3f13a74659c67b75c5f91011ce3b10918d214476a"
# The root over the files' bytes. Parquet files name their writer, so this one goes with the pinned pyarrow.
GOLDEN_CONTENT = {"26.0.1": "70d496f7b5c4d9fc1c51926ad6fc0ae233f09c4c3ada1f0ff8dde4694e1e685e"}


@dataclass(frozen=True)
class GoldenConfig:
    """A configuration as any dataclass of these names."""

    data_root: str
    alerts: str
    table: str
    run_id: str
    interval: str = "1m"
    window: str = "pre10_post20"
    strict_coverage: bool = False


def rows_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / "slices").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        for row in table.set_column(1, "ts", table.column("ts").cast(pa.int64())).to_pylist():
            digest.update(json.dumps([str(path.relative_to(folder)), *row.values()]).encode() + b"\n")
    return digest.hexdigest()


@pytest.fixture
def config(engine: ClickHouseSource, engine_root: Path, table: str, tmp_path: Path) -> GoldenConfig:
    candles, alerts = small_market()
    create_table(engine, table, candles)
    csv = write_alerts(tmp_path / "alerts.csv", alerts)
    # The embedded database is looked for under the data root, and a process has one.
    return GoldenConfig(str(engine_root), csv, table, f"golden-{table}")


def test_export_lake_run_slices_golden(config: GoldenConfig) -> None:
    result = lake_pipeline.export_lake_run_slices(config)
    folder = Path(result.manifest_path).parent
    assert folder.name == f"run_id={config.run_id}"
    assert rows_digest(folder) == GOLDEN_ROWS
    assert pa.__version__ in GOLDEN_CONTENT, f"no golden hash for pyarrow {pa.__version__}: add it beside the others"
    assert result.manifest.content_sha256 == GOLDEN_CONTENT[pa.__version__]


def test_the_result_of_the_one_call_entry_is_the_sealed_run(config: GoldenConfig) -> None:
    seen: list[str] = []
    result = lake_pipeline.export_lake_run_slices(config, on_bucket=lambda bucket: seen.append(bucket.bucket))
    assert len(set(seen)) == len(seen) == 256
    assert result.created
    [summary] = result.manifest.outputs.values()
    assert (result.total_rows, result.total_files, result.total_bytes) == (summary.rows, summary.files, summary.bytes)
    assert json.loads(Path(result.manifest_path).read_bytes())["run_id"] == config.run_id
    coverage = pq.ParquetFile(result.coverage_path)
    assert coverage.metadata.num_rows == result.manifest.inputs.alerts.rows
    again = lake_pipeline.export_lake_run_slices(vars(config))
    assert not again.created
    assert again.manifest == result.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": "1w"}, "interval '1w' is not a candle length"),
        ({"windows": "pre1_post1"}, "windows"),
        ({"interval": None}, "interval"),
        ({"target_total": 32}, "target_total 32 can never be reached"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    config: GoldenConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lake_pipeline.export_lake_run_slices(vars(config) | changes)


def test_every_public_name_is_there() -> None:
    names = {
        "compute_mint_bucket",
        "floor_to_interval",
        "compute_window_slice",
        "parse_window_spec",
        "interval_to_seconds",
        "compute_coverage",
        "write_manifest_json",
        "export_lake_run_slices",
        "open_run",
    }
    assert names <= set(lake_pipeline.__all__)
    for name in lake_pipeline.__all__:
        assert getattr(lake_pipeline, name) is not None
    with pytest.raises(AttributeError):
        _ = lake_pipeline.no_such_name
