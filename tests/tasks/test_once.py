"""Pay once: whichever way the task is used, whatever stands in the store, and whoever asks the same meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer, PickleSerializer
from prefect.transactions import transaction

from prefect_dispatch import Answer, Ask, Brief, Item, Limits, Reply, run_brief
from prefect_dispatch.errors import TransientError
from prefect_dispatch.tasks.get_or_compute import SUFFIX
from prefect_dispatch.tasks.result_store import AnswerSerializer, parse_record
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor
from tests.tasks.storages import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect import Task
    from prefect.client.schemas.objects import State
    from prefect.context import TaskRunContext

T = TypeVar("T")

BRIEF = Brief(name="say", instructions="Say it.", output={"type": "object"})
ITEM = Item(key="a", value="a")
ONE_TRY = Limits(retries=0, reasks=0)


def in_a_flow(script: Callable[[], T]) -> T:
    """Return what a function returns inside of a flow run."""
    said: T = cast("Any", flow)(script, name="script")()
    return said


def counting() -> ScriptedExecutor:
    """Return an executor whose answers are the number of the call."""
    scripted = ScriptedExecutor(lambda ask: {"n": scripted.calls})
    return scripted


def number(answer: object) -> int:
    """Return the number of the call that gave an answer."""
    assert isinstance(answer, Answer)
    return cast("dict[str, int]", answer.value)["n"]


def path_of(scripted: ScriptedExecutor, store: Path) -> Path:
    """Return where the answer stands."""
    (work,) = build_work([BRIEF], [ITEM], scripted)
    return store / f"prefect-dispatch-{work.fingerprint}"


@pytest.mark.slow
def test_every_way_to_call_it_pays_once(store: Path) -> None:
    """Alone, in flows, mapped, submitted, in a transaction, from async code: an answer each time, of one call."""
    scripted = counting()
    arguments = (BRIEF, ITEM, scripted)

    def sync() -> list[int]:
        futures = [cast("Any", run_brief).submit(*arguments) for _ in range(3)]
        answers = [future.result() for future in futures]
        answers += run_brief.map([BRIEF] * 2, [ITEM] * 2, [scripted] * 2).result()
        with transaction():
            answers.append(run_brief(*arguments))
        answers.append(run_brief.with_options(result_serializer=JSONSerializer())(*arguments))
        state: State[Any] = run_brief(*arguments, return_state=True)
        assert state.name == "Cached"
        return [number(answer) for answer in (*answers, state.result())]

    @flow
    async def asynchronous() -> int:
        return number(run_brief(*arguments))

    assert in_a_flow(sync) == [1] * 8
    assert asyncio.run(asynchronous()) == 1
    assert scripted.calls == 1
    assert [path.name for path in store.iterdir() if SUFFIX in path.name or "-dispatch-" in path.name] == [
        path_of(scripted, store).name
    ]


def test_of_those_who_ask_at_once_one_asks_and_the_others_find_it(store: Path) -> None:
    """Their states say so; what they return is the answer itself."""
    scripted = counting()

    def states() -> list[str]:
        futures = [cast("Any", run_brief).submit(BRIEF, ITEM, scripted) for _ in range(4)]
        assert [number(future.result()) for future in futures] == [1] * 4
        return sorted(future.state.name or "" for future in futures)

    assert in_a_flow(states) == ["Cached", "Cached", "Cached", "Completed"]
    assert scripted.calls == 1


def test_what_is_not_to_be_stored_is_not(store: Path) -> None:
    """Without persistence or without a key it is asked each time, as elsewhere in Prefect."""
    scripted = counting()
    unkept = (run_brief.with_options(cache_policy=NO_CACHE), run_brief.with_options(persist_result=False))
    assert in_a_flow(lambda: [number(each(BRIEF, ITEM, scripted)) for each in unkept]) == [1, 2]
    assert scripted.calls == 2
    assert not [*store.glob("prefect-dispatch-*")]


def mine(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return a key of the caller's own."""
    return "mine"


def test_a_key_of_the_callers_own_holds_the_answer(store: Path) -> None:
    """It need not look like ours."""
    scripted = counting()
    own = run_brief.with_options(cache_key_fn=mine)
    assert in_a_flow(lambda: [number(own(BRIEF, ITEM, scripted)) for _ in range(2)]) == [1, 1]
    assert parse_record((store / "mine").read_bytes()) is not None


def test_inside_of_a_task_of_the_callers_the_function_is_just_a_function(store: Path) -> None:
    """What the caller's task returns is the caller's: it is stored as such, and no answer takes its place."""
    scripted = counting()

    @task(persist_result=True, cache_key_fn=mine)
    def theirs() -> str:
        return f"number {number(run_brief.fn(BRIEF, ITEM, scripted))}"

    assert in_a_flow(lambda: [theirs(), theirs()]) == ["number 1", "number 1"]
    assert parse_record((store / "mine").read_bytes()) is None


@pytest.mark.slow
def test_an_answer_expires(store: Path) -> None:
    """After the time that the task says; then it is asked again, and never read."""
    scripted = counting()
    lasting = run_brief.with_options(cache_expiration=timedelta(hours=1))
    assert in_a_flow(lambda: [number(lasting(BRIEF, ITEM, scripted)) for _ in range(2)]) == [1, 1]
    record = json.loads(path_of(scripted, store).read_bytes())
    assert record["metadata"]["expiration"]
    record["metadata"]["expiration"] = "2020-01-01T00:00:00Z"
    path_of(scripted, store).write_text(json.dumps(record))
    assert in_a_flow(lambda: number(lasting(BRIEF, ITEM, scripted))) == 2


@pytest.mark.slow
def test_an_answer_that_was_asked_again_replaces_the_old_one_at_once(store: Path) -> None:
    """In the same flow run too, where Prefect remembers what it has read."""
    scripted = counting()
    afresh = run_brief.with_options(refresh_cache=True)

    def script() -> list[int]:
        turns = (run_brief, run_brief, afresh, run_brief, afresh, run_brief)
        return [number(turn(BRIEF, ITEM, scripted)) for turn in turns]

    assert in_a_flow(script) == [1, 1, 2, 2, 3, 3]
    assert in_a_flow(lambda: number(run_brief(BRIEF, ITEM, scripted))) == 3


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Keep which."""
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what is to be called."""
        return os.mkdir, (str(self._path),)


def foreign(good: bytes, canary: Path, key: str) -> dict[str, bytes]:
    """Return what may stand in the place of an answer, and isn't one."""
    record = json.loads(good)
    answer = json.loads(record["result"])["prefect-dispatch-answer"]
    metadata = record["metadata"]

    def again(**changes: object) -> bytes:
        return json.dumps({**record, **changes}).encode()

    def stored(serializer: Any, thing: object) -> bytes:  # noqa: ANN401 -- a serializer of any kind
        kept = ResultStore(result_storage=LocalFileSystem(basepath=str(canary.parent)), serializer=serializer)
        return kept.create_result_record(thing, key).serialize()

    called = {"__class__": "os.mkdir", "data": {"path": str(canary)}}
    return {
        "empty": b"",
        "nul": b"\x00" * len(good),
        "json": b'{"answer": 42}',
        "list": b"[]",
        "deep": b"[" * 200_000,
        "deep-inside": again(result="[" * 200_000),
        "pickled": stored(PickleSerializer(), Canary(canary)),
        "pickled-answer": stored(PickleSerializer(), Answer(**answer)),
        "json-that-calls": again(metadata={**metadata, "serializer": {"type": "json"}}, result=json.dumps(called)),
        "imports": again(metadata={**metadata, "serializer": {"type": "pickle", "picklelib": "canary_of_ours"}}),
        "another-works": again(result=json.dumps({"prefect-dispatch-answer": {**answer, "fingerprint": "0" * 64}})),
        "nobodys": again(result=json.dumps({"prefect-dispatch-answer": {**answer, "fingerprint": ""}})),
        "wrong-fields": again(result=json.dumps({"prefect-dispatch-answer": {**answer, "attempts": 3}})),
        "an-error": again(result='{"error": "x"}'),
        "twice": good + good,
        "long-number": b"9" * 5000,
        **{f"cut-{length}": good[:length] for length in range(0, len(good), max(1, len(good) // 12))},
    }


@pytest.mark.slow
def test_what_is_no_answer_is_asked_again_and_runs_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, foreign, hostile, another's: replaced by an answer, which the next one finds."""
    (tmp_path / "canary_of_ours.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    canary = tmp_path / "canary"
    scripted = counting()
    path = path_of(scripted, store)

    def script() -> None:
        run_brief(BRIEF, ITEM, scripted)
        for calls, (name, content) in enumerate(foreign(path.read_bytes(), canary, path.name).items(), start=2):
            path.write_bytes(content)
            assert number(run_brief(BRIEF, ITEM, scripted)) == calls, name
            assert number(parse_record(path.read_bytes())) == calls, name
        assert number(run_brief(BRIEF, ITEM, scripted)) == scripted.calls

    in_a_flow(script)
    assert not canary.exists()
    assert "canary_of_ours" not in sys.modules


@pytest.mark.slow
def test_nobody_is_asked_where_the_answer_could_not_be_stored(store: Path) -> None:
    """A folder in its place, or a file in the place of the folder: an error that says so, and nothing is spent."""
    scripted = counting()
    limited = run_brief.with_options(retries=0)
    path = path_of(scripted, store)
    path.mkdir(parents=True)
    with pytest.raises(TransientError, match="result storage can't be") as caught:
        in_a_flow(lambda: limited(BRIEF, ITEM, scripted))
    assert caught.value.kind == "storage"
    path.rmdir()
    path.with_name(path.name + SUFFIX).mkdir()
    with pytest.raises(TransientError, match="can't be read: IsADirectoryError"):
        in_a_flow(lambda: limited(BRIEF, ITEM, scripted))
    assert scripted.calls == 0


def elsewhere(storage: Elsewhere) -> Task[[Brief, Item, ScriptedExecutor], Answer]:
    """Return the task with a storage elsewhere, which Prefect wants to know."""
    cast("Any", storage).save("elsewhere", overwrite=True)
    return cast("Task[[Brief, Item, ScriptedExecutor], Answer]", run_brief.with_options(result_storage=storage))


@pytest.mark.slow
def test_an_answer_that_cannot_be_stored_is_still_an_answer(
    prefect_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the next run has it from the draft."""
    full = [True]

    def watch(moment: str) -> None:
        if full and moment.startswith("to write") and not moment.endswith(SUFFIX):
            raise OSError("No space left on device")

    scripted = counting()
    kept_elsewhere = elsewhere(Elsewhere().watched(watch))

    def script() -> int:
        return number(kept_elsewhere(BRIEF, ITEM, scripted))

    assert in_a_flow(script) == 1
    assert "An answer could not be stored" in caplog.text
    full.clear()
    assert [in_a_flow(script) for _ in range(2)] == [1, 1]
    assert scripted.calls == 1


@pytest.mark.slow
def test_who_is_overtaken_waits_for_the_others_answer(prefect_server: None) -> None:
    """Another run on another machine has begun between the look and the call: nothing is sent, its answer is taken."""
    storage, scripted = Elsewhere(), counting()
    (work,) = build_work([BRIEF], [ITEM], scripted)
    key = f"prefect-dispatch-{work.fingerprint}"
    theirs = Answer(value={"n": 77}, fingerprint=work.fingerprint)
    store = ResultStore(result_storage=storage, serializer=AnswerSerializer())
    reads: list[str] = []

    def watch(moment: str) -> None:
        if moment != f"to read {key}{SUFFIX}":
            return
        reads.append(moment)
        draft = json.loads(storage.content.get(key + SUFFIX, b"{}"))
        if len(reads) == 3:  # to begin, to see that it was begun, and before the call
            draft["owner"]["host"] = "elsewhere"
            storage.content[key + SUFFIX] = json.dumps(draft).encode()
        if len(reads) == 4:  # they were at work; now they are done
            storage.content[key] = store.create_result_record(theirs, key).serialize()

    kept_elsewhere = elsewhere(storage.watched(watch))
    assert in_a_flow(lambda: number(kept_elsewhere(BRIEF, ITEM, scripted))) == 77
    assert scripted.calls == 0


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_storage_that_was_away_when_its_key_was_looked_up() -> None:
    """Nobody is asked for an answer that has no place; the next try has one."""

    class Shy:
        """Can't be told from others at first."""

        looked = calls = 0

        @property
        def fingerprint(self) -> str:
            self.looked += 1
            if self.looked == 1:
                raise TransientError("the bucket is away")
            return "shy"

        async def answer(self, ask: Ask) -> Reply:
            self.calls += 1
            return Reply(value={"key": ask.item.key})

    shy = Shy()

    @flow
    def ours() -> Answer:
        return run_brief.with_options(retries=1, retry_delay_seconds=0)(BRIEF, ITEM, shy)

    answer = ours()
    assert (answer.value, shy.calls) == ({"key": "a"}, 1)
