"""Caches of prompts at providers: which call goes ahead, what is marked, counted, priced and planned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Ask, Brief, Item, Limits, PythonCallable, dispatch, plan
from prefect_dispatch.calls.prompt_prefixes import MAX_DELAY_S, PromptPrefix, PromptPrefixes
from prefect_dispatch.executors.llm.discounts import listed_prefix_cache
from prefect_dispatch.testing import ScriptedExecutor
from tests.executors.test_hosted import BY_LITELLM, Provider, claude
from tests.openai_server import Behaviour, PrefixCache, openai_server
from tests.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch import Report

LONG = Brief(name="long", instructions=" ".join(f"Rule {at}: look for the word {at}." for at in range(300)))
SHORT = Brief(name="short", instructions="Sum it up.")
ITEMS = [f"Document {at}." for at in range(20)]
TOKENS = "fine " * 499 + "fine"


@pytest.fixture(name="anthropic")
def _anthropic(monkeypatch: pytest.MonkeyPatch) -> Generator[Provider]:
    provider = Provider()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-0123456789")
    with openai_server(routes=provider.add_route) as server:
        provider.url = server.url.replace("/v1", "/hosted")
        provider.response = claude()
        yield provider


def test_one_call_goes_ahead_and_the_others_follow() -> None:
    """Of five calls that begin together four wait until the first has its answer; later ones don't wait."""

    async def call(prefix: PromptPrefix, began: list[float]) -> None:
        is_first = await prefix.enter()
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(3)
        if is_first:
            prefix.leave(is_answered=True)

    async def calls() -> list[float]:
        prefix, began = PromptPrefix(tokens=2048), list[float]()
        await asyncio.gather(*(call(prefix, began) for _ in range(5)))
        await call(prefix, began)
        return began

    assert run(calls()) == [0, 3, 3, 3, 3, 6]


def test_where_the_first_call_fails_the_next_one_goes_ahead() -> None:
    """Nothing is cached by a failure, so only one more is sent; a cancelled call that waits holds up nobody."""

    async def calls() -> list[bool]:
        prefix, firsts = PromptPrefix(tokens=2048), list[bool]()

        async def call() -> None:
            firsts.append(is_first := await prefix.enter())
            if is_first:
                await asyncio.sleep(1)
                prefix.leave(is_answered=len(firsts) > 1)

        tasks = [asyncio.ensure_future(call()) for _ in range(4)]
        await asyncio.sleep(0.5)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return firsts

    assert run(calls()) == [True, True, False]


def test_the_delay_is_bounded() -> None:
    """A first call that takes long holds the others up for a while only."""

    async def wait() -> tuple[bool, float]:
        prefix = PromptPrefix(tokens=2048)
        await prefix.enter()
        return await prefix.enter(), asyncio.get_running_loop().time()

    assert run(wait()) == (False, MAX_DELAY_S)


def test_a_brief_is_counted_once_and_a_lonely_one_has_nothing_to_wait_for() -> None:
    """Copies of a brief share their prefix; one with a single call, and one for a program, have none."""
    llm = LLM(model="openai/gpt-4o-mini")

    async def find() -> list[PromptPrefix | None]:
        prefixes = PromptPrefixes()
        prefixes.expect({"long": 2, "alone": 1})
        two = await asyncio.gather(*(prefixes.find(llm, llm.name, LONG.model_copy()) for _ in range(3)))
        alone = await prefixes.find(llm, llm.name, LONG.model_copy(update={"name": "alone"}))
        program = await prefixes.find(ScriptedExecutor({}), "scripted", LONG)
        return [*two, alone, program]

    first, second, third, *others = asyncio.run(find())
    assert first is second is third
    assert first is not None
    assert others == [None, None]


@pytest.mark.parametrize(
    ("model", "brief", "caches"),
    [
        pytest.param("openai/gpt-4o-mini", LONG, True, id="openai"),
        pytest.param("gemini/gemini-2.5-flash", LONG, True, id="gemini"),
        pytest.param("deepseek/deepseek-chat", LONG, True, id="deepseek"),
        pytest.param("anthropic/claude-sonnet-4-5", LONG, True, id="anthropic"),
        pytest.param("anthropic/claude-haiku-4-5", LONG, False, id="shorter-than-4096"),
        pytest.param("hosted_vllm/qwen", LONG, True, id="vllm"),
        pytest.param("openai/own-server", LONG, True, id="own-server"),
        pytest.param("local/smollm2", LONG, False, id="local"),
        pytest.param("groq/llama-3.3-70b-versatile", LONG, False, id="no-cache"),
        pytest.param("openai/gpt-4o-mini", SHORT, False, id="short"),
        pytest.param(
            "openai/gpt-4o-mini",
            LONG.model_copy(update={"scope": "The file {key}."}),
            False,
            id="differs-by-item",
        ),
        pytest.param(
            "openai/gpt-4o-mini",
            Brief(name="bytes", instructions="a" * 1500),
            False,
            id="many-bytes-few-tokens",
        ),
    ],
)
def test_what_a_provider_caches(model: str, brief: Brief, caches: bool) -> None:  # noqa: FBT001 -- a case
    """By the table's models, lengths, and what all items have in common."""
    assert bool(LLM(model=model).prefix_tokens(brief)) == caches


def test_batches_and_programs_have_no_prefix() -> None:
    """A batch runs when its provider likes."""
    assert LLM(model="openai/gpt-4o-mini", mode="batch").prefix_tokens(LONG) == 0
    program = PythonCallable(function="math:sqrt")
    assert (program.prefix_tokens(LONG), program.prefix_prices()) == (0, None)
    assert listed_prefix_cache("openai/gpt-4o-mini") is not None


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_the_brief_is_paid_for_once_and_the_plan_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten at once, 19 of 20 calls find the brief in the cache; the plan's bill is that of the provider."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    cache = PrefixCache(Behaviour(content=TOKENS, completion_tokens=500, delay_s=0.2))
    with openai_server(cache) as server:
        llm = LLM(model="openai/gpt-4o-mini", api_base=server.url)
        planned = plan(LONG, ITEMS, llm)
        report: Report = dispatch([LONG], ITEMS, executor=llm, limits=Limits(concurrency=10))
    cached = cache.cached_tokens
    assert cached / 19 % 128 == 0
    assert cached > 0.75 * cache.prompt_tokens
    assert report.usage.cached_tokens == cached == planned.cached_tokens
    assert report.usage.cost_usd is not None
    assert planned.cost_usd == pytest.approx(report.usage.cost_usd, rel=0.05)


@pytest.mark.usefixtures("store")
def test_anthropic_gets_a_mark_that_the_budget_covers(anthropic: Provider) -> None:
    """What is written into the cache costs a quarter more: in the bound, too; what is read is counted."""
    llm = LLM(model="anthropic/claude-sonnet-4-5", api_base=anthropic.url, params={"max_tokens": 100})
    ask = Ask(brief=LONG, item=Item(key="a", value="x"))
    plain, marked = llm.cost_bound(ask), llm.cost_bound(ask.model_copy(update={"is_prefix_shared": True}))
    assert plain.cost_usd is not None
    assert marked.cost_usd is not None
    assert marked.cost_usd - plain.cost_usd == pytest.approx(plain.prompt_tokens * 0.75e-6)
    report: Report = dispatch([LONG], ITEMS[:3], executor=llm, limits=Limits(budget_usd=1))
    assert all(_is_marked(request.body) for request in anthropic.requests)
    usage = report.outcomes[0].attempts[0].usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens) == (36, 11, 5)


@pytest.mark.usefixtures("store")
def test_a_single_call_is_not_marked(anthropic: Provider) -> None:
    """Writing into the cache would cost more, and nothing would read it."""
    llm = LLM(model="anthropic/claude-sonnet-4-5", api_base=anthropic.url)
    dispatch([LONG], ITEMS[:1], executor=llm)
    assert not _is_marked(anthropic.requests[0].body)


def test_a_marked_request_is_litellms(anthropic: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same body goes out with and without litellm's wrapper, and the same reply comes back."""
    llm = LLM(model="anthropic/claude-sonnet-4-5", api_base=anthropic.url)
    ask = Ask(brief=LONG, item=Item(key="a", value='déjà "vu"\n'), is_prefix_shared=True)
    here = asyncio.run(llm.answer(ask))
    monkeypatch.setenv(*BY_LITELLM)
    assert here == asyncio.run(llm.answer(ask))
    ours, theirs = anthropic.requests
    assert ours == theirs
    assert _is_marked(ours.body)


def test_a_stated_price_counts_for_cached_tokens_too() -> None:
    """The package doesn't guess a discount."""
    llm = LLM(model="openai/gpt-4o-mini", usd_per_million=(1, 2))
    assert llm.prefix_prices() is None
    planned = plan(LONG, ITEMS, llm)
    assert planned.cached_tokens
    assert planned.prompt_tokens is not None
    assert planned.cost_usd == pytest.approx(planned.prompt_tokens * 1e-6 + 20 * 500 * 2e-6)


def _is_marked(body: dict[str, Any]) -> bool:
    """Return whether a request of Anthropic's protocol marks its system text, and nothing else."""
    marks = [part.get("cache_control") for part in body["system"]]
    return marks == [{"type": "ephemeral"}] and "cache_control" not in str(body["messages"])
