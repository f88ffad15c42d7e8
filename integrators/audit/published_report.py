"""Audit of a published report: compares its files with each other, and merges their outcomes again.

A published report is a folder with `report.json`, every outcome in `outcomes.jsonl`, and the integrator's own
questions in `questions.jsonl`. The files are read as data: the audit asks no model, runs no code that a report names,
and needs no server. It compares files with each other, so it can't find a change that was made in all of them alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pydantic import Field, TypeAdapter, ValidationError

from prefect_dispatch.errors import JobError, first_problem
from prefect_dispatch.integrators.audit.brief_conformance import check_requirements
from prefect_dispatch.integrators.audit.laws import audit, is_traced
from prefect_dispatch.integrators.base import BaseIntegrator, Integrator
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_branches.candidates import CANDIDATES
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches, refused_outcomes
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.integrators.run_merge import run_integrator
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.base import Frozen
from prefect_dispatch.models.bill import DECIMALS, rows_paid, sum_costs
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.ledger import (
    CASCADE,
    DIFFERENCE,
    TO_DECIDE,
    WEB_SOURCES,
    Gap,
    LedgerRow,
    Merge,
    Ref,
    Requirement,
    Violation,
)
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.models.report import Report, Spending
from prefect_dispatch.security.escaping import strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.integrators.base import AnyMerger

OUTCOMES, QUESTIONS = "outcomes.jsonl", "questions.jsonl"
_NOT_MERGED_AGAIN = ": nothing is merged once more."
_ADDED_TABLES = frozenset({WEB_SOURCES, CASCADE, DIFFERENCE})
"""Tables that are no part of a merge, but were added to its report."""
_INTEGRATOR_ADAPTER: TypeAdapter[AnyIntegrator] = TypeAdapter(AnyIntegrator)


class MergeBrief(Brief):
    """Brief of which a report has only the fields that a merge depends on."""

    instructions: str = "-"


class _AuditInputs(Frozen):
    """The inputs of an audit beside the outcomes, as they are stored in a report."""

    briefs: tuple[MergeBrief, ...] = ()
    decisions: Decisions = Field(default_factory=Decisions)


@dataclass(frozen=True)
class ReportAudit:
    """Result of the audit of a published report.

    Attributes:
        violations: Every violation; empty if there is none.
        checked: What was checked, a phrase each.
        unchecked: What could not be checked and why, a sentence each.
    """

    violations: tuple[Violation, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class PublishedReport:
    """A report as it was published, with its outcomes.

    Attributes:
        report: The report; its own outcomes are empty, as they have files of their own.
        outcomes: The outcomes.
        questions: The outcomes of the integrator's own questions.
        briefs: The briefs, with the fields that a merge depends on; empty if the report doesn't have them.
        decisions: People's decisions that the merge applied.
    """

    report: Report
    outcomes: tuple[Outcome, ...]
    questions: tuple[Outcome, ...]
    briefs: tuple[MergeBrief, ...]
    decisions: Decisions

    def load_integrator(self) -> tuple[AnyMerger | None, str]:
        """Return the integrator of the report, or None if none can be used, and why it can't merge again."""
        return _load_integrator(self.report, has_briefs=bool(self.briefs))


def read_published_report(path: Path) -> PublishedReport:
    """Read a published report and the files beside it.

    Args:
        path: The `report.json`, or the folder that has it.

    Raises:
        JobError: If a file is missing or isn't part of a report.
    """
    file = path / "report.json" if path.is_dir() else path
    report = _read_long_documents(_read_report(file), file.parent)
    outcomes = read_outcomes(file.with_name(OUTCOMES), required=bool(report.ledger or report.gaps))
    questions = read_outcomes(file.with_name(QUESTIONS), required=report.integration != Spending())
    inputs = _read_inputs(report)
    return PublishedReport(report, tuple(outcomes), tuple(questions), inputs.briefs, inputs.decisions)


def audit_report(path: Path) -> ReportAudit:
    """Audit a published report from the files beside it.

    Args:
        path: The `report.json`, or the folder that has it.

    Raises:
        JobError: If a file is missing or isn't part of a report, or the run failed before there was a merged value.
    """
    published = read_published_report(path)
    report, outcomes = published.report, published.outcomes
    if report.violations:  # the run itself published no value, so there is nothing to compare
        return ReportAudit(report.violations, (), ("The run itself found these violations, and published no value.",))
    answered = any(outcome.status == "succeeded" for outcome in outcomes)
    if report.value is None and report.status == "failed" and answered:
        raise JobError(f"The run failed before there was a merged value, so nothing can be audited: {report.message}")
    return _compare_report(published)


def _compare_report(published: PublishedReport) -> ReportAudit:
    """Compare a report with its outcomes."""
    report, outcomes, questions = published.report, published.outcomes, published.questions
    # 1. The sums in the report.
    merge = _build_merge(report, outcomes, questions)
    found = list(_sum_violations(report, outcomes, questions))
    checked = ["the ledger against the outcomes", "gaps and usage against the outcomes"]
    # 2. The merge, by the laws of the audit; merged again if the integrator and its inputs are in the report.
    integrator, why = published.load_integrator()
    unchecked = [why] if why else []
    if integrator is not None:
        found += _requirement_violations(report, merge, outcomes, published.briefs, integrator)
    if isinstance(integrator, MergeBranches):
        # Its fields are about files, which are only in the repository; which outcomes the acceptance command refused
        # is in the merge's own evidence.
        merge = merge.model_copy(update={"fields": ()})
        found += audit(merge, outcomes, published.briefs, SimpleNamespace(excluded_outcomes=refused_outcomes))
        integrator = None
    else:
        if isinstance(integrator, MergeRecords):
            integrator = integrator.with_decisions(published.decisions)
        again = None
        if isinstance(integrator, Integrator):
            again = partial(_merge_again, integrator, published.briefs, report)
        # A report has no `failed`: the integrator's reason for failing a run is part of the report's message. Its
        # shortfalls may have some of the run itself.
        unknown = ("failed", "shortfalls")
        found += audit(merge, outcomes, published.briefs, integrator, again=again, unknown=unknown)
    # 3. What was checked, and what could not be.
    if is_traced(merge) or type(BaseIntegrator.of(integrator)).verify is not BaseIntegrator.verify:
        checked.append("the value against the outcomes, both ways")
    else:
        unchecked.append("The value doesn't say which outcome each part of it is from, so it isn't traced.")
    if isinstance(integrator, Synthesize):
        unchecked.append("A model wrote the text: what it cites was looked up; that it is faithful isn't proven.")
    elif integrator is not None:
        checked.append("the merge, computed once more")
    unchecked.append("A change that was made in all files alike isn't found.")
    return ReportAudit(tuple(dict.fromkeys(found)), tuple(checked), tuple(unchecked))


_CLASS_OUTPUT = re.compile(r"Each answer is a '?[\w.:]+'?\.")
"""The requirement of an output that is a class."""


def _requirement_violations(
    report: Report, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], integrator: object
) -> Iterator[Violation]:
    """Yield a violation for each requirement of a brief on which the report has another verdict than its files.

    Compared is what needs neither items nor code nor a judge. A report has the schema of a pydantic model, whose own
    validation counted, so that a form of other words is left out. Reports of older versions have no requirements.
    """
    stated_rows: Iterable[Requirement] = report.requirements
    given: dict[tuple[str, str, str], Requirement] = {(row.brief, row.kind, row.text): row for row in stated_rows}
    computed_rows = check_requirements(merge, outcomes, briefs, integrator)
    found: dict[tuple[str, str, str], Requirement] = {(row.brief, row.kind, row.text): row for row in computed_rows}
    has_judge = getattr(integrator, "judge", None) is not None

    def problem(key: tuple[str, str, str]) -> str:
        """Return what is wrong with a requirement; empty if nothing is."""
        computed, stated = found.get(key), given.get(key)
        if computed is None:
            return f"the briefs have no 'Requirement {stated}'."
        if stated is None:
            is_missing = bool(given) or computed.verdict == "violated"
            return f"the report lacks 'Requirement {computed}'." if is_missing else ""
        is_words = computed.kind in {"scope", "constraint"}
        if computed.verdict == "not_checkable" and (not is_words or has_judge):
            return ""  # it depends on items, on code or on a judge
        return "" if stated == computed else f"the report has another verdict than 'Requirement {computed}'."

    classes = {brief for brief, kind, text in given if kind == "output" and _CLASS_OUTPUT.fullmatch(text)}
    for key in dict.fromkeys((*found, *given)):
        is_other_form = key[1] == "output" and key[0] in classes and not (key in found and key in given)
        if not is_other_form and (message := problem(key)):
            yield Violation(law="schema", where="/requirements", message=message)


def _merge_again(integrator: Integrator, briefs: Sequence[Brief], report: Report, outcomes: Sequence[Outcome]) -> Merge:
    """Merge outcomes again, and take over from the report what it says about the run itself."""
    merge = run_integrator(integrator, briefs, outcomes)
    return merge.model_copy(update={"failed": "", "shortfalls": report.shortfalls})


def _load_integrator(report: Report, *, has_briefs: bool) -> tuple[AnyMerger | None, str]:
    """Return the integrator of a report and why it can't merge again.

    Args:
        report: The report.
        has_briefs: Whether the report has the briefs of its job.

    Returns:
        The integrator, or None if there is none that can be used; and the reason why nothing can be merged again,
        empty if it can.
    """
    described = report.run.get("integrator")
    try:
        integrator = _INTEGRATOR_ADAPTER.validate_python(described)
    except ValidationError:
        name = strip_control_chars(str(described))[:100]
        return None, f"The integrator {name} is code of your own, which isn't run{_NOT_MERGED_AGAIN}"
    if isinstance(integrator, MergeBranches):
        return integrator, f"The changes are in a git repository, which isn't read{_NOT_MERGED_AGAIN}"
    if not has_briefs:
        why = "The briefs aren't in the report, as it is of an older version, or they are too large"
        return None, f"{why}{_NOT_MERGED_AGAIN}"
    own: tuple[str, ...] = getattr(integrator, "references", ())
    if own:
        return None, f"A rule is code of your own ({', '.join(own)}), which isn't run{_NOT_MERGED_AGAIN}"
    if file := _missing_input(integrator):
        return None, f"{file} aren't in the report{_NOT_MERGED_AGAIN}"
    return integrator, ""


def _missing_input(integrator: AnyMerger) -> str:
    """Return the input that an integrator read from a file, which a report doesn't contain; empty if there is none."""
    if isinstance(integrator, Tournament) and not integrator.criterion:
        return f"The results in {integrator.results!r}"
    if isinstance(integrator, Collate) and integrator.expected:
        return f"The expected answers in {integrator.expected!r}"
    return ""


def _build_merge(report: Report, outcomes: Sequence[Outcome], questions: Sequence[Outcome]) -> Merge:
    """Return the merge that a report was made of."""
    return Merge(
        value=report.value,
        ledger=tuple(_without_part_notes(report.ledger, outcomes)),
        fields=report.fields,
        rules=report.rules,
        proposals=report.proposals,
        flags=report.flags,
        tables=tuple(table for table in report.tables if table.name not in _ADDED_TABLES),
        documents=tuple(each for each in report.documents if each.name != TO_DECIDE),
        shortfalls=report.shortfalls,
        asked=tuple(questions),
    )


def _without_part_notes(rows: Sequence[LedgerRow], outcomes: Sequence[Outcome]) -> Iterator[LedgerRow]:
    """Yield the ledger's rows as the integrator made them: `reason` without the note on parts that were joined."""
    joined = {Ref.of(outcome): outcome.joined for outcome in outcomes if outcome.joined}
    for row in rows:
        how = joined.get(Ref.of(row), "")
        reason = row.reason.removeprefix(how).removeprefix("; ") if how else row.reason
        yield row.model_copy(update={"reason": reason})


def _sum_violations(report: Report, outcomes: Sequence[Outcome], questions: Sequence[Outcome]) -> Iterator[Violation]:
    """Yield a violation for each of gaps, usage and status of a report that doesn't match its outcomes."""
    gaps = tuple(
        Gap(brief=outcome.brief, item=outcome.item, status=outcome.status, error=outcome.error)
        for outcome in outcomes
        if outcome.status != "succeeded" and outcome.error is not None
    )
    if report.gaps != gaps:
        yield Violation(law="conservation", where="/gaps", message="these are not the gaps among the outcomes.")
    for name, part in (("usage", [*outcomes, *questions]), ("integration", questions)):
        if not _is_same_spending(getattr(report, name), Spending.of(part)):
            yield Violation(law="conservation", where=f"/{name}", message="it is not the sum over the outcomes.")
    billed = sum_costs(rows_paid(report.bill, "run"))
    if report.bill and any(getattr(billed, name) != getattr(report.usage, name) for name in _BILLED):
        yield Violation(law="conservation", where="/bill", message="its rows do not add up to the usage.")
    is_violated = any(row.verdict == "violated" for row in report.requirements)
    # A candidate without an answer leaves no gap where another one of its module counts.
    covered = {str(row.get("candidate")) for table in report.tables if table.name == CANDIDATES for row in table.rows}
    is_lacking = any(f"{gap.brief}/{gap.item}" not in covered for gap in gaps)
    if report.status == "complete" and (is_lacking or report.shortfalls or is_violated):
        message = "it is 'complete', beside gaps, shortfalls or violated requirements."
        yield Violation(law="conservation", where="/status", message=message)


_BILLED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "estimated_usd", "unsettled")
"""The fields that a bill and the usage of a run have in common."""


def _is_same_spending(stated: Spending, summed: Spending) -> bool:
    """Return whether two sums agree: their costs up to what rounding each row of a bill makes of them."""
    tolerance = (1 + summed.requests) / 10**DECIMALS
    costs = ("cost_usd", "estimated_usd")
    pairs = [(getattr(stated, name), getattr(summed, name)) for name in costs]
    return stated.model_copy(update={name: getattr(summed, name) for name in costs}) == summed and all(
        one == other or (None not in (one, other) and abs(one - other) <= tolerance) for one, other in pairs
    )


def _read_inputs(report: Report) -> _AuditInputs:
    try:
        return _AuditInputs.model_validate(report.run.get("audit") or {})
    except ValidationError:
        raise JobError("The report's 'run.audit' isn't what a run writes there.") from None


def _read_report(file: Path) -> Report:
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise JobError(f"{str(file)!r} can't be read: {error.strerror}.") from None
    except ValidationError as error:
        where, message = first_problem(error)
        raise JobError(
            strip_control_chars(
                f"{str(file)!r} is not a report.json as a run writes it: {where}{': ' if where else ''}{message}."
            )
        ) from None


def _read_long_documents(report: Report, folder: Path) -> Report:
    """Return a report with the texts of its long documents, which have files of their own."""
    texts = {each.name: folder / each.name for each in report.documents if not each.text}
    found = {name: file.read_bytes().decode(errors="replace") for name, file in texts.items() if file.is_file()}
    documents = (each.model_copy(update={"text": found.get(each.name, each.text)}) for each in report.documents)
    return report.model_copy(update={"documents": tuple(documents)}) if found else report


def read_outcomes(file: Path, *, required: bool) -> list[Outcome]:
    """Return the outcomes in a JSON Lines file.

    Args:
        file: The file.
        required: Whether it must be there; if not, a missing file has no outcomes.

    Raises:
        JobError: If a required file is missing, or a line isn't an outcome.
    """
    if not required and not file.exists():
        return []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise JobError(
            f"{str(file)!r} can't be read: {error.strerror}. It is beside the report.json of each run."
        ) from None
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(Outcome.model_validate_json(line) for line in lines)
    except ValidationError:
        raise JobError(f"{str(file)!r}, line {len(outcomes) + 1}, is not an outcome as a run writes it.") from None
    return outcomes
