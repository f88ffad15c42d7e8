"""Figures that nobody said, computed once more from the evidence that a merge gives for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prefect_dispatch.integrators.base import unshared
from prefect_dispatch.integrators.values import exact, pointer
from prefect_dispatch.ledger import Violation
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Outcome


@runtime_checkable
class Recomputing(Protocol):
    """An integrator whose merge follows from the outcomes and the tables of evidence in the merge itself."""

    def recomputed(self, merge: Merge, outcomes: Sequence[Outcome]) -> Merge:
        """Return what follows; raise if there is no evidence, or if it isn't about these outcomes."""
        ...


def miscomputed(merge: Merge, outcomes: Sequence[Outcome], integrator: object) -> Iterator[Violation]:
    """Yield where a merge differs from what follows from its own evidence."""
    if not isinstance(integrator, Recomputing):
        return
    try:
        again = integrator.recomputed(merge, [*map(unshared, outcomes)])
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- evidence that was tampered with may be anything
        yield _violation("/", f"nothing follows from its evidence: {told(error)}")
        return
    for path in _differences("", merge.value, again.value):
        yield _violation(path or "/", "by the evidence, something else should stand there.")
    for name in ("ledger", "fields", "rules", "flags", "tables", "shortfalls"):
        if _rows(merge, name) != _rows(again, name):
            yield _violation("/", f"by the evidence, its {name!r} should be other ones.")


def _differences(path: str, one: JsonValue, two: JsonValue) -> Iterator[str]:
    """Yield the innermost places where two values differ."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for name in one:
            yield from _differences(path + pointer(name), one[name], two[name])
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for at, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _differences(path + pointer(at), left, right)
    elif exact(one) != exact(two):
        yield path


def _rows(merge: Merge, name: str) -> object:
    """Return a field of a merge, the ledger's rows and the fields' rows in one order, as they may stand in any."""
    said = getattr(merge, name)
    return sorted(map(repr, said)) if name in ("ledger", "fields") else said


def _violation(where: str, message: str) -> Violation:
    return Violation(law="precision", where=where, message=message)
