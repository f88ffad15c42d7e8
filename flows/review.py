"""The human gate: a run pauses before it publishes, people decide, and it is merged again by what they decided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from prefect.settings import PREFECT_API_URL

from prefect_dispatch.decisions import Decisions
from prefect_dispatch.decisions_file import DecisionsFile
from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.flows.files import ready_folder
from prefect_dispatch.flows.pause import ask
from prefect_dispatch.flows.settle import fallen_short
from prefect_dispatch.integrators.base import Deciding, Identifying, Spelling
from prefect_dispatch.integrators.values import find, get, pointer, silent
from prefect_dispatch.matters import form
from prefect_dispatch.places import tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from prefect_dispatch.decisions import Identity, Naming
    from prefect_dispatch.flows.prepare import Prepared
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.ledger import FieldRow
    from prefect_dispatch.matters import Locate
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.report import Report

DECIDED = "decided"
"""The rule of a field whose value somebody chose."""


def decisions_file(integrator: AnyMerger | None, folder: Path) -> DecisionsFile | None:
    """Return the file that holds an integrator's decisions, or None if it follows none."""
    if not isinstance(integrator, Deciding) or not integrator.aliases:
        return None
    named = integrator.named if isinstance(integrator, Spelling) else canonical
    return DecisionsFile(folder / integrator.aliases, named)


def require_deciding(integrator: AnyMerger | None) -> None:
    """Check that an integrator can follow what a review decides.

    Raises:
        JobError: If it can't, or names no file that later runs would find the decisions in.
    """
    if not isinstance(integrator, Deciding):
        name = type(integrator).__name__ if integrator else "Collate"
        raise JobError(f"review: {name} leaves nothing to decide; merge by merge_records, or without review.")
    if not integrator.aliases:
        raise JobError(
            "review: decisions need a file that later runs find them in; name one, such as "
            "integrator.aliases: decisions.yaml."
        )


def require_review(integrator: AnyMerger | None, folder: Path) -> DecisionsFile:
    """Return the file that decisions go to, with everything in place that a review needs.

    Raises:
        JobError: If the integrator follows no decisions, its file can't be written, or nobody could see the form:
            the server that a run starts for itself is gone with the run.
    """
    require_deciding(integrator)
    file = cast("DecisionsFile", decisions_file(integrator, folder))
    if not PREFECT_API_URL.value():
        raise JobError(
            "review: the form stands in Prefect's UI, and no Prefect server is set. Start one (prefect server start) "
            f"and set PREFECT_API_URL; or run without review and decide in {file.path.name!r}: report.md has the lines."
        )
    ready_folder(file.path.parent)
    return file


def reviewed(
    job: Prepared, report: Report, file: DecisionsFile, again: Callable[[Prepared, Sequence[Outcome]], Report]
) -> Report:
    """Return the report after people have decided, merged again by what they decided.

    Args:
        job: What was run.
        report: What came of it.
        file: The decisions file.
        again: Merges once more, by a job whose integrator follows the decisions; what was asked before is given to it.

    Raises:
        CancelledRun: If the run was cancelled meanwhile.
    """
    passed: set[str] = set()
    decided = Decisions()
    while report.status != "failed" and (asked := form(report, _located(job.integrator, report, file.named), passed)):
        try:
            answer = ask(asked, file, job.limits.review_s)
            known = file.load()
        except JobError as error:  # somebody broke the file meanwhile: what was decided is taken in by the next run
            report = fallen_short(report, f"What was decided could not be used: {error}")
            break
        if answer is None:
            left = f"{len(asked.matters) + asked.more} open among proposals and conflicts"
            report = fallen_short(report, f"Nobody decided within {job.limits.review_s:g} s: {left}.")
            break
        if answer == Decisions():
            break
        passed |= {matter.name for matter in asked.matters}
        decided = decided.plus(answer, named=file.named)
        job = replace(job, integrator=cast("AnyMerger", cast("Deciding", job.integrator).decided(known)))
        report = again(job, report.asked)
    return report.model_copy(update={"decided": decided})


def _located(integrator: AnyMerger, report: Report, named: Naming) -> Locate:
    """Return what knows the record and the field of a row, where that can be decided on and isn't yet."""
    kept = {(named(each.record), each.field): each.value for each in cast("Deciding", integrator).decisions.fields}

    def locate(row: FieldRow) -> tuple[Identity, str] | None:
        if not isinstance(integrator, Identifying) or row.rule == DECIDED or ":" in row.rule:
            return None  # decided already; or a function made it of what was said
        path, names = tokens(row.path)[:2], tokens(row.path)[2:]
        if path[:1] != [integrator.entries] or not names or any("." in name for name in names):
            return None
        record, _ = find(report.value, pointer(*path))
        if get(record, names) != row.winner:
            return None  # an element of a list, which a decisions file has no words for
        identity: Identity = {name: get(record, name.split(".")) for name in integrator.identity}
        field = ".".join(names)
        if field in identity or any(silent(part) for part in identity.values()):
            return None
        return None if kept.get((named(identity), field), ...) == row.winner else (identity, field)

    return locate
