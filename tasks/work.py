"""The work of a job: every brief for every item, in one order, each with its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefect.utilities.annotations import quote

from prefect_dispatch.checks import Function, MustMention
from prefect_dispatch.fingerprint import fingerprints
from prefect_dispatch.ledger import named, place_of
from prefect_dispatch.template import placeholders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.ledger import Ref
    from prefect_dispatch.models import Brief, Item

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """One brief for one item."""

    brief: Brief
    item: Item
    fingerprint: str

    @property
    def ref(self) -> Ref:
        """The name under which it stands in every list."""
        return named(self.brief.name, self.item.key)


def work_of(briefs: Sequence[Brief], items: Sequence[Item], executor: Executor) -> list[Work]:
    """Return the work of a job in the order of every list.

    Raises:
        BriefError: If a brief uses a field that an item has not.
    """
    asked = [(brief, fingerprints(brief, executor, alike=_is_alike(brief))) for brief in briefs]
    work = [Work(brief, item, fingerprint(item)) for item in items for brief, fingerprint in asked]
    return sorted(work, key=lambda each: place_of(each.brief.name, each.item.key))


def fields_of(brief: Brief) -> list[str]:
    """Return the fields of items that a brief uses anywhere."""
    terms = [term for check in brief.checks if isinstance(check, MustMention) for term in check.terms]
    texts = (brief.scope, brief.instructions, *brief.constraints, *brief.reads, *brief.writes, *brief.resources)
    return list(dict.fromkeys(path for text in (*texts, *terms) for path in placeholders(text)))


def _is_alike(brief: Brief) -> bool:
    """Return whether a brief is the same for every item: it uses no field, and no function that sees the key."""
    return not fields_of(brief) and not any(isinstance(check, Function) for check in brief.checks)


def equal_work(work: Sequence[Work]) -> dict[str, list[Work]]:
    """Return the work by fingerprint: what stands together is asked once, for the first of them."""
    groups: dict[str, list[Work]] = {}
    for each in work:
        groups.setdefault(each.fingerprint, []).append(each)
    return groups


def as_is(value: T) -> T:
    """Return data as a task takes it without looking for futures inside."""
    return cast("T", quote(cast("Any", value)))
