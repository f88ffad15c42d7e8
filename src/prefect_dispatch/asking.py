"""One attempt: ask, validate, check, and send back what is invalid."""

from __future__ import annotations

import json
import time
from asyncio import CancelledError
from typing import TYPE_CHECKING

import anyio

from prefect_dispatch.errors import ExecutorError, InvalidOutput, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Rejection, Reply
from prefect_dispatch.models import Answer, Attempt, Brief, Item, Usage
from prefect_dispatch.outputs import problems
from prefect_dispatch.scrub import scrub, told

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.checks import Check
    from prefect_dispatch.executors.base import Executor

EMPTY = "The answer was empty."
TRUNCATED = "The answer was cut off at the length limit; give a shorter one."


async def attempt(executor: Executor, brief: Brief, item: Item, *, reasks: int, timeout_s: float) -> Answer:
    """Return a valid answer, from one attempt.

    Args:
        executor: Who is asked.
        brief: What is asked.
        item: What it is asked about.
        reasks: How often an invalid answer is sent back.
        timeout_s: Seconds after which the attempt is cancelled, whatever it is doing.

    Returns:
        The answer; its one attempt holds the usage of all calls.

    Raises:
        ExecutorError: If there is no valid answer; its attempt holds what was spent.
    """
    said = brief.rendered(item)
    start = time.monotonic()
    rejections: list[Rejection] = []
    spent: list[Usage] = []
    try:
        with anyio.fail_after(timeout_s):
            while True:
                reply = await _call(executor, Ask(brief=said, item=item, rejections=tuple(rejections)))
                spent.append(reply.usage)
                value, wrong = examine(brief, item, reply)
                if not wrong:
                    break
                if len(rejections) == reasks:
                    raise _invalid(wrong, asked=reasks + 1)
                rejections.append(Rejection(text=_text(reply.value), problems=tuple(wrong)))
    except TimeoutError:
        spent.append(Usage(requests=1))  # the call under way: sent, and never answered
        error: ExecutorError = TransientError(f"No answer within {timeout_s:g} s.", kind="timeout")
        raise _ended(error, spent, rejections, start) from None
    except ExecutorError as error:
        raise _ended(error, [*spent, error.usage or Usage()], rejections, start) from error.__cause__
    done = Attempt(usage=sum(spent, Usage()), reasks=len(rejections), seconds=_since(start))
    heard = reply.value if isinstance(brief.output, type) else None
    return Answer(value=value, said=heard, model=reply.model, attempts=(done,))


def examine(brief: Brief, item: Item, reply: Reply) -> tuple[JsonValue, list[str]]:
    """Return a reply's value as it would be kept, and what is wrong with it.

    Raises:
        RejectedError: If the agent declined.
        TerminalError: If a check or a validator of the user's own breaks.
    """
    if reply.finish == "refused":
        raise RejectedError(f"The agent declined: {_text(reply.value)[:200]!r}.", kind="refused")
    if reply.finish == "truncated":
        return reply.value, [TRUNCATED]
    if (reply.value is None and brief.output == "text") or (isinstance(reply.value, str) and not reply.value.strip()):
        return reply.value, [EMPTY]
    try:
        value, wrong = problems(brief.output, reply.value)
    except Exception as error:  # a model may hold validators of the user's; a broken one is broken for every item
        raise TerminalError(f"The output's validation raised {told(error)}") from error
    if not wrong:
        wrong = [found for check in brief.checks if (found := _checked(check, value, item))]
    return value, list(map(scrub, wrong))


def recall(brief: Brief, item: Item, answer: Answer) -> tuple[JsonValue, list[str]]:
    """Return the value of a stored answer as the brief wants it today, and what is wrong with it.

    A check or a model may call code that no fingerprint sees, and a store may be damaged: what is
    reused is examined as if it had just come.

    Raises:
        TerminalError: If a check of the user's own breaks.
    """
    return examine(brief, item, Reply(value=answer.value if answer.said is None else answer.said))


async def _call(executor: Executor, ask: Ask) -> Reply:
    try:
        reply = await executor.answer(ask)
    except ExecutorError as error:
        error.usage = error.usage or Usage(requests=1)
        raise
    except (CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # an executor may be anybody's code; its failure, an exit included, is this item's
        raise ExecutorError(told(error), usage=Usage(requests=1)) from error
    if not isinstance(reply, Reply):  # pyright: ignore[reportUnnecessaryIsInstance] -- an executor may be untyped
        raise TerminalError(f"The executor returned a {type(reply).__name__} instead of a Reply.")
    return reply


def _checked(check: Check, value: JsonValue, item: Item) -> str | None:
    try:
        return check.problem(value, item)
    except BaseException as error:  # a check may be the user's function; a broken one is broken for every item
        raise TerminalError(f"The check {check.kind!r} raised {told(error)}") from error


def _invalid(wrong: list[str], asked: int) -> InvalidOutput:
    kind = {TRUNCATED: "truncated", EMPTY: "empty"}.get(wrong[0])
    shown = " ".join(wrong[:5])
    return InvalidOutput(f"No valid answer in {asked} asks. {shown}", problems=wrong, kind=kind)


def _ended(error: ExecutorError, spent: list[Usage], rejections: list[Rejection], start: float) -> ExecutorError:
    error.attempts = (
        Attempt(
            usage=sum(spent, Usage()),
            reasks=len(rejections),
            seconds=_since(start),
            error=f"{error.kind}: {error}",
        ),
    )
    return error


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)


def _text(value: JsonValue) -> str:
    """Return an answer as text that can be sent back, whatever is wrong with it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()
