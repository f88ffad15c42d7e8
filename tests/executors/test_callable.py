"""Functions and agents of the user's as executors: what they get, what they may return, and what tells them apart."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from pydantic import BaseModel, Field, model_validator

from prefect_dispatch import Ask, Brief, Item, Limits, PythonCallable, Reply, Usage
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    InvalidOutput,
    JobError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Executor, fingerprint
from prefect_dispatch.flows.job_file import read_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from pydantic import JsonValue

ANY = '{"title": "Anything"}'
BRIEF = Brief(name="count", instructions="Count the words.", output=ANY)
ITEM = Item(key="a.txt", value="some words")


def called(function: object, item: Item = ITEM, brief: Brief = BRIEF, **limits: Any) -> JsonValue:  # noqa: ANN401 -- of any kind
    """Return what a function answers, by the way that every ask goes."""
    executor = PythonCallable(function, version="1")
    return asyncio.run(run_attempt(executor, brief, item, limits=Limits(**limits))).value


def asked(output: Any) -> Brief:  # noqa: ANN401 -- any form
    """Return a brief that asks for a form."""
    return Brief(name="a", instructions="b", output=output)


def takes_value(text: str) -> JsonValue:
    """Take the item's value."""
    return {"value": text}


def takes_item(item: Item) -> JsonValue:
    """Take the item."""
    return {"item": item.key}


def takes_named_item(thing: Item) -> JsonValue:
    """Take what the annotation says."""
    return {"item": thing.key}


def takes_ask(ask: Ask) -> JsonValue:
    """Take all of it."""
    return {"ask": ask.brief.name}


def takes_prompt(prompt: str) -> JsonValue:
    """Take what a model would be told."""
    return {"prompt": "Count the words." in prompt and "some words" in prompt}


def takes_prompt_by_name(*, prompt: str, model: str = "m") -> JsonValue:
    """Take it by its name alone."""
    return {"prompt": "Count the words." in prompt, "model": model}


def takes_any(*things: object, **more: object) -> JsonValue:
    """Take whatever comes."""
    return {"things": [*map(str, things)], **dict.fromkeys(more)}


async def takes_its_time(text: str) -> JsonValue:
    """Be a coroutine."""
    await asyncio.sleep(0)
    return {"value": text}


async def yields_it(text: str) -> AsyncIterator[JsonValue]:
    """Yield what comes before the answer, and then the answer."""
    yield "thinking"
    yield {"value": text}


def defers_it(text: str) -> object:
    """Return what is to be awaited."""
    return takes_its_time(text)


class Caller:
    """An object that can be called."""

    def __call__(self, item: Item) -> JsonValue:
        """Answer."""
        return {"item": item.key}

    def method(self, item: Item) -> JsonValue:
        """Answer, too."""
        return self(item)


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        pytest.param(takes_value, {"value": "some words"}, id="value"),
        pytest.param(takes_item, {"item": "a.txt"}, id="item"),
        pytest.param(takes_named_item, {"item": "a.txt"}, id="item by annotation"),
        pytest.param(takes_ask, {"ask": "count"}, id="ask"),
        pytest.param(takes_prompt, {"prompt": True}, id="prompt"),
        pytest.param(partial(takes_prompt_by_name, model="x"), {"prompt": True, "model": "x"}, id="by name alone"),
        pytest.param(takes_any, {"things": ["some words"]}, id="any number"),
        pytest.param(len, 10, id="builtin"),
        pytest.param(max, "w", id="one that doesn't tell"),
        pytest.param(takes_its_time, {"value": "some words"}, id="coroutine"),
        pytest.param(partial(takes_its_time), {"value": "some words"}, id="coroutine in a partial"),
        pytest.param(defers_it, {"value": "some words"}, id="awaitable"),
        pytest.param(yields_it, {"value": "some words"}, id="asynchronous generator"),
        pytest.param(Caller(), {"item": "a.txt"}, id="object"),
        pytest.param(Caller().method, {"item": "a.txt"}, id="method"),
        pytest.param(lambda text: [text], ["some words"], id="lambda"),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    ],
)
def test_a_function_gets_what_its_parameter_names(function: object, answer: JsonValue) -> None:
    """The ask, the item, the prompt or the value; whatever kind of function it is."""
    assert called(function) == answer


def generates(text: str) -> Iterator[str]:
    """Yield."""
    yield text


def takes_none() -> str:
    """Take nothing."""
    return ""


def takes_two(item: Item, brief: Brief) -> str:
    """Take too much."""
    return f"{item}{brief}"


def takes_other_name(*, text: str) -> str:
    """Take what nobody gives."""
    return text


@pytest.mark.parametrize(
    ("function", "told"),
    [
        pytest.param(3, "must be a function or an agent, not int", id="number"),
        pytest.param("os.system", "must be a function, an agent, or 'module:name' of one, not 'os.system'", id="text"),
        pytest.param(generates, "must return its answer, and not yield it", id="generator"),
        pytest.param(takes_none, "it has to take one thing: 'ask', 'item', 'prompt', or by any other", id="none"),
        pytest.param(takes_two, "it has to take one thing", id="two"),
        pytest.param(takes_other_name, "it has to take one thing", id="by an unknown name"),
        pytest.param(Item, "it has to take one thing", id="model"),
    ],
)
def test_what_cannot_answer_is_refused(function: object, told: str) -> None:
    """When the executor is made, in words that name the field."""
    with pytest.raises(ValueError, match=f"function\n  Value error, {told}"):
        PythonCallable(function)


class Said(BaseModel):
    """A model whose names in JSON are others."""

    words: int = Field(alias="n")
    day: date


@dataclass
class Counted:
    """What dataclasses hold."""

    words: tuple[int, ...]


class Array:
    """What NumPy has, as far as it is asked for."""

    def tolist(self) -> list[int]:
        """Return plain numbers."""
        return [1, 2]


def returning(value: object) -> Callable[[str], object]:
    """Return a function that returns something."""

    def returns(text: str) -> object:
        return value

    return returns


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        pytest.param(Said(n=2, day=date(2026, 1, 2)), {"n": 2, "day": "2026-01-02"}, id="model"),
        pytest.param(Counted((1, 2)), {"words": [1, 2]}, id="dataclass"),
        pytest.param([Array()], [[1, 2]], id="array"),
        pytest.param({1: (2, {3})}, {"1": [2, [3]]}, id="plain"),
        pytest.param({"messages": []}, {"messages": []}, id="no messages"),
        pytest.param({"messages": ["hello"]}, {"messages": ["hello"]}, id="messages of its own"),
        pytest.param(None, None, id="nothing"),
        pytest.param(Reply(value=["x"]), ["x"], id="reply"),
    ],
)
def test_what_is_returned_becomes_json(returned: object, value: JsonValue) -> None:
    """Models, dataclasses, arrays, dates; a reply is taken as it is."""
    assert called(returning(returned)) == value


def test_the_brief_rules_over_what_is_returned() -> None:
    """Schema and model of the brief hold for a function as for a model."""
    record = {"n": 2, "day": "2026-01-02"}
    assert called(returning(record), brief=asked(Said)) == {"words": 2, "day": "2026-01-02"}
    with pytest.raises(InvalidOutput, match=r"No valid answer in 1 asks\. \$: 'x' is not of type 'integer'"):
        called(returning("x"), brief=asked({"type": "integer"}))
    with pytest.raises(InvalidOutput, match=r"No valid answer in 1 asks\. \$: 1 is not of type 'object'"):
        called(returning("1"), brief=asked({"type": "object"}))


class Broken(BaseModel):
    """A model whose validator breaks."""

    @model_validator(mode="before")
    @classmethod
    def _breaks(cls, value: object) -> object:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("returned", "output", "value"),
    [
        pytest.param("red", {"enum": ["red"]}, "red", id="a text"),
        pytest.param("1", {"type": ["string", "integer"]}, "1", id="a text that is JSON"),
        pytest.param("1", {"type": "integer"}, 1, id="JSON"),
        pytest.param('{"a": 1}', {"type": "object"}, {"a": 1}, id="an object in JSON"),
        pytest.param("red", "text", "red", id="for text"),
    ],
)
def test_a_text_is_a_text_where_one_is_wanted(returned: str, output: Any, value: JsonValue) -> None:  # noqa: ANN401 -- a schema
    """Else it is read as JSON."""
    assert called(returning(returned), brief=asked(output)) == value


def test_a_broken_validator_stops_the_run() -> None:
    """As with any executor."""
    with pytest.raises(TerminalError, match="ZeroDivisionError"):
        called(returning("x"), brief=asked(Broken))


class Unsayable:
    """What JSON has nothing for."""


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        pytest.param(
            Unsayable(), "A Unsayable was returned, which JSON can't hold: .*no form for 'Unsayable'", id="own"
        ),
        pytest.param(b"\xff", "A bytes was returned, which JSON can't hold: ", id="bytes"),
        pytest.param(float("nan"), "The answer holds NaN", id="nan"),
    ],
)
def test_what_json_has_nothing_for_fails_the_item(returned: object, told: str) -> None:
    """It isn't retried: it would be the same again."""
    with pytest.raises(InvalidOutput, match=told):
        called(returning(returned))


def test_what_a_function_does_to_its_item_changes_nothing_else() -> None:
    """It gets a copy."""

    def spoil(value: dict[str, Any]) -> int:
        value.clear()
        return len(value)

    item = Item(key="a", value={"words": [1]})
    assert called(spoil, item) == 0
    assert item.value == {"words": [1]}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        pytest.param(ValueError("no words"), "error", "ValueError: no words", id="any"),
        pytest.param(ValueError("key sk-proj-0123456789abcdef"), "error", "ValueError: key ***", id="secret"),
        pytest.param(TransientError("later"), "transient", "later", id="worth a retry"),
        pytest.param(TerminalError("never", kind="credentials"), "credentials", "never", id="never"),
        pytest.param(SystemExit(3), "error", "SystemExit: 3", id="exit"),
        pytest.param(KeyboardInterrupt(), "error", "KeyboardInterrupt: ", id="interrupt"),
        pytest.param(StopIteration(), "error", "StopIteration: ", id="end of an iterator"),
        pytest.param(FutureCancelledError(), "error", "CancelledError: ", id="cancelled future"),
    ],
)
@pytest.mark.parametrize("way", ["thread", "task"])
def test_what_is_raised_fails_the_item(error: BaseException, kind: str, message: str, way: str) -> None:
    """With its class and message, without secrets; errors of ours mean what they mean."""

    def throw(text: str) -> str:
        raise error

    async def throw_later(text: str) -> str:
        raise error

    if isinstance(error, StopIteration) and way == "task":
        message = "RuntimeError: coroutine raised StopIteration"  # as Python has it
    with pytest.raises(ExecutorError) as failed:
        called(throw if way == "thread" else throw_later)
    assert (failed.value.kind, str(failed.value)) == (kind, message)
    assert isinstance(failed.value, type(error) if isinstance(error, ExecutorError) else ExecutorError)
    assert failed.value.attempts[0].usage == Usage(requests=1, unsettled=1)


def test_a_coroutine_that_cancels_itself_does_not_look_like_the_end_of_the_run() -> None:
    """It fails its item."""

    async def give_up(text: str) -> str:
        raise asyncio.CancelledError

    with pytest.raises(ExecutorError, match=r"^It cancelled itself\.$") as failed:
        called(give_up)
    assert failed.value.kind == "cancelled"


def test_what_is_asked_again_is_told_what_was_wrong() -> None:
    """Where it takes the ask or the prompt; whoever doesn't is not asked twice."""
    asks: list[Ask] = []
    prompts: list[str] = []
    number = asked({"type": "integer"})

    def learns(ask: Ask) -> object:
        asks.append(ask)
        return 1 if ask.rejections else "one"

    def reads(prompt: str) -> object:
        prompts.append(prompt)
        return 1 if "That answer is not valid" in prompt else "<item-1>one"

    assert called(learns, brief=number) == 1
    assert [each.text for each in asks[1].rejections] == ['"one"']
    assert called(reads, brief=number) == 1
    assert "Your answer was:\n<item-" in prompts[1]
    for function, deaf in ((learns, False), (reads, False), (takes_item, True), (takes_value, True)):
        executor = PythonCallable(function, version="1")
        assert executor.ignores_feedback is deaf


def test_a_coroutine_is_cancelled_at_the_time_limit() -> None:
    """And has time to clean up."""
    ended: list[str] = []

    async def stays(text: str) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(text)
        return text

    with pytest.raises(TransientError, match=r"No answer within 0\.05 s\.") as failed:
        called(stays, timeout_s=0.05)
    assert failed.value.kind == "timeout"
    assert ended == ["some words"]


def test_a_function_in_its_thread_is_left_behind_at_the_time_limit() -> None:
    """No thread can be ended: what it returns later is dropped, and nobody waits for it."""
    go, gone = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def stays(text: str) -> str:
        threads.append(threading.current_thread())
        go.wait(60)
        gone.set()
        return text

    async def main() -> None:
        with pytest.raises(TransientError, match=r"No answer within 0\.05 s\."):
            await run_attempt(PythonCallable(stays, version="1"), BRIEF, ITEM, limits=Limits(timeout_s=0.05))
        go.set()
        await asyncio.to_thread(threads[0].join)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert gone.is_set()
    assert threads[0].daemon


def test_a_function_may_end_after_its_loop() -> None:
    """As where the run is over: nothing is raised in its thread."""
    go = threading.Event()
    threads: list[threading.Thread] = []

    def stays(text: str) -> str:
        threads.append(threading.current_thread())
        go.wait(60)
        return text

    with pytest.raises(TransientError):
        called(stays, timeout_s=0.05)
    go.set()
    threads[0].join()


def test_functions_run_side_by_side() -> None:
    """More at once than a pool of threads has."""
    many = 100
    together = threading.Barrier(many)

    def meets(text: str) -> int:
        return together.wait(60)

    async def main() -> None:
        executor = PythonCallable(meets, version="1")
        async with anyio.create_task_group() as group:
            for _ in range(many):
                group.start_soon(executor.answer, Ask(brief=BRIEF, item=ITEM))

    asyncio.run(main())


def test_a_function_sees_the_context_that_it_is_called_in() -> None:
    """Such as that of Prefect's run: its log is where the task run's is."""
    where = contextvars.ContextVar[str]("where")

    def looks(text: str) -> str:
        return where.get()

    async def looks_later(text: str) -> str:
        return where.get()

    where.set("here")
    assert [called(looks), called(looks_later)] == ["here", "here"]


def test_a_busy_provider_is_waited_for() -> None:
    """What a function raises as busy is no attempt."""
    started = time.monotonic()

    def busy(text: str) -> object:
        if time.monotonic() - started < 0.05:
            raise BusyError("Later.", retry_after_s=0.05)
        return text

    answer = asyncio.run(run_attempt(PythonCallable(busy, version="1"), BRIEF, ITEM, limits=Limits()))
    assert answer.attempts[0].waits == 1


def test_an_executor_like_any_other() -> None:
    """It keeps the protocols that flows ask for; how it is called stands with the answer."""
    executor = PythonCallable(takes_value)
    assert isinstance(executor, Executor)
    assert executor.has_external_inputs
    reply = asyncio.run(executor.answer(Ask(brief=BRIEF, item=ITEM)))
    assert (reply.model, reply.usage) == ("takes_value", Usage(requests=1, cost_usd=None))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"command": {"run": "true"}}, "Brief 'a' has a command, and a Python function runs none: set the executor's"),
        ({"split": {"by": "lines"}}, "Brief 'a': 'split' is for language models; leave it out."),
    ],
    ids=["command", "split"],
)
def test_a_brief_that_it_cannot_answer_is_refused(more: dict[str, Any], told: str) -> None:
    """Before anything is asked."""
    brief = Brief.model_validate({"name": "a", "instructions": "b", **more})
    with pytest.raises(JobError, match=told):
        PythonCallable(takes_value).require_supported([brief])
    PythonCallable(takes_value).require_supported([BRIEF])


def test_a_name_is_looked_up_in_the_jobs_folder(tmp_path: Path) -> None:
    """And nowhere else; as data it is its name again."""
    (tmp_path / "placed_worker.py").write_text("def double(n):\n    return 2 * n\nTWO = 2\n")
    executor = PythonCallable.model_validate({"function": "placed_worker:double"})
    placed = executor.resolve_paths(tmp_path)
    assert asyncio.run(placed.answer(Ask(brief=BRIEF, item=Item(key="a", value=4)))).value == 8
    assert placed.model_dump(mode="json") == executor.model_dump(mode="json")
    assert PythonCallable(function=placed.function).fingerprint == placed.fingerprint
    assert fingerprint(BRIEF, ITEM, placed) == fingerprint(BRIEF, ITEM, PythonCallable(placed.function))
    for name, told in (
        ("os:getcwd", "executor.function: 'os:getcwd' is not code of yours: no module 'os' lies below"),
        ("placed_worker:triple", "executor.function: 'placed_worker:triple' can't be loaded: AttributeError"),
        ("placed_worker:TWO", "executor.function: 'placed_worker:TWO' must be a function or an agent, not int."),
    ):
        with pytest.raises(JobError, match=told):
            PythonCallable(name).resolve_paths(tmp_path)


def test_a_name_that_nobody_has_placed_is_looked_up_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for any executor."""
    (tmp_path / "unplaced_worker.py").write_text("def double(n):\n    return 2 * n\n")
    monkeypatch.chdir(tmp_path)
    executor = PythonCallable("unplaced_worker:double")
    assert asyncio.run(executor.answer(Ask(brief=BRIEF, item=Item(key="a", value=4)))).value == 8
    assert executor.fingerprint == executor.resolve_paths(tmp_path).fingerprint
    assert executor.external_inputs(BRIEF, ITEM) == executor.resolve_paths(tmp_path).external_inputs(BRIEF, ITEM)


def identity(function: Callable[..., Any], brief: Brief = BRIEF, item: Item = ITEM, folder: Path | None = None) -> str:
    """Return the identity of a piece of work."""
    executor = PythonCallable(function)
    return fingerprint(brief, item, executor.resolve_paths(folder) if folder else executor)


def test_equal_values_are_one_work_for_whoever_sees_no_key(tmp_path: Path) -> None:
    """A function that sees the key, the priority or the brief's name may answer by them."""
    other = Item(key="b.txt", value=ITEM.value)
    assert identity(takes_value) == identity(takes_value, item=other)
    assert identity(takes_prompt) == identity(takes_prompt, item=other)
    assert identity(takes_item) != identity(takes_item, item=other)
    assert identity(takes_item) != identity(takes_item, item=ITEM.model_copy(update={"priority": 1}))
    renamed = BRIEF.model_copy(update={"name": "other"})
    assert identity(takes_item) == identity(takes_item, renamed)
    assert identity(takes_ask) != identity(takes_ask, renamed)


def test_the_content_of_files_that_a_brief_reads_counts(tmp_path: Path) -> None:
    """As for a shell; once a run."""
    brief = BRIEF.model_copy(update={"reads": ("rules.txt",)})
    file = tmp_path / "rules.txt"
    file.write_text("one")
    executor = PythonCallable(takes_value).resolve_paths(tmp_path)
    before = fingerprint(brief, ITEM, executor)
    file.write_text("two")
    assert fingerprint(brief, ITEM, executor) == before
    assert fingerprint(brief, ITEM, executor.resolve_paths(tmp_path)) != before


def test_a_model_named_on_the_way_would_not_be_asked(tmp_path: Path) -> None:
    """That is refused, as for a shell."""
    job = {"briefs": [{"name": "a", "instructions": "b"}], "items": ["a"], "executor": {"kind": "python"}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(
        JobError, match="--model: 'openai/x' would not be asked, as this job's executor is a Python fun"
    ):
        read_job(tmp_path / "job.json", model="openai/x")
