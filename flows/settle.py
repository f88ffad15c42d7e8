"""How a run ended: outcomes merged, and one verdict on the whole."""

from __future__ import annotations

import platform
import time
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

import prefect
from prefect.runtime import flow_run
from pydantic import BaseModel, JsonValue

from prefect_dispatch._version import __version__
from prefect_dispatch.attempts import answering_models
from prefect_dispatch.errors import AuditError, MergeError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import is_local
from prefect_dispatch.executors.model_names import is_expected_model
from prefect_dispatch.flows.own_executors import own_executors
from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.gaps import unanswered
from prefect_dispatch.integrators.report_audit import audit_inputs
from prefect_dispatch.ledger import Flag, LedgerRow, Merge, Ref, Violation, place_of
from prefect_dispatch.prefect_compat import outside_transactions
from prefect_dispatch.report import Gap, Report, ServedModel, Spending
from prefect_dispatch.scrub import scrubbed, told
from prefect_dispatch.tasks.integrate import integrate
from prefect_dispatch.tasks.work import as_is

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.flows.prepare import Prepared
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.tasks.plan import Plan

NAMED_GAPS = 5
MOST_SOURCES = 1_000
"""Outcomes that a flag of a model names."""


class Clock:
    """When a run started, and how long ago that is."""

    def __init__(self, started: datetime | None = None) -> None:
        """Start now, or where an earlier process of the run did."""
        now = datetime.now(timezone.utc)
        self.started = started or now
        # Time that passed before this process began is known by the wall clock alone.
        self._began = time.monotonic() - max(0.0, (now - self.started).total_seconds())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._began, 3)


def settle(
    job: Prepared,
    outcomes: Sequence[Outcome],
    *,
    stopped: str | None,
    planned: Plan,
    clock: Clock,
    refresh: bool = False,
    known: Sequence[Outcome] = (),
) -> Report:
    """Return the report of a run.

    Args:
        job: What was run.
        outcomes: What came of it, in any order.
        stopped: Why the fan-out ended early, if it did.
        planned: What was planned.
        clock: When it started.
        refresh: Whether the integrator's own questions are asked even where an answer is stored.
        known: What came of the integrator's own questions so far.
    """
    ordered = sorted(outcomes, key=lambda outcome: place_of(outcome.brief, outcome.item))
    merge, violations, broken = _merge(job, ordered, refresh=refresh, known=known)
    status, message = _verdict(
        ordered, job.limits.min_success, stopped=stopped, broken=broken or merge.failed, shortfalls=merge.shortfalls
    )
    models, other = _models(job, [*ordered, *merge.asked])
    return Report(
        status=status,
        message=plain(message),
        value=merge.value,
        ledger=_with_parts(merge.ledger, ordered),
        fields=merge.fields,
        gaps=tuple(
            Gap(brief=outcome.brief, item=outcome.item, status=outcome.status, error=outcome.error)
            for outcome in ordered
            if outcome.status != "succeeded" and outcome.error is not None
        ),
        violations=violations,
        rules=merge.rules,
        proposals=merge.proposals,
        flags=(*merge.flags, *other),
        tables=merge.tables,
        documents=merge.documents,
        shortfalls=merge.shortfalls,
        models=models,
        usage=Spending.of([*ordered, *merge.asked]),
        integration=Spending.of(merge.asked),
        plan=planned.model_dump(mode="json"),
        run=_run(job, merge, [*ordered, *merge.asked], clock),
        outcomes=tuple(ordered),
        asked=merge.asked,
    )


def fallen_short(report: Report, shortfall: str) -> Report:
    """Return a report that tells of one more thing that could not be done."""
    return report.model_copy(
        update={
            "status": "gaps" if report.status == "complete" else report.status,
            "message": plain(f"{report.message} {shortfall}"),
            "shortfalls": (*report.shortfalls, shortfall),
        }
    )


def _merge(
    job: Prepared, outcomes: Sequence[Outcome], *, refresh: bool, known: Sequence[Outcome]
) -> tuple[Merge, tuple[Violation, ...], str | None]:
    """Return the merge, what the audit found, and why there is no merged value, if there is none."""
    rows = tuple(row for outcome in outcomes if (row := unanswered(outcome)))
    if len(rows) == len(outcomes):
        return Merge(value=None, ledger=rows), (), None
    try:
        with outside_transactions():
            merged = integrate(
                as_is(job.briefs),
                as_is(job.items),
                as_is(outcomes),
                job.integrator,
                job.executor,
                job.limits,
                refresh=refresh,
                known=as_is(known),
            )
        return merged, (), None  # noqa: TRY300 -- what is returned where nothing is raised
    except AuditError as error:
        return error.merge.model_copy(update={"value": None}), error.violations, str(error)
    except MergeError as error:
        return Merge(value=None, ledger=rows, asked=error.asked), (), str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- what an integrator returned may be anything; the answers are stored
        broken = f"The integrator {type(job.integrator).__name__} raised {told(error)}"
        return Merge(value=None, ledger=rows), (), broken


def _with_parts(rows: Sequence[LedgerRow], outcomes: Sequence[Outcome]) -> tuple[LedgerRow, ...]:
    """Return the ledger with how an answer was made of the answers to parts of its item."""
    made = {Ref.of(outcome): outcome.joined for outcome in outcomes if outcome.joined}
    if not made:
        return tuple(rows)
    return tuple(
        row.model_copy(update={"reason": "; ".join(filter(None, (made[Ref.of(row)], row.reason)))})
        if Ref.of(row) in made
        else row
        for row in rows
    )


def _models(job: Prepared, outcomes: Sequence[Outcome]) -> tuple[tuple[ServedModel, ...], tuple[Flag, ...]]:
    """Return which models answered, and a flag for each that is not the one that was asked."""
    sources: dict[tuple[str, str], set[Ref]] = {}
    for outcome in outcomes:
        for asked, served in answering_models(outcome.attempts) if outcome.status == "succeeded" else ():
            sources.setdefault((asked, served), set()).add(Ref.of(outcome))
    accepted = _accepted(job)
    rows = [
        ServedModel(
            asked=asked,
            served=served,
            answers=len(refs),
            expected=is_local(asked) or is_expected_model(asked, served, accepted),
        )
        for (asked, served), refs in sorted(sources.items())
    ]
    flags = [_model_flag(row, sources[row.asked, row.served]) for row in rows if not row.expected]
    return tuple(rows), tuple(flags)


def _model_flag(row: ServedModel, sources: set[Ref]) -> Flag:
    return Flag(
        path="",
        kind="model",
        text=row.served,
        message=(
            f"{row.asked!r} was asked, and the responses to {row.answers} of the answers name another model: accept it "
            "by a pattern in accept_models, or set strict_model"
        ),
        sources=tuple(sorted(sources, key=lambda ref: ref.order)[:MOST_SOURCES]),
    )


def _accepted(job: Prepared) -> tuple[str, ...]:
    """Return the patterns of accepted names of all language models of a job."""
    models = [each for each in (job.executor, *own_executors(job.integrator).values()) if isinstance(each, LLM)]
    return tuple(dict.fromkeys(pattern for each in models for pattern in each.accept_models))


def _verdict(
    outcomes: Sequence[Outcome],
    min_success: float,
    *,
    stopped: str | None,
    broken: str | None,
    shortfalls: Sequence[str],
) -> tuple[Literal["complete", "gaps", "failed"], str]:
    total = len(outcomes)
    gaps = [outcome for outcome in outcomes if outcome.status != "succeeded"]
    answered = f"{total - len(gaps)} of {total} answered{_without(gaps)}"
    if not total:
        return "complete", "There were no items, so nobody was asked."
    if broken:
        return "failed", f"{broken} ({answered})"
    if stopped:
        return "failed", f"Stopped: {stopped} ({answered})"
    if len(gaps) == total:
        return "failed", f"Failed: {answered}"
    if (total - len(gaps)) / total < min_success:
        return "failed", f"Failed: {answered}; at least {min_success:.0%} must be (limits.min_success)"
    return ("gaps" if gaps or shortfalls else "complete"), " ".join([answered + ".", *shortfalls])


def _without(gaps: Sequence[Outcome]) -> str:
    if not gaps:
        return ""
    named = ", ".join(f"{Ref.of(gap)} ({gap.error.kind if gap.error else gap.status})" for gap in gaps[:NAMED_GAPS])
    more = f" and {len(gaps) - NAMED_GAPS} more" if len(gaps) > NAMED_GAPS else ""
    kinds = Counter(gap.error.kind for gap in gaps if gap.error)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"; no answer for {len(gaps)} ({counted}): {named}{more}"


def _run(job: Prepared, merge: Merge, outcomes: Sequence[Outcome], clock: Clock) -> dict[str, JsonValue]:
    run_id = flow_run.get_id()
    attempts = [attempt for outcome in outcomes for attempt in outcome.spent]
    return {
        "started": clock.started.isoformat(),
        "seconds": clock.seconds,
        "waits": sum(attempt.waits for attempt in attempts),
        "waited_s": round(sum(attempt.waited_s for attempt in attempts), 3),
        "flow_run": {"id": run_id, "name": flow_run.get_name()},
        "executor": scrubbed(_described(job.executor)),
        "integrator": scrubbed(_described(job.integrator)),
        "fields_traced": bool(merge.fields),
        "audit": scrubbed(audit_inputs(job.briefs, job.integrator)),
        "limits": job.limits.model_dump(mode="json"),
        "versions": {
            "prefect-dispatch": __version__,
            "prefect": prefect.__version__,
            "python": platform.python_version(),
        },
    }


def _described(thing: object) -> JsonValue:
    if isinstance(thing, BaseModel):
        described: dict[str, JsonValue] = thing.model_dump(mode="json")
        return described
    return type(thing).__name__
