"""One attempt: ask, validate, check, and send back what is invalid."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from pydantic import BaseModel, field_validator

from prefect_dispatch.calls.attempt import EMPTY, MAX_OVERTAKEN, TRUNCATED, run_attempt
from prefect_dispatch.calls.call_gate import CallGate
from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    InvalidOutput,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Function, MaxWords
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import (
    LONGEST_PROBLEM,
    LONGEST_TEXT,
    MOST_PROBLEMS,
    Attempt,
    Change,
    Rejection,
    Usage,
)
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Answer

ITEM = Item(key="k", value={"title": "T"})
TEXT = Brief(name="a", instructions="Say {title}.")
NUMBER = Brief(name="a", instructions="Count.", output='{"type": "object", "required": ["n"]}')


def script(*replies: Reply | JsonValue | Exception) -> ScriptedExecutor:
    """An executor that says one after the other, and raises what is an error."""
    left = list(replies)

    def say(_: Ask) -> Reply | JsonValue:
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    return ScriptedExecutor(say)


def ask(executor: Any, brief: Brief = TEXT, *, reasks: int = 2, timeout_s: float = 60) -> Answer:  # noqa: ANN401 -- may be none
    """One attempt, to its end."""

    async def run() -> Answer:
        return await run_attempt(executor, brief, ITEM, limits=Limits(reasks=reasks, timeout_s=timeout_s))

    return anyio.run(run)


def fail(executor: Any, brief: Brief = TEXT, *, reasks: int = 2, timeout_s: float = 60) -> ExecutorError:  # noqa: ANN401 -- may be none
    """The error of one attempt, which always says what was spent."""
    with pytest.raises(ExecutorError) as failed:
        ask(executor, brief, reasks=reasks, timeout_s=timeout_s)
    (only,) = failed.value.attempts
    assert only.error == f"{failed.value.kind}: {failed.value}"
    return failed.value


def test_what_the_executor_itself_found_wrong_is_sent_back_with_its_work() -> None:
    """The next ask says what was wrong, and has what was changed before; the answer keeps the last change."""
    first, second = (Change(base="0" * 40, tree=number * 40) for number in "12")
    scripted = script(
        Reply(value="one", change=first, problems=("The tests fail.",)), Reply(value="two", change=second)
    )
    answer = ask(scripted)
    assert (answer.value, answer.change) == ("two", second)
    assert [each.change for each in scripted.asks] == [None, first]
    assert scripted.asks[1].rejections == (Rejection(text="one", problems=("The tests fail.",)),)


def test_what_the_executor_found_wrong_is_told_beside_an_empty_answer() -> None:
    """Neither hides the other, and no secret is told."""
    error = fail(script(Reply(value="", problems=("No key sk-proj-0123456789",))), reasks=0)
    assert (error.kind, str(error)) == ("empty", f"No valid answer in 1 asks. {EMPTY} No key ***")


def test_a_valid_answer() -> None:
    """The agent is asked once, with the item's fields in place, and its answer is kept with what it took."""
    scripted = script(Reply(value="T", model="m", usage=Usage(requests=1, prompt_tokens=3)))
    answer = ask(scripted)
    assert (answer.value, answer.model) == ("T", "m")
    (only,) = answer.attempts
    assert (only.usage, only.reasks, only.error) == (Usage(requests=1, prompt_tokens=3), 0, None)
    assert [each.brief.instructions for each in scripted.asks] == ["Say T."]


@pytest.mark.parametrize(
    ("brief", "replies", "rejected", "problems"),
    [
        pytest.param(NUMBER, ["One.", '{"n": 1}'], ["One."], ["The answer is not JSON: "], id="no-json"),
        pytest.param(
            NUMBER, ['{"n": 1, "n": 2}', '{"n": 2}'], ['{"n": 1, "n": 2}'], ["The answer can't be taken: "], id="twice"
        ),
        pytest.param(NUMBER, [{"m": 1}, {"n": 1}], ['{"m": 1}'], ["$: 'n' is a required"], id="not-the-schema"),
        pytest.param(TEXT, [" \n", "T"], [" \n"], [EMPTY], id="empty"),
        pytest.param(TEXT, [None, "T"], ["null"], [EMPTY], id="nothing"),
        pytest.param(TEXT, [Reply(value="T", finish="truncated"), "T"], ["T"], [TRUNCATED], id="cut-off"),
        pytest.param(TEXT, ["\ud83d", "T"], ["?"], ["The answer holds half of a character"], id="half-a-character"),
        pytest.param(TEXT, [float("nan"), "T"], ["NaN"], ["The answer holds NaN"], id="nan"),
        pytest.param(
            TEXT.model_copy(update={"checks": (MaxWords(words=1),)}),
            ["T T", "T"],
            ["T T"],
            ["the answer has 2 words"],
            id="a-check",
        ),
    ],
)
def test_an_invalid_answer_is_sent_back(
    brief: Brief, replies: Sequence[JsonValue], rejected: list[str], problems: list[str]
) -> None:
    """The agent is told what it said and what was wrong with it, and the usage of all asks is summed."""
    scripted = script(*replies)
    (only,) = ask(scripted, brief).attempts
    assert (only.usage.requests, only.reasks) == (2, 1)
    told = scripted.asks[1].rejections
    assert [each.text for each in told] == rejected
    assert all(each.problems[0].startswith(start) for each, start in zip(told, problems, strict=True))
    assert only.rejections == told


def test_what_was_invalid_is_kept_cut() -> None:
    """An attempt keeps every invalid answer, the last one as well, cut to a length; the agent hears it whole."""
    brief = NUMBER.model_copy(update={"checks": ()})
    scripted = script("word " * 1000, "no")
    (only,) = fail(scripted, brief, reasks=1).attempts
    assert [len(each.text) for each in only.rejections] == [LONGEST_TEXT, 2]
    assert len(scripted.asks[1].rejections[0].text) == 5000
    many = Rejection(text="", problems=("p" * 1000,) * 100).truncated.problems
    assert (len(many), {len(each) for each in many}) == (MOST_PROBLEMS, {LONGEST_PROBLEM})


def test_an_attempt_says_when_it_started() -> None:
    """The time has its zone; an attempt that an earlier version stored has none, and is read all the same."""
    before = datetime.now(timezone.utc)
    (only,) = ask(script("T")).attempts
    assert only.started is not None
    assert before <= only.started <= datetime.now(timezone.utc)
    stored = '{"usage": {"requests": 1}, "reasks": 0, "seconds": 1.5, "waited_s": 0.0, "error": null}'
    earlier = Attempt.model_validate_json(stored)
    assert (earlier.started, earlier.rejections) == (None, ())


@pytest.mark.parametrize(
    ("replies", "kind", "problem"),
    [
        pytest.param(["x", "y", "z"], "invalid_output", "The answer is not JSON", id="invalid"),
        pytest.param(["", "", ""], "empty", EMPTY, id="empty"),
        pytest.param([Reply(value="x", finish="truncated")] * 3, "truncated", TRUNCATED, id="cut-off"),
    ],
)
def test_the_re_asks_end(replies: list[JsonValue], kind: str, problem: str) -> None:
    """An agent that never answers as asked costs so many re-asks and no more."""
    scripted = script(*replies)
    error = fail(scripted, NUMBER)
    assert isinstance(error, InvalidOutput)
    assert (error.kind, error.problems[0].startswith(problem)) == (kind, True)
    assert str(error).startswith("No valid answer in 3 asks. ")
    assert (scripted.calls, error.attempts[0].usage.requests, error.attempts[0].reasks) == (3, 3, 2)


@pytest.mark.parametrize(
    ("raised", "kind", "requests"),
    [
        pytest.param(TransientError("busy"), "transient", 2, id="transient"),
        pytest.param(TerminalError("wrong key", usage=Usage()), "terminal", 1, id="terminal-before-the-call"),
        pytest.param(RejectedError("too long", kind="too_long"), "too_long", 2, id="rejected"),
        pytest.param(KeyError("x"), "error", 2, id="anybodys-code"),
        pytest.param(TimeoutError("inside"), "error", 2, id="its-own-time-out"),
    ],
)
def test_what_an_executor_raises(raised: Exception, kind: str, requests: int) -> None:
    """Errors of an executor end the attempt; what was spent before counts, and so does the failed call."""
    error = fail(script("no json", raised), NUMBER)
    assert (error.kind, error.attempts[0].usage.requests, error.attempts[0].reasks) == (kind, requests, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param("I can't.", 'The agent declined: "I can\'t.".', id="says-why"),
        pytest.param(" ", "The agent declined without a text, as where its provider's content filter", id="silent"),
    ],
)
def test_a_refusal_is_not_argued_with(words: str, told: str) -> None:
    """An agent that declines is not asked again."""
    scripted = script(Reply(value=words, finish="refused"))
    error = fail(scripted)
    assert isinstance(error, RejectedError)
    assert str(error).startswith(told)
    assert (error.kind, scripted.calls) == ("refused", 1)


def test_time_ends() -> None:
    """An attempt that takes too long is cancelled wherever it is; the call under way counts as sent."""
    stopped: list[str] = []

    async def sleep() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append("stopped")
        return ""

    error = fail(ScriptedExecutor(lambda _: sleep()), timeout_s=0.01)
    assert isinstance(error, TransientError)
    assert (str(error), error.kind) == ("No answer within 0.01 s.", "timeout")
    assert (error.attempts[0].usage.requests, stopped) == (1, ["stopped"])


class Broken(BaseModel):
    """A model whose validator breaks."""

    n: int

    @field_validator("n")
    @classmethod
    def _divide(cls, n: int) -> int:
        return n // 0


def broken(value: Any, item: Item) -> str:  # noqa: ANN401 -- any JSON
    """A check that breaks."""
    return f"{item.key}: {value['nowhere']}"


class Untyped:
    """An executor that doesn't keep to the contract."""

    fingerprint = "untyped"

    async def answer(self, ask: Ask) -> str:
        """Return what isn't a reply."""
        return ask.item.key


@pytest.mark.parametrize(
    ("executor", "brief", "message"),
    [
        pytest.param(
            script("T"),
            TEXT.model_copy(update={"checks": (Function(function=broken),)}),
            "The check 'function' raised TypeError: ",
            id="check",
        ),
        pytest.param(
            script('{"n": 1}'),
            Brief(name="a", instructions="Count.", output=Broken),
            "The output's validation raised ZeroDivisionError: ",
            id="validator",
        ),
        pytest.param(Untyped(), TEXT, "The executor returned a str instead of a Reply.", id="executor"),
    ],
)
def test_code_that_breaks_for_every_item(executor: object, brief: Brief, message: str) -> None:
    """A check, a validator or an executor that is broken itself stops the fan-out."""
    error = fail(executor, brief)
    assert isinstance(error, TerminalError)
    assert str(error).startswith(message)


@pytest.mark.slow
def test_a_call_that_is_refused_while_others_pass_is_given_up() -> None:
    """It isn't the provider that is busy: the item fails, and holds nobody back for as long as `wait_s` allows."""
    limits = Limits(concurrency=1)

    def say(ask: Ask) -> str:
        if ask.item.key == "k":
            raise BusyError("too many tokens at once", retry_after_s=0.01)
        return "fine"

    caught: list[ExecutorError] = []

    async def run() -> None:
        gate, scripted, over = CallGate(limits), ScriptedExecutor(say), anyio.Event()

        async def others() -> None:
            while not over.is_set():
                await run_attempt(scripted, TEXT, ITEM.model_copy(update={"key": "other"}), limits=limits, gate=gate)

        async with anyio.create_task_group() as group:
            group.start_soon(others)
            with pytest.raises(BusyError) as refused:
                await run_attempt(scripted, TEXT, ITEM, limits=limits, gate=gate)
            over.set()
            caught.append(refused.value)

    anyio.run(run)
    (only,) = caught[0].attempts
    assert only.waits >= MAX_OVERTAKEN
    assert only.usage.requests == only.waits + 1
