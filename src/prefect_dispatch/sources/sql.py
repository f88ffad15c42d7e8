"""Items from the rows of an SQL query; the connection is a Prefect block, and no error message shows a password."""

from __future__ import annotations

from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus

from pydantic import ConfigDict, Field

from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.redaction import MARK, redact, register_secrets
from prefect_dispatch.sources.item_values import to_json_row
from prefect_dispatch.sources.tabular import Columns

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine, TextClause

    from prefect_dispatch.models.item import Item


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

    def stream(self, root: Path) -> Iterator[Item]:
        """Yield one item for each row, in the order of the database.

        Args:
            root: The job's own folder; unused.

        Raises:
            SourceError: If there is no such connection, the database rejects the query, or a row can't be an item.
        """
        with closing(self._rows(self.where(root))) as rows:
            yield from self.items(rows)

    def _rows(self, where: str) -> Generator[tuple[str, dict[str, object]], None, None]:
        try:
            with open_database(self.connection) as engine, engine.connect() as connection:
                result = _read_only(connection).execute(self._bind_parameters())
                names = list(result.keys()) if result.returns_rows else []
                self.check_columns(names, where)
                for number, row in enumerate(result, 1):
                    place = f"{where}, row {number}"
                    yield place, to_json_row(dict(zip(names, row, strict=True)), place)
        except SourceError:
            raise
        except JobError as error:
            raise SourceError(str(error)) from None

    def check_columns(self, names: list[str], where: str) -> None:
        """Check the column names of the result.

        Raises:
            SourceError: If a column is missing or duplicate, or there are none.
        """
        if not names:
            raise SourceError(f"{where} yields no rows; write one that does, a `select` for instance.")
        super().check_columns(names, where)

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
