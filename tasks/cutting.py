"""Work of which the item is too long: whether that is known beforehand, the parts, and where their joint answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.fingerprint import digest, fingerprint
from prefect_dispatch.room import is_too_long, parts_needed
from prefect_dispatch.tasks.store import stored_answer
from prefect_dispatch.tasks.work import Work

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Answer
    from prefect_dispatch.split import Split
    from prefect_dispatch.tasks.shelf import Shelf

TOO_LONG = frozenset({"context_length", "too_large"})
"""Kinds of a refusal that a shorter item would not meet."""
DEEPEST = 6
"""How often a part is cut again: where nobody can tell how much a model takes in, each time in two."""
MOST = 1000
"""Parts of an item, at most."""


def parts_of(work: Work, executor: Executor) -> list[Work]:
    """Return the parts in which an item is asked by its brief's rule.

    Itself alone if it can't be cut; none if it has no text, or so much that it would take too many.
    """
    split = work.brief.split
    text = split.text(work.item) if split else None
    if split is None or not text:
        return []
    brief = work.brief.model_copy(update={"part": True})
    if (most := parts_needed(executor_for(brief, executor), brief, work.item)) > MOST:
        return []
    items = [split.part(work.item, piece) for piece in split.cut(text, most)]
    return [Work(brief, item, fingerprint(brief, item, executor)) for item in items]


def joined(work: Work) -> Work:
    """Return work under the fingerprint of the answer that is joined of its parts."""
    rule = work.brief.split.model_dump(mode="json") if work.brief.split else None
    return Work(work.brief, work.item, digest({"whole": work.fingerprint, "split": rule}))


def stored_join(shelf: Shelf, work: Work) -> Answer | None:
    """Return the answer to a whole that was joined of its parts, if one is stored, and none to the whole itself."""
    found = stored_answer(shelf, joined(work)) if work.brief.split else None
    return None if found is None or stored_answer(shelf, work) else found


def in_parts(shelf: Shelf, work: Work, executor: Executor) -> bool:
    """Return whether it is plain beforehand that an item is asked in parts."""
    who = executor_for(work.brief, executor)
    return work.brief.split is not None and (
        stored_join(shelf, work) is not None or is_too_long(who, work.brief, work.item)
    )


def asks_of(work: Work, executor: Executor, shelf: Shelf, *, afresh: bool) -> list[Work]:
    """Return what is asked for some work, as far as that is plain beforehand: itself, or the parts of its item."""
    if not work.brief.split or not is_too_long(executor_for(work.brief, executor), work.brief, work.item):
        return [work]
    parts = {each.fingerprint: each for each in parts_of(work, executor)}.values()
    return [each for each in parts if afresh or not stored_answer(shelf, each)]


def why_not(work: Work, cuts: int, parts: int) -> str:
    """Return why the rule of a brief doesn't help, and what would."""
    split = cast("Split", work.brief.split)
    if cuts >= DEEPEST:
        return f"It was cut {cuts} times; is the brief itself too long?"
    if not split.text(work.item):
        return f"It has no text at split.field {split.field!r} that could be cut."
    if not parts:
        return f"It would take more than {MOST} parts."
    return f"It is one {split.unit}, which isn't cut; a finer split.by of brief {work.brief.name!r} would cut it."
