"""Audit of a merge: checks what an integrator returned against the outcomes it was given.

Five laws are checked, for any integrator (the user's own included) and without asking a model:

- Conservation: each outcome has exactly one ledger row, and its disposition fits the outcome's status.
- Recall: everything that outcomes say is in the merged value, or among what a rule removed.
- Precision: everything in the merged value is in an answer of the outcomes that its field row names as sources.
- Schema: the merged answers still satisfy the schemas of their briefs.
- Idempotence: merging again in another order changes nothing, nor does merging the merged value again.

An integrator that makes further promises checks them itself (`BaseIntegrator.verify`), and one with documented rules
says what they result in (`BaseIntegrator.recompute`), as the built-in ones do: by other code than that which merges,
so that an integrator with the same mistake in every merge is found out, too. One that makes no promises and returns no
field rows (because it computes a number, for example) is checked for conservation and idempotence only. Where it
returns field rows, a rule named `module:name` may compute a winner that is in no answer; the values it was computed
from are among the losers.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import eq
from typing import TYPE_CHECKING, Any

from prefect_dispatch.integrators.audit.cited import CitedAudit
from prefect_dispatch.integrators.audit.coverage import Trace, precision_violation
from prefect_dispatch.integrators.base import BaseIntegrator, Integrator, copy_mutable_value
from prefect_dispatch.integrators.run_merge import gc_paused, merge_digest, run_integrator
from prefect_dispatch.models.ledger import Merge, Ref, Violation, sort_key
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import iter_json_chunks
from prefect_dispatch.serialization.json_values import exact_text, is_identical, pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import LedgerRow
    from prefect_dispatch.models.outcome import Outcome


COMPARED = tuple(name for name in Merge.model_fields if name not in {"asked", "requirements"})
"""The parts of a merge that are compared; the others are filled in by the run."""
_UNORDERED = ("ledger", "fields")


def _recompute(
    merge: Merge,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    integrator: BaseIntegrator,
    found: list[Violation],
) -> Merge | None:
    """Return the merge as it is recomputed from outcomes and evidence; None if that can't be.

    Args:
        merge: The merge.
        outcomes: The outcomes, which the integrator may modify.
        briefs: The briefs of the job.
        integrator: The integrator.
        found: Receives a violation if the evidence is not usable.
    """
    try:
        return integrator.recompute(merge, outcomes, briefs)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- evidence that was tampered with may be anything
        found.append(precision_violation("/", f"it can't be recomputed from its evidence: {safe_message(error)}"))
        return None


_REMOVED_DISPOSITIONS = ("duplicate_of", "overridden")


@gc_paused()
def audit(
    merge: Merge,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    integrator: object = None,
    *,
    again: Callable[[Sequence[Outcome]], Merge] | None = None,
    unknown: Collection[str] = (),
) -> tuple[Violation, ...]:
    """Return every violation of the audit's laws: differences between a merge and the outcomes it was made of.

    Args:
        merge: What the integrator returned.
        outcomes: What it was given, one outcome for each (brief, item), in any order.
        briefs: The briefs of the job.
        integrator: The integrator that merged. Its own guarantees are checked, too.
        again: Function that merges outcomes again without asking a model. None: the integrator's `merge`, if it has
            one, and only what can't be recomputed is merged in another order; otherwise idempotence is not checked.
        unknown: Names of parts of a merge that this one lacks, as a report doesn't have them.

    Returns:
        The violations, sorted, independent of the order of outcomes and rows; empty if there is none.

    Example:
        >>> from prefect_dispatch.integrators.collate import Collate
        >>> from prefect_dispatch.models.ledger import Merge
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item="a", status="succeeded", value="MIT")]
        >>> audit(Collate().merge([], outcomes), outcomes, [], Collate())
        ()
        >>> [str(violation) for violation in audit(Merge(value=1, ledger=()), outcomes, [])]
        ['conservation at terms/a: it has no ledger row.']
    """
    # 1. Conservation: the ledger against the outcomes.
    base = BaseIntegrator.of(integrator)
    sealed = merge_digest(merge)
    found = list(_conservation_violations(merge.ledger, outcomes, frozenset(base.excluded_outcomes(merge))))
    # 2. Recall and precision: the value against the outcomes, fields written by a model first.
    prose = CitedAudit(merge, outcomes)
    found += prose.violations
    copies = [*map(copy_mutable_value, reversed(sort_outcomes(outcomes)))]
    broken_guarantees = _guarantee_violations(base, merge, copies, briefs)
    if is_traced(merge) or broken_guarantees is not None:
        found += prose.filter_violations(Trace(prose.merge_for_trace, outcomes, integrator).violations())
    # 3. The integrator's own promises, and what follows from the evidence in the merge.
    found += broken_guarantees or ()
    expected = _recompute(merge, copies, briefs, base, found)
    if expected is not None:
        found += difference_violations(merge, expected, unknown=unknown)
    # 4. Idempotence. What was recomputed, by other code and from another order, need not be merged again for that.
    is_reordered = again is not None or expected is None
    if again is None and isinstance(integrator, Integrator):
        again = partial(run_integrator, integrator, briefs)
    if again is not None:
        found += _idempotence_violations(merge, outcomes, integrator, again, is_reordered=is_reordered)
    # 5. The integrator's code ran in steps 3 and 4, and may have changed the merge.
    if merge_digest(merge) != sealed:
        found.append(_idempotence_violation("the integrator changed its merge after it had returned it."))
    return tuple(sorted(found, key=lambda violation: (violation.law, violation.where, violation.message)))


def is_traced(merge: Merge) -> bool:
    """Return whether a merge has field rows, so that recall and precision can be checked."""
    return bool(merge.fields)


def _conservation_violations(
    rows: Sequence[LedgerRow], outcomes: Sequence[Outcome], refused: frozenset[Ref]
) -> Iterator[Violation]:
    """Yield outcomes and ledger rows that don't match one to one, and rows whose disposition doesn't fit.

    Args:
        rows: The rows of the ledger.
        outcomes: All outcomes.
        refused: Outcomes that may be removed without another outcome that replaces them.
    """
    # 1. Each outcome has exactly one row, and each row an outcome.
    outcome_by_ref = {Ref.of(outcome): outcome for outcome in outcomes}
    counts = Counter(map(Ref.of, rows))
    for ref in outcome_by_ref.keys() - counts.keys():
        yield _conservation_violation(ref, "it has no ledger row.")
    for ref, count in counts.items():
        if ref not in outcome_by_ref:
            yield _conservation_violation(ref, "it has a ledger row, but there is no such outcome.")
        if count > 1:
            yield _conservation_violation(ref, f"it has {count} ledger rows.")
    for row in rows:
        # 2. The disposition is a state that may follow the outcome's; a failed or skipped outcome stays what it is.
        ref = Ref.of(row)
        outcome = outcome_by_ref.get(ref)
        if outcome and row.disposition not in (tuple(outcome.state.next_states) or (outcome.state,)):
            yield _conservation_violation(ref, f"it {outcome.status}, but its ledger row says {row.disposition!r}.")
        # 3. A removed outcome names the other outcome, one with an answer, that replaces it; no other row names any.
        if row.disposition in _REMOVED_DISPOSITIONS and not (row.by is None and ref in refused):
            by = outcome_by_ref.get(row.by) if row.by else None
            if by is None or by.status != "succeeded" or row.by == ref:
                by_text = repr(str(row.by)) if row.by else "nothing"
                yield _conservation_violation(
                    ref, f"it is {row.disposition!r} by {by_text}, which is no other outcome with an answer."
                )
        elif row.by:
            yield _conservation_violation(ref, f"it is {row.disposition!r}, yet by {str(row.by)!r}.")
    # 4. Following `by` from a removed outcome ends at one that is in the value.
    yield from _cycle_violations(
        {
            Ref.of(row): row.by
            for row in rows
            if row.by and row.by != Ref.of(row) and row.disposition in _REMOVED_DISPOSITIONS
        }
    )


def _guarantee_violations(
    integrator: BaseIntegrator, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]
) -> Sequence[Violation] | None:
    """Return the violations of an integrator's own guarantees, one if checking raises; None if it has none."""
    try:
        found = integrator.verify(merge, outcomes, briefs)
        violations = None if found is None else [*found]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be the user's code
        return [precision_violation("/", f"the integrator's own checks raised {safe_message(error)}")]
    return violations


def _idempotence_violations(
    merge: Merge,
    outcomes: Sequence[Outcome],
    integrator: object,
    again: Callable[[Sequence[Outcome]], Merge],
    *,
    is_reordered: bool,
) -> Iterator[Violation]:
    """Yield what changes if the outcomes are merged in another order, or the merged value is merged again.

    Args:
        merge: The merge.
        outcomes: All outcomes.
        integrator: The integrator.
        again: Merges outcomes.
        is_reordered: Whether they are merged in another order.
    """
    # 1. The same outcomes in reverse order give the same merge.
    if is_reordered:
        try:
            reordered = again([*map(copy_mutable_value, reversed(sort_outcomes(outcomes)))])
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be the user's code
            yield _idempotence_violation(
                f"merged again in another order, it raised {safe_message(error.__cause__ or error)}"
            )
            return
        for name in COMPARED:
            if not is_part_equal(reordered, merge, name):
                yield _idempotence_violation(f"merged again in another order, its {name!r} differs.")
                return
        del reordered  # it may be large, and so may the next merge
    # 2. The merged value, converted back into outcomes, gives the same value.
    try:
        restated = BaseIntegrator.of(integrator).as_outcomes(merge)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a value that was tampered with may lack anything
        yield _idempotence_violation(f"the merged value can't be merged again ({type(error).__name__}).")
        return
    if restated is None:
        return
    try:
        restated = [*map(copy_mutable_value, restated)]
        value = again(restated).value
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
        yield _idempotence_violation(f"merging the merged value again raised {safe_message(error.__cause__ or error)}")
        return
    if not is_identical(value, merge.value):
        yield _idempotence_violation("merging the merged value again changes it.")


def sort_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return outcomes in the order of every list."""
    return sorted(outcomes, key=lambda outcome: sort_key(outcome.brief, outcome.item))


def _idempotence_violation(message: str) -> Violation:
    return Violation(law="idempotence", where="/", message=message)


def _cycle_violations(by: Mapping[Ref, Ref]) -> Iterator[Violation]:
    """Yield one violation for each cycle of outcomes that replace each other, so that none of them is in the value.

    Args:
        by: For each removed outcome, the one that replaces it.
    """
    done: set[Ref] = set()
    for start in by:
        # Follow the references until they end, reach what was followed before, or close a cycle.
        path: dict[Ref, None] = {}
        ref = start
        while ref in by and ref not in done and ref not in path:
            path[ref] = None
            ref = by[ref]
        if ref in path:
            cycle = list(path)[list(path).index(ref) :]
            first = min(cycle, key=lambda other: other.order)
            yield _conservation_violation(
                first, "the outcome that replaces it is itself, through `by`, replaced by it."
            )
        done |= path.keys()


def _conservation_violation(ref: Ref | str, message: str) -> Violation:
    return Violation(law="conservation", where=str(ref), message=message)


def is_part_equal(one: Merge, other: Merge, name: str) -> bool:
    """Return whether a part of two merges is equal; the rows of `ledger` and `fields` may be in any order.

    Args:
        one: A merge.
        other: Another merge.
        name: The name of the part.
    """
    left, right = getattr(one, name), getattr(other, name)
    if name == "value":
        return is_identical(left, right)
    # 1. Fast path: rows are mostly in the same order, and the keys of objects, too.
    if len(left) == len(right) and all(map(eq, iter_json_chunks(left), iter_json_chunks(right))):
        return True
    # 2. Else the content of each row counts.
    rows = (_row_texts(left, is_sorted=name in _UNORDERED), _row_texts(right, is_sorted=name in _UNORDERED))
    return rows[0] == rows[1]


def _row_texts(rows: Any, *, is_sorted: bool) -> list[str]:  # noqa: ANN401 -- rows of any model, or a text
    texts = [exact_text(row if isinstance(row, str) else row.model_dump(mode="json")) for row in rows]
    return sorted(texts) if is_sorted else texts


def difference_violations(merge: Merge, expected: Merge, *, unknown: Collection[str] = ()) -> Iterator[Violation]:
    """Yield a violation for each part of a merge that differs from the expected one.

    Args:
        merge: The merge.
        expected: The merge as it was recomputed from the outcomes and from evidence.
        unknown: Names of parts that are not known of the merge.
    """
    for path in _differing_paths("", merge.value, expected.value):
        yield precision_violation(path or "/", "recomputed from the evidence, it differs.")
    for name in COMPARED:
        if name != "value" and name not in unknown and not is_part_equal(merge, expected, name):
            yield precision_violation("/", f"recomputed from the evidence, its {name!r} differs.")


def _differing_paths(path: str, one: JsonValue, two: JsonValue) -> Iterator[str]:
    """Yield the JSON Pointers of the innermost parts in which two values differ."""
    if is_identical(one, two):
        return
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for name in one:
            yield from _differing_paths(path + pointer(name), one[name], two[name])
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for at, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _differing_paths(path + pointer(at), left, right)
    else:
        yield path
