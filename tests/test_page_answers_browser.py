"""Answers on a report's page in Chromium: by their fields, side by side, copied, downloaded, and beside another run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Gap
from prefect_dispatch.models.outcome import Attempt, Failure, Outcome, Rejection
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.html.page import render_page
from prefect_dispatch.security.escaping import to_safe_csv
from tests.test_page import HOSTILE
from tests.test_page_browser import VIEWS, browser, opened, view
from tests.test_ui import picture

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["browser"]  # the fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

TERMS, RISK = Brief(name="terms", instructions="Read {name}."), Brief(name="risk", instructions="Judge it.")
FORMULAS = ("=1+1", '"; @SUM(1)', "a\n-2", "ok", "＝2", HOSTILE)  # noqa: RUF001 -- a wide one, too


def report_of(families: dict[str, str], *, failing: str = "") -> Report:
    """Return the report of two briefs, with the answers of one given by item; the other one's are texts."""
    outcomes: list[Outcome] = []
    for item, family in families.items():
        value: JsonValue = {"family": family, "free": True, "years": [1989, 1.5], "patents": {"granted": False}}
        rejection = Rejection(text=f"I think {family}.", problems=("The answer is not JSON.",))
        attempts = (
            Attempt(error="timeout: No answer."),
            Attempt(reasks=1, rejections=(rejection,), notes=("A note.",)),
        )
        outcomes.append(Outcome(brief="terms", item=item, status="succeeded", value=value, attempts=attempts))
        error = Failure(kind="timeout", message="No answer.")
        outcomes.append(
            Outcome(brief="risk", item=item, status="failed", error=error)
            if item == failing
            else Outcome(brief="risk", item=item, status="succeeded", value=f"Low for {item}.")
        )
    merge = Collate().merge([TERMS, RISK], outcomes)
    gaps = tuple(Gap(brief=o.brief, item=o.item, status="failed", error=o.error) for o in outcomes if o.error)
    return Report(
        status="gaps" if gaps else "complete",
        message="Answered.",
        value=merge.value,
        ledger=merge.ledger,
        fields=merge.fields,
        gaps=gaps,
        rules=merge.rules,
        run={"started": "2026-03-02T09:30:00+00:00", "integrator": {"kind": "collate"}},
        outcomes=tuple(outcomes),
    )


def written(folder: Path, report: Report) -> str:
    """Write the page of a report, and return its address."""
    items = [Item(key=outcome.item, value={"name": outcome.item}) for outcome in report.outcomes]
    (folder / "report.html").write_text("".join(render_page(report, [TERMS, RISK], items)), encoding="utf-8")
    return (folder / "report.html").as_uri()


def downloaded(window: Page, button: int = 0) -> list[list[str]]:
    """Return the rows of the file that a visible button saves."""
    with window.expect_download() as waiting:
        window.locator("button:visible", has_text="Download CSV").nth(button).click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline="")))


def test_briefs_side_by_side_copied_and_downloaded(browser: Browser, tmp_path: Path) -> None:
    """One row for each item, a group of columns for each brief; exactly what is filtered is copied and downloaded."""
    families = {f"text {n}": family for n, family in enumerate(FORMULAS)}
    with opened(browser, written(tmp_path, report_of(families, failing="text 3"))) as window:
        window.context.grant_permissions(["clipboard-read", "clipboard-write"])
        expect(window.locator("#view-summary th.group")).to_have_text(["terms", "risk"])
        expect(window.locator("#view-summary .data tbody tr")).to_have_count(len(FORMULAS))
        view(window, "result")
        picture(window, "page-side-by-side", tmp_path)
        header, *rows = downloaded(window)
        assert header == ["Item", "terms: family", "terms: free", "terms: years", "terms: patents.granted",
                          "risk: ended", "risk: answer"]  # fmt: skip
        safe = csv.reader(io.StringIO(to_safe_csv([{"family": family} for family in FORMULAS]), newline=""))
        assert [[row[1]] for row in rows] == list(safe)[1:]
        assert rows[3] == ["text 3", "ok", "true", "1989; 1.5", "false", "failed", "timeout: No answer."]
        view(window, "ledger")
        window.keyboard.press("/")
        window.keyboard.type("text 4")
        expect(window.locator("#view-ledger .shown")).to_have_text("1 of 6 items")
        assert [row[0] for row in downloaded(window)[1:]] == ["text 4"]
        window.locator("#view-ledger").get_by_role("button", name="Copy").click()
        expect(window.locator("#live")).to_have_text("Copied 1 row")
        lines = str(window.evaluate("navigator.clipboard.readText()")).splitlines()
        assert [line.split("\t")[:2] for line in lines] == [["Item", "terms: family"], ["text 4", "'＝2"]]  # noqa: RUF001
        window.get_by_label("Rows").select_option("each brief and item")
        expect(window.locator("#view-ledger .shown")).to_have_text("2 of 12 rows")
        assert downloaded(window)[0][:4] == ["Item", "Brief", "Ended", "family"]


def test_an_item_has_an_address_and_a_transcript(browser: Browser, tmp_path: Path) -> None:
    """Its address opens it over its row; what was invalid, what was sent back and the answer follow each other."""
    odd = "a/ß +&=#%.txt"
    url = written(tmp_path, report_of({"first": "a", odd: "copyleft"}))
    with opened(browser, f"{url}#item={quote(odd, safe='')}&brief=terms") as window:
        window.context.grant_permissions(["clipboard-read", "clipboard-write"])
        expect(window.locator("#item-title")).to_have_text(odd)
        expect(window.locator("#view-ledger")).to_be_visible()
        turns = window.locator("details.attempt[open] .turn h4")
        expect(turns).to_have_text(
            ["Prompt", "Answer 1, not valid", "Sent back, with what was wrong", "Answer 2, valid", "Note"]
        )
        expect(window.locator("details.attempt")).to_have_count(2)
        expect(window.locator("dialog .facts").first).to_contain_text("patents.granted")
        window.get_by_role("button", name="Copy link").click()
        expect(window.get_by_role("button", name="Link copied")).to_be_visible()
        link = window.evaluate("navigator.clipboard.readText()")
        window.get_by_role("button", name="Previous").click()
        window.get_by_role("button", name="Close").click()
        expect(window.get_by_role("dialog")).to_be_hidden()
        window.goto(link)
        expect(window.locator("#item-title")).to_have_text(odd)
        window.evaluate("location.hash = '#item=gone'")
        expect(window.get_by_role("dialog")).to_contain_text("This page has no row for the item gone.")
        window.evaluate("location.hash = '#item/0'")  # an address of an earlier version
        expect(window.locator("#item-title")).to_have_text("first")


def test_beside_another_run(browser: Browser, tmp_path: Path) -> None:
    """Another report.json or outcomes.jsonl shows what was added, removed and changed; anything else is refused."""
    other = report_of({"a": HOSTILE, "b": "same", "c": "gone", "e": "gap"}, failing="b")
    here = report_of({"a": "copyleft", "b": "same", "d": "new", "e": "gap"}, failing="e")
    (tmp_path / "other.json").write_text(other.model_dump_json(), encoding="utf-8")
    (tmp_path / "outcomes.jsonl").write_text(
        "\n".join(each.model_dump_json() for each in other.outcomes), encoding="utf-8"
    )
    stripped: dict[str, Any] = json.loads(other.model_dump_json()) | {"value": None}
    (tmp_path / "stripped.json").write_text(json.dumps(stripped), encoding="utf-8")
    (tmp_path / "wrong.json").write_text('{"__proto__": {"ledger": []}}', encoding="utf-8")
    expected = ["2", "2", "1", "1", "1"]
    with opened(browser, written(tmp_path, here)) as window:
        view(window, "compare")
        picker, tiles = window.get_by_label("Files of the other run"), window.locator("#view-compare .tile dd")
        for files in (["other.json"], ["outcomes.jsonl"], ["stripped.json", "outcomes.jsonl"]):
            picker.set_input_files([tmp_path / name for name in files])
            expect(tiles).to_have_text([*expected, "3"])
            expect(window.locator("#view-compare .ag-row")).to_have_count(7)
        picture(window, "page-compare", tmp_path)
        rows = downloaded(window)
        assert rows[0] == ["Item", "Change", "Brief", "Field", "Other run", "This run"]
        assert ["a", "changed", "terms", "family", HOSTILE, "copyleft"] in rows
        assert window.locator("img").count() == 0
        picker.set_input_files(tmp_path / "stripped.json")
        expect(window.locator("#view-compare")).to_contain_text("the other report.json has no answer of its own")
        picker.set_input_files(tmp_path / "wrong.json")
        expect(window.locator("#view-compare")).to_contain_text("It is neither a report.json nor an outcomes.jsonl.")
        expect(tiles).to_have_count(0)


def test_nothing_runs_out_of_a_narrow_window(browser: Browser, tmp_path: Path) -> None:
    """On a phone, answers side by side scroll in their own box, and filters are folded."""
    url = written(tmp_path, report_of({f"a rather long name of an item, number {n}": HOSTILE for n in range(3)}))
    with opened(browser, url, width=390) as window:
        for name in VIEWS:
            view(window, name)
            assert window.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        view(window, "ledger")
        expect(window.get_by_label("Rows")).to_be_hidden()
        window.get_by_text("Filters").click()
        expect(window.get_by_label("Rows")).to_be_visible()
        picture(window, "page-side-by-side-narrow", tmp_path)
