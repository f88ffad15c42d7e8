"""One run of an agent in an open workspace, and of what must pass there afterwards."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.executors.coding.adapter import Printed
from prefect_dispatch.executors.item_variables import on_stdin, variables
from prefect_dispatch.processes.logs import new_log
from prefect_dispatch.processes.runner import Program, Ran, run
from prefect_dispatch.workspaces.rooms import finished

if TYPE_CHECKING:
    from prefect_dispatch.command import Command
    from prefect_dispatch.executors.coding.adapter import Adapter, Launch
    from prefect_dispatch.models import Item
    from prefect_dispatch.workspaces.rooms import Room

KEEP = 4 * 1024 * 1024
"""Bytes of the beginning and of the end of what an agent prints that are read."""
LARGEST = 64 * 1024 * 1024
"""Bytes of a file that is read from an agent's HOME."""
PAUSES_S = (2.0, 8.0, 30.0)
"""How long to wait before an acceptance command is tried again that says so."""
TAIL = 2_000
"""Bytes of the end of what an acceptance command says that are sent back."""


async def work(adapter: Adapter, launch: Launch, room: Room, idle_s: float | None, log: Path) -> tuple[Ran, Printed]:
    """Run an agent; return how it ended, and what it left behind.

    Args:
        adapter: The agent's.
        launch: How it is started; the files that are written for it are gone afterwards.
        room: The workspace.
        idle_s: Seconds without any output after which it is ended.
        log: Where all that it prints goes.

    Raises:
        ExecutorError: If it can't be started.
    """
    await finished(_write, launch)
    program = Program(
        argv=launch.argv,
        env={**room.env, **launch.env},
        cwd=launch.cwd,
        stdin=launch.stdin.encode("utf-8", "replace"),
        idle_s=idle_s,
        keep=KEEP,
    )
    try:
        ran = await run(program, log=log)
    finally:  # what runs in the workspace afterwards finds no key
        for path in launch.files:
            with suppress(OSError):  # the agent has removed it, or put something else in its place
                path.unlink()
    files = await finished(_read, Path(room.env["HOME"]), adapter.reads)
    return ran, Printed(ran.stdout.text, ran.stderr.text, files, ran.exit)


async def accepted(command: Command, item: Item, room: Room) -> str:
    """Run what must pass in a workspace; return what is wrong, or nothing.

    It gets the workspace's environment, in which there is no key of the agent's.

    Args:
        command: The brief's.
        item: The item; the command gets to see it as one that a `Shell` runs does.
        room: The workspace, with all that the agent left.

    Where its exit code means that it should be tried again later, it is, after each of `PAUSES_S`: the work that was
    paid for stands.

    Raises:
        ExecutorError: If it can't be started, or see the item.
    """
    given = variables(item, stdin=command.stdin)
    program = Program(
        argv=command.argv,
        env={**room.env, **command.env, **given},
        cwd=room.path,
        stdin=on_stdin(item) if command.stdin else b"",
    )
    ran = await run(program, log=new_log())
    for pause_s in PAUSES_S:
        if ran.exit not in command.retry or ran.exit in command.ok:
            break
        await asyncio.sleep(pause_s)
        ran = await run(program, log=new_log())
    if ran.exit in command.ok:
        return ""
    ended = f"exit code {ran.exit}" if ran.signal is None else f"signal {ran.signal}"
    said = "\n".join(text for each in (ran.stdout, ran.stderr) if (text := each.last(TAIL).strip()))
    return f"The acceptance command ended with {ended}, and said at last:\n{said or '(nothing)'}"


def _write(launch: Launch) -> None:
    for path, text in launch.files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(text.encode("utf-8", "replace"))


def _read(home: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the text of files in an agent's HOME; what it has put there in their place is passed over."""
    return {name: text for name in names if (text := _text(home / name)) is not None}


def _text(path: Path) -> str | None:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        known = os.fstat(number)
        if not stat.S_ISREG(known.st_mode) or known.st_size > LARGEST:
            return None
        with os.fdopen(number, "rb", closefd=False) as file:
            return file.read(LARGEST).decode("utf-8", "replace")
    finally:
        os.close(number)
