"""litellm, as far as it is used here: loading it, its prices, and reading its responses."""

from __future__ import annotations

import asyncio
import os
import warnings
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from prefect_dispatch.executors.base import Reply
from prefect_dispatch.executors.local import is_local
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.prompt import Message

Price = tuple[float, float]
"""US dollars per token sent, and per token received."""

_STEP = 1 << 16
"""Tokens by which prompts are told apart where the price depends on their length."""
_LONG = 1 << 19
"""Bytes of a chat whose tokens aren't counted, as that would hold up every other call."""
MOST_UNLISTED = 256
"""Models without a price that are remembered: litellm takes most of a millisecond to find none."""
_unlisted: set[tuple[str, str]] = set()
"""Who was asked, and what the server calls itself."""
_MARKUP = 20
"""Tokens that a provider may put around a message."""


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
        mock: dict[str, Any] = {"messages": [{"role": "user", "content": "-"}], "mock_response": "-"}
        litellm.completion(model="openai/none", **mock)
        list(litellm.completion(model="openai/none", **mock, stream=True))
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    return litellm


async def loaded() -> Any:  # noqa: ANN401 -- as above
    """Return litellm, which a thread imports where nobody has yet."""
    return provider() if provider.cache_info().currsize else await asyncio.to_thread(provider)


def is_known(model: str) -> bool:
    """Return whether litellm knows a model's provider; a model on this machine is known."""
    try:
        return bool(provider().get_llm_provider(model=f"openai/{model}" if is_local(model) else model))
    except Exception:  # noqa: BLE001 -- what is raised for an unknown provider is a plain one
        return False


def listed_price(model: str, prompt_tokens: int = 1) -> Price | None:
    """Return the price of a model in litellm's table, or None if it isn't there.

    Args:
        model: Who would be asked.
        prompt_tokens: About how long the prompt is: some models take more per token for a long one.
    """
    return _price_of_long(model, -(-prompt_tokens // _STEP) * _STEP if prompt_tokens > _STEP else 1)


@lru_cache(maxsize=256)  # litellm takes most of a millisecond
def _price_of_long(model: str, prompt_tokens: int) -> Price | None:
    try:
        sent, got = provider().cost_per_token(model=model, prompt_tokens=prompt_tokens, completion_tokens=1)
        thought = provider().get_model_info(model).get("output_cost_per_reasoning_token") or 0
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return float(sent) / prompt_tokens, max(float(got), float(thought))


def listed_batch_price(model: str) -> Price | None:
    """Return the price of a model in a batch, or None if it isn't in litellm's table: half, where that has no other."""
    if (listed := listed_price(model)) is None:
        return None
    info: dict[str, Any] = provider().get_model_info(model)
    sent, got = info.get("input_cost_per_token_batches"), info.get("output_cost_per_token_batches")
    return listed[0] / 2 if sent is None else float(sent), listed[1] / 2 if got is None else float(got)


def listed_answer(model: str) -> int | None:
    """Return the most tokens that an answer of a model can have, by litellm's table, or None if it isn't there."""
    return _listed(model, "max_output_tokens")


def listed_context(model: str) -> int | None:
    """Return how many tokens a model takes in, by litellm's table, or None if it isn't there."""
    return _listed(model, "max_input_tokens")


def _listed(model: str, what: str) -> int | None:
    try:
        most = provider().get_model_info(model)[what]
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return most if isinstance(most, int) else None


def most_tokens(model: str, chat: Sequence[Message]) -> int:
    """Return the most tokens that a provider may count in a chat.

    No tokenizer makes more tokens than there are bytes, some markup of the chat apart. Below
    that, litellm's count is taken, and a quarter more, as other tokenizers cut up to 14 % finer
    than its own; it takes 0.1 s per megabyte, so a very long chat has its bytes counted instead.
    """
    size = sum(len(message["content"].encode()) + _MARKUP for message in chat)
    if size > _LONG:
        return size
    counted = int(provider().token_counter(model=model, messages=chat))
    return min(size, counted + counted // 4 + _MARKUP)


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
    if refusal := getattr(message, "refusal", None) or fields.get("refusal"):  # there up to litellm 1.106
        finish, text = "refused", str(refusal)
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a character, a stored answer can't
    return Reply(value=text, finish=finish, model=model, usage=_usage(response, model, price))


def _usage(response: Any, model: str, price: Price | None) -> Usage:  # noqa: ANN401 -- litellm's ModelResponse
    said: Any = getattr(response, "usage", None)
    sent, got = (int(getattr(said, f"{part}_tokens", None) or 0) for part in ("prompt", "completion"))
    if not sent and not got:
        return Usage(requests=1, unsettled=1, cost_usd=0.0 if price or listed_price(model) else None)
    cost = sent * price[0] + got * price[1] if price else _listed_cost(response, model)
    return Usage(requests=1, prompt_tokens=sent, completion_tokens=got, cost_usd=cost)


def _listed_cost(response: Any, model: str) -> float | None:  # noqa: ANN401 -- litellm's ModelResponse
    names = model, str(getattr(response, "model", ""))
    if names in _unlisted:
        return None
    try:
        return float(provider().completion_cost(completion_response=response, model=model))
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        if listed_price(model) is None and len(_unlisted) < MOST_UNLISTED:  # a server's name may change each time
            _unlisted.add(names)
        return None
