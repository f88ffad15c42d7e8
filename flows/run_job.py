"""Execution of a job within a flow run: prepare, plan, fan out, merge, review, publish."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_dispatch.calls.call_gate import gate_for_run, reopen_gates
from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.finalize import Clock, PilotFacts, add_shortfall, build_report
from prefect_dispatch.flows.pilot_gate import PilotGate, ended_after_pilot, first_stage
from prefect_dispatch.flows.prepare import (
    build_plan,
    keep_refreshed,
    load_stored_answers,
    prepare,
    require_keys,
    take_prepared,
)
from prefect_dispatch.flows.publish import (
    CANCELLED_REPORT_S,
    MAX_CANCELLED,
    LiveProgress,
    create_artifacts,
    create_artifacts_in_time,
    emit_events,
    publish_page,
    run_in_time,
    write_files,
)
from prefect_dispatch.flows.remote_targets import resolve_deployment, shard_target
from prefect_dispatch.flows.review import (
    STATE,
    Collected,
    ResumedRun,
    collect_answers,
    decisions_file,
    is_undecided,
    remove_record,
    require_review,
    resume,
    review,
)
from prefect_dispatch.flows.runtime.batch_phase import run_batches
from prefect_dispatch.flows.runtime.concurrency import hold_resources, hold_slots, rate_limit_share, skip_overlap
from prefect_dispatch.flows.runtime.flow_class import (
    INTERRUPTIONS,
    cancelled_state,
    has_retries_left,
    send_heartbeats,
    start_of_earlier_attempts,
)
from prefect_dispatch.flows.runtime.last_run import LastRunStore
from prefect_dispatch.integrators.base import BaseIntegrator, Delivery
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.prefect_compat import ReportState
from prefect_dispatch.reporting.output_folder import parse_output
from prefect_dispatch.reporting.progress import on_budget
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.security.redaction import redact, redact_json, safe_message
from prefect_dispatch.sources.inline import with_values
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.pilots.cascade_learning import (
    MEASURE,
    attempts_by_work,
    choose_sample,
    compared_items,
    describe_learned,
    learn_rule,
    learning_cascade,
    with_rule,
)
from prefect_dispatch.tasks.provider_batches import BatchResults
from prefect_dispatch.tasks.table_tasks import emit_file_assets
from prefect_dispatch.tasks.work_item import group_equal_work

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.publish import PagePlaces
    from prefect_dispatch.flows.runtime.prepared_job import JobSpec, PreparedJob
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.integrators.decisions_file import DecisionsFile
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.output_folder import Output
    from prefect_dispatch.tasks.plan import StoredAnswers


@contextmanager
def freeze_heap() -> Generator[None]:
    """Leave all objects that exist now out of garbage collection within the body.

    Python otherwise traverses the 600,000 objects of Prefect and litellm repeatedly: 2,000 items with answers after
    50 ms took 9.6 s instead of 7.2 s. A process that has frozen objects itself is left alone.
    """
    if gc.get_freeze_count():
        yield
        return
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(10_000, thresholds[0]) if thresholds[0] else 0, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def deliver_value(report: Report, integrator: AnyMerger, folder: Path) -> Report:
    """Deliver the merged value, if the integrator has a destination for it; return the report with the result.

    Args:
        report: The report; nothing is delivered for a run that failed, ended after its pilot, or has open questions.
        integrator: The integrator.
        folder: The folder that relative paths start from.
    """
    if report.status == "failed" or is_undecided(report) or ended_after_pilot(report) or report.value is None:
        return report
    try:
        done, shortfall = BaseIntegrator.of(integrator).deliver(report.value, folder) or Delivery()
        if isinstance(integrator, MergeBranches) and not shortfall:
            published, shortfall = integrator.publish_merge(report.value, report.documents)
            done = " ".join(filter(None, (done, published)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- integrators may raise anything; the report has the value
        return add_shortfall(report, f"The merged value was not delivered: {safe_message(error)}")
    if done:
        report = report.model_copy(update={"message": f"{report.message} {redact(done)}"})
    return add_shortfall(report, redact(shortfall)) if shortfall else report


@skip_overlap
@send_heartbeats()
@freeze_heap()
def run_job(spec: JobSpec) -> Report:
    """Run a job within the current flow run.

    Returns:
        The report; to Prefect, the final state of the run with the report as its data.

    Raises:
        JobError: If the job is unusable; nothing was spent.
        DispatchFailed: If the run failed.
        Pause: If the run was suspended for a review; it continues in another process.
    """
    reopen_gates(str(flow_run.get_id()))  # an earlier attempt that reached its time limit has closed them
    # 1. Resume a suspended run, and prepare the job; decisions may have been added since the caller prepared it.
    decisions, resumed = _resume_review(spec)
    job = (take_prepared() if decisions is None else None) or prepare(spec)
    job = keep_refreshed(replace(job, limits=rate_limit_share(job.limits)), start_of_earlier_attempts())
    _notify_budget(job.limits)
    pilot = PilotGate(job)
    resumed = resumed if resumed.collected else pilot.resumed
    memory = LastRunStore(spec)
    output = None if spec.out is None else parse_output(spec.out, spec.place).ensure()
    # 2. Plan what is left: outcomes from before a suspension and stored answers are not asked again.
    before = resumed.outcomes_of(job.work)
    resumed.charge_budget(job.limits)
    rest, stored = load_stored_answers(_without(job, before))
    expected = build_plan(rest, stored)
    if expected.to_ask:  # else the answers to the integrator's own queries may be stored, too
        require_keys(job.integrator)
    route = resolve_deployment(spec.fan_out, rest.work, job.executor, spec.place)
    notes = (
        [f"Resumed: {len(before)} of {len(job.work)} outcomes are those from before the run was suspended."]
        if before
        else [expected.advice, f"{expected.stored} of {expected.work} stored.", expected.integrator, *expected.notes]
    )
    get_run_logger().info("%s", " ".join(filter(None, (*notes, *route.notes))))
    # 3. Fan out and merge.
    earlier = resumed.collected
    expected, clock = (earlier.plan, Clock(earlier.started)) if earlier else (expected, Clock())
    progress = LiveProgress(job.briefs, expected, job.executor)
    create_in_flight = shard_target(spec.task_runner, job.executor, route.target)
    fan_out = FanOut(
        job.work,
        job.executor,
        job.limits,
        independence=job.independence,
        again=rest.again,
        on_progress=progress,
        join=job.part_joiner,
        stored=stored.answers,
        create_in_flight=create_in_flight,
        known=before,
        briefs=job.briefs,
        merge_start=job.merge_start,
    )
    try:
        with progress, _hold_budget(job.limits, at_once=bool(create_in_flight) or _asks_in_batches(job.executor)):
            rest = _run_pilot(pilot, fan_out, rest, pilot.draw(stored, before, expected, clock.started))
            _learn_rule(fan_out, rest, stored, before)
            batched = run_batches(rest) if not fan_out.stop and _asks_in_batches(job.executor) else BatchResults()
            with hold_slots(job.limits):
                outcomes = _run_rest(fan_out, rest, batched)
                report = build_report(
                    job,
                    [*job.skipped_outcomes, *outcomes],
                    stopped=fan_out.stop_reason,
                    planned=expected,
                    clock=clock,
                    refresh=spec.refresh is True,
                    known=earlier.asked if earlier else (),
                    pilot=PilotFacts(fan_out.pilot_reason, pilot.sampled),
                )
        # 4. Review; this may suspend the run.
        if spec.review and decisions is not None and not fan_out.pilot_reason:
            collected = Collected(
                started=clock.started,
                plan=expected,
                outcomes=tuple(outcomes),
                asked=report.asked,
                forms=earlier.forms if earlier else {},
            )
            report = review(job, report, decisions, collected, resumed)
        # 5. Deliver and publish.
        report = _add_facts(report, fan_out.task_runs, stored, pilot)
        report = memory.compare_with_last(deliver_value(report, job.integrator, spec.place))
        page = _write_output(report, job, spec, output, is_deployed=memory.is_deployed)
        is_last = report.status != "failed" or not has_retries_left()
        create_artifacts_in_time(report, job.briefs, page, is_last=is_last)
        if is_last:  # an attempt that is retried emits no events and is not compared with
            emit_events(report, job.briefs)
            memory.save(report)
            _remove_records(pilot, report)
        if report.status == "failed":
            raise DispatchFailed(report.message, report)
        # Prefect returns the data of a returned state to the caller.
        return cast("Report", Completed(cls=ReportState, name=_state_name(report), message=report.message, data=report))
    except INTERRUPTIONS as error:
        progress_so_far = fan_out.summary
        _publish_cancelled(
            lambda: build_report(
                job,
                [*job.skipped_outcomes, *fan_out.record_interrupted()],
                stopped=None,
                planned=expected,
                clock=clock,
                cancelled=True,
                pilot=PilotFacts(sample=pilot.sampled),
            ),
            job,
            spec,
            output,
            is_deployed=memory.is_deployed,
        )
        return cast("Report", cancelled_state(progress_so_far, error))


def _publish_cancelled(
    build: Callable[[], Report], job: PreparedJob, spec: JobSpec, output: Output | None, *, is_deployed: bool
) -> None:
    """Build and publish the report of a run that was interrupted, as far as that is possible in a short time."""
    if len(job.work) > MAX_CANCELLED:
        get_run_logger().warning("The cancelled run has no report, as it has more than %s items.", f"{MAX_CANCELLED:,}")
        return

    def step() -> None:
        report = build()
        report = report.model_copy(update={"run": {**report.run, "cancelled": True}})
        page = _write_output(report, job, spec, output, is_deployed=is_deployed)
        create_artifacts(report, job.briefs, page)

    try:
        problem = run_in_time(step, CANCELLED_REPORT_S)
    except INTERRUPTIONS:
        problem = "it was interrupted, too."
    if problem:
        get_run_logger().warning("The report of the cancelled run is incomplete: %s", problem)


def _write_output(
    report: Report, job: PreparedJob, spec: JobSpec, output: Output | None, *, is_deployed: bool
) -> PagePlaces:
    """Write the files of a report, and its page; return where the page is."""
    if output is not None:
        emit_file_assets(report, write_files(report, output), spec.items, spec.place)
    page, lacking = publish_page(report, output, job.briefs, with_values(job.items), is_deployed=is_deployed)
    for sentence in lacking:
        get_run_logger().warning("%s", sentence)
    return page


def _hold_budget(limits: Limits, *, at_once: bool) -> AbstractContextManager[None]:
    """Hold the run's part of the budget that it shares with others, if it does, while the body runs."""
    if limits.budget is None:
        return nullcontext()
    from prefect_dispatch.flows.runtime.named_budget import hold_budget  # noqa: PLC0415 -- few runs need it

    return hold_budget(limits, at_once=at_once)


def _notify_budget(limits: Limits) -> None:
    """Pass the budget of the run to the listener of this process."""
    if notify := on_budget.get():
        notify(gate_for_run(str(flow_run.get_id()), limits).budget)


def _without(job: PreparedJob, finished: Sequence[Outcome]) -> PreparedJob:
    """Return a job without the work that has an outcome."""
    done = {Ref.of(outcome) for outcome in finished}
    return replace(job, work=[work for work in job.work if work.ref not in done])


def _remove_records(pilot: PilotGate, report: Report) -> None:
    """Remove what was stored of the run for its other processes."""
    remove_record()
    pilot.remove_record(report)


def _run_pilot(pilot: PilotGate, fan_out: FanOut, rest: PreparedJob, sample: frozenset[str]) -> PreparedJob:
    """Ask the sample of a pilot, if there is one, and decide on the rest; return the job without the sample."""
    if not sample:
        return rest
    with hold_slots(rest.limits), hold_resources(rest.resources):
        fan_out.run_first(sample)
    pilot.decide(fan_out)
    return replace(rest, work=[each for each in rest.work if each.fingerprint not in sample])


def _run_rest(fan_out: FanOut, job: PreparedJob, batched: BatchResults) -> list[Outcome]:
    """Ask what is left, while the resources of the job are held; return an outcome for each (brief, item)."""
    with hold_resources(job.resources):
        return fan_out.run(batched)


def _learn_rule(fan_out: FanOut, job: PreparedJob, stored: StoredAnswers, before: Sequence[Outcome]) -> None:
    """Learn the rule of a cascade from a sample that both models answer, and set it for the rest.

    Args:
        fan_out: The fan-out of the run.
        job: The job with the work that is left.
        stored: The stored answers.
        before: The outcomes from before a suspension; some of the answers may have been compared.
    """
    to_ask = [group[0] for name, group in group_equal_work(job.work).items() if name not in stored.answers]
    if fan_out.stop or not to_ask or (learning := learning_cascade(job.executor)) is None:
        return
    cascade, learn = learning
    known = {**attempts_by_work(before), **{name: each.attempts for name, each in stored.answers.items()}}
    # 1. Have both models answer the sample.
    sample = choose_sample(first_stage(to_ask, job), len(compared_items(known.values())), learn)
    if sample:
        fan_out.continue_with(with_rule(job.executor, MEASURE))
        with hold_slots(job.limits), hold_resources(job.resources):
            fan_out.run_first({each.fingerprint for each in sample})
    # 2. Choose the rule; from too few, none is learned, and the strong model answers.
    names = {each.fingerprint for each in sample}
    known = {**known, **attempts_by_work(each for each in fan_out.outcomes if each.fingerprint in names)}
    learned = learn_rule(compared_items(known.values()), cascade, learn)
    fan_out.continue_with(with_rule(job.executor, learned.rule))
    if sample:
        get_run_logger().info("Cascade: %s", describe_learned(learned, learn))


def _asks_in_batches(executor: Executor) -> bool:
    """Return whether an executor sends its requests to a provider's batch API."""
    return isinstance(executor, LLM) and executor.mode == "batch"


def _add_facts(report: Report, task_runs: int, stored: StoredAnswers, pilot: PilotGate) -> Report:
    """Return a report with facts on its task runs, the store and the pilot; log the reason for each gap."""
    facts: dict[str, JsonValue] = {"task_runs": {"made": task_runs}}
    if pilot.result:
        facts["pilot"] = redact_json(pilot.result.model_dump(mode="json"))
    if stored.blobs.damaged:
        facts["damaged"] = len(stored.blobs.damaged)
    gaps = [each for each in report.outcomes if each.status != "succeeded" and each.error]
    # The failure of an outcome has details that are left out of the comparable report.
    unanswered = (f"No answer for {each.brief}/{each.item}: {each.failure}" for each in gaps)
    for sentence in (*unanswered, *stored.notes):
        get_run_logger().warning("%s", strip_control_chars(sentence))
    return report.model_copy(update={"run": {**report.run, **facts}})


def _resume_review(spec: JobSpec) -> tuple[DecisionsFile | None, ResumedRun]:
    """Return the decisions file, if any, updated with all answered reviews, and the state of a suspended run."""
    file = (require_review if spec.review else decisions_file)(spec.integrator, spec.place)
    if file is None:
        return None, ResumedRun()
    resumed = resume(file)
    collect_answers(file)
    return file, resumed


def _state_name(report: Report) -> str:
    """Return the name of the final state of a run that has not failed."""
    if is_undecided(report):
        return STATE
    return "Completed" if report.status == "complete" else "CompletedWithGaps"
