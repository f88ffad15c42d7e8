"""What a job file may be: the parameters of `dispatch`, or those of a flow with a flat form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

from pydantic import AfterValidator, BeforeValidator, Field

from prefect_dispatch.executors.kinds import BuiltInExecutor
from prefect_dispatch.flows.by_deployment import FanOutTo, way_to
from prefect_dispatch.flows.carry_out import Parts
from prefect_dispatch.flows.form_flow import in_its_words
from prefect_dispatch.flows.job_form import shown
from prefect_dispatch.flows.prepare import looked_up, planned, prepare
from prefect_dispatch.flows.review import require_deciding, require_review
from prefect_dispatch.flows.task_runners import TaskRunnerInput, shards_of
from prefect_dispatch.flows.written import written
from prefect_dispatch.integrators.kinds import AnyIntegrator
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Brief, Name, as_briefs
from prefect_dispatch.sources import ItemsInput
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.refresh import Refresh

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.flows.job_form import Again, Bounds
    from prefect_dispatch.flows.prepare import Prepared
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.plan import Plan


_AROUND = ("name", "out", "limit", "refresh")
"""Parameters of the flow that are no parts of a job."""


class AnyJob(Protocol):
    """What every job can do, whichever flow runs it."""

    @property
    def flow(self) -> str:
        """The flow that runs it, as a job file names it."""
        ...

    @property
    def deployment_name(self) -> str:
        """What its deployment is called unless the caller names it."""
        ...

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one; relative ones start at a folder."""
        ...

    def parts(self, folder: Path) -> Parts:
        """Return what it consists of.

        Args:
            folder: The folder of the job file.

        Raises:
            JobError: If it can't be put together.
        """
        ...

    def place(self, folder: Path) -> Path:
        """Return where its relative paths start; of a job file in a folder."""
        ...

    def bounds(self, limit: int | None, refresh: Again) -> Bounds:
        """Return how many of its items are taken, and what is asked again, if these are said on the way."""
        ...

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, as a form shows them: JSON, blocks by reference.

        Raises:
            JobError: If a block isn't there.
        """
        ...

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: Again) -> Report:
        """Run its flow; what is None or False here is as the job says.

        Raises:
            JobError: If it is unusable; nothing was spent.
            DispatchFailed: If the run failed.
        """
        ...


class Job(Strict):
    """What a job file for `dispatch` says."""

    flow: Literal["dispatch"] = "dispatch"
    """The flow that runs it."""
    name: Name | None = None
    """What the job is called: each run is compared with the last one of that name. None: see `JobMemory`."""
    briefs: Annotated[list[Brief], Field(min_length=1), BeforeValidator(as_briefs)]
    """What is asked: one brief or several."""
    items: Annotated[ItemsInput, AfterValidator(written)]
    """Where the items come from."""
    executor: BuiltInExecutor | None = None
    """Who is asked."""
    integrator: AnyIntegrator | None = None
    """How the answers are merged."""
    limits: Limits = Limits()
    """How the run is bounded."""
    review: bool = False
    """Whether people decide on open pairs and conflicts before the run publishes."""
    fan_out: FanOutTo | None = None
    """Where shards run: by `deployment`, as runs of one on any work pool. None: in the run's own process."""
    task_runner: TaskRunnerInput | None = None
    """Which of Prefect's task runners runs shards: `threads`, `processes`, `dask` or `ray`. None: the flow's own."""
    out: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the report's files. None: no files are written."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """How many items are taken, from the first. None: all of them."""
    refresh: Refresh = False
    """What is asked again even where an answer is stored."""

    @property
    def deployment_name(self) -> str:
        """The name of the job, else that of its first brief."""
        return self.name or self.briefs[0].name

    def parameters(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Return the parameters of the flow, as objects, all but some."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in {"flow", *exclude}}

    def parts(self, folder: Path) -> Parts:  # noqa: ARG002 -- the signature of every job
        """Return what it consists of."""
        return Parts(**self.parameters(exclude=_AROUND))

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one."""
        return None if self.out is None else folder / self.out

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, as a form shows them."""
        given = self.model_dump(mode="json", exclude={"flow"}, exclude_none=True)
        for brief in given["briefs"]:
            for hidden in ("sample", "part"):  # set while a job runs; no form has them, and Prefect refuses them
                del brief[hidden]
        if not self.refresh:  # the default of the flow
            del given["refresh"]
        found: dict[str, JsonValue] = shown({**given, "folder": str(folder)})
        return found

    def place(self, folder: Path) -> Path:
        """Return the folder itself."""
        return folder

    def bounds(self, limit: int | None, refresh: Again) -> Bounds:
        """Return what is said on the way, else what the job says."""
        return {
            "limit": self.limit if limit is None else limit,
            "refresh": self.refresh if refresh is False else refresh,
        }

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: Again) -> Report:
        """Run `dispatch`."""
        from prefect_dispatch.flows.dispatch import dispatch  # noqa: PLC0415 -- a plan needs no flow

        run: Any = dispatch
        given = {**self.parameters(), **self.bounds(limit, refresh), **({} if out is None else {"out": out})}
        return cast("Report", run(**given, folder=str(folder)))


def checked(job: AnyJob, folder: Path, *, limit: int | None = None, refresh: Again = False) -> Prepared:
    """Return a job ready to run; nothing is asked, and no server is needed unless the job names a block.

    Args:
        job: The job.
        folder: The folder of its file.
        limit: How many items are taken, if that is said on the way.
        refresh: What is asked again, if that is said on the way.

    Raises:
        JobError: If it is unusable.
    """
    parts, place = job.parts(folder), job.place(folder)
    if parts.review:
        require_review(parts.integrator, place)
    return _prepared(job, parts, place, job.bounds(limit, refresh))


def plan_of(job: AnyJob, folder: Path, *, limit: int | None = None, refresh: Again = False) -> Plan:
    """Return what a job will take; nothing is asked. Its arguments are those of `checked`.

    Raises:
        JobError: If it is unusable.
    """
    parts = job.parts(folder)
    if parts.review:
        require_deciding(parts.integrator)
    prepared = _prepared(job, parts, job.place(folder), job.bounds(limit, refresh))
    plan = planned(*looked_up(prepared))
    way = way_to(parts.fan_out, prepared.work, prepared.executor, job.place(folder).resolve())
    shards_of(parts.task_runner, prepared.executor, way.where)
    return plan.model_copy(update={"notes": (*plan.notes, *way.notes)})


def _prepared(job: AnyJob, parts: Parts, place: Path, bounds: Bounds) -> Prepared:
    def prepared() -> Prepared:
        return prepare(
            parts.briefs, parts.items, parts.executor, parts.integrator, parts.limits, folder=place.resolve(), **bounds
        )

    return prepared() if isinstance(job, Job) else in_its_words(prepared)
