"""A published report's outcomes merged again: under other rules, or without some of them; no outcome is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefect import flow
from pydantic import TypeAdapter, ValidationError
from rapidfuzz import process

from prefect_dispatch.errors import AuditError, JobError
from prefect_dispatch.flows.finalize import integrator_facts, report_merge
from prefect_dispatch.flows.job_file import read_job
from prefect_dispatch.flows.runtime.job_document import read_mapping
from prefect_dispatch.integrators.audit.published_report import read_published_report
from prefect_dispatch.integrators.base import AskingIntegrator, DecisionIntegrator
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import CASCADE, Ref, select_refs, sort_key
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Failure
from prefect_dispatch.models.validation_messages import explain_errors
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.reporting.difference import build_difference_table, list_differences
from prefect_dispatch.tasks.integrate import integrate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Merge, Violation
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.difference import Difference

LEFT_OUT = "left_out"
"""Class of the error of an outcome that was left out of a merge on request."""
_NO_ANSWER = {"status": "skipped", "value": None, "change": None, "citations": (), "origin": None, "joined": ""}
"""Fields of an outcome that has no answer; its web pages must not be listed as sources of the merge."""
_INTEGRATOR: TypeAdapter[AnyIntegrator] = TypeAdapter(AnyIntegrator)


class MergedAgain(NamedTuple):
    """A merge of published outcomes, and what it was made from."""

    before: Report
    """The published report."""
    report: Report
    """The report of this merge; its usage is that of this merge alone."""
    briefs: Sequence[Brief]
    """The briefs, as far as the published report has them."""
    differences: Sequence[Difference]
    """How the merge differs from that of the published report."""


class _Rules(NamedTuple):
    """An integrator from a file, with what it needs to query a model."""

    integrator: AnyMerger
    folder: Path
    """Where its relative paths start."""
    executor: Executor | None = None
    """The executor of its queries. None: the default one."""
    limits: Limits = Limits()
    """The limits of its queries."""
    briefs: Sequence[Brief] = ()
    """The briefs of the job, for a report that doesn't have them."""


def merge_again(
    path: Path, *, without: Sequence[str] = (), rules: Path | None = None, allow_calls: bool = False
) -> MergedAgain:
    """Merge the outcomes of a published report again, and audit the merge.

    No outcome is asked again, and no code that the report names is loaded.

    Args:
        path: The `report.json`, or the folder that has it.
        without: Names of outcomes that are left out, as `select_refs` takes them: they become gaps.
        rules: A job file whose integrator merges, or a file with the fields of an integrator alone. None: the
            integrator of the report.
        allow_calls: Whether the integrator may query a model; then it has to be in the file of the rules.

    Raises:
        JobError: If the report can't be read, or can't be merged in this way.
        MergeError: If the integrator fails.
    """
    published = read_published_report(path)
    outcomes = _leave_out(published.outcomes, without)
    # 1. Determine the integrator; that of a report is data: its files and code are not read.
    if rules is None:
        found, why = published.load_integrator()
        if found is None:
            raise JobError(f"{why.rstrip('.')} Name the rules in a file: --rules FILE.")
        chosen = _Rules(found, path.parent)
        briefs: Sequence[Brief] = published.briefs
        integrator = found.with_decisions(published.decisions) if isinstance(found, DecisionIntegrator) else found
    else:
        chosen = _load_rules(rules)
        briefs = published.briefs or chosen.briefs
        integrator = chosen.integrator
    _require_mergeable(integrator, briefs, is_from_file=rules is not None, allow_calls=allow_calls)
    items = [Item(key=key, value=None) for key in dict.fromkeys(outcome.item for outcome in outcomes)]
    if rules is not None:
        integrator = prepare_integrator(integrator, briefs, items, chosen.folder, chosen.executor)
    # 2. Merge and audit.
    merge, violations = _merge(integrator, briefs, items, outcomes, chosen, published.questions)
    # 3. Report.
    failure = str(AuditError(violations, merge)) if violations else merge.failed
    report = report_merge(merge, violations, outcomes, failure=failure, min_success=0.0)
    before = published.report
    facts = {
        **integrator_facts(integrator, briefs, merge),
        "merged_again": {"without": [*without], "rules": None if rules is None else rules.name},
    }
    kept = {"models": before.models, "plan": before.plan, "run": {**before.run, **facts}}
    differences = list_differences(before, report, tuple(getattr(integrator, "identity", ())))
    cascade = [each for each in before.tables if each.name == CASCADE]
    tables = (*report.tables, *cascade, build_difference_table(differences))
    report = report.model_copy(update={**kept, "tables": tables})
    return MergedAgain(before, report, briefs, differences)


def _leave_out(outcomes: Sequence[Outcome], patterns: Sequence[str]) -> list[Outcome]:
    """Return outcomes in canonical order, as stored ones; those that patterns select have no answer."""
    refs = [Ref.of(outcome) for outcome in outcomes]
    left_out: set[Ref] = set()
    for pattern in patterns:
        if not (found := select_refs(pattern, refs)):
            near = ", ".join(repr(match[0]) for match in process.extract(pattern, map(str, refs), limit=3))
            raise JobError(f"--without: the report has no item {pattern!r}; near are {near}.")
        left_out |= found
    if outcomes and len(left_out) == len(refs):
        raise JobError("--without: nothing would be left to merge.")
    error = Failure(kind=LEFT_OUT, message="It was left out of this merge.")
    copies = [
        # The attempts were paid for by the run, and cost nothing here.
        outcome.model_copy(update={**_NO_ANSWER, "error": error})
        if ref in left_out
        else outcome.model_copy(update={"origin": "stored" if outcome.status == "succeeded" else None})
        for ref, outcome in zip(refs, outcomes, strict=True)
    ]
    return sorted(copies, key=lambda outcome: sort_key(outcome.brief, outcome.item))


def _load_rules(path: Path) -> _Rules:
    """Return the integrator in a file: that of a job file, or the only content.

    Raises:
        JobError: If the file has none, or a wrong one.
    """
    document = read_mapping(path)
    data = document.value
    if isinstance(data, dict) and "kind" in data:
        try:
            return _Rules(_INTEGRATOR.validate_python(data), path.parent)
        except ValidationError as error:
            problems = explain_errors(error, data, lambda place: str(document.position.find(place)))
            raise JobError(f"{path.name}: {' '.join(problems)}") from None
    spec = read_job(path).spec(path.parent)
    return _Rules(spec.integrator or Collate(), spec.place, spec.executor, spec.limits, spec.briefs)


def _require_mergeable(
    integrator: AnyMerger, briefs: Sequence[Brief], *, is_from_file: bool, allow_calls: bool
) -> None:
    """Check that an integrator can merge the outcomes of a report.

    Raises:
        JobError: If not.
    """
    name = type(integrator).__name__
    if not briefs:
        raise JobError(
            "The report doesn't have the briefs of its job, as it is of an older version, or they are too large: name "
            "its job file with --rules."
        )
    if isinstance(integrator, MergeBranches):
        raise JobError(f"{name} merges changes in a git repository; run the job again, its stored changes are used.")
    if not isinstance(integrator, AskingIntegrator):
        return
    if not allow_calls:
        raise JobError(f"{name} queries a model to merge, which may cost something: allow it with --allow-calls.")
    if not is_from_file:
        raise JobError(f"{name} of a report isn't used to query a model: name its job file with --rules.")
    if isinstance(integrator, Tournament) and len(briefs) > 1:
        raise JobError("The judge is shown the items, which a report doesn't contain; run the job again instead.")


def _merge(
    integrator: AnyMerger,
    briefs: Sequence[Brief],
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    rules: _Rules,
    questions: Sequence[Outcome],
) -> tuple[Merge, tuple[Violation, ...]]:
    """Return the merge of outcomes, and what its audit found: then there is no merged value."""
    known = [outcome.model_copy(update={"origin": "stored"}) for outcome in questions]

    def merge() -> Merge:
        return integrate.fn(briefs, items, outcomes, integrator, rules.executor, rules.limits, known=known)

    try:
        if not isinstance(integrator, AskingIntegrator):
            return merge(), ()  # the function and not the task, as it needs no server
        with use_server():
            return flow(name="merge")(merge)(), ()  # a flow run, as its queries are task runs
    except AuditError as error:
        return error.merge.model_copy(update={"value": None}), error.violations
