"""One run of a command: a place to run in, the item, and what came of it."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.executors.command_fit import inside
from prefect_dispatch.executors.command_reply import KEEP, QUOTED, Seen, printed, reported, require_success, seen
from prefect_dispatch.executors.item_variables import on_stdin, variables
from prefect_dispatch.executors.operation import operation
from prefect_dispatch.models import Usage
from prefect_dispatch.processes.environment import environment, own_folder
from prefect_dispatch.processes.leases import lease
from prefect_dispatch.processes.logs import new_log, quote_end
from prefect_dispatch.processes.runner import Program, run
from prefect_dispatch.workspaces.rooms import finished, opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.change import Change
    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.executors.shell import Shell
    from prefect_dispatch.workspaces.rooms import Room

REPORTS = "REPORT_DIR"
"""The variable that names the folder for reports: each run has one of its own."""
SILENT = "(printed nothing)"
"""The answer of a command that has ended well and printed nothing: for many, that is all they have to say."""

_log = logging.getLogger("prefect_dispatch")


@dataclass(frozen=True)
class _Place:
    folder: Path
    """Where the command runs."""
    env: Mapping[str, str]
    """What it gets to see."""
    reports: Path
    """Where it can write a report without meeting another."""
    room: Room | None = None
    """The workspace that it is in."""


async def carried_out(shell: Shell, ask: Ask) -> Reply:
    """Return what a command answers.

    Args:
        shell: The executor, placed.
        ask: The brief and the item.

    Raises:
        ExecutorError: If it fails, or can't be run.
    """
    block = await finished(operation, shell.operation) if shell.operation else None
    command = block.command if block else ask.brief.command
    if command is None:
        raise TerminalError(f"Brief {ask.brief.name!r} has no command to run.", kind="command", usage=Usage())
    given = variables(ask.item, stdin=command.stdin)
    async with _place(shell, block.cwd if block else None) as place:
        program = Program(
            argv=command.argv,
            env={**place.env, **(block.env if block else {}), **command.env, **given},
            cwd=place.folder,
            stdin=on_stdin(ask.item) if command.stdin else b"",
            idle_s=shell.idle_s,
            keep=KEEP,
        )
        log = new_log()
        before = await finished(seen, command.report, place.folder) if place.room else Seen()
        try:
            ran = await run(program, log=log)
        except CancelledError:
            quote_end(log, QUOTED)
            _log.warning("%s/%s was ended; what it printed: %s", ask.brief.name, ask.item.key, log)
            raise
        _log.debug("%s/%s printed: %s", ask.brief.name, ask.item.key, log)
        require_success(ran, command, log)
        if command.report:
            places = {place.reports: Seen(), **({place.folder: before} if place.room else {})}
            run_of_tests = await finished(reported, ran, command, places, str(place.folder), log)
            value: JsonValue = run_of_tests.model_dump(mode="json")
        else:
            value = printed(ran, log)
        change = await place.room.change(ask.brief.writes) if place.room and ask.brief.writes else None
        if isinstance(value, str) and not value.strip() and (change or ask.brief.output == "text"):
            value = _told(change)
        return Reply(value=value, model=shell.name, change=change)


@asynccontextmanager
async def _place(shell: Shell, cwd: Path | None) -> AsyncGenerator[_Place, None]:
    """Have a place for one run, which is gone afterwards."""
    if shell.workspace:
        async with opened(shell.workspace, pass_env=shell.pass_env) as room:
            reports = own_folder(room.lease.path / "reports")
            folder = await finished(inside, room.path, shell.cwd)
            yield _Place(folder, {**room.env, REPORTS: str(reports)}, reports, room)
        return
    stack = ExitStack()
    try:
        yield await finished(_made, stack, shell, cwd or shell.folder)
    finally:
        await finished(stack.close)


def _made(stack: ExitStack, shell: Shell, folder: Path) -> _Place:
    mine = stack.enter_context(lease(about={"folder": str(folder)}))
    reports = own_folder(mine.path / "reports")
    return _Place(folder, environment(mine, pass_env=shell.pass_env, more={REPORTS: str(reports)}), reports)


def _told(change: Change | None) -> str:
    """Return what a command that printed nothing has done all the same."""
    if change is None:
        return SILENT
    return "\n".join(f"{file.change} {file.path}" for file in change.files) or "nothing changed"
