"""The review of a merge: people decide on open pairs and conflicts before a run publishes.

A run of a deployment is suspended meanwhile (`pause`). Any other run has no worker that could take it up again: it ends
as `NeedsReview` with what is open in its report, and the next run of the job follows the decisions file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect_dispatch.decisions_file import DecisionsFile
from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.flows.files import ready_folder
from prefect_dispatch.flows.pause import can_suspend, suspend
from prefect_dispatch.flows.settle import fallen_short
from prefect_dispatch.inert import fenced, paragraph
from prefect_dispatch.integrators.base import Deciding, Identifying, Spelling
from prefect_dispatch.integrators.values import find, get, pointer, silent
from prefect_dispatch.ledger import Document
from prefect_dispatch.matters import form
from prefect_dispatch.places import tokens
from prefect_dispatch.render import TO_DECIDE

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.decisions import Identity, Naming
    from prefect_dispatch.flows.pause import Collected, Resumed
    from prefect_dispatch.flows.prepare import Prepared
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.ledger import FieldRow
    from prefect_dispatch.matters import Form, Locate
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
        JobError: If the integrator follows no decisions, or its file can't be written.
    """
    require_deciding(integrator)
    file = cast("DecisionsFile", decisions_file(integrator, folder))
    ready_folder(file.path.parent)
    return file


def review(job: Prepared, report: Report, file: DecisionsFile, collected: Collected, resumed: Resumed) -> Report:
    """Return the report if nothing is left to decide; else suspend the run, or say in the report what is open.

    Args:
        job: What was run.
        report: What came of it.
        file: The decisions file.
        collected: What the run has come to, for when it goes on.
        resumed: What it had come to before it was suspended.

    Raises:
        Pause: If the run was suspended until people have decided.
        CancelledRun: If the run was cancelled meanwhile.
    """
    report = report.model_copy(update={"decided": resumed.decided})
    for title in resumed.overruled:
        report = fallen_short(report, f"Decided otherwise before this review was answered, and kept: {title}.")
    if report.status == "failed":
        return report
    asked = form(report, _located(job.integrator, report, file.named), resumed.passed)
    if asked is None:
        return report
    if can_suspend():
        suspend(asked, file, collected, job.limits)
    return _undecided(report, asked, file)


def is_undecided(report: Report) -> bool:
    """Return whether a run with a review ended with matters to decide."""
    return "review" in report.run


def _undecided(report: Report, asked: Form, file: DecisionsFile) -> Report:
    """Return the report of a run that can't be suspended: it says what is open, and where to decide."""
    count = len(asked.matters) + asked.more
    report = fallen_short(
        report,
        f"Not decided: {count} open among proposals and conflicts. Decide in {file.path.name!r}, for which "
        f"{TO_DECIDE} has the lines; the next run follows it.",
    )
    more = f" {asked.more} more are open, and come after these." if asked.more else ""
    text = (
        f"Add what is right to the decisions file {paragraph(file.path.name)}, and run the job again. A pair that is "
        f"two goes under `different`; of a field's values take one.{more}\n\n{fenced(asked.lines(), 'yaml')}\n"
    )
    document = Document(name=TO_DECIDE, title="Lines for the decisions file", text=text)
    run: dict[str, JsonValue] = {**report.run, "review": {"open": count, "decisions": str(file.path)}}
    return report.model_copy(update={"documents": (*report.documents, document), "run": run})


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
