"""Start a program, or say in words what is wrong with it."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.processes.program import Program

_SCARCE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def started(program: Program, marks: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Return a program that runs, in a session of its own.

    Args:
        program: What to run.
        marks: Variables that it gets beside its own.

    Raises:
        ExecutorError: If it can't be started; nothing was spent. It is terminal where no item would change that.
    """
    try:
        return subprocess.Popen(  # noqa: S603 -- the job's own program; items are only in its environment and input
            list(program.argv),
            env={**program.env, **marks},
            cwd=program.cwd,
            stdin=subprocess.PIPE if program.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except ValueError:  # NUL
        raise RejectedError("A NUL character can't be passed to a program.", kind="nul", usage=Usage()) from None
    except OSError as error:
        raise _failure(program, error) from None


def _failure(program: Program, error: OSError) -> ExecutorError:
    """Return what it means for other items that a program can't be started."""
    name, reason = scrub(repr(program.argv[0])), error.strerror
    if not program.cwd.is_dir():
        return TerminalError(f"The folder {str(program.cwd)!r} isn't there.", kind="missing_folder", usage=Usage())
    if error.errno == errno.E2BIG:
        return RejectedError(
            f"{name} can't be started: its arguments and environment are too long.", kind="too_large", usage=Usage()
        )
    if error.errno in _SCARCE:
        return TransientError(f"{name} can't be started now: {reason}.", kind="resources", usage=Usage())
    if isinstance(error, FileNotFoundError):
        return TerminalError(f"{name} {_missing(program)}.", kind="missing_program", usage=Usage())
    hint = "; a script begins with a line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
    return TerminalError(f"{name} can't be run: {reason}{hint}.", kind="not_executable", usage=Usage())


def _missing(program: Program) -> str:
    """Return what isn't there: the program, or what is to run it."""
    if Path(program.cwd, program.argv[0]).is_file():
        return "can't be run: what its first line names isn't there"
    return "is not installed here" + ("" if "/" in program.argv[0] else ": it is in no folder of PATH")
