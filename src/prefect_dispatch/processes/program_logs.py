"""Logs of programs: what each belongs to, and whether its program still runs.

A log is a file in the state folder that is kept for a week. Beside it, a description names the brief and the item that
the program works for; it holds no argument and no variable of the program, as these may be secret. While the program
runs, its supervisor holds a lock of the operating system on the log, so that no process id has to be trusted.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from prefect_dispatch.models.base import Frozen
from prefect_dispatch.processes.state_folder import LOG_DESCRIPTION, private_folder, read_end, state_folder
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

MAX_NAME = 1_000
"""Characters of an item's key in a description."""
MAX_DESCRIPTION_BYTES = 16_384
"""Most bytes of a description that are read."""
_DAY = "%Y%m%d"
"""Format of the name of the folder for the logs of one day."""


class WorkOwner(NamedTuple):
    """The work that programs run for."""

    brief: str = ""
    """The brief's name."""
    item: str = ""
    """The item's key."""
    run: str = ""
    """The id of the flow run; empty outside of flows."""


class LogDescription(Frozen):
    """What a log belongs to."""

    program: str
    """What runs: the name of a coding agent, or a kind of command."""
    model: str = ""
    """The model of a coding agent, as litellm names it."""
    brief: str = ""
    """The brief's name."""
    item: str = ""
    """The item's key, redacted."""
    run: str = ""
    """The id of the flow run; empty outside of flows."""
    started: datetime
    """When the log was created."""

    @property
    def ref(self) -> str:
        """The work as `brief/item`, on one line."""
        return strip_control_chars(f"{self.brief}/{self.item}")


@dataclass
class NewLog:
    """A new log file."""

    path: Path
    """Its path."""
    end: str = ""
    """The end of the output, if the program was ended and its error is to quote it."""


class ProgramLog(NamedTuple):
    """A log with its description."""

    path: Path
    """Its path."""
    about: LogDescription
    """What it belongs to."""

    @property
    def is_running(self) -> bool:
        """Whether its program runs: its supervisor holds the lock of the log."""
        return _is_locked(self.path)


_new_logs: ContextVar[list[NewLog] | None] = ContextVar("prefect-dispatch-logs", default=None)
_owner: ContextVar[WorkOwner | None] = ContextVar("prefect-dispatch-log-owner", default=None)
_log_numbers = count()


def new_log(program: str, *, model: str = "") -> Path:
    """Return the path for a new log, which is described beside it as a log of the work of this context.

    Its name has digits only, so that errors with different logs compare as equal.

    Args:
        program: What is about to run: the name of a coding agent, or a kind of command.
        model: The model of a coding agent.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = private_folder(_logs_folder() / time.strftime(_DAY, time.gmtime()))
    log = folder / f"{time.time_ns()}{next(_log_numbers):06}.log"
    owner = _owner.get() or WorkOwner()
    about = LogDescription(
        program=program,
        model=model,
        brief=owner.brief,
        item=shorten(redact(owner.item), MAX_NAME),
        run=owner.run,
        started=datetime.now(timezone.utc),
    )
    with suppress(OSError):  # without a description the program runs all the same, and isn't listed
        log.with_suffix(LOG_DESCRIPTION).write_text(about.model_dump_json(), encoding="utf-8")
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
def collect_logs(owner: WorkOwner) -> Generator[list[NewLog], None, None]:
    """Collect the logs that are created inside, so that code which ends the programs can name them.

    Args:
        owner: The work that the programs run for.

    Yields:
        A list to which each new log is added.

    Example:
        >>> with collect_logs(WorkOwner("terms", "mit.txt")) as logs:
        ...     logs == [NewLog(new_log("command"))]
        True
    """
    logs: list[NewLog] = []
    token, owner_token = _new_logs.set(logs), _owner.set(owner)
    try:
        yield logs
    finally:
        _owner.reset(owner_token)
        _new_logs.reset(token)


def list_log_files(since_ns: int = 0) -> list[Path]:
    """Return the paths of all logs, the oldest first.

    Args:
        since_ns: When the first of them was created at the earliest, in nanoseconds since 1970.

    Raises:
        JobError: If the state folder can't be used.
    """
    first_day, first = time.strftime(_DAY, time.gmtime(since_ns // 10**9)), f"{since_ns:019}"
    days = (day for day in _logs_folder().glob("[0-9]*") if day.name >= first_day)
    return sorted(log for day in days for log in day.glob("[0-9]*.log") if log.stem >= first)


def list_logs() -> Iterator[ProgramLog]:
    """Yield the logs that have a description, the oldest first.

    Raises:
        JobError: If the state folder can't be used.
    """
    for path in list_log_files():
        if log := load_log(path):
            yield log


def load_log(path: Path) -> ProgramLog | None:
    """Return a log with its description; None if that is missing or unreadable, such as one of another version."""
    try:
        with open(path.with_suffix(LOG_DESCRIPTION), "rb", opener=_open_plainly) as file:
            content = file.read(MAX_DESCRIPTION_BYTES)
        return ProgramLog(path, LogDescription.model_validate_json(content))
    except (OSError, ValidationError):
        return None


def open_log(path: Path) -> int:
    """Open a log for reading, and return its handle; a link is not followed, and a named pipe not waited for.

    Raises:
        OSError: If it can't be opened.
    """
    return _open_plainly(str(path), os.O_RDONLY)


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the exclusive lock of a log."""
    try:
        handle = open_log(path)
    except OSError:  # it was removed
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _logs_folder() -> Path:
    return state_folder() / "logs"
