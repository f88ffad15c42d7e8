"""How providers cache the beginning of prompts, and how a request marks it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.executors.llm.litellm_adapter import Price, read_table
from prefect_dispatch.executors.llm.messages import is_local
from prefect_dispatch.models.outcome import LIVE

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm.messages import Message


MIN_PREFIX_TOKENS = 1024
"""Tokens from which on a prefix is cached, where litellm's table has no other number: OpenAI's and Anthropic's rule."""
PREFIX_STEP = 128
"""Step in tokens by which OpenAI caches a prefix; the rest of a step is not cached."""
_CACHING_SERVERS = ("hosted_vllm/", "openai/")
"""Beginnings of the names of models on one's own servers, which cache prefixes by themselves."""


class PrefixCache(NamedTuple):
    """How the provider of a model caches the beginning of prompts.

    Attributes:
        min_tokens: The length from which on it does.
        prices: US dollars per token that is read from the cache, and per token that is written; None if unknown.
        by_marks: Whether only what a request marks is cached.
    """

    min_tokens: int
    prices: Price | None
    by_marks: bool


@lru_cache(maxsize=256)
def listed_prefix_cache(model: str, tier: str = LIVE) -> PrefixCache | None:
    """Return how the provider of a model caches the beginning of prompts; None if it isn't known to.

    Args:
        model: The model.
        tier: The price tier, `live` or `flex`.

    A server of one's own behind `openai/` or `hosted_vllm/` is taken to cache by itself, at no price: vLLM, SGLang and
    llama.cpp do.
    """
    if is_local(model):
        return None
    table = read_table()
    entry = table.get(model) or table.get(model.partition("/")[2]) or {}
    if not entry and model.startswith(_CACHING_SERVERS):
        return PrefixCache(MIN_PREFIX_TOKENS, None, by_marks=False)
    suffix = "" if tier == LIVE else f"_{tier}"
    sent, read = (entry.get(f"{name}{suffix}") for name in ("input_cost_per_token", "cache_read_input_token_cost"))
    if not entry.get("supports_prompt_caching"):
        return None
    by_marks = "claude" in model
    write = (entry.get(f"cache_creation_input_token_cost{suffix}") if by_marks else None) or sent
    prices = None if read is None or write is None else (float(read), float(write))
    return PrefixCache(entry.get("prompt_cache_min_tokens") or MIN_PREFIX_TOKENS, prices, by_marks)


def mark_for_cache(message: Message) -> dict[str, Any]:
    """Return a message that the provider caches, with all that comes before it (Anthropic's `cache_control`)."""
    part = {"type": "text", "text": message["content"], "cache_control": {"type": "ephemeral"}}
    return {**message, "content": [part]}
