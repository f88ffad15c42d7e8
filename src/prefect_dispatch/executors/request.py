"""What goes out with a call of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.executors.local import is_local
from prefect_dispatch.executors.prompt import messages, response_format
from prefect_dispatch.executors.structured import shows_schema
from prefect_dispatch.formats import sendable
from prefect_dispatch.outputs import schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.executors.structured import Method

LOCAL_PARAMS: dict[str, JsonValue] = {"temperature": 0, "repeat_penalty": 1.15, "max_tokens": 512}
"""What a model on this machine is asked with unless `params` say otherwise: small ones ramble and repeat."""


TOOL = "answer"
"""The tool through which a model answers where the form is asked for in that way."""


def request_for(
    litellm: Any,  # noqa: ANN401 -- a module
    ask: Ask,
    model: str,
    params: Mapping[str, JsonValue],
    method: Method,
) -> dict[str, Any]:
    """Return the request for an ask, as litellm takes it; whom it goes to is still to be added.

    Args:
        litellm: The module.
        ask: What is asked.
        model: The model that is asked.
        params: The executor's own.
        method: How the form of the answer is asked for, where it is to be JSON.
    """
    schema, local = schema_of(ask.brief.output), is_local(model)
    request: dict[str, Any] = {
        **(LOCAL_PARAMS if local else {}),
        **params,
        "messages": messages(ask, schema_in_prompt=not shows_schema(litellm, method, model)),
        "num_retries": 0,
        "max_retries": 0,
    }
    if isinstance(seed := request.get("seed"), int) and ask.brief.sample > 1:
        request["seed"] = seed + ask.brief.sample - 1  # with one seed, all samples would be one answer
    if schema is not None:
        request.update(_form(schema, method))
    return request


def _form(schema: dict[str, Any], method: Method) -> dict[str, Any]:
    """Return the part of a request that asks for a form."""
    if method == "json_schema":
        return {"response_format": response_format(schema)}
    if method == "json_object":
        return {"response_format": {"type": "json_object"}}
    if method == "tools":
        function = {"name": TOOL, "description": "Give the answer.", "parameters": sendable(schema)}
        choice = {"type": "function", "function": {"name": TOOL}}
        return {"tools": [{"type": "function", "function": function}], "tool_choice": choice}
    return {}
