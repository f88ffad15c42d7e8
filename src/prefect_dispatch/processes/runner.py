"""Run a program, and leave nothing of it behind: the one place from which programs are started."""

from __future__ import annotations

import asyncio
import selectors
from contextlib import closing, suppress
from threading import Thread
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from prefect_dispatch.processes.guard import guard_here
from prefect_dispatch.processes.log_file import LogFile
from prefect_dispatch.processes.program import KEEP, Kept, Program, Ran
from prefect_dispatch.processes.pump import Bell, Pump
from prefect_dispatch.processes.starting import started
from prefect_dispatch.processes.sweep import Mark

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COOKIE", "KEEP", "Kept", "Program", "Ran", "run"]

COOKIE = "PREFECT_DISPATCH_COOKIE"
"""The variable by which the processes that come of one program are known."""


async def run(program: Program, *, log: Path) -> Ran:
    """Run a program to its end.

    It has a session of its own, and is asked to end, and then killed, with whatever it started, when this
    coroutine is cancelled or when it is silent for too long. What it left running is ended, too, and so it is
    when this process dies.

    Args:
        program: What to run.
        log: The file that its whole output goes to, up to 20 MB, without secrets. Nobody else can read it.

    Returns:
        How it ended, and the beginning and the end of what it printed; none of its processes is there any more.

    Raises:
        ExecutorError: If it can't be started; see `started`.
        OSError: If the log can't be written.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Ran] = loop.create_future()
    bell = Bell()

    def settle(came: Ran | BaseException) -> None:
        if isinstance(came, Ran):
            done.set_result(came)
        else:
            done.set_exception(came)

    def work() -> None:
        came: Ran | BaseException
        try:
            came = _run(program, log, bell)
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            came = error
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, came)

    Thread(target=work, name="prefect-dispatch-program", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        bell.ring()
        await _come(done)
        raise
    finally:
        bell.ring()


async def _come(done: asyncio.Future[Ran]) -> None:
    """Wait for the end of a program that was asked for, however often this is cancelled meanwhile."""
    with anyio.CancelScope(shield=True):
        while not done.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([done])
    done.exception()  # nobody else looks at it


def _run(program: Program, log: Path, bell: Bell) -> Ran:
    """Run a program, in a thread of its own."""
    cookie = Mark(COOKIE, uuid4().hex)
    with closing(bell), selectors.DefaultSelector() as selector:
        guard = guard_here()
        with closing(LogFile(log)) as written:
            process = started(program, dict((cookie, guard.mark)))
            with guard.watching(process.pid):
                ran = Pump(process, program, cookie, written, bell, selector).run()
            written.end(ran)
    return ran
