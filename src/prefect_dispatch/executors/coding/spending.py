"""What a run of an agent cost: as it says itself, else estimated by its tokens and a price, else unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.executors.provider import provider
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from prefect_dispatch.executors.coding.adapter import Said, Tokens


def usage_of(said: Said, model: str) -> Usage:
    """Return what a run took.

    Args:
        said: What the agent said of it.
        model: Who was asked, as litellm names it.
    """
    tokens = said.tokens
    if tokens is None:  # the agent broke off, or never says; what it told of the cost may be all there was
        return Usage(requests=1, unsettled=1, cost_usd=said.cost_usd)
    told = Usage(requests=1, prompt_tokens=tokens.prompt, completion_tokens=tokens.completion, cost_usd=said.cost_usd)
    if said.cost_usd is not None or (cost := estimated(tokens, model)) is None:
        return told
    return told.model_copy(update={"cost_usd": cost, "estimated_usd": cost})


def estimated(tokens: Tokens, model: str) -> float | None:
    """Return US dollars for some tokens by litellm's table, or None if the model isn't in it.

    Cached ones count for less where the table says how much less.
    """
    if not tokens.prompt and not tokens.completion:
        return 0.0
    try:
        sent, got = provider().cost_per_token(
            model=model,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cache_read_input_tokens=min(tokens.cached, tokens.prompt),
        )
    except Exception:  # noqa: BLE001 -- what is raised for an unknown model is a plain one
        return None
    return float(sent) + float(got)
