"""Targets of the shards of a run: a deployment, or one of Prefect's task runners; checked before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from prefect_dispatch.errors import BriefError, JobError, first_problem
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.models.base import Strict, Tabs, did_you_mean
from prefect_dispatch.models.brief import resolve_user_code
from prefect_dispatch.prefect_compat import ProcessPool
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.tasks.shards.deployment_runner import SILENT_S, DeploymentRunner, Target
from prefect_dispatch.tasks.shards.protocol import WRITABLE, to_job_file_form
from prefect_dispatch.tasks.shards.remote import (
    RemoteTarget,
    WorkerCapacity,
    capacity_of,
    find_remote_target,
    initialize_pool_process,
    require_picklable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.task_runners import TaskRunner
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.tasks.work_item import WorkItem


FLOW = "work-shard"
"""The flow that processes shards."""
_ONLINE = "ONLINE"


class ByDeployment(Strict):
    """Processes shards by runs of a deployment, on any work pool."""

    deployment: str = Field(default=f"{FLOW}/{FLOW}", min_length=1)
    """The deployment of the flow `work-shard`; `prefect-dispatch deploy` creates one."""
    runs: int = Field(default=4, ge=1, le=1000)
    """Concurrent runs of the deployment, which share the limits of the job. Fewer, where the deployment or its work
    pool has a lower limit."""
    silent_s: float = Field(default=SILENT_S, ge=5, le=86_400, title="Silence in seconds")
    """Seconds without a sign of life from a running run after which it is given up, and the rest of its items asked
    again."""

    @property
    def name(self) -> str:
        """The flow and the name of the deployment."""
        return self.deployment if "/" in self.deployment else f"{FLOW}/{self.deployment}"


def _parse_fan_out(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value != "deployment":
        msg = f"there is no {value!r}; {did_you_mean(value, ['deployment'])}"
        raise ValueError(msg)
    return ByDeployment()


FanOutTo = Annotated[ByDeployment, BeforeValidator(_parse_fan_out)]
"""`deployment`, or a mapping with the options of `ByDeployment`."""


class FanOutTarget(NamedTuple):
    """Resolved `fan_out` of a job."""

    target: RemoteTarget | None = None
    """The target of the shards; None: the run's own process."""
    notes: tuple[str, ...] = ()
    """Notes for the plan and the log of the run."""


def resolve_deployment(
    by: ByDeployment | None, work: Sequence[WorkItem], executor: Executor, folder: Path
) -> FanOutTarget:
    """Resolve the deployment that processes the shards of some work.

    Args:
        by: The deployment and its options; None: no fan-out to a deployment.
        work: The work.
        executor: The executor.
        folder: The job's folder.

    Raises:
        JobError: If there is no such deployment, if none of its runs could begin, or if the work can't be sent there.
    """
    if by is None:
        return FanOutTarget()
    # 1. The work has to be serializable.
    require_serializable(work, executor, folder)
    # 2. The deployment has to exist and be able to start runs.
    try:
        with get_client(sync_client=True) as client:
            found = _read_deployment(client, by)
            runs, pool, notes = _read_capacity(client, by, found)
    except httpx.TransportError as error:
        raise JobError(f"fan_out: Prefect's API can't be reached: {safe_message(error)}") from None
    except PrefectHTTPStatusError as error:
        raise JobError(f"fan_out: Prefect's API rejects the request for {by.name!r}: {safe_message(error)}") from None
    target = Target(found.id, by.name, str(folder), by.silent_s, pool)
    return FanOutTarget(
        RemoteTarget(lambda: DeploymentRunner(target), lambda _: WorkerCapacity(runs, runs), isolated=True), notes
    )


def require_serializable(work: Iterable[WorkItem], executor: Executor, folder: Path) -> None:
    """Check that a job file can express all of some work, so that another process can do it.

    Raises:
        JobError: If not; the message names what it can't express, and the fix.
    """
    if not isinstance(executor, WRITABLE):
        raise JobError(
            f"executor: a {type(executor).__name__} can't go to another process by fan_out: only what a job file can "
            "say does. Name one of the kinds 'llm', 'shell', 'coding' and 'python' (a function by 'module:name'), or "
            "leave fan_out out."
        )
    try:
        remote: Any = to_job_file_form(executor)
        remote = remote.resolve_paths(folder)
    except (ValidationError, BriefError, JobError) as error:
        raise JobError(
            f"executor: {type(executor).__name__}({_executor_name(executor)}) can't go to another process by "
            f"fan_out, as it is found by its name there: {_error_sentence(error)} Put it into a module in "
            f"{folder.name!r}/, or leave fan_out out."
        ) from None
    # One item per brief is enough: whether its code can be bound elsewhere does not depend on the item.
    first: dict[int, WorkItem] = {}
    for each in work:
        first.setdefault(id(each.brief), each)
    for each in first.values():
        _require_same(each, remote, folder)


def _require_same(work: WorkItem, executor: Executor, folder: Path) -> None:
    """Check that work has the same fingerprint after it was serialized and bound again in the job's folder.

    Raises:
        JobError: If not.
    """
    try:
        brief = resolve_user_code(to_job_file_form(work.brief), folder)
        same = fingerprint(brief, work.item, executor) == work.fingerprint
        why = "what its names stand for in the job's folder is something else."
    except (ValidationError, BriefError) as error:
        same, why = False, _error_sentence(error)
    if not same:
        raise JobError(
            f"Brief {work.brief.name!r} can't go to another process by fan_out, where its output and checks are found "
            f"by their names: {why} Put them into a module in {folder.name!r}/, give output as a JSON Schema, or leave "
            "fan_out out."
        )


def _read_deployment(client: SyncPrefectClient, by: ByDeployment) -> DeploymentResponse:
    try:
        found = client.read_deployment_by_name(by.name)
    except ObjectNotFound:
        deployments = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])))
        names = [f"{FLOW}/{each.name}" for each in deployments]
        hint = did_you_mean(by.name, names) if names else "make it with `prefect-dispatch deploy`."
        raise JobError(f"fan_out.deployment: Prefect has no deployment {by.name!r}; {hint}") from None
    if not by.name.startswith(f"{FLOW}/"):
        raise JobError(
            f"fan_out.deployment: {by.name!r} is a deployment of another flow than {FLOW!r}; make one with "
            "`prefect-dispatch deploy`, and name that."
        )
    options = found.concurrency_options
    if options and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW:
        raise JobError(
            f"fan_out.deployment: {by.name!r} cancels runs beyond its concurrency limit, and so would lose shards: set "
            "its collision strategy to ENQUEUE, or take the limit away."
        )
    return found


def _read_capacity(
    client: SyncPrefectClient, by: ByDeployment, found: DeploymentResponse
) -> tuple[int, str | None, tuple[str, ...]]:
    """Return the limit of concurrent runs, the pool whose workers start them, and notes on both.

    Raises:
        JobError: If no run could begin.
    """
    watched: str | None = None
    # 1. Collect the limits of the deployment, its work pool and its work queue.
    limit = found.global_concurrency_limit
    limits: dict[str, int | None] = {"the deployment": limit.limit if limit else None}
    notes: list[str] = []
    if found.work_pool_name:
        pool = client.read_work_pool(found.work_pool_name)
        queue = client.read_work_queue_by_name(found.work_queue_name or "default", pool.name)
        for what, each in ((f"work pool {pool.name!r}", pool), (f"work queue {queue.name!r}", queue)):
            if each.is_paused:
                raise JobError(
                    f"fan_out.deployment: the {what} of {by.name!r} is paused, so that no run would begin: resume it."
                )
            limits[f"its {what}"] = each.concurrency_limit
        # 2. Push pools and managed pools need no worker.
        online = any(each.status == _ONLINE for each in client.read_workers_for_work_pool(pool.name))
        if not (pool.is_push_pool or pool.is_managed_pool):
            watched = pool.name
        if watched and not online:
            start = f"prefect worker start --pool {pool.name}"
            notes.append(f"No worker of the work pool {pool.name!r} is online; the run waits for one: {start}")
    # 3. The lowest limit counts.
    for what, most in limits.items():
        if most == 0:
            raise JobError(f"fan_out.deployment: {what} has a concurrency limit of 0, so that no run would begin.")
    least = min([most for most in limits.values() if most is not None], default=by.runs)
    if least < by.runs:
        notes.append(f"At most {least} runs of {by.name} are under way at once, and not {by.runs} (fan_out.runs).")
    return min(by.runs, least), watched, tuple(notes)


def _executor_name(executor: object) -> str:
    return str(getattr(executor, "name", ""))


def _error_sentence(error: Exception) -> str:
    text = first_problem(error)[1] if isinstance(error, ValidationError) else str(error)
    return f"{text.rstrip('.')}."


THREADS_PER_WORKER = 2
"""Concurrent task runs in each worker of our own Dask cluster: free slots for one while items of another end."""
Workers = Annotated[int | None, Field(ge=1, le=1000, title="Processes")]


class Threads(Strict):
    """Runs shards in this process, or by the flow's own task runner."""

    kind: Literal["threads"] = "threads"
    """Discriminator of the task runners."""

    def create_target(self) -> RemoteTarget | None:
        """Return None: shards run in the run's own process."""
        return None


class Processes(Strict):
    """Runs shards in processes of this machine, each with one task run at a time."""

    kind: Literal["processes"] = "processes"
    """Discriminator of the task runners."""
    workers: Workers = None
    """Number of processes. Empty: the number of cores."""

    def create_target(self) -> RemoteTarget:
        """Return the target of the shards."""
        return RemoteTarget(self._create_runner, capacity_of)

    def _create_runner(self) -> TaskRunner[Any]:
        return ProcessPool(max_workers=self.workers or os.cpu_count(), initializer=initialize_pool_process)


class _Cluster(Strict):
    """Runs shards on the workers of a cluster, of this machine or at an address."""

    workers: Workers = None
    """Number of processes of a cluster on this machine. Empty: the number of cores."""
    address: Annotated[str | None, Field(min_length=1, title="Address")] = None
    """The address of an existing cluster. Empty: one is started on this machine, for the run."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.workers is not None and self.address is not None:
            msg = "the cluster at 'address' has its own workers; leave one of 'workers' and 'address' out"
            raise ValueError(msg)
        return self


class Dask(_Cluster):
    """Runs shards on a Dask cluster; needs the extra `dask`."""

    kind: Literal["dask"] = "dask"
    """Discriminator of the task runners."""

    def create_target(self) -> RemoteTarget:
        """Return the target of the shards.

        Raises:
            JobError: If prefect-dask isn't installed.
        """
        _require_package("dask")
        return RemoteTarget(self._create_runner, capacity_of)

    def _create_runner(self) -> TaskRunner[Any]:
        runner: Any = import_module("prefect_dask").DaskTaskRunner
        if self.address:
            return cast("TaskRunner[Any]", runner(address=self.address))
        own = {"n_workers": self.workers or os.cpu_count(), "threads_per_worker": THREADS_PER_WORKER}
        return cast("TaskRunner[Any]", runner(cluster_kwargs={**own, "dashboard_address": None}))


class Ray(_Cluster):
    """Runs shards on a Ray cluster; needs the extra `ray`."""

    kind: Literal["ray"] = "ray"
    """Discriminator of the task runners."""

    def create_target(self) -> RemoteTarget:
        """Return the target of the shards.

        Raises:
            JobError: If prefect-ray isn't installed.
        """
        _require_package("ray")
        return RemoteTarget(self._create_runner, capacity_of)

    def _create_runner(self) -> TaskRunner[Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry of each cluster to Ray's makers
        runner: Any = import_module("prefect_ray").RayTaskRunner
        if self.address:
            return cast("TaskRunner[Any]", runner(address=self.address))
        own = {"num_cpus": self.workers or os.cpu_count(), "include_dashboard": False}
        return cast("TaskRunner[Any]", runner(init_kwargs=own))


_KINDS = {"threads": Threads, "processes": Processes, "dask": Dask, "ray": Ray}


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return str(cast("Mapping[str, object]", value).get("kind", ""))
    return next((kind for kind, model in _KINDS.items() if isinstance(value, model)), "")


def _parse_task_runner(value: Any) -> Any:  # noqa: ANN401 -- any input of a validator
    if isinstance(value, str):
        value = {"kind": value}
    kind = _kind(value)
    if kind not in _KINDS:
        msg = (
            f"there is no {kind!r}; {did_you_mean(kind, [*_KINDS])}" if kind else f"name its kind: {', '.join(_KINDS)}"
        )
        raise ValueError(msg)
    return value


TaskRunnerInput = Annotated[
    Annotated[Threads, Tag("threads")]
    | Annotated[Processes, Tag("processes")]
    | Annotated[Dask, Tag("dask")]
    | Annotated[Ray, Tag("ray")],
    Discriminator(_kind),
    BeforeValidator(_parse_task_runner),
    Tabs(),
]
"""`threads`, `processes`, `dask` or `ray`, or a mapping with `kind` and the options of one."""


def shard_target(
    by: Threads | Processes | Dask | Ray | None, executor: Executor, otherwise: RemoteTarget | None
) -> RemoteTarget | None:
    """Return the target of a job's shards; None for the run's own process.

    Args:
        by: The task runner of the job, if it names one.
        executor: The executor.
        otherwise: The target of `fan_out`, if the job has one.

    Raises:
        JobError: If both are set, or the executor can't be sent to another process; the message has the fix.
    """
    if by and otherwise:
        raise JobError("task_runner: fan_out also determines where shards run; leave one of them out.")
    if by is None or (where := by.create_target()) is None:
        return otherwise or find_remote_target()
    require_picklable(executor)
    return where


def _require_package(kind: str) -> None:
    if find_spec(f"prefect_{kind}") is None:
        raise JobError(
            f"task_runner: {kind!r} needs prefect-{kind}, which isn't installed here: "
            f"pip install 'prefect-dispatch[{kind}]', or choose 'processes'."
        )
