"""What runs at once, what waits for what, and what is left when a run is broken off."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectConcurrentFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import Transaction, TransactionState, transaction

from prefect_dispatch import Ask, Brief, Item, Limits, Merge, dispatch
from prefect_dispatch.errors import DispatchFailed, RejectedError
from prefect_dispatch.flows.runtime.concurrency import hold_resources, limit_name
from prefect_dispatch.reporting.progress import Progress, progress_listener
from prefect_dispatch.tasks.run_brief import run_brief
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Outcome

pytestmark = pytest.mark.usefixtures("store")

SERIAL = Limits(retries=0, on_dependence="serialize")


class Watch:
    """Answers after a moment, and keeps who was under way together and in which order they began."""

    def __init__(self) -> None:
        """Start with nobody."""
        self.now: set[str] = set()
        self.together: set[frozenset[str]] = set()
        self.began: list[str] = []

    async def __call__(self, ask: Ask) -> JsonValue:
        """Answer, and keep the book."""
        name = f"{ask.brief.name}/{ask.item.key}"
        self.began.append(name)
        self.now.add(name)
        self.together.add(frozenset(self.now))
        await asyncio.sleep(0.05)
        self.now.discard(name)
        return "done"


def test_work_that_shares_a_resource_never_runs_at_once() -> None:
    """Serialised: one at a time where they share, side by side where they don't."""
    one = Brief(name="one", instructions="Migrate {key}.", resources=("db",))
    free = Brief(name="free", instructions="Look at {key}.")
    watch = Watch()
    report = dispatch([one, free], ["a", "b", "c"], executor=ScriptedExecutor(watch), limits=SERIAL)
    assert report.status == "complete"
    assert all(sum(name.startswith("one/") for name in names) <= 1 for names in watch.together)
    assert any(len(names) > 1 for names in watch.together)


@pytest.mark.slow
def test_a_reader_waits_for_the_writer() -> None:
    """Serialised: every write of a file is over before anything that reads it begins."""
    reader = Brief(name="a-reader", instructions="Read about {key}.", reads=("notes/*.md",))
    writer = Brief(name="b-writer", instructions="Write about {key}.", writes=("notes/{key}.md",))
    watch = Watch()
    dispatch([reader, writer], ["x", "y"], executor=ScriptedExecutor(watch), limits=SERIAL)
    assert {name.split("/")[0] for name in watch.began[:2]} == {"b-writer"}
    assert not any(len({name.split("/")[0] for name in names}) > 1 for names in watch.together)


@pytest.mark.slow
def test_no_more_is_under_way_than_the_limits_allow() -> None:
    """The window is as wide as `concurrency`, whatever the task runner could do."""
    watch = Watch()
    dispatch(
        [Brief(name="b", instructions="Do.")],
        list("abcdefgh"),
        executor=ScriptedExecutor(watch),
        limits=Limits(concurrency=3),
    )
    assert max(map(len, watch.together)) <= 3


@pytest.mark.slow
def test_a_resource_is_held_for_the_whole_fan_out() -> None:
    """While a run holds it, the Prefect limit of its name is taken; a second holder waits; then it is free."""
    seen: list[int] = []
    name = limit_name("a strange/name")

    def script(ask: Ask) -> JsonValue:
        with get_client(sync_client=True) as client:
            seen.append(client.read_global_concurrency_limit_by_name(name).active_slots)
        return "done"

    brief = Brief(name="b", instructions="Do.", resources=("a strange/name",))
    dispatch([brief], ["a"], executor=ScriptedExecutor(script))
    assert seen == [1]
    order: list[str] = []
    held = threading.Event()

    def second() -> None:
        held.wait()
        with hold_resources(["a strange/name"]):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold_resources(["a strange/name"]):
        thread.start()
        held.set()
        thread.join(0.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


class BrokenRunner(ThreadPoolTaskRunner[Any]):
    """A task runner that loses the worker of one task run, after it has begun."""

    if not TYPE_CHECKING:  # Prefect's overloads have no place for a plain override

        def submit(self, task, parameters, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN201 -- see above
            """Submit; for the item `lost` the future ends as it does when a worker is gone."""
            future = super().submit(task, parameters, *args, **kwargs)
            if "lost" in str(parameters["item"]):
                lost: Future[Any] = Future()
                lost.set_exception(OSError("worker gone"))
                return PrefectConcurrentFuture(future.task_run_id, lost)
            return future


@pytest.mark.slow
def test_a_task_run_that_crashes_is_an_outcome_too() -> None:
    """The engine itself fails: the item is a gap with the reason, the others are answered."""
    flow_of_ours = dispatch.with_options(task_runner=BrokenRunner())
    report = flow_of_ours(
        [Brief(name="b", instructions="Do.")], ["a", "lost"], executor=ScriptedExecutor(lambda _: "done")
    )
    assert [(gap.item, gap.error.kind, gap.error.message) for gap in report.gaps] == [
        ("lost", "crashed", "OSError: worker gone")
    ]


@pytest.mark.slow
def test_an_interrupted_run_cancels_what_is_under_way() -> None:
    """Ctrl-C in the caller: no ask goes on behind its back, and the interruption reaches the caller."""
    cancelled: list[str] = []
    all_asked = asyncio.Event()

    async def script(ask: Ask) -> JsonValue:
        if scripted.calls == 3:
            all_asked.set()
        try:
            await (all_asked if ask.item.key == "a" else asyncio.Event()).wait()
        except asyncio.CancelledError:
            cancelled.append(ask.item.key)
            raise
        return "done"

    def hear(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    scripted = ScriptedExecutor(script)
    token = progress_listener.set(hear)
    try:
        with pytest.raises(CancelledRun, match="1 of 3 answered"):
            dispatch(
                [Brief(name="b", instructions="Do.")], ["a", "b", "c"], executor=scripted, limits=Limits(grace_s=0.1)
            )
    finally:
        progress_listener.reset(token)
    assert sorted(cancelled) == ["b", "c"]


@pytest.mark.slow
def test_it_runs_inside_an_async_flow() -> None:
    """A user's async flow awaits it; called as in a flow that isn't async it works, too, with a warning."""
    script: Callable[[Ask], Awaitable[JsonValue]] = Watch()

    @flow
    async def pipeline() -> int:
        brief = Brief(name="b", instructions="Do.")
        report = await dispatch.acall([brief], ["a"], executor=ScriptedExecutor(script))
        with pytest.warns(RuntimeWarning, match=r"await dispatch\.acall"):
            again = dispatch([brief], ["a"], executor=ScriptedExecutor(script))
        assert again.value == report.value
        return len(report.ledger)

    assert asyncio.run(pipeline()) == 1


ROLLED_BACK: list[str] = []


@task(persist_result=False)
def step() -> str:
    """Do something that a rollback undoes."""
    return "done"


@step.on_rollback
def undo(transaction: Transaction) -> None:
    """Keep that it was undone."""
    ROLLED_BACK.append("step")


def refuse_b(ask: Ask) -> JsonValue:
    """Answer for all items but one."""
    if ask.item.key == "b":
        raise RejectedError("no")
    return "done"


def by_dispatch(scripted: ScriptedExecutor) -> None:
    """Dispatch, with an item that fails."""
    report = dispatch([BRIEF], ["a", "b", "c"], executor=scripted, limits=Limits(retries=0))
    assert [gap.item for gap in report.gaps] == ["b"]


def by_a_broken_merge(scripted: ScriptedExecutor) -> None:
    """Dispatch with an integrator that breaks."""
    with pytest.raises(DispatchFailed, match="by zero"):
        dispatch([BRIEF], ["a", "c"], executor=scripted, limits=Limits(retries=0), integrator=Broken())


def by_task(scripted: ScriptedExecutor) -> None:
    """Ask for one item after another."""
    for key in "ac":
        run_brief(BRIEF, Item(key=key, value=key), scripted)


class Broken:
    """An integrator that breaks."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Break."""
        raise ZeroDivisionError("by zero")


BRIEF = Brief(name="b", instructions="Do.")


@pytest.mark.slow
@pytest.mark.parametrize("ask", [by_dispatch, by_a_broken_merge, by_task])
def test_a_transaction_of_the_callers_takes_no_answer_and_ends_by_no_item(
    ask: Callable[[ScriptedExecutor], None],
) -> None:
    """Answers are stored at once and outlive its rollback; an item that fails rolls nothing of the caller's back."""
    ROLLED_BACK.clear()
    scripted = ScriptedExecutor(refuse_b)
    seen: list[TransactionState] = []

    @flow
    def pipeline() -> None:
        with suppress(LookupError), transaction() as mine:
            step()
            ask(scripted)
            seen.append(mine.state)
            raise LookupError

    pipeline()
    assert seen == [TransactionState.ACTIVE]
    assert ROLLED_BACK == ["step"]
    asked = scripted.calls
    report = dispatch([BRIEF], ["a", "c"], executor=scripted)
    assert (report.status, scripted.calls) == ("complete", asked)
