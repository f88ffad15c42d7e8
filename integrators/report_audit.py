"""The audit of a published report: what its files say, compared with each other and merged once more.

A report in a folder is `report.json`, every outcome in `outcomes.jsonl`, and the integrator's own questions in
`questions.jsonl`. They are read as data: the audit asks no model, runs no code that a report names, needs no server.
It compares files with each other, so a change that is made in all of them alike is not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from prefect_dispatch.decisions import Decisions
from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.audit import audit, traced
from prefect_dispatch.integrators.base import Deciding, Integrator, Promising
from prefect_dispatch.integrators.branches.rebuilding import refused
from prefect_dispatch.integrators.kinds import AnyIntegrator
from prefect_dispatch.integrators.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records import MergeRecords
from prefect_dispatch.integrators.merging import merge_by
from prefect_dispatch.integrators.synthesize import Synthesize
from prefect_dispatch.integrators.tournament import Tournament
from prefect_dispatch.ledger import LedgerRow, Merge, Ref, Violation
from prefect_dispatch.models import Brief, Outcome
from prefect_dispatch.report import Gap, Report, Spending
from prefect_dispatch.strict import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.integrators.base import AnyMerger

OUTCOMES, QUESTIONS = "outcomes.jsonl", "questions.jsonl"
MAX_INPUTS = 1_000_000
"""Characters of JSON up to which a report holds what its audit needs; beyond that, it isn't merged once more."""
_NOT_AGAIN = ": nothing is merged once more."
_KINDS: TypeAdapter[AnyIntegrator] = TypeAdapter(AnyIntegrator)


class _Asked(Frozen):
    """What of a brief counts for a merge."""

    name: str
    output: Any = "text"
    priority: int = 0


class _Inputs(Frozen):
    """What an audit needs beside the outcomes, as a report holds it."""

    briefs: tuple[_Asked, ...] = ()
    decisions: Decisions = Field(default_factory=Decisions)


@dataclass(frozen=True)
class ReportAudit:
    """What the audit of a published report found.

    Attributes:
        violations: Every difference; empty if all holds.
        checked: What was checked, in phrases.
        unchecked: What could not be checked and why, a sentence each.
    """

    violations: tuple[Violation, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def audit_inputs(briefs: Sequence[Brief], integrator: object) -> JsonValue:
    """Return what a report has to hold so that it can be audited from its files; None where that is too large.

    Args:
        briefs: The briefs of the job.
        integrator: The integrator, with the decisions that it follows.
    """
    decisions = integrator.decisions if isinstance(integrator, Deciding) else Decisions()
    inputs: dict[str, JsonValue] = {
        "briefs": [each.model_dump(mode="json", include={"name", "output", "priority"}) for each in briefs],
        "decisions": decisions.model_dump(mode="json"),
    }
    return inputs if len(canonical(inputs)) <= MAX_INPUTS else None


def audit_report(path: Path) -> ReportAudit:
    """Audit a published report from the files beside it.

    Args:
        path: The `report.json`, or the folder that holds it.

    Raises:
        JobError: If a file is missing or is no part of a report, or the run failed before it merged anything.
    """
    file = path / "report.json" if path.is_dir() else path
    report = _read_report(file)
    outcomes = _read_outcomes(file.with_name(OUTCOMES), required=bool(report.ledger or report.gaps))
    questions = _read_outcomes(file.with_name(QUESTIONS), required=report.integration != Spending())
    if report.violations:  # there is no value then
        return ReportAudit(report.violations, (), ("The run itself found these violations, and published no value.",))
    answered = any(outcome.status == "succeeded" for outcome in outcomes)
    if report.value is None and report.status == "failed" and answered:
        raise JobError(f"The run failed before there was a merged value, so nothing can be audited: {report.message}")
    return _audit(report, outcomes, questions)


def _audit(report: Report, outcomes: Sequence[Outcome], questions: Sequence[Outcome]) -> ReportAudit:
    merge = _merge_of(report, outcomes, questions)
    found = list(_summed(report, outcomes, questions))
    checked = ["the ledger against the outcomes", "gaps and usage against the outcomes"]
    inputs = _inputs_of(report)
    briefs = [
        Brief(name=each.name, instructions="-", output=each.output, priority=each.priority) for each in inputs.briefs
    ]
    integrator, why = _integrator_of(report, known=bool(inputs.briefs))
    unchecked = [why] if why else []
    if isinstance(integrator, MergeBranches):
        merge = merge.model_copy(update={"fields": ()})  # what stands in files is in the repository alone
        found += audit(merge, outcomes, briefs, _RefusedBranches())
        integrator = None
    else:
        if isinstance(integrator, MergeRecords):
            integrator = integrator.decided(inputs.decisions)
        again = None
        if isinstance(integrator, Integrator):
            again = partial(_merge_again, integrator, briefs, report)
        found += audit(merge, outcomes, briefs, integrator, again=again)
    if traced(merge) or isinstance(integrator, Promising):
        checked.append("the value against the outcomes, both ways")
    else:
        unchecked.append("The value doesn't say which outcome each part of it is from, so it isn't traced.")
    if isinstance(integrator, Synthesize):
        unchecked.append("A model wrote the text: what it cites was looked up; that it is faithful isn't proven.")
    elif integrator is not None:
        checked.append("the merge, computed once more")
    unchecked.append("A change that was made in all files alike isn't found.")
    return ReportAudit(tuple(dict.fromkeys(found)), tuple(checked), tuple(unchecked))


def _merge_again(integrator: Integrator, briefs: Sequence[Brief], report: Report, outcomes: Sequence[Outcome]) -> Merge:
    """Return what an integrator merges of outcomes, with what a report says of the run itself."""
    merge = merge_by(integrator, briefs, outcomes)
    # A report has the reason for which the integrator failed the run in its message, beside others.
    return merge.model_copy(update={"failed": "", "shortfalls": report.shortfalls})


class _RefusedBranches:
    """The outcomes that a merge of branches leaves out for good reason, by its own evidence."""

    def refused(self, merge: Merge) -> list[Ref]:
        """Return them."""
        return refused(merge)


def _integrator_of(report: Report, *, known: bool) -> tuple[AnyMerger | None, str]:
    """Return the integrator of a report, ready to merge again, or None and why there is none."""
    said = report.run.get("integrator")
    try:
        integrator = _KINDS.validate_python(said)
    except ValidationError:
        return None, f"The integrator {plain(str(said))[:100]} is code of your own, which isn't run{_NOT_AGAIN}"
    if isinstance(integrator, MergeBranches):
        return integrator, f"The changes are in a git repository, which isn't read{_NOT_AGAIN}"
    if not known:
        return None, f"The briefs aren't in the report, as it is of an older version, or they are too large{_NOT_AGAIN}"
    own: tuple[str, ...] = getattr(integrator, "references", ())
    if own:
        return None, f"A rule is code of your own ({', '.join(own)}), which isn't run{_NOT_AGAIN}"
    if isinstance(integrator, Tournament) and not integrator.criterion:
        return None, f"The results in {integrator.results!r} aren't in the report{_NOT_AGAIN}"
    return integrator, ""


def _merge_of(report: Report, outcomes: Sequence[Outcome], questions: Sequence[Outcome]) -> Merge:
    return Merge(
        value=report.value,
        ledger=tuple(_without_parts(report.ledger, outcomes)),
        fields=report.fields,
        rules=report.rules,
        proposals=report.proposals,
        flags=report.flags,
        tables=report.tables,
        documents=report.documents,
        shortfalls=report.shortfalls,
        asked=tuple(questions),
    )


def _without_parts(rows: Sequence[LedgerRow], outcomes: Sequence[Outcome]) -> Iterator[LedgerRow]:
    """Yield the ledger's rows as the integrator made them, without how an answer was joined of parts."""
    joined = {Ref.of(outcome): outcome.joined for outcome in outcomes if outcome.joined}
    for row in rows:
        how = joined.get(Ref.of(row), "")
        reason = row.reason.removeprefix(how).removeprefix("; ") if how else row.reason
        yield row.model_copy(update={"reason": reason})


def _summed(report: Report, outcomes: Sequence[Outcome], questions: Sequence[Outcome]) -> Iterator[Violation]:
    """Yield where gaps, usage or status of a report are not those of its outcomes."""
    gaps = tuple(
        Gap(brief=outcome.brief, item=outcome.item, status=outcome.status, error=outcome.error)
        for outcome in outcomes
        if outcome.status != "succeeded" and outcome.error is not None
    )
    if report.gaps != gaps:
        yield Violation(law="conservation", where="/gaps", message="these are not the gaps among the outcomes.")
    for name, part in (("usage", [*outcomes, *questions]), ("integration", questions)):
        if getattr(report, name) != Spending.of(part):
            yield Violation(law="conservation", where=f"/{name}", message="it is not the sum over the outcomes.")
    if report.status == "complete" and (gaps or report.shortfalls):
        yield Violation(law="conservation", where="/status", message="it is 'complete', beside gaps or shortfalls.")


def _inputs_of(report: Report) -> _Inputs:
    try:
        return _Inputs.model_validate(report.run.get("audit") or {})
    except ValidationError:
        raise JobError("The report's 'run.audit' isn't what a run writes there.") from None


def _read_report(file: Path) -> Report:
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise JobError(f"{str(file)!r} can't be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise JobError(
            plain(
                f"{str(file)!r} is not a report.json as a run writes it: {where}{': ' if where else ''}{first['msg']}."
            )
        ) from None


def _read_outcomes(file: Path, *, required: bool) -> list[Outcome]:
    """Return the outcomes in a file; none where there is no such file, and none is required.

    Raises:
        JobError: If it is missing, or holds something else.
    """
    if not required and not file.exists():
        return []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise JobError(
            f"{str(file)!r} can't be read: {error.strerror}. It lies beside the report.json of each run."
        ) from None
    found: list[Outcome] = []
    try:
        found.extend(Outcome.model_validate_json(line) for line in lines)
    except ValidationError:
        raise JobError(f"{str(file)!r}, line {len(found) + 1}, is not an outcome as a run writes it.") from None
    return found
