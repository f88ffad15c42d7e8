"""Items from the rows of a table in a text file: JSON Lines and CSV."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic_core import from_json

from prefect_dispatch.errors import SourceError
from prefect_dispatch.json_text import UntakenError, loads
from prefect_dispatch.scrub import scrub
from prefect_dispatch.sources import lake
from prefect_dispatch.sources.keys import content_key, make_item
from prefect_dispatch.sources.texts import Encoding
from prefect_dispatch.strict import Strict, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prefect_dispatch.models import Item

FilePath = Annotated[str, StringConstraints(min_length=1), AfterValidator(lake.without_password)]
"""The path of one file, or a URL; as it is named outright, it may lie anywhere."""


def name_file(path: str, root: Path) -> str:
    """Return a file, or a URL, as a message names it."""
    return repr(scrub(path) if lake.is_url(path) else str((root / path).absolute()))


class Columns(Strict):
    """What all tables have in common: which columns name and rank a row."""

    key: str = Field(default="", json_schema_extra={"position": 1})
    """The column whose value names the item; empty to have each row named by its content."""
    priority: str = Field(default="", json_schema_extra={"position": 2})
    """The column with the item's priority, a whole number; empty if there is none."""

    def check_columns(self, names: list[str], where: str) -> None:
        """Check the head of a table.

        Raises:
            SourceError: If a column is missing or there twice.
        """
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise SourceError(f"{where}: column {twice!r} is there twice; rename one.")
        for column in filter(None, (self.key, self.priority)):
            if column not in names:
                raise SourceError(f"{where}: no column {column!r}; {nearest(column, names)}")

    def items(self, rows: Iterable[tuple[str, dict[str, object]]]) -> Iterator[Item]:
        """Yield the item of each row.

        Args:
            rows: The place of each row, for messages, and the row.

        Raises:
            SourceError: If a row can't be an item; it names the place.
        """
        for place, row in rows:
            if self.key and self.key not in row:
                raise SourceError(f"{place}: no column {self.key!r}; {nearest(self.key, list(row))}")
            try:
                key = row[self.key] if self.key else content_key(row)
                yield make_item(key, row, row.get(self.priority) if self.priority else None)
            except ValueError as error:
                raise SourceError(f"{place}: {error}") from None


class JsonLines(Columns):
    """The objects of a JSON Lines file, one a line; blank lines are passed over.

    Example:
        >>> JsonLines(jsonl="topics.jsonl", key="id").key
        'id'
    """

    model_config = ConfigDict(
        title="JSON Lines", json_schema_extra={"description": "The objects of a file, one a line."}
    )

    jsonl: FilePath = Field(title="File", json_schema_extra={"position": 0})
    """The file, in UTF-8, relative to the job's own folder, or absolute; or a URL such as `s3://bucket/topics.jsonl`."""

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        return f"JSON Lines file {name_file(self.jsonl, root)}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each line, in the file's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If the file can't be read, or a line isn't an object of pure JSON.
        """
        yield from self.items(self._rows(root, self.where(root)))

    def _rows(self, root: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        with lake.reading(self.jsonl, where):
            try:
                with lake.open_text(self.jsonl, root, "utf-8", "\n") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield f"{where}, line {number}", _object(line, f"{where}, line {number}")
            except UnicodeDecodeError:
                raise SourceError(f"{where} is not UTF-8, as JSON has to be; convert it.") from None


def _object(line: str, place: str) -> dict[str, object]:
    try:
        found = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(f"{place} is not JSON: {str(error).replace(' at line 1', '')}.") from None
    if not isinstance(found, dict):
        raise SourceError(f"{place} is not a JSON object but {type(found).__name__}; write {{…}} on each line.")
    try:
        loads(line, once=True)  # the reader above, which keeps to JSON, passes over what this one tells
    except UntakenError as error:
        raise SourceError(f"{place} can't be taken: {error}.") from None
    return cast("dict[str, object]", found)


def _unescaped(text: str) -> str:
    return "\t" if text == r"\t" else text


Delimiter = Annotated[str, StringConstraints(pattern=r'^([^"\r\n]|\\t)$'), AfterValidator(_unescaped)]
"""One character; a tab can be written as a backslash and a t, since a form takes no tab."""


class Csv(Columns):
    r"""The rows of a CSV file with a header; every value is text.

    Example:
        >>> Csv(csv="parts.tsv", key="number", delimiter=r"\t").delimiter
        '\t'
    """

    model_config = ConfigDict(title="CSV", json_schema_extra={"description": "The rows of a file with a header."})

    csv: FilePath = Field(title="File", json_schema_extra={"position": 0})
    """The file, relative to the job's own folder, or absolute; or a URL such as `s3://bucket/topics.csv`."""
    delimiter: Delimiter = Field(default=",", json_schema_extra={"position": 3})
    r"""The character between two values; `\t` is a tab."""
    encoding: Encoding = Field(default="utf-8", min_length=1, json_schema_extra={"position": 4})
    """The file's encoding; a byte order mark overrules it."""

    def where(self, root: Path) -> str:
        """Return the words that name this source."""
        return f"CSV file {name_file(self.csv, root)}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the file's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If the file can't be read, lacks a column, or a row is ragged.
        """
        yield from self.items(self._rows(root, self.where(root)))

    def _rows(self, root: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        line = 1
        with lake.reading(self.csv, where):
            try:
                with lake.open_text(self.csv, root, self.encoding, "") as file:
                    reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                    names = next(reader, list[str]())
                    if not names:
                        raise SourceError(f"{where} has no header: its first line is to name the columns.")
                    self.check_columns(names, where)
                    line = reader.line_num + 1
                    for values in reader:
                        place = f"{where}, line {line}"
                        if values and len(values) != len(names):
                            raise SourceError(f"{place} has {len(values)} values; the header names {len(names)}.")
                        if values:
                            yield place, dict(zip(names, values, strict=True))
                        line = reader.line_num + 1
            except csv.Error as error:
                raise SourceError(f"{where}, line {line} can't be read as CSV: {error}.") from None
            except UnicodeDecodeError:
                raise SourceError(f"{where} is not {self.encoding}; set `encoding`, to cp1252 for instance.") from None
