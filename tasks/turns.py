"""Whose turn it is: the work that waits, in order, by the stages and the locks that it must keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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
        self.waiting = sorted(work, key=self._stage)
        self._held: set[str] = set()

    def next(self, under_way: Collection[Work]) -> Work | None:
        """Take the first piece of work whose locks are free, of a stage before which nothing is under way."""
        lowest = min(map(self._stage, under_way), default=None)
        for place, work in enumerate(self.waiting):
            if self._stage(work) != (self._stage(self.waiting[0]) if lowest is None else lowest):
                return None
            if self._held.isdisjoint(self._locks.get(work.ref, NO_LOCKS)):
                del self.waiting[place]
                return work
        return None

    def first(self, work: list[Work]) -> None:
        """Put work before all that waits."""
        self.waiting[:0] = work

    def begin(self, work: Work) -> None:
        """Take the locks of some work."""
        self._held |= self._locks.get(work.ref, NO_LOCKS)

    def end(self, work: Work) -> None:
        """Give its locks back."""
        self._held -= self._locks.get(work.ref, NO_LOCKS)

    def _stage(self, work: Work) -> int:
        return self._stages.get(work.ref, 0)
