"""The merged rows as files: CSV, XLSX and Parquet, in which nothing is a formula."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from typing import TYPE_CHECKING, Any, cast

import pyarrow.parquet
import pytest
from defusedxml import ElementTree

from prefect_dispatch.cli.console import summary
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.publish import PagePlaces, page_location, write_files
from prefect_dispatch.models.ledger import Gap, Table
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting import table_files
from prefect_dispatch.reporting.output_folder import Output, parse_output
from prefect_dispatch.reporting.table_files import csv_files, render_table

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

INJECTED = '<r><t>x</t></r></is></c><c r="B2"><f>HYPERLINK("http://e.example")</f></c><c t="inlineStr"><is><r></r>'
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "\r\n=1", "＝1")  # noqa: RUF001 -- wide, as in some countries
MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


read_parquet: Any = cast("Any", pyarrow.parquet).read_table


def report(value: JsonValue = None, **more: object) -> Report:
    """Return a complete report."""
    return Report.model_validate({"status": "complete", "message": "All.", "value": value, **more})


def sheets(content: bytes) -> dict[str, list[list[tuple[str, str]]]]:
    """Return the cells of each worksheet: the type and the text of each, as the file has them."""
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        names = [
            each.get("name", "") for each in ElementTree.fromstring(book.read("xl/workbook.xml")).iter(f"{MAIN}sheet")
        ]
        found: dict[str, list[list[tuple[str, str]]]] = {}
        for number, name in enumerate(names, 1):
            text = book.read(f"xl/worksheets/sheet{number}.xml")
            assert b"<f>" not in text
            assert b"<hyperlink" not in text
            rows = ElementTree.fromstring(text).iter(f"{MAIN}row")
            found[name] = [[(cell.get("t", "n"), "".join(cell.itertext())) for cell in row] for row in rows]
    return found


def test_a_workbook_has_a_sheet_for_each_table() -> None:
    """One column for each field, typed; the other lists, the gaps and the integrator's tables beside it."""
    told = report(
        {
            "answers": [
                {"brief": "b", "item": "a", "value": {"year": 1843, "free": True, "share": 0.5, "tags": ["x"]}},
                {"brief": "b", "item": "c", "value": {"year": 10**16, "free": None}},
            ],
            "also_reported": [{"item": "d"}],
            "gaps": [],
        },
        gaps=(Gap(brief="b", item="e", status="failed", error=Failure(kind="timeout", message="no answer")),),
        tables=(Table(name="trust", title="Trust", rows=({"who": "b"},)), Table(name="none", title="None")),
    )
    found = sheets(render_table(told, "answers.xlsx"))
    assert list(found) == ["answers", "also reported", "gaps", "trust", "none"]
    assert [text for _, text in found["answers"][0]] == ["brief", "item", "year", "free", "share", "tags"]
    assert found["answers"][1][2:] == [("n", "1843"), ("b", "1"), ("n", "0.5"), ("inlineStr", '["x"]')]
    assert found["answers"][2][2:] == [("inlineStr", str(10**16))]
    assert [text for _, text in found["gaps"][1]] == ["b", "e", "failed", "timeout", "no answer"]


@pytest.mark.parametrize("text", [*FORMULAS, INJECTED, '<r>"</r>', "\x00\x1b_x0041_\ud800\uffff"])
def test_nothing_in_a_workbook_is_a_formula(text: str) -> None:
    """Whatever an answer, or the name of a field, holds: it is a text, and the file can be read."""
    (rows,) = sheets(render_table(report([{"item": text, text: 1}]), "rows.xlsx")).values()
    assert [kind for kind, _ in rows[0]] == ["inlineStr", "inlineStr"]
    kind, cell = rows[1][0]
    assert kind == "inlineStr"
    assert len(rows[1]) == 2
    if text in FORMULAS or "<r>" in text:
        assert cell.replace("_x000D_", "").strip() == text.strip()


def test_a_text_that_looks_like_a_formula_stays_one_when_it_is_edited() -> None:
    """Its cell has the mark that a leading apostrophe sets."""
    content = render_table(report([{"a": "=1+1", "b": "fine"}]), "rows.xlsx")
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        styles = book.read("xl/styles.xml").decode()
        cells = re.findall(r'<c r="([AB]2)"(?: s="(\d)")?', book.read("xl/worksheets/sheet1.xml").decode())
    quoted = [
        str(number) for number, xf in enumerate(re.findall(r"<xf [^>]*xfId[^>]*>", styles)) if "quotePrefix" in xf
    ]
    assert [style in quoted for _, style in cells] == [True, False]


def test_what_a_workbook_cannot_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, columns and characters beyond the limits of a worksheet, on a sheet of its own."""
    monkeypatch.setattr(table_files, "MAX_SHEET_ROWS", 3)
    monkeypatch.setattr(table_files, "MAX_SHEET_COLUMNS", 2)
    rows: JsonValue = [{"a": "x" * 40_000, "b": n, "c": n} for n in range(4)]
    found = sheets(render_table(report({"left_out": rows}), "rows.xlsx"))
    assert list(found) == ["left out", "left out 2"]
    assert [len(row) for row in found["left out"]] == [2, 2, 2, 2]
    assert len(found["left out"][1][0][1]) == 32_767
    told = [[text for _, text in row] for row in found["left out 2"]]
    assert told[1:] == [
        ["left out", "1 row"],
        ["left out", "1 column"],
        ["left out", "the rest of 3 texts beyond 32767 characters"],
    ]


def test_names_of_sheets_are_ones_that_excel_takes() -> None:
    """Short, without what it refuses, each another one."""
    value: JsonValue = {name: [{"a": 1}] for name in ("History", "a/b", "A*b", "'", "x" * 40, "x" * 50)}
    assert list(sheets(render_table(report(value), "rows.xlsx"))) == [
        "History 2",
        "a b",
        "A b 2",
        "rows",
        "x" * 30 + "…",
        "x" * 25 + "… 2",
    ]


def test_parquet_keeps_types(tmp_path: Path) -> None:
    """Numbers, booleans and texts as such; lists as JSON."""
    rows: JsonValue = [{"n": 1, "x": 0.5, "ok": True, "t": "=1"}, {"n": None, "x": 1, "ok": None, "t": None, "l": [1]}]
    (tmp_path / "rows.parquet").write_bytes(render_table(report({"records": rows}), "rows.parquet"))
    table = read_parquet(tmp_path / "rows.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "double", "bool", "string", "string"]
    assert table.to_pylist()[1] == {"n": None, "x": 1.0, "ok": None, "t": None, "l": "[1]"}


def test_a_finding_is_exported_as_its_answers() -> None:
    """Where the merged value has no rows, the table has the answers, and is empty where there are none."""
    outcomes = (
        Outcome(brief="b", item="a", status="succeeded", value={"year": 1843}),
        Outcome(brief="b", item="c", status="failed", error=Failure(kind="timeout", message="no answer")),
    )
    assert (
        render_table(report("A finding.", outcomes=outcomes), "a.csv").decode()
        == '"brief","item","year"\n"b","a",1843\n'
    )
    assert render_table(report(), "a.CSV").decode() == "\n"
    assert sheets(render_table(report(), "a.xlsx")) == {"answers": []}
    assert read_parquet(io.BytesIO(render_table(report(), "a.parquet"))).num_rows == 0


def test_each_list_of_the_value_is_a_csv() -> None:
    """Under the name of its field; a table of the integrator with that name counts."""
    trust = Table(name="trust", title="Trust", rows=({"who": "b"},))
    value: JsonValue = {"Also reported!": [{"a": 1}], "trust": [{"b": 1}], "???": [{"c": 1}], "gaps": [{"brief": "b"}]}
    assert {name: rows() for name, rows in csv_files(value, [trust]).items()} == {
        "also-reported.csv": [{"a": 1}],
        "trust.csv": [{"who": "b"}],
        "value.csv": [{"c": 1}],
    }
    assert [*csv_files(value, [trust], {"trust.csv"})] == ["also-reported.csv", "value.csv"]


def test_files_of_the_lists_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    """A requested table is written beside the report, and takes the place of a CSV of its name."""
    records: JsonValue = {"records": [{"name": "=1+1"}], "gaps": []}
    written = write_files(report(records), Output(tmp_path, "people.xlsx"))
    assert {*written} == {str(path) for path in tmp_path.iterdir()}
    assert (tmp_path / "records.csv").read_text() == '"name"\n"\'=1+1"\n'
    assert list(sheets((tmp_path / "people.xlsx").read_bytes())) == ["records"]
    written = write_files(report({"answers": [{"item": "a", "value": {"n": 1}}]}), Output(tmp_path, "answers.csv"))
    assert written.count(str(tmp_path / "answers.csv")) == 1
    assert (tmp_path / "answers.csv").read_text() == '"item","n"\n"a",1\n'
    assert not (tmp_path / "records.csv").exists()


def test_an_output_is_a_folder_or_a_table_in_it(tmp_path: Path) -> None:
    """By its suffix, unless there is a folder of that name."""
    (tmp_path / "old.csv").mkdir()
    assert parse_output("old.csv", tmp_path) == (tmp_path / "old.csv", "")
    assert parse_output(str(tmp_path / "2026.12")) == (tmp_path / "2026.12", "")
    assert parse_output("report/a.XLSX", tmp_path) == (tmp_path / "report", "a.XLSX")
    assert parse_output("new/a.parquet", tmp_path).ensure().target == str(tmp_path / "new" / "a.parquet")
    assert not any((tmp_path / "new").iterdir())
    assert parse_output("s3://lake/out/") == ("s3://lake/out", "")
    assert parse_output("s3://lake/2026.12/b.csv", tmp_path) == ("s3://lake/2026.12", "b.csv")
    assert parse_output(f"{tmp_path.as_uri()}/a%20b") == (tmp_path / "a b", "")
    assert parse_output("s3://lake/out/b.csv").target == "s3://lake/out/b.csv"


@pytest.mark.parametrize("out", ["://lake", "s3://[lake", "s3://me:secret@lake/out", "s3://lake/out?v=1", "a\0b"])
def test_an_output_that_is_no_folder_is_refused(out: str) -> None:
    """Before anything is asked; a password would be stored with the job."""
    with pytest.raises(JobError, match=r"^out: ") as refused:
        parse_output(out)
    assert "secret" not in str(refused.value)


def test_a_missing_library_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(JobError, match=r"out: a \.xlsx file needs xlsxwriter: pip install 'prefect-dispatch\[xlsx\]'"):
        parse_output("report/a.xlsx")


def test_a_report_in_prefect_links_to_its_page_where_a_web_server_serves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the absolute path of the page; an address that could end the link is refused."""
    page = PagePlaces("/srv/a (b)/report.html")
    assert "open it there" in page_location(page)
    monkeypatch.setenv("PREFECT_DISPATCH_REPORTS_URL", "https://reports.example/x/")
    link = "[Open the report page](https://reports.example/x/srv/a%20%28b%29/report.html)"
    assert page_location(page) == link
    for address in ("javascript:alert(1)", "https://a.example/) <img>", "https://user:secret@a.example"):
        monkeypatch.setenv("PREFECT_DISPATCH_REPORTS_URL", address)
        with pytest.raises(JobError, match="PREFECT_DISPATCH_REPORTS_URL"):
            page_location(page)


def test_a_summary_names_the_requested_table_first(tmp_path: Path) -> None:
    """Then the other files, a CSV of that name only once."""
    told = report({"answers": [{"item": "a"}]})
    assert f"Report: {tmp_path / 'answers.csv'}, {tmp_path / 'report.md'}, " in summary(
        told, Output(tmp_path, "answers.csv")
    )
    assert summary(told, Output(tmp_path, "answers.csv")).count("answers.csv") == 1
    assert summary(told, Output(tmp_path)).endswith("answers.csv")
