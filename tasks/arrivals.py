"""What came of shards that flow runs elsewhere have worked on: answers from the store, errors from what they wrote."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from prefect.states import Completed, Crashed

from prefect_dispatch.errors import ExecutorError, TerminalError
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub
from prefect_dispatch.tasks.child_runs import REFUSED
from prefect_dispatch.tasks.errands import Ended, Told
from prefect_dispatch.tasks.store import answer_in, key_of, usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.schemas.objects import State

    from prefect_dispatch.models import Answer
    from prefect_dispatch.tasks.shard_places import ShardPlaces
    from prefect_dispatch.tasks.shard_results import WrittenResult
    from prefect_dispatch.tasks.shelf import Shelf
    from prefect_dispatch.tasks.work import Work

READERS = 16
"""Answers that are read at once."""
MOST_LOST = 3
"""How often an answer may be said to be stored, and not be found."""


class Arrivals:
    """What comes of the shards of one fan-out."""

    def __init__(self, places: ShardPlaces, shelf: Shelf, named: str) -> None:
        """Keep where it stands.

        Args:
            places: Where shards stand, and what came of them.
            shelf: Where answers are stored.
            named: The deployment whose runs work on them.
        """
        self._places, self._shelf, self._named = places, shelf, named
        self._lost: Counter[str] = Counter()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="shard-answers")

    def close(self) -> None:
        """Read no more."""
        self._readers.shutdown()

    def came(self, work: Sequence[Work], key: str, state: State[Any]) -> State[Any]:
        """Return what came of a shard: a state whose result is an `Ended`, or why there is none.

        Args:
            work: The shard's work.
            key: Its key.
            state: That of the run that worked on it.

        Raises:
            TransientError: If the storage can't be read.
        """
        said = scrub(state.message or "")
        if state.name == REFUSED:
            return refused(work, f"{self._named}: {said}")
        result = self._places.result(key)
        if result is not None:
            return Completed(data=self._ended({each.fingerprint: each for each in work}, result))
        if state.is_cancelled():
            why = ExecutorError("Somebody cancelled its run.", kind="cancelled", usage=Usage())
            return Completed(data=Ended([Told(each.fingerprint, why) for each in work]))
        return crashed(f"Its run of {self._named} ended as {state.name}: {said}")

    def _ended(self, work: dict[str, Work], result: WrittenResult) -> Ended:
        """Return what a run has written, with the answers that are in the store; what nobody gave it is left out."""
        done = {each.fingerprint: each for each in result.done if each.fingerprint in work}
        answered = [work[name] for name, each in done.items() if each.error is None]
        answers = dict(zip((each.fingerprint for each in answered), self._read(answered), strict=True))
        said: dict[str, Answer | ExecutorError | None] = {
            name: each.error.error if each.error else answers[name] or self._missing(name)
            for name, each in done.items()
        }
        told = [Told(name, said[name], each.stored) for name, each in done.items() if said[name] is not None]
        return Ended(told, result.spent, result.begun_before)

    def _read(self, work: Sequence[Work]) -> list[Answer | ExecutorError | None]:
        contents = self._readers.map(self._shelf.read, [key_of(each.fingerprint) for each in work])
        return [_usable(content, each) for content, each in zip(contents, work, strict=True)]

    def _missing(self, name: str) -> ExecutorError | None:
        """Return None for an answer that is said to be stored and isn't there: it is asked again, but not for ever."""
        self._lost[name] += 1
        if self._lost[name] < MOST_LOST:
            return None
        return ExecutorError("Its answer was stored by a run elsewhere, and isn't there.", kind="storage")


def _usable(content: bytes | None, work: Work) -> Answer | ExecutorError | None:
    try:
        return usable(answer_in(content), work)
    except TerminalError as broken:  # a check of the user's
        return broken


def refused(work: Sequence[Work], why: str) -> State[Any]:
    """Return the state of a shard that no run of its deployment could begin, nor that of any other."""
    return Completed(data=Ended([Told(work[0].fingerprint, TerminalError(why, kind="worker", usage=Usage()))]))


def crashed(why: str, kind: str = "crashed") -> State[Any]:
    """Return the state of a shard of which nothing came."""
    return Crashed(message=why, data=ExecutorError(why, kind=kind, usage=Usage()))
