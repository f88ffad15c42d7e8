"""An event loop whose clock jumps: what takes an hour of waiting takes no time, and the same time on every machine."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class _Clock(selectors.SelectSelector):
    """A selector that never waits: where nothing is ready, it puts the time forward instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready at once; else let the time pass that the loop would have waited."""
        ready = super().select(0)
        if timeout is None and not ready:
            msg = "Everything waits, and nothing will ever end it."
            raise AssertionError(msg)
        self.now += 0 if ready else timeout or 0
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time; only for what does no input or output."""

    def __init__(self) -> None:
        """Start at zero."""
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the seconds that have passed."""
        return self._clock.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time, and end what it leaves behind."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(_end(asyncio.all_tasks(loop)))
        loop.close()


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
