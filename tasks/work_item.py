"""Work of a job: every brief for every item, in one order, each with its fingerprint.

Part of it may be refreshed, which is to be asked again although an answer is stored: it is selected by patterns of
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, cast

from pydantic import BeforeValidator, Field, GetPydanticSchema
from rapidfuzz import process

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import fingerprinter
from prefect_dispatch.models.base import Tabs
from prefect_dispatch.models.checks import Function, MustMention
from prefect_dispatch.models.item import placeholders
from prefect_dispatch.models.ledger import make_ref, select_refs, sort_key
from prefect_dispatch.models.outcome import Answer, Attempt, Failure, Outcome

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import Ref


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One brief for one item."""

    brief: Brief
    item: Item
    fingerprint: str

    @property
    def ref(self) -> Ref:
        """The reference by which lists name it."""
        return make_ref(self.brief.name, self.item.key)


def build_work(briefs: Sequence[Brief], items: Sequence[Item], executor: Executor) -> list[WorkItem]:
    """Return the work of a job in canonical order.

    Raises:
        BriefError: If a brief uses a field that an item has not.
    """
    # Most of a fingerprint depends on the brief only, and is computed once.
    fingerprinters = [(brief, fingerprinter(brief, executor, alike=_is_same_for_all_items(brief))) for brief in briefs]
    work = [WorkItem(brief, item, fingerprint(item)) for item in items for brief, fingerprint in fingerprinters]
    return sorted(work, key=lambda each: sort_key(each.brief.name, each.item.key))


def used_fields(brief: Brief) -> list[str]:
    """Return the fields of items that a brief uses anywhere."""
    terms = [term for check in brief.checks if isinstance(check, MustMention) for term in check.terms]
    texts = (brief.scope, brief.instructions, *brief.constraints, *brief.reads, *brief.writes, *brief.resources)
    return list(dict.fromkeys(path for text in (*texts, *terms) for path in placeholders(text)))


def _is_same_for_all_items(brief: Brief) -> bool:
    """Return whether a brief is the same for every item: it uses no field, and no function that gets the key."""
    return not used_fields(brief) and not any(isinstance(check, Function) for check in brief.checks)


def group_equal_work(work: Sequence[WorkItem]) -> dict[str, list[WorkItem]]:
    """Return the work by fingerprint: equal work is asked once, for the first of it."""
    groups: dict[str, list[WorkItem]] = {}
    for each in work:
        groups.setdefault(each.fingerprint, []).append(each)
    return groups


def unmapped_quote(value: T) -> T:
    """Return data quoted, so that Prefect does not search it for futures."""
    from prefect.utilities.annotations import quote  # noqa: PLC0415 -- the options of job files need no Prefect

    return cast("T", quote(cast("Any", value)))


class WorkResult(NamedTuple):
    """Final result of a piece of work."""

    work: WorkItem
    """The work."""
    status: Literal["succeeded", "failed", "skipped"]
    """Its final status."""
    answer: Answer | None = None
    """The answer with its attempts, if there is one."""
    stored: bool = False
    """Whether the answer was stored before."""
    error: Failure | None = None
    """Why there is no answer."""
    attempts: tuple[Attempt, ...] = ()
    """The attempts, if there is no answer."""

    def to_outcomes(self, equal: Sequence[WorkItem], tried: tuple[Attempt, ...]) -> list[Outcome]:
        """Return an outcome for each piece of equal work, the first of which was done for all.

        Args:
            equal: The work.
            tried: The attempts of earlier batches of this run.
        """
        attempts = self.answer.attempts if self.answer else self.attempts
        stored = self.stored and not tried  # an answer that a batch of this run has stored counts as asked
        return [
            Outcome(
                brief=each.brief.name,
                item=each.item.key,
                status=self.status,
                value=self.answer.value if self.answer else None,
                change=self.answer.change if self.answer else None,
                error=self.error,
                model=self.answer.model if self.answer else "",
                served_model=self.answer.served_model if self.answer else "",
                attempts=tried if tried and self.stored else (*tried, *attempts),
                joined=self.answer.joined if self.answer else "",
                citations=self.answer.citations if self.answer else (),
                origin=None if self.status == "skipped" else "stored" if stored else "shared" if index else "asked",
                fingerprint=each.fingerprint,
                brief_priority=each.brief.priority,
                item_priority=each.item.priority,
            )
            for index, each in enumerate(equal)
        ]


class WorkResponse(NamedTuple):
    """Result of one piece of work."""

    work: WorkItem
    result: object
    """The answer, or the error; None where it was not asked."""
    stored: bool = False
    """Whether the answer was stored before."""


NEAREST = 3
SEARCHED = 20_000
"""Names that are searched for those similar to a pattern without a match, at most."""


def _to_list(value: object) -> object:
    if not isinstance(value, bool | str | Sequence):
        raise ValueError("write true, a pattern or a list of patterns")  # noqa: TRY004 -- pydantic's
    return [value] if isinstance(value, str) else cast("object", value)


_RefreshInput = Annotated[
    Annotated[bool, Field(strict=True, title="Everything")] | Annotated[list[str], Field(title="By name")],
    BeforeValidator(_to_list),
    Tabs(),
]
Refresh = Annotated[bool | str | Sequence[str], GetPydanticSchema(lambda _, handler: handler(_RefreshInput))]
"""True for everything, False for nothing, or patterns of names; in a form a box or a list."""


def fingerprints_to_refresh(work: Sequence[WorkItem], refresh: bool | str | Sequence[str]) -> frozenset[str]:  # noqa: FBT001 -- one of its forms
    """Return the fingerprints of the work that is to be asked again even where an answer is stored.

    A pattern selects the work whose name `brief/item`, or whose item's key, it equals or matches as a
    glob: `*` and `?` match `/`, too. Where it matches no item, the name of a brief selects all of its work. Equal
    work has one answer: if a pattern selects any of it, all of it is asked again.

    Args:
        work: Every (brief, item).
        refresh: True for all of it, False for none, or a pattern or several.

    Raises:
        JobError: If a pattern matches nothing; the message lists the most similar names.
    """
    if isinstance(refresh, bool):
        return frozenset(each.fingerprint for each in work) if refresh else frozenset()
    patterns = [refresh] if isinstance(refresh, str) else refresh
    if not work:  # an empty source has nothing that a pattern could mean, today
        return frozenset()
    return frozenset(found for pattern in patterns for found in _select(pattern, work))


def _select(pattern: str, work: Sequence[WorkItem]) -> set[str]:
    """Return the fingerprints of the work that a pattern selects."""
    selected = select_refs(pattern, [each.ref for each in work])
    if not selected:
        names = [str(each.ref) for each in work[:SEARCHED]]
        near = ", ".join(repr(match[0]) for match in process.extract(pattern, names, limit=NEAREST))
        raise JobError(f"refresh: no work is called {pattern!r}; of {len(work)} names near are {near}.")
    return {each.fingerprint for each in work if each.ref in selected}
