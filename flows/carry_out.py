"""One job, carried out within a flow run: the way that every flow goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed

from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.flows.assets import tell_files
from prefect_dispatch.flows.batch import batched
from prefect_dispatch.flows.beats import beating
from prefect_dispatch.flows.by_deployment import way_to
from prefect_dispatch.flows.delivering import delivered
from prefect_dispatch.flows.ending import INTERRUPTIONS, cancelled
from prefect_dispatch.flows.events import tell
from prefect_dispatch.flows.exclusive import exclusive
from prefect_dispatch.flows.files import PAGE, ready_folder, write_files, write_page
from prefect_dispatch.flows.memory import JobMemory
from prefect_dispatch.flows.own_executors import require_keys
from prefect_dispatch.flows.pause import gather
from prefect_dispatch.flows.prepare import looked_up, planned, prepare
from prefect_dispatch.flows.publish import LiveProgress, publish
from prefect_dispatch.flows.review import decisions_file, require_review, reviewed
from prefect_dispatch.flows.settle import Clock, settle
from prefect_dispatch.flows.sharing import share_of, sharing
from prefect_dispatch.flows.task_runners import shards_of
from prefect_dispatch.heap import at_rest
from prefect_dispatch.inert import plain
from prefect_dispatch.limits import Limits
from prefect_dispatch.sources import sound
from prefect_dispatch.tasks.fan_out import FanOut

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.by_deployment import ByDeployment
    from prefect_dispatch.flows.task_runners import Dask, Processes, Ray, Threads
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models import Brief
    from prefect_dispatch.report import Report
    from prefect_dispatch.sources import Source


class _Ended(State["Report"]):
    """A state in whose report Prefect looks for no futures: that took longer than all the rest of a stored run."""

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Yield the fields but for the data."""
        return (field for field in super().__iter__() if field[0] != "data")


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
    """Whether the run pauses for people to decide."""
    fan_out: ByDeployment | None = None
    """The deployment whose runs work on shards; in this process, if it isn't said."""
    task_runner: Threads | Processes | Dask | Ray | None = None
    """The task runner that runs shards; the flow's own, if it isn't said."""


@at_rest()
@beating()
def carry_out(
    parts: Parts,
    *,
    folder: str = ".",
    out: str | None = None,
    limit: int | None = None,
    refresh: bool | str | Sequence[str] = False,
) -> Report:
    """Run a job within the flow run that is under way; `dispatch` says what its parts mean.

    Returns:
        The report; to Prefect the state that the run ends in, which has the report as its data.

    Raises:
        JobError: If the job is unusable; nothing was spent.
        DispatchFailed: If the run failed, or was cancelled while it was paused.
    """
    clock, log, place = Clock(), get_run_logger(), Path(folder).resolve()
    deciding = require_review if parts.review else decisions_file
    decisions = deciding(parts.integrator, place)
    if decisions is not None:
        gather(decisions)
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
    job = replace(job, limits=share_of(job.limits))
    memory = JobMemory(parts.briefs, parts.items, folder, place, limit)
    files = None if out is None else ready_folder(Path(folder, out))
    stored = looked_up(job)
    expected = planned(job, stored)
    if expected.to_ask:  # else whoever merges may find its own answers stored, too
        require_keys(job.integrator)
    way = way_to(parts.fan_out, job.work, job.executor, place)
    told = [expected.advice, f"{expected.stored} of {expected.work} stored.", expected.integrator]
    told += [*expected.notes, *way.notes]
    log.info("%s", " ".join(filter(None, told)))
    fan_out = FanOut(
        job.work,
        job.executor,
        job.limits,
        independence=job.independence,
        again=job.again,
        tell=LiveProgress(job.briefs, expected),
        join=job.joins,
        stored=stored.answers,
        where=shards_of(parts.task_runner, job.executor, way.where),
    )
    try:
        brought = batched(job)
        with sharing(job.limits):
            with exclusive(job.resources):
                outcomes = [*job.unasked, *fan_out.run(brought)]
            settled = partial(settle, stopped=fan_out.stopped, planned=expected, clock=clock, refresh=refresh is True)
            report = settled(job, outcomes)
        if parts.review and decisions is not None:
            try:
                report = reviewed(
                    job, report, decisions, lambda changed, known: settled(changed, outcomes, known=known)
                )
            except CancelledRun as stop:  # nothing goes through the gate
                report = report.model_copy(update={"status": "failed", "message": f"{stop} {report.message}"})
                failure = DispatchFailed(report.message, report)
                return cast("Report", Cancelled(message=report.message, data=failure))
        recorded = fan_out.records.told()
        known = recorded.model_dump(exclude_defaults=True)
        damaged: dict[str, JsonValue] = {"damaged": len(stored.shelf.damaged)} if stored.shelf.damaged else {}
        report = report.model_copy(update={"run": {**report.run, "task_runs": known, **damaged}})
        for sentence in filter(None, (*_unanswered(report), *stored.notes, recorded.note)):
            log.warning("%s", plain(sentence))
        report = memory.compared(delivered(report, job.integrator, place))
        if files is not None:
            tell_files(report, write_files(report, files), parts.items, place)
            if lacking := write_page(report, files, job.briefs, sound(job.items)):
                log.warning("%s", lacking)
                files = None
        publish(report, job.briefs, files and files / PAGE)
        tell(report, job.briefs)
        memory.keep(report)
        if report.status == "failed":
            raise DispatchFailed(report.message, report)
        name = "Completed" if report.status == "complete" else "CompletedWithGaps"
        # Prefect hands the caller the data of a returned state.
        return cast("Report", Completed(cls=_Ended, name=name, message=report.message, data=report))
    except INTERRUPTIONS as error:
        return cast("Report", cancelled(fan_out.told, error))


def _unanswered(report: Report) -> Iterator[str]:
    """Yield a sentence for each gap; it says where more of it stands, which a report that can be compared doesn't."""
    tried = [each for each in report.outcomes if each.attempts and each.status != "succeeded"]
    last = {(each.brief, each.item): each.attempts[-1].error or "" for each in tried}
    for gap in report.gaps:
        said = f"{gap.error.kind}: {gap.error.message}"
        met = last.get((gap.brief, gap.item), "")
        yield f"No answer for {gap.brief}/{gap.item}: {met if met.startswith(said) else said}"
