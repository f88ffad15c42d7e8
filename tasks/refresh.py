"""What is to be asked again although an answer is stored: everything, nothing, or what some patterns mean."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import BeforeValidator, Field, GetPydanticSchema
from rapidfuzz import process

from prefect_dispatch.errors import JobError
from prefect_dispatch.form import Tabs

if TYPE_CHECKING:
    from prefect_dispatch.tasks.work import Work

NEAREST = 3
SEARCHED = 20_000
"""Names that are searched for those nearest to a pattern that means none."""


def _several(given: object) -> object:
    if not isinstance(given, bool | str | Sequence):
        raise ValueError("write true, a pattern or a list of patterns")  # noqa: TRY004 -- pydantic's
    return [given] if isinstance(given, str) else cast("object", given)


_Given = Annotated[
    Annotated[bool, Field(strict=True, title="Everything")] | Annotated[list[str], Field(title="By name")],
    BeforeValidator(_several),
    Tabs(),
]
Refresh = Annotated[bool | str | Sequence[str], GetPydanticSchema(lambda _, handler: handler(_Given))]
"""True for everything, False for nothing, or patterns of names; in a form a box or a list."""


def asked_again(work: Sequence[Work], refresh: bool | str | Sequence[str]) -> frozenset[str]:  # noqa: FBT001 -- one of its forms
    """Return the fingerprints of the work that is to be asked again whether or not an answer is stored.

    A pattern means the work whose name `brief/item`, or whose item's key, it is or matches as a
    glob: `*` and `?` match `/`, too. Where no item is called so, the name of a brief means all of its work. Equal
    work has one answer: it is asked again for all of it where a pattern means any of it.

    Args:
        work: Every (brief, item).
        refresh: True for all of it, False for none, or a pattern or several.

    Raises:
        JobError: If a pattern means nothing; the message names what comes nearest.
    """
    if isinstance(refresh, bool):
        return frozenset(each.fingerprint for each in work) if refresh else frozenset()
    patterns = [refresh] if isinstance(refresh, str) else refresh
    if not work:  # an empty source has nothing that a pattern could mean, today
        return frozenset()
    return frozenset(found for pattern in patterns for found in _meant(pattern, work))


def _meant(pattern: str, work: Sequence[Work]) -> set[str]:
    """Return the fingerprints of the work that a pattern means."""
    found = {each.fingerprint for each in work if _means(pattern, each.item.key) or _means(pattern, str(each.ref))}
    found = found or {each.fingerprint for each in work if each.brief.name == pattern}
    if not found:
        names = [str(each.ref) for each in work[:SEARCHED]]
        near = ", ".join(repr(match[0]) for match in process.extract(pattern, names, limit=NEAREST))
        raise JobError(f"refresh: no work is called {pattern!r}; of {len(work)} names near are {near}.")
    return found


def _means(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)
