"""One event loop a process, in a thread of its own, for every ask.

Task runs are threads (Prefect maps them so with the least overhead) and only
wait here; all calls share the loop and with it their connections, and a time
limit or an interruption cancels the call itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

THREADS = 32
"""Reads and writes of a storage elsewhere that can be under way at once."""

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


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in another thread; come back when it has ended, even if cancelled meanwhile."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


__all__ = ["CancelledError", "cancel", "in_thread", "run"]
