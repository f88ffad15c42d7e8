"""Many items in one task run: as many places as without, each item stored, retried, stopped and told by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import CancelledRun

from prefect_dispatch import Ask, Brief, Limits, dispatch
from prefect_dispatch.errors import DispatchFailed, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import CostBound
from prefect_dispatch.reporting.progress import Progress, progress_listener
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="b", instructions="Shout.")
KEYS = [f"k{at:02}" for at in range(12)]
QUICK = Limits(retry_delay_s=0.01, retries=2)


def shout(ask: Ask) -> JsonValue:
    """Answer with what was given, in capitals."""
    return str(ask.item.value).upper()


def limits(shard: int, **more: object) -> Limits:
    """Return limits with shards of a size."""
    return QUICK.model_copy(update={"shard": shard, **more})


def comparable(report: Report) -> dict[str, object]:
    """Return what of a report depends on neither what was stored nor the clock."""
    return report.model_dump(mode="json", include={"status", "value", "ledger", "fields", "gaps", "violations"})


def task_runs(report: Report, wanted: int) -> list[str]:
    """Return the names of a run's task runs that ask, once the server has recorded as many as are wanted."""
    run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(cast("dict[str, Any]", report.run["flow_run"])["id"])]))
    with get_client(sync_client=True) as client:
        wait_until(lambda: len(client.read_task_runs(flow_run_filter=run)) > wanted, "the server records task runs")
        return [each.name for each in client.read_task_runs(flow_run_filter=run) if "integrate" not in each.name]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 5), (5, 1), (5, 3)])
def test_an_answer_is_stored_alike_whatever_the_shard(first: int, then: int) -> None:
    """A run in shards of one size uses what a run in another has stored, and both say the same."""
    one, other = ScriptedExecutor(shout), ScriptedExecutor(shout)
    before = dispatch([BRIEF], KEYS[:8], executor=one, limits=limits(first))
    after = dispatch([BRIEF], KEYS, executor=other, limits=limits(then))
    assert [sorted(ask.item.key for ask in each.asks) for each in (one, other)] == [KEYS[:8], KEYS[8:]]
    assert before.status == after.status == "complete"
    fresh = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(first), refresh=True)
    assert comparable(fresh) == comparable(after)


@pytest.mark.slow
def test_items_share_task_runs() -> None:
    """Twelve items in shards of five: three task runs, named by the first and the last of their items."""
    report = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(5))
    assert sorted(task_runs(report, 3)) == [
        "2 items, b: k10 to b: k11",
        "5 items, b: k00 to b: k04",
        "5 items, b: k05 to b: k09",
    ]
    assert report.run["task_runs"] == {"made": 3}
    alone = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout, fingerprint="other"), limits=limits(1))
    assert alone.run["task_runs"] == {"made": len(KEYS)}


@pytest.mark.slow
def test_what_is_stored_takes_no_task_run() -> None:
    """A second run asks nobody, and leaves one task run: the integrator's."""
    dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(1))
    report = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(1))
    assert task_runs(report, 0) == []
    assert report.usage.cached == len(KEYS)


@pytest.mark.slow
def test_many_items_share_task_runs_unasked() -> None:
    """Beyond two hundred, at least a hundred share one."""
    report = dispatch([BRIEF], [f"i{at}" for at in range(201)], executor=ScriptedExecutor(shout))
    assert len(task_runs(report, 3)) == 3


@pytest.mark.slow
def test_no_more_are_under_way_than_there_are_places() -> None:
    """Two shards at once share the places of one run."""
    now = most = 0

    async def script(ask: Ask) -> JsonValue:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return shout(ask)

    dispatch([BRIEF], KEYS, executor=ScriptedExecutor(script), limits=limits(4, concurrency=3))
    assert most == 3


def test_a_straggler_holds_up_nobody() -> None:
    """The first item of the first shard waits for the last of the last: in fixed windows it would wait for ever."""
    last = asyncio.Event()

    async def script(ask: Ask) -> JsonValue:
        if ask.item.key == KEYS[0]:
            await last.wait()
        if ask.item.key == KEYS[-1]:
            last.set()
        return shout(ask)

    report = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(script), limits=limits(3, concurrency=2))
    assert report.status == "complete"


@pytest.mark.slow
def test_only_what_failed_in_passing_is_asked_again() -> None:
    """A retry of the task run leaves its other items alone, and each keeps its own attempts."""
    tries: dict[str, int] = {}

    def script(ask: Ask) -> JsonValue:
        key = ask.item.key
        tries[key] = tries.get(key, 0) + 1
        if key == "k01" and tries[key] == 1:
            raise TransientError("busy elsewhere")
        if key == "k02":
            raise TransientError("never there")
        if key == "k03":
            raise RejectedError("no")
        return shout(ask)

    report = dispatch([BRIEF], KEYS[:5], executor=ScriptedExecutor(script), limits=limits(5))
    assert tries == {"k00": 1, "k01": 2, "k02": 3, "k03": 1, "k04": 1}
    assert {(gap.item, gap.error.message) for gap in report.gaps} == {("k02", "never there"), ("k03", "no")}
    assert {each.item: len(each.attempts) for each in report.outcomes} == {
        "k00": 1,
        "k01": 2,
        "k02": 3,
        "k03": 1,
        "k04": 1,
    }


@pytest.mark.slow
def test_what_everybody_would_meet_stops_a_shard_at_once() -> None:
    """A key that expires: nothing after it is asked, in no shard; what failed in passing before is not forgotten."""

    def script(ask: Ask) -> JsonValue:
        if ask.item.key == "k01":
            raise TransientError("busy")
        if ask.item.key == "k02":
            raise TerminalError("the key expired")
        return shout(ask)

    scripted = ScriptedExecutor(script)
    with pytest.raises(DispatchFailed, match="the key expired") as caught:
        dispatch([BRIEF], KEYS, executor=scripted, limits=limits(5, concurrency=1))
    assert [ask.item.key for ask in scripted.asks] == KEYS[:3]
    outcomes = {each.item: each.status for each in caught.value.report.outcomes}
    assert outcomes == {
        "k00": "succeeded",
        "k01": "failed",
        "k02": "failed",
        **dict.fromkeys(KEYS[3:], "skipped"),
    }
    (tried,) = (each for each in caught.value.report.outcomes if each.item == "k01")
    assert len(tried.attempts) == 1


@pytest.mark.slow
def test_what_waits_for_a_place_is_not_asked_after_a_stop() -> None:
    """It was looked up and begun already; it is skipped, and another run asks it."""
    going = asyncio.Event()

    async def script(ask: Ask) -> JsonValue:
        if scripted.calls == 1:
            await going.wait()
            raise TerminalError("the key expired")
        await asyncio.sleep(0.2)  # the others wait for their places
        going.set()
        await asyncio.sleep(2.0)  # the error has stopped the run, also where the machine is busy
        return shout(ask)

    scripted = ScriptedExecutor(script)
    with pytest.raises(DispatchFailed, match="the key expired") as caught:
        dispatch([BRIEF], KEYS, executor=scripted, limits=limits(2, concurrency=2))
    wrong, right = (ask.item.key for ask in scripted.asks)
    outcomes = {each.item: each.status for each in caught.value.report.outcomes}
    assert outcomes == {**dict.fromkeys(KEYS, "skipped"), wrong: "failed", right: "succeeded"}
    again = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(2))
    assert (again.status, again.usage.requests, again.usage.cached) == ("complete", 11, 1)


@pytest.mark.slow
def test_a_budget_stops_within_a_shard() -> None:
    """What it doesn't hold is skipped, and a rerun goes on there."""
    report = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(12, budget_requests=5))
    assert report.usage.requests == 5
    assert sum(each.status == "skipped" for each in report.outcomes) == 7
    again = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(12))
    assert again.usage.requests == 7


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 5])
def test_what_a_budget_stops_between_two_attempts_says_so(shard: int) -> None:
    """Whatever the shard: it failed for want of budget, and not for what would have been tried again."""

    def script(ask: Ask) -> JsonValue:
        first.append(ask.item.key)
        if ask.item.key == first[0]:
            raise TransientError("cut off")
        return shout(ask)

    first: list[str] = []
    bounds = limits(shard, budget_requests=4, concurrency=5)
    report = dispatch([BRIEF], KEYS[:5], executor=ScriptedExecutor(script), limits=bounds)
    (other,) = {*KEYS[:5]} - {*first}
    assert {gap.item: (gap.status, gap.error.kind) for gap in report.gaps} == {
        first[0]: ("failed", "budget"),
        other: ("skipped", "budget"),
    }


@pytest.mark.slow
def test_a_check_that_breaks_is_an_outcome_too() -> None:
    """Whatever an executor raises is its item's."""

    def script(ask: Ask) -> JsonValue:
        if ask.item.key == "k01":
            raise SystemExit("gone")
        return shout(ask)

    report = dispatch([BRIEF], KEYS[:4], executor=ScriptedExecutor(script), limits=limits(4))
    assert [(gap.item, gap.error.message) for gap in report.gaps] == [("k01", "SystemExit: gone")]


@pytest.mark.slow
def test_whatever_else_breaks_is_its_items() -> None:
    """An executor that can't count what a call takes, say: the others are answered."""

    class Fussy(ScriptedExecutor):
        name = "fussy"

        def cost_bound(self, ask: Ask) -> CostBound:
            if ask.item.key == "k01":
                raise LookupError("no such table")
            return CostBound(prompt_tokens=1, completion_tokens=1)

    report = dispatch([BRIEF], KEYS[:4], executor=Fussy(shout), limits=limits(4, tokens_per_minute=10**6))
    assert [(gap.item, gap.error.message) for gap in report.gaps] == [("k01", "LookupError: no such table")]


@pytest.mark.slow
def test_what_failed_in_passing_keeps_its_reason_where_a_stop_comes_first() -> None:
    """It was to be asked again, and waits for its place, or isn't begun, when all would fail alike."""
    tries: list[str] = []

    async def script(ask: Ask) -> JsonValue:
        tries.append(ask.item.key)
        if tries.count(ask.item.key) == 1:
            raise TransientError("cut off")
        await asyncio.sleep(0.2)  # others wait for their places
        raise TerminalError("the key expired")

    with pytest.raises(DispatchFailed, match="the key expired") as caught:
        dispatch([BRIEF], KEYS[:4], executor=ScriptedExecutor(script), limits=limits(2, concurrency=2))
    found = {
        each.item: (each.error and each.error.message, len(each.attempts)) for each in caught.value.report.outcomes
    }
    assert found == {key: ("cut off", 1) if tries.count(key) == 1 else ("the key expired", 2) for key in KEYS[:4]}


@pytest.mark.slow
def test_work_that_shares_a_resource_stands_in_no_shard_together() -> None:
    """Serialised work keeps its turns."""
    alone = Brief(name="b", instructions="Shout {key}.", resources=("db",))
    now: set[str] = set()

    async def script(ask: Ask) -> JsonValue:
        assert not now
        now.add(ask.item.key)
        await asyncio.sleep(0.01)
        now.clear()
        return shout(ask)

    bounds = limits(5, on_dependence="serialize")
    report = dispatch([alone], KEYS[:4], executor=ScriptedExecutor(script), limits=bounds)
    assert report.status == "complete"


@pytest.mark.slow
def test_each_item_is_told_as_it_comes() -> None:
    """Progress counts items, not task runs, and no more under way than there are places."""
    seen: list[Progress] = []
    token = progress_listener.set(seen.append)
    dispatch([BRIEF], KEYS, executor=ScriptedExecutor(shout), limits=limits(12, concurrency=2))
    progress_listener.reset(token)
    assert {each.done for each in seen} == set(range(len(KEYS) + 1))
    assert max(each.in_flight for each in seen) == 2


@pytest.mark.slow
def test_an_interrupted_shard_keeps_what_it_has() -> None:
    """Ctrl-C: what was answered is stored, what was under way is cancelled."""
    here = asyncio.Event()

    async def script(ask: Ask) -> JsonValue:
        if ask.item.key == "k03":
            await here.wait()
        return shout(ask)

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    scripted = ScriptedExecutor(script)
    token = progress_listener.set(interrupt)
    with pytest.raises(CancelledRun, match="3 of 12 answered"):
        dispatch([BRIEF], KEYS, executor=scripted, limits=limits(12, concurrency=1, grace_s=0.0))
    progress_listener.reset(token)
    again = ScriptedExecutor(shout)
    dispatch([BRIEF], KEYS, executor=again, limits=limits(1))
    assert sorted(ask.item.key for ask in again.asks) == KEYS[3:]
