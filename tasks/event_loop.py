"""Shared event loop: one per process, in a thread of its own, for all asks.

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
"""Reads and writes of a storage in progress at once, at most."""
CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether an exception was sent to a waiting thread."""
CALLS_PER_WORKER = 4
"""Waiting calls for which one thread is started."""
REPORT_S = 0.002
"""Seconds that the result of a finished call may wait, so that a thread reports several results at once."""

_lock = threading.Lock()
_running: defaultdict[str, set[Future[Any]]] = defaultdict(set)


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:  # noqa: ARG001 -- a fork has none of its parent's threads
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch"))
    threading.Thread(target=loop.run_forever, name="prefect-dispatch", daemon=True).start()
    return loop


def run(coroutine: Coroutine[Any, Any, T], *, group: str) -> T:
    """Run a coroutine on the shared loop and wait for it.

    Args:
        coroutine: The coroutine.
        group: The name under which `cancel` finds it.

    Returns:
        What the coroutine returns.

    Raises:
        CancelledError: If the group was cancelled.
    """
    with _lock:
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    with _lock:
        _running[group].add(future)
    try:
        while not wait(
            [future], CHECK_INTERVAL_S
        ).done:  # an exception that is sent to this thread is raised in between
            pass
        return future.result()
    finally:
        with _lock:
            _running[group].discard(future)
            if not _running[group]:
                del _running[group]


def cancel(group: str) -> int:
    """Cancel all coroutines of a group; return their number."""
    with _lock:
        futures = list(_running.get(group, ()))
    return sum(future.cancel() for future in futures)


async def run_in_pool(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Call a function in a pool thread; return when it has ended, even if this coroutine is cancelled before."""
    return await _run_in_pool(partial(function, *arguments, **named), urgent=False)


async def run_in_pool_urgent(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Do the same with priority over other waiting calls: for callers that hold a place of the run.

    Syncing an answer to the disk takes long, and many are waiting at once.
    """
    return await _run_in_pool(partial(function, *arguments, **named), urgent=True)


async def _run_in_pool(function: Callable[[], T], *, urgent: bool) -> T:
    call = _pool_of(asyncio.get_running_loop()).submit(partial(copy_context().run, function), urgent=urgent)
    # A thread can't be cancelled: wait for its end, then raise.
    try:
        return cast("T", await asyncio.shield(call))
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


class _Call(NamedTuple):
    """Call that waits for a thread."""

    function: Callable[[], object]
    future: asyncio.Future[object]
    urgent: bool
    """Whether it has priority."""


class _CallResult(NamedTuple):
    """Result of a call."""

    future: asyncio.Future[object]
    result: object
    error: BaseException | None


class _BatchingPool:
    """Thread pool that runs calls in batches: waking a thread, and the loop again, costs more than most calls do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch-hands")
        self._urgent, self._waiting = deque[_Call](), deque[_Call]()
        self._start_scheduled = False
        self._active_workers = 0

    def submit(self, function: Callable[[], object], *, urgent: bool) -> asyncio.Future[object]:
        """Queue a call, before or after the others; return its future."""
        future = self._loop.create_future()
        (self._urgent if urgent else self._waiting).append(_Call(function, future, urgent))
        if not self._start_scheduled:
            self._start_scheduled = True
            self._loop.call_soon(self._start_workers)  # once for all calls of this moment
        return future

    def _start_workers(self) -> None:
        self._start_scheduled = False
        # Start one thread for every EACH waiting calls, up to the limit.
        for _ in range(
            min(-(-(len(self._urgent) + len(self._waiting)) // CALLS_PER_WORKER), THREADS - self._active_workers)
        ):
            self._active_workers += 1
            self._threads.submit(self._run_calls)

    def _next_call(self) -> _Call | None:
        for waiting in (self._urgent, self._waiting):
            with suppress(IndexError):
                return waiting.popleft()
        return None

    def _run_calls(self) -> None:
        ended: list[_CallResult] = []
        reported_at, has_urgent = time.monotonic(), False
        while call := self._next_call():
            # Report results before a call without priority would delay that of an urgent one, or once they are due.
            if (has_urgent and not call.urgent) or time.monotonic() - reported_at > REPORT_S:
                self._loop.call_soon_threadsafe(self._resolve_futures, ended)
                ended, reported_at, has_urgent = [], time.monotonic(), False
            try:
                ended.append(_CallResult(call.future, call.function(), None))
            except BaseException as error:  # noqa: BLE001 -- raised where it is awaited
                ended.append(_CallResult(call.future, None, error))
            has_urgent |= call.urgent
        self._loop.call_soon_threadsafe(self._finish_worker, ended)

    def _resolve_futures(self, ended: list[_CallResult]) -> None:
        for future, result, error in ended:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _finish_worker(self, ended: list[_CallResult]) -> None:
        self._active_workers -= 1
        self._resolve_futures(ended)
        if self._urgent or self._waiting:  # queued after this thread's last check
            self._start_workers()


@lru_cache(maxsize=8)
def _pool_of(loop: asyncio.AbstractEventLoop) -> _BatchingPool:
    return _BatchingPool(loop)


__all__ = ["CancelledError", "cancel", "run", "run_in_pool", "run_in_pool_urgent"]
