"""The work of a job: every brief for every item, in one order, each with its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefect.utilities.annotations import quote

from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
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
        return Ref(brief=self.brief.name, item=self.item.key)


def work_of(briefs: Sequence[Brief], items: Sequence[Item], executor: Executor) -> list[Work]:
    """Return the work of a job in the order of every list.

    Raises:
        BriefError: If a brief uses a field that an item has not.
    """
    work = [Work(brief, item, fingerprint(brief, item, executor)) for item in items for brief in briefs]
    return sorted(work, key=lambda each: each.ref.order)


def equal_work(work: Sequence[Work]) -> dict[str, list[Work]]:
    """Return the work by fingerprint: what stands together is asked once, for the first of them."""
    groups: dict[str, list[Work]] = {}
    for each in work:
        groups.setdefault(each.fingerprint, []).append(each)
    return groups


def as_is(value: T) -> T:
    """Return data as a task takes it without looking for futures inside."""
    return cast("T", quote(cast("Any", value)))
