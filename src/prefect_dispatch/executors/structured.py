"""How the form of an answer is asked for: which ways a server knows is found out once for each model.

Servers differ: some keep an answer to a JSON Schema, some only to JSON, some take the schema as that of a tool, some
nothing at all. `auto` begins with the strongest way and goes on to the next one where the server refuses it.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from prefect_dispatch.errors import ExecutorError, FormRefusedError
from prefect_dispatch.executors.local import is_local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Method = Literal["json_schema", "json_object", "tools", "prompt"]
"""One way to ask for a form, strongest first; `prompt`: in the words of the brief alone."""
StructuredOutput = Literal["auto", "json_schema", "json_object", "tools", "prompt"]
"""A way, or `auto`."""

METHODS: tuple[Method, ...] = get_args(Method)
_OBJECTS = frozenset({"json_object", "tools"})
"""Ways that bring an object only."""
MOST_REMEMBERED = 256
"""Models whose ways are remembered."""

_NAMED = {
    "json_schema": r"response[ _]?format|json[ _](?:schema|object|mode)|structured[ _]outputs?|guided|grammar",
    "tools": r"\btools?\b|tool_choice|functions?\b",
}
_NAMED["json_object"] = _NAMED["json_schema"]
_NAMED["prompt"] = f"{_NAMED['json_schema']}|{_NAMED['tools']}"
_KINDS = frozenset({"rejected", "params", "server"})
"""Classes of failure by which a server may refuse a way: 400, 415, 422, or 500 with its reason."""

_known: dict[tuple[str, ...], Method] = {}
"""The strongest way that wasn't refused, by model and address."""


def method_for(
    litellm: Any,  # noqa: ANN401 -- a module
    asked: StructuredOutput,
    model: str,
    api_base: str | None,
    schema: Mapping[str, Any],
    *,
    tries: bool = True,
) -> Method:
    """Return how to ask for a form.

    Args:
        litellm: The module.
        asked: What the executor is set to.
        model: The model that is asked.
        api_base: The address of its server, where one is set.
        schema: The JSON Schema of the answer.
        tries: Whether a way that isn't known to be taken may be tried; where a refusal would fail, as in a batch, not.
    """
    is_object = schema.get("type") == "object"
    if asked != "auto":
        return asked if is_object or asked not in _OBJECTS else "prompt"
    if is_local(model):
        return "json_schema"
    strongest = _known.get(_key(model, api_base)) or _listed(litellm, model) or ("json_schema" if tries else "prompt")
    return _possible(strongest, is_object=is_object)[0]


def shows_schema(litellm: Any, method: Method, model: str) -> bool:  # noqa: ANN401 -- a module
    """Return whether a way shows a model the schema, so that the prompt need not.

    Hosted models that take a schema are shown it, and so are tools' arguments. Servers of one's own hold the answer
    to the schema, but don't show it to the model.
    """
    return method == "tools" or (method == "json_schema" and not is_local(model) and _listed(litellm, model) == method)


def require_not_refused(
    error: ExecutorError, used: Method, asked: StructuredOutput, model: str, api_base: str | None, *, is_object: bool
) -> None:
    """Go on to the next way where a server refuses one.

    Args:
        error: The server's refusal.
        used: The way that was used.
        asked: What the executor is set to; only `auto` goes on.
        model: The model that was asked.
        api_base: The address of its server, where one is set.
        is_object: Whether the answer is to be a JSON object.

    Raises:
        FormRefusedError: If the call is to be made again in another way.
    """
    if asked != "auto" or is_local(model):
        return
    key = _key(model, api_base)
    if error.kind not in _KINDS or not re.search(_NAMED[used], str(error), re.IGNORECASE):
        return
    if used == "prompt":  # the reason is another one, perhaps words of an item: what was concluded from it is dropped
        _known.pop(key, None)
    else:
        _, weaker, *_ = _possible(used, is_object=is_object)
        if METHODS.index(weaker) > METHODS.index(_known.get(key, used)):
            if len(_known) >= MOST_REMEMBERED:
                _known.clear()
            _known[key] = weaker
        raise FormRefusedError(str(error), usage=error.usage) from None


def forget_methods() -> None:
    """Forget what was found out of servers."""
    _known.clear()


def remembered() -> int:
    """Return of how many models something is remembered."""
    return len(_known)


def _possible(strongest: Method, *, is_object: bool) -> Sequence[Method]:
    """Return the ways from one on; only objects can be asked for as a JSON object or as a tool's arguments."""
    return [method for method in METHODS[METHODS.index(strongest) :] if is_object or method not in _OBJECTS]


@lru_cache(maxsize=256)  # litellm takes a third of a millisecond
def _listed(litellm: Any, model: str) -> Method | None:  # noqa: ANN401 -- a module
    """Return the strongest way by litellm's table, or None if the model isn't there."""
    if litellm.supports_response_schema(model=model):
        return "json_schema"
    try:
        litellm.get_model_info(model)
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return "prompt"


def _key(model: str, api_base: str | None) -> tuple[str, ...]:
    """Return what tells a server's model from another's: its name and address, by the environment where none is set."""
    provider = model.partition("/")[0].upper()
    variables = (f"{provider}_{name}" for name in ("API_BASE", "BASE_URL"))
    return (model, api_base) if api_base else (model, *(os.environ.get(name, "") for name in variables))
