"""Items that are pasted into a form, for those who have no file where the flow runs."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.security.escaping import shorten
from prefect_dispatch.sources.inline import content_key, make_item

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.models.item import Item

MAX_CHARACTERS = 400_000
"""Maximum length of a pasted text; Prefect's server stores 524,288 bytes of parameters."""
MAX_ITEMS = 10_000
"""Maximum number of pasted items; more belong into a file."""
_MAX_SHOWN = 60
_LINE_END = re.compile(r"\r\n|\r|\n")
_DELIMITERS = "\t;,"
"""Delimiters of pasted tables: spreadsheets put tabs on the clipboard, and write CSV files with `;` or `,`."""


class PastedItems(Strict):
    r"""Items that are pasted into a form.

    Example:
        >>> [item.key for item in PastedItems(pasted="MIT\nISC").to_items("files")]
        ['MIT', 'ISC']
        >>> PastedItems(pasted="id,text\n7,A kettle.", layout="table").to_items("files")[0].value
        {'id': '7', 'text': 'A kettle.'}
    """

    model_config = ConfigDict(title="Pasted items", json_schema_extra={"description": "For those who have no file."})

    pasted: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")] = Field(
        title="Items"
    )
    """One item on each line; or a table with a header, as a spreadsheet copies it or as CSV."""
    layout: Literal["one per line", "table"] = "one per line"
    """How the text is read. Of a table, each row is an item with the columns as its fields."""
    key: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] = Field(
        default="", title="Key column"
    )
    """For a table: the column that names an item in the report. Empty: the first one."""

    def to_items(self, field: str) -> tuple[Item, ...]:
        """Return the items.

        Args:
            field: The field of the form, for messages.

        Raises:
            JobError: If the text can't be read, or two items have the same key.
        """
        if self.key and self.layout == "one per line":
            raise JobError(f"{field}: 'key' is for a table; set 'layout' to 'table', or leave 'key' out.")
        lines_of: dict[str, int] = {}
        items: list[Item] = []
        for line, key, value in self._keyed_values(field):
            try:
                item = make_item(key or content_key(value), value)
            except ValueError as error:
                raise JobError(f"{field}: pasted items, line {line}: {error}") from None
            if (before := lines_of.setdefault(item.key, line)) != line:
                raise JobError(
                    f"{field}: pasted items, lines {before} and {line}: {shorten(item.key, _MAX_SHOWN)!r} stands there "
                    "twice; remove one of them" + (", or choose another 'key'." if self.layout == "table" else ".")
                )
            if len(items) == MAX_ITEMS:
                raise JobError(f"{field}: more than {MAX_ITEMS:,} pasted items; put them into a file.")
            items.append(item)
        if not items:
            raise JobError(f"{field}: pasted items: below the header there is no row.")
        return tuple(items)

    def _keyed_values(self, field: str) -> Iterator[tuple[int, str, str | dict[str, str]]]:
        """Yield the line, the key (empty to name the item by its content) and the value of each item."""
        if self.layout == "table":
            yield from self._rows(field)
            return
        for number, line in enumerate(_LINE_END.split(self.pasted), 1):
            if text := line.strip():
                yield number, "", text

    def _rows(self, field: str) -> Iterator[tuple[int, str, dict[str, str]]]:
        # Blank lines before the header are left out, and counted.
        text = self.pasted.lstrip("\r\n\ufeff")
        skipped = len(_LINE_END.findall(self.pasted[: len(self.pasted) - len(text)]))
        header = _LINE_END.split(text, 1)[0]
        delimiter = max(_DELIMITERS, key=header.count)
        reader = csv.reader(re.findall(r"[^\r\n]*(?:\r\n|\r|\n|$)", text), delimiter=delimiter, strict=True)
        where = f"{field}: pasted items, line"
        line = skipped + 1
        try:
            names = [name.strip() for name in next(reader)]
            if twice := next((name for n, name in enumerate(names) if name in names[:n]), None):
                raise JobError(f"{where} {line}: the column {shorten(twice, _MAX_SHOWN)!r} is there twice; rename one.")
            key = self.key or names[0]
            if key not in names:
                raise JobError(f"{field}: pasted items: no column {key!r} for 'key'; {did_you_mean(key, names)}")
            line = skipped + reader.line_num + 1
            for values in reader:
                if any(value.strip() for value in values):
                    if len(values) != len(names):
                        raise JobError(f"{where} {line} has {len(values)} values; the header names {len(names)}.")
                    row = dict(zip(names, values, strict=True))
                    if not row[key].strip():
                        raise JobError(f"{where} {line}: the column {key!r}, which names the item, is empty.")
                    yield line, row[key].strip(), row
                line = skipped + reader.line_num + 1
        except csv.Error as error:
            raise JobError(f"{where} {line} can't be read as CSV: {error}.") from None
