"""`fan_out: deployment`: whether shards can go to a deployment, told before anything is spent, and the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import BeforeValidator, Field, ValidationError

from prefect_dispatch.binding import bind
from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.scrub import told
from prefect_dispatch.strict import Strict, nearest
from prefect_dispatch.tasks.deployment_runner import SILENT_S, DeploymentRunner, Target
from prefect_dispatch.tasks.elsewhere import Elsewhere, Room
from prefect_dispatch.tasks.shard_records import WRITABLE, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.tasks.work import Work

FLOW = "work-shard"
"""The flow that works on shards."""
_ONLINE = "ONLINE"


class ByDeployment(Strict):
    """Has shards worked on by runs of a deployment, on whatever work pool that is for."""

    deployment: str = Field(default=f"{FLOW}/{FLOW}", min_length=1)
    """The deployment of the flow `work-shard`; `prefect-dispatch deploy` makes one."""
    runs: int = Field(default=4, ge=1, le=1000)
    """How many of its runs are under way at once: they share the limits of the job. Fewer, where the deployment or its
    work pool has a lower limit."""
    silent_s: float = Field(default=SILENT_S, ge=5, le=86_400, title="Silence in seconds")
    """Seconds without a word from a run at work after which it is given up, and the rest of its items asked again."""

    @property
    def name(self) -> str:
        """The flow and the name of the deployment."""
        return self.deployment if "/" in self.deployment else f"{FLOW}/{self.deployment}"


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value != "deployment":
        msg = f"there is no {value!r}; {nearest(value, ['deployment'])}"
        raise ValueError(msg)
    return ByDeployment()


FanOutTo = Annotated[ByDeployment, BeforeValidator(_plain)]
"""`deployment`, or which one and how."""


class Way(NamedTuple):
    """The way to a deployment."""

    where: Elsewhere | None = None
    """Where shards go; None: nowhere."""
    notes: tuple[str, ...] = ()
    """What there is to say of it beforehand."""


def way_to(by: ByDeployment | None, work: Sequence[Work], executor: Executor, folder: Path) -> Way:
    """Return the way to a deployment, for work that can go there.

    Args:
        by: Which deployment, and how; None: none at all.
        work: The work.
        executor: Who is asked.
        folder: The job's folder.

    Raises:
        JobError: If there is no such deployment, if none of its runs could begin, or if work can't go there.
    """
    if by is None:
        return Way()
    require_declared(work, executor, folder)
    try:
        with get_client(sync_client=True) as client:
            found = _found(client, by)
            runs, pool, notes = _room(client, by, found)
    except httpx.TransportError as error:
        raise JobError(f"fan_out: Prefect's API can't be reached: {told(error)}") from None
    except PrefectHTTPStatusError as error:
        raise JobError(f"fan_out: Prefect's API refuses to tell of {by.name!r}: {told(error)}") from None
    target = Target(found.id, by.name, str(folder), by.silent_s, pool)
    return Way(Elsewhere(lambda: DeploymentRunner(target), lambda _: Room(runs, runs), isolated=True), notes)


def require_declared(work: Iterable[Work], executor: Executor, folder: Path) -> None:
    """Check that a job file could say all of some work, so that it can be worked on elsewhere.

    Raises:
        JobError: If not; the message names what it can't say, and the way out.
    """
    if not isinstance(executor, WRITABLE):
        raise JobError(
            f"executor: a {type(executor).__name__} can't go to another process by fan_out: only what a job file can "
            "say does. Name one of the kinds 'llm', 'shell', 'coding' and 'python' (a function by 'module:name'), or "
            "leave fan_out out."
        )
    try:
        there: Any = in_words(executor)
        there = there.placed(folder)
    except (ValidationError, BriefError, JobError) as error:
        raise JobError(
            f"executor: {type(executor).__name__}({_named(executor)}) can't go to another process by fan_out, as it is "
            f"found by its name there: {_short(error)} Put it into a module in {folder.name!r}/, or leave fan_out out."
        ) from None
    first: dict[int, Work] = {}
    for each in work:
        first.setdefault(id(each.brief), each)
    for each in first.values():
        _require_same(each, there, folder)


def _require_same(work: Work, executor: Executor, folder: Path) -> None:
    try:
        brief = bind(in_words(work.brief), folder)
        same = fingerprint(brief, work.item, executor) == work.fingerprint
        why = "what its names stand for in the job's folder is something else."
    except (ValidationError, BriefError) as error:
        same, why = False, _short(error)
    if not same:
        raise JobError(
            f"Brief {work.brief.name!r} can't go to another process by fan_out, where its output and checks are found "
            f"by their names: {why} Put them into a module in {folder.name!r}/, give output as a JSON Schema, or leave "
            "fan_out out."
        )


def _found(client: SyncPrefectClient, by: ByDeployment) -> DeploymentResponse:
    try:
        found = client.read_deployment_by_name(by.name)
    except ObjectNotFound:
        known = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])))
        names = [f"{FLOW}/{each.name}" for each in known]
        hint = nearest(by.name, names) if names else "make it with `prefect-dispatch deploy`."
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


def _room(
    client: SyncPrefectClient, by: ByDeployment, found: DeploymentResponse
) -> tuple[int, str | None, tuple[str, ...]]:
    """Return how many runs may be under way at once, the pool whose workers begin them, and notes on both."""
    watched: str | None = None
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
        online = any(each.status == _ONLINE for each in client.read_workers_for_work_pool(pool.name))
        if not (pool.is_push_pool or pool.is_managed_pool):
            watched = pool.name
        if watched and not online:
            start = f"prefect worker start --pool {pool.name}"
            notes.append(f"No worker of the work pool {pool.name!r} is online; the run waits for one: {start}")
    for what, most in limits.items():
        if most == 0:
            raise JobError(f"fan_out.deployment: {what} has a concurrency limit of 0, so that no run would begin.")
    least = min([most for most in limits.values() if most is not None], default=by.runs)
    if least < by.runs:
        notes.append(f"At most {least} runs of {by.name} are under way at once, and not {by.runs} (fan_out.runs).")
    return min(by.runs, least), watched, tuple(notes)


def _named(executor: object) -> str:
    return str(getattr(executor, "name", ""))


def _short(error: Exception) -> str:
    said = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return f"{said.removeprefix('Value error, ').rstrip('.')}."
