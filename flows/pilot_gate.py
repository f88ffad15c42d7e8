"""Pilot of a run: a sample is answered first, and the rest only once its figures are accepted.

What is known of a pilot is a record in the result storage, named by the job's work: the process after one that was
ended, a retry of the flow and a resumed run find there which sample was drawn, and whether the rest was accepted. The
answers themselves are stored as all others. A run of a deployment is suspended for the gate `ask`, as for a review.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from uuid import UUID, uuid4

from prefect.artifacts import create_markdown_artifact
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.publish import PUBLISH_S, artifact_key, run_in_time
from prefect_dispatch.flows.review import Collected, ResumedRun, can_suspend, pause_for_form
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.prefect_compat import form_answer
from prefect_dispatch.reporting.progress import on_question, on_wait
from prefect_dispatch.security.escaping import escape_paragraph, strip_control_chars
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.tasks.pilots.pilot import PilotResult, draw_sample, evaluate_pilot, missed_thresholds
from prefect_dispatch.tasks.plan import Plan
from prefect_dispatch.tasks.result_store import PREFIX
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.stop_conditions import Stop
from prefect_dispatch.tasks.work_item import WorkItem, group_equal_work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.ledger import Ref
    from prefect_dispatch.models.limits import Pilot
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.tasks.fan_out import FanOut
    from prefect_dispatch.tasks.plan import StoredAnswers

_PROCESS = uuid4().hex
"""Name of this process: a retry of the flow in it has the budget of the first attempt still."""
GO_ON: Literal["go on"] = "go on"
STOP: Literal["stop"] = "stop"
"""The options of the form."""
REPORTED = "limits.pilot.gate is report"
UNDECIDED = (
    "there was no person to decide. Run the job in a terminal or as a deployment, or leave limits.pilot out: what the "
    "pilot has paid for is stored"
)


class PilotRecord(Strict):
    """What is known of the pilot of some work."""

    sample: tuple[str, ...]
    """The fingerprints of the sample."""
    flow_run: str
    """The run that drew it, or decided last."""
    process: str
    """The process of that run."""
    started: datetime
    """When the run began."""
    plan: Plan
    """Its plan from before anything was asked."""
    outcomes: tuple[Outcome, ...] = ()
    """The outcomes of the sample in that run, once there are any."""
    pause_key: str = ""
    """The key of the run's pause, if it was suspended."""
    accepted: bool = False
    """Whether the rest may be asked."""


class PilotGate:
    """Pilot of a job in the current run.

    Attributes:
        result: Its figures and the decision; None where there was no pilot.
    """

    def __init__(self, job: PreparedJob) -> None:
        """Load the record of an earlier process, if the job has a pilot and there is one.

        Args:
            job: The job.

        Raises:
            TransientError: If the storage can't be read.
        """
        self.result: PilotResult | None = None
        self._job, self._run = job, str(flow_run.get_id())
        self._record: PilotRecord | None = None
        self._sample: dict[str, WorkItem] = {}
        self._rest: list[WorkItem] = []
        if job.limits.pilot:
            names = sorted({each.fingerprint for each in job.work})
            self._key = f"{PREFIX}pilot-{digest([*names, str(job.limits.pilot.items)])}"
            self._blobs = result_store_for_run()
            self._record = self._load()

    @property
    def resumed(self) -> ResumedRun:
        """The state of this run before another process took it over, after a pilot; empty otherwise.

        A retry in the same process has its outcomes stored, and its budget spent.
        """
        record = self._record
        if record is None or record.flow_run != self._run or record.process == _PROCESS:
            return ResumedRun()
        return ResumedRun(Collected(started=record.started, plan=record.plan, outcomes=record.outcomes))

    @property
    def sampled(self) -> tuple[str, ...]:
        """The fingerprints of the sample that this run has drawn, in this process or in one before it."""
        record = self._record
        return record.sample if record is not None and record.flow_run == self._run else ()

    def draw(self, stored: StoredAnswers, known: Sequence[Outcome], plan: Plan, started: datetime) -> frozenset[str]:
        """Draw the sample, or take the one that an earlier process has drawn; record it.

        Args:
            stored: The stored answers.
            known: The outcomes from before a suspension.
            plan: The plan of the run.
            started: When the run began.

        Returns:
            The fingerprints of the sample; empty if there is no pilot.

        Raises:
            TransientError: If the storage fails.
        """
        earlier, pilot = self._record, self._job.limits.pilot
        if pilot is None or (earlier is not None and earlier.accepted):
            return frozenset()
        # 1. Find what is left to ask.
        groups = {name: group[0] for name, group in group_equal_work(self._job.work).items()}
        finished = {each.fingerprint for each in known}
        to_ask = [each for name, each in groups.items() if name not in stored.answers and name not in finished]
        # 2. Draw the sample.
        drawn = earlier.sample if earlier else ()
        if earlier is None:
            candidates = first_stage(to_ask, self._job)
            if len(to_ask) > pilot.items:
                drawn = tuple(each.fingerprint for each in draw_sample(candidates, min(pilot.items, len(candidates))))
        self._sample = {name: groups[name] for name in drawn}
        self._rest = [each for each in to_ask if each.fingerprint not in self._sample]
        if not self._sample or not self._rest:  # all fits into a pilot, or was answered in the meantime
            return frozenset()
        # 3. Record it.
        own_key = earlier.pause_key if earlier and earlier.flow_run == self._run else ""
        self._save(
            PilotRecord(
                sample=drawn, flow_run=self._run, process=_PROCESS, started=started, plan=plan, pause_key=own_key
            )
        )
        return frozenset(self._sample)

    def decide(self, fan_out: FanOut) -> None:
        """Decide on the rest once the sample is finished; set the fan-out's `stop` if it is not asked.

        Args:
            fan_out: The fan-out of the run.

        Raises:
            Pause: If the run is suspended until a person has decided.
            CancelledRun: If it was cancelled before that.
            TransientError: If the storage fails.
        """
        if fan_out.stop:  # an error that all would meet, or the budget
            return
        every = [each for each in fan_out.outcomes if each.fingerprint in self._sample]
        one_each = {each.fingerprint: each for each in reversed(every)}  # equal items share the first one's answer
        ratio = batch_price_ratio(self._job.executor)
        self.result = evaluate_pilot(self._sample, [*one_each.values()], self._rest, self._limits, price_ratio=ratio)
        self._save(self._recorded.model_copy(update={"outcomes": tuple(every)}))
        self._show(self.result)
        decision, why = self._decide(self.result)
        self.result = self.result.model_copy(update={"decision": decision, "why": why})
        if decision == GO_ON:
            self._save(self._recorded.model_copy(update={"accepted": True}))
        else:
            fan_out.stop = Stop("pilot", f"The pilot stopped the run: {why}.")
        get_run_logger().info("Pilot: %s, as %s.", decision, why)

    def remove_record(self, report: Report) -> None:
        """Remove the record once all is answered: a later run begins with a pilot of its own."""
        if self._record is not None and report.status == "complete":
            self._blobs.remove(self._key)

    @property
    def _limits(self) -> Pilot:
        return cast("Pilot", self._job.limits.pilot)

    @property
    def _recorded(self) -> PilotRecord:
        return cast("PilotRecord", self._record)

    def _decide(self, result: PilotResult) -> tuple[Literal["go on", "stop", "open"], str]:
        """Return the decision and the reason; suspend the run if a person has to decide, and can't be asked here."""
        record = self._recorded
        if self._limits.gate == "report":
            return STOP, REPORTED
        if self._limits.gate == "auto":
            missed = "; ".join(missed_thresholds(result, self._limits))
            return (STOP, missed) if missed else (GO_ON, "it meets the thresholds")
        # A run that was suspended has been resumed, by the form or without it: only the form can stop it.
        if record.pause_key:
            answer = form_answer(UUID(self._run), record.pause_key)
            is_stop = isinstance(answer, dict) and cast("dict[str, Any]", answer).get("answer") == STOP
            return (STOP, "a person decided so") if is_stop else (GO_ON, "a person decided so")
        if ask := on_question.get():
            return (GO_ON if ask("\n".join(result.lines)) else STOP), "a person decided so"
        if can_suspend():
            key = f"pilot-{uuid4()}"
            self._save(record.model_copy(update={"pause_key": key, "process": ""}))
            pause_for_form(key, "Pilot to decide on", _pilot_form(result), self._job.limits)
        return "open", UNDECIDED

    def _show(self, result: PilotResult) -> None:
        """Show the figures in the log, in the terminal, and as an artifact."""
        get_run_logger().info("%s", " ".join(result.lines))
        if (notify := on_wait.get()) and not on_question.get():
            notify(" ".join(result.lines))
        text = pilot_markdown(result)
        key = artifact_key(self._job.briefs, "pilot")
        problem = run_in_time(lambda: create_markdown_artifact(key=key, markdown=text, description="Pilot"), PUBLISH_S)
        if problem:
            get_run_logger().warning("The pilot can't be shown in Prefect: %s", problem)

    def _load(self) -> PilotRecord | None:
        try:
            return PilotRecord.model_validate_json(self._blobs.load(self._key) or b"")
        except ValidationError:  # there is none, or one of another version
            return None

    def _save(self, record: PilotRecord) -> None:
        self._blobs.write(self._key, record.model_dump_json().encode())
        self._record = record


def ended_after_pilot(report: Report) -> bool:
    """Return whether a run ended after its pilot."""
    pilot = report.run.get("pilot")
    return isinstance(pilot, dict) and pilot.get("decision") != GO_ON


def first_stage(work: Sequence[WorkItem], job: PreparedJob) -> list[WorkItem]:
    """Return the work of the first stage: what comes later needs its results."""
    stages: Mapping[Ref, int] = job.independence.stages or {}
    first = min((stages.get(each.ref, 0) for each in work), default=0)
    return [each for each in work if stages.get(each.ref, 0) == first]


def batch_price_ratio(executor: Executor) -> float:
    """Return the price of the rest divided by that of the pilot, which is never asked in a batch."""
    if not isinstance(executor, LLM) or executor.mode != "batch":
        return 1.0
    live, batch = executor.model_copy(update={"mode": "live"}).price(), executor.price()
    return batch[0] / live[0] if live and batch and live[0] else 1.0


def pilot_markdown(result: PilotResult) -> str:
    """Return the figures of a pilot in Markdown."""
    lines = [*result.lines, *(f"Spread of {each}." for each in result.spread)]
    return "# Pilot\n\n" + "\n".join(f"- {escape_paragraph(strip_control_chars(each))}" for each in lines) + "\n"


def _pilot_form(result: PilotResult) -> type[RunInput]:
    """Return the form on which a person decides; it holds no text of answers."""
    field: Any = (
        Annotated[str, Field(json_schema_extra={"enum": [GO_ON, STOP]})],
        Field(default=GO_ON, title="Ask the rest?", description=f"{result.rest} are left."),
    )
    model = create_model("Pilot", __base__=RunInput, answer=field)
    text = "\n".join(f"- {escape_paragraph(each)}" for each in result.lines)
    return model.with_initial_data(description=f"**Pilot.** What it has paid for counts.\n\n{text}")
