"""Connections to databases: a block of Prefect's holds them, and no error of theirs shows a password."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus

from prefect_dispatch.errors import JobError
from prefect_dispatch.scrub import MARK, hide, scrub
from prefect_dispatch.temporary_server import use_server

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Engine

SLUG = "sqlalchemy-connector"
"""The type of block that holds a connection."""
MAX_SAID = 500
"""Characters of what a database says that a message repeats."""


@contextmanager
def database(connection: str) -> Generator[Engine, None, None]:
    """Open the database that a block names, and tell whatever goes wrong there in a sentence.

    Args:
        connection: The name of a block of type SQLAlchemy Connector (`prefect-sqlalchemy`).

    Raises:
        JobError: If there is no such block, its driver isn't installed, or the database refuses anything.
    """
    block, name = _loaded(connection), connection.removeprefix(f"{SLUG}/")
    secrets = _secrets(block)
    hide(secrets)
    from sqlite3 import Warning as Unwrapped  # noqa: PLC0415 -- as below; what SQLite raises before Python 3.11

    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 -- only those who have a database need it
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 -- the same

    try:
        # One connection, closed at once: a worker may wait for hours before it needs the next.
        engine: Engine = block.get_engine(poolclass=NullPool, hide_parameters=True)
        try:
            yield engine
        finally:
            engine.dispose()
    except ImportError as error:
        raise JobError(f"Connection {name!r}: its driver isn't installed: {_said(error, secrets)}.") from None
    except (SQLAlchemyError, Unwrapped, ValueError, TypeError) as error:
        raise JobError(f"Connection {name!r}: {_said(error, secrets)}.") from None


def _loaded(connection: str) -> Any:  # noqa: ANN401 -- a block of prefect-sqlalchemy
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
            return kind.load(name, _sync=True)  # a coroutine otherwise, where an event loop runs
    except (ValueError, RuntimeError) as error:  # Prefect makes the latter of what pydantic finds
        if "Unable to find block document" not in str(error):
            raise JobError(f"The block {name!r} of type {SLUG!r} can't be used: it isn't valid any more.") from None
        raise JobError(
            f"There is no block {name!r} of type {SLUG!r}; make one in Prefect's UI (Blocks, SQLAlchemy Connector), "
            f"or in Python: SqlAlchemyConnector(connection_info=…).save({name!r})."
        ) from None


def _secrets(block: Any) -> set[str]:  # noqa: ANN401 -- a block of prefect-sqlalchemy
    """Return every text that may be a password of a connection, in all ways that an error may have it."""
    from sqlalchemy import make_url  # noqa: PLC0415 -- only those who have a database need it

    said = block.connection_info
    url = make_url(said) if isinstance(said, str) else said.create_url()
    values: list[object] = [url.password, *(block.connect_args or {}).values(), *url.query.values()]
    texts = {str(value) for value in values if isinstance(value, str) and value}
    return texts | {quoted(text) for text in texts for quoted in (quote, quote_plus)}


def _said(error: BaseException, secrets: set[str]) -> str:
    """Return what a database says, on one line and without a password."""
    cause: object = getattr(error, "orig", None) or error
    text = str(cause) if not isinstance(cause, tuple) else str(cast("tuple[object, ...]", cause)[0])
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MARK)
    text = text.partition("\n[SQL:")[0].partition("\n(Background")[0]
    return scrub(" ".join(text.split())[:MAX_SAID]).rstrip(".")
