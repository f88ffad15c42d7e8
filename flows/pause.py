"""Suspension of a deployed run for a review: a form in Prefect's UI, and no process that waits for its answer.

The run becomes `NeedsReview`, a state of Prefect's type PAUSED that gives the worker, the concurrency slot and its
lease back. Resume makes it Scheduled; any worker takes it up again, as a new process that starts from the beginning.
What the run had come to is kept in the result storage, so that nothing is asked, or paid, a second time.

A note of each form lies beside the decisions file until its answer is in there: where the run can't store the answer
itself (cancelled after Resume, crashed, its worker gone), the next run takes it from Prefect.
"""

from __future__ import annotations

import glob
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, CancelledRun, ObjectNotFound, Pause
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Paused
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.decisions import Decisions
from prefect_dispatch.errors import DispatchError
from prefect_dispatch.ledger import Ref
from prefect_dispatch.matters import OPEN, Form
from prefect_dispatch.models import Outcome
from prefect_dispatch.prefect_compat import form_answer, form_keys, propose_state
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.gates import forget, gate_of
from prefect_dispatch.tasks.plan import Plan
from prefect_dispatch.tasks.run_brief import answer_shelf
from prefect_dispatch.tasks.store import PREFIX
from prefect_dispatch.whole import write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun, State

    from prefect_dispatch.decisions_file import DecisionsFile
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.work import Work

STATE = "NeedsReview"
"""The name of the state of a run that waits for people, and of one that ended with matters to decide."""
KEY = "review-"
"""What the key of each pause for a review begins with."""
CANCELLED = "The run was cancelled before people had decided."
LOST = (
    "This run was suspended for a review, and what it had come to can't be found: its workers share no result storage. "
    "Set a default storage block (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK) for all of them."
)


class Pending(Strict):
    """A note beside the decisions file: a form in Prefect whose answer isn't stored yet."""

    api: str
    """The URL of Prefect's API."""
    flow_run: UUID
    """The run that has the form."""
    key: str
    """The key of the pause."""
    form: Form
    """The questions, and what each option decides."""


class Collected(Strict):
    """What a run had come to when it was suspended: all that it needs to go on without asking again."""

    started: datetime
    """When the run began."""
    plan: Plan
    """What was planned before anything was asked."""
    outcomes: tuple[Outcome, ...]
    """One for each (brief, item) that there was work on."""
    asked: tuple[Outcome, ...] = ()
    """What came of the integrator's own questions."""
    forms: dict[str, Form] = Field(default_factory=dict)
    """The forms of this run by the key of their pause."""


@dataclass(frozen=True)
class Resumed:
    """What a run had come to before it was suspended for a review; nothing, if it was not."""

    collected: Collected | None = None
    """The record of it."""
    passed: frozenset[str] = frozenset()
    """The names of the matters that its forms have asked: what was left open is not asked again by this run."""
    decided: Decisions = Decisions()  # noqa: RUF009 -- frozen
    """What was decided in its forms, and counts."""
    overruled: tuple[str, ...] = ()
    """The titles of matters that were decided otherwise before a form of this run was answered."""

    @property
    def started(self) -> datetime | None:
        """When the run began; None if it begins now."""
        return self.collected.started if self.collected else None

    @property
    def asked(self) -> tuple[Outcome, ...]:
        """What came of the integrator's own questions."""
        return self.collected.asked if self.collected else ()

    def outcomes_of(self, work: Sequence[Work]) -> tuple[Outcome, ...]:
        """Return the outcomes that are of some work: the source of the items may have changed meanwhile."""
        if self.collected is None:
            return ()
        wanted = {(each.ref, each.fingerprint) for each in work}
        return tuple(each for each in self.collected.outcomes if (Ref.of(each), each.fingerprint) in wanted)

    def charge(self, limits: Limits) -> None:
        """Count in the run's budget what was spent.

        Args:
            limits: The limits of the run's calls.
        """
        if self.collected is None:
            return
        budget = gate_of(str(flow_run.get_id()), limits).budget
        for outcome in (*self.collected.outcomes, *self.collected.asked):
            for attempt in outcome.spent:
                budget.charge(attempt.usage)

    def plan(self, rest: Plan) -> Plan:
        """Return what was planned when the run began.

        Args:
            rest: The plan of what is left.
        """
        return self.collected.plan if self.collected else rest

    def after(self, report: Report, plan: Plan, outcomes: Sequence[Outcome], started: datetime) -> Collected:
        """Return what the run has come to now.

        Args:
            report: The report.
            plan: What was planned when it began.
            outcomes: One for each (brief, item) that there was work on.
            started: When it began.
        """
        forms = self.collected.forms if self.collected else {}
        return Collected(started=started, plan=plan, outcomes=tuple(outcomes), asked=report.asked, forms=forms)


def can_suspend() -> bool:
    """Return whether the run that is under way can give its worker back.

    Prefect starts a run again only if it belongs to a deployment, and suspends no run within another one.
    """
    run = _flow_run()
    return run is not None and run.deployment_id is not None and run.parent_task_run_id is None


def suspend(asked: Form, file: DecisionsFile, collected: Collected, limits: Limits) -> NoReturn:
    """Suspend the run until its form is answered.

    Args:
        asked: The form.
        file: The decisions file.
        collected: What the run has come to.
        limits: The limits of its calls; `review_s` is how long Prefect waits for an answer.

    Raises:
        Pause: Once the run is suspended: this process has to end.
        CancelledRun: If the run was cancelled, ended, or deleted meanwhile.
        TransientError: If what the run has come to can't be stored.
    """
    run_id, key = UUID(flow_run.get_id()), f"{KEY}{uuid4()}"
    until = datetime.now(timezone.utc) + timedelta(seconds=limits.review_s)
    left = len(asked.matters) + asked.more
    message = f"{left} to decide, until {until:%Y-%m-%d %H:%M} UTC: resume the run in Prefect's UI, which shows a form."
    waiting: State[Any] = Paused(
        name=STATE, message=message, timeout_seconds=math.ceil(limits.review_s), reschedule=True, pause_key=key
    )
    keys = form_keys(key)
    waiting.state_details.run_input_keyset = {str(name): value for name, value in keys.items()}
    kept = collected.model_copy(update={"forms": {**collected.forms, key: asked}})
    # In this order a process that dies between two steps loses nothing: the record first, the state last.
    answer_shelf().write(_record(run_id), kept.model_dump_json().encode())
    pending = Pending(api=PREFECT_API_URL.value() or "", flow_run=run_id, key=key, form=asked)
    note = file.path.parent / f".{file.path.name}.review-{run_id}-{asked.name}.json"
    write(note, [pending.model_dump_json()])
    get_run_logger().info("Suspended for a review: %s", message)
    try:
        with get_client(sync_client=True) as client:
            state = propose_state(client, waiting, run_id)
    except (Abort, ObjectNotFound):
        state = None
    if state is None or not state.is_paused():
        note.unlink(missing_ok=True)
        raise CancelledRun(CANCELLED)
    # Prefect deletes what stands under the keys of a pause when that begins, so the form is stored after it.
    _input(asked).save(keys, run_id)
    forget(str(run_id), limits)
    raise Pause(state=state)


def resume(file: DecisionsFile) -> Resumed:
    """Store the answers to the forms of the run that is under way, if it was suspended for a review.

    Args:
        file: The decisions file.

    Returns:
        What the run had come to.

    Raises:
        DispatchError: If what it had come to can't be found.
        JobError: If the answers can't be stored; the next run tries again.
    """
    keys, run_id = _answered(), UUID(flow_run.get_id())
    if not keys:
        return Resumed()
    try:
        collected = Collected.model_validate_json(answer_shelf().read(_record(run_id)) or b"")
    except ValidationError:
        gather(file)
        raise DispatchError(LOST) from None
    passed, overruled, decided = set[str](), list[str](), Decisions()
    for key, form in collected.forms.items():
        if key in keys:
            answer = _answer(run_id, key) or {}  # Prefect stores no answer that is empty
            passed |= {matter.name for matter in form.matters}
            refused = file.add(form.decided(answer))
            overruled += form.titles(answer, refused)
            decided = decided.plus(form.decided(answer).without(refused, named=file.named), named=file.named)
    for note in _notes(file):
        if (pending := _pending(note)) and pending.flow_run == run_id:
            note.unlink(missing_ok=True)
    return Resumed(collected, frozenset(passed), decided, tuple(overruled))


def finish() -> None:
    """Remove what was kept of the run that is under way, if it was suspended."""
    if _answered():
        answer_shelf().remove(_record(UUID(flow_run.get_id())))


def gather(file: DecisionsFile) -> None:
    """Store the answers to forms of other runs that could not do so themselves.

    Args:
        file: The decisions file.

    Raises:
        JobError: If they can't be stored.
    """
    for note in _notes(file):
        if (pending := _pending(note)) and pending.api == (PREFECT_API_URL.value() or ""):
            _gather(pending, file, note)


def _gather(pending: Pending, file: DecisionsFile, note: Path) -> None:
    answer = _answer(pending.flow_run, pending.key)
    if answer is not None:
        refused = file.add(pending.form.decided(answer))
        for title in pending.form.titles(answer, refused):
            get_run_logger().warning(
                "In a review of another run it was decided otherwise, and later, so the earlier decision stays: %s",
                title,
            )
    elif _is_over(pending.flow_run):
        answer_shelf().remove(_record(pending.flow_run))
    else:
        return
    note.unlink(missing_ok=True)


def _flow_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _answered() -> set[str]:
    """Return the keys of the pauses for a review that are over.

    Prefect keeps the keys of the pauses that a run has come out of, and forgets them where it is retried.
    """
    run = _flow_run()
    keys = (run.empirical_policy.pause_keys or set()) if run else set[str]()
    return {key for key in keys if key.startswith(KEY)}


def _answer(run_id: UUID, key: str) -> dict[str, Any] | None:
    """Return what was sent with a form, if anything was."""
    answer = form_answer(run_id, key)
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else None


def _is_over(run_id: UUID) -> bool:
    """Return whether no answer can come from a run any more."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
    except ObjectNotFound:
        return True
    return state is None or state.is_final()


def _input(asked: Form) -> type[RunInput]:
    """Return the form as Prefect takes it: the options are an enumeration that its server checks, too."""
    fields: dict[str, Any] = {
        matter.name: (
            Annotated[str, Field(json_schema_extra={"enum": list(matter.options), "position": at})],
            Field(default=OPEN, title=f"{at}. {matter.title}", description=matter.why),
        )
        for at, matter in enumerate(asked.matters, 1)
    }
    model = create_model("Decisions", __base__=RunInput, **fields)
    return model.with_initial_data(description=asked.description())


def _notes(file: DecisionsFile) -> Sequence[Path]:
    return sorted(file.path.parent.glob(f".{glob.escape(file.path.name)}.review-*.json"))


def _pending(note: Path) -> Pending | None:
    """Return what a note says; None if it is another file, or another run was faster."""
    with suppress(ValidationError, FileNotFoundError):
        return Pending.model_validate_json(note.read_bytes())
    return None


def _record(run_id: UUID) -> str:
    return f"{PREFIX}review-{run_id}"
