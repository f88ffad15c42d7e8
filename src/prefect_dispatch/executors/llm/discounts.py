"""What makes calls cheaper at a provider: its cache of prompts, and tiers that answer later.

OpenAI's flex tier answers later, or refuses while it is busy, for half the price; source:
https://platform.openai.com/docs/guides/flex-processing
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.executors.llm.litellm_adapter import Price, listed_price, read_table
from prefect_dispatch.executors.llm.messages import is_local
from prefect_dispatch.models.outcome import LIVE

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm.messages import Message
    from prefect_dispatch.models.limits import Limits

FLEX = "flex"
"""The tier, in requests, in responses and in bills."""
FLEX_PROVIDER = "openai/"
"""Prefix of the models that can be asked in the flex tier."""
BATCH_PROVIDER = "openai/"
"""Prefix of the models that can be asked in batches."""
FLEX_TIMEOUT_S = 900.0
"""Seconds that a call of the tier may take, by OpenAI's recommendation."""
PRIORITY = "priority"
"""The tier that answers sooner, for more."""
_NAMED_TIERS = {FLEX: FLEX, PRIORITY: PRIORITY}


@lru_cache(maxsize=256)
def listed_tier_price(model: str, tier: str) -> Price | None:
    """Return US dollars per token sent and per token received in a price tier, by litellm's table; None if unknown.

    Args:
        model: The model.
        tier: The tier, such as `flex`; `live` is the regular one.

    Example:
        >>> listed_tier_price("openai/gpt-5-mini", "flex")
        (1.25e-07, 1e-06)
    """
    if (regular := listed_price(model)) is None or tier == LIVE:
        return regular
    table = read_table()
    entry = table.get(model) or table.get(model.partition("/")[2]) or {}
    sent, received = entry.get(f"input_cost_per_token_{tier}"), entry.get(f"output_cost_per_token_{tier}")
    return None if sent is None or received is None else (float(sent), float(received))


def flex_timeout_s(limits: Limits) -> float:
    """Return the time limit of a call in the flex tier: in place of the default, which is for live calls, its own.

    A form submits every default, so that one is no statement.

    Example:
        >>> from prefect_dispatch import Limits
        >>> flex_timeout_s(Limits()), flex_timeout_s(Limits(timeout_s=60))
        (900.0, 60.0)
    """
    is_default = limits.timeout_s == type(limits).model_fields["timeout_s"].default
    return FLEX_TIMEOUT_S if is_default else limits.timeout_s


def halve(price: Price) -> Price:
    """Return a stated price in the flex tier or in a batch, of which it is half."""
    return price[0] / 2, price[1] / 2


def read_tier(named: object) -> str:
    """Return the price tier of a request or a response by its `service_tier`: `live` for any other word, and for none.

    Example:
        >>> read_tier("flex"), read_tier("default"), read_tier(None)
        ('flex', 'live', 'live')
    """
    return _NAMED_TIERS.get(str(named).lower(), LIVE)


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
