"""The newcomer's path, clicked through in Chromium: make demo, make ui, the graph, the Launchpad, a run, its pictures.

Run by `make test-ui`, which installs what it needs. Everything is real: the project's own Makefile in a copy of the
project, Dagster's webserver and daemon, the embedded engine. Every wait has an end. Screenshots go to the folder
SCREENSHOTS, by default `.screenshots`; docs/images has those that docs/getting_started.md shows. Where a test fails,
`failed.png` is what the browser showed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lake_pipeline import open_run
from lake_pipeline_tests.defs.dagster_server import DagsterServer
from lake_pipeline_tests.defs.test_lake_assets import BACKTEST, LAKE, OPTIMIZE
from lake_pipeline_tests.test_docs import PROJECT, copy_of_the_project

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or PROJECT / ".screenshots").absolute()
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_S = 180
RUN_MS = 240_000
CLICK_MS = 30_000


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `make demo` has run."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("clone") / "project")
    subprocess.run(["make", "demo"], cwd=folder, env=environment(), check=True, timeout=START_S)
    return folder


def environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("CLICKHOUSE_", "DAGSTER", "LAKE_"))
    }


@pytest.fixture(scope="module")
def ui(project: Path) -> Iterator[str]:
    """The address of a running `make ui`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = project.parent / "ui.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["make", "ui", f"PORT={port}"],
            cwd=project,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not answers(f"{address}/server_info"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Chromium as the system has it: Playwright downloads none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"none of {', '.join(BROWSERS)} is on PATH: `make test-ui` installs Debian's"
    expect.set_options(timeout=CLICK_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, timeout=CLICK_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, ui: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a fresh browser; what it shows is kept where the test fails."""
    context = chromium.new_context(base_url=ui, viewport={"width": 1360, "height": 850})
    context.set_default_timeout(CLICK_MS)
    page = context.new_page()
    failed = request.session.testsfailed
    yield page
    if request.session.testsfailed > failed:
        save(page, "failed")
    context.close()


# Where the copy of the project is says nothing to a reader of the docs.
_HIDE_PATHS = """folder => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) walk.currentNode.data = walk.currentNode.data.replaceAll(folder, "/home/you/lake-pipeline");
}"""


def save(page: Page, name: str, project: Path | None = None) -> None:
    """A screenshot in 256 colours, to be small in a repository."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # for what moves to have come to rest
    if project:
        page.evaluate(_HIDE_PATHS, str(project))
    with Image.open(io.BytesIO(page.screenshot())) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    few.save(SCREENSHOTS / f"{name}.png", optimize=True)


def shows(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_text(text).first).to_be_visible()


def test_the_graph_shows_the_assets_of_all_groups(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="Lineage").click()
    shows(page, "Global asset lineage")
    shows(page, "backtest")
    page.wait_for_timeout(1000)
    page.keyboard.press("Alt+e")  # opens the groups
    for asset in (*LAKE, *BACKTEST, *OPTIMIZE):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()


def test_the_group_of_the_lake_shows_materialisations_and_checks(page: Page) -> None:
    page.set_viewport_size({"width": 1360, "height": 520})
    page.goto("/locations/lake_pipeline/asset-groups/lake/lineage")
    page.get_by_text("Hide navigation").click()
    page.reload()  # the graph makes use of the room
    shows(page, "100% filled")
    shows(page, "1 / 1 Passed")
    expect(page.get_by_text("3 / 3 Passed")).to_have_count(2)
    save(page, "lake")


def test_a_run_is_launched_from_the_launchpad_as_it_opens_and_succeeds(page: Page, project: Path) -> None:
    page.set_viewport_size({"width": 1360, "height": 640})
    page.goto("/jobs")
    page.get_by_role("link", name="export_run").click()
    shows(page, "Latest run:")  # that of make demo
    page.get_by_role("link", name="Open the Launchpad").click()
    shows(page, "examples/alerts.csv")
    launch = page.get_by_role("button", name="Launch Run")
    expect(launch).to_be_enabled()
    save(page, "launchpad")
    launch.click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    shows(page, "manifest")
    expect(page.get_by_text(re.compile(r"^(Success|Failure)$")).first).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    sealed = [path.name.removeprefix("run_id=") for path in (project / "data/lake/runs").iterdir()]
    (launched,) = {run_id for run_id in sealed if run_id != "demo"}
    demo, made = (open_run(run_id, project / "data") for run_id in ("demo", launched))
    assert made.sealed
    assert made.manifest.content_sha256 == demo.manifest.content_sha256


def test_coverage_shows_its_heat_map_and_figures(page: Page, project: Path) -> None:
    page.goto("/assets/coverage")
    shows(page, "complete")
    pictures = page.locator("img[src^='data:image/png']")
    if not pictures.count():
        page.get_by_text("Show Markdown").first.click()
    expect(pictures.first).to_be_visible()
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth > 100")
    save(page, "coverage", project)


def test_candles_show_their_256_buckets_and_the_figures_of_each(page: Page) -> None:
    page.goto("/assets/candles?view=partitions")
    shows(page, "Materialized (256)")
    page.get_by_text("0d", exact=True).first.click()
    shows(page, "duplicates")


def test_a_figure_beyond_its_limit_is_a_failed_check(page: Page, ui: str) -> None:
    server = DagsterServer(ui)
    settings = {"lake_run": {"config": {"run_id": "demo"}}, "check_settings": {"config": {"min_filled_share": 0.95}}}
    run = server.launch("export_run", json.dumps({"resources": settings}), assets=("coverage",))
    assert server.finished(run)["status"] == "SUCCESS"
    page.set_viewport_size({"width": 1360, "height": 600})
    page.goto("/assets/coverage?view=checks&checkDetail=filled_share")
    page.get_by_text("Hide navigation").click()
    shows(page, "The share of candle slots that hold a candle is at least")
    shows(page, "filled_share is 0.9115; min_filled_share is 0.95")
    expect(page.get_by_text("Succeeded")).to_have_count(2)
    save(page, "checks")
