"""docs/scaling.md: its tables are what its formulas give, and its formulas what was measured and is counted here."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lake_pipeline.core.spec import RunSpec
from lake_pipeline.export import export_buckets
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.objects import _BLOCK
from lake_pipeline.io.store import open_store
from lake_pipeline.seal import cover_run, seal_run
from lake_pipeline.settings import RunSettings
from lake_pipeline_tests.candles_for_tests import (
    T0_MS,
    Alert,
    Candle,
    create_table,
    mint_name,
    sha1_bucket,
    start_run,
    write_alerts,
)
from lake_pipeline_tests.conftest import S3, SourceFactory

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "scaling.md").read_text(encoding="utf-8")
PERFORMANCE = (DOCS / "performance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """What the page's code defines, and under `printed` what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return names | {"printed": printed.getvalue()}


def figure(pattern: str) -> float:
    """A number of docs/performance.md."""
    (found,) = re.findall(pattern, PERFORMANCE)
    return float(found.replace(",", ""))


def test_the_tables_of_the_page_are_what_its_formulas_give(model):
    assert model["printed"].count("\n") >= 15
    assert model["printed"].rstrip() in PAGE
    daily = "\n".join(f"| {name} | {shown(100_000)} |" for name, shown in model["FIGURES"].items())
    assert daily in PAGE


def test_the_measured_values_of_the_page_are_those_of_its_code(model):
    table = dict(re.findall(r"^\| `(\w+)` \| ([\d,.]+) \|", PAGE, re.MULTILINE))
    assert len(table) >= 11
    for name, value in table.items():
        assert model[name] == float(value.replace(",", "")), name


def test_the_measured_values_are_those_of_the_performance_page(model):
    rows = figure(r"\| engine \| .* \| ([\d,]+) \|\n")
    assert model["b"] == figure(r"\| bytes a row \| ([\d.]+) \|")
    assert model["r"] == pytest.approx(rows / 5_000, rel=0.01)
    query = figure(r"\| query \| ([\d.]+) \|")
    everything = query / figure(r"\| query \| [\d.]+ \| ([\d.]+)% \|") * 100
    assert model["query_core_s"] == pytest.approx(query / rows * 1e6, rel=0.01)
    assert model["export_core_s"] == pytest.approx((everything - query) / rows * 1e6, rel=0.01)
    assert model["base_mb"] == figure(r"\| engine \| [\d.]+ \| [\d.]+ \| (\d+) \|")
    assert model["window"] == 52 + 1 + 4_948
    assert model["BLOCK"] == _BLOCK
    assert model["TARGET"] == RunSettings.model_fields["target_file_mb"].default * 10**6


def requests(s3: S3, since: int) -> Counter[str]:
    """Requests answered since then, as they are billed."""
    kinds: Counter[str] = Counter()
    for request in s3.requests()[since:]:
        listing = request["method"] == "GET" and "list-type" in request["query"]
        kinds["write" if listing or request["method"] in ("PUT", "POST") else "read"] += 1
    return kinds


@pytest.mark.parametrize("mints", [1, 30])
def test_requests_of_a_run_are_as_many_as_the_formulas_say(
    mints: int,
    model: dict[str, Any],
    engine: ClickHouseSource,
    source_of: SourceFactory,
    table: str,
    s3: S3,
    s3_url: str,
    tmp_path: Path,
) -> None:
    names = [mint_name(("scaling", number)) for number in range(mints)]
    candles = [Candle(name, T0_MS + minute * 60_000) for name in names for minute in range(10)]
    create_table(engine, table, candles)
    alerts = [Alert(f"{number:03d}", name, T0_MS + 300_000) for number, name in enumerate(names)]
    before = len(s3.requests())
    export_and_seal(
        s3_url, source_of(table), write_alerts(tmp_path / "alerts.csv", alerts), RunSpec("1m", "pre5_post4")
    )
    files = len({sha1_bucket(name) for name in names})
    counted = requests(s3, before)
    assert counted == {"write": model["writes"](files, 1), "read": model["reads"](files, 1)}


def test_requests_of_a_file_of_several_blocks_are_as_many_as_the_formulas_say(
    model: dict[str, Any],
    engine: ClickHouseSource,
    source_of: SourceFactory,
    table: str,
    s3: S3,
    s3_url: str,
    tmp_path: Path,
) -> None:
    create_table(engine, table)
    mint, candles = mint_name("large"), 300_000
    values = ", ".join(f"{base} + rand64({seed}) / 2e19" for seed, base in enumerate((1, 3, 0, 1), 1))
    engine.call(
        "insert",
        lambda client: client.command(
            f"INSERT INTO {table} SELECT '{mint}', 'solana', toDateTime64({T0_MS // 1000} + number, 3, 'UTC'), 1, "
            f"{values}, rand64(5) / 1e10, 'feed', 0, toDateTime64(0, 3, 'UTC') FROM numbers({candles})"
        ),
    )
    before = len(s3.requests())
    alerts = write_alerts(tmp_path / "alerts.csv", [Alert("large", mint, T0_MS)])
    size = export_and_seal(s3_url, source_of(table), alerts, RunSpec("1s", f"pre0_post{candles - 1}"))
    blocks = -(-size // model["BLOCK"])
    assert blocks > 1
    assert requests(s3, before) == {"write": model["writes"](1, blocks), "read": model["reads"](1, blocks)}


def export_and_seal(url: str, source: ClickHouseSource, alerts: str, spec: RunSpec) -> int:
    """A whole run in an object store; the bytes of its slices."""
    lake = open_store(url)
    run = start_run(lake, source, alerts, spec, "scaling")  # type: ignore[arg-type]
    export_buckets(run, source, reuse_from=lake)
    cover_run(run)
    return seal_run(run).manifest.total_bytes
