"""The heat map of a test matrix in Chromium: quick when it is large, by keyboard, light and dark, whatever is in it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from prefect_dispatch.flows.publish import write_files, write_page
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.html.page import render_page
from prefect_dispatch.reporting.output_folder import Output
from tests.matrices import matrix
from tests.test_page import HOSTILE
from tests.test_page_browser import FRAMES, PAINT, READY, TIMED, browser, opened, timed
from tests.test_ui import picture

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["browser"]  # the fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

ENVIRONMENTS, TESTS = 200, 5_000
FILTER = """
    const box = document.querySelector("#view-matrix input[placeholder^='Tests']");
    box.value = "{}";
    box.dispatchEvent(new Event("input"));
"""
SORT = "document.querySelector('[col-id={}] .ag-header-cell-label').click()"
RED = "[role=gridcell].heat-red"
CHOOSE = """
    const labels = [...document.querySelectorAll("#view-matrix label")];
    const control = labels.find((each) => each.textContent.startsWith("{}")).querySelector("select");
    control.value = "{}";
    control.dispatchEvent(new Event("change"));
"""


def written(folder: Path, environments: int, tests: int, text: str = "") -> str:
    """Write the page of a matrix, and return its address."""
    file = folder / "report.html"
    file.write_text("".join(render_page(matrix(environments, tests, text=text))), encoding="utf-8")
    return f"{file.as_uri()}#matrix"


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 24 environments and 120 tests."""
    return written(tmp_path_factory.mktemp("some"), 24, 120)


def bar(window: Page) -> Locator:
    """Return what the matrix is filtered by."""
    return window.locator("#view-matrix .bar")


def shown(window: Page) -> Any:  # noqa: ANN401 -- an assertion of Playwright's
    """Return how much of the matrix is shown, as the page says it."""
    return expect(window.locator("#view-matrix .shown"))


@pytest.mark.long
def test_a_large_matrix(browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A million cells open, filter, sort and scroll quickly; only those in sight are in the document."""
    with opened(browser, written(tmp_path, ENVIRONMENTS, TESTS).partition("#")[0]) as window:
        figures: dict[str, float] = {"first sight": window.evaluate(PAINT), "all data read": window.evaluate(READY)}
        figures["matrix shown"] = window.evaluate(TIMED, "location.hash = '#matrix'")
        expect(window.locator(".tile-cell[role=gridcell]").first).to_be_visible()
        shown(window).to_have_text(f"{TESTS:,} of {TESTS:,} tests · {ENVIRONMENTS} of {ENVIRONMENTS} environments")
        figures["filter"] = timed(window, *(FILTER.format(word) for word in ("test_4999", "test_1", "test_12 17", "")))
        figures["sort"] = timed(window, *(SORT.format(column) for column in ("e0", "e0", "longest", "test")))
        figures["environments"] = timed(window, CHOOSE.format("Environments", "red"), CHOOSE.format("Environments", ""))
        figures["durations"] = timed(window, CHOOSE.format("Cells", "times"))
        picture(window, "matrix-large", tmp_path)
        assert window.locator("[role=gridcell]").count() < 5_000
    with capsys.disabled():
        print(f"\n{ENVIRONMENTS} × {TESTS:,} in Chromium, ms: " + ", ".join(f"{n} {f:.0f}" for n, f in figures.items()))  # noqa: T201, RUF001 -- what docs/report.md quotes


@pytest.mark.long
def test_sixty_thousand_tests(browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their report.json stays below 20 MB, with nothing lost, and the page opens."""
    report = matrix(4, 60_000)
    write_files(report, Output(tmp_path))
    assert write_page(report, Output(tmp_path), [], []) == ""
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["report.json"] < 20_000_000
    back = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert (back.value, back.fields, back.ledger) == (report.value, report.fields, report.ledger)
    with opened(browser, f"{(tmp_path / 'report.html').as_uri()}#matrix") as window:
        shown(window).to_have_text("60,000 of 60,000 tests · 4 of 4 environments")
    with capsys.disabled():
        told = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sorted(sizes.items()) if size > 100_000)
        print(f"\n60,000 tests, 3 environments with a result: {told}")  # noqa: T201 -- what docs/test-matrix.md quotes


def test_what_differs_is_found(browser: Browser, some: str) -> None:
    """A matrix is filtered by result, sameness and environment; a cell tells why, and leads to its environment."""
    with opened(browser, some) as window:
        shown(window).to_have_text("120 of 120 tests · 24 of 24 environments")
        bar(window).get_by_label("Result").select_option("failed")
        shown(window).to_have_text("3 of 120 tests · 24 of 24 environments")
        bar(window).get_by_label("Environments").select_option("not passed")
        shown(window).to_have_text("3 of 120 tests · 10 of 24 environments")
        bar(window).get_by_label("Named").fill("3.10")
        shown(window).to_have_text("3 of 120 tests · 5 of 24 environments")
        window.get_by_role("button", name="Clear").click()
        bar(window).get_by_label("Same").select_option("absent")
        shown(window).to_have_text("2 of 120 tests · 24 of 24 environments")
        window.get_by_role("button", name="Clear").click()
        window.locator(RED).first.click()
        detail = window.locator("#view-matrix section.card")
        expect(detail).to_contain_text("assert 1 == 0")
        detail.get_by_role("button", name="python=3.10").click()
        expect(window.locator("#item-title")).to_contain_text("python=3.10")
        window.keyboard.press("Escape")
        window.locator("[col-id=test][role=gridcell]").first.click()
        expect(detail.locator("tbody tr").first).to_contain_text("failed")
        window.get_by_role("link", name="Summary").click()
        window.get_by_role("link", name="environments that did not pass").click()
        expect(window.locator("#view-matrix")).to_be_visible()


def test_by_keyboard_alone(browser: Browser, some: str) -> None:
    """Search, walk, sort and read a cell without a mouse; a screen reader hears what each sign means."""
    with opened(browser, some) as window:
        press = window.keyboard.press
        press("/")
        expect(window.locator("#view-matrix input").first).to_be_focused()
        window.keyboard.type("test_3[")
        shown(window).to_have_text("1 of 120 tests · 24 of 24 environments")
        while not window.evaluate("document.activeElement.closest('.ag-header-cell')"):
            press("Tab")
        press("Enter")
        expect(window.locator(".ag-header-cell[aria-sort=ascending]")).to_have_count(1)
        press("ArrowDown")
        for _ in range(9):
            press("ArrowRight")
        cell = window.locator(".ag-cell-focus")
        expect(cell).to_be_focused()
        expect(cell.get_by_role("img")).to_have_accessible_name("python=3.10,attrs=22: failed, 0.01 s assert 1 == 0")
        press("Enter")
        expect(window.locator("#live")).to_contain_text("python=3.10,attrs=22: failed, 0.01 s")
        expect(window.locator("#view-matrix section.card")).to_contain_text("E assert 1 == 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_anybodys_way(
    browser: Browser, some: str, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    """axe-core finds no barrier in either scheme, for results, for durations and for what a cell tells."""
    axe: Any = import_module("axe_playwright_python.sync_playwright").Axe()  # it has no types
    found: list[str] = []
    with opened(browser, some, scheme=scheme) as window:
        window.locator(RED).first.click()
        for mode in ("results", "durations"):
            bar(window).get_by_label("Cells").select_option(mode)
            window.evaluate(FRAMES)
            picture(window, f"matrix-{mode}-{scheme}", tmp_path)
            for each in axe.run(window).response["violations"]:
                found += [f"{mode}: {each['id']}: {node['html'][:200]}" for node in each["nodes"]]
    assert found == []


def test_hostile_names_stay_words(browser: Browser, tmp_path: Path) -> None:
    """Tests, environments and messages are other people's words: no element, no script, no dialog."""
    with opened(browser, written(tmp_path, 6, 20, HOSTILE)) as window:
        window.locator(RED).first.click()
        expect(window.locator("#view-matrix section.card")).to_contain_text("</script>")
        window.locator("[col-id=test][role=gridcell]").first.click()
        window.locator(RED).first.hover()
        assert window.locator("img, iframe, object, embed, [onerror]").count() == 0
        assert window.evaluate("document.querySelectorAll('script:not([type])').length") == 3


def test_a_narrow_window(browser: Browser, some: str, tmp_path: Path) -> None:
    """On a phone nothing runs out of the window, and on paper the tables stand for the map."""
    with opened(browser, some, width=390) as window:
        picture(window, "matrix-narrow", tmp_path)
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.emulate_media(media="print")
        expect(window.locator("#view-matrix .heat")).to_be_hidden()
