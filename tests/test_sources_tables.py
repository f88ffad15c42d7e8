"""Items from the rows of JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.item import Item
from prefect_dispatch.sources import read_items, source
from prefect_dispatch.sources.tabular import Csv, JsonLines
from tests.test_sources import HOSTILE, json_values

if TYPE_CHECKING:
    from pydantic import JsonValue

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


def jsonl(root: Path, data: str | bytes, **fields: str) -> list[Item]:
    """Return the items of a JSON Lines file."""
    (root / "a.jsonl").write_bytes(data.encode() if isinstance(data, str) else data)
    return list(JsonLines(jsonl="a.jsonl", **fields).stream(root))


def table(root: Path, data: str | bytes, **fields: str) -> list[Item]:
    """Return the items of a CSV file."""
    (root / "a.csv").write_bytes(data.encode() if isinstance(data, str) else data)
    return list(Csv(csv="a.csv", **fields).stream(root))


def test_jsonl_rows_are_items(tmp_path: Path) -> None:
    """The row is the value, its key column kept in it; key and priority come from columns."""
    items = jsonl(tmp_path, '{"id": 7, "p": 2, "t": "é"}\n\n  \n{"id": "b", "t": null}', key="id", priority="p")
    assert items == [
        Item(key="7", value={"id": 7, "p": 2, "t": "é"}, priority=2),
        Item(key="b", value={"id": "b", "t": None}),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_jsonl_encodings(encoding: str, end: str, tmp_path: Path) -> None:
    """UTF-8, or as a byte order mark says; any line ends."""
    data = f'{{"a": "naïve 🙂"}}{end}{{"a": "\u2028"}}{end}'.encode(encoding)
    assert [item.value for item in jsonl(tmp_path, data)] == [{"a": "naïve 🙂"}, {"a": "\u2028"}]


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        pytest.param('{"a": 1}\n\n{"a": ', {}, "line 3 is not JSON: EOF while parsing", id="cut-off"),
        pytest.param('{"a": 1} {"a": 2}', {}, "line 1 is not JSON: trailing characters column 10.", id="two-in-a-line"),
        pytest.param('{"a": NaN}', {}, "line 1 is not JSON", id="nan"),
        pytest.param('{"a": -Infinity}', {}, "line 1 is not JSON", id="infinity"),
        pytest.param('{"a": 1e999}', {}, "line 1: the value is not JSON: Out of range float", id="too-large-a-number"),
        pytest.param('{"a": "\\ud800"}', {}, "line 1 is not JSON", id="surrogate"),
        pytest.param('{"a": ' + "[" * 100_000, {}, "line 1 is not JSON: recursion limit", id="deep"),
        pytest.param(
            '{"a": 1}\n{"a": {"b": 1, "b": 2}}', {}, "line 2 can't be taken: the key 'b' stands twice", id="twice"
        ),
        pytest.param("[1]", {}, "line 1 is not a JSON object but list", id="list"),
        pytest.param('"a"', {}, "line 1 is not a JSON object but str", id="text"),
        pytest.param('{"id": 1}\n{"idd": 2}', {"key": "id"}, "line 2: no column 'id'; did you mean", id="no-key"),
        pytest.param('{"id": null}', {"key": "id"}, "line 1: the key must be text that isn't empty", id="null-key"),
        pytest.param('{"id": ""}', {"key": "id"}, "line 1: the key must be text that isn't empty", id="empty-key"),
        pytest.param('{"id": 1.5}', {"key": "id"}, "or a whole number, not 1.5", id="fractional-key"),
        pytest.param(
            '{"p": "x"}', {"priority": "p"}, "line 1: priority: Input should be a valid integer", id="priority"
        ),
        pytest.param('{"p": 1.5}', {"priority": "p"}, "line 1: priority: Input should be a valid", id="priority-1.5"),
        pytest.param(b'{"a": 1}\n{"a": "\xe9"}', {}, "is not UTF-8, as JSON has to be; convert it.", id="latin-1"),
    ],
)
def test_a_bad_line_is_named(data: str | bytes, fields: dict[str, str], message: str, tmp_path: Path) -> None:
    """Nothing is skipped or mended."""
    with pytest.raises(SourceError) as caught:
        jsonl(tmp_path, data, **fields)
    assert message in str(caught.value)
    assert str(tmp_path / "a.jsonl") in str(caught.value)


def test_ten_thousand_lines_are_streamed(tmp_path: Path) -> None:
    """The first item is there before the bad last line is read; all of them keep their order."""
    lines = [json.dumps({"id": number, "text": "x" * 100}) for number in range(10_000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    items = JsonLines(jsonl="a.jsonl", key="id").stream(tmp_path)
    assert next(items).key == "0"
    (tmp_path / "a.jsonl").write_text("\n".join(reversed(lines)))
    every = read_items(JsonLines(jsonl="a.jsonl", key="id"), tmp_path)
    assert [item.key for item in every] == [str(number) for number in range(10_000)]


@pytest.mark.parametrize("value", [pytest.param(value, id=str(number)) for number, value in enumerate(HOSTILE)])
def test_hostile_rows_stay_data(value: JsonValue, tmp_path: Path) -> None:
    """Templates, commands and class names come out as they went in, in both formats."""
    assert jsonl(tmp_path, json.dumps({"v": value}))[0].value == {"v": value}
    out = io.StringIO()
    csv.writer(out).writerows([["v"], [json.dumps(value)]])
    assert table(tmp_path, out.getvalue())[0].value == {"v": json.dumps(value)}


@pytest.mark.slow
@given(rows=st.lists(st.dictionaries(text, json_values, max_size=3), max_size=4))
def test_jsonl_comes_back(rows: list[dict[str, JsonValue]]) -> None:
    """Whatever JSON is written, the same JSON is read."""
    with TemporaryDirectory() as folder:
        lines = "\n".join(json.dumps(row) for row in rows)
        assert [item.value for item in jsonl(Path(folder), lines)] == rows


@given(data=st.data(), names=st.lists(text, min_size=2, max_size=3, unique=True), delimiter=st.sampled_from(",;|\t"))
def test_csv_comes_back(data: st.DataObject, names: list[str], delimiter: str) -> None:
    """Whatever text is written, quotes, delimiters and line ends included, is read."""
    rows = data.draw(st.lists(st.lists(text, min_size=len(names), max_size=len(names)), max_size=3))
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([names, *rows])
    with TemporaryDirectory() as folder:
        items = table(Path(folder), out.getvalue().encode("utf-8-sig"), delimiter=delimiter)
    assert [item.value for item in items] == [dict(zip(names, row, strict=True)) for row in rows]


def test_csv_rows_are_items(tmp_path: Path) -> None:
    """All values are text; key and priority come from columns, an empty priority being none."""
    items = table(tmp_path, 'id,p,t\n7,2,"a, b\nc"\n\nb,,é\n', key="id", priority="p")
    assert items == [
        Item(key="7", value={"id": "7", "p": "2", "t": "a, b\nc"}, priority=2),
        Item(key="b", value={"id": "b", "p": "", "t": "é"}),
    ]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        pytest.param("a;b\né;2\n".encode(), {"delimiter": ";"}, id="semicolon"),
        pytest.param("a\tb\né\t2\n".encode(), {"delimiter": "\\t"}, id="tab-written-out"),
        pytest.param("a\tb\né\t2\n".encode(), {"delimiter": "\t"}, id="tab"),
        pytest.param("a,b\r\né,2\r\n".encode("utf-8-sig"), {}, id="utf-8-with-mark"),
        pytest.param("a,b\né,2".encode("utf-16"), {}, id="utf-16"),
        pytest.param("a,b\né,2".encode("cp1252"), {"encoding": "cp1252"}, id="cp1252"),
        pytest.param("a,b\né,2".encode("utf-8-sig"), {"encoding": "cp1252"}, id="the-mark-overrules"),
    ],
)
def test_csv_dialects(data: bytes, fields: dict[str, str], tmp_path: Path) -> None:
    """Delimiter and encoding can be stated; a byte order mark is heeded."""
    assert [item.value for item in table(tmp_path, data, **fields)] == [{"a": "é", "b": "2"}]


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        pytest.param("a,b\n1,2\n3\n", {}, "line 3 has 1 values; the header names 2.", id="short-row"),
        pytest.param("a,b\n1,2,3\n", {}, "line 2 has 3 values; the header names 2.", id="long-row"),
        pytest.param('a,b\n"x\ny",2\n\n3\n', {}, "line 5 has 1 values", id="lines-inside-quotes-count"),
        pytest.param('a,"b\nc"\n1\n', {}, "line 3 has 1 values", id="lines-inside-the-header-count"),
        pytest.param('a,b\n1,2\n3,"4', {}, "line 3 can't be read as CSV: unexpected end of data.", id="open-quote"),
        pytest.param('a\n"b"c\n', {}, "line 2 can't be read as CSV: ',' expected after '\"'.", id="stray-quote"),
        pytest.param("a\n" + "x" * 200_000, {}, "line 2 can't be read as CSV: field larger", id="huge-field"),
        pytest.param("a,b,a\n1,2,3\n", {}, "column 'a' is there twice; rename one.", id="column-twice"),
        pytest.param("id,b\n1,2\n", {"key": "idd"}, "no column 'idd'; did you mean 'id'?", id="no-key-column"),
        pytest.param("id,b\n", {"priority": "rank"}, "no column 'rank'; known are 'id', 'b'.", id="no-priority-column"),
        pytest.param("", {"key": "id"}, "has no header", id="no-header"),
        pytest.param("id,b\n,2\n", {"key": "id"}, "line 2: the key must be text that isn't empty", id="empty-key"),
        pytest.param("id,p\na,high\n", {"priority": "p"}, "line 2: priority: Input should be a valid", id="priority"),
        pytest.param(b"a\n\xe9\n", {}, "is not utf-8; set `encoding`, to cp1252 for instance.", id="latin-1"),
    ],
)
def test_a_bad_row_is_named(data: str | bytes, fields: dict[str, str], message: str, tmp_path: Path) -> None:
    """Rows aren't padded, cut or skipped."""
    with pytest.raises(SourceError) as caught:
        table(tmp_path, data, **fields)
    assert message in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)


FORMATS = [
    pytest.param("jsonl", "JSON Lines file", id="jsonl"),
    pytest.param("csv", "CSV file", id="csv"),
    pytest.param("parquet", "Parquet file", id="parquet"),
]


@pytest.mark.parametrize(("tag", "name"), FORMATS)
def test_a_file_that_is_not_there_is_named(tag: str, name: str, tmp_path: Path) -> None:
    """The message has the kind of file and its whole path."""
    with pytest.raises(SourceError) as caught:
        read_items(source({tag: "in/gone"}), tmp_path)
    assert str(caught.value) == f"{name} {str(tmp_path / 'in' / 'gone')!r} can't be read: No such file or directory."


@pytest.mark.parametrize(("tag", "name"), FORMATS[:2])
def test_a_folder_is_no_table(tag: str, name: str, tmp_path: Path) -> None:
    """A folder is told from a file; one of Parquet files is a table."""
    with pytest.raises(SourceError, match=f"{name} .* can't be read: Is a directory"):
        read_items(source({tag: "."}), tmp_path)


@pytest.mark.parametrize("data", ["", "\n\n"], ids=["nothing", "blank-lines"])
def test_a_csv_without_a_header_is_refused(data: str, tmp_path: Path) -> None:
    """Nobody can tell such a file from one that was never written; it is named."""
    (tmp_path / "a.csv").write_text(data)
    with pytest.raises(SourceError, match=r"CSV file .*a.csv' has no header: its first line is to name the columns\."):
        read_items(Csv(csv="a.csv"), tmp_path)


def test_a_table_may_be_empty(tmp_path: Path) -> None:
    """One with a header only, and JSON Lines without a line, hold no items today; a misspelt column is told even so."""
    (tmp_path / "a.csv").write_text("id,b\n")
    (tmp_path / "a.jsonl").write_text("\n")
    assert read_items(Csv(csv="a.csv", key="id"), tmp_path) == []
    assert read_items(JsonLines(jsonl="a.jsonl", key="id"), tmp_path) == []
    with pytest.raises(SourceError, match="no column 'ib'"):
        read_items(Csv(csv="a.csv", key="ib"), tmp_path)


@pytest.mark.parametrize("key", ["", "id"], ids=["named-by-content", "named-by-column"])
def test_equal_rows_are_refused_with_both_places(key: str, tmp_path: Path) -> None:
    """Two rows of one name can't be told apart in a report."""
    (tmp_path / "a.csv").write_text("id,b\nx,1\ny,2\nx,1\n")
    with pytest.raises(SourceError, match=r"Two items have the key '\w+': numbers 1 and 3 of CSV file .*a.csv'"):
        read_items(Csv(csv="a.csv", key=key), tmp_path)


def test_a_table_may_lie_anywhere(tmp_path: Path) -> None:
    """One file that is named outright may be above the job's folder, absolute, or a link."""
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "link.csv").symlink_to("../a.csv")
    for path in ("../a.csv", str(tmp_path / "a.csv"), "link.csv"):
        assert read_items(Csv(csv=path, key="a"), tmp_path / "job") == [Item(key="1", value={"a": "1"})]
