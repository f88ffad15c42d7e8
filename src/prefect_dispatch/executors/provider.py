"""litellm, as far as it is used here: loading it, its prices, and reading its responses."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Any, Literal

from prefect_dispatch.executors.base import Reply
from prefect_dispatch.executors.local import is_local
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub

Price = tuple[float, float]
"""US dollars per token sent, and per token received."""


@cache
def provider() -> Any:  # noqa: ANN401 -- a module, whose own types are partly unknown
    """Import litellm, which takes seconds, without its look-ups on the network, its `.env` and its advertising.

    What its first call would import comes along, so that no ask pays for it with its time limit.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    litellm: Any = import_module("litellm")
    with warnings.catch_warnings():  # its first response builds its models, with a warning about its own types
        warnings.simplefilter("ignore")
        litellm.ModelResponse()
        import_module("openai.resources.chat")
        litellm.completion(model="openai/none", messages=[{"role": "user", "content": "-"}], mock_response="-")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    return litellm


def is_known(model: str) -> bool:
    """Return whether litellm knows a model's provider; a model on this machine is known."""
    try:
        return bool(provider().get_llm_provider(model=f"openai/{model}" if is_local(model) else model))
    except Exception:  # noqa: BLE001 -- what is raised for an unknown provider is a plain one
        return False


def listed_price(model: str) -> Price | None:
    """Return the price of a model in litellm's table, or None if it isn't there."""
    try:
        sent, got = provider().cost_per_token(model=model, prompt_tokens=1, completion_tokens=1)
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return float(sent), float(got)


def listed_context(model: str) -> int | None:
    """Return how many tokens a model takes in, by litellm's table, or None if it isn't there."""
    try:
        room = provider().get_model_info(model)["max_input_tokens"]
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return room if isinstance(room, int) else None


def reply_of(response: Any, model: str, price: Price | None) -> Reply:  # noqa: ANN401 -- litellm's ModelResponse
    """Return what a response says.

    Args:
        response: What litellm returned; anything in it may be missing.
        model: Who was asked.
        price: Overrides litellm's table.
    """
    choice: Any = next(iter(response.choices), None)
    message: Any = getattr(choice, "message", None)
    fields: dict[str, Any] = getattr(message, "provider_specific_fields", None) or {}
    text: str = getattr(message, "content", None) or ""
    finish: Literal["complete", "truncated", "refused"] = "complete"
    match getattr(choice, "finish_reason", None):
        case "content_filter":
            finish = "refused"
        case "length":
            finish = "truncated"
        case _:
            pass
    if refusal := fields.get("refusal"):
        finish, text = "refused", str(refusal)
    # JSON can hold half a character, a stored answer can't; and a key that is echoed must not be stored.
    return Reply(value=scrub(text), finish=finish, model=model, usage=_usage(response, model, price))


def _usage(response: Any, model: str, price: Price | None) -> Usage:  # noqa: ANN401 -- litellm's ModelResponse
    said: Any = getattr(response, "usage", None)
    sent, got = (int(getattr(said, f"{part}_tokens", None) or 0) for part in ("prompt", "completion"))
    cost = sent * price[0] + got * price[1] if price else _listed_cost(response, model)
    return Usage(requests=1, prompt_tokens=sent, completion_tokens=got, cost_usd=cost)


def _listed_cost(response: Any, model: str) -> float | None:  # noqa: ANN401 -- litellm's ModelResponse
    try:
        return float(provider().completion_cost(completion_response=response, model=model))
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
