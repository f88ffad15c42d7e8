"""What goes with each call of a language model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, JsonValue, PlainSerializer, WithJsonSchema

from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.scrub import is_secret_name

if TYPE_CHECKING:
    from collections.abc import Iterator

RESERVED = frozenset(
    {"model", "messages", "api_base", "base_url", "response_format", "stream", "n", "timeout", "num_retries"}
    | {"max_retries", "retry_policy", "fallbacks", "caching", "mock_response", "headers", "extra_headers"}
)
"""Parameters of a call that are set here, or would undo what is promised."""
CAPS = ("max_tokens", "max_completion_tokens")
"""Parameters that bound the length of an answer."""


def _read(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _names(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _allowed(params: dict[str, JsonValue]) -> dict[str, JsonValue]:
    body = params.get("extra_body")
    if reserved := sorted(RESERVED & {*params, *(body if isinstance(body, dict) else ())}):
        msg = f"{reserved[0]!r} can't be set here; it follows from the brief, the executor's fields or the limits"
        raise ValueError(msg)
    if secret := next(filter(is_secret_name, _names(params)), None):
        msg = f"{secret!r} looks like a secret; keys live in the environment, such as OPENAI_API_KEY"
        raise ValueError(msg)
    return params


Params = Annotated[
    dict[str, JsonValue],
    BeforeValidator(_read),
    AfterValidator(_allowed),
    PlainSerializer(canonical, return_type=str),
    WithJsonSchema({"type": "string", "format": "json-string", "default": "{}"}),
]
"""A JSON object, or its text: a form of Prefect's can edit only the text."""
