"""Other people's text, made inert: as a table cell, a paragraph, a block of JSON, a line for a terminal, a sheet.

Keys, answers and error messages are whatever an agent or a document says. In
Markdown every character that it, HTML or a table could act on becomes a
character reference, and only those, since one of Prefect's two UIs shows the
references. What looks like an address gets an invisible word joiner, so that no
renderer makes a link of it; `report.json` has it as it was.
"""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

MAX_ROWS = 500
MAX_CELL = 200
MAX_VALUE = 50_000
CUT = "… cut here; `report.json` has everything."

_HIDDEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# A citation such as [3] or [1-2, 5] stays as it is: without an address behind it, it is no link.
_ACTIVE = re.compile(r"[\\`*<|~$]|\[(?!\d[\d ,;-]{0,40}\](?![(:\[]))|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
_ADDRESS = re.compile(r"(?i)(:(?=//)|@(?=\w)|\bwww(?=\.))")
_JOINER = "\u2060"
_START = re.compile(r"^(?:[-=+#>]|\d+[.)])")
# What may stand between the start of a cell and a formula; the run is taken whole, so that no text takes long.
_FORMULA = re.compile(r"(?<![;\"'\s\0-\x1f\ufeff])[;\"'\s\0-\x1f\ufeff]*(?=[=+\-@＝＋－＠])")  # noqa: RUF001 -- in some countries, wide ones, too
# Some countries' spreadsheets start a cell behind each of these, even inside a text that is set in quotation marks.
_PARTING = frozenset(";\t\r\n")


def cell(value: object) -> str:
    r"""Return a text as it stands in a table: one line, cut to length, inert.

    Example:
        >>> cell("a|b\n<img>")
        'a&#124;b &#60;img>'
    """
    flat = " ".join(plain(value if isinstance(value, str) else str(value)).split())
    return _disarmed(flat if len(flat) <= MAX_CELL else flat[: MAX_CELL - 1] + "…")


def plain(text: str) -> str:
    r"""Return a text as a line for a terminal: what an agent said must not steer it.

    Example:
        >>> plain("one\x1b[31m\ntwo")
        'one [31m two'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def nowhere_nul(value: JsonValue) -> JsonValue:
    r"""Return a value in which each NUL is `␀`: PostgreSQL, where Prefect may keep it, refuses any other.

    Example:
        >>> nowhere_nul({"a\0": ["b\0", 1]})
        {'a␀': ['b␀', 1]}
    """
    if isinstance(value, str):
        return value.replace("\0", "␀")
    if isinstance(value, dict):
        return {name.replace("\0", "␀"): nowhere_nul(part) for name, part in value.items()}
    return [nowhere_nul(part) for part in value] if isinstance(value, list) else value


def legible(name: str) -> str:
    r"""Return a name, such as that of a file, with what can't be seen of it written out.

    Example:
        >>> print(legible("a\nb\u202e.py"))
        a\nb\u202e.py
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in name
    )


def shown(value: JsonValue) -> str:
    """Return a value as a cell has it: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def refs(names: Iterable[object]) -> str:
    """Return names, such as those of outcomes, as one text."""
    return ", ".join(map(str, names))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], most: int = MAX_ROWS) -> str:
    """Return a Markdown table, cut to a number of rows; the header may be anybody's text, too."""
    lines = ["| " + " | ".join(map(cell, header)) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows[:most]]
    if len(rows) > most:
        lines.append(f"\n… and {len(rows) - most} more rows in `report.json`.")
    return "\n".join(lines)


def paragraph(text: str) -> str:
    r"""Return a text as one paragraph, inert.

    Example:
        >>> paragraph("1. Ties:\n* by content.")
        '1&#46; Ties: &#42; by content.'
    """
    text, more = _bounded(text)
    return _line(" ".join(plain(text).split())) + more


def prose(text: str) -> str:
    r"""Return a text to be read: its lines and paragraphs kept, set off as a quotation, inert.

    Example:
        >>> prose("# Finding\n\n1. See <b>.")
        '> &#35; Finding\n>\n> 1&#46; See &#60;b>.'
    """
    text, more = _bounded(text)
    lines = [_line(plain(line).strip()) for line in text.splitlines()]
    # Two spaces keep a line break between lines that follow each other.
    quoted = [
        f"> {line}{'  ' if following else ''}" if line else ">" for line, following in zip_longest(lines, lines[1:])
    ]
    return "\n".join(quoted) + more


def code(value: JsonValue) -> str:
    """Return a value as JSON in a fence that it cannot end."""
    text, more = _bounded(_indented(value))
    text = _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return fenced(text + more.replace("\n\n", "\n"), "json")


def fenced(text: str, language: str) -> str:
    """Return a text in a fence that it cannot end."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def sheet(rows: Sequence[dict[str, JsonValue]]) -> str:
    r"""Return rows as CSV, with nothing in it that a spreadsheet would compute.

    A text that a spreadsheet takes for a formula (it starts with `=`, `+`, `-` or `@`) gets an apostrophe in
    front of that, as OWASP advises; so does what follows a semicolon, a tab or a line break, where spreadsheets
    of some countries start a cell. Numbers stay as they are, and NUL is written as `␀`. Read back as data, such a
    text has more apostrophes than in `report.json`, which is exact.

    Example:
        >>> print(sheet([{"name": "=1+1", "score": -0.5}, {"name": "a; =1+1"}]), end="")
        "name","score"
        "'=1+1",-0.5
        "a; '=1+1",""
    """
    buffer = io.StringIO()
    # Everything that isn't a number stands in quotes: a bare carriage return would end a row.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    names = columns(rows)
    writer.writerow(map(_entry, names))
    writer.writerows([_entry(row.get(name)) for name in names] for row in rows)
    return buffer.getvalue()


def columns(rows: Sequence[dict[str, JsonValue]]) -> list[str]:
    """Return the names of the columns, in order, whatever row has them."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _entry(value: JsonValue) -> str | float:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return _FORMULA.sub(_stopped, shown(value).replace("\0", "␀"))  # a CSV has no NUL: Python 3.10 refuses it


def _stopped(match: re.Match[str]) -> str:
    starts_a_cell = match.start() == 0 or not _PARTING.isdisjoint(match[0])
    return f"{match[0]}'" if starts_a_cell else match[0]


def _indented(value: JsonValue) -> str:
    """Return a value as JSON, or a little more than is shown of it: to indent it all may take long."""
    parts, size = list[str](), 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > MAX_VALUE:
            break
    return "".join(parts)


def _bounded(text: str) -> tuple[str, str]:
    return (text, "") if len(text) <= MAX_VALUE else (text[:MAX_VALUE], f"\n\n{CUT}")


def _disarmed(text: str) -> str:
    return _ADDRESS.sub(rf"\1{_JOINER}", _ACTIVE.sub(_last_referenced, text))


def _line(text: str) -> str:
    """Return a line that opens no list, no quotation, no heading and no rule."""
    return _START.sub(_last_referenced, _disarmed(text))


def _last_referenced(match: re.Match[str]) -> str:
    return f"{match[0][:-1]}&#{ord(match[0][-1])};"
