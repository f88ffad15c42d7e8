"""Lists of a merged value as tables and as files: a CSV each, and on request one file as CSV, XLSX or Parquet."""

from __future__ import annotations

import io
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.reporting.tables import build_series, infer_type
from prefect_dispatch.security.escaping import column_names, count_noun, shorten, to_safe_csv, value_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Table
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.tables import Row

LIBRARIES = {".csv": "", ".xlsx": "xlsxwriter", ".parquet": "pyarrow"}
"""The suffixes of table files, each with the library that writes it, if it needs one."""
MAX_SHEET_ROWS = 1_048_575
"""Most rows of a worksheet below its header."""
MAX_SHEET_COLUMNS = 16_384
"""Most columns of a worksheet."""
MAX_SHEET_CELL = 32_767
"""Most characters of a cell of a worksheet."""
MAX_SHEET_INTEGER = 10**15
"""The largest integer up to which a worksheet keeps every digit."""
MAX_SHEET_NAME = 31
"""Most characters of the name of a worksheet."""
MAX_WIDTH = 60
"""Most characters of the width of a column."""


def spread_fields(row: Row, column: str, taken: Collection[str]) -> Row:
    """Return a row in which a column that holds an object is replaced by one column for each field of the object.

    Args:
        row: The row.
        column: The name of the column; any other value of it stays.
        taken: The names of the other columns; a field of such a name becomes `column.name`.

    Example:
        >>> spread_fields({"item": "a", "answer": {"year": 1843, "item": "note"}, "tokens": 7}, "answer", {"item"})
        {'item': 'a', 'year': 1843, 'answer.item': 'note', 'tokens': 7}
    """
    fields = row.get(column)
    if not isinstance(fields, dict):
        return row
    spread: Row = {}
    for name, value in row.items():
        spread |= (
            {f"{column}.{each}" if each in taken else each: part for each, part in fields.items()}
            if name == column
            else {name: value}
        )
    return spread


def value_tables(value: JsonValue) -> dict[str, list[Row]]:
    """Return the lists of objects in a merged value as tables, each under the name of its field, without `gaps`.

    An entry's `value` that is an object becomes one column for each of its fields. Where each answer to a brief is a
    list of records, as a list or as the only field of an object, each record has a row, and an answer without any
    an empty one.

    Example:
        >>> entry = {"item": "a", "value": {"records": [{"year": 1843}, {"year": 1936}]}}
        >>> value_tables({"answers": [entry], "gaps": []})
        {'answers': [{'item': 'a', 'year': 1843}, {'item': 'a', 'year': 1936}]}
    """
    return {name: _expand_entries(rows) for name, rows in _lists_of_objects(value).items()}


def _lists_of_objects(value: JsonValue) -> dict[str, list[Row]]:
    """Return the lists of objects in a merged value as they are, by the name of their field, without `gaps`."""
    lists = value if isinstance(value, dict) else {"value": value}
    return {name: rows for name, part in lists.items() if name != "gaps" and (rows := _as_rows(part))}


def answer_rows(report: Report) -> list[Row]:
    """Return the answers of a report as rows, one column for each field; see `value_tables`."""
    answered = [each for each in report.outcomes if each.status == "succeeded"]
    entries: list[JsonValue] = [{"brief": each.brief, "item": each.item, "value": each.value} for each in answered]
    return value_tables(entries).get("value", [])


def _as_rows(value: JsonValue) -> list[Row]:
    """Return a list of objects; empty for any other value."""
    rows = value if isinstance(value, list) else []
    return cast("list[Row]", rows) if all(isinstance(row, dict) for row in rows) else []


def _expand_entries(entries: list[Row]) -> list[Row]:
    """Return the entries of a list as rows, with columns for the fields of each entry's `value`."""
    taken = {name for entry in entries for name in entry} - {"value"}
    answers: dict[str, list[list[JsonValue] | None]] = {}
    for entry in entries:
        answers.setdefault(str(entry.get("brief")), []).append(_records_of(entry.get("value")))
    in_records = {brief for brief, lists in answers.items() if any(lists) and None not in lists}
    rows: list[Row] = []
    for entry in entries:
        records = _records_of(entry.get("value")) if str(entry.get("brief")) in in_records else None
        parts: list[JsonValue] = [entry.get("value")] if records is None else records or [{}]
        rows += [
            spread_fields({**entry, "value": part} if "value" in entry else entry, "value", taken) for part in parts
        ]
    return rows


def _records_of(value: JsonValue) -> list[JsonValue] | None:
    """Return the records that an answer consists of; None if it is anything else."""
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, list) and (not value or _as_rows(value)) else None


def csv_files(
    value: JsonValue, tables: Sequence[Table], left_out: Collection[str] = ()
) -> dict[str, Callable[[], list[Row]]]:
    """Return the CSV files of a report: a function that returns the rows of each, by its name.

    There is one for each of the integrator's tables, and of the value's lists.

    Args:
        value: The merged value.
        tables: The tables of the integrator.
        left_out: Names of files that are left out.

    Example:
        >>> {name: rows() for name, rows in csv_files({"records": [{"year": 1843}], "gaps": []}, ()).items()}
        {'records.csv': [{'year': 1843}]}
    """
    files: dict[str, Callable[[], list[Row]]] = {
        f"{_to_file_name(name)}.csv": partial(_expand_entries, rows) for name, rows in _lists_of_objects(value).items()
    }
    files |= {f"{table.name}.csv": partial(list, table.rows) for table in tables}
    return {name: rows for name, rows in files.items() if name not in left_out}


def render_table(report: Report, name: str) -> bytes:
    """Return the content of the table file of a report: the first list of its value, else its answers.

    A workbook has each list on a sheet of its own, and the gaps and the integrator's tables behind them.

    Args:
        report: The report.
        name: The name of the file, with one of the suffixes of `LIBRARIES`.
    """
    lists = value_tables(report.value) or {"answers": answer_rows(report)}
    rows = next(iter(lists.values()))
    suffix = Path(name).suffix.lower()
    if suffix == ".csv":
        return to_safe_csv(rows).encode()
    if suffix == ".parquet":
        return _render_parquet(rows)
    gaps: list[Row] = [
        {"brief": gap.brief, "item": gap.item, "status": gap.status, "kind": gap.error.kind, "why": gap.error.message}
        for gap in report.gaps
    ]
    sheets = {name.replace("_", " "): rows for name, rows in lists.items()} | ({"gaps": gaps} if gaps else {})
    return _render_workbook(sheets | {table.name: list(table.rows) for table in report.tables})


def _to_file_name(name: str) -> str:
    """Return the name of a list as that of a file: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_WIDTH] or "value"


def _render_parquet(rows: Sequence[Row]) -> bytes:
    parquet: Any = import_module("pyarrow.parquet")  # optional, slow to import, and partly without types
    pyarrow: Any = import_module("pyarrow")
    columns = {name: infer_type([row.get(name) for row in rows]) for name in column_names(rows)}
    table = pyarrow.table({each.name: each.to_native() for each in build_series(columns, "pyarrow")})
    sink: Any = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return cast("bytes", sink.getvalue().to_pybytes())


def _render_workbook(sheets: Mapping[str, Sequence[Row]]) -> bytes:
    """Return an XLSX workbook with a worksheet for each table; no cell is a formula or a link."""
    library: Any = import_module("xlsxwriter")  # optional
    buffer = io.BytesIO()
    book: Any = library.Workbook(buffer, {"constant_memory": True})
    formats = {
        "header": book.add_format({"bold": True}),
        "text": book.add_format(),
        # The text stays one when somebody edits the cell.
        "formula": book.add_format({"quote_prefix": True}),
    }
    left_out: list[Row] = []
    names: set[str] = set()
    for title, rows in sheets.items():
        sheet = book.add_worksheet(_sheet_name(title, names))
        left_out += [{"sheet": sheet.name, "left out": each} for each in _write_sheet(sheet, rows, formats)]
    if left_out:
        _write_sheet(book.add_worksheet(_sheet_name("left out", names)), left_out, formats)
    book.close()
    return buffer.getvalue()


def _sheet_name(title: str, names: set[str]) -> str:
    """Return a name for a worksheet that differs from the names so far, and add it to them."""
    stem = re.sub(r"[^\w .-]+", " ", title).strip(" '") or "rows"
    number, name = 1, shorten(stem, MAX_SHEET_NAME)
    while name.casefold() in names or name.casefold() == "history":  # a name that Excel reserves
        number += 1
        name = f"{shorten(stem, MAX_SHEET_NAME - 5)} {number}"
    names.add(name.casefold())
    return name


def _write_sheet(sheet: Any, rows: Sequence[Row], formats: Mapping[str, Any]) -> list[str]:  # noqa: ANN401 -- untyped
    """Write rows to a worksheet; return what it can't hold, a sentence each."""
    every = column_names(rows)
    names = every[:MAX_SHEET_COLUMNS]
    widths = [len(name) for name in names]
    cut = 0
    for at, name in enumerate(names):
        sheet.write_string(0, at, _sheet_text(name), formats["header"])
    for number, row in enumerate(rows[:MAX_SHEET_ROWS], 1):
        for at, name in enumerate(names):
            value = row.get(name)
            if value is None:
                continue
            if isinstance(value, bool):
                sheet.write_boolean(number, at, value)
                continue
            if isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_SHEET_INTEGER):
                sheet.write_number(number, at, value)
                continue
            text = value_text(value)
            cut += len(text) > MAX_SHEET_CELL
            widths[at] = max(widths[at], min(len(text), MAX_WIDTH))
            kind = "formula" if text.lstrip().startswith(("=", "+", "-", "@")) else "text"
            sheet.write_string(number, at, _sheet_text(text), formats[kind])
    for at, width in enumerate(widths):
        sheet.set_column(at, at, min(width, MAX_WIDTH) + 2)
    sheet.freeze_panes(1, 0)
    if names and rows:
        sheet.autofilter(0, 0, min(len(rows), MAX_SHEET_ROWS), len(names) - 1)
    return [
        *([count_noun(len(rows) - MAX_SHEET_ROWS, "row")] if len(rows) > MAX_SHEET_ROWS else []),
        *([count_noun(len(every) - MAX_SHEET_COLUMNS, "column")] if len(every) > MAX_SHEET_COLUMNS else []),
        *([f"the rest of {count_noun(cut, 'text')} beyond {MAX_SHEET_CELL} characters"] if cut else []),
    ]


def _sheet_text(text: str) -> str:
    """Return a text for a cell of a worksheet; control characters are escaped by the library."""
    text = shorten(text.translate(_NOT_IN_XML), MAX_SHEET_CELL)
    # The library writes a text between these tags as XML of its own, without escaping: it could add a formula.
    return f" {text}" if text.startswith("<r>") else text


_NOT_IN_XML = dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd")
"""Characters that XML can't hold."""
