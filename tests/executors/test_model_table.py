"""The table of models, read without litellm: the same prices, limits and token counts as litellm's own functions."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import litellm_adapter
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.executors.llm.llm import LLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.executors.llm.messages import Message

CURRENT = tuple(map(int, version("litellm").split(".")[:2])) >= (1, 110)
"""Whether litellm counts the tokens of OpenAI's models by their own encoding, as it does since 1.110."""


@pytest.fixture(autouse=True)
def _litellm_is_loaded() -> None:
    load_litellm()


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as before litellm is imported."""
    monkeypatch.setattr(litellm_adapter, "_is_in_use", lambda: True)


def _models() -> Iterator[str]:
    for key, entry in litellm_adapter.read_table().items():
        provider = entry.get("litellm_provider")
        if provider in litellm_adapter.PROVIDERS:
            yield key if key.startswith(f"{provider}/") else f"{provider}/{key}"


MODELS = sorted(set(_models()))
COUNTED = [model for model in MODELS if model.startswith("openai/")] + MODELS[::10]


@pytest.mark.slow
@pytest.mark.usefixtures("before")
def test_prices_and_limits_are_those_of_litellm() -> None:
    """For each model of the table, for short and for long prompts."""
    litellm, found = load_litellm(), 0
    for model in MODELS:
        if (entry := litellm_adapter.find_entry(model)) is None:
            continue
        info: dict[str, Any] = litellm.get_model_info(model)
        for name in ("max_input_tokens", "max_output_tokens", "search_context_cost_per_query"):
            assert entry.get(name) == info[name], model
        for name in ("input_cost_per_token_batches", "output_cost_per_token_batches"):
            assert entry.get(name) == info.get(name), model
        for length in (1, 1 << 20):
            if price := litellm_adapter.price_of(entry, length):
                found += 1
                costs = litellm.cost_per_token(model=model, prompt_tokens=length, completion_tokens=1)
                reasoning = info.get("output_cost_per_reasoning_token") or 0
                assert price == pytest.approx((costs[0] / length, max(costs[1], reasoning))), model
    assert found > 600


CHAT: list[Message] = [
    {"role": "system", "content": "Größere Wörter, 漢字 🙂, f(x) = 12345678, <|endoftext|>, internationalization."},
    {"role": "user", "content": "A document of several words. " * 400},
]


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(
    "model", ["test", "mine", "meta-llama/Llama-3.1-8B-Instruct", "qwen3:8b", "Mistral-7B", "openai"]
)
def test_models_of_own_servers(model: str) -> None:
    """One that the table does not have has no price, and is counted as litellm does."""
    name = f"openai/{model}"
    assert litellm_adapter.is_unlisted(name)
    assert litellm_adapter.count_tokens(name, CHAT) == load_litellm().token_counter(model=name, messages=CHAT)
    with pytest.raises(Exception, match="mapped"):
        load_litellm().get_model_info(name)


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-5-mini",
        "openai/gpt-9",
        "openai/o9-mini",
        "openai/",
        "openai/claude-opus-9",
        "azure/test",
        "gpt-5-mini",
    ],
)
def test_models_that_may_be_listed(model: str) -> None:
    """A name that litellm may know by a rule is left to litellm."""
    assert not litellm_adapter.is_unlisted(model)


@pytest.mark.slow
@pytest.mark.usefixtures("before")
def test_tokens_are_counted_as_litellm_does() -> None:
    """For each model of the table."""
    litellm, found = load_litellm(), 0
    for model in COUNTED:
        if model.startswith("openai/") and not CURRENT:
            continue
        if (counted := litellm_adapter.count_tokens(model, CHAT[:1])) is not None:
            found += 1
            assert counted == litellm.token_counter(model=model, messages=CHAT[:1]), model
    assert found > 60


@given(st.text(max_size=3000))
def test_any_text_is_counted_as_litellm_does(text: str) -> None:
    """In pieces, as litellm does."""
    chat: list[Message] = [{"role": "user", "content": text}]
    own = litellm_adapter.count_tokens("anthropic/any", chat)
    assert own == load_litellm().token_counter(model="anthropic/any", messages=chat)


@pytest.mark.usefixtures("before")
def test_every_provider_of_litellm_is_named_in_its_files() -> None:
    """So that none is refused that litellm knows."""
    litellm = load_litellm()
    providers = {str(getattr(each, "value", each)) for each in litellm.provider_list}
    assert len(providers) > 100
    assert not [each for each in providers if litellm_adapter.is_unknown_provider(each)]
    assert all(litellm.get_llm_provider(model=f"{each}/any")[1] == each for each in litellm_adapter.PROVIDERS)
    assert litellm_adapter.is_unknown_provider("opnai")
    assert not litellm_adapter.has_known_provider("opnai/gpt-5")
    with pytest.raises(JobError, match="'opnai/gpt-5' is unknown to litellm"):
        LLM(model="openai/gpt-5", fallbacks=("opnai/gpt-5",)).require_providers()


def test_a_table_that_litellm_would_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where litellm is imported, or is to fetch a newer one, it is asked itself."""
    for changed in ("imported", "fetched"):
        if changed == "fetched":
            monkeypatch.delitem(sys.modules, "litellm")
            monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "False")
        assert litellm_adapter.find_entry("openai/gpt-5-mini") is None
        assert not litellm_adapter.is_unlisted("openai/test")
        assert not litellm_adapter.is_unknown_provider("opnai")
        assert litellm_adapter.count_tokens("openai/gpt-5-mini", CHAT) is None
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP")
    assert litellm_adapter.find_entry("openai/gpt-5-mini")


def test_prices_by_the_hour_are_left_to_litellm() -> None:
    """Only plain prices are taken from the table."""
    plain = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    assert litellm_adapter.price_of(plain, 1 << 20) == (1e-6, 2e-6)
    assert litellm_adapter.price_of({**plain, "off_peak_pricing": {}}, 1) is None
    assert litellm_adapter.price_of({"input_cost_per_token": 1e-6}, 1) is None
    long = {**plain, "input_cost_per_token_above_200k_tokens": 3e-6}
    assert litellm_adapter.price_of(long, 1) == (1e-6, 2e-6)
    assert litellm_adapter.price_of(long, 1 << 17) is None


@pytest.mark.slow
def test_a_plan_does_not_import_litellm() -> None:
    """Neither for a listed model, nor for one of the user's own server, nor to refuse an unknown one."""
    code = (
        "import sys\n"
        "from prefect_dispatch import LLM, Brief, Item\n"
        "from prefect_dispatch.executors.base import Ask\n"
        "ask = Ask(brief=Brief(name='say', instructions='Say.'), item=Item(key='a', value='b'))\n"
        "listed, own = LLM(model='openai/gpt-5-mini'), LLM(model='openai/test', api_base='http://x')\n"
        "for llm in listed, own:\n"
        "    llm.require_available(), llm.count_tokens(ask.brief, ask.item), llm.cost_bound(ask)\n"
        "    llm.context_tokens()\n"
        "assert listed.price() and listed.batch_variant.price() and own.price() is None\n"
        "try:\n    LLM(model='opnai/gpt-5').require_available()\nexcept Exception as error:\n    print(error)\n"
        "assert 'litellm' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 -- ours
    assert ran.stdout == "Model 'opnai/gpt-5' is unknown to litellm: name it as provider/model.\n"
