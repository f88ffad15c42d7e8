"""Work of which the item is too long: whether that is known beforehand, the parts, and where their joint answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.fingerprint import digest, fingerprint
from prefect_dispatch.room import is_too_long, parts_needed
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.store import key_of, stored_answer
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


class _Note(Strict):
    """Says that a piece of work was refused as too long."""

    too_long: str
    """Its fingerprint."""


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


def learn(shelf: Shelf, work: Work) -> None:
    """Note beside the place of an answer that its work was refused as too long, for every later run.

    It is as true as a stored answer is: the same words to the same model. Asking afresh passes it over.

    Raises:
        TransientError: If the storage can't be written.
    """
    shelf.write(_note(work), _Note(too_long=work.fingerprint).model_dump_json().encode())


def is_learned(shelf: Shelf, work: Work) -> bool:
    """Return whether work was refused as too long before, and not answered since.

    Raises:
        TransientError: If the storage can't be read.
    """
    if not work.brief.split:
        return False
    try:
        note = _Note.model_validate_json(shelf.read(_note(work)) or b"")
    except ValidationError:  # none, cut off, or somebody else's
        return False
    return note.too_long == work.fingerprint and not stored_answer(shelf, work)


def in_parts(shelf: Shelf, work: Work, executor: Executor) -> bool:
    """Return whether it is plain beforehand that an item is asked in parts."""
    who = executor_for(work.brief, executor)
    return work.brief.split is not None and (
        stored_join(shelf, work) is not None or is_too_long(who, work.brief, work.item) or is_learned(shelf, work)
    )


def asks_of(work: Work, executor: Executor, shelf: Shelf, *, afresh: bool, cuts: int = 0) -> list[Work]:
    """Return what is asked for some work, as far as that is plain beforehand: itself, or the parts of its item.

    Args:
        work: What is to be done.
        executor: Who would be asked.
        shelf: Where answers, and what was learned of lengths, are looked up.
        afresh: Whether what is stored is to be ignored.
        cuts: How often it was cut already.
    """
    if not work.brief.split or cuts >= DEEPEST:
        return [work]
    who = executor_for(work.brief, executor)
    if not is_too_long(who, work.brief, work.item) and (afresh or not is_learned(shelf, work)):
        return [work]
    parts = parts_of(work, executor)
    if len(parts) < 2:  # noqa: PLR2004 -- no parts
        return [work]
    missing = [each for each in parts if afresh or not stored_answer(shelf, each)]
    asks = [ask for each in missing for ask in asks_of(each, executor, shelf, afresh=afresh, cuts=cuts + 1)]
    return [*{each.fingerprint: each for each in asks}.values()]


def _note(work: Work) -> str:
    return f"{key_of(work.fingerprint)}.long"


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
