"""Log files with the whole output of programs: one each, kept for a week, within a total size."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from prefect_dispatch.processes.environment import private_folder
from prefect_dispatch.processes.leases import state_folder

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

DAYS = 7
"""Days after which a log is removed."""
MAX_BYTES_OF_ALL = 1_000_000_000
"""Most bytes of all logs together; beyond it the oldest ones are removed."""

_numbers = count()
_new_logs: ContextVar[list[NewLog] | None] = ContextVar("prefect-dispatch-logs", default=None)


@dataclass
class NewLog:
    """A new log file."""

    path: Path
    """Its path."""
    end: str = ""
    """The end of the output, if the program was ended and its error is to quote it."""


def new_log() -> Path:
    """Return the path for a new log; its name has digits only, so that errors with different logs compare as equal.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = private_folder(state_folder() / "logs" / time.strftime("%Y%m%d", time.gmtime()))
    log = folder / f"{time.time_ns()}{next(_numbers):06}.log"
    if (logs := _new_logs.get()) is not None:
        logs.append(NewLog(log))
    return log


def quote_end(log: Path, most: int) -> None:
    """Attach the end of a log to its entry in the list of `collect_logs`, for the error of the ended program.

    Args:
        log: The log.
        most: Most bytes of the text.
    """
    for each in _new_logs.get() or ():
        if each.path == log:
            each.end = read_end(log, most)


@contextmanager
def collect_logs() -> Generator[list[NewLog], None, None]:
    """Collect the logs that are created inside, so that code which ends the programs can name them.

    Yields:
        A list to which each new log is added.

    Example:
        >>> with collect_logs() as logs:
        ...     logs == [NewLog(new_log())]
        True
    """
    logs: list[NewLog] = []
    token = _new_logs.set(logs)
    try:
        yield logs
    finally:
        _new_logs.reset(token)


def read_end(log: Path, most: int) -> str:
    """Return the end of a log without trailing whitespace; empty if it can't be read.

    Args:
        log: The log, which is already redacted.
        most: Most bytes of the text; whole lines, if any fit.
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
    """Remove the logs that are older than `DAYS`, and the oldest ones beyond `MAX_BYTES_OF_ALL`.

    Raises:
        JobError: If the state folder can't be used.
    """
    budget, oldest = MAX_BYTES_OF_ALL, time.time() - DAYS * 86_400
    for log, changed, size in sorted(_logs(), key=lambda each: each[1], reverse=True):
        budget -= size
        if changed < oldest or budget < 0:
            log.unlink(missing_ok=True)


def _logs() -> Iterator[tuple[Path, float, int]]:
    """Yield every log with its modification time and its size in bytes."""
    for log in (state_folder() / "logs").glob("*/*.log"):
        try:
            status = log.stat()
        except FileNotFoundError:  # another process has removed it
            continue
        yield log, status.st_mtime, status.st_size
