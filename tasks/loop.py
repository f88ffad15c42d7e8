"""One event loop a process, in a thread of its own, for every ask.

Task runs are threads (Prefect maps them so with the least overhead) and only
wait here; all calls share the loop and with it their connections, and a time
limit or an interruption cancels the call itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict, deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

THREADS = 32
"""Reads and writes of a storage that can be under way at once."""
LOOK_S = 1.0
"""Seconds between two looks whether an exception was sent to a thread that waits."""
EACH = 4
"""For how many of them that wait a thread is woken."""
TOLD_S = 0.002
"""How long the first of a few calls that a thread has made may wait until they are told of together."""

_lock = threading.Lock()
_under_way: defaultdict[str, set[Future[Any]]] = defaultdict(set)


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:  # noqa: ARG001 -- a forked process has none of its parent's threads
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch"))
    threading.Thread(target=loop.run_forever, name="prefect-dispatch", daemon=True).start()
    return loop


def run(coroutine: Coroutine[Any, Any, T], *, group: str) -> T:
    """Run a coroutine on the shared loop and wait for it.

    Args:
        coroutine: What to run.
        group: The name under which `cancel` finds it.

    Returns:
        What the coroutine returns.

    Raises:
        CancelledError: If the group was cancelled meanwhile.
    """
    with _lock:
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    with _lock:
        _under_way[group].add(future)
    try:
        while not wait([future], LOOK_S).done:  # an exception that is sent to this thread is raised in between
            pass
        return future.result()
    finally:
        with _lock:
            _under_way[group].discard(future)
            if not _under_way[group]:
                del _under_way[group]


def cancel(group: str) -> int:
    """Cancel what a group has under way; return how much that was."""
    with _lock:
        futures = list(_under_way.get(group, ()))
    return sum(future.cancel() for future in futures)


async def in_thread(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Call a function in another thread; come back when it has ended, even if cancelled meanwhile."""
    return await _in_thread(partial(function, *arguments, **named), first=False)


async def first_in_thread(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Do the same before all that waits for a thread: for whoever holds a place meanwhile.

    To bring an answer to the disk takes long, and many are there at once.
    """
    return await _in_thread(partial(function, *arguments, **named), first=True)


async def _in_thread(function: Callable[[], T], *, first: bool) -> T:
    call = _hands(asyncio.get_running_loop()).take(partial(copy_context().run, function), first=first)
    try:
        return cast("T", await asyncio.shield(call))
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


class _Call(NamedTuple):
    """What a thread is to call."""

    function: Callable[[], object]
    future: asyncio.Future[object]
    first: bool
    """Whether somebody holds a place meanwhile."""


class _Ended(NamedTuple):
    """What came of a call."""

    future: asyncio.Future[object]
    said: object
    error: BaseException | None


class _Hands:
    """Threads that take several calls each: to wake one, and the loop again, costs more than most calls do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch-hands")
        self._first, self._waiting = deque[_Call](), deque[_Call]()
        self._coming = False
        self._at_work = 0

    def take(self, function: Callable[[], object], *, first: bool) -> asyncio.Future[object]:
        """Return the future of a call that some thread will make, before all others or after them."""
        future = self._loop.create_future()
        (self._first if first else self._waiting).append(_Call(function, future, first))
        if not self._coming:
            self._coming = True
            self._loop.call_soon(self._send)  # once for all calls of this moment
        return future

    def _send(self) -> None:
        self._coming = False
        for _ in range(min(-(-(len(self._first) + len(self._waiting)) // EACH), THREADS - self._at_work)):
            self._at_work += 1
            self._threads.submit(self._work)

    def _next(self) -> _Call | None:
        for waiting in (self._first, self._waiting):
            with suppress(IndexError):
                return waiting.popleft()
        return None

    def _work(self) -> None:
        ended: list[_Ended] = []
        told, awaited = time.monotonic(), False
        while call := self._next():
            if (awaited and not call.first) or time.monotonic() - told > TOLD_S:
                self._loop.call_soon_threadsafe(self._tell, ended)
                ended, told, awaited = [], time.monotonic(), False
            try:
                ended.append(_Ended(call.future, call.function(), None))
            except BaseException as error:  # noqa: BLE001 -- raised where it is awaited
                ended.append(_Ended(call.future, None, error))
            awaited |= call.first
        self._loop.call_soon_threadsafe(self._left, ended)

    def _tell(self, ended: list[_Ended]) -> None:
        for future, said, error in ended:
            if error is None:
                future.set_result(said)
            else:
                future.set_exception(error)

    def _left(self, ended: list[_Ended]) -> None:
        self._at_work -= 1
        self._tell(ended)
        if self._first or self._waiting:  # they came as the last thread looked
            self._send()


@lru_cache(maxsize=8)
def _hands(loop: asyncio.AbstractEventLoop) -> _Hands:
    return _Hands(loop)


__all__ = ["CancelledError", "cancel", "first_in_thread", "in_thread", "run"]
