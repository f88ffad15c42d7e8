"""An analyst runs a served flow from Prefect's UI, and reads the report there."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import nullcontext, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from prefect_dispatch.integrators.decisions_file import DecisionsFile
from tests.openai_server import Behaviour, OpenAIServer, document, openai_server
from tests.ui import PrefectServer, chromium, prefect_server

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

JOB = """
briefs:
  - name: licence-terms
    instructions: Say what this licence demands.
    output: {type: object, properties: {name: {type: string}, year: {type: integer}}, required: [name, year]}
items: {glob: "texts/*.txt"}
executor: {model: openai/test, api_base: "%s"}
integrator: {kind: merge_records, identity: [name], rules: {year: max}}
limits: {concurrency: 2, retry_delay_s: 0}
"""


HOSTILE = (
    "L **b** <img src=x onerror=alert(1)> [a](http://e.example) http://e.example www.e.example a@e.example {{1+1}}"
)

REVIEW = """
briefs:
  - name: licences
    instructions: Name the licence and say since when it has been in force.
    output: {type: object, properties: {name: {type: string}, year: {type: integer}}, required: [name, year]}
items: {glob: "texts/*.txt"}
executor: {model: openai/test, api_base: "%s"}
integrator:
  {kind: merge_records, identity: [name], match: {}, rules: {year: max}, conflicts: flag, aliases: decisions.yaml}
limits: {concurrency: 2, retry_delay_s: 0}
review: true
"""


PARAMETERS = ["briefs", "items", "executor", "integrator", "limits", "review", "folder", "out", "limit", "refresh"]


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Answer with the year, and the name, that the document has."""
    said = re.search(r"(?:The (.*?), i|I)n force since (\d{4})", document(request))
    return Behaviour(content=json.dumps({"name": said[1] or "MIT", "year": int(said[2])}) if said else "Forty-two.")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Generator[PrefectServer]:
    """A Prefect server of its own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """The model that is asked."""
    with openai_server(behave) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(prefect: PrefectServer, browser: Browser, tmp_path: Path) -> Generator[Page]:
    """A window on Prefect's UI as it greets a new user; how it looked at the end is kept as a picture."""
    with browser.new_context(viewport={"width": 1400, "height": 4000}) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(prefect.url)
        yield page
        picture(page, "end", tmp_path)


def picture(page: Page, name: str, folder: Path | None = None) -> None:
    """Keep how a page looks, where the environment says."""
    if told := os.environ.get("PREFECT_DISPATCH_SCREENSHOTS", folder):
        page.screenshot(path=Path(told) / f"{name}.png")


def open_form(page: Page, deployment: str) -> None:
    """Go from anywhere to the form of a deployment."""
    page.get_by_role("link", name="Deployments").first.click()
    page.get_by_role("link", name=deployment, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_label("Concurrency")).to_be_visible()


def submit(page: Page, state: str = "Completed") -> None:
    """Send the form, and stay with its run until it has ended."""
    started = page.get_by_role("button", name="View run")
    for _ in range(4):  # Prefect's form takes a mended value at the second click, or at the third on a busy machine
        page.get_by_role("button", name="Submit").click()
        with suppress(AssertionError):
            expect(started).to_be_visible()
            break
    started.click()
    page.wait_for_url("**/runs/flow-run/**")
    expect(page.get_by_text(state, exact=True).first).to_be_visible(timeout=60_000)


def open_report(page: Page, brief: str) -> None:
    """Go from a run to its report."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(f"{brief}-report", exact=True).first.click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(page.get_by_role("heading", name="Ledger")).to_be_visible()


def read_page(page: Page) -> None:
    """Follow the link of a report in Prefect's UI to its page, and come back."""
    address = page.url
    link = page.get_by_role("link", name="Open the report page")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[0-9a-f]{64}/report\.html", str(link.get_attribute("href")))
    with page.context.expect_event("page", timeout=5_000) if link.get_attribute("target") else nullcontext():
        link.click()
    shown = page.context.pages[-1]
    expect(shown.get_by_role("heading", name="licence-terms", level=1)).to_be_visible()
    expect(shown.get_by_text("5 of 5 answered").first).to_be_visible()
    shown.get_by_role("link", name="Ledger").click()
    expect(shown.get_by_text("texts/1990.txt").first).to_be_visible()
    picture(shown, "page-of-a-served-run")
    page.goto(address)


def test_an_analyst_edits_a_job_and_reads_its_report(
    prefect: PrefectServer, model: OpenAIServer, page: Page, tmp_path: Path
) -> None:
    """The form has the job in its order; merged by another rule, only what a pattern names is asked again."""
    (tmp_path / "texts").mkdir()
    for year in range(1990, 1995):
        (tmp_path / "texts" / f"{year}.txt").write_text(f"In force since {year}.", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(JOB % model.url, encoding="utf-8")
    prefect.dispatch("run", "job.yaml", folder=tmp_path)
    assert model.count == 5
    with prefect.serving("job.yaml", folder=tmp_path, deployment="licence-terms"):
        open_form(page, "licence-terms")
        labels = [label.removesuffix(" (Optional)") for label in page.locator("label").all_inner_texts()]
        assert labels[1:7] == ["briefs", "Name", "Scope", "Instructions", "Constraints", "Output"]
        assert [label for label in labels if label in PARAMETERS] == PARAMETERS
        expect(page.get_by_text('"required": [')).to_be_visible()
        for tab in ("Files", "LLM", "Merge records", "Built-in", "Everything"):
            expect(page.get_by_role("tab", name=tab, exact=True, selected=True).first).to_be_visible()
        picture(page, "form-of-a-job")
        page.get_by_label("Concurrency").fill("3")
        page.get_by_text("max", exact=True).first.click()
        page.get_by_role("option", name="min", exact=True).click()
        page.get_by_role("tab", name="By name", exact=True).click()
        page.get_by_role("button", name="Add Item").last.click()
        page.locator("fieldset", has=page.get_by_role("tab", name="By name")).last.get_by_role("textbox").fill(
            "*/1990.*"
        )
        picture(page, "form-with-a-pattern")
        submit(page)
        open_report(page, "licence-terms")
        picture(page, "report-of-a-job")
        read_page(page)
    assert model.count == 6
    expect(page.get_by_text("5 of 5 answered").first).to_be_visible()
    expect(page.get_by_role("row", name="licence-terms texts/1990.txt merged")).to_be_visible()
    expect(
        page.get_by_role("row", name="licence-terms texts/1994.txt overridden licence-terms/texts/1990.txt")
    ).to_be_visible()


def test_a_form_is_filled_from_nothing(prefect: PrefectServer, model: OpenAIServer, page: Page, tmp_path: Path) -> None:
    """Wrong values are told beside the field; mended, the same form runs."""
    asked = model.count
    with prefect.serving(folder=tmp_path, deployment="dispatch"):
        open_form(page, "dispatch")
        page.get_by_role("button", name="Add Item").first.click()
        page.get_by_label("Name", exact=True).fill("my brief")
        page.get_by_label("Instructions").fill("Say a number.")
        page.get_by_role("tab", name="List", exact=True).click()
        page.get_by_role("button", name="Add Item").last.click()
        page.locator("fieldset", has=page.get_by_role("tab", name="Text")).last.get_by_role("textbox").fill("one")
        page.get_by_role("tab", name="LLM").click()
        page.get_by_label("Model", exact=True).last.fill("openai/test")
        page.get_by_role("tab", name="Address").click()
        page.locator("fieldset", has=page.get_by_role("tab", name="Address")).last.get_by_role("textbox").fill(
            model.url
        )

        page.get_by_label("Concurrency").fill("0")
        page.get_by_role("button", name="Submit").click()
        assert "greater than or equal to 1" in str(
            page.get_by_label("Concurrency").evaluate("field => field.validationMessage")
        )
        page.get_by_label("Concurrency").fill("1")
        page.get_by_role("button", name="Submit").click()
        told = page.get_by_text("'my brief' does not match", exact=False)
        expect(told.first).to_be_visible()
        picture(page, "form-with-a-wrong-name")
        page.get_by_label("Name", exact=True).fill("my-brief")
        submit(page)
    open_report(page, "my-brief")
    picture(page, "report-from-nothing")
    expect(page.get_by_role("row", name="my-brief one merged")).to_be_visible()
    expect(page.get_by_text("Forty-two.").first).to_be_visible()
    assert model.count == asked + 1


def test_people_decide_before_a_run_publishes(
    prefect: PrefectServer, model: OpenAIServer, page: Page, tmp_path: Path
) -> None:
    """A served run is suspended; what is chosen in its form is in report and file; the next run asks nothing."""
    (tmp_path / "texts").mkdir()
    said = [
        ("Apache License", 2003),
        ("Apache License", 2004),
        ("Apache Licence", 2004),
        (HOSTILE, 1998),
        (HOSTILE, 1999),
        ("Eclipse Public License", 2004),
        ("Eclipse Public Licence", 2004),
    ]
    for at, (name, year) in enumerate(said):
        (tmp_path / "texts" / f"{at}.txt").write_text(f"The {name}, in force since {year}.", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(REVIEW % model.url, encoding="utf-8")
    with prefect.serving("job.yaml", folder=tmp_path, deployment="licences"):
        page.goto(f"{prefect.url}/runs/flow-run/{started(prefect, 'licences', out='out')}")
        expect(page.get_by_text("NeedsReview", exact=True).first).to_be_visible(timeout=120_000)
        page.get_by_role("button", name="Resume").first.click()
        expect(page.get_by_text("4 to decide.", exact=True)).to_be_visible()
        # Pairs stand first, the most alike above all; the second one stays open.
        for at, option in enumerate(("same", "2. 2003 (from licences/texts/0.txt)")):
            page.locator(".p-select-button", has_text="leave open").nth(at).dispatch_event("click")
            page.locator(".p-select-option", has_text=option).click()
        picture(page, "review-form")
        harmless(page)
        resume(page)
        expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=120_000)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(record["name"][:16], record["year"]) for record in report["value"]["records"]] == [
        ("Apache Licence", 2004),
        ("Apache License", 2003),
        ("Eclipse Public L", 2004),
        (HOSTILE[:16], 1999),
    ]
    decided = DecisionsFile(tmp_path / "decisions.yaml").load()
    assert (len(decided.same), [choice.value for choice in decided.fields]) == (1, [2003])

    for version in ("/v2", ""):
        page.goto(f"{prefect.url}{version}/artifacts/key/licences-report")
        page.locator("a[href*='/artifacts/artifact/']").first.click()
        expect(page.get_by_role("heading", name="Decided in this run's review")).to_be_visible()
        for heading in ("Not to be taken on trust", "To decide: one or two?", "Ledger"):
            expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.get_by_text("How the answers were merged")).to_be_visible()
        harmless(page)
        picture(page, f"report-of-a-review{version.replace('/', '-')}")

    for at in (2, 4):  # of which something was left open
        (tmp_path / "texts" / f"{at}.txt").unlink()
    asked = model.count
    prefect.dispatch("run", "job.yaml", folder=tmp_path)
    assert model.count == asked


def started(prefect: PrefectServer, deployment: str, **parameters: str) -> str:
    """Start a run of a deployment; return its id."""
    api = f"{prefect.url}/api/deployments"
    found = httpx.get(f"{api}/name/dispatch/{deployment}").json()["id"]
    wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    made = httpx.post(f"{api}/{found}/create_flow_run", json=wanted)
    for _ in range(60):  # the database of a server on SQLite may be locked while `serve` registers its deployments
        if not made.is_server_error:
            break
        time.sleep(1)
        made = httpx.post(f"{api}/{found}/create_flow_run", json=wanted)
    return str(made.raise_for_status().json()["id"])


def resume(page: Page) -> None:
    """Submit the form of a review; where the server's database is locked, which the form survives, once more."""
    status = HTTPStatus.SERVICE_UNAVAILABLE.value
    for _ in range(10):
        with page.expect_response(lambda response: response.url.endswith("/resume"), timeout=60_000) as sent:
            page.get_by_role("button", name="Submit").click()
        status = sent.value.status
        if status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    assert status == HTTPStatus.CREATED


def harmless(page: Page) -> None:
    """Check that nothing of what agents said acts in a page."""
    assert page.locator("a[href*='e.example']").count() == 0
    assert page.locator("img[src='x']").count() == 0
