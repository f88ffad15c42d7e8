"""Work that a process was to do which died: looked for in the store, and asked again.

What was under way is suspected to have killed its process, and has ever fewer neighbours each time. The rest goes on as
if nothing had happened.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from prefect_dispatch.amounts import NOTHING, used
from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.models import Attempt, Usage
from prefect_dispatch.scrub import told
from prefect_dispatch.tasks.draft_records import SUFFIX, read, was_sent
from prefect_dispatch.tasks.shards import Came
from prefect_dispatch.tasks.store import key_of, stored_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefect_dispatch.amounts import Amount
    from prefect_dispatch.models import Answer
    from prefect_dispatch.tasks.shelf import Shelf
    from prefect_dispatch.tasks.work import Work

SMALLER = 32
"""By how much a shard is smaller each time, so that what kills its process is alone at last."""
MANY = 4
"""Times after which it is alone, however large it was."""


class Losses:
    """What processes that died had to do, of one fan-out."""

    def __init__(self, shelf: Shelf, most: int) -> None:
        """Keep where answers are stored, and how often work is asked again."""
        self._shelf, self._most = shelf, most
        self._since = datetime.now(timezone.utc)
        self._died: dict[str, int] = {}

    @property
    def last(self) -> bool:
        """Whether some of it is asked for the last time: then nothing else, as who dies beside it would count."""
        return any(died >= self._most for died in self._died.values())

    def size(self, whole: int) -> int:
        """Return how many items a shard may take, of those that it takes otherwise."""
        times: int = max(self._died.values(), default=0)
        return max(1, whole // SMALLER**times) if times < MANY else 1

    def of(self, work: Iterable[Work], why: object) -> list[Came]:
        """Return what came of work whose process died: what this fan-out has stored, or nothing yet, or an error.

        What is suspected comes last: so it is asked first, and soon no longer makes shards small.
        """
        come = [Came(each, self._stored(each)) for each in work]
        lost: list[Work] = [each.work for each in come if each.said is None]
        sent = [each for each in lost if was_sent(self._shelf, key_of(each.fingerprint))]
        suspects = sent or lost  # where nothing was under way, any of them may keep its process from beginning
        names: set[str] = {each.fingerprint for each in suspects}
        rest = [each for each in come if each.work.fingerprint not in names]
        return rest + [self._suspected(each, why) for each in suspects]

    def over(self, come: Iterable[Came]) -> None:
        """Forget what came to its end."""
        for each in come:
            if each.said is not None:
                self._died.pop(each.work.fingerprint, None)

    def _suspected(self, work: Work, why: object) -> Came:
        times = self._died[work.fingerprint] = self._died.get(work.fingerprint, 0) + 1
        if times <= self._most:
            return Came(work, None)
        reason = f" ({told(why)})" if isinstance(why, BaseException) else ""
        said = f"The process that was to ask has died{reason}; that was the {_ordinal(times)} time (limits.retries)."
        error = ExecutorError(said, kind="crashed")
        error.attempts = tuple(self._attempts(work, f"crashed: {said}"))
        return Came(work, error)

    def _attempts(self, work: Work, error: str) -> Iterator[Attempt]:
        """Take over what the draft tells of calls: it is told here, and not once more by the next run."""
        key = key_of(work.fingerprint)
        left = read(self._shelf, key + SUFFIX)
        if left is None or not (left.pending or left.lost or left.replies):
            return
        lost = left.lost + left.pending
        usage = sum((kept.reply.usage for kept in left.replies), Usage(requests=lost, unsettled=lost))
        yield Attempt(started=datetime.now(timezone.utc), usage=usage, error=error)
        self._shelf.write(key + SUFFIX, left.told.content)

    def _stored(self, work: Work) -> Answer | None:
        """Return the stored answer to some work, if it was asked for since the fan-out began."""
        answer = stored_answer(self._shelf, work)
        began = answer.attempts[-1].started if answer and answer.attempts else None
        return answer if began is not None and began >= self._since else None


def _ordinal(number: int) -> str:
    """Return a number as a place in a row.

    Example:
        >>> [_ordinal(number) for number in (1, 2, 3, 4)]
        ['first', 'second', 'third', '4th']
    """
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def spent_on(come: Iterable[Came]) -> Amount:
    """Return what was spent on what came."""
    attempts = [attempt for each in come for attempt in getattr(each.said, "attempts", ()) if not each.stored]
    return sum((used(attempt.usage) for attempt in attempts), NOTHING)
