"""What it means how a command ended, and what it answered."""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING

from prefect_dispatch.errors import ExecutorError, RejectedError, TransientError
from prefect_dispatch.globs import Glob, means
from prefect_dispatch.junit import read_report
from prefect_dispatch.processes.logs import read_end
from prefect_dispatch.test_run import RUN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prefect_dispatch.command import Command
    from prefect_dispatch.processes.program import Kept, Ran
    from prefect_dispatch.test_run import TestRun

KEEP = 1024 * 1024
"""Bytes of the beginning and of the end of what a command prints that are kept; an answer is both at most."""
QUOTED = 600
"""Bytes of the end of its output that an error quotes."""
OUTPUT = 4_000
"""Bytes of the end of its output that a test run keeps which can't be trusted."""
MOST_REPORTED = 50_000_000
"""Bytes of all report files together."""

Seen = dict[str, tuple[int, int, int]]
"""Files as they were: when they were written, how long they are, and which they are."""


def require_success(ran: Ran, command: Command, log: Path) -> None:
    """Check that a command ended well; if it writes a report, with whatever exit code.

    Raises:
        TransientError: If it says that another try is worth it, or was silent for too long.
        RejectedError: If it failed.
    """
    if ran.stopped:
        raise _ended(TransientError, "idle", "printed nothing for too long, and was ended", ran, log)
    if ran.signal is not None:
        why = " (as the system does where memory runs out)" if ran.signal == signal.SIGKILL else ""
        raise _ended(RejectedError, "signal", f"was ended by {_name(ran.signal)}{why}", ran, log)
    if ran.exit is None:
        raise _ended(TransientError, "lost", "ended, and something else in this process took its exit code", ran, log)
    if ran.exit in command.retry:
        raise _ended(TransientError, "retry", f"asks for another try (exit code {ran.exit})", ran, log)
    if ran.exit not in command.ok and not command.report:
        raise _ended(RejectedError, "exit", f"failed (exit code {ran.exit})", ran, log)


def printed(ran: Ran, log: Path) -> str:
    """Return what a command printed as its answer, without the ends of its last line.

    Raises:
        RejectedError: If it is too long for an answer, or no text.
    """
    if not ran.stdout.is_whole:
        why = f"printed {ran.stdout.size:,} bytes, and an answer has {2 * KEEP:,} at most"
        raise RejectedError(f"The command {why}.", kind="too_large").traced(_where(log))
    try:
        return (ran.stdout.head + ran.stdout.tail).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        why = f"printed no UTF-8 text (at byte {error.start:,})"
        raise RejectedError(f"The command {why}.", kind="not_text").traced(_where(log)) from None


def seen(patterns: Iterable[str], folder: Path) -> Seen:
    """Return the files that may be taken for a report, before a command that writes one."""
    return {name: _stamp(found) for name, found in _matching(patterns, folder)}


def reported(ran: Ran, command: Command, places: dict[Path, Seen], root: str, log: Path) -> TestRun:
    """Return what the report of a command says, and its exit code with it.

    Args:
        ran: How it ended.
        command: What was run.
        places: The folders in which its globs begin, and what was there before: that is no report of this run.
        root: The folder that it ran in.
        log: What it printed; told of where the run is red.

    Raises:
        RejectedError: If its files are too large, or one is a link: what is in the rest would not be known.
    """
    files: dict[str, bytes] = {}
    left = MOST_REPORTED
    for folder, before in places.items():
        for name, found in _matching(command.report, folder):
            if before.get(name) != _stamp(found):
                if not stat.S_ISREG(found.st_mode):
                    why = f"The report {name!r} is no plain file, and a link is not followed: have it written there."
                    raise RejectedError(why, kind="report")
                left -= found.st_size
                if left < 0:
                    why = f"The reports of the command have more than {MOST_REPORTED:,} bytes together."
                    raise RejectedError(why, kind="too_large")
                files[f"./{name}" if name in files else name] = (folder / name).read_bytes()
    run = read_report(files, ran.exit, ok=command.ok, seconds=ran.seconds, root=root)
    if run.verdict != "failed":
        return run
    end = read_end(log, OUTPUT) if run.problems else ""
    cases = [case.model_copy(update={"text": end}) if case.suite == RUN else case for case in run.cases]
    return run.model_copy(update={"log": str(log), "cases": tuple(cases)})


def _matching(patterns: Iterable[str], folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in a folder that globs mean; links are not followed, as whoever made them is not known."""
    globs = [Glob.parse(pattern) for pattern in patterns]
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - {".git"})
        for file in sorted(files):
            name = os.path.relpath(os.path.join(parent, file), folder)  # noqa: PTH118 -- thousands of them
            if any(means(glob, name) for glob in globs):
                yield name, os.lstat(os.path.join(folder, name))  # noqa: PTH118 -- the same


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _ended(kind: type[ExecutorError], what: str, how: str, ran: Ran, log: Path) -> ExecutorError:
    said = next((text for kept in (ran.stderr, ran.stdout) if (text := _quoted(kept))), "it printed nothing")
    return kind(f"The command {how}: {said}", kind=what).traced(_where(log))


def _quoted(kept: Kept) -> str:
    return kept.last(QUOTED).strip()


def _where(log: Path) -> str:
    return f"(all of it: {log})"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
