"""The folder of a report: all of it, and nothing of an earlier one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from prefect_dispatch.flows.publish import PAGE, PagePlaces, page_location, publish_page, write_files, write_page
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Document, FieldRow, Ref, Table
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.models.report import LONG_DOCUMENT, LONG_WINNER, Report
from prefect_dispatch.reporting.html.document import GENERATOR
from prefect_dispatch.reporting.kept_pages import PageAddress, save_address
from prefect_dispatch.reporting.output_folder import Output

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

OUTCOME = Outcome(brief="b", item="a", status="succeeded", value="x")


def report(*names: str, asked: bool = False) -> Report:
    """Return a report with tables of some names."""
    tables = tuple(Table(name=name, title=name, rows=({"who": "=1+1", "n": -1},)) for name in names)
    return Report(
        status="complete", message="All.", tables=tables, outcomes=(OUTCOME,), asked=(OUTCOME,) if asked else ()
    )


def names(folder: Path) -> list[str]:
    """Return what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_tables_and_questions_are_files_of_their_own(tmp_path: Path) -> None:
    """A CSV for each table, in which no text is a formula; the integrator's own questions, a line each."""
    written = write_files(report("trust", "links", asked=True), Output(tmp_path))
    assert sorted(written) == [str(tmp_path / name) for name in names(tmp_path)]
    assert names(tmp_path) == [
        "links.csv",
        "outcomes.jsonl",
        "questions.jsonl",
        "report.json",
        "report.md",
        "trust.csv",
    ]
    assert (tmp_path / "trust.csv").read_text() == '"who","n"\n"\'=1+1",-1\n'
    assert json.loads((tmp_path / "questions.jsonl").read_text())["value"] == "x"


def test_documents_are_files_of_their_own(tmp_path: Path) -> None:
    """Each under its name, and gone when a later run has none."""
    document = Document(name="review.md", title="Review", text="# Review\n")
    write_files(report().model_copy(update={"documents": (document,)}), Output(tmp_path))
    assert (tmp_path / "review.md").read_text() == "# Review\n"
    write_files(report(), Output(tmp_path))
    assert names(tmp_path) == ["outcomes.jsonl", "report.json", "report.md"]


@pytest.mark.parametrize("name", ["report.json", "questions.jsonl", "trust.csv", "../x", "a/b", ".git", "A.md", ""])
def test_a_document_has_a_name_of_its_own(name: str) -> None:
    """It takes the place of no other file, in no other folder."""
    with pytest.raises(ValidationError):
        Document(name=name, title="x", text="x")


def test_files_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    """What the earlier run wrote is gone; what somebody else put there is not."""
    write_files(report("trust", "links", asked=True), Output(tmp_path))
    (tmp_path / "mine.csv").write_text("1")
    write_files(report("links"), Output(tmp_path))
    assert names(tmp_path) == ["links.csv", "mine.csv", "outcomes.jsonl", "report.json", "report.md"]


def test_what_an_earlier_report_names_but_no_run_wrote_stays(tmp_path: Path) -> None:
    """A report may be anybody's: a file is removed only if it holds what a run would have written there."""
    write_files(report("trust", "links", asked=True), Output(tmp_path))
    for name in ("trust.csv", "questions.jsonl"):
        (tmp_path / name).write_text("mine\n")
    (tmp_path / "links.csv").write_bytes(b"\xff")
    write_files(report(), Output(tmp_path))
    assert (tmp_path / "trust.csv").read_text() == (tmp_path / "questions.jsonl").read_text() == "mine\n"
    assert (tmp_path / "links.csv").read_bytes() == b"\xff"


@pytest.mark.parametrize(
    "told",
    [
        pytest.param("{}", id="no-report"),
        pytest.param("[", id="no-json"),
        pytest.param('{"status": "failed", "message": "", "tables": [{"name": "../mine", "title": ""}]}', id="name"),
        pytest.param('{"status": "failed", "message": "", "tables": [{"name": "other", "title": ""}]}', id="forged"),
    ],
)
def test_nothing_else_is_removed(told: str, tmp_path: Path) -> None:
    """A report that isn't ours, or names what no table is called, leads to no file of anybody's."""
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "mine.csv").write_text("1")
    (folder / "other.csv").write_text("1")
    (folder / "questions.jsonl").write_text("")
    (folder / "report.json").write_text(told)
    write_files(report(), Output(folder))
    assert (tmp_path / "mine.csv").exists()
    assert (folder / "other.csv").exists()
    assert (folder / "questions.jsonl").exists()


def test_a_page_that_cannot_be_made_leaves_the_rest(tmp_path: Path) -> None:
    """The message says why; the page of an earlier run doesn't stay for this one's, a file of somebody's does."""
    write_files(report(), Output(tmp_path))
    assert not write_page(report(), Output(tmp_path), (), ())
    assert "report.html" in names(tmp_path)
    brief, item = Brief(name="b", instructions="Read {title}."), Item(key="a", value="no title")
    told = write_page(report(), Output(tmp_path), [brief], [item])
    assert told.startswith("report.html was not written; the other files are. BriefError: ")
    assert names(tmp_path) == ["outcomes.jsonl", "report.json", "report.md"]
    (tmp_path / "report.html").write_text("mine")
    assert write_page(report(), Output(tmp_path), [brief], [item])
    assert (tmp_path / "report.html").read_text() == "mine"


def test_what_is_long_stands_in_the_report_once(tmp_path: Path) -> None:
    """A long document is in its file, a long winner in the value; read again, the report has its winners."""
    many: list[JsonValue] = [*range(LONG_WINNER + 1)]
    few: list[JsonValue] = [1, 2]
    document = Document(name="junit.xml", title="Tests", text="é" * (LONG_DOCUMENT + 1))
    source = (Ref(brief="b", item="a"),)
    rows = (
        FieldRow(path="/m~1n/0", winner=many, rule="own", sources=source),
        FieldRow(path="/few", winner=few, rule="own", sources=source),
    )
    value: JsonValue = {"m/n": [many], "few": few}
    given = Report(status="complete", message="All.", value=value, fields=rows, documents=(document,))
    write_files(given, Output(tmp_path))
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    told = json.loads(text)
    assert [(row["winner"], row.get("winner_at")) for row in told["fields"]] == [(None, "/m~1n/0"), (few, None)]
    assert (tmp_path / "junit.xml").read_text(encoding="utf-8") == document.text
    [short] = told["documents"]
    assert (short["text"], short["bytes"]) == ("", 2 * len(document.text))
    back = Report.model_validate_json(text)
    assert (back.fields, back.value) == (given.fields, given.value)
    assert [each.name for each in back.documents] == ["junit.xml"]
    with pytest.raises(ValidationError, match="the value has nothing at '/m~1n/0'"):
        Report.model_validate({**told, "value": None})
    (tmp_path / "junit.xml").write_text("mine", encoding="utf-8")
    write_files(report(), Output(tmp_path))
    assert (tmp_path / "junit.xml").exists()  # it is no longer what the run wrote
    write_files(given, Output(tmp_path))
    write_files(report(), Output(tmp_path))
    assert not (tmp_path / "junit.xml").exists()
    write_files(given, Output(tmp_path))
    (tmp_path / "junit.xml").unlink()
    write_files(report(), Output(tmp_path))


def test_the_page_of_a_deployments_run_is_kept_for_the_page_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an output folder and without one; for no other run, and nowhere until a server has been set up."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    out = tmp_path / "out"
    out.mkdir()
    assert publish_page(report(), None, (), (), is_deployed=True) == (PagePlaces(), [])
    address = PageAddress(port=4711, secret="ab" * 32)
    save_address(address)
    assert publish_page(report(), Output(out), (), (), is_deployed=False) == (PagePlaces(str(out / PAGE)), [])
    for folder in (None, Output(out)):
        places, lacking = publish_page(report(), folder, (), (), is_deployed=True)
        kept = tmp_path / "state" / "reports" / "pages" / address.page_id("None")
        assert GENERATOR in kept.read_text("utf-8")
        assert places == (str(out / PAGE) if folder else "", f"http://127.0.0.1:4711/{kept.name}/report.html")
        assert not lacking
        told = page_location(places)
        assert told.startswith(f"[Open the report page]({places.link}). It opens on the machine ")
        assert (str(out / PAGE) in told) is (folder is not None)
    assert page_location(PagePlaces()) == ""


def test_a_page_that_can_not_be_kept_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is given, and the page in the output folder is named; an unusable state folder has no server."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    save_address(PageAddress(port=4711, secret="ab" * 32))
    (tmp_path / "state" / "reports" / "pages").write_text("a file", encoding="utf-8")
    places, lacking = publish_page(report(), Output(tmp_path), (), (), is_deployed=True)
    assert places == (str(tmp_path / PAGE), "")
    assert len(lacking) == 1
    assert lacking[0].startswith("The page server has no report.html of this run. ")
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state" / "reports" / "pages"))
    assert publish_page(report(), Output(tmp_path), (), (), is_deployed=True) == (
        (str(tmp_path / PAGE), ""),
        [],
    )
