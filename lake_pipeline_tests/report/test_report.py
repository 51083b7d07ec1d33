"""The report: what is on the page is what the tables say, names cannot break out of it, and it needs nothing else."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lake_pipeline.backtest import (
    BaselineConfig,
    CallerConfig,
    StrategyConfig,
    baseline_result,
    strategy_result,
)
from lake_pipeline.backtest.config import canonical_values
from lake_pipeline.backtest.plots import ath_histogram
from lake_pipeline.cli import lake as command
from lake_pipeline.cli import main
from lake_pipeline.core.canonical import canonical_json, sha256_hex
from lake_pipeline.core.manifest import ResultRecord
from lake_pipeline.errors import InputError, RunNotSealed, VerificationFailed
from lake_pipeline.io.clickhouse import ClickHouseSource
from lake_pipeline.io.store import LocalStore, Store, hash_file
from lake_pipeline.report import gather_report, render_report
from lake_pipeline.run import Run, load_run
from lake_pipeline_tests.candles_for_tests import MARKET_SPEC, Alert, sealed_run, sha1_bucket, write_alerts
from lake_pipeline_tests.conftest import Market

_VOID = {"meta", "br", "img", "link", "hr", "input"}
# What an HTML page may hold without asking for, or running, anything.
_HARMLESS = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "section", "footer", "div", "span", "p", "a",
    "h1", "h2", "h3", "b", "i", "em", "bdi", "code", "pre", "dl", "dt", "dd", "details", "summary",
    "ul", "li", "figure", "figcaption", "img",
    "table", "tr", "th", "td", "svg", "g", "path", "defs", "use", "rect", "text", "clippath",
}  # fmt: skip


class Page(HTMLParser):
    """The page as a browser reads it: tags, attributes, and the text of each table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def page_of(lake: LocalStore, run_id: str = "plain", **keys: str) -> str:
    return render_report(gather_report(lake, load_run(lake, run_id), **keys))


def plain_run(lake: LocalStore) -> Run:
    return load_run(lake, "plain")


@pytest.fixture
def hostile_names() -> list[str]:
    return [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' style='background:url(http://evil.example)",
        "</style><svg onload=alert(1)>",
        "{{ 7 * 7 }}{% for a in b %}",
        "&lt;b&gt;",
        "\u202egnp.exe\u2066",
        "x" * 5000,
        "tab\there",
        "]]><!--",
    ]


def test_every_section_shows_what_the_tables_hold(copied_lake: LocalStore) -> None:
    run = plain_run(copied_lake)
    manifest = run.manifest()
    baseline_result(copied_lake, run, callers=CallerConfig(min_trades=1))
    html = page_of(copied_lake)
    page = Page(html)
    for name in ("coverage", "ledger", "baseline", "callers", "trades", "optimizer", "checking"):
        assert f'<section id="{name}">' in html
        assert f'href="#{name}"' in html
    assert manifest.content_sha256 in page.text
    assert ["from the source", f"{manifest.ledger.source_rows:,}", ""] in page.rows
    for status in ("complete", "partial", "insufficient"):
        assert any(row[:1] == [status] and row[2] == str(getattr(manifest.coverage, status)) for row in page.rows)

    baseline = baseline_result(copied_lake, run, callers=CallerConfig(min_trades=1))
    for row in baseline.caller_stats().to_pylist():
        shown = next(cells for cells in page.rows if cells[:2] == [str(row["rank"]), row["caller"]])
        assert shown[3:6] == [str(row["n"]), str(row["n_censored"]), str(row["n_excluded"])]
        assert shown[6] == f"{row['median_ath_mult']:.2f}x"
    result = strategy_result(copied_lake, run)
    figures = result.summary()["all"]
    assert any(row[0] == "win rate" and row[1] == f"{100 * figures['case']['win_rate']:.1f} %" for row in page.rows)
    worst = min(
        (row for row in result.trades().to_pylist() if row["status"] == "ok"),
        key=lambda row: (row["tp_sl_ret"], row["alert_id"]),
    )
    assert any(row[0] == worst["alert_id"] and row[5:6] == [f"{100 * worst['tp_sl_ret']:,.1f} %"] for row in page.rows)
    assert any(row[1] == "mint is empty" for row in page.rows if len(row) > 1)  # the alert that could not be used


def test_the_map_has_a_cell_for_each_bucket_that_says_its_coverage(copied_lake: LocalStore, market: Market) -> None:
    html = page_of(copied_lake)
    titles = dict(re.findall(r"<title>([0-9a-f]{2}): (.*?)</title>", html))
    assert sorted(titles) == [f"{number:02x}" for number in range(256)]
    assert sorted(bucket for bucket, words in titles.items() if words != "no alerts") == market.buckets
    rows = plain_run(copied_lake).manifest().files
    for bucket in market.buckets:
        candles = sum(entry.rows for entry in rows if f"mint_bucket={bucket}/" in entry.path)
        assert f"{candles:,} candles stored" in titles[bucket]
    marked = re.findall(r'<rect [^>]*class="low"[^>]*><title>(..): 0.0 % of', html)
    assert marked == [sha1_bucket(alert.mint) for alert in market.alerts if alert.alert_id == "no-candles"]
    assert html.count('class="low"') == len(marked) + 1  # and the key


def test_the_page_loads_nothing_and_runs_nothing(copied_lake: LocalStore) -> None:
    page = Page(html := page_of(copied_lake))
    assert {tag for tag, _ in page.tags} <= _HARMLESS
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert "".join(target) in identifiers


def test_hostile_names_stay_text(
    market: Market, market_source: ClickHouseSource, lake: LocalStore, tmp_path: Path, hostile_names: list[str]
) -> None:
    usable = [alert for alert in market.alerts if alert.mint]
    alerts = [
        replace(alert, alert_id=f"{number}{name[:40]}", caller=name)
        for number, (alert, name) in enumerate(zip(usable, hostile_names * 9, strict=False))
    ]
    alerts += [Alert(f"bad {name[:40]}", "", 0, caller=name, chain=name) for name in hostile_names]
    path = write_alerts(tmp_path / "alerts.csv", alerts)
    run = sealed_run(lake, market_source, path, MARKET_SPEC, "hostile")
    measured = baseline_result(lake, run, callers=CallerConfig(min_trades=1))
    ranked = measured.caller_stats().column("caller").to_pylist()
    assert len(ranked) >= len(hostile_names) - 1
    html = page_of(lake, "hostile")
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= _HARMLESS
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202egnp.exe\\u2066" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "&lt;b&gt;" in page.text
    assert "\u202e" not in html
    assert "x" * 200 not in html
    assert "<script" not in html
    # In their rows, and not only somewhere.
    cells = {cell for row in page.rows for cell in row}
    assert '"><img src=x onerror=alert(1)>' in cells
    assert "</style><svg onload=alert(1)>" in cells


def test_the_same_run_is_the_same_bytes_wherever_it_is_and_however_results_came_to_be(
    copied_lake: LocalStore, sealed_lake: LocalStore, tmp_path: Path
) -> None:
    computed = page_of(copied_lake)
    found = page_of(copied_lake)
    assert found == computed
    shutil.copytree(copied_lake.root, tmp_path / "elsewhere")
    code = (
        "import sys; from lake_pipeline.io.store import open_store; from lake_pipeline_tests.report import test_report;"
        "sys.stdout.write(test_report.page_of(open_store(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "elsewhere")],
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == computed
    assert str(copied_lake.root) not in computed


def test_without_a_key_it_is_the_only_result_and_of_several_the_default_one(copied_lake: LocalStore) -> None:
    run = plain_run(copied_lake)
    only = strategy_result(copied_lake, run, StrategyConfig(tp=3.0))
    short = baseline_result(copied_lake, run, BaselineConfig(horizon_hours=0.2))
    content = gather_report(copied_lake, run)
    assert content.strategy.key == only.key
    assert content.baseline.key == short.key
    assert not content.strategy.created
    assert not content.baseline.created

    other = strategy_result(copied_lake, run, StrategyConfig(tp=4.0))
    content = gather_report(copied_lake, run)
    assert content.strategy.created
    assert content.strategy.key == strategy_result(copied_lake, run).key
    assert sorted(content.strategies) == sorted([only.key, other.key, content.strategy.key])
    html = render_report(content)
    assert all(key in html for key in content.strategies)
    assert "All strategies tried on this run: 3" in html

    content = gather_report(copied_lake, run, strategy=other.key[:8], baseline=short.key)
    assert (content.strategy.key, content.baseline.key) == (other.key, short.key)
    assert "take-profit 4.00x" in render_report(content)


def test_results_of_another_content_are_left_out_and_refused_by_name(copied_lake: LocalStore) -> None:
    foreign = strategy_result(copied_lake, load_run(copied_lake, "strict"), StrategyConfig(tp=3.0))
    results = copied_lake.root / "results"
    shutil.copytree(results / "run_id=strict", results / "run_id=plain")
    content = gather_report(copied_lake, plain_run(copied_lake))
    assert foreign.key not in content.strategies
    with pytest.raises(InputError, match="computed from another content"):
        gather_report(copied_lake, plain_run(copied_lake), strategy=foreign.key)


def test_a_key_of_another_kind_or_of_nothing_is_refused(copied_lake: LocalStore) -> None:
    run = plain_run(copied_lake)
    baseline = baseline_result(copied_lake, run)
    with pytest.raises(InputError, match=f"baseline={baseline.key} is no strategy: give it as --baseline"):
        gather_report(copied_lake, run, strategy=baseline.key)
    with pytest.raises(InputError, match="no results"):
        gather_report(copied_lake, run, strategy="ffff")


def test_files_that_are_not_what_was_sealed_are_refused(copied_lake: LocalStore, exported: Run) -> None:
    folder = copied_lake.root / "lake/runs/run_id=plain"
    rejected = folder / "inputs/rejected_alerts.parquet"
    shutil.copy(folder / "inputs/alerts.parquet", rejected)
    with pytest.raises(VerificationFailed, match=re.escape("inputs/rejected_alerts.parquet has other content")):
        gather_report(copied_lake, plain_run(copied_lake))
    rejected.unlink()
    with pytest.raises(VerificationFailed, match=re.escape("inputs/rejected_alerts.parquet is missing")):
        gather_report(copied_lake, plain_run(copied_lake))
    result = strategy_result(copied_lake, load_run(copied_lake, "strict"))
    Path(result.store.uri, "summary.json").write_text("{}")
    with pytest.raises(VerificationFailed, match="not what was sealed"):
        gather_report(copied_lake, load_run(copied_lake, "strict"))
    with pytest.raises(RunNotSealed):
        gather_report(LocalStore(exported.store.root.parents[2]), exported)


def test_a_run_without_a_single_candle_has_a_page(
    market: Market, market_source: ClickHouseSource, lake: LocalStore, tmp_path: Path
) -> None:
    path = write_alerts(tmp_path / "alerts.csv", [Alert("a", "NoSuchMint", market.alerts[0].ts_ms, caller="c")])
    sealed_run(lake, market_source, path, MARKET_SPEC, "empty")
    page = Page(page_of(lake, "empty"))
    assert ["insufficient", "", "1", "100.0 %"] in page.rows
    assert "No caller has 10 alerts with a path; 1 have fewer." in page.text
    assert "No trades." in page.text


# --- searches --------------------------------------------------------------------------------------


def figures(mean_ret: float) -> dict[str, Any]:
    names = ("mean_r", "mean_ret_worst", "median_ret", "sharpe", "profit_factor", "win_rate", "final_equity")
    return {"n": 16, "mean_ret": mean_ret, **dict.fromkeys(names, 0.5), "max_drawdown": -0.25, "ambiguous_share": 0.0}


def winner(deflated_sharpe: float) -> dict[str, Any]:
    strategy = canonical_values(StrategyConfig(tp=3.21, sl=0.56, trail_distance=0.2, tiers=((2.0, 1.2),)))
    lanes = [{"lane": "fees +50 bps", "train_mean_ret": 0.11, "test_mean_ret": -0.07}]
    return {
        "strategy": strategy,
        "train": figures(0.123),
        "test": figures(-0.045),
        "train_objective": 0.5,
        "test_objective": -0.1,
        "test_interval": [-0.2, 0.1],
        "test_hold_mean_ret": 0.02,
        "luck": {"trials": 200, "deflated_sharpe": deflated_sharpe, "null_deflated_sharpe": 0.001},
        "plateau": {"neighbours": 24, "median": 0.4, "lowest": 0.1},
        "lanes": [{"lanes": lanes}],
        "latency": [{"candles": 0}, {"candles": 2, "train_mean_ret": 0.09, "test_mean_ret": -0.08}],
    }


def search_document(trials: int, found: dict[str, Any] | None) -> dict[str, Any]:
    fold = {
        "fold": 1,
        "trials": {"evaluated": trials},
        "train_alerts": 28,
        "purged_alerts": 3,
        "test_alerts": 15,
        "test_from": "2025-05-02T07:03:00Z",
        "winner": found,
    }
    together = {"n": 13, "mean_ret": -0.045, "hold_mean_ret": 0.02}
    return {
        "objective": "sharpe",
        "horizon_hours": 6.0,
        "gates": {"min_trades": 10, "max_drawdown": None},
        "folds": [fold],
        "winner": found,
        "walk_forward": together,
    }


def seal_search(lake: LocalStore, document: dict[str, Any], pictures: Mapping[str, bytes]) -> str:
    """A search as the optimizer seals it; returns its key."""
    content = plain_run(lake).manifest().content_sha256
    key = _seal(
        lake, "optimize", {"content_sha256": content, "best": document}, {"best.json": canonical_json(document)}
    )
    if pictures:
        _seal(lake.sub(f"results/run_id=plain/optimize={key}"), "pictures", {"of": key}, pictures)
    return key


def _seal(lake: Store, kind: str, identity: dict[str, Any], files: Mapping[str, bytes]) -> str:
    key = sha256_hex(canonical_json(identity))[:12]
    store = lake.sub(kind if kind == "pictures" else f"results/run_id=plain/{kind}={key}")
    for name, data in files.items():
        store.create(name, data)
    records = [hash_file(store, name) for name in sorted(files)]
    store.create("result.json", ResultRecord(kind=kind, key=key, identity=identity, files=records).to_bytes())
    return key


def test_without_a_search_the_page_says_how_to_make_one(copied_lake: LocalStore) -> None:
    assert "lake optimizer --run plain --trials 100 --horizon-hours 1" in page_of(copied_lake)


def test_the_search_shows_train_beside_test_its_luck_and_its_pictures(copied_lake: LocalStore) -> None:
    picture = ath_histogram([1.0, 2.0])
    key = seal_search(copied_lake, search_document(200, winner(0.3336)), {"heatmap.png": picture})
    page = Page(html := page_of(copied_lake))
    assert ["mean ret", "12.3 %", "-4.5 %"] in page.rows
    assert ["fees +50 bps", "11.0 %", "-7.0 %"] in page.rows
    assert ["entry 2 candles later", "9.0 %", "-8.0 %"] in page.rows
    assert "0.3336" in page.text
    assert "below 0.95, no sign that there is more" in page.text
    assert "losses are within it" in page.text
    assert base64.b64encode(picture).decode() in html
    assert f"--optimizer {key}" in page.text
    (shown,) = re.findall(r"lake strategy --run plain (.*) --horizon-hours 6<", html)
    result = CliRunner().invoke(
        command,
        ["strategy", "--run", "plain", *shown.split(), "--data-root", str(copied_lake.root), "--format", "json"],
    )
    assert result.exit_code == 0, result.output
    key = json.loads(result.stdout)["key"]
    assert key == strategy_result(copied_lake, plain_run(copied_lake), StrategyConfig(**given(shown))).key


def given(options: str) -> dict[str, Any]:
    assert options == "--tp 3.21 --sl 0.56 --trail-activation 0 --trail-distance 0.2 --tiers 2x:1.2"
    return {"tp": 3.21, "sl": 0.56, "trail_distance": 0.2, "tiers": ((2.0, 1.2),)}


def test_a_search_that_may_be_more_than_luck_says_so_and_one_without_winner_too(copied_lake: LocalStore) -> None:
    sure = seal_search(copied_lake, search_document(200, winner(0.97)), {})
    assert "above 0.95, a sign that there is more" in Page(page_of(copied_lake)).text
    larger = seal_search(copied_lake, search_document(500, None), {})
    text = Page(page_of(copied_lake)).text
    assert "No trial passed the gates: min trades 10. There is no winner." in text
    assert "All searches of this run: 2" in text
    content = gather_report(copied_lake, plain_run(copied_lake))
    assert content.search is not None
    assert (content.search.key, content.search.trials) == (larger, 500)
    text = Page(page_of(copied_lake, search=sure[:6])).text
    assert "700 trials were made in all searches of this run" in text
    with pytest.raises(InputError, match="no searches of run plain have a key that begins with 'ffffff'"):
        gather_report(copied_lake, plain_run(copied_lake), search="ffffff")


def test_a_search_that_was_edited_is_refused(copied_lake: LocalStore) -> None:
    key = seal_search(copied_lake, search_document(200, winner(0.9)), {"trials.png": b"\x89PNG"})
    folder = copied_lake.root / f"results/run_id=plain/optimize={key}"
    (folder / "pictures/trials.png").write_bytes(b"other")
    with pytest.raises(VerificationFailed, match=re.escape("trials.png has other content")):
        page_of(copied_lake)
    shutil.rmtree(folder / "pictures")
    (folder / "best.json").write_text("{}")
    with pytest.raises(VerificationFailed, match=re.escape("best.json has other content")):
        page_of(copied_lake)


# --- the command ---------------------------------------------------------------------------------


def run_command(*arguments: str) -> Any:
    result = CliRunner().invoke(command, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_the_command_writes_the_page_and_says_what_it_shows(copied_lake: LocalStore, tmp_path: Path) -> None:
    root, file = str(copied_lake.root), tmp_path / "new folder" / "report.html"
    shown = run_command("plain", "-o", str(file), "--data-root", root).stdout
    assert f"report    {file}" in shown
    assert ", computed" in shown
    assert file.read_text(encoding="utf-8") == page_of(copied_lake)
    assert ", found" in run_command("plain", "-o", str(file), "--data-root", root).stdout
    found = json.loads(run_command("plain", "-o", str(file), "--data-root", root, "--format", "json").stdout)
    assert found == {
        "report": str(file),
        "bytes": file.stat().st_size,
        "run": "plain",
        "baseline": baseline_result(copied_lake, plain_run(copied_lake)).key,
        "strategy": strategy_result(copied_lake, plain_run(copied_lake)).key,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no run 'nobody'"),
        (["plain", "--strategy", "ffff"], "no results"),
        (["plain", "-o", "/dev/null/report.html"], "cannot"),
        (["plain", "--threads", "0"], "threads"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(copied_lake, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.setattr(sys, "argv", ["lake", "report", *arguments, "--data-root", str(copied_lake.root)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
