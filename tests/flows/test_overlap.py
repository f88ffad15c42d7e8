"""Which scheduled runs are skipped, and in whose favour: the runs of a deployment in a real server, run here."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import ConcurrencyLimitConfig, FlowRun, State, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.flow_engine import run_flow
from prefect.states import Completed, Crashed, Failed, Paused, Running, Scheduled

from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.runtime.batch_phase import STATE
from prefect_dispatch.flows.runtime.concurrency import SKIPPED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

LATE = timedelta(minutes=10)
"""How long ago the first scheduled run was due."""


@pytest.fixture
def deployed(tmp_path: Path) -> Callable[..., UUID]:
    """What registers a deployment whose runs ask a function, and returns its id."""
    module = f"answers_{uuid4().hex}"  # a process imports a module once, from whichever folder
    (tmp_path / f"{module}.py").write_text("def say(text: str) -> str:\n    return text\n")
    parameters: dict[str, Any] = {
        "briefs": [{"name": "terms", "instructions": "Say it."}],
        "items": ["a"],
        "executor": {"kind": "python", "function": f"{module}:say"},
        "folder": str(tmp_path),
    }

    def register(name: str, limit: int | None = 1) -> UUID:
        bound = None if limit is None else ConcurrencyLimitConfig(limit=limit)
        made: Any = dispatch.to_deployment(name, parameters=parameters, concurrency_limit=bound)
        found: UUID = made.apply()
        return found

    return register


def scheduled(client: SyncPrefectClient, deployment: UUID, number: int = 1) -> list[FlowRun]:
    """Have the server's scheduler make runs that were due some minutes ago; return them, the first one first."""
    minutely = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(minutes=1)), active=True)
    client.create_deployment_schedules(deployment, [minutely])
    now = datetime.now(timezone.utc)
    span = {"start_time": (now - LATE).isoformat(), "end_time": now.isoformat(), "min_runs": number, "max_runs": number}
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json=span)
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    found = [run for run in client.read_flow_runs(deployment_filter=only) if run.auto_scheduled]
    return sorted(found, key=lambda run: str(run.expected_start_time))[:number]


def beside(client: SyncPrefectClient, deployment: UUID, *states: State[Any]) -> FlowRun:
    """Have a person start another run of the deployment, and put it through some states."""
    run = client.create_flow_run_from_deployment(deployment)
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def state_of(run: FlowRun) -> State[Any]:
    """Run a flow run in this process; return the state that it ended in."""
    ended: Any = run_flow(dispatch, flow_run=run, parameters=run.parameters, return_type="state")
    state: State[Any] = ended
    return state


@pytest.mark.parametrize(
    ("limit", "states", "what"),
    [
        pytest.param(1, [Running(), Completed()], "has ended since", id="completed"),
        pytest.param(1, [Running(), Scheduled(name=STATE)], "has begun and goes on later", id="batch"),
        pytest.param(1, [Scheduled(name="AwaitingConcurrencySlot")], "waits for its turn", id="queued"),
        pytest.param(2, [Running()], "is at work", id="beside"),
        pytest.param(None, [Running(), State(type=StateType.CANCELLING)], "is at work", id="ending"),
    ],
)
def test_a_scheduled_run_is_skipped(
    deployed: Callable[..., UUID], limit: int | None, states: list[State[Any]], what: str
) -> None:
    """Another run of the deployment does its work, or will; the state names it, and nothing was asked."""
    deployment = deployed(f"skipped-{what[:5]}-{limit}", limit)
    with get_client(sync_client=True) as client:
        (run,) = scheduled(client, deployment)
        other = beside(client, deployment, *states)
        state = state_of(run)
        kept = client.read_flow_run(run.id).state
    assert kept is not None
    assert (state.type, state.name) == (kept.type, kept.name) == (StateType.CANCELLED, SKIPPED)
    assert f"the run {other.name!r} of the same deployment {what}." in str(kept.message)
    assert "and nothing was asked" in str(kept.message)


@pytest.mark.parametrize(
    "states",
    [
        pytest.param([], id="not-begun"),
        pytest.param([Running(), Failed()], id="failed-by-hand"),
        pytest.param([Running(), Crashed()], id="crashed"),
        pytest.param([Running(), Paused(timeout_seconds=900)], id="waits-for-people"),
        pytest.param([Running()], id="dead"),
    ],
)
def test_a_scheduled_run_is_not_skipped(deployed: Callable[..., UUID], states: list[State[Any]]) -> None:
    """The other run did not do its work, waits for people, or has lost its slot to this one as its process died."""
    deployment = deployed(f"works-{'-'.join(state.name or '' for state in states)}")
    with get_client(sync_client=True) as client:
        (run,) = scheduled(client, deployment)
        beside(client, deployment, *states)
    assert state_of(run).name == "Completed"


def test_late_runs_fail_once(deployed: Callable[..., UUID]) -> None:
    """Where the first of several late runs has failed, the others would, too; one that a person retries goes on."""
    deployment = deployed("late")
    with get_client(sync_client=True) as client:
        first, run = scheduled(client, deployment, 2)
        failing: list[State[Any]] = [Running(), Failed()]
        for state in failing:
            client.set_flow_run_state(first.id, state, force=True)
        assert state_of(run).name == SKIPPED
        client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)
        assert state_of(client.read_flow_run(run.id)).name == "Completed"


def test_a_run_that_a_person_started_is_never_skipped(deployed: Callable[..., UUID]) -> None:
    """Whatever else the deployment does."""
    deployment = deployed("by-hand", 2)
    with get_client(sync_client=True) as client:
        beside(client, deployment, Running())
        beside(client, deployment, Running(), Completed())
        assert state_of(beside(client, deployment)).name == "Completed"
