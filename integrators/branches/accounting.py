"""What became of every change: in the value, the fields' rows, the ledger, and what could not be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.branches.course import changed_files, told
from prefect_dispatch.integrators.branches.trees import shown
from prefect_dispatch.integrators.gaps import gaps, unanswered
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import FieldRow, Flag, LedgerRow, Loser, Ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from prefect_dispatch.integrators.branches.course import Course, File
    from prefect_dispatch.integrators.branches.folding import Settled, Step

_RULE = "merge_branches"
_NAMED = 20
"""How many conflicts a sentence names."""


def value_of(course: Course) -> dict[str, JsonValue]:
    """Return the merged value: what was merged, what each agent said of its work, and what has no answer."""
    said: list[JsonValue] = [
        {"brief": each.brief, "item": each.item, "value": each.value}
        for each in course.outcomes
        if each.status == "succeeded"
    ]
    return {
        "base": course.ground.base,
        "commit": course.history.commit,
        "tree": course.end.tree,
        "accepted": course.accepted,
        "files": [each.value for each in changed_files(course)],
        "said": said,
        "gaps": gaps(course.outcomes),
    }


def field_rows(course: Course, value: Mapping[str, JsonValue]) -> Iterator[FieldRow]:
    """Yield where each part of the value comes from."""
    every = tuple(each.ref for each in course.end.by) or course.answered
    for name in ("base", "commit", "tree", "accepted"):
        yield FieldRow(path=pointer(name), winner=value[name], rule=f"{_RULE}:{name}", sources=every)
    losers = _losers(course)
    for at, file in enumerate(changed_files(course)):
        yield FieldRow(
            path=pointer("files", at),
            winner=file.value,
            losers=tuple(losers.get(file.path, {}).values()),
            rule=_rule(course, file),
            sources=tuple(each.ref for each in file.sources),
        )
    answered = [each for each in course.outcomes if each.status == "succeeded"]
    for at, outcome in enumerate(answered):
        path = pointer("said", at, "value")
        yield FieldRow(path=path, winner=outcome.value, rule="kept", sources=(Ref.of(outcome),))


def ledger_rows(course: Course) -> Iterator[LedgerRow]:
    """Yield where each outcome ended."""
    rows = {step.branch.ref: _row(step) for step in course.steps}
    for ref, twin in course.lined.equal.items():
        rows[ref] = LedgerRow(**ref.model_dump(), disposition="duplicate_of", by=twin, reason="the same change")
    for ref in course.lined.idle:
        rows[ref] = LedgerRow(**ref.model_dump(), disposition="merged", reason="changed nothing")
    for outcome in course.outcomes:
        yield unanswered(outcome) or rows[Ref.of(outcome)]


def flags(course: Course) -> Iterator[Flag]:
    """Yield the files in which something was overridden, or put together by an agent."""
    places = {file.path: at for at, file in enumerate(changed_files(course))}
    for step, each in course.conflicts:
        at = places.get(each.conflict.path)
        refs = (*each.against, step.branch.ref)
        yield Flag(
            path=pointer("files", at) if at is not None else pointer("files"),
            kind="conflict",
            text=shown(each.conflict.path),
            message=f"{step.branch.ref} contradicts {', '.join(map(str, each.against))} here ({each.conflict.kind}); "
            f"{DECIDED[each.rule]}.",
            sources=refs,
        )


DECIDED = {
    "priority": "what comes first counts",
    "skip": "the change that comes later is left out",
    "fail": "the change that comes later is left out, and the run has failed",
    "agent": "an agent brought both together",
}
"""What was done about a conflict."""


def shortfalls(course: Course) -> Iterator[str]:
    """Yield what could not be done, a sentence each."""
    for ref in course.lined.idle:
        yield f"{ref} changed nothing in the repository."
    for step in course.steps:
        if step.end == "refused":
            yield f"{step.branch.ref} is left out: {step.reason.splitlines()[0][:300]}"
        elif step.end == "overridden" and step.settled[0].rule != "priority":
            yield f"{step.branch.ref} is left out: {step.reason}."
    if any(each.said == "unknown" for each in course.verdicts):
        why = next(each for each in course.verdicts if each.said == "unknown")
        yield f"The acceptance command could not be run on what is merged up to {why.after}: {why.told[:300]}"
    if course.accepted is False:
        base = next((each for each in course.verdicts if each.tree == course.ground.tree), None)
        also = base is not None and base.said == "red" and bool(course.end.by)
        as_well = ", and on the base as well: no change can be told to be to blame" if also else ""
        yield f"The acceptance command fails on what is merged{as_well}; see the table 'acceptance'."


def failure(course: Course) -> str:
    """Return why a run has failed although agents answered; nothing unless it has."""
    met = [
        f"{step.branch.ref} contradicts {', '.join(map(str, each.against))} on {shown(each.conflict.path)!r} "
        f"({each.conflict.kind})"
        for step, each in course.conflicts
        if each.rule == "fail"
    ]
    more = f"; and {len(met) - _NAMED} more" if len(met) > _NAMED else ""
    return f"Changes contradict each other ('on_conflict' is 'fail'): {'; '.join(met[:_NAMED])}{more}." if met else ""


def _row(step: Step) -> LedgerRow:
    end = {"merged": "merged", "equal": "duplicate_of", "overridden": "overridden", "refused": "overridden"}[step.end]
    ref = step.branch.ref
    return LedgerRow.model_validate({**ref.model_dump(), "disposition": end, "by": step.by, "reason": step.reason})


def _rule(course: Course, file: File) -> str:
    """Return what made a file what it is."""
    met = [each.rule for _, each in course.conflicts if each.conflict.path == file.path]
    if file.kept:
        return f"{_RULE}:equal" if len(file.sources) > 1 else "kept"
    return f"{_RULE}:{'agent' if 'agent' in met else 'lines'}"


def _losers(course: Course) -> dict[str, dict[str, Loser]]:
    """Return what a rule removed at each path, by what it was."""
    found: dict[str, dict[str, Loser]] = {}
    for step, each in course.conflicts:
        path, theirs = each.conflict.path, each.conflict.theirs
        lost: Settled | None = each if each.result != theirs else None
        if lost:
            there = found.setdefault(path, {})
            name = str(theirs)
            before = there[name].sources if name in there else ()
            there[name] = Loser(value=dict(told(path, theirs)), sources=(*before, step.branch.ref))
    return found
