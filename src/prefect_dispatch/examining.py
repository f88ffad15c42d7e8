"""What a reply is worth: its value as it would be kept, and what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prefect_dispatch.errors import ExecutorError, InvalidOutput, RejectedError, TerminalError
from prefect_dispatch.executors.base import without_secrets
from prefect_dispatch.outputs import problems
from prefect_dispatch.scrub import scrub, told
from prefect_dispatch.withhold import hushed

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.checks import Check
    from prefect_dispatch.executors.base import Reply
    from prefect_dispatch.models import Answer, Brief, Item

EMPTY = "The answer was empty."
TRUNCATED = "The answer was cut off at the length limit; give a shorter one."


class BrokenCheckError(TerminalError):
    """A check or a validator of the user's own raised: no other model would do better."""


def examine(brief: Brief, item: Item, reply: Reply) -> tuple[JsonValue, list[str]]:
    """Return a reply's value as it would be kept, and what is wrong with it.

    Raises:
        RejectedError: If the agent declined.
        TerminalError: If a check or a validator of the user's own breaks.
    """
    if reply.finish == "refused":
        raise RejectedError(_declined(text_of(reply.value)), kind="refused")
    if reply.finish == "truncated":
        return reply.value, [TRUNCATED]
    value, wrong = _examined(brief, item, reply.value)
    return value, list(map(scrub, [*wrong, *reply.problems]))


def _examined(brief: Brief, item: Item, said: JsonValue) -> tuple[JsonValue, list[str]]:
    if (said is None and brief.output == "text") or (isinstance(said, str) and not said.strip()):
        return said, [EMPTY]
    try:
        value, wrong = problems(brief.output, said)
    except (Exception, SystemExit) as error:  # a validator may be the user's; a broken one is broken for every item
        raise BrokenCheckError(f"The output's validation raised {told(error)}") from error
    return value, wrong or [found for check in brief.checks if (found := _checked(check, value, item))]


def recall(brief: Brief, item: Item, answer: Answer) -> tuple[JsonValue, list[str]]:
    """Return the value of a stored answer as the brief wants it today, and what is wrong with it.

    A check or a model may call code that no fingerprint sees, and a store may be damaged: what is
    reused is examined as if it had just come.

    Raises:
        TerminalError: If a check of the user's own breaks.
    """
    try:
        return _examined(brief, item, without_secrets(answer.value if answer.said is None else answer.said))
    except ExecutorError as error:
        raise hushed(error, item) from None


def invalid(wrong: list[str], asked: int) -> InvalidOutput:
    """Return the error of an agent that gave no valid answer, by what was wrong with its last one."""
    kind = {TRUNCATED: "truncated", EMPTY: "empty"}.get(wrong[0])
    shown = " ".join(wrong[:5])
    return InvalidOutput(f"No valid answer in {asked} asks. {shown}", problems=wrong, kind=kind)


def text_of(value: JsonValue) -> str:
    """Return an answer as text that can be sent back, whatever is wrong with it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return scrub(text)


def _declined(text: str) -> str:
    if reply := text.strip():
        return f"The agent declined: {reply[:200]!r}."
    return "The agent declined and said nothing, as where its provider's content filter stops it."


def _checked(check: Check, value: JsonValue, item: Item) -> str | None:
    try:
        return check.problem(value, item)
    except BaseException as error:  # a check may be the user's function; a broken one is broken for every item
        raise BrokenCheckError(f"The check {check.kind!r} raised {told(error)}") from error
