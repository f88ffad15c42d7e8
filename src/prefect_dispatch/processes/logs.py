"""Where the whole output of programs is kept: a file each, for a week, or until there is too much of it."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from prefect_dispatch.processes.environment import own_folder
from prefect_dispatch.processes.leases import state_folder

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

DAYS = 7
"""Days after which a log is removed."""
MOST = 1_000_000_000
"""Bytes of all logs; beyond it the oldest are removed."""

_numbers = count()
_begun: ContextVar[list[Begun] | None] = ContextVar("prefect-dispatch-logs", default=None)


@dataclass
class Begun:
    """A log that was begun."""

    path: Path
    """Where it is."""
    end: str = ""
    """What the program printed at last, where it was ended and that is to be quoted."""


def new_log() -> Path:
    """Return the path for a new log. Its name has digits only: errors that tell of different logs may be alike.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = own_folder(state_folder() / "logs" / time.strftime("%Y%m%d", time.gmtime()))
    log = folder / f"{time.time_ns()}{next(_numbers):06}.log"
    if (logs := _begun.get()) is not None:
        logs.append(Begun(log))
    return log


def quote_end(log: Path, most: int) -> None:
    """Let the code that ended a program quote what it printed at last.

    Args:
        log: Its log.
        most: Bytes of that.
    """
    for each in _begun.get() or ():
        if each.path == log:
            each.end = read_end(log, most)


@contextmanager
def begun() -> Generator[list[Begun], None, None]:
    """Have a list to which each new log is added; whoever ends what is run inside can tell where its output is.

    Example:
        >>> with begun() as logs:
        ...     logs == [Begun(new_log())]
        True
    """
    logs: list[Begun] = []
    token = _begun.set(logs)
    try:
        yield logs
    finally:
        _begun.reset(token)


def read_end(log: Path, most: int) -> str:
    """Return how a log ends, without the ends of its last line; empty where it can't be read.

    Args:
        log: The log, which holds no secrets.
        most: Bytes of the text; whole lines, if that leaves any.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            end = file.read(most)
    except OSError:
        return ""
    text = end.decode("utf-8", "replace").rstrip()
    lines = text[text.find("\n") + 1 :]
    return text if size <= most else f"…{lines if lines.strip() else text}"


def prune_logs() -> None:
    """Remove the logs that are too old, and the oldest of too many.

    Raises:
        JobError: If the state folder can't be used.
    """
    left, oldest = MOST, time.time() - DAYS * 86_400
    for log, changed, size in sorted(_logs(), key=lambda each: each[1], reverse=True):
        left -= size
        if changed < oldest or left < 0:
            log.unlink(missing_ok=True)


def _logs() -> Iterator[tuple[Path, float, int]]:
    """Yield every log, when it was written last, and its size."""
    for log in (state_folder() / "logs").glob("*/*.log"):
        try:
            found = log.stat()
        except FileNotFoundError:  # somebody else removes it
            continue
        yield log, found.st_mtime, found.st_size
