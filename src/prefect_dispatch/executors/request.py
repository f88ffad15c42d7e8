"""What goes out with a call of a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dispatch.executors.local import is_local
from prefect_dispatch.executors.prompt import messages, response_format
from prefect_dispatch.outputs import schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask

LOCAL_PARAMS: dict[str, JsonValue] = {"temperature": 0, "repeat_penalty": 1.15, "max_tokens": 512}
"""What a model on this machine is asked with unless `params` say otherwise: small ones ramble and repeat."""


def request_for(litellm: Any, ask: Ask, model: str, params: Mapping[str, JsonValue]) -> dict[str, Any]:  # noqa: ANN401 -- a module
    """Return the request for an ask, as litellm takes it; whom it goes to is still to be added."""
    schema, local = schema_of(ask.brief.output), is_local(model)
    enforced = schema is not None and (local or bool(litellm.supports_response_schema(model=model)))
    request: dict[str, Any] = {
        **(LOCAL_PARAMS if local else {}),
        **params,
        # llama.cpp keeps to the schema, but doesn't show it to the model.
        "messages": messages(ask, schema_in_prompt=local or not enforced),
        "num_retries": 0,
        "max_retries": 0,
    }
    if isinstance(seed := request.get("seed"), int) and ask.brief.sample > 1:
        request["seed"] = seed + ask.brief.sample - 1  # with one seed, all samples would be one answer
    if enforced and schema is not None:
        request["response_format"] = response_format(schema)
    return request
