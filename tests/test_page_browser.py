"""A report's page in Chromium: from the disk, quick with 100,000 items, by keys, light and dark, whatever is in it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, expect

from prefect_dispatch.models.bill import BillRow
from prefect_dispatch.reporting.html.page import MAX_ROWS, render_page
from tests.reports import made
from tests.test_page import HOSTILE
from tests.test_ui import picture
from tests.ui import chromium

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

VIEWS = ("summary", "result", "findings", "ledger", "timeline", "compare", "run")
MANY = (10_000, pytest.param(100_000, marks=pytest.mark.long))
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
TIMED = f"""async (act) => {{
    const start = performance.now();
    eval(act);
    await {FRAMES};
    return performance.now() - start;
}}"""
"""Milliseconds from an act until what it changed is on the screen."""
FILTER = """
    const box = document.querySelector("#view-ledger input[type=search]");
    box.value = "{}";
    box.dispatchEvent(new Event("input"));
"""
SORT = "document.querySelector('[col-id={}] .ag-header-cell-label').click()"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
READY = "performance.getEntriesByName('ready')[0]?.startTime"


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """Chromium."""
    with chromium() as browser:
        yield browser


def written(folder: Path, count: int, text: str = "") -> str:
    """Write the page of a report, and return its address."""
    file = folder / "report.html"
    file.write_text("".join(render_page(*made(count, text=text))), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 60 items."""
    return written(tmp_path_factory.mktemp("some"), 60)


@contextmanager
def opened(
    browser: Browser, url: str, *, scheme: Literal["light", "dark"] = "light", width: int = 1360
) -> Generator[Page]:
    """Open a page; it must report no error, ask nobody for anything and show no dialog."""
    told: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            told.append(message.text)

    def refuse(dialog: Dialog) -> None:
        told.append(dialog.message)
        dialog.dismiss()

    def see(request: Request) -> None:
        if not request.url.startswith(("file:", "data:")):
            told.append(request.url)

    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        window = context.new_page()
        window.set_default_timeout(20_000)
        window.on("console", hear)
        window.on("pageerror", lambda error: told.append(str(error)))
        window.on("dialog", refuse)
        window.on("request", see)
        window.goto(url)
        window.wait_for_function(READY)
        yield window
    assert told == []


def view(window: Page, name: str) -> None:
    """Show a view."""
    window.locator("#nav a").nth(VIEWS.index(name)).click()
    expect(window.locator(f"#view-{name}")).to_be_visible()
    window.evaluate(FRAMES)


def timed(window: Page, *acts: str) -> float:
    """Return the median of the milliseconds that acts take until what they change is on the screen."""
    took: list[float] = [window.evaluate(TIMED, act) for act in acts]
    return median(took)


def often(window: Page, *words: str) -> float:
    """Return the median of the milliseconds that it takes to filter by some words."""
    return timed(window, *(FILTER.format(word) for word in words))


@pytest.mark.parametrize("count", MANY)
def test_many_items(browser: Browser, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First sight, filter, sort, timeline and an item's page come quickly; the figures are the browser's."""
    report = made(count)
    file, start = tmp_path / "report.html", time.perf_counter()
    file.write_text("".join(render_page(*report)), encoding="utf-8")
    told = f"{count:,} items, {file.stat().st_size / 1e6:.0f} MB, written in {time.perf_counter() - start:.1f} s"
    with opened(browser, file.as_uri()) as window:
        figures: dict[str, float] = {"first sight": window.evaluate(PAINT), "all data read": window.evaluate(READY)}
        figures["ledger shown"] = window.evaluate(TIMED, "location.hash = '#ledger'")
        expect(window.locator(".ag-row").first).to_be_visible()
        figures["filter"] = often(window, "0777", "1", "licence 12", "0777")
        found = 11 if count < MAX_ROWS else 12  # with 10777
        expect(window.locator(".shown")).to_have_text(f"{found} of {min(count, MAX_ROWS):,} rows")
        figures["all again"] = often(window, "")
        figures["sort"] = timed(window, *(SORT.format(column) for column in ("item", "item", "seconds", "tokens")))
        expect(window.locator("[col-id=tokens].ag-header-cell")).to_have_attribute("aria-sort", "descending")
        figures["timeline shown"] = window.evaluate(TIMED, "location.hash = '#timeline'")
        picture(window, "page-timeline", tmp_path)
        figures["item shown"] = window.evaluate(TIMED, "location.hash = '#item/9876'")
        expect(window.get_by_role("heading", name="texts/09876.txt")).to_be_visible()
    with capsys.disabled():
        print(f"\n{told}; in Chromium, milliseconds: " + ", ".join(f"{n} {f:.0f}" for n, f in figures.items()))  # noqa: T201 -- what docs/report.md quotes


def test_hostile_words_stay_words(browser: Browser, tmp_path: Path) -> None:
    """Wherever an answer, an item, an error or a name is shown, it is text: no element, no script, no dialog."""
    with opened(browser, written(tmp_path, 40, HOSTILE)) as window:
        for name in VIEWS:
            view(window, name)
        for number in (2, 3, 5):
            window.evaluate("(id) => { location.hash = `#item/${id}`; }", number)
            expect(window.locator("#item-title")).to_contain_text(f"texts/{number:05}.txt</script>")
            window.get_by_text("Form of the answer").click()
        window.keyboard.press("Escape")
        view(window, "timeline")
        window.locator("#view-timeline canvas").hover(position={"x": 300, "y": 40})
        assert window.locator("img, iframe, object, embed, [onerror]").count() == 0
        assert window.evaluate("document.querySelectorAll('script:not([type])').length") == 3
        assert window.title() == "licence-terms: gaps"


def test_by_keyboard_alone(browser: Browser, some: str) -> None:
    """Skip, search, walk, sort, open, leaf and close without a mouse; the focus comes back to where it was."""
    with opened(browser, some) as window:
        press = window.keyboard.press
        press("Tab")
        expect(window.get_by_role("link", name="Skip to content")).to_be_focused()
        expect(window.get_by_role("link", name="Skip to content")).to_be_in_viewport()
        press("Enter")
        expect(window.locator("main")).to_be_focused()
        press("/")
        expect(window.get_by_role("searchbox")).to_be_focused()
        window.keyboard.type("texts/0001")
        expect(window.locator(".shown")).to_have_text("10 of 60 rows")
        while not window.evaluate("document.activeElement.closest('.ag-header-cell')"):
            press("Tab")
        press("Enter")
        sorted_by = window.locator(".ag-header-cell[aria-sort=ascending], .ag-header-cell[aria-sort=descending]")
        expect(sorted_by).to_have_count(1)
        press("ArrowDown")
        press("ArrowDown")
        expect(window.locator(".ag-cell-focus")).to_be_focused()
        outline = window.evaluate("getComputedStyle(document.activeElement).borderTopStyle")
        assert outline == "solid"
        press("Enter")
        title = window.locator("#item-title")
        expect(title).to_be_focused()
        before = title.text_content()
        press("ArrowRight")
        expect(title).not_to_have_text(before or "")
        for _ in range(12):  # the focus stays in the dialog
            press("Tab")
            assert window.evaluate("!document.activeElement.closest('main, header.top')")
        press("ArrowLeft")
        expect(title).to_have_text(before or "")
        press("Escape")
        expect(window.get_by_role("dialog")).to_be_hidden()
        expect(window.locator(".ag-cell-focus")).to_be_focused()
        view(window, "timeline")
        window.locator("#view-timeline [role=group]").focus()
        press("+")
        expect(window.locator("#live")).to_contain_text("From ")
        press("ArrowRight")
        press("0")
        expect(window.locator("#live")).to_contain_text("From 0 s to ")


def test_the_mouse_on_the_timeline(browser: Browser, some: str) -> None:
    """A bar opens its item; dragging and the wheel with Ctrl move through time; buttons do, too."""
    with opened(browser, some) as window:
        view(window, "timeline")
        canvas = window.locator("#view-timeline canvas")
        box = canvas.bounding_box()
        assert box
        for name in ("Zoom in", "Later", "Earlier", "Zoom out"):
            window.get_by_role("button", name=name).click()
        window.mouse.move(box["x"] + 500, box["y"] + 100)
        window.keyboard.down("Control")
        window.mouse.wheel(0, -200)
        window.keyboard.up("Control")
        window.mouse.down()
        window.mouse.move(box["x"] + 300, box["y"] + 100, steps=4)
        window.mouse.up()
        window.get_by_role("button", name="All").click()
        expect(window.locator("#live")).to_contain_text("From 0 s to ")
        window.get_by_label("Rows").select_option("slots")
        window.keyboard.press("Escape")
        canvas.click(position={"x": 130, "y": 20})
        expect(window.get_by_role("dialog")).to_be_visible()
        window.get_by_role("button", name="Close").click()
        expect(window.get_by_role("dialog")).to_be_hidden()


def test_light_and_dark(browser: Browser, some: str, tmp_path: Path) -> None:
    """The system's scheme counts until somebody chooses; what was chosen is kept."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(246, 247, 249)", "rgb(15, 18, 23)"
    schemes: dict[Literal["light", "dark"], str] = {"light": light, "dark": dark}
    for scheme, colour in schemes.items():
        with opened(browser, some, scheme=scheme) as window:
            assert window.evaluate(ground) == colour
            for name in VIEWS:
                view(window, name)
                picture(window, f"page-{name}-{scheme}", tmp_path)
    with opened(browser, some, scheme="light") as window:
        window.get_by_label("Theme").select_option("Dark")
        assert window.evaluate(ground) == dark
        window.reload()
        window.wait_for_function(READY)
        assert window.evaluate(ground) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_anybodys_way(browser: Browser, some: str, scheme: Literal["light", "dark"]) -> None:
    """axe-core finds no barrier in any view, nor on an item's page: names, roles, contrast."""
    axe: Any = import_module("axe_playwright_python.sync_playwright").Axe()  # it has no types
    found: list[str] = []
    with opened(browser, some, scheme=scheme) as window:
        for name in (*VIEWS, "item"):
            if name == "item":
                window.evaluate("location.hash = '#item/3'")
                expect(window.get_by_role("dialog")).to_be_visible()
                window.wait_for_timeout(300)  # the dialog has slid in
            else:
                view(window, name)
            result: Any = axe.run(window)
            for each in result.response["violations"]:
                found += [f"{name}: {each['id']}: {node['html'][:200]}" for node in each["nodes"]]
    assert found == []


def test_a_narrow_window(browser: Browser, some: str, tmp_path: Path) -> None:
    """On a phone nothing runs out of the window."""
    with opened(browser, some, width=390) as window:
        for name in VIEWS:
            view(window, name)
            picture(window, f"page-{name}-narrow", tmp_path)
            assert window.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_findings_lead_to_items(browser: Browser, some: str) -> None:
    """A class of failure leads to its rows, a source and an address to their item; the ledger shows what changed."""
    with opened(browser, f"{some}#item/7") as window:
        expect(window.get_by_role("heading", name="texts/00007.txt")).to_be_visible()
        window.keyboard.press("Escape")
        view(window, "findings")
        required = window.locator("section.card", has_text="What the briefs require")
        expect(required).to_contain_text("2 of 9 places")
        expect(required).to_contain_text("constraint of the integrator")
        expect(window.locator(".side.lost").first).to_contain_text("copyleft")
        window.locator(".side.lost .link").first.click()
        expect(window.get_by_text("was not kept at")).to_be_visible()
        window.keyboard.press("Escape")
        window.locator(".classes").get_by_role("button", name="timeout").click()
        expect(window.get_by_label("Failure")).to_have_value("timeout")
        window.get_by_role("button", name="Clear").click()
        expect(window.locator(".shown")).to_have_text("60 of 60 rows")
        window.get_by_label("Change").select_option("changed")
        expect(window.locator(".shown")).to_have_text("3 of 60 rows")
        window.locator(".ag-row").first.click()
        expect(window.get_by_text("Since the last run: changed")).to_be_visible()


def test_what_cost_how_much(browser: Browser, tmp_path: Path) -> None:
    """The bill is among the methods: each column with several values, an unknown price in words, and what is stored."""
    report, briefs, items = made(60)

    def row(model: str, paid: Literal["run", "stored"], usd: float | None) -> BillRow:
        return BillRow(
            paid=paid,
            stage="items",
            brief="b",
            model=model,
            tier="live",
            step="ask",
            requests=2,
            prompt_tokens=1500,
            uncached_tokens=1500,
            completion_tokens=80,
            cost_usd=usd,
            known_usd=usd or 0.0,
            unpriced=0 if usd else 2,
        )

    bill = row("<b>dear</b>", "run", 1.25), row("odd", "run", None), row("odd", "stored", 0.5)
    file = tmp_path / "report.html"
    file.write_text("".join(render_page(report.model_copy(update={"bill": bill}), briefs, items)), encoding="utf-8")
    with opened(browser, file.as_uri()) as window:
        window.get_by_text("Methods: how the answers were merged").click()
        table = window.locator("table", has_text="tokens sent")
        assert [line.split("\t") for line in table.inner_text().splitlines()] == [
            ["by", "", "requests", "tokens sent", "of that cached", "tokens received", "cost"],
            ["model", "<b>dear</b>", "2", "1,500", "0", "80", "$1.25"],
            ["model", "odd", "2", "1,500", "0", "80", "2 calls of unknown price"],
        ]
        expect(window.get_by_text("Paid before this run, for the answers from the store: $0.5000.")).to_be_visible()
        table.scroll_into_view_if_needed()
        picture(window, "page-bill", tmp_path)


def test_on_paper(browser: Browser, some: str) -> None:
    """Printed, all views follow each other, the ledger as a plain table; then the page is as it was."""
    with opened(browser, some) as window:
        window.emulate_media(media="print")
        window.evaluate("dispatchEvent(new Event('beforeprint'))")
        for name in VIEWS:
            expect(window.locator(f"#view-{name}")).to_be_visible()
        expect(window.locator("#print-ledger tbody tr")).to_have_count(60)
        expect(window.locator("nav")).to_be_hidden()
        assert len(window.pdf()) > 50_000
        window.evaluate("dispatchEvent(new Event('afterprint'))")
        window.emulate_media(media="screen")
        expect(window.locator("#view-run")).to_be_hidden()
