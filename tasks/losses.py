"""Work that a process was to do which died: looked for in the store, and asked again.

What was under way is suspected to have killed its process, and has ever fewer neighbours each time. The rest goes on as
if nothing had happened. A process that was lost with its worker, or that never began, is no reason to suspect what it
had not asked: else each worker that is lost would have hundreds of items tried one by one.
"""

from __future__ import annotations

from collections import Counter
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
MOST_UNBEGUN = 5
"""How often an item may be in shards that no process begins; then it is a gap."""
UNBEGUN, SILENT = "unbegun", "silent"
"""Kinds of the loss of a shard: no process began it, and its process was not heard from any more."""
MANY = 4
"""Times after which it is alone, however large it was."""


class Losses:
    """What processes that died had to do, of one fan-out."""

    def __init__(self, shelf: Shelf, most: int, *, isolated: bool = False) -> None:
        """Keep where answers are stored, and how often work is asked again.

        Args:
            shelf: Where answers are stored.
            most: How often work may be lost that was under way.
            isolated: Whether each shard has a process of its own, so that none dies of what is in another.
        """
        self._shelf, self._most, self._isolated = shelf, most, isolated
        self._since = datetime.now(timezone.utc)
        self._died: dict[str, int] = {}
        self._unbegun: Counter[str] = Counter()
        self._waiting: set[str] = set()

    @property
    def last(self) -> bool:
        """Whether some of it is asked for the last time: then nothing else, as who dies beside it would count."""
        return not self._isolated and any(died >= self._most for died in self._died.values())

    def size(self, whole: int) -> int:
        """Return how many items a shard may take, of those that it takes otherwise.

        Shards are smaller only until what is suspected is under way again: it is asked first.
        """
        times: int = max((self._died.get(name, 0) for name in self._waiting), default=0)
        return max(1, whole // SMALLER**times) if times < MANY else 1

    def begun(self, names: Iterable[str]) -> None:
        """Note that work, by its fingerprints, is under way again."""
        self._waiting.difference_update(names)

    def of(self, work: Iterable[Work], why: object) -> list[Came]:
        """Return what came of work whose process died: what this fan-out has stored, or nothing yet, or an error.

        What is suspected comes last: so it is asked first, and soon no longer makes shards small.
        """
        come = [Came(each, self._stored(each)) for each in work]
        lost: list[Work] = [each.work for each in come if each.said is None]
        kind = why.kind if isinstance(why, ExecutorError) else ""
        if kind == UNBEGUN:
            return [self._unbegun_again(each) if each.said is None else each for each in come]
        sent = [each for each in lost if was_sent(self._shelf, key_of(each.fingerprint))]
        # Where nothing was under way, any of them may keep its process from beginning, unless that was lost otherwise.
        suspects = sent or ([] if kind == SILENT else lost)
        names: set[str] = {each.fingerprint for each in suspects}
        rest = [each for each in come if each.work.fingerprint not in names]
        return rest + [self._suspected(each, why) for each in suspects]

    def over(self, come: Iterable[Came]) -> None:
        """Forget what came to its end."""
        for each in come:
            if each.said is not None:
                self._died.pop(each.work.fingerprint, None)
                self._unbegun.pop(each.work.fingerprint, None)
                self._waiting.discard(each.work.fingerprint)

    def _suspected(self, work: Work, why: object) -> Came:
        times = self._died[work.fingerprint] = self._died.get(work.fingerprint, 0) + 1
        if times <= self._most:
            self._waiting.add(work.fingerprint)
            return Came(work, None)
        reason = f" ({told(why)})" if isinstance(why, BaseException) else ""
        said = f"The process that was to ask has died{reason}; that was the {_ordinal(times)} time (limits.retries)."
        error = ExecutorError(said, kind="crashed")
        error.attempts = tuple(self._attempts(work, f"crashed: {said}"))
        return Came(work, error)

    def _unbegun_again(self, came: Came) -> Came:
        """Return work that no process began: it is asked again, but not for ever."""
        name = came.work.fingerprint
        self._unbegun[name] += 1
        if self._unbegun[name] < MOST_UNBEGUN:
            return came
        said = f"No process began the shards that it was in, {MOST_UNBEGUN} times; see to the workers."
        return Came(came.work, ExecutorError(said, kind=UNBEGUN, usage=Usage()))

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
