"""Whose turn it is: the work that waits, in order, by the stages and the locks that it must keep to."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefect_dispatch.tasks.independence import Independence
    from prefect_dispatch.tasks.work import Work

NO_LOCKS: frozenset[str] = frozenset()


class Turns:
    """The work of a fan-out that waits.

    Attributes:
        waiting: What has not had its turn, in order.
    """

    def __init__(self, work: Iterable[Work], independence: Independence) -> None:
        """Keep what waits, and the locks and stages that it must keep to."""
        self._locks, self._stages = independence.locks, independence.stages
        self.waiting = deque(sorted(work, key=self._stage))
        self._held: set[str] = set()
        self._under_way: Counter[int] = Counter()

    def next(self) -> Work | None:
        """Begin the first piece of work whose locks are free, of a stage before which nothing is under way."""
        lowest = min(self._under_way, default=None)
        for place, work in enumerate(self.waiting):
            if self._stage(work) != (self._stage(self.waiting[0]) if lowest is None else lowest):
                return None
            locks = self._locks.get(work.ref, NO_LOCKS)
            if self._held.isdisjoint(locks):
                del self.waiting[place]
                self._held |= locks
                self._under_way[self._stage(work)] += 1
                return work
        return None

    def first(self, work: list[Work]) -> None:
        """Put work before all that waits."""
        self.waiting.extendleft(reversed(work))

    def take(self, wanted: Callable[[Work], bool]) -> list[Work]:
        """Take out of what waits whatever is wanted."""
        taken = [work for work in self.waiting if wanted(work)]
        if taken:
            self.waiting = deque(work for work in self.waiting if not wanted(work))
        return taken

    def end(self, work: Work) -> None:
        """Give back the locks of work that was begun."""
        self._held -= self._locks.get(work.ref, NO_LOCKS)
        self._under_way -= Counter({self._stage(work): 1})

    def _stage(self, work: Work) -> int:
        return self._stages.get(work.ref, 0) if self._stages else 0
