"""How code of the user's is run: a function in a thread, a coroutine in a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_Came = tuple[object, BaseException | None]
CLEANUP_S = 5.0
"""Seconds that a coroutine which was cancelled has to clean up."""


async def in_thread(call: Callable[[], object]) -> object:
    """Return what a call in a thread of its own returns.

    Where the wait is cancelled, the call goes on, as no thread can be ended, and what it returns is dropped. The end
    of the process doesn't wait for it.

    Raises:
        ExecutorError: If it raises: what it raises, or what says so.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Came] = loop.create_future()
    context = contextvars.copy_context()

    def settle(came: _Came) -> None:
        if not future.done():
            future.set_result(came)

    def work() -> None:
        came: _Came
        try:
            came = context.run(call), None
        except BaseException as error:  # noqa: BLE001 -- an exit in a function is that item's failure, too
            came = None, error
        with suppress(RuntimeError):  # most have none; what an agent runs in when called so leaves its own behind
            asyncio.get_event_loop().close()
        with suppress(RuntimeError):  # the loop is gone, and nobody waits
            loop.call_soon_threadsafe(settle, came)

    threading.Thread(target=work, name="prefect-dispatch-python", daemon=True).start()
    return _value(*await future)


async def in_task(awaitable: Awaitable[object]) -> object:
    """Return what an awaitable comes to; where the wait is cancelled, it is, too.

    Raises:
        ExecutorError: If it raises, or cancels itself, which must not look like the end of the run.
    """

    async def kept() -> _Came:
        try:
            return await awaitable, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 -- an exit would end the event loop
            return None, error

    task = asyncio.ensure_future(kept())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=CLEANUP_S)
        raise
    if task.cancelled():
        raise ExecutorError("It cancelled itself.", kind="cancelled")
    return _value(*task.result())


def _value(value: object, error: BaseException | None) -> object:
    if error is None:
        return value
    if isinstance(error, ExecutorError):
        raise error
    raise ExecutorError(told(error)) from error
