"""An analyst starts a test matrix from its form in Prefect's UI, and reads what failed where."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.test_ui import picture
from tests.test_ui_forms import both_themes, browser, expect_report, open_form, page, prefect, submit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ui import PrefectServer

__all__ = ["browser", "page", "prefect"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

GROUPS = ["Environments", "Limits", "Results", "Advanced"]
FIELDS = ["Test command", "Axes", "Repository", "Commit", "Setup command", "Folder", *GROUPS]
SUITE = """
import os
bad = "<failure message='off by one'/>" if os.environ["ITEM_MODE"] == "bad" else ""
with open(os.environ["REPORT_DIR"] + "/junit.xml", "w") as file:
    file.write(f"<testsuite name='s'><testcase name='fine'/><testcase name='sums'>{bad}</testcase></testsuite>")
raise SystemExit(bool(bad))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a test suite that fails in one mode."""
    (tmp_path / "suite.py").write_text(SUITE, encoding="utf-8")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "One"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S603, S607 -- git
    return tmp_path


def fill(page: Page, prefect: PrefectServer, *values: str) -> None:
    """Open the form, and fill in the command and one axis."""
    labels = open_form(page, prefect, "test-matrix")
    assert [label for label in labels if label in FIELDS] == FIELDS
    page.get_by_label("Test command").fill("python3 suite.py")
    page.get_by_role("button", name="Add Item").first.click()
    page.get_by_label("Name", exact=True).first.fill("mode")
    picture(page, "form-test-matrix-axis")
    for at, value in enumerate(values):
        page.get_by_role("button", name="Add Item").first.click()  # the axis' own stands before that of the axes
        page.get_by_role("textbox").nth(3 + at).fill(value)  # after the run's name, the command and the axis' name


def wait_for(prefect: PrefectServer) -> None:
    """Wait until the deployment is there: `serve` makes one after another."""
    for _ in range(300):
        if httpx.get(f"{prefect.url}/api/deployments/name/test-matrix/test-matrix").is_success:
            return
        time.sleep(0.2)
    pytest.fail("The deployment was not made.")


def test_a_matrix_from_its_form(prefect: PrefectServer, page: Page, repository: Path) -> None:
    """Two fields are enough; a red environment fails the run, whose message names it and its test."""
    with prefect.serving(folder=repository, deployment="dispatch"):
        wait_for(prefect)
        fill(page, prefect, "good", "bad")
        for group in GROUPS:
            page.get_by_role("tab", name=group, exact=True).click()
        both_themes(page, "form-test-matrix")
        submit(page, "Failed")
        page.get_by_role("tab", name="Details").click()
        expect(
            page.get_by_text("1 of 2 required environments did not pass: mode=bad (1 failed: sums)").first
        ).to_be_visible(timeout=60_000)
        expect_report(page, "mode=bad")
        picture(page, "report-test-matrix")
        fill(page, prefect, "good", "good")
        submit(page, "Failed")
        page.get_by_role("tab", name="Details").click()
        expect(page.get_by_text("Axes: 'mode' has 'good' twice; leave one out.").first).to_be_visible(timeout=60_000)
