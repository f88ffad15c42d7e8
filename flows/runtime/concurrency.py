"""Concurrency across processes and machines by Prefect limits: exclusive resources, shared rates, overlapping runs."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
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
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

from prefect_dispatch.errors import JobError
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from prefect_dispatch.models.limits import Limits


LEASE_S = 60.0
"""Lease duration in seconds, after which the slots of a killed process are released."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")


def limit_name(resource: str) -> str:
    """Return the name of the Prefect limit of a resource.

    Example:
        >>> limit_name("staging-db")
        'prefect-dispatch-staging-db'
        >>> limit_name("port 80/tcp")
        'prefect-dispatch-1f28afa8b1b8'
    """
    return "prefect-dispatch-" + (resource if _PLAIN_NAME.fullmatch(resource) else digest(resource)[:12])


@contextmanager
def hold_resources(resources: Collection[str]) -> Generator[None, None, None]:
    """Hold exclusive resources while the body runs; wait while another run holds one of them.

    All are acquired in one step, once for a whole fan-out: a limit acquired for each call costs seconds on a busy
    server.

    Args:
        resources: Their names; with none, nothing is acquired.
    """
    names = sorted(map(limit_name, resources))
    if names:
        with get_client(sync_client=True) as client:
            for name in names:
                with suppress(ObjectAlreadyExists):
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    with _hold(names, 1):
        yield


def _hold(names: list[str], slots: int) -> AbstractContextManager[None]:
    """Return a context that holds slots of Prefect limits, and waits while other runs hold them."""
    if not names:
        return nullcontext()
    return concurrency(names, occupy=slots, lease_duration=LEASE_S, strict=True, raise_on_lease_renewal_failure=False)


def rate_limit_share(limits: Limits) -> Limits:
    """Return the limits of a run with its share of shared rates, which is proportional to its share of the slots.

    Raises:
        JobError: If there is no such Prefect limit, or if the run's concurrency exceeds its slots.
    """
    if limits.pace_limit is None:
        return limits
    with get_client(sync_client=True) as client:
        try:
            slots = client.read_global_concurrency_limit_by_name(limits.pace_limit).limit
        except ObjectNotFound:
            raise JobError(
                f"limits.pace_limit: Prefect has no concurrency limit {limits.pace_limit!r}; make it, with as many "
                f"slots as calls may be under way at once: prefect gcl create {limits.pace_limit} --limit 100"
            ) from None
    if limits.concurrency > slots:
        raise JobError(
            f"limits.concurrency: {limits.concurrency} are more than the {slots} slots of {limits.pace_limit!r} "
            "(limits.pace_limit); ask for fewer at once."
        )
    rates = {name: getattr(limits, name) for name in ("requests_per_minute", "tokens_per_minute")}
    shares = {name: max(1, rate * limits.concurrency // slots) for name, rate in rates.items() if rate is not None}
    return limits.model_copy(update=shares)


def hold_slots(limits: Limits) -> AbstractContextManager[None]:
    """Hold the run's slots of the limit for a shared rate while the body runs; wait while other runs hold them.

    They are acquired once for a run: acquired for each call, they would cost seconds on a busy server.
    """
    return _hold([] if limits.pace_limit is None else [limits.pace_limit], limits.concurrency)


P = ParamSpec("P")
R = TypeVar("R")

SKIPPED = "Skipped"
"""The final state name of a scheduled run that overlaps another one; its type is CANCELLED."""
_QUEUED_STATE = "AwaitingConcurrencySlot"


def skip_overlap(step: Callable[P, R]) -> Callable[P, R]:
    """Decorate the body of a flow, so that a scheduled run that overlaps another one of its deployment is skipped.

    Only a run that a schedule created is skipped, and only at its first start: a run that was suspended, that waited
    for a batch, or that a person retries continues.
    """

    @wraps(step)
    def run_or_skip(*args: P.args, **kwargs: P.kwargs) -> R:
        skipped = _skipped_state()
        return step(*args, **kwargs) if skipped is None else cast("R", skipped)

    return run_or_skip


def _skipped_state() -> State[Any] | None:
    """Return the final state of the current run if it is scheduled and overlaps another run of its deployment."""
    context = FlowRunContext.get()
    current = context.flow_run if context else None
    if current is None or current.deployment_id is None or not current.auto_scheduled:
        return None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(current.id)
        overlap = next(_overlaps(client, run, current.deployment_id), None) if run.run_count == 1 else None
    if overlap is None:
        return None
    other, what = overlap
    due = f"{run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC"
    message = f"Skipped, and nothing was asked: due at {due}; the run {other.name!r} of the same deployment {what}."
    get_run_logger().info("%s (The other run: %s)", message, other.id)
    return State(type=StateType.CANCELLED, name=SKIPPED, message=message)


def _overlaps(client: SyncPrefectClient, run: FlowRun, deployment: UUID) -> Iterator[tuple[FlowRun, str]]:
    """Yield the runs of the deployment for which a scheduled run is skipped, with the activity of each in words.

    Paused and suspended runs do not count: they may wait for people for days.
    """

    def find_runs(**conditions: Any) -> list[FlowRun]:  # noqa: ANN401 -- the filter's own fields
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(**conditions),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        )
        return [each for each in found if each.id != run.id]

    def states(*types: StateType) -> FlowRunFilterState:
        return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))

    # 1. It has ended since the run was due, so its input was as recent as that of this run. A run that a person started
    # and that failed, or one that crashed or was cancelled, did not do the work of this one.
    ended = states(StateType.COMPLETED, StateType.FAILED)
    for other in find_runs(end_time=FlowRunFilterEndTime(after_=run.expected_start_time), state=ended):
        if other.state_type == StateType.COMPLETED or other.auto_scheduled:
            yield other, "has ended since"
    # 2. It has begun and will continue by itself: it waits for a batch, a retry, or a worker after it was resumed.
    begun = FlowRunFilterStartTime(is_null_=False)
    for other in find_runs(start_time=begun, state=states(StateType.SCHEDULED)):
        yield other, "has begun and goes on later"
    # 3. A person has started it and waits for it.
    for other in find_runs(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[_QUEUED_STATE]))):
        if not other.auto_scheduled:
            yield other, "waits for its turn"
    # 4. It is running concurrently. With a limit of one run, a running one must be dead: the server has given its slot
    # to this one because its process no longer renews its lease.
    working = find_runs(start_time=begun, state=states(StateType.RUNNING, StateType.CANCELLING))
    limit = client.read_deployment(deployment).global_concurrency_limit if working else None
    for other in () if limit is not None and limit.limit == 1 else working:
        if _start_order(other) < _start_order(run):
            yield other, "is at work"


def _start_order(run: FlowRun) -> tuple[str, str]:
    """Return the sort key of runs that start concurrently, so that exactly one of two is skipped."""
    return (run.start_time.isoformat() if run.start_time else "", str(run.id))
