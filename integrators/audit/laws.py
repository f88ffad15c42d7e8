"""Audit of a merge: checks what an integrator returned against the outcomes it was given.

Five laws are checked, for any integrator (the user's own included) and without asking a model:

- Conservation: each outcome has exactly one ledger row, and its disposition fits the outcome's status.
- Recall: everything that outcomes say is in the merged value, or among what a rule removed.
- Precision: everything in the merged value is in an answer of the outcomes that its field row names as sources.
- Schema: the merged answers still satisfy the schemas of their briefs.
- Idempotence: merging again in another order changes nothing, nor does merging the merged value again.

An integrator that makes further promises checks them itself (`BaseIntegrator.verify`), as the built-in ones do. One
that makes none and returns no field rows (because it computes a number, for example) is checked for conservation and
idempotence only. Where it returns field rows, a rule named `module:name` may compute a winner that is in no answer;
the values it was computed from are among the losers.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import eq
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.audit.cited import CitedAudit
from prefect_dispatch.integrators.audit.coverage import Trace, precision_violation, split_pointer
from prefect_dispatch.integrators.base import BaseIntegrator, Integrator, copy_mutable_value
from prefect_dispatch.integrators.consensus.number_rules import STATISTICS, is_number
from prefect_dispatch.integrators.consensus.vote_rules import ELEMENTS, comparison_key, majority_elements
from prefect_dispatch.integrators.merge_records.field_rules import Claim
from prefect_dispatch.integrators.run_merge import gc_paused, merge_digest, run_integrator
from prefect_dispatch.models.ledger import Ref, Violation, sort_key
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import iter_json_chunks
from prefect_dispatch.serialization.json_values import content_text, exact_text, get_at, is_identical, pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Merge
    from prefect_dispatch.models.outcome import Outcome


def recompute_violations(merge: Merge, outcomes: Sequence[Outcome], integrator: BaseIntegrator) -> Iterator[Violation]:
    """Yield a violation for each part of a merge that differs from what is recomputed from its own evidence."""
    if getattr(integrator.recompute, "__func__", None) is BaseIntegrator.recompute:
        return  # the default: there is no such evidence, and copies would be for nothing
    try:
        again = integrator.recompute(merge, [*map(copy_mutable_value, outcomes)])
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- evidence that was tampered with may be anything
        yield precision_violation("/", f"it can't be recomputed from its evidence: {safe_message(error)}")
        return
    if again is None:
        return
    for path in _differences("", merge.value, again.value):
        yield precision_violation(path or "/", "recomputed from the evidence, it differs.")
    for name in ("ledger", "fields", "rules", "flags", "tables", "shortfalls"):
        if _comparable_field(merge, name) != _comparable_field(again, name):
            yield precision_violation("/", f"recomputed from the evidence, its {name!r} differs.")


def _differences(path: str, one: JsonValue, two: JsonValue) -> Iterator[str]:
    """Yield the JSON Pointers of the innermost parts in which two values differ."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for name in one:
            yield from _differences(path + pointer(name), one[name], two[name])
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for at, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _differences(path + pointer(at), left, right)
    elif exact_text(one) != exact_text(two):
        yield path


def _comparable_field(merge: Merge, name: str) -> object:
    """Return a field of a merge; the rows of `ledger` and `fields`, which may be in any order, sorted."""
    value = getattr(merge, name)
    return sorted(map(repr, value)) if name in ("ledger", "fields") else value


def recount_votes(
    merge: Merge,
    answers: Mapping[str, Mapping[Ref, JsonValue]],
    *,
    decided: str,
    undecided: str,
    min_votes: int,
    voters: Mapping[Ref, str] | None = None,
) -> Iterator[Violation]:
    """Count the votes of outcomes again, and yield what a merge of votes has otherwise.

    Each item with an answer has one entry, in the right list. Each field row is about an item with votes, and names
    all agents that voted on its field as sources. The results of computed rules, majorities, and lists of the
    elements that more than half have are recomputed.

    Args:
        merge: The merge of the votes.
        answers: The answers to each item that it was made of.
        decided: The field of the merged value that holds the decided items.
        undecided: The field that holds the items with too few answers.
        min_votes: How many answers decide an item.
        voters: The voter of each outcome, if each entry lists the voters; the rows about them are checked as well.
    """
    # 1. Each item has one entry, in the list that its number of answers calls for.
    entries = _items_of_entries(merge, (decided, undecided))
    listed = Counter(entries.values())
    for item in sorted(answers.keys() | listed.keys()):
        count = len(answers.get(item, ()))
        if listed[item] != bool(count):
            message = f"it has {count} answers and {listed[item]} entries."
            yield Violation(law="recall", where=item, message=message)
    for (name, at), item in entries.items():
        count = len(answers.get(item, ()))
        if count and (count >= min_votes) != (name == decided):
            yield precision_violation(f"/{name}/{at}", f"{count} answers don't put it there.")
    # 2. Each field row, at `/<list>/<index>/value/<field of the answer>`, is the result of the votes on its field.
    for row in merge.fields:
        tokens = split_pointer(row.path)
        about = entries.get((tokens[0], tokens[1])) if len(tokens) > 2 else None  # noqa: PLR2004 -- list, index, field
        given = answers.get(about or "")
        if given and tokens[2] == "value":
            yield from _row_violations(row, _votes_at(given, tokens[3:]))
        elif not (given and voters and _is_about_voters(row, given, voters)):
            yield precision_violation(row.path, "a field row is about no answer.")


def _is_about_voters(row: FieldRow, answers: Mapping[Ref, JsonValue], voters: Mapping[Ref, str]) -> bool:
    """Return whether a field row is about an item's name or voters, and right about those with an answer to it."""
    expected = sorted(voters[ref] for ref in answers)
    is_right = row.path.endswith("/item") or (row.path.endswith("/voters") and row.winner == expected)
    return is_right and set(row.sources) == set(answers) and not row.losers


def _items_of_entries(merge: Merge, names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the item of each entry of the merged value, by the name of its list and its index in it."""
    lists = {name: get_at(merge.value, [name]) for name in names}
    return {
        (name, str(at)): str(get_at(entry, ["item"]))
        for name, listed in lists.items()
        for at, entry in enumerate(listed if isinstance(listed, list) else [])
    }


def _votes_at(answers: Mapping[Ref, JsonValue], path: Sequence[str]) -> dict[Ref, JsonValue]:
    """Return what each outcome has at a path of its answer; one without that field has no vote."""
    votes: dict[Ref, JsonValue] = {}
    for ref, answer in answers.items():
        around = get_at(answer, path[:-1])
        if not path or (isinstance(around, dict) and path[-1] in around):
            votes[ref] = get_at(answer, path)
    return votes


def _row_violations(row: FieldRow, votes: Mapping[Ref, JsonValue]) -> Iterator[Violation]:
    """Yield a violation if a field row isn't the result of the votes on its field.

    Args:
        row: The field row.
        votes: The votes on its field, by outcome.
    """
    # 1. Each vote is a source of the winner or of a loser.
    sources = {ref for refs in (row.sources, *(loser.sources for loser in row.losers)) for ref in refs}
    if sources != set(votes):
        missing = sorted(votes.keys() ^ sources, key=lambda ref: ref.order)
        message = f"its row and the votes on it differ by {', '.join(map(str, missing))}."
        yield Violation(law="recall", where=row.path, message=message)
        return
    # 2. The rule, applied to the votes, gives the winner.
    if row.rule in STATISTICS:
        numbers = [value for _, value in sorted(votes.items(), key=lambda vote: vote[0].order) if is_number(value)]
        expected = STATISTICS[row.rule](numbers) if numbers else None  # type: ignore[arg-type]
        if content_text(expected) != content_text(row.winner):
            yield precision_violation(row.path, f"{row.rule!r} of the answers gives {exact_text(expected)}.")
    elif row.rule == ELEMENTS:
        claims = [
            Claim(value, content_text(value), ref, value, (0, 0, "", at))
            for at, (ref, value) in enumerate(votes.items())
        ]
        if content_text(majority_elements(claims)) != content_text(row.winner):
            yield precision_violation(row.path, "it isn't what more than half have in their lists.")
    elif row.rule == "majority":
        counts = Counter(map(comparison_key, votes.values()))
        if counts[comparison_key(row.winner)] < max(counts.values(), default=0):
            yield precision_violation(row.path, "another answer has more votes.")


_REMOVED_DISPOSITIONS = ("duplicate_of", "overridden")


@gc_paused()
def audit(
    merge: Merge,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    integrator: object = None,
    *,
    again: Callable[[Sequence[Outcome]], Merge] | None = None,
) -> tuple[Violation, ...]:
    """Return every violation of the audit's laws: differences between a merge and the outcomes it was made of.

    Args:
        merge: What the integrator returned.
        outcomes: What it was given, one outcome for each (brief, item), in any order.
        briefs: The briefs of the job.
        integrator: The integrator that merged. Its own guarantees are checked, too.
        again: Function that merges outcomes again without asking a model. None: the integrator's `merge`, if it has
            one; otherwise idempotence is not checked.

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
    broken_guarantees = _guarantee_violations(base, merge, outcomes, briefs)
    if is_traced(merge) or broken_guarantees is not None:
        found += prose.filter_violations(Trace(prose.merge_for_trace, outcomes, integrator).violations())
    # 3. The integrator's own promises, and what follows from the evidence in the merge.
    found += broken_guarantees or ()
    found += recompute_violations(merge, outcomes, base)
    # 4. Idempotence.
    if again is None and isinstance(integrator, Integrator):
        again = partial(run_integrator, integrator, briefs)
    if again is not None:
        found += _idempotence_violations(merge, outcomes, integrator, again)
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
        found = integrator.verify(merge, [*map(copy_mutable_value, outcomes)], briefs)
        violations = None if found is None else [*found]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be the user's code
        return [precision_violation("/", f"the integrator's own checks raised {safe_message(error)}")]
    return violations


def _idempotence_violations(
    merge: Merge, outcomes: Sequence[Outcome], integrator: object, again: Callable[[Sequence[Outcome]], Merge]
) -> Iterator[Violation]:
    """Yield what changes if the outcomes are merged in another order, or the merged value is merged again."""
    # 1. The same outcomes in reverse order give the same merge.
    try:
        reordered = again([copy_mutable_value(outcome) for outcome in sorted(outcomes, key=_sort_key, reverse=True)])
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be the user's code
        yield _idempotence_violation(
            f"merged again in another order, it raised {safe_message(error.__cause__ or error)}"
        )
        return
    for name in type(merge).model_fields:
        if name != "asked" and not _is_field_equal(reordered, merge, name):
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


def _is_field_equal(one: Merge, other: Merge, name: str) -> bool:
    """Return whether a field of two merges is equal; the rows of `ledger` and `fields` may be in any order."""
    left, right = getattr(one, name), getattr(other, name)
    if name == "value":
        return is_identical(left, right)
    if name not in ("ledger", "fields"):
        return bool(left == right)
    # Fast path: the rows are mostly in the same order, and need not be serialized one by one.
    if len(left) == len(right) and all(map(eq, iter_json_chunks(left), iter_json_chunks(right))):
        return True
    return sorted(row.model_dump_json() for row in left) == sorted(row.model_dump_json() for row in right)


def _sort_key(outcome: Outcome) -> tuple[object, ...]:
    return sort_key(outcome.brief, outcome.item)


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
