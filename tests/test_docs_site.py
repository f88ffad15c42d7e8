"""The documentation as a site: built without a warning, whole, and loading nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from pydantic import BaseModel

import prefect_dispatch
from tests.ui import chromium

if TYPE_CHECKING:
    from collections.abc import Generator

    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[1]
LOADING = {
    "src",
    "srcset",
    "data",
    "poster",
    "action",
    "background",
    "xlink:href",
}
"""Attributes whose address a browser loads by itself; `href` is one on whatever is no link to click."""
FOREIGN = re.compile(r"(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as it is built on CI: a warning is an error."""
    if find_spec("mkdocs") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("MkDocs is missing: uv sync --group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603 -- our own command
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class _Loads(HTMLParser):
    """What a page loads from elsewhere, and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = LOADING if tag == "a" else {*LOADING, "href"}
        for name, value in attrs:
            if value and ((name in loading and FOREIGN.match(value.strip())) or IN_STYLE.search(value)):
                self.foreign.append(f"<{tag} {name}={value!r}>")

    def handle_data(self, data: str) -> None:
        self.said.append(data)
        if IN_STYLE.search(data) and "</" not in data:
            self.foreign.append(data[:80])


def read(page: Path) -> _Loads:
    """Return what a page loads and says."""
    loads = _Loads()
    loads.feed(page.read_text(encoding="utf-8"))
    return loads


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No page, and no style sheet, has a picture, font, script or style from another address."""
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 10
    assert styles
    assert not list(site.rglob("*.py*"))
    assert {page.name: found for page in pages if (found := read(page).foreign)} == {}
    assert [sheet.name for sheet in styles if IN_STYLE.search(sheet.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img srcset="https://e.example/x.png 2x">',
        '<p style="background: url(https://e.example/x.png)">',
        "<style>@import 'https://e.example/x.css'</style>",
    ],
)
def test_what_would_be_loaded_is_noticed(html: str, tmp_path: Path) -> None:
    """The test above sees what it is to see."""
    (tmp_path / "page.html").write_text(html)
    assert len(read(tmp_path / "page.html").foreign) == 1


def plain(text: str) -> str:
    """Return the letters of a text, without the marks and the white space between."""
    return re.sub(r"[\s`*]+", "", text)


def test_every_field_is_explained(site: Path) -> None:
    """The reference shows what stands below each field of each public model."""
    said = plain(" ".join("".join(read(page).said) for page in sorted((site / "reference").glob("*.html"))))
    for name in prefect_dispatch.__all__:
        model: Any = getattr(prefect_dispatch, name)
        if isinstance(model, type) and issubclass(model, BaseModel):
            for field, shown in model.model_json_schema(by_alias=False)["properties"].items():
                if field in model.__annotations__:
                    words = plain(shown.get("description", "")).split("(see")[0]
                    assert words, f"{name}.{field}"
                    assert words in said, f"{name}.{field}"
    assert plain("How many asks are under way at once. At least 1, at most 10000.") in said


@pytest.fixture(scope="module")
def served(site: Path) -> Generator[str]:
    """The address of the site on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the signature of the base
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(served: str) -> Generator[Page]:
    """A page of Chromium, which may ask nobody but the site, and has nothing to complain of."""
    with chromium() as browser:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        opened = context.new_page()
        asked: list[str] = []
        errors: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
        yield opened
        assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
        assert errors == []


@pytest.mark.browser
def test_a_reader_without_a_network(site: Path, served: str, page: Page) -> None:
    """Every page opens, on a telephone too; search finds a page; a block can be copied; dark follows light."""
    page.set_viewport_size({"width": 390, "height": 800})
    for file in sorted(site.rglob("*.html")):
        page.goto(served + file.relative_to(site).as_posix())
        wide: int = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{file.name} is {wide} wide"

    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{served}start.html")
    block = page.locator(".highlight").filter(has_text="concurrency: 4").first
    block.hover()
    block.get_by_role("button", name="Copy to clipboard").click()
    expect(page.locator(".md-dialog")).to_contain_text("Copied")
    assert "answer_within" in page.evaluate("navigator.clipboard.readText()")

    page.locator("input.md-search__input").click()
    page.keyboard.type("tournament")
    expect(page.locator(".md-search-result__list")).to_contain_text("tournament: rank variants")

    before: str = page.evaluate("document.body.dataset.mdColorScheme")
    page.keyboard.press("Escape")
    page.locator("label.md-header__button[for^='__palette']:visible").click()
    expect(page.locator("body")).not_to_have_attribute("data-md-color-scheme", before)
