"""Splitting of items that are too long: cut by their brief's rule, asked in parts, and the answers joined.

Parts are ordinary work, each stored under a fingerprint of its own. The joined answer is stored under
a fingerprint that covers the rule and the work: an answer stored for the work itself is an answer to the
whole item, and takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, cast

from prefect.logging import get_run_logger
from pydantic import JsonValue, ValidationError

from prefect_dispatch.calls.attempt import estimate_parts, invalid_output_error, is_too_long, validate_reply
from prefect_dispatch.errors import ExecutorError, RejectedError, TransientError
from prefect_dispatch.executors.base import Reply, executor_for, fingerprint
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.outcome import Answer, Outcome
from prefect_dispatch.security.redaction import redact_item_text
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.tasks.result_store import LenientBlobStore, storage_key, stored_answer
from prefect_dispatch.tasks.run_brief import result_locations
from prefect_dispatch.tasks.stop_conditions import failure_of
from prefect_dispatch.tasks.work_item import WorkItem, WorkResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Split
    from prefect_dispatch.models.outcome import Attempt, Failure
    from prefect_dispatch.tasks.get_or_compute import ResultLocation
    from prefect_dispatch.tasks.result_store import BlobStore


TOO_LONG = frozenset({"context_length", "too_large"})
"""Kinds of a rejection that a shorter item would not meet."""


MAX_CUTS = 6
"""How often a part is cut again, at most: where a model's context window is unknown, each cut makes two."""


MAX_PARTS = 1000
"""Parts of an item, at most."""


class _TooLongRecord(Strict):
    """Record that some work was rejected as too long."""

    too_long: str
    """The fingerprint of the work."""


def split_item(work: WorkItem, executor: Executor) -> list[WorkItem]:
    """Return the parts in which an item is asked by its brief's rule.

    Returns:
        The parts. Only the whole if it can't be cut; none if it has no text, or would take too many parts.
    """
    split = work.brief.split
    text = split.text(work.item) if split else None
    if split is None or not text:
        return []
    # The prompt of a part mentions that it is one, and so is part of its fingerprint.
    brief = work.brief.model_copy(update={"part": True})
    if (most := estimate_parts(executor_for(brief, executor), brief, work.item)) > MAX_PARTS:
        return []
    items = [split.part(work.item, piece) for piece in split.split_text(text, most)]
    return [WorkItem(brief, item, fingerprint(brief, item, executor)) for item in items]


def with_joined_fingerprint(work: WorkItem) -> WorkItem:
    """Return work under the fingerprint of the answer that is joined from its parts."""
    rule = work.brief.split.model_dump(mode="json") if work.brief.split else None
    return WorkItem(work.brief, work.item, digest({"whole": work.fingerprint, "split": rule}))


def load_joined_answer(blobs: BlobStore, work: WorkItem) -> Answer | None:
    """Return the stored joined answer to some work, unless there is none, or an answer to the whole item is stored."""
    answer = stored_answer(blobs, with_joined_fingerprint(work)) if work.brief.split else None
    return None if answer is None or stored_answer(blobs, work) else answer


def record_too_long(blobs: BlobStore, work: WorkItem) -> None:
    """Record beside the key of an answer that its work was rejected as too long, for later runs.

    It is as reusable as a stored answer: the same words to the same model. A refresh ignores it.

    Raises:
        TransientError: If the storage can't be written.
    """
    blobs.write(_too_long_key(work), _TooLongRecord(too_long=work.fingerprint).model_dump_json().encode())


def is_recorded_too_long(blobs: BlobStore, work: WorkItem) -> bool:
    """Return whether work was rejected as too long before, and not answered since.

    Raises:
        TransientError: If the storage can't be read.
    """
    if not work.brief.split:
        return False
    try:
        note = _TooLongRecord.model_validate_json(blobs.load(_too_long_key(work)) or b"")
    except ValidationError:  # missing, truncated, or foreign
        return False
    return note.too_long == work.fingerprint and not stored_answer(blobs, work)


def is_asked_in_parts(blobs: BlobStore, work: WorkItem, executor: Executor) -> bool:
    """Return whether it is known in advance that an item is asked in parts."""
    chosen = executor_for(work.brief, executor)
    return work.brief.split is not None and (
        load_joined_answer(blobs, work) is not None
        or is_too_long(chosen, work.brief, work.item)
        or is_recorded_too_long(blobs, work)
    )


def expand_asks(
    work: WorkItem, executor: Executor, blobs: BlobStore, *, refresh: bool, cuts: int = 0
) -> list[WorkItem]:
    """Return the asks that some work takes, as far as that is known in advance: itself, or the parts of its item.

    Args:
        work: The work.
        executor: The executor of the work.
        blobs: The store of answers and of rejections as too long.
        refresh: Whether stored answers are ignored.
        cuts: How often the item was cut already.
    """
    if not work.brief.split or cuts >= MAX_CUTS:
        return [work]
    chosen = executor_for(work.brief, executor)
    if not is_too_long(chosen, work.brief, work.item) and (refresh or not is_recorded_too_long(blobs, work)):
        return [work]
    parts = split_item(work, executor)
    if len(parts) < 2:  # noqa: PLR2004 -- no parts
        return [work]
    # Parts with a stored answer are not asked; the others may be too long again.
    missing = [each for each in parts if refresh or not stored_answer(blobs, each)]
    asks = [ask for each in missing for ask in expand_asks(each, executor, blobs, refresh=refresh, cuts=cuts + 1)]
    return [*{each.fingerprint: each for each in asks}.values()]


def _too_long_key(work: WorkItem) -> str:
    return f"{storage_key(work.fingerprint)}.long"


def explain_failed_split(work: WorkItem, cuts: int, parts: int) -> str:
    """Return why the rule of a brief does not help, and what would."""
    split = cast("Split", work.brief.split)
    if cuts >= MAX_CUTS:
        return f"It was cut {cuts} times; is the brief itself too long?"
    if not split.text(work.item):
        return f"It has no text at split.field {split.field!r} that could be cut."
    if not parts:
        return f"It would take more than {MAX_PARTS} parts."
    return f"It is one {split.unit}, which isn't cut; a finer split.by of brief {work.brief.name!r} would cut it."


_MAX_NAMED = 5


Join = Callable[[Brief, Sequence[Outcome]], tuple[JsonValue, str]]
"""Function that joins the answers to the parts of an item to one value, and describes how it was made.

It raises `ExecutorError` if the answers can't be joined."""


class SplitItems:
    """Items of a fan-out that are asked in parts, as a tree: a part may be cut again."""

    def __init__(self, work: Sequence[WorkItem], executor: Executor, join: Join | None) -> None:
        """Keep the executor and the join function; without that function no item is split."""
        self._executor = executor
        self._join = join if any(each.brief.split for each in work) else None
        self._wholes: list[WorkItem] = []
        self._parts_of: dict[str, list[WorkItem]] = {}
        self._attempts_at_whole: dict[str, tuple[Attempt, ...]] = {}
        self._part_outcomes: dict[str, Outcome | None] = {}
        self._cuts: dict[str, int] = {}
        self._charged: set[str] = set()

    def load_joined(self, work: WorkItem) -> Answer | None:
        """Return the stored joined answer to some work, if there is one."""
        return load_joined_answer(self._blobs, work) if self._join else None

    def split_recorded(self, work: WorkItem) -> list[WorkItem] | None:
        """Return the work to ask in place of work that an earlier run found too long; None if none did."""
        if self._join is None or not is_recorded_too_long(self._blobs, work):
            return None
        return self._register_parts(work, split_item(work, self._executor), ())

    def split_rejected(self, work: WorkItem, error: BaseException) -> list[WorkItem] | None:
        """Return the work to ask in place of work that failed; None if it is not to be split.

        Where its brief has a rule that does not help, the error's message is extended by the reason.
        """
        if self._join is None or work.brief.split is None:
            return None
        if not isinstance(error, RejectedError) or error.kind not in TOO_LONG:
            return None
        # 1. Cut it. Where the rule does not help, the user has to know why.
        cuts = self._cuts.get(work.fingerprint, 0)
        parts = split_item(work, self._executor) if cuts < MAX_CUTS else []
        if len(parts) < 2:  # noqa: PLR2004 -- no parts
            error.args = (f"{error} {explain_failed_split(work, cuts, len(parts))}",)
            return None
        # 2. Record that for later runs, unless they find out for free.
        if any(attempt.usage.requests for attempt in error.attempts):  # counting tokens again is free, a request is not
            self._record_too_long(work)
        return self._register_parts(work, parts, error.attempts)

    def _register_parts(
        self, work: WorkItem, parts: list[WorkItem], tried: tuple[Attempt, ...]
    ) -> list[WorkItem] | None:
        """Record what work is cut into; return the parts to ask, or None if it can't be cut."""
        cuts = self._cuts.get(work.fingerprint, 0)
        if len(parts) < 2 or cuts >= MAX_CUTS:  # noqa: PLR2004 -- no parts
            return None
        # A part that is cut again is no item of its own: its parts take its place in the item (`_leaves`).
        if work.fingerprint not in self._part_outcomes:
            self._wholes.append(work)
        self._parts_of[work.fingerprint], self._attempts_at_whole[work.fingerprint] = parts, tried
        # Equal parts are asked once, also across items.
        new = {each.fingerprint: each for each in parts if each.fingerprint not in self._part_outcomes}
        self._part_outcomes |= dict.fromkeys(new)
        self._cuts |= dict.fromkeys(new, cuts + 1)
        return list(new.values())

    def _record_too_long(self, work: WorkItem) -> None:
        try:
            record_too_long(self._blobs, work)
        except TransientError as error:
            get_run_logger().warning("The next run will ask %s as a whole again. %s", work.ref, error)

    def record_outcome(self, outcome: Outcome) -> bool:
        """Record the outcome of a part; return whether it is one."""
        if outcome.fingerprint not in self._part_outcomes:
            return False
        self._part_outcomes[outcome.fingerprint] = outcome
        return True

    def pop_finished(self) -> list[WorkResult]:
        """Return the items whose parts all have outcomes, and forget them."""
        if not self._wholes:
            return []
        complete = [
            whole
            for whole in self._wholes
            if all(self._part_outcomes[part.fingerprint] for part in self._leaves(whole))
        ]
        self._wholes = [whole for whole in self._wholes if whole not in complete]
        return [self._finish(whole) for whole in complete]

    def _leaves(self, work: WorkItem) -> list[WorkItem]:
        """Return the parts of an item in order, with parts that were cut again replaced by their own parts."""
        parts = self._parts_of.get(work.fingerprint)
        return [work] if parts is None else [leaf for part in parts for leaf in self._leaves(part)]

    def _attempts_by_part(self, work: WorkItem, path: tuple[int, ...] = ()) -> dict[str, tuple[Attempt, ...]]:
        """Return the attempts at an item and at each of its parts, equal parts once; each attempt names its part."""
        parts, own = self._parts_of.get(work.fingerprint), work.fingerprint
        attempts = self._attempts_at_whole[own] if parts else cast("Outcome", self._part_outcomes[own]).attempts
        part_name = ".".join(map(str, path))
        spent = {own: tuple(attempt.model_copy(update={"part": part_name}) for attempt in attempts)}
        for number, part in enumerate(parts or (), 1):
            spent |= {
                name: attempts
                for name, attempts in self._attempts_by_part(part, (*path, number)).items()
                if name not in spent
            }
        return spent

    def _finish(self, work: WorkItem) -> WorkResult:
        # 1. Charge each attempt once: not those of stored answers, and not those that another item has reported.
        outcomes = [cast("Outcome", self._part_outcomes[part.fingerprint]) for part in self._leaves(work)]
        spent = self._attempts_by_part(work)
        charged = {each.fingerprint for each in outcomes if each.origin != "asked"} | self._charged
        asked = _flatten(took for name, took in spent.items() if name not in charged)
        self._charged |= spent.keys()
        # 2. Join the answers.
        try:
            answer = self._join_answers(work, outcomes, _flatten(spent.values()))
        except ExecutorError as error:
            is_skipped = all(each.status == "skipped" for each in outcomes) and not any(
                each.usage.requests for each in asked
            )
            reason = failure_of(redact_item_text(error, work.item))
            return WorkResult(work, "skipped" if is_skipped else "failed", error=reason, attempts=asked)
        if any(attempt.usage.requests for attempt in asked):
            return WorkResult(work, "succeeded", answer.model_copy(update={"attempts": asked}))
        return WorkResult(work, "succeeded", answer, stored=True)

    def _join_answers(self, work: WorkItem, outcomes: Sequence[Outcome], attempts: tuple[Attempt, ...]) -> Answer:
        """Join the answers to the parts, and store the result.

        Raises:
            ExecutorError: If answers are missing, or the result is not valid for the brief.
        """
        if failures := [(place, each.error) for place, each in enumerate(outcomes, 1) if each.error]:
            raise ExecutorError(_missing_parts_message(failures, len(outcomes)), kind=failures[0][1].kind)
        # The joined value has to pass the schema and the checks like any answer.
        joined_value, how = cast("Join", self._join)(work.brief, outcomes)
        value, problems = validate_reply(work.brief, work.item, Reply(value=joined_value))
        if problems:
            raise invalid_output_error(
                [f"The answer joined of {len(outcomes)} parts is not valid:", *problems], len(outcomes)
            )
        answer = Answer(
            value=value,
            said=joined_value if isinstance(work.brief.output, type) else None,
            fingerprint=with_joined_fingerprint(work).fingerprint,
            model=", ".join(sorted({each.model for each in outcomes})),
            served_model=", ".join(sorted({each.served_model for each in outcomes} - {""})),
            citations=tuple(dict.fromkeys(cited for each in outcomes for cited in each.citations)),
            attempts=attempts,
            joined=how,
        )
        self._store_answer(work, answer)
        return answer

    def _store_answer(self, work: WorkItem, answer: Answer) -> None:
        """Store a joined answer, and delete an earlier answer to the whole item, which would take precedence.

        It is synced to the disk only in that case: if a power failure loses another one, it is joined again from the
        stored answers to its parts, without a call.
        """
        place = self._location(answer.fingerprint)
        try:
            whole = stored_answer(place.blobs, work)
            place.blobs.write(place.key, place.to_record(answer), durable=whole is not None)
            if whole:
                place.blobs.remove(storage_key(work.fingerprint))
        except TransientError as error:
            get_run_logger().warning("A joined answer could not be stored; those to its parts are. %s", error)

    @cached_property
    def _location(self) -> Callable[[str], ResultLocation]:
        return result_locations()

    @property
    def _blobs(self) -> BlobStore:
        return LenientBlobStore(self._location("").blobs)


def _flatten(attempts: Iterable[tuple[Attempt, ...]]) -> tuple[Attempt, ...]:
    return tuple(chain.from_iterable(attempts))


def _missing_parts_message(failures: Sequence[tuple[int, Failure]], parts: int) -> str:
    details = " ".join(f"Part {place} ({error.kind}): {error.message}" for place, error in failures[:_MAX_NAMED])
    more = f" And {len(failures) - _MAX_NAMED} more." if len(failures) > _MAX_NAMED else ""
    return f"{len(failures)} of {parts} parts have no answer. {details}{more}"
