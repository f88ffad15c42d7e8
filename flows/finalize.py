"""Finalization of a run: merge its outcomes, judge the whole, and build the report."""

from __future__ import annotations

import platform
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import prefect
from prefect.runtime import flow_run
from pydantic import BaseModel, JsonValue

from prefect_dispatch.errors import AuditError, MergeError
from prefect_dispatch.executors.coding.questions import list_questions
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.messages import is_expected_model, is_local, shorten_model_path
from prefect_dispatch.flows.runtime.prepared_job import query_executors
from prefect_dispatch.integrators.audit.brief_conformance import requirement_shortfalls
from prefect_dispatch.integrators.base import BaseIntegrator, DecisionIntegrator, unanswered
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.models import __version__
from prefect_dispatch.models.bill import create_bill
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.ledger import WEB_SOURCES, Flag, Gap, LedgerRow, Merge, Ref, Table, Violation, sort_key
from prefect_dispatch.models.outcome import answering_models
from prefect_dispatch.models.report import Report, ServedModel, Spending
from prefect_dispatch.prefect_compat import outside_transactions
from prefect_dispatch.security.escaping import join_names, strip_control_chars
from prefect_dispatch.security.redaction import redact_json, safe_message
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.tasks.integrate import integrate
from prefect_dispatch.tasks.pilots.cascade_learning import cascade_table, decision_of
from prefect_dispatch.tasks.preflight import describe_waiver
from prefect_dispatch.tasks.work_item import unmapped_quote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.plan import Plan

_NO_ALTERNATIVES: Mapping[str, str] = {}
NAMED_GAPS = 5
MOST_SOURCES = 1_000
"""Maximum number of outcomes that a flag of a model names."""


class PilotFacts(NamedTuple):
    """What a report needs to know of a pilot."""

    reason: str = ""
    """Why the run ended after it, if it did."""
    sample: Collection[str] = ()
    """The fingerprints of the work that it has asked in this run."""


class Clock:
    """Clock of a run: its start, and the seconds since then."""

    def __init__(self, started: datetime | None = None) -> None:
        """Start now, or at the start of an earlier process of the run."""
        now = datetime.now(timezone.utc)
        self.started = started or now
        # The time before this process began is only known by the wall clock.
        self._began = time.monotonic() - max(0.0, (now - self.started).total_seconds())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._began, 3)


def build_report(
    job: PreparedJob,
    outcomes: Sequence[Outcome],
    *,
    stopped: str | None,
    planned: Plan,
    clock: Clock,
    refresh: bool = False,
    known: Sequence[Outcome] = (),
    cancelled: bool = False,
    pilot: PilotFacts | None = None,
) -> Report:
    """Merge the outcomes of a run and return its report.

    Args:
        job: The job.
        outcomes: The outcomes, in any order.
        stopped: Why the fan-out ended early, if it did.
        planned: The plan.
        clock: The clock of the run.
        refresh: Whether the integrator's own queries are sent even where an answer is stored.
        known: The outcomes of the integrator's own queries so far.
        cancelled: Whether the run was interrupted: then nothing is merged, as that may take long, and ask models.
        pilot: What is known of the pilot of the run. If the run ended after it, the answers are put side by side, as an
            integrator may ask models, and the run has gaps, however few of its items have an answer.
    """
    pilot = pilot or PilotFacts()
    if pilot.reason:
        job = replace(job, integrator=Collate())
    # 1. Merge and audit.
    ordered = sorted(outcomes, key=lambda outcome: sort_key(outcome.brief, outcome.item))
    merge, violations, broken = (_no_merge if cancelled else partial(_merge, refresh=refresh, known=known))(
        job, ordered
    )
    every = [*ordered, *merge.asked]
    # 2. Report.
    models, other = _served_models(job, every)
    waiver = describe_waiver(job.independence, job.briefs, job.limits.on_dependence)
    failure = broken or merge.failed or (stopped and f"Stopped: {stopped}")
    report = report_merge(
        merge,
        violations,
        ordered,
        failure=failure,
        min_success=0.0 if pilot.reason else job.limits.min_success,
        alternatives=BaseIntegrator.of(job.integrator).alternatives(job.briefs),
        sampled=pilot.sample,
    )
    if pilot.reason and not failure:
        report = report.model_copy(update={"status": "gaps", "message": report.message.removeprefix("Failed: ")})
        report = add_shortfall(report, pilot.reason)
    return report.model_copy(
        update={
            "rules": " ".join(filter(None, (merge.rules, waiver))),
            "tables": (*report.tables, *filter(None, [cascade_table(ordered, job.executor)])),
            "flags": (*merge.flags, *other),
            "models": models,
            "plan": planned.model_dump(mode="json"),
            "run": _run_facts(job, merge, every, clock),
        }
    )


def report_merge(
    merge: Merge,
    violations: tuple[Violation, ...],
    outcomes: Sequence[Outcome],
    *,
    failure: str | None,
    min_success: float,
    alternatives: Mapping[str, str] = _NO_ALTERNATIVES,
    sampled: Collection[str] = (),
) -> Report:
    """Return the part of a report that follows from the outcomes and their merge.

    Args:
        merge: The merge.
        violations: What its audit found.
        outcomes: The outcomes, in canonical order.
        failure: Why the merge failed or the fan-out ended early, if one did.
        min_success: The share of outcomes that must have an answer; alternatives count as one.
        alternatives: The briefs of whose answers one is enough, with the name of their group.
        sampled: The fingerprints of the work that a pilot of the run has asked.
    """
    bill = create_bill(outcomes, merge.asked, sampled)
    gaps = [outcome for outcome in outcomes if outcome.status != "succeeded"]
    shortfalls = (*merge.shortfalls, *requirement_shortfalls(merge.requirements))
    status, message = _verdict(outcomes, gaps, failure, min_success, shortfalls, alternatives)
    return Report(
        status=status,
        message=strip_control_chars(message),
        value=merge.value,
        ledger=_add_reasons(merge.ledger, outcomes),
        fields=merge.fields,
        gaps=tuple(
            Gap(brief=each.brief, item=each.item, status=each.status, error=each.error)
            for each in gaps
            if each.error and each.status != "succeeded"
        ),
        violations=violations,
        requirements=merge.requirements,
        rules=merge.rules,
        proposals=merge.proposals,
        flags=merge.flags,
        tables=(*merge.tables, *_web_sources_table(outcomes)),
        documents=(*merge.documents, *list_questions(outcomes)),
        shortfalls=shortfalls,
        usage=Spending.of([*outcomes, *merge.asked], bill),
        integration=Spending.of(merge.asked, [row for row in bill if row.stage == "integrator"]),
        bill=bill,
        outcomes=tuple(outcomes),
        asked=merge.asked,
    )


def add_shortfall(report: Report, shortfall: str) -> Report:
    """Return a report with one more shortfall: something that the run could not do."""
    return report.model_copy(
        update={
            "status": "gaps" if report.status == "complete" else report.status,
            "message": strip_control_chars(f"{report.message} {shortfall}"),
            "shortfalls": (*report.shortfalls, shortfall),
        }
    )


def _merge(
    job: PreparedJob, outcomes: Sequence[Outcome], *, refresh: bool, known: Sequence[Outcome]
) -> tuple[Merge, tuple[Violation, ...], str | None]:
    """Return the merge, the violations that the audit found, and the reason if there is no merged value."""
    rows = tuple(row for outcome in outcomes if (row := unanswered(outcome)))
    if len(rows) == len(outcomes):
        return Merge(value=None, ledger=rows), (), None
    try:
        with outside_transactions():
            merged = integrate(
                unmapped_quote(job.briefs),
                unmapped_quote(job.items),
                unmapped_quote(outcomes),
                job.integrator,
                job.executor,
                job.limits,
                refresh=refresh,
                known=unmapped_quote(known),
            )
        return merged, (), None  # noqa: TRY300 -- the result without an error
    except AuditError as error:
        return error.merge.model_copy(update={"value": None}), error.violations, str(error)
    except MergeError as error:
        return Merge(value=None, ledger=rows, asked=error.asked), (), str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may raise anything; the answers are stored
        broken = f"The integrator {type(job.integrator).__name__} raised {safe_message(error)}"
        return Merge(value=None, ledger=rows), (), broken


def _no_merge(job: PreparedJob, outcomes: Sequence[Outcome]) -> tuple[Merge, tuple[Violation, ...], str | None]:  # noqa: ARG001 -- as `_merge`
    """Return what stands for the merge of a run that was interrupted."""
    return Merge(value=None, ledger=tuple(row for outcome in outcomes if (row := unanswered(outcome)))), (), "Cancelled"


def _add_reasons(rows: Sequence[LedgerRow], outcomes: Sequence[Outcome]) -> tuple[LedgerRow, ...]:
    """Return the ledger with who of a cascade answered and why, and with how the parts of an item were joined."""
    added: dict[Ref, str] = {}
    for outcome in outcomes:
        decision = decision_of(outcome.attempts) if outcome.status == "succeeded" else None
        who = f"{outcome.model} answered: {decision.reason}" if decision else ""
        if who or outcome.joined:
            added[Ref.of(outcome)] = "; ".join(filter(None, (who, outcome.joined)))
    ledger = list(rows)
    for at, row in enumerate(ledger if added else ()):
        if how := added.get(Ref.of(row)):
            ledger[at] = row.model_copy(update={"reason": "; ".join(filter(None, (how, row.reason)))})
    return tuple(ledger)


def _web_sources_table(outcomes: Sequence[Outcome]) -> Iterator[Table]:
    """Yield a table of the pages that web searches returned, if there were any."""
    rows: list[dict[str, JsonValue]] = [
        {
            "brief": each.brief,
            "item": each.item,
            "url": cited.url,
            "title": cited.title,
            "published": cited.published,
            "retrieved": cited.retrieved.isoformat(),
        }
        for each in outcomes
        for cited in each.citations
    ]
    if rows:
        note = "As the provider cites them; that a page supports the answer is not checked."
        yield Table(name=WEB_SOURCES, title="Pages that web searches returned", rows=tuple(rows), note=note)


def _served_models(job: PreparedJob, outcomes: Sequence[Outcome]) -> tuple[tuple[ServedModel, ...], tuple[Flag, ...]]:
    """Return the models that answered, and a flag for each that is not the requested one."""
    sources: dict[tuple[str, str], set[Ref]] = {}
    for outcome in outcomes:
        for names in answering_models(outcome.attempts) if outcome.status == "succeeded" else ():
            asked, served = map(shorten_model_path, names)
            sources.setdefault((asked, served), set()).add(Ref.of(outcome))
    executors = (job.executor, *query_executors(job.integrator).values())
    accepted = [pattern for each in executors if isinstance(each, LLM) for pattern in each.accept_models]
    rows = [
        ServedModel(
            asked=asked,
            served=served,
            answers=len(refs),
            expected=is_local(asked) or is_expected_model(asked, served, accepted),
        )
        for (asked, served), refs in sorted(sources.items())
    ]
    flags = [
        Flag(
            path="",
            kind="model",
            text=row.served,
            message=(
                f"{row.asked!r} was asked, and the responses to {row.answers} of the answers name another model: "
                "accept it by a pattern in accept_models, or set strict_model"
            ),
            sources=tuple(sorted(sources[row.asked, row.served], key=lambda ref: ref.order)[:MOST_SOURCES]),
        )
        for row in rows
        if not row.expected
    ]
    return tuple(rows), tuple(flags)


def _verdict(
    outcomes: Sequence[Outcome],
    gaps: Sequence[Outcome],
    failure: str | None,
    min_success: float,
    shortfalls: Sequence[str],
    alternatives: Mapping[str, str],
) -> tuple[Literal["complete", "gaps", "failed"], str]:
    """Return the status of a run and its message.

    Args:
        outcomes: The outcomes.
        gaps: Those without an answer.
        failure: Why the merge failed or the fan-out ended early, if one did.
        min_success: The share of outcomes that must have an answer.
        shortfalls: What the integrator could not do.
        alternatives: The briefs of whose answers one is enough, with the name of their group.
    """
    total = len(outcomes)
    groups = {(alternatives.get(each.brief, each.brief), each.item) for each in outcomes}
    lacking = groups - {
        (alternatives.get(each.brief, each.brief), each.item) for each in outcomes if each.status == "succeeded"
    }
    answered = f"{total - len(gaps)} of {total} answered{_describe_gaps(gaps)}"
    if not total:
        return "complete", "There were no items, so nothing was asked."
    if failure:
        return "failed", f"{failure} ({answered})"
    if len(gaps) == total:
        return "failed", f"Failed: {answered}"
    if (len(groups) - len(lacking)) / len(groups) < min_success:
        return "failed", f"Failed: {answered}; at least {min_success:.0%} must be (limits.min_success)"
    return ("gaps" if lacking or shortfalls else "complete"), " ".join([answered + ".", *shortfalls])


def _describe_gaps(gaps: Sequence[Outcome]) -> str:
    if not gaps:
        return ""
    listed = join_names((f"{Ref.of(gap)} ({gap.error.kind if gap.error else gap.status})" for gap in gaps), NAMED_GAPS)
    kinds = Counter(gap.error.kind for gap in gaps if gap.error)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"; no answer for {len(gaps)} ({counts}): {listed}"


def _run_facts(job: PreparedJob, merge: Merge, outcomes: Sequence[Outcome], clock: Clock) -> dict[str, JsonValue]:
    run_id = flow_run.get_id()
    attempts = [attempt for outcome in outcomes for attempt in outcome.spent]
    return {
        "started": clock.started.isoformat(),
        "seconds": clock.seconds,
        "waits": sum(attempt.waits for attempt in attempts),
        "waited_s": round(sum(attempt.waited_s for attempt in attempts), 3),
        "flow_run": {"id": run_id, "name": flow_run.get_name()},
        "executor": redact_json(_to_json(job.executor)),
        **integrator_facts(job.integrator, job.briefs, merge),
        "limits": job.limits.model_dump(mode="json"),
        "versions": {
            "prefect-dispatch": __version__,
            "prefect": prefect.__version__,
            "python": platform.python_version(),
        },
    }


def integrator_facts(integrator: object, briefs: Sequence[Brief], merge: Merge) -> dict[str, JsonValue]:
    """Return what a report says of its integrator, so that the merge can be audited, and repeated, from its files.

    Args:
        integrator: The integrator, with the decisions that it follows.
        briefs: The briefs of the job.
        merge: The merge.
    """
    return {
        "integrator": redact_json(_to_json(integrator)),
        "fields_traced": bool(merge.fields),
        "audit": redact_json(audit_inputs(briefs, integrator)),
    }


def _to_json(thing: object) -> JsonValue:
    if isinstance(thing, BaseModel):
        described: dict[str, JsonValue] = thing.model_dump(mode="json")
        return described
    return type(thing).__name__


AUDITED_FIELDS = {"name", "output", "priority", "scope", "constraints", "checks", "writes"}
"""Fields of a brief that a report stores: a merge depends on them, or its value is compared with them."""
MAX_INPUTS = 1_000_000
"""Most characters of JSON that a report stores as inputs of its audit; with larger inputs, it isn't merged again."""


def audit_inputs(briefs: Sequence[Brief], integrator: object) -> JsonValue:
    """Return what a report must store so that it can be audited from its files.

    Args:
        briefs: The briefs of the job.
        integrator: The integrator, with the decisions that it follows.

    Returns:
        The inputs as JSON; None if they have more than `MAX_INPUTS` characters.
    """
    decisions = integrator.decisions if isinstance(integrator, DecisionIntegrator) else Decisions()
    inputs: dict[str, JsonValue] = {
        "briefs": [each.model_dump(mode="json", include=AUDITED_FIELDS) for each in briefs],
        "decisions": decisions.model_dump(mode="json"),
    }
    return inputs if len(canonical_json(inputs)) <= MAX_INPUTS else None
