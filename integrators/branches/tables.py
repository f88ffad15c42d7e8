"""The tables of a merge: what became of each change, what contradicts what, and what the acceptance command said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.branches.excerpts import excerpts
from prefect_dispatch.integrators.branches.trees import shown
from prefect_dispatch.ledger import Table

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.integrators.branches.course import Course
    from prefect_dispatch.integrators.branches.folding import Settled, Step
    from prefect_dispatch.integrators.branches.trees import Entry

CONFLICTS, ACCEPTANCE = "conflicts", "acceptance"
ENDS = {"merged": "merged", "equal": "already there", "overridden": "left out", "refused": "left out"}
_ACCEPTANCE_NOTE = (
    "What the acceptance command said of the base, or of all changes up to one. `green`: it passed. `red`: it failed. "
    "`unknown`: it could not be run."
)
_CONFLICTS_NOTE = (
    "Where a change contradicts what was merged before it. `base`, `ours` (what was merged), `theirs` (the change) and "
    "`result` are a file's mode and content, by the names that git has for them; empty where there is none. The texts "
    "are excerpts."
)


def branches_table(course: Course) -> Table:
    """Return what became of each change, in the order in which they were merged."""
    rows: list[dict[str, JsonValue]] = [
        {
            "place": at,
            "change": str(step.branch.ref),
            "end": ENDS[step.end],
            "by": str(step.by) if step.by else "",
            "files": len(step.branch.files),
            "conflicts": len(step.settled),
            "commit": course.history.changes[step.branch.ref],
            "reason": step.reason,
        }
        for at, step in enumerate(course.steps, 1)
    ]
    note = "In the order in which they were merged: by priority, then in the order of every list. The first one wins."
    return Table(name="branches", title="What became of each change", rows=tuple(rows), note=note)


def conflicts_table(course: Course) -> Table:
    """Return what contradicts what."""
    rows = tuple(_conflict(course, step, each) for step, each in course.conflicts)
    return Table(name=CONFLICTS, title="What changes contradict each other on", rows=rows, note=_CONFLICTS_NOTE)


def acceptance_table(course: Course) -> Table:
    """Return what the acceptance command said."""
    rows: list[dict[str, JsonValue]] = [
        {"after": each.after, "said": each.said, "tree": each.tree, "told": each.told} for each in course.verdicts
    ]
    return Table(name=ACCEPTANCE, title="What the acceptance command said", rows=tuple(rows), note=_ACCEPTANCE_NOTE)


def _conflict(course: Course, step: Step, each: Settled) -> dict[str, JsonValue]:
    conflict = each.conflict
    base, ours, theirs = excerpts(course.ground.git, conflict)
    return {
        "path": shown(conflict.path),
        "kind": conflict.kind,
        "change": str(step.branch.ref),
        "against": [str(ref) for ref in each.against],
        "rule": each.rule,
        "base": named(conflict.base),
        "ours": named(conflict.ours),
        "theirs": named(conflict.theirs),
        "result": named(each.result),
        "base_text": base,
        "ours_text": ours,
        "theirs_text": theirs,
    }


def named(entry: Entry | None) -> str:
    """Return how a file is told: its mode and the name of its content."""
    return " ".join(entry) if entry else ""
