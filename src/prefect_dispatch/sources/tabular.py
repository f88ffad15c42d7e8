"""Items from the rows of a table: JSON Lines, CSV and Parquet files, and SQL queries.

The connection of a query is a Prefect block, and no error message shows a password.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote, quote_plus

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic_core import from_json

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.redaction import MARK, redact, register_secrets
from prefect_dispatch.serialization.json_text import UnsupportedJsonError, loads
from prefect_dispatch.sources.inline import content_key, make_item, to_json_row
from prefect_dispatch.sources.object_store import (
    Encoding,
    is_url,
    iter_batches,
    open_text,
    read_errors,
    storage_errors,
    without_password,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine, TextClause

    from prefect_dispatch.models.item import Item


Row = tuple[str, dict[str, object]]
"""The place of a row, for error messages, and the row."""
FilePath = Annotated[str, StringConstraints(min_length=1), AfterValidator(without_password)]
"""The path of one file, or a URL; as it is named explicitly, it may be outside the job's folder."""


def name_file(path: str, root: Path) -> str:
    """Return the name of a file, or a URL, for error messages."""
    return repr(redact(path) if is_url(path) else str((root / path).absolute()))


class Columns(Strict, ABC):
    """Options of all tables: the columns with the key and the priority of a row."""

    key: str = Field(default="", json_schema_extra={"position": 1})
    """The column whose value names the item; empty to have each row named by its content."""
    priority: str = Field(default="", json_schema_extra={"position": 2})
    """The column with the item's priority, a whole number; empty if there is none."""

    @abstractmethod
    def where(self, root: Path) -> str:
        """Return the description of this source for error messages."""

    @abstractmethod
    def _rows(self, root: Path, where: str) -> Generator[Row, None, None]:
        """Yield the rows, each with its place for error messages."""

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the table's order.

        Args:
            root: The job's own folder.

        Raises:
            SourceError: If the table can't be read or lacks a column, or a row can't be an item.
        """
        with closing(self._rows(root, self.where(root))) as rows:
            yield from self._items(rows)

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

    def _items(self, rows: Iterable[Row]) -> Iterator[Item]:
        """Yield the item of each row."""
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

    def _rows(self, root: Path, where: str) -> Generator[Row, None, None]:
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


Delimiter = Annotated[
    str, StringConstraints(pattern=r'^([^"\r\n]|\\t)$'), AfterValidator(lambda text: text.replace(r"\t", "\t"))
]
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

    def _rows(self, root: Path, where: str) -> Generator[Row, None, None]:
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

    def _rows(self, root: Path, where: str) -> Generator[Row, None, None]:
        try:
            import_module("pyarrow")  # optional, and slow to import
        except ImportError:
            raise SourceError(
                f"{where} needs pyarrow, which isn't installed: pip install 'prefect-dispatch[parquet]'."
            ) from None
        if is_url(self.parquet) or (root / self.parquet).is_dir():
            yield from self._dataset_rows(root, where)
        else:
            yield from self._file_rows(root / self.parquet, where)

    def _dataset_rows(self, root: Path, where: str) -> Iterator[Row]:
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

    def _file_rows(self, path: Path, where: str) -> Iterator[Row]:
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


def table_source(file: str, key: str, what: str) -> Csv | JsonLines | Parquet:
    """Return the source of a table in a file, by the ending of its name.

    Args:
        file: A CSV (`.csv`, `.tsv`), JSON Lines (`.jsonl`, `.ndjson`) or Parquet (`.parquet`) file.
        key: The column with the key of a row.
        what: What the table has, as the beginning of an error message.

    Raises:
        JobError: If the file is in no known form.
    """
    match PurePath(file).suffix.lower():
        case ".csv":
            return Csv(csv=file, key=key)
        case ".tsv":
            return Csv(csv=file, delimiter="\t", key=key)
        case ".jsonl" | ".ndjson":
            return JsonLines(jsonl=file, key=key)
        case ".parquet":
            return Parquet(parquet=file, key=key)
        case _:
            forms = ".csv, .tsv, .jsonl, .ndjson, .parquet"
            raise JobError(f"{what} {file!r} are in no known form; name a file that ends in {forms}.")


def _convert_row(row: dict[str, object], place: str) -> Row:
    """Convert a row to JSON values; return it with its place.

    Raises:
        ValueError: If a time has nanoseconds, which pyarrow itself rejects only if pandas isn't installed.
        SourceError: If a value can't be expressed in JSON.
    """
    if nanoseconds := [name for name, value in row.items() if getattr(value, "nanosecond", 0)]:
        raise ValueError(f"Nanoseconds in column {nanoseconds[0]!r} would be lost")
    return place, to_json_row(row, place)


SLUG = "sqlalchemy-connector"
"""The type of block that holds a connection."""
MAX_MESSAGE = 500
"""Maximum characters of a database's error that a message quotes."""


@contextmanager
def open_database(connection: str) -> Generator[Engine, None, None]:
    """Open the database of a connection block; its errors become a `JobError` without secrets.

    Args:
        connection: The name of a block of type SQLAlchemy Connector (`prefect-sqlalchemy`).

    Yields:
        The engine, with connections that are not pooled.

    Raises:
        JobError: If there is no such block, its driver isn't installed, or the database rejects a request.
    """
    block, name = _load_block(connection), connection.removeprefix(f"{SLUG}/")
    secrets = _secrets(block)
    register_secrets(secrets)
    from sqlite3 import Warning as Unwrapped  # noqa: PLC0415 -- as below; raised by SQLite before Python 3.11

    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 -- only those who have a database need it
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 -- the same

    try:
        # One connection, closed after use: a worker may wait for hours before it needs the next.
        engine: Engine = block.get_engine(poolclass=NullPool, hide_parameters=True)
        try:
            yield engine
        finally:
            engine.dispose()
    except ImportError as error:
        raise JobError(f"Connection {name!r}: its driver isn't installed: {_error_text(error, secrets)}.") from None
    except (SQLAlchemyError, Unwrapped, ValueError, TypeError) as error:
        raise JobError(f"Connection {name!r}: {_error_text(error, secrets)}.") from None


def _load_block(connection: str) -> Any:  # noqa: ANN401 -- a block of prefect-sqlalchemy
    try:
        kind: Any = import_module("prefect_sqlalchemy").SqlAlchemyConnector  # optional, slow, and without types
    except ImportError:
        raise JobError(
            f"Connection {connection!r} needs prefect-sqlalchemy, which isn't installed: "
            "pip install 'prefect-dispatch[sql]'."
        ) from None
    slug, _, name = connection.rpartition("/")
    if slug not in ("", SLUG):
        raise JobError(f"Connection {connection!r}: {slug!r} is no {SLUG!r}, the type of block that is needed.")
    try:
        with use_server():
            return kind.load(name, _sync=True)  # otherwise a coroutine inside a running event loop
    except (ValueError, RuntimeError) as error:  # Prefect converts pydantic's errors to RuntimeError
        if "Unable to find block document" not in str(error):
            raise JobError(f"The block {name!r} of type {SLUG!r} can't be used: it isn't valid any more.") from None
        raise JobError(
            f"There is no block {name!r} of type {SLUG!r}; make one in Prefect's UI (Blocks, SQLAlchemy Connector), "
            f"or in Python: SqlAlchemyConnector(connection_info=…).save({name!r})."
        ) from None


def _secrets(block: Any) -> set[str]:  # noqa: ANN401 -- a block of prefect-sqlalchemy
    """Return every text that may be a password of a connection, in all encodings that an error may quote."""
    from sqlalchemy import make_url  # noqa: PLC0415 -- only those who have a database need it

    info = block.connection_info
    url = make_url(info) if isinstance(info, str) else info.create_url()
    values: list[object] = [url.password, *(block.connect_args or {}).values(), *url.query.values()]
    texts = {str(value) for value in values if isinstance(value, str) and value}
    return texts | {quoted(text) for text in texts for quoted in (quote, quote_plus)}


def _error_text(error: BaseException, secrets: set[str]) -> str:
    """Return the message of a database error, on one line and without a password."""
    cause: object = getattr(error, "orig", None) or error
    text = str(cause) if not isinstance(cause, tuple) else str(cast("tuple[object, ...]", cause)[0])
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MARK)
    text = text.partition("\n[SQL:")[0].partition("\n(Background")[0]
    return redact(" ".join(text.split())[:MAX_MESSAGE]).rstrip(".")


FETCH_ROWS = 1000
"""Number of rows in memory at once."""
Value = str | int | float | bool | None


class Sql(Columns):
    """The rows of a query, read in batches; their order doesn't matter.

    The connection is a block of Prefect's (`prefect-sqlalchemy`), so that a job holds no password. The connection is
    read-only where the database supports it, and the transaction is rolled back. Dates, times, decimals and UUIDs
    become text; binary values, durations and NaN are errors that name the column.

    Example:
        >>> Sql(sql="select id from t where year = :year", key="id", connection="lake", params={"year": 9}).key
        'id'
    """

    model_config = ConfigDict(title="SQL", json_schema_extra={"description": "The rows that a query yields."})

    sql: str = Field(min_length=1, title="Query", json_schema_extra={"position": -1})
    r"""One query; `:name` stands for a value of `params`, and `\:` for a colon before a word."""
    key: str = Field(min_length=1, json_schema_extra={"position": 1})
    """The column whose value names the item."""
    connection: str = Field(min_length=1, json_schema_extra={"position": 0})
    """The name of a block of type SQLAlchemy Connector."""
    params: dict[str, Value | tuple[Value, ...]] = Field(
        default_factory=dict, title="Parameters", json_schema_extra={"position": 4}
    )
    """The values of `:name` in the query; a list is for `in :name`."""

    def where(self, root: Path) -> str:  # noqa: ARG002 -- one signature for all sources
        """Return the description of this source for error messages."""
        return f"the query on connection {self.connection!r}"

    def _rows(self, root: Path, where: str) -> Generator[Row, None, None]:  # noqa: ARG002 -- one signature for all tables
        try:
            with open_database(self.connection) as engine, engine.connect() as connection:
                result = _read_only(connection).execute(self._bind_parameters())
                if not result.returns_rows:
                    raise SourceError(f"{where} yields no rows; write one that does, a `select` for instance.")  # noqa: TRY301 -- it passes the handler below
                names = list(result.keys())
                self.check_columns(names, where)
                for number, row in enumerate(result, 1):
                    place = f"{where}, row {number}"
                    yield place, to_json_row(dict(zip(names, row, strict=True)), place)
        except SourceError:
            raise
        except JobError as error:
            raise SourceError(str(error)) from None

    def _bind_parameters(self) -> TextClause:
        from sqlalchemy import bindparam, text  # noqa: PLC0415 -- only those who have a database need it

        query = text(self.sql)
        # Each name in the query needs a value, and each value a name.
        names: set[str] = set(query.compile().params)
        if wrong := sorted(names ^ self.params.keys()):
            what = "no value in `params`" if wrong[0] in names else "no place in the query"
            raise SourceError(f"The query: :{wrong[0]} has {what}. In a text, write a colon before a word as \\:.")
        lists = {name for name, value in self.params.items() if isinstance(value, tuple)}
        bound: Any = [bindparam(name, self.params[name], expanding=name in lists) for name in names]
        return query.bindparams(*bound)


def _read_only(connection: Connection) -> Connection:
    """Return a connection with streamed results, read-only on PostgreSQL and SQLite."""
    options: dict[str, Any] = {"stream_results": True, "yield_per": FETCH_ROWS}
    if connection.dialect.name == "postgresql":
        options["postgresql_readonly"] = True
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    return connection.execution_options(**options)
