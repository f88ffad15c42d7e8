"""Refresh: selects the work that is asked again although an answer is stored, by patterns of names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import BeforeValidator, Field, GetPydanticSchema
from rapidfuzz import process

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import Tabs

if TYPE_CHECKING:
    from prefect_dispatch.tasks.work_item import WorkItem

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
    fingerprints = {
        each.fingerprint for each in work if _matches(pattern, each.item.key) or _matches(pattern, str(each.ref))
    }
    fingerprints = fingerprints or {each.fingerprint for each in work if each.brief.name == pattern}
    if not fingerprints:
        names = [str(each.ref) for each in work[:SEARCHED]]
        near = ", ".join(repr(match[0]) for match in process.extract(pattern, names, limit=NEAREST))
        raise JobError(f"refresh: no work is called {pattern!r}; of {len(work)} names near are {near}.")
    return fingerprints


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)
