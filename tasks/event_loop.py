"""Shared event loop: one per process, in a thread of its own, for all asks.

Task runs are threads (Prefect maps them so with the least overhead) and only
wait here; all calls share the loop and with it their connections, and a time
limit or an interruption cancels the call itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import defaultdict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_dispatch.errors import JobError

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

THREADS = 32
"""Reads and writes of a storage in progress at once, at most."""
CHECK_INTERVAL_S = 1.0
"""Seconds between two checks whether an exception was sent to a waiting thread."""
OPEN_FILES = 10_240
"""Open files that are asked for: each call has a connection. macOS allows 256 by default, and no more than this."""
OTHER_FILES = 100
"""Open files of a process beside those of its calls, about."""

_lock = threading.Lock()
_running: defaultdict[str, set[Future[Any]]] = defaultdict(set)


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:  # noqa: ARG001 -- a fork has none of its parent's threads
    allow_open_files()
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch"))
    threading.Thread(target=loop.run_forever, name="prefect-dispatch", daemon=True).start()
    return loop


def allow_open_files() -> int:
    """Allow this process as many open files as its calls may need; return how many it may have."""
    if sys.platform == "win32":  # pragma: no cover -- no such limit
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        with suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def require_open_files(calls: int) -> None:
    """Check that this process may have enough open files for as many calls at once.

    Raises:
        JobError: If it may not, even after the limit was raised as far as possible.
    """
    allowed = allow_open_files()
    if calls + OTHER_FILES > allowed:
        raise JobError(
            f"limits.concurrency: {calls} calls at once need about {calls + OTHER_FILES} open files, and this process "
            f"may have {allowed}; choose at most {max(1, allowed - OTHER_FILES)}, or raise that limit (`ulimit -Hn`)."
        )


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
    call = asyncio.get_running_loop().run_in_executor(
        _pool(os.getpid()), partial(copy_context().run, partial(function, *arguments, **named))
    )
    # A thread can't be cancelled: wait for its end, then raise.
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait({call})
        raise


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 -- a fork has none of its parent's threads
    return ThreadPoolExecutor(THREADS, thread_name_prefix="prefect-dispatch-pool")


__all__ = ["CancelledError", "cancel", "run", "run_in_pool"]
