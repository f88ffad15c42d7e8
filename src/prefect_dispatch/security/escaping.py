"""Escaping of untrusted text for Markdown tables and paragraphs, JSON blocks, terminals and CSV.

Keys, answers and error messages may hold any text from an agent or a document. In Markdown every character that is
active in Markdown, HTML or a table becomes a character reference, and only those, since one of Prefect's two UIs shows
the references. An address gets an invisible word joiner, so that no renderer makes a link of it; `report.json` has the
exact text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

MAX_ROWS = 500
MAX_CELL = 200
MAX_VALUE = 50_000
TRUNCATION_NOTE = "… cut here; `report.json` has everything."

_HIDDEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# A citation such as [3] or [1-2, 5] is not escaped: without an address behind it, it is no link.
_ACTIVE = re.compile(r"[\\`*<|~$]|\[(?!\d[\d ,;-]{0,40}\](?![(:\[]))|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
_ADDRESS = re.compile(r"(?i)(:(?=//)|@(?=\w)|\bwww(?=\.))")
_JOINER = "\u2060"
_START = re.compile(r"^(?:[-=+#>]|\d+[.)])")
# Characters that may precede a formula in a cell; the lookbehind matches a run only at its start, in linear time.
_FORMULA = re.compile(r"(?<![;\"'\s\0-\x1f\ufeff])[;\"'\s\0-\x1f\ufeff]*(?=[=+\-@＝＋－＠])")  # noqa: RUF001 -- in some countries, wide ones, too
# Spreadsheets of some countries start a new cell after each of these, even inside a quoted text.
_CELL_SEPARATORS = frozenset(";\t\r\n")


def escape_cell(value: object) -> str:
    r"""Escape a value for a cell of a Markdown table: one line, truncated to `MAX_CELL` characters.

    Example:
        >>> escape_cell("a|b\n<img>")
        'a&#124;b &#60;img>'
    """
    flat = " ".join(strip_control_chars(value if isinstance(value, str) else str(value)).split())
    return _escape_markup(shorten(flat, MAX_CELL))


def strip_control_chars(text: str) -> str:
    r"""Return a text as one line for a terminal, without control characters.

    Example:
        >>> strip_control_chars("one\x1b[31m\ntwo")
        'one [31m two'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def replace_nul(value: JsonValue) -> JsonValue:
    r"""Replace each NUL in a JSON value by `␀`: PostgreSQL, where Prefect may store it, rejects NUL.

    Example:
        >>> replace_nul({"a\0": ["b\0", 1]})
        {'a␀': ['b␀', 1]}
    """
    if isinstance(value, str):
        return value.replace("\0", "␀")
    if isinstance(value, dict):
        return {name.replace("\0", "␀"): replace_nul(part) for name, part in value.items()}
    return [replace_nul(part) for part in value] if isinstance(value, list) else value


def escape_unprintable(name: str) -> str:
    r"""Return a name, such as that of a file, with unprintable characters written as escapes.

    Example:
        >>> print(escape_unprintable("a\nb\u202e.py"))
        a\nb\u202e.py
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in name
    )


def value_text(value: JsonValue) -> str:
    """Return the unescaped text of a value for a cell: a text unchanged, any other value as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def join_names(names: Iterable[object], limit: int | None = None) -> str:
    """Join names, such as those of outcomes, to one text; beyond a limit their number is given.

    Example:
        >>> join_names(["a", "b", "c"]), join_names(["a", "b", "c"], limit=2)
        ('a, b, c', 'a, b and 1 more')
    """
    texts = list(map(str, names))
    more = len(texts) - limit if limit else 0
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def shorten(text: str, length: int) -> str:
    """Return a text of at most so many characters: a longer one is cut, and ends in `…`.

    Example:
        >>> shorten("seven", 5), shorten("seventy", 5)
        ('seven', 'seve…')
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def count_noun(count: int, noun: str) -> str:
    """Return a number with a noun, in the plural unless the number is 1.

    Example:
        >>> count_noun(1, "item"), count_noun(3, "item")
        ('1 item', '3 items')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], max_rows: int = MAX_ROWS) -> str:
    """Return a Markdown table with at most `max_rows` rows; header and cells are escaped."""
    lines = ["| " + " | ".join(map(escape_cell, header)) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(escape_cell, row)) + " |" for row in rows[:max_rows]]
    if len(rows) > max_rows:
        lines.append(f"\n… and {len(rows) - max_rows} more rows in `report.json`.")
    return "\n".join(lines)


def escape_paragraph(text: str) -> str:
    r"""Escape a text as one Markdown paragraph.

    Example:
        >>> escape_paragraph("1. Ties:\n* by content.")
        '1&#46; Ties: &#42; by content.'
    """
    text, more = _truncate(text)
    return _escape_line(" ".join(strip_control_chars(text).split())) + more


def escape_prose(text: str) -> str:
    r"""Escape a text as a Markdown quotation that keeps its lines and paragraphs.

    Example:
        >>> escape_prose("# Finding\n\n1. See <b>.")
        '> &#35; Finding\n>\n> 1&#46; See &#60;b>.'
    """
    text, more = _truncate(text)
    lines = [_escape_line(strip_control_chars(line).strip()) for line in text.splitlines()]
    # Two spaces keep a line break between lines that follow each other.
    quoted = [
        f"> {line}{'  ' if following else ''}" if line else ">" for line, following in zip_longest(lines, lines[1:])
    ]
    return "\n".join(quoted) + more


def json_block(value: JsonValue) -> str:
    """Return a value as a fenced block of JSON; the fence is longer than any in the value."""
    text, more = _truncate(_indent_json(value))
    text = _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return fence_text(text + more.replace("\n\n", "\n"), "json")


def fence_text(text: str, language: str) -> str:
    """Return a text as a fenced block; the fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def to_safe_csv(rows: Sequence[dict[str, JsonValue]]) -> str:
    r"""Return rows as CSV without formulas, to prevent CSV injection.

    A text that a spreadsheet would evaluate as a formula (it starts with `=`, `+`, `-` or `@`) gets an apostrophe in
    front of that, as OWASP advises; so does text after a semicolon, a tab or a line break, where spreadsheets of some
    countries start a cell. Numbers are unchanged, and NUL is written as `␀`. Read back as data, such a text has more
    apostrophes than in `report.json`, which is exact.

    Example:
        >>> print(to_safe_csv([{"name": "=1+1", "score": -0.5}, {"name": "a; =1+1"}]), end="")
        "name","score"
        "'=1+1",-0.5
        "a; '=1+1",""
    """
    buffer = io.StringIO()
    # Everything that isn't a number is quoted, as a bare carriage return would end a row.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    names = column_names(rows)
    writer.writerow(map(_csv_entry, names))
    writer.writerows([_csv_entry(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def column_names(rows: Sequence[dict[str, JsonValue]]) -> list[str]:
    """Return the column names of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv_entry(value: JsonValue) -> str | float:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return _FORMULA.sub(
        _escape_formula, value_text(value).replace("\0", "␀")
    )  # the csv module of Python 3.10 rejects NUL


def _escape_formula(match: re.Match[str]) -> str:
    starts_a_cell = match.start() == 0 or not _CELL_SEPARATORS.isdisjoint(match[0])
    return f"{match[0]}'" if starts_a_cell else match[0]


def _indent_json(value: JsonValue) -> str:
    """Return a value's indented JSON, or more than `MAX_VALUE` characters of its start: all of it may take long."""
    parts = json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value)
    return "".join(islice(parts, MAX_VALUE + 1))  # no part is empty


def _truncate(text: str) -> tuple[str, str]:
    return (text, "") if len(text) <= MAX_VALUE else (text[:MAX_VALUE], f"\n\n{TRUNCATION_NOTE}")


def _escape_markup(text: str) -> str:
    return _ADDRESS.sub(rf"\1{_JOINER}", _ACTIVE.sub(_reference_last, text))


def _escape_line(text: str) -> str:
    """Escape a line so that it starts no list, quotation, heading or rule."""
    return _START.sub(_reference_last, _escape_markup(text))


def _reference_last(match: re.Match[str]) -> str:
    return f"{match[0][:-1]}&#{ord(match[0][-1])};"
