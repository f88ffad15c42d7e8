"""The gallery shows real runs: its extracts are parts of the examples' files, and of the reports that their runs give.

What the local model answered is recorded in `tests/examples/gallery/`, so a run over it gives the same report on every
machine. To write the extracts of the page and the pictures in `docs/assets`, run in one process (without `-n`):

    UPDATE_GALLERY=1 pytest -m "" -k "gallery or analyst" tests/examples/test_gallery.py tests/test_ui_forms.py

It asks the model for answers that are not recorded, or all if the files in `tests/examples/gallery/` are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from examples.modules.make_repo import make
from prefect_dispatch.cli.commands import main
from prefect_dispatch.executors.llm import local_model
from prefect_dispatch.executors.llm.local_model import SMOLLM2, ModelEndpoint, has_smollm2, model_file, serve
from tests.fences import Fence, fences
from tests.golden_runs import AUTHOR, PLAIN_GIT, ROOT, Example, commit
from tests.openai_server import Behaviour, failure, openai_server
from tests.pictures import UPDATE, check_pictures
from tests.ui import chromium

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs" / "gallery.md"
RECORDED = Path(__file__).parent / "gallery"
"""What the local model answered: a file for each example, an answer for each digest of a request."""
LEFT_OUT = "[…]"
UPDATE_COMMAND = (
    'UPDATE_GALLERY=1 pytest -m "" -k "gallery or analyst" tests/examples/test_gallery.py tests/test_ui_forms.py'
)


@dataclass(frozen=True)
class Entry:
    """A job of the gallery."""

    example: Example
    """The job, and what it needs around it."""
    status: int
    """The exit status of its run."""
    sections: tuple[str, ...]
    """The sections of the report that the page shows."""


def _calculator(folder: Path) -> None:
    make(folder / "examples" / "modules" / "calculator")


FORMS = "examples/forms"
ENTRIES = (
    Entry(Example("analyze_files", f"{FORMS}/analyze_files.yaml"), 0, ("Result", "Ledger")),
    Entry(
        Example("research_topics", f"{FORMS}/research_topics.yaml"),
        3,
        ("Result", "What could not be done", "Not to be taken on trust", "Ledger"),
    ),
    Entry(Example("content_variants", f"{FORMS}/content_variants.yaml"), 0, ("For an A/B tool", "Ledger")),
    Entry(
        Example("build_modules", "examples/modules/build_modules.yaml", prepare=_calculator),
        0,
        ("What became of each change", "What the acceptance command said", "Ledger"),
    ),
    Entry(
        Example("test_matrix", "examples/matrix/job.yaml", prepare=commit),
        1,
        ("Tests and environments", "Ledger"),
    ),
)
LOCAL = {"analyze_files", "research_topics", "content_variants"}
"""The entries that ask the local model."""


class Recording:
    """What the local model answered to the requests of an example."""

    def __init__(self, file: Path) -> None:
        """Read what is recorded.

        Args:
            file: Where it is.
        """
        self.file = file
        self.answers: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.used = set[str]()
        self.model = serve(SMOLLM2) if UPDATE else None

    def behave(self, request: dict[str, Any], n: int) -> Behaviour:
        """Answer as recorded; what isn't recorded is asked for in an update, and else an error."""
        told = json.dumps([request["messages"], request.get("response_format")], sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.used.add(key)
        if key not in self.answers and self.model:
            reply = httpx.post(
                f"{self.model.api_base}/chat/completions",
                json={name: value for name, value in request.items() if not name.startswith("stream")},
                headers={"Authorization": f"Bearer {self.model.api_key}"},
                timeout=300,
            )
            answer = reply.raise_for_status().json()
            self.answers[key] = {
                "content": answer["choices"][0]["message"]["content"],
                "finish_reason": answer["choices"][0]["finish_reason"],
                "prompt_tokens": answer["usage"]["prompt_tokens"],
                "completion_tokens": answer["usage"]["completion_tokens"],
            }
        if key not in self.answers:
            return failure(400, f"This request is not recorded; run: {UPDATE_COMMAND}")
        return Behaviour(**self.answers[key])

    def close(self) -> None:
        """Keep the answers that were used, in an update; else each of them has to have been."""
        if UPDATE:
            self.answers = {key: self.answers[key] for key in sorted(self.used)}
            self.file.write_text(json.dumps(self.answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        assert self.used == self.answers.keys(), f"Other requests than recorded; run: {UPDATE_COMMAND}"


def section_of(job: str) -> list[Fence]:
    """Return the blocks of the page that belong to a job: from those before its file to its report."""
    found: list[Fence] = []
    for fence in fences(PAGE):
        found.append(fence)
        if fence.title == "report/report.md":
            if any(each.title == job for each in found):
                return found
            found = []
    pytest.fail(f"The page doesn't show {job}.")


def replace(fence: Fence, text: str) -> None:
    """Write another text into a block of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    start = fence.line - 1
    lines[start : start + len(fence.text.splitlines())] = [text]
    PAGE.write_text("".join(lines), encoding="utf-8")


def show(job: str, title: str, text: str) -> None:
    """Check that the page shows a text under a title, or write it there."""
    (fence,) = (each for each in section_of(job) if each.title == title)
    if UPDATE:
        replace(fence, steady(text))
    else:
        assert fence.text == steady(text), f"{fence}: not what the run gives; run: {UPDATE_COMMAND}"


def steady(text: str) -> str:
    """Return a text with dots in place of its durations."""
    return re.sub(r"\b\d+(\.\d+)? s\b", "… s", text)


def extract(report: str, sections: Sequence[str]) -> str:
    """Return the start of a report and some of its sections, with a sign for each place where some are left out."""
    # The page of each flow explains its rules, which end the report.
    start, *parts = report.partition("\n<details>")[0].rstrip("\n").split("\n## ")
    named = {part.partition("\n")[0]: part for part in parts}
    assert named.keys() >= {*sections}, [*named]
    shown = [start.rstrip("\n")]
    for name, part in named.items():
        if name in sections:
            shown.append(f"## {part.rstrip()}")
        elif shown[-1] != LEFT_OUT:
            shown.append(LEFT_OUT)
    return "\n\n".join(shown) + "\n"


def job_text(file: Path) -> str:
    """Return the text of a job file without the comment that it opens with."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next(at for at, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    return "".join(lines[start:])


@pytest.mark.parametrize("fence", [pytest.param(each, id=str(each)) for each in fences(PAGE) if "/" in each.title])
def test_an_extract_of_a_file_is_in_it(fence: Fence) -> None:
    """A job file is shown whole, but for the comment at its top; of any other file the page shows whole lines."""
    if fence.title.startswith("report/"):
        return
    file = ROOT / fence.title
    if fence.language == "yaml":
        if UPDATE:
            show(fence.title, fence.title, job_text(file))
        else:
            assert fence.text == job_text(file)
        return
    text = file.read_text(encoding="utf-8")
    parts = fence.text.split(f"{LEFT_OUT}\n")
    assert all(f"\n{part.strip()}\n" in f"\n{text}\n" for part in parts if part.strip())


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(each, id=each.example.name, marks=[pytest.mark.browser] * (each.example.name == "test_matrix"))
        for each in ENTRIES
    ],
)
def test_a_run_gives_what_the_page_shows(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the page prints what the page says, and its report has the extract; one is shown as a picture."""
    example = entry.example
    if example.name in LOCAL and not has_smollm2():
        pytest.skip("needs prefect-dispatch[local]")
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, value in {**AUTHOR, **PLAIN_GIT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    example.copy(folder)
    monkeypatch.chdir(folder)
    command = ["run", example.job, "--out", "report"]
    assert f"prefect-dispatch {shlex.join(command)}\n" in {each.text for each in section_of(example.job)}
    capsys.readouterr()
    if example.name in LOCAL:
        recording = Recording(RECORDED / f"{example.name}.json")
        with openai_server(recording.behave) as server:
            endpoint = ModelEndpoint(server.url, "none-needed")
            # In place of the server that the process would start for the model.
            monkeypatch.setitem(local_model._servers, model_file(SMOLLM2), (None, endpoint))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- no public way to replace it
            status = main(command)
        recording.close()
    else:
        status = main(command)
    assert status == entry.status
    show(example.job, "output", capsys.readouterr().out)
    report = (folder / "report" / "report.md").read_text(encoding="utf-8")
    show(example.job, "report/report.md", extract(report, entry.sections))
    if example.name == "test_matrix":
        show_report_page(folder / "report" / "report.html")


def show_report_page(file: Path) -> None:
    """Check that the page of the matrix's report shows what its two pictures show, or take these."""
    with chromium() as browser, browser.new_context() as context:
        page = context.new_page()
        page.goto(file.as_uri())
        expect(page.get_by_role("heading", name="To look at")).to_be_visible()
        expect(page.get_by_text("4 of 6 required environments did not pass").first).to_be_visible()
        check_pictures(page, "report")
