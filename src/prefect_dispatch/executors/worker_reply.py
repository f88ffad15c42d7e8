"""What a function or an agent of the user's returned, as a reply: its value as JSON, and what it took if that is told.

The frameworks are no dependency: what they return is known by the attributes that it has.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import to_jsonable_python

from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    InvalidOutput,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models import Usage
from prefect_dispatch.outputs import problems, read_json
from prefect_dispatch.scrub import scrub, told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from prefect_dispatch.outputs import Output

UNKNOWN = Usage(requests=1, cost_usd=None)
"""What was spent, as far as anybody knows."""
LONGEST = 1_000
"""Characters that are told of what an agent says went wrong."""
_SERVER = 500
_REFUSALS: Mapping[int, tuple[type[ExecutorError], str]] = {
    401: (TerminalError, "credentials"),
    402: (TerminalError, "quota"),
    403: (TerminalError, "credentials"),
    404: (TerminalError, "model"),
    429: (BusyError, "rate_limit"),
    529: (BusyError, "overloaded"),
}


def reply_of(result: object, name: str, output: Output = "text") -> Reply:
    """Return what was returned as a reply.

    Args:
        result: A `Reply`, the result of a run of pydantic-ai, the state or the message that LangGraph or LangChain
            ends with, the last message of the Claude Agent SDK; or any value: a pydantic model, a dataclass, JSON.
        name: Who answered, where the result doesn't say.
        output: The form that is asked for. A text that is wanted as such is one, be it JSON or not; a model's is JSON.

    Raises:
        ExecutorError: If the result says that it failed.
        InvalidOutput: If JSON can't hold it.

    Example:
        >>> reply_of({"words": 3}, "count").value
        {'words': 3}
    """
    if isinstance(result, Reply):
        return result
    said = _of_a_framework(result, name)
    reply = said or Reply(value=as_json(result), model=name, usage=UNKNOWN)
    if not isinstance(reply.value, str) or output == "text":
        return reply
    value = _in_form(reply.value, json.dumps(reply.value), output, first=not said)
    return reply.model_copy(update={"value": value})


def _in_form(text: str, quoted: str, output: Output, *, first: bool) -> str:
    """Return a text, or as JSON, whichever is of the form that is asked for; where both are, as JSON if that is first.

    Where neither is, it is what makes the better message.
    """
    for value in (quoted, text) if first else (text, quoted):
        with suppress(Exception):  # a broken validator is told of where answers are examined
            if not problems(output, value)[1]:
                return value
    with suppress(ValueError):
        read_json(text)
        return text
    return quoted if first else text


def _of_a_framework(result: object, name: str) -> Reply | None:
    """Return what a framework's result says, or None if it is none's."""
    if _has(result, "is_error", "num_turns", "total_cost_usd", "session_id"):
        return _of_claude(result, name)
    if _has(result, "output", "usage", "all_messages"):
        return _of_pydantic_ai(result, name)
    if _has(result, "content", "usage_metadata"):
        return _of_messages([result], None, name)
    state = _state(result)
    if state and _has(state["messages"][-1], "content", "type"):
        return _of_messages(state["messages"], state.get("structured_response"), name)
    return None


def as_json(value: object) -> JsonValue:
    """Return a value as JSON.

    Raises:
        InvalidOutput: If JSON can't hold it.
    """
    try:
        return cast("JsonValue", to_jsonable_python(value, fallback=_plain))
    except (Exception, SystemExit) as error:  # a model's own code may serialise it
        wrong = f"A {type(value).__name__} was returned, which JSON can't hold: {told(error)}"
        raise InvalidOutput(wrong, problems=[wrong]) from error


def _plain(value: Any) -> object:  # noqa: ANN401 -- an array or a number of NumPy's, or what JSON has nothing for
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    msg = f"there is no form for {type(value).__name__!r}"
    raise TypeError(msg)


def _state(value: object) -> dict[str, Any]:
    """Return the state that a graph ended with, if it holds messages."""
    state = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    messages = state.get("messages")
    return state if isinstance(messages, list) and messages else {}


def _has(value: object, *names: str) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _of_pydantic_ai(result: Any, name: str) -> Reply:  # noqa: ANN401 -- a library's that needn't be there
    usage: Any = result.usage if hasattr(result.usage, "requests") else result.usage()  # a method before version 2
    cost = getattr(usage, "cost", None)
    spent = Usage(
        requests=usage.requests,
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        cost_usd=None if cost is None else float(cost),
    )
    model = getattr(getattr(result, "response", None), "model_name", None)
    return Reply(value=as_json(result.output), model=model or name, usage=spent)


def _of_messages(messages: list[Any], structured: object, name: str) -> Reply:
    """Return the last of some messages; what it took is what all of the model's took."""
    said = [each for each in messages if each.type == "ai"]
    counts: list[Mapping[str, int]] = [each.usage_metadata for each in said if each.usage_metadata]
    spent = Usage(
        requests=len(said),
        prompt_tokens=sum(each["input_tokens"] for each in counts),
        completion_tokens=sum(each["output_tokens"] for each in counts),
        cost_usd=None,
        unsettled=len(said) - len(counts),
    )
    text = messages[-1].text
    value = (text if isinstance(text, str) else text()) if structured is None else structured
    model = said[-1].response_metadata.get("model_name") if said else None
    return Reply(value=as_json(value), model=model or name, usage=spent)


def _of_claude(end: Any, name: str) -> Reply:  # noqa: ANN401 -- a library's that needn't be there
    counts: Mapping[str, Any] = end.usage or {}
    spent = Usage(
        requests=1,
        prompt_tokens=sum(
            counts.get(kind) or 0 for kind in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        ),
        completion_tokens=counts.get("output_tokens") or 0,
        cost_usd=end.total_cost_usd,
        unsettled=int(not counts),
    )
    structured = getattr(end, "structured_output", None)
    if not end.is_error:
        value = end.result if structured is None else structured
        return Reply(value=as_json(value), model=next(iter(getattr(end, "model_usage", None) or ()), name), usage=spent)
    status = getattr(end, "api_error_status", None)
    said = scrub("; ".join([*(getattr(end, "errors", None) or ()), *filter(None, [end.result])]))[:LONGEST]
    error, kind = (RejectedError, end.subtype) if status is None else _refusal(status)
    raise error(f"{name!r} failed: {said or end.subtype}", kind=kind, usage=spent)


def _refusal(status: int) -> tuple[type[ExecutorError], str]:
    return _REFUSALS.get(status) or ((TransientError, "server") if status >= _SERVER else (RejectedError, "rejected"))
