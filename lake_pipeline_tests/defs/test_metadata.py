"""What the asset pages show: one real run over the whole graph, its events held against the files it wrote."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lake_pipeline.backtest import BASELINE_SCHEMA, CALLER_SCHEMA, TRADES_SCHEMA
from lake_pipeline.core.schemas import ALERTS_SCHEMA, COVERAGE_SCHEMA, SLICE_SCHEMA
from lake_pipeline.defs.build import build_definitions
from lake_pipeline.defs.columns import MANIFEST_FILES_SCHEMA, PRICE_ACTION_SCHEMA, column_schema
from lake_pipeline.optimizer.trials import TRIALS_SCHEMA
from lake_pipeline.pictures import PICTURE_LIMIT
from lake_pipeline_tests.candles_for_tests import Alert, create_table, small_market, write_alerts
from lake_pipeline_tests.defs.test_lake_assets import WHOLE_RANGE

SCHEMAS = {
    "alerts": ALERTS_SCHEMA,
    "candles": SLICE_SCHEMA,
    "coverage": COVERAGE_SCHEMA,
    "manifest": MANIFEST_FILES_SCHEMA,
    "baseline": BASELINE_SCHEMA,
    "price_action": PRICE_ACTION_SCHEMA,
    "caller_stats": CALLER_SCHEMA,
    "trades": TRADES_SCHEMA,
}
LONG = "x" * 5000


@pytest.fixture(scope="module")
def root(engine_root: Path) -> Path:
    return engine_root / "lake/runs/run_id=shown"


@pytest.fixture(scope="module")
def shown(engine, engine_root, tmp_path_factory) -> dict[str, list[dg.AssetMaterialization]]:
    """The materialisations of one run, by asset."""
    candles, alerts = small_market(mints=4)
    create_table(engine, "shown", candles)
    unusable = Alert("unusable", "", alerts[0].ts_ms, caller=LONG)
    csv = write_alerts(tmp_path_factory.mktemp("alerts") / "alerts.csv", [*alerts, unusable])
    run = {"alerts": csv, "interval": "1m", "window": "pre5_post40", "run_id": "shown"}
    result = (
        build_definitions()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            run_config={
                "resources": {
                    "lake": {"config": {"data_root": str(engine_root)}},
                    "candle_source": {"config": {"table": "shown"}},
                    "lake_run": {"config": run},
                    "baseline_settings": {"config": {"min_trades": 1}},
                },
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags=WHOLE_RANGE,
        )
    )
    return {name: result.asset_materializations_for_node(name) for name in SCHEMAS}


def of(shown: dict[str, list[dg.AssetMaterialization]], asset: str) -> dict[str, Any]:
    (event,) = shown[asset]
    return dict(event.metadata)


def rows(table: dg.MetadataValue) -> list[dict[str, Any]]:
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def picture(value: dg.MetadataValue) -> Image.Image:
    found = re.fullmatch(r"!\[\]\(data:image/png;base64,(.*)\)", str(value.value))
    assert found
    data = base64.b64decode(found[1])
    assert len(data) < PICTURE_LIMIT
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_every_asset_says_what_it_reads_and_writes_and_when_it_fails():
    graph = build_definitions().resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        for word in ("Reads", "Writes", "Fails"):
            assert f"- **{word}** " in node.description, key
        assert node.tags["lake/reads"] in ("clickhouse", "receipts", "sealed-run")
        assert node.kinds


def test_every_column_of_the_trials_is_explained():
    meanings = {each.name: each.description for each in column_schema(TRIALS_SCHEMA).columns}
    assert all(meanings.values()), meanings
    assert meanings["test_win_rate"] == "on test: share of trades with a gain"


@pytest.mark.parametrize("asset", SCHEMAS)
def test_every_asset_says_what_its_columns_are_and_mean(shown, asset):
    node = build_definitions().resolve_asset_graph().get(dg.AssetKey(asset))
    found = {**node.metadata, **shown[asset][0].metadata}["dagster/column_schema"]
    columns = getattr(found, "schema", found).columns  # of the definition, or as the event has it
    assert [(each.name, each.type) for each in columns] == [(each.name, str(each.type)) for each in SCHEMAS[asset]]
    assert not [each.name for each in columns if not each.description]


def test_every_asset_counts_its_rows_and_says_where_they_are(shown, root):
    for asset in SCHEMAS:
        for event in shown[asset]:
            figures = {name: value.value for name, value in event.metadata.items()}
            count = figures["dagster/partition_row_count" if asset == "candles" else "dagster/row_count"]
            if asset == "candles" and not figures["files"]:
                assert "dagster/uri" not in figures
                continue
            where = Path(figures["dagster/uri"])
            assert where.exists()
            files = list(where.glob("*.parquet")) if where.is_dir() else [where]
            if asset != "manifest":
                assert sum(pq.read_metadata(file).num_rows for file in files) == count
    assert of(shown, "manifest")["dagster/row_count"].value == len(
        json.loads((root / "manifest.json").read_text())["files"]
    )


def test_alerts_show_a_preview_the_callers_and_the_rejected_rows_with_long_text_cut(shown, root):
    figures = of(shown, "alerts")
    table = pq.read_table(root / "inputs/alerts.parquet").to_pylist()
    preview = rows(figures["preview"])
    assert [row["alert_id"] for row in preview] == [row["alert_id"] for row in table]
    assert preview[0]["ts"] == table[0]["ts"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    callers = rows(figures["alerts_by_caller"])
    assert {row["caller"]: row["alerts"] for row in callers} == {
        row["caller"]: sum(each["caller"] == row["caller"] for each in table) for row in table
    }
    assert [row["alerts"] for row in callers] == sorted((row["alerts"] for row in callers), reverse=True)
    (rejected,) = rows(figures["rejected_rows"])
    assert rejected["alert_id"] == "unusable"
    assert rejected["row_number"] == len(table) + 1
    assert "mint" in rejected["reason"]
    assert len(rejected["caller"]) < 200


def test_buckets_have_figures_that_add_up_and_can_be_plotted(shown, root):
    names = ("dagster/partition_row_count", "bytes", "mints", "duplicates", "rejected", "source_rows")
    for event in shown["candles"]:
        for name in names:
            assert isinstance(event.metadata[name], dg.IntMetadataValue)
    total = {name: sum(event.metadata[name].value for event in shown["candles"]) for name in names}
    ledger = of(shown, "manifest")["ledger"].value
    assert total["dagster/partition_row_count"] == ledger["written"]
    for name in ("duplicates", "rejected", "source_rows"):
        assert total[name] == ledger[name] > 0
    assert total["bytes"] == sum(file.stat().st_size for file in root.glob("slices/**/*.parquet"))


def test_coverage_shows_a_heat_map_what_is_missing_and_the_worst_alerts_first(shown, root):
    figures = of(shown, "coverage")
    assert picture(figures["coverage_by_bucket"]).size == (720, 620)
    assert picture(figures["missing_candles"]).width == 720
    table = pq.read_table(root / "outputs/coverage.parquet").to_pylist()
    share = 1 - sum(row["missing"] for row in table) / sum(row["expected_total"] for row in table)
    assert figures["filled_share"].value == pytest.approx(share)
    worst = rows(figures["worst_alerts"])
    assert [row["alert_id"] for row in worst] == [
        row["alert_id"] for row in sorted(table, key=lambda row: -row["missing"])
    ]


def test_manifest_says_how_to_check_the_run_and_the_commands_work(shown):
    text = of(shown, "manifest")["how_to_check"].value
    commands = re.findall(r"```\n(.*)\n```", text)
    assert len(commands) == 2
    assert commands[0].startswith("lake verify shown --data-root ")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for command in commands:
        subprocess.run(["bash", "-euc", command], check=True, capture_output=True, env=environment)


def test_backtest_assets_show_their_plots(shown):
    for asset, names in (("baseline", ["ath_histogram"]), ("trades", ["outcomes", "equity_curve"])):
        for name in names:
            assert picture(of(shown, asset)[name]).width == 720


def test_an_event_stays_small(shown):
    for events in shown.values():
        for event in events:
            assert len(dg.serialize_value(event)) < 2 * PICTURE_LIMIT + 30_000


def test_a_family_of_columns_is_explained_by_its_number():
    meanings = {each.name: each.description for each in column_schema(BASELINE_SCHEMA).columns}
    assert meanings["time_to_1_2x_s"] == "seconds from entry to the first high of 1.2x; empty if never"
    assert meanings["dd_after_10x"] == "lowest low after the 10x candle over 10x the entry, minus 1"
    callers = {each.name: each.description for each in column_schema(CALLER_SCHEMA).columns}
    assert callers["p75_ath_mult"] == "75th percentile of ath_mult"
