"""The documentation as a site: it builds without a dead link, has every page, and asks no other host for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MKDOCS = Path(sys.executable).with_name("mkdocs")


class _Requests(HTMLParser):
    """What a browser fetches by itself for a page, and what a reader may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.classes.update((values.get("class") or "").split())
        if tag == "link":
            self.fetched.append(values.get("href") or "")
        elif "src" in values:
            self.fetched.append(values["src"] or "")


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [MKDOCS, "build", "--strict", "--config-file", project / "mkdocs.yml", "--site-dir", site]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(PROJECT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_within_reach_of_the_first(site: Path) -> None:
    pages = {
        path.relative_to(PROJECT / "docs").with_suffix(".html").as_posix().replace("README.html", "index.html")
        for path in (PROJECT / "docs").rglob("*.md")
    }
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.html")} == pages | {"404.html"}
    reached, ahead = {"index.html"}, ["index.html"]
    while ahead:
        page = ahead.pop()
        text = (site / page).read_text(encoding="utf-8")
        for target in re.findall(r'href="?([^" >#]+\.html)', text):
            found = (site / page).parent.joinpath(target).resolve()
            if found.is_relative_to(site) and (name := found.relative_to(site).as_posix()) not in reached:
                reached.add(name)
                ahead.append(name)
    assert pages <= reached


def test_every_picture_is_small_and_shown_on_a_page(site: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "docs").rglob("*.md"))
    pictures = [path for path in (PROJECT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert pictures
    for picture in pictures:
        name = picture.relative_to(PROJECT / "docs").as_posix()
        assert f"({name})" in pages, name
        assert (site / name).exists()
        assert picture.stat().st_size < 150_000, name


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = _Requests()
        page.feed(path.read_text(encoding="utf-8"))
        assert page.fetched, path
        assert not [url for url in page.fetched if "//" in url], path
        # The theme's script would load another from elsewhere to draw these.
        assert "mermaid" not in page.classes, path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("See [there](nowhere.md).", "nowhere.md"),
        ("See [there](format.md#no-such-heading).", "no-such-heading"),
        ("See [there](/absolute.md).", "/absolute.md"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, line: str, said: str) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    shutil.copy(PROJECT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs/index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{line}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


def test_a_page_that_is_in_no_list_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    shutil.copy(PROJECT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs/forgotten.md").write_text("# Forgotten\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "forgotten.md" in done.stderr
