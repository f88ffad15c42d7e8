"""`await dispatch.acall(…)`: a run from async code, which goes on meanwhile and can cancel it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.runtime import flow_run

from prefect_dispatch import Brief, DispatchFailed, Limits, dispatch
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from types import FrameType

    from prefect.client.schemas.objects import FlowRun, State
    from pydantic import JsonValue

    from prefect_dispatch import Ask, Report

pytestmark = pytest.mark.usefixtures("store")

SAY = Brief(name="say", instructions="Say it.")
LIMITS = Limits(retry_delay_s=0, retries=0, timeout_s=900, grace_s=0, concurrency=1)  # `a` is stored before `b` begins


def run_of(report: Report) -> FlowRun:
    """Return the flow run of a report, as the server has it."""
    told: Any = report.run["flow_run"]
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(told["id"]))


def run_named(name: str) -> FlowRun:
    """Return the one run of that name."""
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return run


@pytest.mark.slow
def test_the_event_loop_goes_on_meanwhile() -> None:
    """An answer that another coroutine of the caller's has to release comes: the caller's loop isn't blocked."""

    async def program() -> Report:
        release, released = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        async def answer(ask: Ask) -> JsonValue:
            loop.call_soon_threadsafe(release.set)
            await asyncio.to_thread(released.wait, 60)
            return str(ask.item.value)

        async def free() -> None:
            await release.wait()
            released.set()

        free_it = asyncio.create_task(free())
        report = await dispatch.acall([SAY], ["a", "b"], executor=ScriptedExecutor(answer), limits=LIMITS)
        await free_it
        return report

    assert asyncio.run(program()).message == "2 of 2 answered."


@pytest.mark.slow
def test_it_is_a_subflow_of_the_flow_that_awaits_it() -> None:
    """Its parent is the caller's run; an error reaches the caller as from any call."""

    async def refuse(_: Ask) -> JsonValue:
        raise RejectedError("No.")

    @flow
    async def pipeline() -> tuple[Report, str]:
        report = await dispatch.acall([SAY], ["a"], executor=ScriptedExecutor({"a": "x"}), limits=LIMITS)
        refusing = ScriptedExecutor(refuse, fingerprint="refusing")
        with pytest.raises(DispatchFailed):
            await dispatch.acall([SAY], ["a"], executor=refusing, limits=LIMITS)
        return report, str(flow_run.get_id())

    report, parent = asyncio.run(pipeline())
    child = run_of(report)
    assert child.parent_task_run_id is not None
    with get_client(sync_client=True) as client:
        assert str(client.read_task_run(child.parent_task_run_id).flow_run_id) == parent


class _Hanging:
    """An executor whose first item is answered, and whose second one hangs."""

    def __init__(self) -> None:
        self.hangs = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.executor = ScriptedExecutor(self._answer)

    async def _answer(self, ask: Ask) -> JsonValue:
        if ask.item.key == "a":
            return "said"
        self.loop.call_soon_threadsafe(self.hangs.set)
        await asyncio.sleep(600)
        return "never"


async def cancel_when_hanging(named: Any, hanging: _Hanging) -> None:  # noqa: ANN401 -- a flow
    """Await a run, and cancel the awaiting task while a call is under way."""
    task = asyncio.create_task(named.acall([SAY], ["a", "b"], executor=hanging.executor, limits=LIMITS))
    await hanging.hangs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.slow
def test_a_cancelled_task_cancels_its_run() -> None:
    """The run has ended when the cancellation arrives: Cancelled, with what came back stored."""

    async def program() -> ScriptedExecutor:
        hanging = _Hanging()
        await cancel_when_hanging(dispatch.with_options(flow_run_name="cancelled-alone"), hanging)
        return hanging.executor

    executor = asyncio.run(program())
    run = run_named("cancelled-alone")
    assert run.state is not None
    assert (run.state_name, "Answers received so far are stored" in str(run.state.message)) == ("Cancelled", True)
    again = ScriptedExecutor({"a": "not asked", "b": "said"})
    assert dispatch([SAY], ["a", "b"], executor=again, limits=LIMITS).usage.cached == 1
    assert executor.calls == 2


@pytest.mark.slow
def test_a_time_limit_around_a_subflow_cancels_that_alone() -> None:
    """The flow that awaits it goes on, and completes."""

    @flow
    async def pipeline() -> str:
        hanging = _Hanging()
        await cancel_when_hanging(dispatch.with_options(flow_run_name="cancelled-inside"), hanging)
        return "went on"

    assert asyncio.run(pipeline()) == "went on"
    assert run_named("cancelled-inside").state_name == "Cancelled"


@pytest.mark.slow
def test_the_time_limit_of_the_flow_around_it_ends_it() -> None:
    """Prefect's own time limit cancels again and again; the run ends all the same, before its flow does."""

    @flow(timeout_seconds=20)
    async def pipeline() -> None:
        hanging = _Hanging()
        named: Any = dispatch.with_options(flow_run_name="timed-out-inside")
        await named.acall([SAY], ["a", "b"], executor=hanging.executor, limits=LIMITS)

    state: State[Any] = asyncio.run(cast("Any", pipeline)(return_state=True))
    assert state.name == "TimedOut"
    assert run_named("timed-out-inside").state_name == "Cancelled"


def test_a_cancellation_before_the_run_begins_starts_none() -> None:
    """A task that is cancelled before its thread comes to run asks nothing, however late the thread is."""
    cancelled = threading.Event()
    executor = ScriptedExecutor({"a": "x"})

    def wait_at_first(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_run":
            cancelled.wait(60)

    async def program() -> None:
        task = asyncio.create_task(dispatch.acall([SAY], ["a"], executor=executor, limits=LIMITS))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    threading.setprofile(wait_at_first)
    try:
        asyncio.run(program())
    finally:
        threading.setprofile(None)
    assert executor.calls == 0
