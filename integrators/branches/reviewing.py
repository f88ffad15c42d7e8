"""What a reviewer reads: who touched what, what met, what contradicted what, what was left out, and what passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.inert import cell, fenced, legible, paragraph, plain, table
from prefect_dispatch.integrators.branches.accounting import DECIDED, shortfalls
from prefect_dispatch.integrators.branches.course import changed_files
from prefect_dispatch.integrators.branches.excerpts import excerpts
from prefect_dispatch.integrators.branches.patches import PATCH
from prefect_dispatch.integrators.branches.tables import ENDS
from prefect_dispatch.integrators.branches.trees import shown
from prefect_dispatch.ledger import Document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.integrators.branches.course import Course
    from prefect_dispatch.integrators.branches.folding import Settled, Step
    from prefect_dispatch.ledger import Table

REVIEW = "review.md"
"""The name of the file."""
_SHOWN = 50
"""Conflicts that are shown with both sides; the table has all of them."""


def review(course: Course, overlaps: Table, rules: str) -> Document:
    """Return the review: everything in it that somebody else said is inert."""
    parts = [
        "# What was merged",
        _summary(course),
        *(f"- {paragraph(each)}" for each in shortfalls(course)),
        "## Changes",
        "In the order in which they were merged; where two contradict each other, the first one counts first.",
        table(
            ("", "change", "ended", "instead", "files", "why"),
            [
                (at, step.branch.ref, ENDS[step.end], step.by or "", len(step.branch.files), step.reason)
                for at, step in enumerate(course.steps, 1)
            ],
        ),
        *_unmerged(course),
        "## Files",
        table(("file", "", "by"), [*_files(course)]) if course.end.by else "Nothing is changed.",
        "## What several changes touch",
        _overlaps(overlaps),
        "## Conflicts",
        *_conflicts(course),
        "## Acceptance",
        *_acceptance(course),
        "## Rules",
        paragraph(rules),
    ]
    return Document(name=REVIEW, title="What was merged, for a reviewer", text="\n\n".join(parts) + "\n")


def _summary(course: Course) -> str:
    merged, total = len(course.end.by), len(course.steps)
    passes = {True: " The acceptance command passes.", False: " The acceptance command fails.", None: ""}
    return (
        f"{merged} of {total} changes are merged onto `{course.ground.base[:12]}` as `{course.history.commit[:12]}`."
        f"{passes[course.accepted]} To try it: `git apply --index {PATCH}` where the former is checked out."
    )


def _unmerged(course: Course) -> Iterator[str]:
    """Yield what is none of the changes that were merged one by one."""
    for ref, twin in course.lined.equal.items():
        yield f"- {paragraph(f'{ref} is the same change as {twin}.')}"
    for each in course.outcomes:
        if each.status != "succeeded":
            why = f": {each.error.kind}: {each.error.message}" if each.error else ""
            yield f"- {paragraph(f'{each.brief}/{each.item} has no change ({each.status}{why}).')}"


def _files(course: Course) -> Iterator[tuple[str, str, str]]:
    for file in changed_files(course):
        how = "" if file.kept else "put together"
        yield (
            legible(shown(file.path)),
            how if file.after else "deleted",
            ", ".join(str(each.ref) for each in file.sources),
        )


def _overlaps(found: Table) -> str:
    if not found.rows:
        return "No two changes touch one file."
    return table(("file", "one", "other", "how"), [[legible(str(each)) for each in row.values()] for row in found.rows])


def _conflicts(course: Course) -> Iterator[str]:
    every = [*course.conflicts]
    if not every:
        yield "No change contradicts another."
    for step, each in every[:_SHOWN]:
        yield from _conflict(course, step, each)
    if len(every) > _SHOWN:
        yield f"… and {len(every) - _SHOWN} more in the table `conflicts`."


def _conflict(course: Course, step: Step, each: Settled) -> Iterator[str]:
    conflict = each.conflict
    yield f"### {cell(legible(shown(conflict.path)))}"
    against = ", ".join(map(str, each.against))
    yield paragraph(f"{step.branch.ref} contradicts {against} ({conflict.kind}): {DECIDED[each.rule]}.")
    sides = zip(("Base", against, str(step.branch.ref)), excerpts(course.ground.git, conflict), strict=True)
    for name, text in sides:
        lines = "\n".join(plain(line) for line in text.splitlines())
        yield f"{paragraph(name)}:\n\n{fenced(lines, 'text')}" if text else f"{paragraph(name)}: nothing."


def _acceptance(course: Course) -> Iterator[str]:
    if not course.verdicts:
        yield "No command was run."
        return
    yield table(("after", "said"), [(each.after, each.said) for each in course.verdicts])
    for each in course.verdicts:
        if each.told:
            yield f"{paragraph(f'After {each.after}')}:\n\n{fenced(each.told, 'text')}"
