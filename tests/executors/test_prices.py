"""What a response costs is litellm's figure to the last bit, and mostly without asking litellm."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.executors.llm.hosted_providers import PROTOCOLS
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm, parse_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.models.outcome import Usage


class Bill:
    """Counts how often litellm is asked what a response costs.

    Attributes:
        asked: How often so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Start counting."""
        self.asked = 0
        own = load_litellm().completion_cost

        def completion_cost(*args: object, **more: object) -> float:
            self.asked += 1
            return float(own(*args, **more))

        self.own = own
        monkeypatch.setattr(load_litellm(), "completion_cost", completion_cost)


@pytest.fixture(name="bill")
def _bill(monkeypatch: pytest.MonkeyPatch) -> Bill:
    return Bill(monkeypatch)


def convert(model: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- litellm's ModelResponse
    """Return a provider's response as litellm converts it."""
    litellm = load_litellm()
    name, provider, _, _ = litellm.get_llm_provider(model)
    response = litellm.ModelResponse()
    response._hidden_params["custom_llm_provider"] = provider  # noqa: SLF001 -- as litellm's handlers do
    find = litellm.utils.ProviderConfigManager.get_provider_chat_config
    if provider in {"azure", "openai"}:
        return litellm.utils.convert_to_model_response_object(
            response_object=dict(body), model_response_object=response
        )
    log = SimpleNamespace(model_call_details={}, optional_params={}, litellm_params={}, stream=False, post_call=dict)
    return find(model=name, provider=litellm.LlmProviders(provider)).transform_response(
        model=name,
        raw_response=httpx.Response(200, headers={"content-type": "application/json"}, content=json.dumps(body)),
        model_response=response,
        logging_obj=log,
        request_data={},
        messages=[],
        optional_params={},
        litellm_params={},
        encoding=None,
    )


def usage_of(model: str, body: Mapping[str, Any]) -> Usage:
    """Return the usage that is reported for a provider's response."""
    return parse_response(convert(model, body), model, None).usage


def chat(model: str, *, sent: int, got: int, cached: int = 0, thought: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """Return a response of OpenAI's protocol."""
    usage = {"prompt_tokens": sent + cached, "completion_tokens": got + thought}
    details = {
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thought, "audio_tokens": 0},
    }
    total = {"total_tokens": sent + cached + got + thought}
    message: dict[str, Any] = {"role": "assistant", "content": "fine", "annotations": [], "refusal": None}
    body: dict[str, Any] = {
        **PROTOCOLS["openai"][1],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "model": model.partition("/")[2],
        "usage": {**usage, **details, **total},
    }
    return {**body, **more}


def claude(model: str, *, sent: int, got: int, cached: int = 0, thought: int = 0) -> dict[str, Any]:
    """Return a response of Anthropic's protocol, which counts thoughts as part of the answer."""
    created = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached, "cache_creation": created}
    usage = {"input_tokens": sent, "output_tokens": got + thought, **cache, "service_tier": "standard"}
    return {**PROTOCOLS["anthropic"][1], "model": model.partition("/")[2], "usage": usage}


def gemini(model: str, *, sent: int, got: int, cached: int = 0, thought: int = 0) -> dict[str, Any]:
    """Return a response of Gemini's protocol."""
    counts = {"promptTokenCount": sent + cached, "candidatesTokenCount": got, "thoughtsTokenCount": thought}
    text = [{"modality": "TEXT", "tokenCount": sent + cached}]
    cache = {"cacheTokensDetails": [{"modality": "TEXT", "tokenCount": cached}]} if cached else {}
    return {
        **PROTOCOLS["gemini"][1],
        "modelVersion": model.partition("/")[2],
        "usageMetadata": {
            **counts,
            "promptTokensDetails": text,
            "cachedContentTokenCount": cached,
            **cache,
            "totalTokenCount": sent + cached + got + thought,
        },
    }


def cohere(model: str, *, sent: int, got: int, cached: int = 0, thought: int = 0) -> dict[str, Any]:
    """Return a response of Cohere's protocol."""
    tokens = {"input_tokens": sent + cached, "output_tokens": got + thought}
    return {**PROTOCOLS["cohere_chat"][1], "usage": {"billed_units": tokens, "tokens": tokens}}


MODELS: dict[str, Any] = {
    "openai/gpt-4o-mini": chat,
    "openai/gpt-5-mini": chat,
    "azure/gpt-4o": chat,
    "mistral/mistral-large-latest": chat,
    "deepseek/deepseek-chat": chat,
    "together_ai/deepseek-ai/DeepSeek-V3": chat,
    "anthropic/claude-sonnet-4-5": claude,
    "anthropic/claude-haiku-4-5": claude,
    "gemini/gemini-2.5-pro": gemini,
    "gemini/gemini-2.5-flash": gemini,
    "cohere/command-a-03-2025": cohere,
}
OTHER_SUMS: dict[str, Any] = {"xai/grok-4.20": chat}
"""Models for which litellm adds up in another order, so that some calls are left to it."""
counts = st.integers(1, 16_000)


@pytest.mark.parametrize("model", [*MODELS, *OTHER_SUMS])
def test_a_cost_is_litellms(bill: Bill, model: str) -> None:
    """To the last bit, for any counts, with and without cached and reasoning tokens."""

    @settings(max_examples=60, database=None, deadline=None)
    @given(sent=counts, got=counts, cached=st.just(0) | counts, thought=st.just(0) | counts)
    def check(sent: int, got: int, cached: int, thought: int) -> None:
        body = {**MODELS, **OTHER_SUMS}[model](model, sent=sent, got=got, cached=cached, thought=thought)
        known = usage_of(model, body).cost_usd
        assert known == usage_of(model, body).cost_usd == bill.own(convert(model, body), model)

    check()


@pytest.mark.parametrize("model", list(MODELS))
def test_litellm_is_asked_once(bill: Bill, model: str) -> None:
    """Rates are learned with the first response, and hold for others of its kind."""
    for cached, thought in ((0, 0), (7, 0), (0, 5), (7, 5)):
        usage_of(model, MODELS[model](model, sent=100, got=10, cached=cached, thought=thought))
    learned = bill.asked
    for more in range(1, 20):
        for cached, thought in ((0, 0), (7, 0), (0, 5), (7, 5)):
            usage = usage_of(model, MODELS[model](model, sent=100 * more, got=more, cached=cached, thought=thought))
            assert usage.cost_usd
    assert bill.asked == learned


MODEL = "openai/gpt-4o-mini"
FOUND = [{"type": "url_citation", "url_citation": {"url": "https://www.w3.org/", "title": "W3C"}}]
SPECIAL: dict[str, dict[str, Any]] = {
    "a search": chat(
        MODEL,
        sent=50,
        got=9,
        choices=[
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "fine", "annotations": FOUND},
            }
        ],
    ),
    "sound": chat(
        MODEL,
        sent=50,
        got=9,
        usage={
            "prompt_tokens": 50,
            "completion_tokens": 9,
            "total_tokens": 59,
            "prompt_tokens_details": {"audio_tokens": 20, "cached_tokens": 0},
        },
    ),
    "a fraction": chat(
        MODEL,
        sent=50,
        got=9,
        usage={"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59, "cost": 0.25},
    ),
    "a long prompt": chat(MODEL, sent=40_000, got=9),
    "counts that don't add up": chat(
        MODEL,
        sent=50,
        got=9,
        usage={
            "prompt_tokens": 50,
            "completion_tokens": 9,
            "total_tokens": 59,
            "completion_tokens_details": {"reasoning_tokens": 12},
        },
    ),
}


@pytest.mark.parametrize("body", SPECIAL.values(), ids=SPECIAL)
def test_what_else_costs_is_left_to_litellm(bill: Bill, body: dict[str, Any]) -> None:
    """Searches, sound, prices in the response, and prompts for which a model may have another price."""
    usage_of(MODEL, chat(MODEL, sent=50, got=9))
    for _ in range(3):
        before = bill.asked
        assert usage_of(MODEL, body).cost_usd == bill.own(convert(MODEL, body), MODEL)
        assert bill.asked == before + 1


def test_seconds_in_a_usage_change_nothing(bill: Bill) -> None:
    """Some providers state how long a call has waited."""
    model = "mistral/mistral-large-latest"
    for waited in (0.25, 0.5):
        body = chat(model, sent=50, got=9, x_groq={"id": f"req_{waited}"})
        body["usage"]["queue_time"] = waited
        before = bill.asked
        assert usage_of(model, body).cost_usd
    assert bill.asked == before


def test_a_service_tier_has_its_own_price(bill: Bill) -> None:
    """The price of a tier isn't taken for that of another."""
    model = "openai/gpt-5-mini"
    paid = {
        tier: [usage_of(model, chat(model, sent=50, got=9, service_tier=tier)).cost_usd for _ in range(2)]
        for tier in ("default", "flex", "priority")
    }
    assert all(first == again for first, again in paid.values())
    assert len({first for first, _ in paid.values()}) == len(paid)
    assert bill.asked


def test_a_litellm_that_refuses_other_counts_is_asked_each_time(bill: Bill, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that can't be learned are no failure."""
    model = "openai/gpt-4o"

    def completion_cost(completion_response: Any, model: str) -> float:  # noqa: ANN401 -- litellm's ModelResponse
        if completion_response.usage.prompt_tokens != 50:
            raise ValueError
        bill.asked += 1
        return float(bill.own(completion_response, model))

    monkeypatch.setattr(load_litellm(), "completion_cost", completion_cost)
    costs = {usage_of(model, chat(model, sent=50, got=9)).cost_usd for _ in range(3)}
    assert (len(costs), bill.asked) == (1, 3)


def register(name: str, **prices: Any) -> None:  # noqa: ANN401 -- JSON
    """Add a model of the user's own to litellm's table."""
    entry = {"litellm_provider": "openai", "mode": "chat", "max_tokens": 1000, "max_input_tokens": 100_000, **prices}
    load_litellm().register_model({name: entry})


PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def test_a_price_that_is_registered_later_holds(bill: Bill) -> None:
    """A model's price may be changed between two runs of one process."""
    name = "openai/priced-by-us"
    body = chat(name, sent=50, got=10)
    for factor in (1, 2):
        register(name, **{each: price * factor for each, price in PRICES.items()})
        for _ in range(2):
            assert usage_of(name, body).cost_usd == pytest.approx(7e-5 * factor)
    assert bill.asked


@pytest.mark.parametrize(
    ("kind", "prices"),
    [
        pytest.param("hours", {**PRICES, "off_peak_pricing": {"hours_utc": "00:00-00:01"}}, id="hours"),
        pytest.param("step", {**PRICES, "input_cost_per_token_above_16k_tokens": 3e-6}, id="step"),
    ],
)
def test_a_price_that_is_not_linear_is_left_to_litellm(bill: Bill, kind: str, prices: dict[str, Any]) -> None:
    """One that depends on the hour, or on the length of a short prompt."""
    name = f"openai/priced-by-{kind}"
    register(name, **prices)
    for sent in (50, 20_000, 50):
        before = bill.asked
        body = chat(name, sent=sent, got=10)
        assert usage_of(name, body).cost_usd == bill.own(convert(name, body), name)
        assert bill.asked > before
