"""The audit: what an integrator returned against what the outcomes say.

Conservation: each outcome has exactly one ledger row, and it fits. Recall: all that outcomes
say stands in the value or among what a rule removed. Precision: all that stands in the value
was said by the outcomes that its field row names. Schema: what was merged is still of the form
that was asked for. Idempotence: merged once more, in another order, nothing changes; nor does it
where the merged value itself is taken in again. It holds for any integrator, the user's own
included, and asks nobody.

What an integrator promises beyond that it can tell itself (`Promising`), as the built-in ones do. One
that doesn't, and returns no field rows (it computes a number, say), is held to conservation and
idempotence alone: `traced` says whether a merge could be traced. Where it returns rows, a rule
named `module:name` may compute a winner that nobody said; what it was computed from stands
among the losers.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import eq
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.auditing.cited import CitedAudit
from prefect_dispatch.integrators.auditing.recomputing import miscomputed
from prefect_dispatch.integrators.auditing.tracing import Trace
from prefect_dispatch.integrators.auditing.uncollected import uncollected
from prefect_dispatch.integrators.base import Integrator, Promising, Refusing, Restating, unshared
from prefect_dispatch.integrators.merging import merge_by, seal
from prefect_dispatch.integrators.values import same
from prefect_dispatch.ledger import Ref, Violation, place_of
from prefect_dispatch.pieces import pieces
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prefect_dispatch.ledger import LedgerRow, Merge
    from prefect_dispatch.models import Brief, Outcome

_REMOVED = ("duplicate_of", "overridden")
_ANSWERED = ("merged", *_REMOVED)


@uncollected()
def audit(
    merge: Merge,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    integrator: object = None,
    *,
    again: Callable[[Sequence[Outcome]], Merge] | None = None,
) -> tuple[Violation, ...]:
    """Return every difference between a merge and the outcomes that it was made of.

    Args:
        merge: What the integrator returned.
        outcomes: What it was given, one for each (brief, item), in any order.
        briefs: The briefs that were asked.
        integrator: Who merged; one that is `Promising` is held to that, too, as the built-in ones are.
        again: Merges once more, without asking anybody. None: the integrator's own `merge`, if it has one.

    Returns:
        The violations, independent of the order of outcomes and rows; empty if all is well.

    Example:
        >>> from prefect_dispatch.integrators.collate import Collate
        >>> from prefect_dispatch.ledger import Merge
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief="terms", item="a", status="succeeded", value="MIT")]
        >>> audit(Collate().merge([], said), said, [], Collate())
        ()
        >>> [str(found) for found in audit(Merge(value=1, ledger=()), said, [])]
        ['conservation at terms/a: it has no ledger row.']
    """
    sealed = seal(merge)
    refused = frozenset(integrator.refused(merge)) if isinstance(integrator, Refusing) else frozenset[Ref]()
    found = list(_conservation(merge.ledger, outcomes, refused))
    prose = CitedAudit(merge, outcomes)
    found += prose.violations
    if traced(merge) or isinstance(integrator, Promising):
        found += prose.unexplained(Trace(prose.merge, outcomes, integrator).violations())
    if isinstance(integrator, Promising):
        found += _broken(integrator, merge, outcomes, briefs)
    found += miscomputed(merge, outcomes, integrator)
    if again is None and isinstance(integrator, Integrator):
        again = partial(merge_by, integrator, briefs)
    if again is not None:
        found += _unsteady(merge, outcomes, integrator, again)
    if seal(merge) != sealed:  # by what the integrator itself did while it was looked at
        found.append(_changed("the integrator changed its merge after it had returned it."))
    return tuple(sorted(found, key=lambda violation: (violation.law, violation.where, violation.message)))


def traced(merge: Merge) -> bool:
    """Return whether a merge says where its value comes from, so that recall and precision can be checked."""
    return bool(merge.fields)


def _conservation(
    rows: Sequence[LedgerRow], outcomes: Sequence[Outcome], refused: frozenset[Ref]
) -> Iterator[Violation]:
    known = {Ref.of(outcome): outcome for outcome in outcomes}
    counts = Counter(map(Ref.of, rows))
    for ref in known.keys() - counts.keys():
        yield _unkept(ref, "it has no ledger row.")
    for ref, count in counts.items():
        if ref not in known:
            yield _unkept(ref, "it has a ledger row, but there is no such outcome.")
        if count > 1:
            yield _unkept(ref, f"it has {count} ledger rows.")
    for row in rows:
        ref = Ref.of(row)
        outcome = known.get(ref)
        if outcome and row.disposition not in (_ANSWERED if outcome.status == "succeeded" else (outcome.status,)):
            yield _unkept(ref, f"it {outcome.status}, but its ledger row says {row.disposition!r}.")
        if row.disposition in _REMOVED and not (row.by is None and ref in refused):
            by = known.get(row.by) if row.by else None
            if by is None or by.status != "succeeded" or row.by == ref:
                named = repr(str(row.by)) if row.by else "nothing"
                yield _unkept(ref, f"it is {row.disposition!r} by {named}, which is no other outcome with an answer.")
        elif row.by:
            yield _unkept(ref, f"it is {row.disposition!r}, yet by {str(row.by)!r}.")
    yield from _circles(
        {Ref.of(row): row.by for row in rows if row.by and row.by != Ref.of(row) and row.disposition in _REMOVED}
    )


def _broken(
    integrator: Promising, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]
) -> Sequence[Violation]:
    try:
        return [*integrator.broken(merge, [*map(unshared, outcomes)], briefs)]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be anybody's code
        message = f"what the integrator promises can't be looked at: it raised {told(error)}"
        return [Violation(law="precision", where="/", message=message)]


def _unsteady(
    merge: Merge, outcomes: Sequence[Outcome], integrator: object, again: Callable[[Sequence[Outcome]], Merge]
) -> Iterator[Violation]:
    """Yield what another order of the outcomes, or the merged value taken in again, changes."""
    try:
        turned = again([unshared(outcome) for outcome in sorted(outcomes, key=_place, reverse=True)])
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be anybody's code
        yield _changed(f"merged once more, in another order, it raised {told(error.__cause__ or error)}")
        return
    for name in type(merge).model_fields:
        if name != "asked" and not _equal(turned, merge, name):
            yield _changed(f"merged once more, in another order, its {name!r} is another one.")
            return
    del turned  # it may be large, and so may the next one
    if not isinstance(integrator, Restating):
        return
    try:
        restated = integrator.restated(merge)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- of a value that was tampered with anything may be missing
        yield _changed(f"the merged value can't be taken in again ({type(error).__name__}).")
        return
    if restated is None:
        return
    try:
        restated = [*map(unshared, restated)]
        value = again(restated).value
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
        yield _changed(f"with the merged value taken in again, it raised {told(error.__cause__ or error)}")
        return
    if not same(value, merge.value):
        yield _changed("the merged value, merged once more, is another one.")


def _equal(one: Merge, other: Merge, name: str) -> bool:
    """Return whether a field of two merges is the same, of ledger and field rows in whatever order they are."""
    left, right = getattr(one, name), getattr(other, name)
    if name == "value":
        return same(left, right)
    if name not in ("ledger", "fields"):
        return bool(left == right)
    if len(left) == len(right) and all(map(eq, pieces(left), pieces(right))):  # as they mostly are
        return True
    return sorted(row.model_dump_json() for row in left) == sorted(row.model_dump_json() for row in right)


def _place(outcome: Outcome) -> tuple[object, ...]:
    return place_of(outcome.brief, outcome.item)


def _changed(message: str) -> Violation:
    return Violation(law="idempotence", where="/", message=message)


def _circles(by: Mapping[Ref, Ref]) -> Iterator[Violation]:
    """Yield outcomes that stand for each other in a circle, so that none of them is in the value."""
    done: set[Ref] = set()
    for start in by:
        way: dict[Ref, None] = {}
        ref = start
        while ref in by and ref not in done and ref not in way:
            way[ref] = None
            ref = by[ref]
        if ref in way:
            circle = list(way)[list(way).index(ref) :]
            first = min(circle, key=lambda other: other.order)
            yield _unkept(first, "it and the outcome that stands for it stand for each other in a circle.")
        done |= way.keys()


def _unkept(ref: Ref | str, message: str) -> Violation:
    return Violation(law="conservation", where=str(ref), message=message)
