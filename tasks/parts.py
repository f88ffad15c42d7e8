"""Items that are too long: cut by their brief's rule, asked in parts, and the parts' answers joined to one.

Parts are ordinary work, each stored under a fingerprint of its own. The joined answer is stored under
one that names the rule beside the work: what is stored for the work itself is what was answered to the
whole of it, and goes before.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefect.logging import get_run_logger
from prefect.results import ResultStore, get_result_store

from prefect_dispatch.errors import ExecutorError, RejectedError, TransientError
from prefect_dispatch.examining import examine, invalid
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models import Answer
from prefect_dispatch.tasks.cutting import (
    DEEPEST,
    TOO_LONG,
    is_learned,
    joined,
    learn,
    parts_of,
    stored_join,
    why_not,
)
from prefect_dispatch.tasks.ends import End
from prefect_dispatch.tasks.once import Place
from prefect_dispatch.tasks.run_brief import run_brief
from prefect_dispatch.tasks.shelf import Lenient
from prefect_dispatch.tasks.stops import failure_of
from prefect_dispatch.tasks.store import key_of, stored_answer
from prefect_dispatch.withhold import hushed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Attempt, Brief, Failure, Outcome
    from prefect_dispatch.tasks.shelf import Shelf
    from prefect_dispatch.tasks.work import Work

_NAMED = 5


class Join(Protocol):
    """Makes one answer of the answers to the parts of an item."""

    def __call__(self, brief: Brief, parts: Sequence[Outcome]) -> tuple[JsonValue, str]:
        """Return the value, and in words how it was made.

        Raises:
            ExecutorError: If they can't be joined.
        """
        ...


class Parts:
    """The items of a fan-out that are asked in parts."""

    def __init__(self, work: Sequence[Work], executor: Executor, join: Join | None) -> None:
        """Keep who is asked, and who joins; without that nothing is split."""
        self._executor = executor
        self._join = join if any(each.brief.split for each in work) else None
        self._store: Any = (
            cast("Any", get_result_store()).update_for_task(run_brief, _sync=True) if self._join else None
        )
        self._wholes: list[Work] = []
        self._into: dict[str, list[Work]] = {}
        self._tried: dict[str, tuple[Attempt, ...]] = {}
        self._came: dict[str, Outcome | None] = {}
        self._cuts: dict[str, int] = {}
        self._counted: set[str] = set()

    def known(self, work: Work) -> Answer | None:
        """Return the joined answer that is stored, if the item was too long before."""
        return stored_join(self._shelf, work) if self._join else None

    def learned(self, work: Work) -> list[Work] | None:
        """Return what is to be asked in place of work that an earlier run found too long, or None if none did."""
        if self._join is None or not is_learned(self._shelf, work):
            return None
        return self._into_parts(work, parts_of(work, self._executor), ())

    def split(self, work: Work, error: BaseException) -> list[Work] | None:
        """Return what is to be asked in place of work that failed, or None if it isn't to be split.

        Where its brief has a rule that doesn't help, the error says why.
        """
        if self._join is None or work.brief.split is None:
            return None
        if not isinstance(error, RejectedError) or error.kind not in TOO_LONG:
            return None
        cuts = self._cuts.get(work.fingerprint, 0)
        parts = parts_of(work, self._executor) if cuts < DEEPEST else []
        if len(parts) < 2:  # noqa: PLR2004 -- no parts
            error.args = (f"{error} {why_not(work, cuts, len(parts))}",)
            return None
        if any(attempt.usage.requests for attempt in error.attempts):  # what was counted is counted again for nothing
            self._learn(work)
        return self._into_parts(work, parts, error.attempts)

    def _into_parts(self, work: Work, parts: list[Work], tried: tuple[Attempt, ...]) -> list[Work] | None:
        """Keep what work is cut into; return what of that is to be asked, or None if it can't be cut."""
        cuts = self._cuts.get(work.fingerprint, 0)
        if len(parts) < 2 or cuts >= DEEPEST:  # noqa: PLR2004 -- no parts
            return None
        if work.fingerprint not in self._came:
            self._wholes.append(work)
        self._into[work.fingerprint], self._tried[work.fingerprint] = parts, tried
        new = {each.fingerprint: each for each in parts if each.fingerprint not in self._came}
        self._came |= dict.fromkeys(new)
        self._cuts |= dict.fromkeys(new, cuts + 1)
        return list(new.values())

    def _learn(self, work: Work) -> None:
        try:
            learn(self._shelf, work)
        except TransientError as error:
            get_run_logger().warning("The next run will ask %s as a whole again. %s", work.ref, error)

    def take(self, outcome: Outcome) -> bool:
        """Keep what came of a part; return whether it is one."""
        if outcome.fingerprint not in self._came:
            return False
        self._came[outcome.fingerprint] = outcome
        return True

    def ended(self) -> list[End]:
        """Return the items of which every part has come, and forget them."""
        if not self._wholes:
            return []
        over = [whole for whole in self._wholes if all(self._came[part.fingerprint] for part in self._leaves(whole))]
        self._wholes = [whole for whole in self._wholes if whole not in over]
        return [self._end(whole) for whole in over]

    def _leaves(self, work: Work) -> list[Work]:
        """Return the parts of an item, in order, those that were cut again by what they were cut into."""
        parts = self._into.get(work.fingerprint)
        return [work] if parts is None else [leaf for part in parts for leaf in self._leaves(part)]

    def _spent(self, work: Work, place: tuple[int, ...] = ()) -> dict[str, tuple[Attempt, ...]]:
        """Return the attempts at an item, and at each of its parts, equal ones once; each attempt names its part."""
        parts, own = self._into.get(work.fingerprint), work.fingerprint
        took = self._tried[own] if parts else cast("Outcome", self._came[own]).attempts
        named = ".".join(map(str, place))
        spent = {own: tuple(attempt.model_copy(update={"part": named}) for attempt in took)}
        for at, part in enumerate(parts or (), 1):
            spent |= {name: took for name, took in self._spent(part, (*place, at)).items() if name not in spent}
        return spent

    def _end(self, work: Work) -> End:
        came = [cast("Outcome", self._came[part.fingerprint]) for part in self._leaves(work)]
        spent = self._spent(work)
        earlier = {each.fingerprint for each in came if each.origin != "asked"} | self._counted
        asked = _all(took for name, took in spent.items() if name not in earlier)
        self._counted |= spent.keys()
        try:
            answer = self._joined(work, came, _all(spent.values()))
        except ExecutorError as error:
            none = all(each.status == "skipped" for each in came) and not any(each.usage.requests for each in asked)
            reason = failure_of(hushed(error, work.item))
            return End(work, "skipped" if none else "failed", error=reason, attempts=asked)
        if any(attempt.usage.requests for attempt in asked):
            return End(work, "succeeded", answer.model_copy(update={"attempts": asked}))
        return End(work, "succeeded", answer, stored=True)

    def _joined(self, work: Work, came: Sequence[Outcome], attempts: tuple[Attempt, ...]) -> Answer:
        """Return the answer that the answers to the parts make, and store it.

        Raises:
            ExecutorError: If some are missing, or it isn't what the brief asks for.
        """
        if lacking := [(place, each.error) for place, each in enumerate(came, 1) if each.error]:
            raise ExecutorError(_missing(lacking, len(came)), kind=lacking[0][1].kind)
        said, how = cast("Join", self._join)(work.brief, came)
        value, wrong = examine(work.brief, work.item, Reply(value=said))
        if wrong:
            raise invalid([f"The answer joined of {len(came)} parts is not valid:", *wrong], len(came))
        answer = Answer(
            value=value,
            said=said if isinstance(work.brief.output, type) else None,
            fingerprint=joined(work).fingerprint,
            model=", ".join(sorted({each.model for each in came})),
            served_model=", ".join(sorted({each.served_model for each in came} - {""})),
            attempts=attempts,
            joined=how,
        )
        self._keep(work, answer)
        return answer

    def _keep(self, work: Work, answer: Answer) -> None:
        """Store a joined answer; what an earlier run was answered to the whole is told no more."""
        place = self._place(answer.fingerprint)
        try:
            place.shelf.write(place.key, place.record(answer))
            if stored_answer(place.shelf, work):
                place.shelf.remove(key_of(work.fingerprint))
        except TransientError as error:
            get_run_logger().warning("A joined answer could not be stored; those to its parts are. %s", error)

    @property
    def _shelf(self) -> Shelf:
        return Lenient(self._place("").shelf)

    def _place(self, work: str) -> Place:
        return Place(cast("ResultStore", self._store), key_of(work), run_brief.cache_expiration)


def _all(attempts: Iterable[tuple[Attempt, ...]]) -> tuple[Attempt, ...]:
    return tuple(chain.from_iterable(attempts))


def _missing(lacking: Sequence[tuple[int, Failure]], parts: int) -> str:
    named = " ".join(f"Part {place} ({error.kind}): {error.message}" for place, error in lacking[:_NAMED])
    more = f" And {len(lacking) - _NAMED} more." if len(lacking) > _NAMED else ""
    return f"{len(lacking)} of {parts} parts have no answer. {named}{more}"
