"""Databases of the tests: SQLite files, each behind a block of the test server."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from pathlib import Path


def saved(url: str, **connect_args: object) -> str:
    """Save a block for a connection under a name of its own, and return the name."""
    name = f"db-{uuid4().hex[:12]}"
    kind: Any = import_module("prefect_sqlalchemy").SqlAlchemyConnector  # which has no types
    kind(connection_info=url, connect_args=connect_args or None).save(name)
    return name


def filled(path: Path, script: str) -> str:
    """Make an SQLite database by a script, and return the name of its block."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return saved(f"sqlite:///{path}")


def found(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what a query finds."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()
