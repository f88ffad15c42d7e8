"""Shards in other processes: no more at once, no more spent and nothing lost, whoever dies on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import flow
from prefect.exceptions import CancelledRun

from prefect_dispatch import Answer, Brief, Limits, Outcome, Reply, Usage, dispatch
from prefect_dispatch.errors import JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.models.item import Item
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.preflight import Independence
from prefect_dispatch.tasks.result_store import BlobStore, stored_answer
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.shards import protocol, remote
from prefect_dispatch.tasks.shards.remote import RemoteTarget, WorkerCapacity
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor
from tests.tasks.beside import WORLDS, Beside, Shout, World, beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefect_dispatch import Ask
    from prefect_dispatch.reporting.progress import Progress

BRIEF = Brief(name="b", instructions="Shout.")
KEYS = [f"k{at:02}" for at in range(12)]
QUICK = Limits(retry_delay_s=0.01, retries=2, concurrency=4, shard=3)


@pytest.fixture
def world(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world of the test's own, in which a shard looks often whether it is wanted."""
    monkeypatch.setattr(protocol, "LOOK_S", 0.02)
    name = uuid4().hex
    WORLDS[name] = World()
    yield WORLDS[name]
    del WORLDS[name]


def ran(
    world: World,
    where: RemoteTarget | None = None,
    *,
    keys: list[str] = KEYS,
    limits: Limits = QUICK,
    again: bool = False,
    stored: dict[str, Answer] | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> tuple[dict[str, Outcome], FanOut]:
    """Return what came of each item, and the fan-out."""
    name = next(name for name, each in WORLDS.items() if each is world)
    executor = Shout(name)
    work = build_work([BRIEF], [Item(key=key, value=key) for key in keys], executor)

    @flow
    def ours() -> tuple[list[Outcome], FanOut]:
        fan_out = FanOut(
            work,
            executor,
            limits,
            independence=Independence(),
            again=[each.fingerprint for each in work] if again else (),
            on_progress=tell,
            stored=stored,
            create_in_flight=where or beside(world),
        )
        return fan_out.run(), fan_out

    outcomes, fan_out = ours()
    assert Counter(each.item for each in outcomes) == dict.fromkeys(keys, 1)
    return {each.item: each for each in outcomes}, fan_out


def left(store: Path) -> list[str]:
    """Return the names of notes that are still there."""
    return [each.name for each in store.glob("*") if any(note in each.name for note in ("wanted", "begun", "-over-"))]


@pytest.mark.slow
def test_every_item_is_answered_once(world: World, store: Path) -> None:
    """Twelve items in four shards, two at a time; nothing is left in the store but answers."""
    outcomes, _ = ran(world)
    assert {key: each.value for key, each in outcomes.items()} == {key: key.upper() for key in KEYS}
    assert sorted(world.asks) == KEYS
    assert world.sizes == [3, 3, 3, 3]
    assert {each.concurrency for each in world.limits} == {2}
    assert left(store) == []
    ran(world)
    assert sorted(world.asks) == KEYS


@pytest.mark.slow
def test_where_all_is_stored_no_runner_is_begun(world: World) -> None:
    """A second run asks nobody, and starts no process."""
    work = build_work([BRIEF], [Item(key=key, value=key) for key in KEYS], Shout(next(iter(WORLDS))))
    ran(world)
    stored = {each.fingerprint: answer for each in work if (answer := stored_answer(result_store_for_run(), each))}
    outcomes, _ = ran(world, stored=stored)
    assert {each.origin for each in outcomes.values()} == {"stored"}
    assert (len(world.asks), world.entered) == (12, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "shards", "concurrency"), [(2, 2, 4), (2, 4, 4), (3, 3, 2), (1, 2, 3)])
def test_no_more_are_under_way_than_there_are_places(
    world: World, processes: int, shards: int, concurrency: int
) -> None:
    """Over all processes together; a process that runs two shards at once has places for both."""

    async def script(ask: Ask) -> str:
        await asyncio.sleep(0.005)
        return ask.item.key

    world.script = script
    limits = QUICK.model_copy(update={"concurrency": concurrency})
    ran(world, beside(world, processes=processes, shards=shards), limits=limits)
    assert world.most <= concurrency


@pytest.mark.slow
def test_rates_are_divided(world: World) -> None:
    """What the provider allows in a minute is spread over the processes, of which no more work than there is for."""
    ran(world, keys=KEYS[:1], limits=QUICK.model_copy(update={"requests_per_minute": 601, "tokens_per_minute": None}))
    assert [each.requests_per_minute for each in world.limits] == [300]
    few = QUICK.model_copy(update={"requests_per_minute": 1})
    ran(world, beside(world, processes=3, shards=6), keys=["other"], limits=few)
    assert world.limits[-1].requests_per_minute == 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.slow
def test_a_cluster_that_is_not_there(world: World, store: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool) -> None:
    """Refused before anything is asked, whether its runner says so when entered or, as Dask's, when asked something."""

    def gone(*_: object) -> WorkerCapacity:
        raise OSError("Timed out trying to connect to tcp://127.0.0.1:1 after 30 s")

    where = beside(world)
    if late:
        where = RemoteTarget(where.make, gone)
    else:
        monkeypatch.setattr(Beside, "__enter__", gone)
    refusal = "task_runner: Beside can't be started .OSError: Timed out .*127.0.0.1:1 .*leave task_runner out"
    with pytest.raises(JobError, match=refusal):
        ran(world, where)
    assert (world.sizes, world.asks, left(store)) == ([], [], [])


def test_many_items_make_few_task_runs(world: World) -> None:
    """Each process has work, and no place of it is idle for long."""
    ran(world, keys=[f"i{at}" for at in range(90)], limits=QUICK.model_copy(update={"shard": None}))
    assert world.sizes == [45, 45]


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cap=st.integers(0, 14), shard=st.integers(1, 12), processes=st.integers(1, 4), shards=st.integers(1, 2))
def test_a_budget_holds_over_all_processes(world: World, cap: int, shard: int, processes: int, shards: int) -> None:
    """It is spent to the last call and not beyond, whatever shares it was cut into; the rest is skipped."""
    world.asks.clear()
    keys = [f"{uuid4().hex[:6]}-{at}" for at in range(12)]
    limits = QUICK.model_copy(update={"budget_requests": cap, "shard": shard})
    outcomes, fan_out = ran(
        world, beside(world, processes=processes, shards=processes * shards), keys=keys, limits=limits
    )
    statuses = Counter(each.status for each in outcomes.values())
    assert len(world.asks) == min(cap, 12)
    assert statuses == Counter({"succeeded": min(cap, 12), "skipped": max(0, 12 - cap)})
    if cap < 12:
        assert fan_out.stop
        assert fan_out.stop.reason.startswith(f"limits.budget_requests is {cap} requests: {cap} requests are spent")


@pytest.mark.slow
def test_what_a_shard_did_not_spend_is_given_back(world: World) -> None:
    """Calls that cost less than was held for them leave room for others."""
    world.script = lambda ask: Reply(value=ask.item.key, usage=Usage(requests=1, cost_usd=0.01))
    limits = QUICK.model_copy(update={"budget_requests": 100, "shard": 2})
    outcomes, fan_out = ran(world, limits=limits)
    assert all(each.status == "succeeded" for each in outcomes.values())
    assert [each.budget_requests for each in world.limits[:2]] == [50, 50]
    assert fan_out.stop is None


@pytest.mark.slow
def test_a_re_ask_that_a_share_refuses_is_made_again(world: World) -> None:
    """What was paid before the refusal stays with the item; where all is spent, it has failed for the budget."""
    short = Brief(name="b", instructions="Shout.", output={"type": "integer"})
    world.script = lambda ask: "no number" if not ask.rejections else 7
    name = next(name for name, each in WORLDS.items() if each is world)
    work = build_work([short], [Item(key=key, value=key) for key in KEYS[:2]], Shout(name))

    @flow
    def ours(budget: int) -> list[Outcome]:
        limits = QUICK.model_copy(update={"budget_requests": budget, "shard": 1})
        return FanOut(
            work,
            Shout(name),
            limits,
            independence=Independence(),
            on_progress=lambda progress: None,
            create_in_flight=beside(world),
        ).run()

    outcomes = ours(3)
    assert len(world.asks) == 3
    assert sum(each.usage.requests for each in outcomes) == 3
    assert Counter(each.status for each in outcomes)["succeeded"] <= 1
    assert {each.error.kind for each in outcomes if each.error} == {"budget"}


def test_a_process_that_dies_loses_nothing(world: World, store: Path) -> None:
    """What it had stored counts as asked, and isn't asked again; its shard doesn't count as spent in whole."""

    def fate(number: int, shard: object) -> BaseException | None:
        return BrokenExecutor("killed") if number == 1 else None

    outcomes, _ = ran(world, beside(world, fate), limits=QUICK.model_copy(update={"budget_requests": 12}))
    assert {each.origin for each in outcomes.values()} == {"asked"}
    assert sorted(world.asks) == KEYS
    assert sum(each.usage.requests for each in outcomes.values()) == 12
    assert world.entered == 2
    assert left(store) == []


@pytest.mark.slow
@pytest.mark.parametrize(("cap", "again"), [pytest.param(5, True, id="room"), pytest.param(3, False, id="none")])
def test_what_a_process_that_died_had_noted_is_spent(world: World, cap: int, again: bool) -> None:  # noqa: FBT001 -- a column
    """What it took on items without an answer counts, and the rest of its share is there for others."""
    tries: Counter[str] = Counter()

    def script(ask: Ask) -> str:
        tries[ask.item.key] += 1
        if ask.item.key == "k00" and tries["k00"] == 1:
            raise RejectedError("no")
        return ask.item.key

    def fate(number: int, shard: object) -> BaseException | None:
        return BrokenExecutor("killed") if number == 0 else None

    world.script = script
    limits = QUICK.model_copy(update={"budget_requests": cap, "shard": 3})
    outcomes, _ = ran(world, beside(world, fate, processes=1), keys=KEYS[:3], limits=limits)
    assert {key: each.status for key, each in outcomes.items()} == {
        "k00": "succeeded" if again else "skipped",
        "k01": "succeeded",
        "k02": "succeeded",
    }
    assert tries["k00"] == (2 if again else 1)


@pytest.mark.slow
def test_a_process_that_is_given_up_and_lives_spends_no_more_than_it_had_noted(world: World) -> None:
    """The run counts that as spent, and gives the rest to others; so both together keep to the cap."""

    def script(ask: Ask) -> str:
        if len(world.asks) == 4:
            for name in names:
                protocol.abandon_shard(result_store_for_run(), name)
        return ask.item.key

    def fate(number: int, shard: Any) -> BaseException | None:  # noqa: ANN401 -- a shard
        names.append(shard.header.name)
        return BrokenExecutor("not heard of") if number == 0 else None

    names: list[str] = []
    world.script = script
    limits = QUICK.model_copy(update={"budget_requests": 16, "shard": 12, "concurrency": 1})
    outcomes, _ = ran(world, beside(world, fate, processes=1), limits=limits)
    assert sorted(world.asks) == KEYS
    assert {each.status for each in outcomes.values()} == {"succeeded"}
    assert world.sizes[0] == 12
    assert len(world.sizes) > 1


@pytest.mark.slow
def test_a_shard_that_was_begun_before_asks_nobody(world: World) -> None:
    """Dask and Ray run a task run again by themselves: the run looks then what is stored, and asks for the rest."""
    seen: list[Any] = []

    def fate(number: int, shard: Any) -> None:  # noqa: ANN401 -- a shard
        if number == 1:  # another life of the same shard has begun
            result_store_for_run().write(protocol.started_key(shard.header.name), protocol.GO)
            seen.append(shard)

    outcomes, _ = ran(world, beside(world, fate))
    assert {each.status for each in outcomes.values()} == {"succeeded"}
    assert sorted(world.asks) == KEYS
    assert len(seen) == 1
    assert len(world.sizes) > 4


@pytest.mark.slow
def test_what_kills_its_process_is_alone_at_last(world: World) -> None:
    """Its neighbours are answered; it has failed, with the reason."""

    def fate(number: int, shard: Any) -> BaseException | None:  # noqa: ANN401 -- a shard
        return BrokenExecutor("segmentation fault") if any(each.item.key == "k05" for each in shard.work) else None

    def script(ask: Ask) -> str:
        if ask.item.key == "k05":
            raise RejectedError("as good as dead")
        return ask.item.key

    world.script = script
    limits = QUICK.model_copy(update={"shard": 12})
    outcomes, _ = ran(world, beside(world, fate), limits=limits)
    assert Counter(each.status for each in outcomes.values()) == Counter({"succeeded": 11, "failed": 1})
    error = outcomes["k05"].error
    assert error
    assert error.kind == "crashed"
    assert "segmentation fault" in error.message
    assert "third time" in error.message
    assert world.sizes == [12, 1, 1]


def test_a_runner_that_takes_nothing_ends_in_gaps(world: World) -> None:
    """As where its cluster is gone: each item is tried as often as the limits say."""

    def fate(number: int, shard: object) -> BaseException:
        return ConnectionError("no cluster")

    outcomes, fan_out = ran(
        world, beside(world, fate), limits=QUICK.model_copy(update={"retries": 1, "circuit": 4, "budget_requests": 9})
    )
    assert {each.status for each in outcomes.values()} == {"failed", "skipped"}
    assert fan_out.stop
    assert "no cluster" in fan_out.stop.reason
    assert world.asks == []


def test_what_all_would_meet_stops_all(world: World) -> None:
    """A key that expires: the shard that meets it ends at once, and nothing after it is begun anywhere."""

    async def script(ask: Ask) -> str:
        if ask.item.key == "k00":
            raise TerminalError("the key expired")
        await asyncio.sleep(0.1)
        return ask.item.key

    world.script = script
    outcomes, fan_out = ran(world, limits=QUICK.model_copy(update={"concurrency": 2, "shard": 6}))
    assert fan_out.stop_reason
    assert "the key expired" in fan_out.stop_reason
    assert outcomes["k05"].status == "skipped"
    assert len(world.asks) < 8
    assert {each.status for each in outcomes.values()} >= {"failed", "skipped"}


def test_equal_failures_stop_a_shard_early(world: World) -> None:
    """The circuit counts within a shard, too: it doesn't fail a thousand times first."""

    def script(ask: Ask) -> str:
        raise RejectedError("no such model here")

    world.script = script
    limits = QUICK.model_copy(update={"circuit": 3, "concurrency": 1, "shard": 12})
    outcomes, fan_out = ran(world, limits=limits)
    assert len(world.asks) == 3
    assert fan_out.stop_reason
    assert Counter(each.status for each in outcomes.values()) == Counter({"failed": 3, "skipped": 9})


@pytest.mark.slow
def test_only_what_failed_in_passing_is_asked_again(world: World) -> None:
    """A retry is the task run's, in the same process, and keeps each item's attempts."""
    tries: Counter[str] = Counter()

    def script(ask: Ask) -> str:
        tries[ask.item.key] += 1
        if ask.item.key == "k01" and tries["k01"] == 1:
            raise TransientError("busy elsewhere")
        if ask.item.key == "k02":
            raise TransientError("never there")
        return ask.item.key

    world.script = script
    outcomes, _ = ran(world, keys=KEYS[:3])
    assert tries == {"k00": 1, "k01": 2, "k02": 3}
    assert {key: len(each.attempts) for key, each in outcomes.items()} == {"k00": 1, "k01": 2, "k02": 3}
    assert outcomes["k02"].error


def test_errors_of_any_class_come_back(world: World) -> None:
    """Of a class that the other side could not make anew, too."""

    class OddError(RejectedError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}", kind="odd")

    def script(ask: Ask) -> str:
        if ask.item.key == "k00":
            raise OddError("so", "odd")
        if ask.item.key == "k01":
            raise KeyError("nothing")
        return ask.item.key

    world.script = script
    outcomes, _ = ran(world, keys=KEYS[:3])
    errors = {key: each.error and (each.error.kind, each.error.message) for key, each in outcomes.items()}
    assert errors["k00"] == ("odd", "so odd")
    assert errors["k01"]
    assert "KeyError" in errors["k01"][1]
    assert errors["k02"] is None


@pytest.mark.slow
def test_what_is_asked_again_is_asked_once_more(world: World) -> None:
    """Where a process died after it had asked again, its new answers count."""
    ran(world)
    world.asks.clear()
    world.sizes.clear()

    def fate(number: int, shard: object) -> BaseException | None:
        return BrokenExecutor("killed") if number == 0 else None

    outcomes, _ = ran(world, beside(world, fate), again=True)
    assert {each.origin for each in outcomes.values()} == {"asked"}
    assert sorted(world.asks) == KEYS


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_its_shards(world: World, store: Path) -> None:
    """Their calls get a moment, then they are cancelled, wherever they are; what came is stored."""
    ended: list[str] = []

    async def script(ask: Ask) -> str:
        if ask.item.key == "k03":  # one of the two places that this process has for all shards
            try:
                await asyncio.sleep(600)
            finally:
                ended.append(ask.item.key)
        return ask.item.key

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise CancelledRun("Somebody cancelled it.")

    world.script = script
    with pytest.raises(CancelledRun):
        ran(world, limits=QUICK.model_copy(update={"grace_s": 0.05}), tell=interrupt)
    assert ended
    assert left(store) == []
    world.script = lambda ask: ask.item.key
    world.asks.clear()
    ran(world)
    assert not {"k00", "k01", "k02"} & set(world.asks)


def test_a_storage_that_is_not_shared_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked where answers would be stored that the run never sees."""

    def other(name: str) -> str:
        return f"elsewhere-{name}"

    monkeypatch.setattr(remote, "note_key", other)
    outcomes, fan_out = ran(world)
    assert world.asks == []
    assert fan_out.stop_reason
    assert "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK" in fan_out.stop_reason
    assert Counter(each.status for each in outcomes.values())["failed"] <= 2


@pytest.mark.slow
def test_processes_that_are_added_get_their_share(world: World) -> None:
    """Places are divided anew once what is under way has ended, so that there are never more than there may be."""
    rooms = iter([1, 1, 1, *[3] * 100])

    def room(_: object) -> WorkerCapacity:
        return WorkerCapacity(each := next(rooms), each)

    made = beside(world)
    ran(world, RemoteTarget(made.make, room), limits=QUICK.model_copy(update={"shard": 1, "concurrency": 6}))
    assert (world.limits[0].concurrency, world.limits[-1].concurrency) == (6, 2)


@pytest.mark.slow
def test_room_that_can_not_be_told_is_as_it_was(world: World) -> None:
    """A cluster that doesn't answer for a moment has what it had."""
    told = iter([WorkerCapacity(2, 2)])
    outcomes, _ = ran(world, RemoteTarget(beside(world).make, lambda _: next(told)))
    assert {each.status for each in outcomes.values()} == {"succeeded"}


@pytest.mark.slow
def test_the_task_runner_of_the_flow_is_taken(world: World) -> None:
    """One that somebody has given the flow has shards as one that the job names."""
    name = next(name for name, each in WORLDS.items() if each is world)
    ours = dispatch.with_options(task_runner=cast("Any", Beside(world)))
    report = ours([BRIEF], KEYS, executor=Shout(name), limits=QUICK.model_copy(update={"budget_requests": 12}))
    assert (report.status, report.usage.requests) == ("complete", 12)
    assert sum(world.sizes) >= 12
    assert sorted(world.asks) == KEYS


@pytest.mark.slow
def test_an_executor_that_can_not_be_sent_is_refused(world: World) -> None:
    """Before anything is begun."""
    ours = dispatch.with_options(task_runner=cast("Any", Beside(world)))
    with pytest.raises(JobError, match="ScriptedExecutor can't be sent to another process"):
        ours([BRIEF], KEYS, executor=ScriptedExecutor({}), limits=QUICK)
    assert world.sizes == []


def test_a_storage_that_fails_now_and_then_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that can't see for a moment whether it is wanted goes on."""
    reads: list[str] = []

    class Failing(BlobStore):
        def load(self, key: str) -> bytes | None:
            if "wanted" in key:
                reads.append(key)
                if len(reads) % 3 == 0:
                    raise TransientError("away for a moment")
            return super().load(key)

    async def script(ask: Ask) -> str:
        await asyncio.sleep(0.05)
        return ask.item.key

    world.script = script
    monkeypatch.setattr(protocol, "BlobStore", Failing)
    outcomes, _ = ran(world, keys=KEYS[:2], limits=QUICK.model_copy(update={"shard": 2, "concurrency": 1}))
    assert {each.status for each in outcomes.values()} == {"succeeded"}


def test_what_cannot_be_noted_is_unknown(store: Path) -> None:
    """Where the note of a shard is damaged, what it has spent is not known."""
    shelf = result_store_for_run()
    shelf.write(protocol.started_key("broken"), b"{")
    assert protocol.abandon_shard(shelf, "broken") is None
