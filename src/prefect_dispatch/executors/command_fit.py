"""Can a brief's command be run? Found out before anything is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.attempts import Usage
from prefect_dispatch.errors import JobError, TerminalError
from prefect_dispatch.processes.environment import MARKED
from prefect_dispatch.scrub import is_secret_name, scrub
from prefect_dispatch.test_run import TestRun

if TYPE_CHECKING:
    from prefect_dispatch.command import Command
    from prefect_dispatch.models import Brief


def require_command(brief: Brief, operation: str | None) -> Command | None:
    """Return the command of a brief that is to be run, found to be fit for it; None where a block says what is run.

    Args:
        brief: The brief.
        operation: The name of that block.

    Raises:
        JobError: If there isn't one thing to run, or it has a secret, or its report isn't what is asked for.
    """
    command = brief.command
    if operation and command:
        raise JobError(
            f"Brief {brief.name!r} has a command, and the block {operation!r} is to be run in place of it: leave the "
            "command out, or executor.operation."
        )
    if operation or command is None:
        if operation:
            return None
        raise JobError(
            f"Brief {brief.name!r} has no command, and a shell runs one: give it a command, such as "
            "{run: 'wc -w'}, or name a ShellOperation block under executor.operation."
        )
    require_plain(brief.name, command)
    if command.report and brief.output is not TestRun:
        raise JobError(
            f"Brief {brief.name!r}: its command has a report, so that the answer is what that says: set output: "
            "prefect_dispatch.test_run:TestRun, or leave the report out."
        )
    return command


def require_plain(brief: str, command: Command) -> None:
    """Check that the variables which a command sets hold no secret, and are none that are set for it anyway.

    Args:
        brief: The brief's name.
        command: Its command.

    Raises:
        JobError: If they don't.
    """
    for name, value in command.env.items():
        if MARKED.fullmatch(name):
            raise JobError(f"Brief {brief!r}: command.env: {name!r} is set for each item; call it something else.")
        if is_secret_name(name) or scrub(value) != value:
            raise JobError(
                f"Brief {brief!r}: command.env: {name!r} looks like a secret, and a job holds none: set it in the "
                "environment of the run, and name it under executor.pass_env."
            )


def within(cwd: str, folder: Path | None) -> str:
    """Return a folder's plain name, found to be one that is within another.

    Args:
        cwd: What the job says.
        folder: The job's folder; None where it is a workspace, of which nothing is there yet.

    Raises:
        JobError: If it leads out of it, or isn't there.
    """
    inside = Path(os.path.normpath(cwd))
    if inside.is_absolute() or ".." in inside.parts:
        raise JobError(f"executor.cwd: {cwd!r} leads out of the job's folder; name a folder in it.")
    if folder is not None and not Path(folder, inside).is_dir():
        raise JobError(f"executor.cwd: there is no folder {cwd!r} in {str(folder)!r}.")
    if folder is not None and not Path(folder, inside).resolve().is_relative_to(folder.resolve()):
        raise JobError(f"executor.cwd: {cwd!r} is a link that leads out of the job's folder; name a folder in it.")
    return inside.as_posix()


def inside(room: Path, cwd: str) -> Path:
    """Return a folder of an open workspace.

    Args:
        room: The workspace; its path leads through no link.
        cwd: The folder's plain name.

    Raises:
        TerminalError: If it isn't there, or a link leads out.
    """
    folder = room / cwd
    if folder.is_dir() and folder.resolve().is_relative_to(room):
        return folder
    raise TerminalError(
        f"executor.cwd: {cwd!r} is no folder of the workspace, or a link that leads out of it, once it is set up.",
        kind="folder",
        usage=Usage(),
    )


def require_program(brief: str, command: Command, folder: Path | None) -> None:
    """Check that a command's program is there.

    Args:
        brief: The brief's name.
        command: The command.
        folder: Where it will run; None where that folder isn't there yet.

    Raises:
        JobError: If it isn't.
    """
    name = command.argv[0]
    if "/" in name:
        path = Path(name) if folder is None else folder / name
        if (folder is None and not path.is_absolute()) or os.access(path, os.X_OK):
            return
    elif shutil.which(name, path=command.env.get("PATH", os.environ.get("PATH", os.defpath))):
        return
    raise JobError(
        f"Brief {brief!r}: command.run: the program {name!r} isn't here, or can't be run; install it, or name it by "
        "its path. A list is a program and its arguments, a text is a line for a shell."
    )
