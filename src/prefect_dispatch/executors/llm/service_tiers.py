"""Price tiers of providers: OpenAI's flex, which answers later, or refuses while it is busy, for half the price.

Source: https://platform.openai.com/docs/guides/flex-processing
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect_dispatch.executors.llm.litellm_adapter import listed_price, read_table
from prefect_dispatch.models.outcome import LIVE

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm.litellm_adapter import Price

FLEX = "flex"
"""The tier, in requests, in responses and in bills."""
FLEX_PROVIDER = "openai/"
"""Prefix of the models that can be asked in the flex tier."""
BATCH_PROVIDER = "openai/"
"""Prefix of the models that can be asked in batches."""
FLEX_TIMEOUT_S = 900.0
"""Seconds that a call of the tier may take, by OpenAI's recommendation."""
_PRIORITY = "priority"


@lru_cache(maxsize=256)
def listed_flex_price(model: str) -> Price | None:
    """Return US dollars per token sent and per token received in the flex tier, by litellm's table; None if unknown.

    Example:
        >>> listed_flex_price("openai/gpt-5-mini")
        (1.25e-07, 1e-06)
    """
    if not model.startswith(FLEX_PROVIDER) or listed_price(model) is None:
        return None
    table = read_table()
    entry = table.get(model) or table.get(model.partition("/")[2]) or {}
    sent, received = entry.get("input_cost_per_token_flex"), entry.get("output_cost_per_token_flex")
    return None if sent is None or received is None else (float(sent), float(received))


def halve(price: Price) -> Price:
    """Return a stated price in the flex tier or in a batch, of which it is half."""
    return price[0] / 2, price[1] / 2


def read_tier(response: Any) -> str:  # noqa: ANN401 -- litellm's ModelResponse
    """Return the price tier that a response names: `flex`, `priority`, or `live` for any other word, and for none."""
    named: object = getattr(response, "service_tier", None)
    return named if named in (FLEX, _PRIORITY) and isinstance(named, str) else LIVE
