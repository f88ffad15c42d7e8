"""Targets of the shards of a run: a deployment, or one of Prefect's task runners; checked before anything is spent."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import ValidationError

from prefect_dispatch.errors import BriefError, JobError, first_problem
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.brief import resolve_user_code
from prefect_dispatch.prefect_compat import ProcessPool
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.tasks.shards.deployment_runner import DeploymentRunner, Target
from prefect_dispatch.tasks.shards.options import FLOW, Dask, Processes, Ray, Threads
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

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.tasks.shards.options import ByDeployment
    from prefect_dispatch.tasks.work_item import WorkItem


_ONLINE = "ONLINE"


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
    if by is None or isinstance(by, Threads):
        return otherwise or find_remote_target()
    if not isinstance(by, Processes):
        _require_package(by.kind)
    require_picklable(executor)
    return RemoteTarget(partial(_create_runner, by), capacity_of)


def _create_runner(by: Processes | Dask | Ray) -> TaskRunner[Any]:
    """Return Prefect's task runner for the options of a job."""
    workers = by.workers or os.cpu_count()
    if isinstance(by, Processes):
        return ProcessPool(max_workers=workers, initializer=initialize_pool_process)
    if isinstance(by, Dask):
        own: dict[str, Any] = {"n_workers": workers, "threads_per_worker": THREADS_PER_WORKER}
        options = {"cluster_kwargs": {**own, "dashboard_address": None}}
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry of each cluster to Ray's makers
        options = {"init_kwargs": {"num_cpus": workers, "include_dashboard": False}}
    runner: Any = getattr(import_module(f"prefect_{by.kind}"), f"{by.kind.title()}TaskRunner")
    return cast("TaskRunner[Any]", runner(**({"address": by.address} if by.address else options)))


def _require_package(kind: str) -> None:
    if find_spec(f"prefect_{kind}") is None:
        raise JobError(
            f"task_runner: {kind!r} needs prefect-{kind}, which isn't installed here: "
            f"pip install 'prefect-dispatch[{kind}]', or choose 'processes'."
        )
