"""Those who wait for something, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Line(Generic[T]):
    """Waits in order, and loses nothing where a waiting task is cancelled.

    Args:
        pump: Called when the front of the line may have changed; grants or refuses from there on.
        give_back: Called with what was granted to a task that was cancelled before it knew.
    """

    def __init__(self, pump: Callable[[], None], give_back: Callable[[T], None]) -> None:
        """Start with nobody waiting."""
        self._pump = pump
        self._give_back = give_back
        self._places: deque[tuple[T, asyncio.Future[None]]] = deque()

    async def wait(self, who: T) -> None:
        """Wait to be granted.

        Raises:
            Exception: What it was refused with.
        """
        place = (who, asyncio.get_running_loop().create_future())
        self._places.append(place)
        self._pump()
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._places:
                self._places.remove(place)
                self._pump()
            elif not place[1].cancelled() and place[1].exception() is None:
                self._give_back(who)
            raise

    def waiting(self) -> list[T]:
        """Return who waits, first come first."""
        return [who for who, future in self._places if not future.done()]

    def first(self) -> T | None:
        """Return who is next."""
        while self._places and self._places[0][1].done():  # cancelled, and not yet told
            self._places.popleft()
        return self._places[0][0] if self._places else None

    def grant(self) -> None:
        """Let the first one go."""
        self._places.popleft()[1].set_result(None)

    def refuse(self, who: T, error: Exception) -> None:
        """Send one away, wherever it stands."""
        place = next(place for place in self._places if place[0] is who)
        self._places.remove(place)
        place[1].set_exception(error)
