"""One job, carried out within a flow run: the way that every flow goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.flows.assets import tell_files
from prefect_dispatch.flows.batch import batched
from prefect_dispatch.flows.beats import beating
from prefect_dispatch.flows.by_deployment import way_to
from prefect_dispatch.flows.delivering import delivered
from prefect_dispatch.flows.ending import INTERRUPTIONS, cancelled, has_retries_left, start_of_earlier_attempts
from prefect_dispatch.flows.events import tell
from prefect_dispatch.flows.exclusive import exclusive
from prefect_dispatch.flows.files import PAGE, ready_folder, write_files, write_page
from prefect_dispatch.flows.memory import JobMemory
from prefect_dispatch.flows.overlap import skip_overlap
from prefect_dispatch.flows.own_executors import require_keys
from prefect_dispatch.flows.pause import STATE, Resumed, finish, gather, resume
from prefect_dispatch.flows.prepare import keep_refreshed, looked_up, planned, prepare
from prefect_dispatch.flows.publish import LiveProgress, publish_in_time
from prefect_dispatch.flows.review import decisions_file, is_undecided, require_review, review
from prefect_dispatch.flows.settle import Clock, settle
from prefect_dispatch.flows.sharing import share_of, sharing
from prefect_dispatch.flows.task_runners import shards_of
from prefect_dispatch.heap import at_rest
from prefect_dispatch.inert import plain
from prefect_dispatch.limits import Limits
from prefect_dispatch.prefect_compat import ReportState
from prefect_dispatch.sources import sound
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.gates import reopen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.decisions_file import DecisionsFile
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.by_deployment import ByDeployment
    from prefect_dispatch.flows.task_runners import Dask, Processes, Ray, Threads
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models import Brief
    from prefect_dispatch.report import Report
    from prefect_dispatch.sources import Source
    from prefect_dispatch.tasks.plan import Found
    from prefect_dispatch.tasks.records import Recorded


@dataclass(frozen=True)
class Parts:
    """What a job consists of, whichever flow's form it was put together in."""

    briefs: Sequence[Brief]
    """What is asked."""
    items: Source
    """Where the items come from."""
    executor: Executor | None = None
    """Who is asked."""
    integrator: AnyMerger | None = None
    """How the answers are merged."""
    limits: Limits = Limits()  # noqa: RUF009 -- frozen
    """How the run is bounded."""
    review: bool = False
    """Whether people decide before the run publishes."""
    fan_out: ByDeployment | None = None
    """The deployment whose runs work on shards; in this process, if it isn't said."""
    task_runner: Threads | Processes | Dask | Ray | None = None
    """The task runner that runs shards; the flow's own, if it isn't said."""


@skip_overlap
@at_rest()
@beating()
def carry_out(
    parts: Parts,
    *,
    folder: str = ".",
    out: str | None = None,
    limit: int | None = None,
    refresh: bool | str | Sequence[str] = False,
    name: str | None = None,
) -> Report:
    """Run a job within the flow run that is under way; `dispatch` says what its parts mean.

    Returns:
        The report; to Prefect the state that the run ends in, which has the report as its data.

    Raises:
        JobError: If the job is unusable; nothing was spent.
        DispatchFailed: If the run failed.
        Pause: If the run was suspended for a review; it goes on as another process.
    """
    log, place = get_run_logger(), Path(folder).resolve()
    reopen(str(flow_run.get_id()))  # an attempt that ran into its time limit has closed its gate
    decisions, resumed = _decisions(parts, place)
    job = prepare(
        parts.briefs,
        parts.items,
        parts.executor,
        parts.integrator,
        parts.limits,
        folder=place,
        limit=limit,
        refresh=refresh,
    )
    job = keep_refreshed(replace(job, limits=share_of(job.limits)), start_of_earlier_attempts())
    memory = JobMemory(parts.briefs, parts.items, folder, place, limit=limit, name=name)
    files = None if out is None else ready_folder(Path(folder, out))
    before = resumed.outcomes_of(job.work)
    resumed.charge(job.limits)
    rest, stored = looked_up(job.without(before))
    job = replace(job, again=rest.again)
    expected = planned(rest, stored)
    if expected.to_ask:  # else whoever merges may find its own answers stored, too
        require_keys(job.integrator)
    way = way_to(parts.fan_out, rest.work, job.executor, place)
    notes = [expected.advice, f"{expected.stored} of {expected.work} stored.", expected.integrator, *expected.notes]
    if before:
        notes = [f"Resumed after a review: {len(before)} of {len(job.work)} outcomes are those from before it."]
    log.info("%s", " ".join(filter(None, (*notes, *way.notes))))
    expected, clock = resumed.plan(expected), Clock(resumed.started)
    progress = LiveProgress(job.briefs, expected)
    fan_out = FanOut(
        job.work,
        job.executor,
        job.limits,
        independence=job.independence,
        again=job.again,
        tell=progress,
        join=job.joins,
        stored=stored.answers,
        where=shards_of(parts.task_runner, job.executor, way.where),
        known=before,
    )
    try:
        with progress:
            brought = batched(rest)
            with sharing(job.limits):
                with exclusive(rest.resources):
                    came = fan_out.run(brought)
                report = settle(
                    job,
                    [*job.unasked, *came],
                    stopped=fan_out.stopped,
                    planned=expected,
                    clock=clock,
                    refresh=refresh is True,
                    known=resumed.asked,
                )
        if parts.review and decisions is not None:
            report = review(job, report, decisions, resumed.after(report, expected, came, clock.started), resumed)
        recorded = fan_out.records.told()
        report = _add_facts(report, recorded, stored)
        for sentence in filter(None, (*_unanswered(report), *stored.notes, recorded.note)):
            log.warning("%s", plain(sentence))
        report = memory.compared(delivered(report, job.integrator, place))
        if files is not None:
            tell_files(report, write_files(report, files), parts.items, place)
            if lacking := write_page(report, files, job.briefs, sound(job.items)):
                log.warning("%s", lacking)
                files = None
        is_last = report.status != "failed" or not has_retries_left()
        publish_in_time(report, job.briefs, files and files / PAGE, is_last=is_last)
        if is_last:  # an attempt that is retried sends no events, and is not compared with
            tell(report, job.briefs)
            memory.keep(report)
            finish()
        if report.status == "failed":
            raise DispatchFailed(report.message, report)
        # Prefect hands the caller the data of a returned state.
        return cast("Report", Completed(cls=ReportState, name=_name(report), message=report.message, data=report))
    except INTERRUPTIONS as error:
        return cast("Report", cancelled(fan_out.told, error))


def _add_facts(report: Report, recorded: Recorded, stored: Found) -> Report:
    """Return a report that holds how many task runs Prefect has recorded, and how many stored answers were damaged."""
    facts: dict[str, JsonValue] = {"task_runs": recorded.model_dump(exclude_defaults=True)}
    if stored.shelf.damaged:
        facts["damaged"] = len(stored.shelf.damaged)
    return report.model_copy(update={"run": {**report.run, **facts}})


def _decisions(parts: Parts, place: Path) -> tuple[DecisionsFile | None, Resumed]:
    """Return the decisions file, if the job has one, with all that reviews have decided in it, and what came before."""
    file = require_review(parts.integrator, place) if parts.review else decisions_file(parts.integrator, place)
    if file is None:
        return None, Resumed()
    resumed = resume(file)
    gather(file)
    return file, resumed


def _name(report: Report) -> str:
    """Return the name of the state in which a run ends that has not failed."""
    if is_undecided(report):
        return STATE
    return "Completed" if report.status == "complete" else "CompletedWithGaps"


def _unanswered(report: Report) -> Iterator[str]:
    """Yield a sentence for each gap; it says where more of it stands, which a report that can be compared doesn't."""
    for outcome in report.outcomes:
        if outcome.status != "succeeded" and outcome.error:
            yield f"No answer for {outcome.brief}/{outcome.item}: {outcome.failure}"
