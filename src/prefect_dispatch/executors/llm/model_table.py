"""Table of models that litellm ships, read without litellm, whose import takes seconds: prices, limits, token counts.

Only what litellm is certain to answer in the same way is answered here; for everything else the functions return None,
and litellm is loaded. `tests/executors/test_model_table.py` compares both for every model of the table.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.llm.messages import Message

PROVIDERS = frozenset({"anthropic", "fireworks_ai", "gemini", "groq", "mistral", "openai", "together_ai", "xai"})
"""Providers whose models litellm looks up in its table by their name alone, and prices by their entry alone."""
_MODES = ("chat", "responses")
"""Kinds of models that an entry may be of."""
_PRICE_RULES = ("tiered_pricing", "off_peak_pricing")
"""Fields of an entry whose prices replace the plain ones, by the length of a prompt or by the hour."""
_LONG_PROMPT = ("input_cost_per_token_above_", "output_cost_per_token_above_")
"""Beginnings of the names of the prices of long prompts."""
_OPENAI_NAME = re.compile(r"gpt|codex|davinci|embedding|^ft:|(?:^|/)o\d", re.IGNORECASE)
"""Names that litellm may count as models of OpenAI's, although the table does not have them."""
_MESSAGE_TOKENS = _ANSWER_TOKENS = 3
"""Tokens that litellm adds to each message, and to a chat."""
_CHUNK = 1024
"""Characters that litellm counts at a time: a tokenizer takes quadratic time for some texts."""


def _folder() -> Path:
    """Return the folder of litellm's package, without importing it."""
    spec = find_spec("litellm")
    return Path(cast("list[str]", cast("Any", spec).submodule_search_locations)[0])


@cache
def _read_table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = from_json(
        _folder().joinpath("model_prices_and_context_window_backup.json").read_bytes()
    )
    return table


def _is_in_use() -> bool:
    """Return whether the table is the one that litellm would use.

    Once litellm is imported, the user's code may have added models to its copy; and the user may let it fetch a newer
    table.
    """
    return "litellm" not in sys.modules and os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP", "True").lower() == "true"


def find_entry(model: str) -> Mapping[str, Any] | None:
    """Return the entry of a model in the table; None if there is none, or if litellm might use another one.

    Args:
        model: The model, as `provider/name`.
    """
    provider, _, name = model.partition("/")
    if provider not in PROVIDERS or not _is_in_use():
        return None
    entry = _read_table().get(model) or _read_table().get(name)
    if entry is None or entry.get("litellm_provider") != provider or entry.get("mode") not in _MODES:
        return None
    return entry


def is_unlisted(model: str) -> bool:
    """Return whether a model is certainly not in the table, such as one of the user's own server behind `openai/`."""
    provider, _, name = model.partition("/")
    if provider != "openai" or not name or _OPENAI_NAME.search(name) or not _is_in_use():
        return False
    rules: Any = _read_table().get("fallback_generalizations", {}).get("rules", ())
    if any(re.search(rule["pattern"], model, re.IGNORECASE) for rule in rules):
        return False
    return not {model.lower(), name.lower()} & _lower_names()


@cache
def _lower_names() -> frozenset[str]:
    return frozenset(map(str.lower, _read_table()))


def price_of(entry: Mapping[str, Any], prompt_tokens: int) -> tuple[float, float] | None:
    """Return US dollars per token sent and per token received by an entry; None if they depend on more than that.

    Args:
        entry: The entry of a model.
        prompt_tokens: Length of the prompt.
    """
    sent, received = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if sent is None or received is None or any(name in entry for name in _PRICE_RULES):
        return None
    if prompt_tokens > 1 and any(name.startswith(_LONG_PROMPT) for name in entry):
        return None
    return float(sent), max(float(received), float(entry.get("output_cost_per_reasoning_token") or 0))


def count_tokens(model: str, chat: Sequence[Message]) -> int | None:
    """Return the estimated number of tokens of a chat, as litellm counts them; None if only litellm can tell.

    Args:
        model: The model, as `provider/name`.
        chat: The messages.
    """
    name = _encoding_name(model)
    if name is None:
        return None
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(_folder() / "litellm_core_utils" / "tokenizers"))
    import tiktoken  # noqa: PLC0415 -- only where tokens are counted

    encoding = tiktoken.get_encoding(name)
    texts = [text for message in chat for text in message.values() if isinstance(text, str)]
    chunks = [text[start : start + _CHUNK] for text in texts for start in range(0, len(text), _CHUNK)]
    counted = sum(len(encoding.encode(chunk, disallowed_special=())) for chunk in chunks)
    return counted + len(chat) * _MESSAGE_TOKENS + _ANSWER_TOKENS


def _encoding_name(model: str) -> str | None:
    """Return the name of the encoding in which litellm counts a model's tokens; None where it isn't certain."""
    provider, _, name = model.partition("/")
    if provider in PROVIDERS - {"openai"} or is_unlisted(model):
        return "cl100k_base"
    if find_entry(model) is None or name.startswith("ft:"):  # litellm counts a fine-tuned model as its base model
        return None
    from tiktoken.model import encoding_name_for_model  # noqa: PLC0415 -- only where tokens are counted

    try:
        return encoding_name_for_model(name)
    except KeyError:  # newer than tiktoken's list
        return "o200k_base"


def is_unknown_provider(provider: str) -> bool:
    """Return whether litellm certainly knows no provider of a name, as none of its files names it."""
    if provider in PROVIDERS or not _is_in_use():
        return False
    quoted = f'"{provider}"'.encode()
    places = ("types/utils.py", "llms/openai_like/providers.json", "model_prices_and_context_window_backup.json")
    return not any(quoted in _folder().joinpath(place).read_bytes() for place in places)
