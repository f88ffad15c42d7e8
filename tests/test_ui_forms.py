"""An analyst makes a key in Prefect's UI, and starts each job from its form."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.openai_server import Behaviour, OpenAIServer, document, openai_server
from tests.pictures import check_pictures
from tests.test_ui import picture
from tests.ui import PYTHON, PrefectServer, chromium, prefect_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "sk-typed-into-the-form-4711"
NAME = "my-openai"
GROUPS = ["Limits", "Report", "Advanced"]
FILES = [
    "Files", "Instructions", "LLM credentials", "Model", "Fields", "Several records per file", "Folder", "Name",
    "Merging", *GROUPS,
]  # fmt: skip
TOPICS = [
    "Question", "Topics", "Topics file", "LLM credentials", "Model", "Folder", "Name", "Researcher", *GROUPS,
]  # fmt: skip
MODULES = [
    "Modules", "Repository", "Coding agent", "LLM credentials", "Model", "About all modules", "Folder", "Merging",
    "Limits", "Results", "Advanced",
]  # fmt: skip
VARIANTS = ["Product", "Instructions", "Variants", "LLM credentials", "Model", "Folder", "Name", *GROUPS]


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Answer as each of the jobs wants it."""
    said = json.dumps(request)
    if "under its heading as it stands here" in said:
        return Behaviour(content="# Finding\n\nAll [1][2].\n\n## Where the agents disagree\n\nOn nothing [1][2].")
    if "winner" in said:
        return Behaviour(content=json.dumps({"reason": "It is.", "winner": "first"}))
    if "Name under" in said or "name under" in said:
        return Behaviour(content=json.dumps({"finding": "Old.", "sources": ["10.1038/171737a0", "https://w3.org/TR"]}))
    if year := re.search(r"since (\d{4})", document(request)):
        return Behaviour(content=json.dumps({"year": year[1]}))
    return Behaviour(content=f"A text of {len(said)}.")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Generator[PrefectServer]:
    """A Prefect server that knows our blocks."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        command = [*PYTHON, "prefect", "block", "register", "-m", "prefect_dispatch"]
        subprocess.run(command, env=server.env, check=True, capture_output=True)  # noqa: S603 -- our own command
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


@contextmanager
def window(browser: Browser, prefect: PrefectServer) -> Generator[Page]:
    """Open a window on Prefect's UI for as long as the block lasts."""
    with browser.new_context(viewport={"width": 1400, "height": 3600}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(prefect.url)
        yield page


@pytest.fixture(scope="module", autouse=True)
def _key(prefect: PrefectServer, browser: Browser, model: OpenAIServer) -> None:
    """A key in a block, made once: a second of its name is refused."""
    with window(browser, prefect) as page:
        make_key(page, prefect, model.url)


@pytest.fixture
def page(prefect: PrefectServer, browser: Browser, tmp_path: Path) -> Generator[Page]:
    """A window on Prefect's UI; how it looked at the end is kept as a picture."""
    with window(browser, prefect) as page:
        yield page
        picture(page, "end-of-forms", tmp_path)


def make_key(page: Page, prefect: PrefectServer, address: str) -> None:
    """Make the block in its dialog."""
    page.goto(f"{prefect.url}/v2/blocks/catalog/llm-credentials/create")
    expect(page.get_by_text("The key of a language model's provider").first).to_be_visible()
    page.get_by_label("Name", exact=True).fill(NAME)
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("Default model").fill("openai/test")
    page.get_by_label("Address").fill(address)
    picture(page, "block-dialog")
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/blocks/block/**")
    expect(page.get_by_text(NAME).first).to_be_visible()
    picture(page, "block")
    assert KEY not in page.content()


def open_form(page: Page, prefect: PrefectServer, name: str) -> list[str]:
    """Go to the form of a deployment, and return its labels in their order."""
    link = page.get_by_role("link", name=name, exact=True).first
    for _ in range(6):  # deployments are registered one after another
        page.goto(f"{prefect.url}/v2/deployments")
        with suppress(AssertionError):
            expect(link).to_be_visible(timeout=20_000)
            break
    link.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_label("folder").first).to_be_visible()
    labels = page.locator("label").all_inner_texts()
    return [label.removesuffix(" (Optional)") for label in labels]


def pick_key(page: Page) -> None:
    """Choose the block in its picker, the first on the page."""
    page.get_by_text("Select a block").first.click()
    page.get_by_role("option", name=NAME).first.click()


def both_themes(page: Page, name: str) -> None:
    """Keep how a page looks in both themes."""
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        picture(page, f"{name}-{theme}")


def submit(page: Page, state: str = "Completed") -> None:
    """Send the form, and stay with its run until it has ended."""
    started = page.get_by_role("button", name="View run")
    for _ in range(12):  # Prefect's form takes a mended value at a later click, the busier the machine the later
        page.get_by_role("button", name="Submit").click()
        with suppress(AssertionError):
            expect(started.first).to_be_visible()
            break
        picture(page, "form-submitted")
    started.first.click()
    page.wait_for_url("**/runs/flow-run/**")
    expect(page.get_by_text(state, exact=True).first).to_be_visible(timeout=120_000)


def expect_report(page: Page, text: str) -> None:
    """Open the report of a finished run, and expect a text in it."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(re.compile(r"-report$")).first.click()
    expect(page.get_by_role("heading", name="Ledger")).to_be_visible()
    expect(page.get_by_text(text).first).to_be_visible()


@pytest.fixture
def served(prefect: PrefectServer, page: Page, tmp_path: Path) -> Generator[Page]:
    """All forms, served in a folder with two texts."""
    (tmp_path / "texts").mkdir()
    for year in (1990, 1991):
        (tmp_path / "texts" / f"{year}.txt").write_text(f"In force since {year}.", encoding="utf-8")
    with prefect.serving(folder=tmp_path, deployment="dispatch"):
        yield page


def test_an_analyst_starts_each_job_from_its_form(prefect: PrefectServer, model: OpenAIServer, served: Page) -> None:
    """A key made in its dialog is picked in each form; three fields are enough; what can't be is told in its words."""
    analyse(served, prefect)
    assert model.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    asked = model.count
    merge_texts(served, prefect)
    assert model.count == asked
    research(served, prefect)
    vary(served, prefect)


def test_modules_are_said_in_a_form(prefect: PrefectServer, served: Page) -> None:
    """One module is enough; what is a choice is one; without a key the run says so first, and nobody was asked."""
    labels = open_form(served, prefect, "build-modules")
    assert [label for label in labels if label in MODULES] == MODULES
    served.get_by_role("button", name="Add Item").first.click()
    for label, text in (("Name", "lexer"), ("Goal", "Split a text into tokens.")):
        served.get_by_label(label, exact=True).first.fill(text)
    owns = served.locator("fieldset", has_text="Globs of the files that its agent may write").last
    owns.get_by_role("button", name="Add Item").first.click()
    owns.get_by_role("textbox").nth(2).fill("calc/lexer.py")  # the name and the goal come before it
    served.get_by_label("model").first.fill("claude-sonnet-4-5")
    for group in MODULES[-4:]:
        served.get_by_role("tab", name=group, exact=True).click()
    served.get_by_text("priority", exact=True).first.click()
    served.get_by_role("option", name="skip", exact=True).click()
    both_themes(served, "form-build-modules")
    submit(served, "Failed")
    served.get_by_role("tab", name="Details").click()
    expect(
        served.get_by_text("LLM credentials: the agent has no key for 'anthropic/claude-sonnet-4-5'").first
    ).to_be_visible()
    picture(served, "form-build-modules-without-a-key")


def analyse(page: Page, prefect: PrefectServer) -> None:
    """Fill three fields; a group begins without its fields, and a number out of its bounds is told beside its field."""
    labels = open_form(page, prefect, "analyze-files")
    assert [label for label in labels if label in FILES] == FILES
    expect(page.get_by_label("concurrency")).to_have_count(0)
    picture(page, "form-analyze-files-at-first")
    fill_files(page)
    pick_key(page)
    page.get_by_role("tab", name="Limits").click()
    page.get_by_label("longest answer").fill("500")
    page.get_by_label("concurrency").fill("0")
    page.get_by_role("button", name="Submit").click()
    message = page.get_by_label("concurrency").evaluate("field => field.validationMessage")
    assert "greater than or equal to 1" in str(message)
    page.get_by_label("concurrency").fill("2")
    picture(page, "form-analyze-files")
    page.get_by_label("instructions").scroll_into_view_if_needed()
    check_pictures(page, "form")
    submit(page)
    expect_report(page, "2 of 2 answered")
    picture(page, "report-analyze-files")


def merge_texts(page: Page, prefect: PrefectServer) -> None:
    """Choose what doesn't go together: the run says so first, in the words of the form and without a traceback."""
    open_form(page, prefect, "analyze-files")
    fill_files(page)
    page.get_by_role("tab", name="Merging").click()
    page.get_by_text("side by side", exact=True).first.click()
    page.get_by_role("option", name="merge records").click()
    submit(page, "Failed")
    page.get_by_role("tab", name="Details").click()
    expect(
        page.get_by_text("Merging > Merge: texts can't be merged as records; say under 'Fields'").first
    ).to_be_visible()
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_text("Finished in state Failed").first).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)
    picture(page, "form-that-can-not-be")


def research(page: Page, prefect: PrefectServer) -> None:
    """Ask about two topics, pasted from elsewhere."""
    labels = open_form(page, prefect, "research-topics")
    assert [label for label in labels if label in TOPICS] == TOPICS
    page.get_by_label("question").fill("How old is {topic}?")
    page.get_by_role("tab", name="Pasted items").click()
    page.get_by_label("Items", exact=True).fill("HTTP\nDNA")
    pick_key(page)
    picture(page, "form-research-topics")
    submit(page)
    expect_report(page, "Where the agents disagree")
    picture(page, "report-research-topics")


def vary(page: Page, prefect: PrefectServer) -> None:
    """Write two variants, and have them judged."""
    labels = open_form(page, prefect, "content-variants")
    assert [label for label in labels if label in VARIANTS] == VARIANTS
    page.get_by_label("product").fill("A kettle that boils without a sound.")
    page.get_by_label("instructions").fill("Write a tagline.")
    for at, (name, angle) in enumerate((("bold", "Promise one thing, loudly."), ("calm", "Whisper."))):
        page.get_by_role("button", name="Add Item").first.click()
        page.get_by_label("Name", exact=True).nth(at).fill(name)
        page.get_by_label("Angle", exact=True).nth(at).fill(angle)
    pick_key(page)
    picture(page, "form-content-variants")
    submit(page)
    expect_report(page, "For an A/B tool")
    picture(page, "report-content-variants")


def fill_files(page: Page) -> None:
    """Fill what can't be left out."""
    files = page.locator("fieldset", has=page.get_by_role("tab", name="One", exact=True)).last
    files.get_by_role("textbox").fill("texts/*.txt")
    page.get_by_label("instructions").fill("Say since when the text is in force.")
