"""Skipping of a scheduled run that overlaps another run of its deployment.

Prefect's collision strategy of a deployment is the same for all of its runs. The deployments of the ready flows queue
what is beyond their limit (`ENQUEUE`), so that no run that a person started is lost; a scheduled run decides here, as
it starts, whether it is still needed.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

P = ParamSpec("P")
R = TypeVar("R")

SKIPPED = "Skipped"
"""The name of the state in which a scheduled run ends that overlaps another one; its type is CANCELLED."""
_QUEUED = "AwaitingConcurrencySlot"


def skip_overlap(step: Callable[P, R]) -> Callable[P, R]:
    """Decorate what a flow does, so that a scheduled run that overlaps another one of its deployment ends before it.

    Only a run that a schedule made is skipped, and only at its first start: a run that was suspended, that waited for
    a batch, or that a person retries goes on.
    """

    @wraps(step)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        skipped = _skipped_state()
        return step(*args, **kwargs) if skipped is None else cast("R", skipped)

    return checked


def _skipped_state() -> State[Any] | None:
    """Return the state to end in, if the flow run under way is scheduled and overlaps another run of its deployment."""
    context = FlowRunContext.get()
    known = context.flow_run if context else None
    if known is None or known.deployment_id is None or not known.auto_scheduled:
        return None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(known.id)
        found = next(_overlaps(client, run, known.deployment_id), None) if run.run_count == 1 else None
    if found is None:
        return None
    other, what = found
    due = f"{run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC"
    message = f"Skipped, and nothing was asked: due at {due}; the run {other.name!r} of the same deployment {what}."
    get_run_logger().info("%s (The other run: %s)", message, other.id)
    return State(type=StateType.CANCELLED, name=SKIPPED, message=message)


def _overlaps(client: SyncPrefectClient, run: FlowRun, deployment: UUID) -> Iterator[tuple[FlowRun, str]]:
    """Yield the runs of the deployment in whose favour a scheduled run is skipped, and what each of them does.

    A paused or suspended run is none of them: it may wait for people for days.
    """

    def read(**conditions: Any) -> list[FlowRun]:  # noqa: ANN401 -- the filter's own fields
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(**conditions),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        )
        return [each for each in found if each.id != run.id]

    # 1. It has ended since the run was due, so it saw what this run would see. A run that a person started and that
    # failed, or one that crashed or was cancelled, did not do the work of this one.
    ended = _types(StateType.COMPLETED, StateType.FAILED)
    for other in read(end_time=FlowRunFilterEndTime(after_=run.expected_start_time), state=ended):
        if other.state_type == StateType.COMPLETED or other.auto_scheduled:
            yield other, "has ended since"
    # 2. It has begun and will go on by itself: it waits for a batch, a retry, or a worker after it was resumed.
    begun = FlowRunFilterStartTime(is_null_=False)
    for other in read(start_time=begun, state=_types(StateType.SCHEDULED)):
        yield other, "has begun and goes on later"
    # 3. A person waits for it.
    for other in read(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[_QUEUED]))):
        if not other.auto_scheduled:
            yield other, "waits for its turn"
    # 4. It is at work beside this one. With the limit of one run this cannot be: the server counts it as running, and
    # has given its slot to this one, because its process died and no longer renews its lease.
    working = read(start_time=begun, state=_types(StateType.RUNNING, StateType.CANCELLING))
    limit = client.read_deployment(deployment).global_concurrency_limit if working else None
    for other in () if limit is not None and limit.limit == 1 else working:
        if _order(other) < _order(run):
            yield other, "is at work"


def _types(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _order(run: FlowRun) -> tuple[str, str]:
    """Return what two runs that start at once are ordered by, so that exactly one of them is skipped."""
    return (run.start_time.isoformat() if run.start_time else "", str(run.id))
