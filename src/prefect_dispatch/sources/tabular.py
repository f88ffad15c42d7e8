"""Items from the rows of a table in a file: JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic_core import from_json

from prefect_dispatch.errors import SourceError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.serialization.json_text import UnsupportedJsonError, loads
from prefect_dispatch.sources.encoding import Encoding
from prefect_dispatch.sources.item_values import content_key, make_item, to_json_row
from prefect_dispatch.sources.object_store import (
    is_url,
    iter_batches,
    open_text,
    read_errors,
    storage_errors,
    without_password,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prefect_dispatch.models.item import Item


FilePath = Annotated[str, StringConstraints(min_length=1), AfterValidator(without_password)]
"""The path of one file, or a URL; as it is named explicitly, it may be outside the job's folder."""


def name_file(path: str, root: Path) -> str:
    """Return the name of a file, or a URL, for error messages."""
    return repr(redact(path) if is_url(path) else str((root / path).absolute()))


class Columns(Strict):
    """Options of all tables: the columns with the key and the priority of a row."""

    key: str = Field(default="", json_schema_extra={"position": 1})
    """The column whose value names the item; empty to have each row named by its content."""
    priority: str = Field(default="", json_schema_extra={"position": 2})
    """The column with the item's priority, a whole number; empty if there is none."""

    def check_columns(self, names: list[str], where: str) -> None:
        """Check the column names of a table.

        Raises:
            SourceError: If a column is missing or duplicate.
        """
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise SourceError(f"{where}: column {twice!r} is there twice; rename one.")
        for column in filter(None, (self.key, self.priority)):
            if column not in names:
                raise SourceError(f"{where}: no column {column!r}; {did_you_mean(column, names)}")

    def items(self, rows: Iterable[tuple[str, dict[str, object]]]) -> Iterator[Item]:
        """Yield the item of each row.

        Args:
            rows: The place of each row, for error messages, and the row.

        Raises:
            SourceError: If a row can't be an item; the message names the place.
        """
        for place, row in rows:
            if self.key and self.key not in row:
                raise SourceError(f"{place}: no column {self.key!r}; {did_you_mean(self.key, list(row))}")
            try:
                key = row[self.key] if self.key else content_key(row)
                yield make_item(key, row, row.get(self.priority) if self.priority else None)
            except ValueError as error:
                raise SourceError(f"{place}: {error}") from None


class JsonLines(Columns):
    """The objects of a JSON Lines file, one per line; blank lines are skipped.

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
        """Return the description of this source for error messages."""
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
        with read_errors(self.jsonl, where):
            try:
                with open_text(self.jsonl, root, "utf-8", "\n") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield f"{where}, line {number}", _parse_object(line, f"{where}, line {number}")
            except UnicodeDecodeError:
                raise SourceError(f"{where} is not UTF-8, as JSON has to be; convert it.") from None


def _parse_object(line: str, place: str) -> dict[str, object]:
    # 1. Fast parsing by pydantic, which rejects NaN and infinities.
    try:
        found = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise SourceError(f"{place} is not JSON: {str(error).replace(' at line 1', '')}.") from None
    if not isinstance(found, dict):
        raise SourceError(f"{place} is not a JSON object but {type(found).__name__}; write {{…}} on each line.")
    # 2. A second parser rejects duplicate keys, which pydantic accepts.
    try:
        loads(line, unique_keys=True)
    except UnsupportedJsonError as error:
        raise SourceError(f"{place} can't be taken: {error}.") from None
    return cast("dict[str, object]", found)


def _unescape_tab(text: str) -> str:
    return "\t" if text == r"\t" else text


Delimiter = Annotated[str, StringConstraints(pattern=r'^([^"\r\n]|\\t)$'), AfterValidator(_unescape_tab)]
r"""One character; a tab can be written as `\t`, since a form accepts no tab."""


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
        """Return the description of this source for error messages."""
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
        with read_errors(self.csv, where):
            try:
                with open_text(self.csv, root, self.encoding, "") as file:
                    reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                    names = next(reader, list[str]())
                    if not names:
                        raise SourceError(f"{where} has no header: its first line is to name the columns.")
                    self.check_columns(names, where)
                    # A quoted value may have line breaks, so the line of a row is the one after the row before.
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


BATCH_ROWS = 1024
"""Number of rows in memory at once."""


class Parquet(Columns):
    """The rows of a Parquet file, or of all files in a folder, read in batches.

    A URL is opened by fsspec, with the credentials that its file system finds in the environment. Folders named like
    `day=1` become columns. A column that only some files have is null in the others.

    Dates and times become ISO 8601 text; decimals and UUIDs become text. Binary values, durations, NaN and infinities
    are rejected.

    Example:
        >>> Parquet(parquet="topics.parquet", key="id").key
        'id'
        >>> from pathlib import Path
        >>> Parquet(parquet="s3://lake/topics/", key="id").where(Path())
        "Parquet 's3://lake/topics/'"
    """

    model_config = ConfigDict(title="Parquet", json_schema_extra={"description": "The rows of Parquet files."})

    parquet: FilePath = Field(title="File", json_schema_extra={"position": 0})
    """The file or folder, relative to the job's own folder, or absolute; or a URL such as `s3://bucket/folder/`."""

    def where(self, root: Path) -> str:
        """Return the description of this source for error messages."""
        return f"Parquet {'' if is_url(self.parquet) else 'file '}{name_file(self.parquet, root)}"

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the file's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If pyarrow isn't installed, the file can't be read, or a value can't be expressed in JSON.
        """
        where = self.where(root)
        try:
            import_module("pyarrow")  # optional, and slow to import
        except ImportError:
            raise SourceError(
                f"{where} needs pyarrow, which isn't installed: pip install 'prefect-dispatch[parquet]'."
            ) from None
        if is_url(self.parquet) or (root / self.parquet).is_dir():
            yield from self.items(self._dataset_rows(root, where))
        else:
            yield from self.items(self._file_rows(root / self.parquet, where))

    def _dataset_rows(self, root: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        found = False
        with storage_errors(where):
            for path, columns, batches in iter_batches(self.parquet, root, BATCH_ROWS):
                found = True
                self.check_columns(columns, where)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield _convert_row(row, f"Parquet file {path!r}, row {number}")
        if not found:  # an error, as a misspelt folder looks the same
            raise SourceError(f"There are no items: {where} has no Parquet file in it.")

    def _file_rows(self, path: Path, where: str) -> Iterator[tuple[str, dict[str, object]]]:
        import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 -- the same

        number = 0
        try:
            with path.open("rb") as opened, ParquetFile(opened) as file:
                self.check_columns(file.schema_arrow.names, where)
                for batch in file.iter_batches(BATCH_ROWS):  # pyright: ignore[reportUnknownMemberType] -- a bare list in the stubs
                    for row in batch.to_pylist():
                        yield _convert_row(row, f"{where}, row {number + 1}")
                        number += 1
        except (ValueError, pa.ArrowException) as error:
            raise SourceError(f"{where} can't be read after row {number}: {error}.") from error
        except OSError as error:
            raise SourceError(f"{where} can't be read: {error.strerror or error}.") from error


def _convert_row(row: dict[str, object], place: str) -> tuple[str, dict[str, object]]:
    """Convert a row to JSON values; return it with its place.

    Raises:
        ValueError: If a time has nanoseconds, which pyarrow itself rejects only if pandas isn't installed.
        SourceError: If a value can't be expressed in JSON.
    """
    if nanoseconds := [name for name, value in row.items() if getattr(value, "nanosecond", 0)]:
        raise ValueError(f"Nanoseconds in column {nanoseconds[0]!r} would be lost")
    return place, to_json_row(row, place)
