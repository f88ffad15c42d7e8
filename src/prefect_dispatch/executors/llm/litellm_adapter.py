"""Adapter for litellm: loads it, looks up prices and limits, and parses responses."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from math import inf
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from pydantic import BaseModel
from pydantic_core import from_json

from prefect_dispatch.executors.base import Reply
from prefect_dispatch.executors.llm.http_exchange import is_count
from prefect_dispatch.executors.llm.messages import TOOL, is_local
from prefect_dispatch.models.checks import is_address
from prefect_dispatch.models.outcome import Citation, Usage
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.llm.messages import Message


Price = tuple[float, float]
"""US dollars per token sent, and per token received."""

_PROMPT_STEP = 1 << 16
"""Step in tokens to which a prompt is rounded up, where the price depends on its length."""

_MAX_COUNTED_BYTES = 1 << 19
"""Bytes of a chat beyond which its tokens aren't counted, as that would delay every other call."""

MAX_UNLISTED = 256
"""Upper bound of the cached models without a price: litellm takes most of a millisecond to find none."""

_unpriced: set[tuple[str, str]] = set()
"""Models without a price: the model that was asked, and the one that the response names."""

_MARKUP_TOKENS = 20
"""Upper bound of the tokens that a provider adds to a message."""


@cache
def load_litellm() -> Any:  # noqa: ANN401 -- a module, whose own types are partly unknown
    """Import litellm, which takes seconds, without its network requests, its `.env` and its advertising.

    The modules that its first call would import are loaded, too, so that they don't use up the time limit of a call.
    """
    for name in ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS"):  # files that it would fetch, one at the first call
        os.environ.setdefault(f"LITELLM_LOCAL_{name}", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    litellm: Any = import_module("litellm")
    import_module("prefect_dispatch.executors.llm.http_exchange").install(litellm)
    with warnings.catch_warnings():  # the first response builds litellm's models, which warns about its own types
        warnings.simplefilter("ignore")
        litellm.ModelResponse()
        import_module("openai.resources.chat")
        mock: dict[str, Any] = {"messages": [{"role": "user", "content": "-"}], "mock_response": "-"}
        litellm.completion(model="openai/none", **mock)
        list(litellm.completion(model="openai/none", **mock, stream=True))
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    return litellm


async def load_litellm_in_thread() -> Any:  # noqa: ANN401 -- as above
    """Return litellm; if it isn't loaded yet, a thread imports it, so that the event loop isn't blocked."""
    return load_litellm() if load_litellm.cache_info().currsize else await asyncio.to_thread(load_litellm)


# litellm's table of models is read without litellm, whose import takes seconds. Answered from it is only what litellm
# is certain to answer in the same way; the rest is left to litellm. A test compares both for every model of the table.

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
def read_table() -> dict[str, dict[str, Any]]:
    """Return the table, by model."""
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
    entry = read_table().get(model) or read_table().get(name)
    if entry is None or entry.get("litellm_provider") != provider or entry.get("mode") not in _MODES:
        return None
    return entry


def is_unlisted(model: str) -> bool:
    """Return whether a model is certainly not in the table, such as one of the user's own server behind `openai/`."""
    provider, _, name = model.partition("/")
    if provider != "openai" or not name or _OPENAI_NAME.search(name) or not _is_in_use():
        return False
    rules: Any = read_table().get("fallback_generalizations", {}).get("rules", ())
    if any(re.search(rule["pattern"], model, re.IGNORECASE) for rule in rules):
        return False
    return not {model.lower(), name.lower()} & _lower_names()


@cache
def _lower_names() -> frozenset[str]:
    return frozenset(map(str.lower, read_table()))


def price_of(entry: Mapping[str, Any], prompt_tokens: int) -> Price | None:
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
    """Return the estimated number of tokens of a chat, as litellm counts them; None if only litellm knows it.

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


def has_unknown_provider(model: str) -> bool:
    """Return whether it is certain without litellm that it doesn't know a model's provider."""
    provider, slash, _ = model.partition("/")
    return bool(slash) and not is_local(model) and is_unknown_provider(provider)


def has_known_provider(model: str) -> bool:
    """Return whether litellm knows a model's provider; that of a local model is known."""
    provider, slash, _ = model.partition("/")
    if slash and (provider in PROVIDERS or is_local(model)):
        return True
    if has_unknown_provider(model):
        return False
    try:
        return bool(load_litellm().get_llm_provider(model=model))
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown provider
        return False


def listed_price(model: str, prompt_tokens: int = 1) -> Price | None:
    """Return the price of a model in litellm's table, or None if it isn't there.

    Args:
        model: The model.
        prompt_tokens: Estimated length of the prompt: some models cost more per token for a long one.
    """
    return _price_of_long(
        model, -(-prompt_tokens // _PROMPT_STEP) * _PROMPT_STEP if prompt_tokens > _PROMPT_STEP else 1
    )


@lru_cache(maxsize=256)  # litellm takes most of a millisecond
def _price_of_long(model: str, prompt_tokens: int) -> Price | None:
    entry = find_entry(model)
    if entry and (price := price_of(entry, prompt_tokens)):
        return price
    if is_unlisted(model):
        return None
    try:
        sent, received = load_litellm().cost_per_token(model=model, prompt_tokens=prompt_tokens, completion_tokens=1)
        reasoning = load_litellm().get_model_info(model).get("output_cost_per_reasoning_token") or 0
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown model
        return None
    return float(sent) / prompt_tokens, max(float(received), float(reasoning))


def _model_info(model: str) -> Mapping[str, Any]:
    """Return what litellm's table has of a model, which is empty for an unlisted one.

    Raises:
        Exception: If litellm doesn't know the model.
    """
    return {} if is_unlisted(model) else find_entry(model) or load_litellm().get_model_info(model)


def listed_batch_price(model: str) -> Price | None:
    """Return the price of a model in a batch by litellm's table, by default half of the live price; None if unknown."""
    if (price := listed_price(model)) is None:
        return None
    info = _model_info(model)
    sent, received = info.get("input_cost_per_token_batches"), info.get("output_cost_per_token_batches")
    return price[0] / 2 if sent is None else float(sent), price[1] / 2 if received is None else float(received)


def listed_tokens(model: str, kind: Literal["input", "output"]) -> int | None:
    """Return the maximum tokens of a model's input (its context window) or output by litellm's table; None if unknown.

    Args:
        model: The model.
        kind: `input` or `output`.
    """
    try:
        limit = _model_info(model).get(f"max_{kind}_tokens")
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown model
        return None
    return limit if isinstance(limit, int) else None


def supports_web_search(model: str) -> bool:
    """Return whether a model is known to search the web, by litellm's table."""
    return not is_local(model) and bool(load_litellm().supports_web_search(model=model))


def listed_search_price(model: str, search: Mapping[str, JsonValue]) -> float | None:
    """Return US dollars per web search of a model by litellm's table; None if unknown.

    Args:
        model: The model.
        search: The options of the search, of which the size of the context determines the price.
    """
    try:
        prices: dict[str, Any] = _model_info(model).get("search_context_cost_per_query") or {}
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown model
        return None
    price = prices.get(f"search_context_size_{search.get('search_context_size', 'medium')}")
    return float(price) if isinstance(price, int | float) else None


def count_prompt_tokens(model: str, chat: Sequence[Message]) -> int:
    """Return the number of tokens of a chat by litellm's estimate."""
    counted = count_tokens(model, chat)
    return int(load_litellm().token_counter(model=model, messages=chat)) if counted is None else counted


def max_prompt_tokens(model: str, chat: Sequence[Message]) -> int:
    """Return an upper bound of the tokens that a provider counts in a chat.

    No tokenizer yields more tokens than there are bytes, plus some markup of the chat. Below that, it is litellm's
    count plus a quarter, as other tokenizers yield up to 14 % more tokens than litellm's. litellm takes 0.1 s per
    megabyte to count, so for a very long chat it is the number of bytes.
    """
    size = sum(len(message["content"].encode()) + _MARKUP_TOKENS for message in chat)
    if size > _MAX_COUNTED_BYTES:
        return size
    counted = count_prompt_tokens(model, chat)
    return min(size, counted + counted // 4 + _MARKUP_TOKENS)


MAX_CITATIONS = 50
"""Most pages of a web search that an answer stores."""

_MAX_ANNOTATIONS = 1_000
LONGEST_URL = 2_000
"""Characters of an address beyond which a page isn't stored."""

LONGEST_TITLE = 300
"""Characters of a page's title that are stored."""

_LONGEST_DATE = 40
_DATE_FIELDS = ("page_age", "date", "last_updated")
"""Fields of a page that may hold its date: Anthropic's, then Perplexity's."""

_FINISHES: Mapping[Any, Literal["truncated", "refused"]] = {"content_filter": "refused", "length": "truncated"}
"""How an answer ended, by litellm's reason; any other one means that it is complete."""


def parse_response(
    response: Any,  # noqa: ANN401 -- litellm's ModelResponse
    model: str,
    price: Price | None,
    served: str = "",
    search: Mapping[str, JsonValue] | None = None,
) -> Reply:
    """Parse a response of litellm.

    Args:
        response: The response; anything in it may be missing.
        model: The model that was asked.
        price: Price per token; None to use litellm's table.
        served: The model that the provider's response names; litellm may put another name into its own response.
        search: The options of a web search; None if none was requested.
    """
    choice: Any = next(iter(response.choices), None)
    message: Any = getattr(choice, "message", None)
    fields: dict[str, Any] = getattr(message, "provider_specific_fields", None) or {}
    text: str = getattr(message, "content", None) or ""
    finish: Literal["complete", "truncated", "refused"] = _FINISHES.get(
        getattr(choice, "finish_reason", None), "complete"
    )
    text = text or _arguments(message)
    if refusal := getattr(message, "refusal", None) or fields.get("refusal"):  # there up to litellm 1.106
        finish, text = "refused", str(refusal)
    text = text.encode("utf-8", "replace").decode()  # JSON can contain lone surrogates, which can't be stored
    return Reply(
        value=text,
        finish=finish,
        model=model,
        served_model=served,
        citations=() if search is None else parse_citations(message, response),
        usage=_usage(response, model, price, search),
    )


def parse_citations(message: Any, response: Any = None) -> tuple[Citation, ...]:  # noqa: ANN401 -- litellm's Message and ModelResponse
    """Return the pages that a web search returned, each address once; those that the message cites come first.

    Args:
        message: The message.
        response: The response that contains it; some providers list the pages there.
    """
    return create_citations(_iter_pages(message, response))


def create_citations(pages: Iterable[Any]) -> tuple[Citation, ...]:
    """Return citations of pages, each address once.

    The pages are hostile data: only addresses of public pages are kept, and numbers and lengths are bounded.

    Args:
        pages: Mappings or objects with a `url`, a `title`, and the date where there is one.

    Example:
        >>> [page.url for page in create_citations([{"url": "https://www.w3.org/"}, {"url": "file:///etc/passwd"}])]
        ['https://www.w3.org/']
    """
    today = datetime.now(timezone.utc).date()
    found: dict[str, Citation] = {}
    for page in islice(pages, _MAX_ANNOTATIONS):
        url = _field(page, "url")
        if not isinstance(url, str) or len(url) > LONGEST_URL or not is_address(url) or redact(url) != url:
            continue
        known = found.get(url, Citation(url=url, retrieved=today))
        dates = (_line(_field(page, name), _LONGEST_DATE) for name in _DATE_FIELDS)
        title = known.title or _line(_field(page, "title"), LONGEST_TITLE)
        published = known.published or next(filter(None, dates), "")
        found[url] = known.model_copy(update={"title": title, "published": published})
    return tuple(found.values())[:MAX_CITATIONS]


def _iter_pages(message: Any, response: Any) -> Iterator[Any]:  # noqa: ANN401 -- as above
    """Yield the pages of a web search, from wherever the provider lists them."""
    for each in list_field(message, "annotations"):  # OpenAI, Gemini, Perplexity
        if _field(each, "type") == "url_citation":
            yield _field(each, "url_citation")
    for each in list_field(_field(message, "provider_specific_fields"), "web_search_results"):  # Anthropic
        yield from list_field(each, "content")
    yield from list_field(response, "search_results")  # Perplexity


def _line(text: object, most: int) -> str:
    """Return a text of a provider as one bounded line without secrets; empty for any other value."""
    plain = strip_control_chars(text.encode("utf-8", "replace").decode()) if isinstance(text, str) else ""
    return shorten(redact(plain), most)


def list_field(thing: Any, name: str) -> list[Any]:  # noqa: ANN401 -- as below
    """Return a field that is a list; an empty list where there is none."""
    found: Any = _field(thing, name)
    return found if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType] -- of any values


def _field(thing: Any, name: str) -> Any:  # noqa: ANN401 -- a mapping, or an object of litellm's
    """Return a field of a mapping or of an object; None where there is none."""
    return cast("dict[str, Any]", thing).get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def _arguments(message: Any) -> str:  # noqa: ANN401 -- litellm's Message
    """Return the arguments of a call of the answer tool, or an empty text."""
    for call in getattr(message, "tool_calls", None) or ():
        function: Any = getattr(call, "function", None)
        if getattr(function, "name", None) == TOOL:
            return str(getattr(function, "arguments", None) or "")
    return ""


def _usage(response: Any, model: str, price: Price | None, search: Mapping[str, JsonValue] | None) -> Usage:  # noqa: ANN401 -- litellm's ModelResponse
    usage: Any = getattr(response, "usage", None)
    counts = [getattr(usage, f"{part}_tokens", None) for part in ("prompt", "completion")]
    sent, received = (count if isinstance(count, int) and is_count(count) else 0 for count in counts)
    if not sent and not received:
        return Usage(requests=1, unsettled=1, cost_usd=0.0 if price or listed_price(model) else None)
    if not price:
        cost = _listed_cost(response, model, search)
    else:
        fee = 0.0 if search is None else listed_search_price(model, search)
        cost = None if fee is None else fee + sent * price[0] + received * price[1]
    cached, written = _cache_tokens(usage, sent)
    return Usage(
        requests=1,
        prompt_tokens=sent,
        completion_tokens=received,
        cost_usd=cost,
        cached_tokens=cached,
        cache_write_tokens=written,
    )


def _cache_tokens(usage: Any, sent: int) -> tuple[int, int]:  # noqa: ANN401 -- litellm's Usage
    """Return the prompt tokens that were read from the provider's cache, and those that were written into it."""
    details = _field(usage, "prompt_tokens_details")
    counts = _field(details, "cached_tokens"), _field(usage, "cache_creation_input_tokens")
    read, written = (count if isinstance(count, int) and is_count(count) else 0 for count in counts)
    return min(read, sent), min(written, sent)


class _Tokens(NamedTuple):
    """The tokens of a call with texts alone, which each have a price: those sent, and those received.

    Attributes:
        sent: Sent, and processed.
        cached: Sent, and found in the provider's cache.
        received: Received as the answer.
        reasoning: Received as reasoning.
    """

    sent: int
    cached: int
    received: int
    reasoning: int

    def cost(self, rates: Sequence[float]) -> float:
        """Return the cost by US dollars per token; the order of the additions is litellm's, so that no bit differs."""
        by_prompt = self.sent * rates[0] + self.cached * rates[1]
        return by_prompt + (self.received * rates[2] + self.reasoning * rates[3])

    def counts(self, *, text_has_cached: bool) -> dict[str, int]:
        """Return the counts of litellm's `Usage` for these tokens, by path.

        Args:
            text_has_cached: Whether the text tokens of the prompt include the cached ones, which depends on the
                provider; litellm takes both into account.
        """
        prompt, completion = self.sent + self.cached, self.received + self.reasoning
        details = "prompt_tokens_details", "completion_tokens_details"
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            f"{details[0]}.text_tokens": prompt if text_has_cached else self.sent,
            f"{details[1]}.text_tokens": self.received,
            f"{details[1]}.reasoning_tokens": self.reasoning,
            "prompt_cache_miss_tokens": self.sent,
            **dict.fromkeys(("cache_read_input_tokens", "_cache_read_input_tokens"), self.cached),
            **dict.fromkeys((f"{details[0]}.cached_tokens", "prompt_cache_hit_tokens"), self.cached),
            f"{details[0]}.cached_tokens_details.text_tokens": self.cached,
        }


_MAX_LINEAR = 1 << 15
"""Tokens, sent or received, up to which a price is linear; longer prompts cost more per token with some models."""

_MAX_RATES = 1 << 8
"""Upper bound of the cached rates."""

_PROBES = 24
"""Number of costs that are compared with litellm's before rates are used."""

_UNPRICED_FIELDS = frozenset(
    {"additional_headers", "choices", "created", "custom_llm_provider", "headers", "id", "model", "object", "provider"}
    | {"prompt_filter_results", "provider_specific_fields", "service_tier", "system_fingerprint", "usage", "x_groq"}
    | {"content", "function_call", "reasoning", "reasoning_content", "refusal", "role", "thinking_blocks", "tool_calls"}
)
"""Fields of a response and of its messages that don't change its price, or that are looked at one by one."""

_DURATIONS = frozenset({"completion_time", "prompt_time", "queue_time", "total_time"})
"""Fields of a usage that hold seconds."""

_rates: dict[Hashable, tuple[float, ...] | None] = {}
"""Cache of US dollars per token of `_Tokens`, by all that determines them; None where only litellm knows a cost."""


def _listed_cost(response: Any, model: str, search: Mapping[str, JsonValue] | None) -> float | None:  # noqa: ANN401 -- litellm's ModelResponse
    """Return the cost of a response by litellm's `completion_cost`; None if the model's price is unknown.

    `completion_cost` takes as much processor time as all the rest of a call that is sent without litellm. So its rates
    are cached for responses with the tokens of texts alone; any other response is left to it.
    """
    names = model, str(getattr(response, "model", ""))
    if names in _unpriced:
        return None
    plain = _read_plain(response, model) if search is None else None
    if plain and (rates := _rates.get(plain.key)):
        return plain.tokens.cost(rates)
    try:
        tools = {} if search is None else {"standard_built_in_tools_params": {"web_search_options": dict(search)}}
        cost = float(load_litellm().completion_cost(completion_response=response, model=model, **tools))
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown model
        if listed_price(model) is None and len(_unpriced) < MAX_UNLISTED:  # the served name may change each time
            _unpriced.add(names)
        return None
    if plain and plain.key not in _rates and len(_rates) < _MAX_RATES:
        _rates[plain.key] = _learn_rates(response, model, plain)
    return cost if 0 <= cost < inf else None


class _Plain(NamedTuple):
    """A response whose cost follows from the tokens of texts: what determines its rates, and its tokens."""

    key: Hashable
    tokens: _Tokens
    text_has_cached: bool


def _read_plain(response: Any, model: str) -> _Plain | None:  # noqa: ANN401 -- as above
    """Return what determines the cost of a response; None if that is more than the tokens of texts."""
    if not (isinstance(response, BaseModel) and isinstance(_field(response, "usage"), BaseModel)):
        return None
    # 1. The response has nothing else that costs, such as the pages of a web search.
    thing: Any = response
    hidden: dict[str, Any] = thing._hidden_params  # noqa: SLF001 -- determines the price
    messages = [choice.message for choice in thing.choices]
    for part in (*map(_fields, (thing, *messages)), hidden):
        if any(value and name not in _UNPRICED_FIELDS for name, value in part.items()):
            return None
    # 2. Its usage has the counts of its tokens, words such as the service tier, and nothing else.
    counts: dict[str, int] = {}
    words: list[tuple[str, str]] = []
    for path, value in _iter_usage(thing.usage):
        if type(value) is int:
            counts[path] = value
        elif isinstance(value, str):
            words.append((path, value))
        elif path not in _DURATIONS:
            return None
    cached = counts.get("prompt_tokens_details.cached_tokens", 0)
    reasoning = counts.get("completion_tokens_details.reasoning_tokens", 0)
    prompt, completion = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    tokens = _Tokens(prompt - cached, cached, completion - reasoning, reasoning)
    text_has_cached = counts.get("prompt_tokens_details.text_tokens") == prompt
    expected = tokens.counts(text_has_cached=text_has_cached)
    if max(prompt, completion) > _MAX_LINEAR or min(tokens) < 0 or not counts.items() <= expected.items():
        return None
    # 3. All that is left determines the rates. The last part changes when the user registers a price.
    key = (
        *(model, *map(str, (thing.model, hidden.get("custom_llm_provider"), _field(thing, "service_tier")))),
        *(str(_field(hidden.get("provider_specific_fields"), "traffic_type")), tuple(words), tuple(counts)),
        text_has_cached,
        getattr(load_litellm().utils, "_model_cost_mutation_generation", None),
    )
    return _Plain(key, tokens, text_has_cached)


def _fields(thing: Any) -> dict[str, Any]:  # noqa: ANN401 -- an object of litellm's
    """Return the fields of one of litellm's objects, and those that its class doesn't have."""
    return {**vars(thing), **(thing.model_extra or {})}


def _iter_usage(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 -- as above, or a mapping
    """Yield the values of a usage that are not empty, each with its path."""
    own = {**_fields(part), **(part.__pydantic_private__ or {})} if isinstance(part, BaseModel) else part
    for name, value in own.items():
        if isinstance(value, BaseModel | dict):
            yield from _iter_usage(value, f"{path}{name}.")
        elif value:
            yield path + name, value


def _learn_rates(response: Any, model: str, plain: _Plain) -> tuple[float, ...] | None:  # noqa: ANN401 -- as above
    """Return US dollars per token for responses like one; None if litellm's cost is not linear in their tokens."""
    litellm = load_litellm()

    def price(probe: _Tokens) -> float:
        """Return litellm's cost of the response with other counts."""
        usage, counts = response.usage.model_copy(deep=True), probe.counts(text_has_cached=plain.text_has_cached)
        for path, _ in list(_iter_usage(response.usage)):
            if path in counts:
                *parents, name = path.split(".")
                part: Any = usage
                for each in parents:
                    part = _field(part, each)
                setattr(part, name, counts[path])
        copy = response.model_copy()
        copy.usage = usage
        return float(litellm.completion_cost(completion_response=copy, model=model))

    try:
        # 1. Some models cost less at certain hours.
        infos: list[Any] = []
        for name in dict.fromkeys((str(response.model), model)):
            with suppress(Exception):  # litellm raises a plain Exception for an unknown model
                infos.append(litellm.get_model_info(name, response._hidden_params.get("custom_llm_provider")))  # noqa: SLF001 -- as litellm does
        if not infos or any(info.get("off_peak_pricing") for info in infos):
            return None
        # 2. The rates are the costs of one token each.
        is_used = [count > 0 for count in plain.tokens]
        ones = [_Tokens(*(int(at == place) for at in range(len(is_used)))) for place in range(len(is_used))]
        rates = tuple(price(one) if used else 0.0 for one, used in zip(ones, is_used, strict=True))
        # 3. Costs of other counts must follow from them, up to the longest prompt and answer: to the last bit, as
        #    litellm adds them up in another order for some providers, which shows in some of the sums only.
        draw = Random(0)  # noqa: S311 -- no secret
        most = _MAX_LINEAR // 2
        drawn = [_Tokens(*(draw.randint(1, most) * used for used in is_used)) for _ in range(_PROBES)]
        longest = _Tokens(*(most * used for used in is_used))
        return rates if all(price(each) == each.cost(rates) for each in (longest, *drawn)) else None
    except Exception:  # noqa: BLE001 -- litellm may raise anything for counts of another form
        return None
