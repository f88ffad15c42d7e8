"""A server of one's own is asked what litellm would ask it, and what it says means the same."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm.direct_calls import supports_direct_http
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.tasks import event_loop
from tests.openai_server import Behaviour, failure, openai_server

BRIEF = Brief(name="sum", instructions="Sum it up.", constraints=("Be short.",))
RECORD = Brief(
    name="rec",
    instructions="Give it.",
    output={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
ITEM = Item(key="a", value="One document, déjà vu.")
BY_LITELLM = ("SSL_VERIFY", "true")
"""A variable with which litellm sends otherwise, so that it is asked, and which changes nothing here."""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def ask(executor: LLM, brief: Brief = BRIEF) -> Reply:
    """Ask once."""
    return asyncio.run(executor.answer(Ask(brief=brief, item=ITEM)))


@pytest.mark.parametrize("brief", [BRIEF, RECORD], ids=["text", "schema"])
@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("openai/test", {}),
        ("openai/test", {"temperature": 0.2, "max_tokens": 50, "seed": 3, "stop": ["END"], "top_p": 0.5}),
        ("openai/gpt-4o-mini", {"frequency_penalty": 0.5, "presence_penalty": 0.1, "user": "me"}),
        ("openai/gpt-5-mini", {"max_tokens": 50, "reasoning_effort": "low"}),
        ("hosted_vllm/org/model", {"temperature": 0, "logit_bias": {"7": 1}}),
    ],
)
def test_it_asks_what_litellm_would(
    model: str, params: dict[str, Any], brief: Brief, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same body and key reach the server, and the same reply comes back, cost included."""
    with openai_server(Behaviour(content='{"a": 1}')) as server:
        executor = LLM(model=model, api_base=server.url, params=params)
        here = ask(executor, brief)
        monkeypatch.setenv(*BY_LITELLM)
        there = ask(executor, brief)
    ours, theirs = server.requests
    assert ours.body == {name: value for name, value in theirs.body.items() if name != "stream"}
    assert "litellm" in theirs.headers["user-agent"] or "OpenAI" in theirs.headers["user-agent"]
    assert "aiohttp" in ours.headers["user-agent"]
    assert here == there


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(content="<think>Well.</think>Fine."),
        Behaviour(content=None),
        Behaviour(content="cut", finish_reason="length"),
        Behaviour(content="", finish_reason="content_filter"),
        Behaviour(content=None, refusal="I won't."),
        Behaviour(content="fine", tells_tokens=False),
    ],
    ids=["thought", "nothing", "cut", "filtered", "refusal", "untold"],
)
def test_what_is_said_means_the_same(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thoughts, refusals, ends of all kinds."""
    with openai_server(behaviour) as server:
        executor = LLM(model="openai/test", api_base=server.url)
        here = ask(executor)
        monkeypatch.setenv(*BY_LITELLM)
        assert here == ask(executor)


@pytest.mark.parametrize(
    "behaviour",
    [
        failure(401, "wrong key", code="invalid_api_key"),
        failure(429, "slow down", retry_after=1),
        failure(500, "broken"),
        Behaviour(status=400, body='{"error": "just words"}'),
        Behaviour(status=404, body='["no object"]'),
        Behaviour(status=422, body='{"detail": "not like this"}'),
        Behaviour(status=503, body="<html>busy</html>", content_type="text/html"),
        Behaviour(body="[]"),
        Behaviour(body="{}"),
        Behaviour(body='"text"'),
        Behaviour(body="null"),
        Behaviour(body="<html>fine</html>", content_type="text/html"),
    ],
    ids=["401", "429", "500", "words", "list", "detail", "page", "a-list", "empty", "a-text", "null", "fine-page"],
)
def test_what_goes_wrong_means_the_same(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same class and kind of error, the same account of what was spent, whoever sends."""

    def failed() -> tuple[type, str, Any]:
        with pytest.raises(ExecutorError) as caught:
            ask(executor)
        return type(caught.value), caught.value.kind, caught.value.usage

    with openai_server(behaviour) as server:
        executor = LLM(model="openai/test", api_base=server.url)
        here = failed()
        monkeypatch.setenv(*BY_LITELLM)
        assert here == failed()


def test_what_is_not_plain_is_left_to_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other providers, no address, parameters of litellm's own, callbacks, no key."""
    litellm = load_litellm()
    plain: dict[str, Any] = {"model": "openai/x", "messages": [], "api_base": "http://127.0.0.1:1/v1"}
    assert supports_direct_http(litellm, plain)
    assert not supports_direct_http(litellm, {**plain, "model": "anthropic/x"})
    assert not supports_direct_http(litellm, {**plain, "api_base": None})
    assert not supports_direct_http(litellm, {**plain, "extra_headers": {}})
    with monkeypatch.context() as patch:
        patch.setattr(litellm, "success_callback", ["cache"])
        assert supports_direct_http(litellm, plain)
        patch.setattr(litellm, "success_callback", ["cache", "langfuse"])
        assert not supports_direct_http(litellm, plain)
    with monkeypatch.context() as patch:
        patch.setattr(litellm, "cache", object())
        assert not supports_direct_http(litellm, plain)
    with monkeypatch.context() as patch:
        patch.setenv("SSL_CERTIFICATE", "/somewhere")
        assert not supports_direct_http(litellm, plain)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert not supports_direct_http(litellm, plain)
    assert supports_direct_http(litellm, {**plain, "api_key": "mine"})
    assert supports_direct_http(litellm, {**plain, "model": "hosted_vllm/x"})


def test_a_connection_is_used_again() -> None:
    """Calls of one event loop, one after another, take one connection; an event loop that ends takes its own along."""
    with openai_server() as server:
        executor = LLM(model="openai/test", api_base=server.url)
        for _ in range(3):
            event_loop.run(run_attempt(executor, BRIEF, ITEM, limits=Limits()), group="test")
            asyncio.run(run_attempt(executor, BRIEF, ITEM, limits=Limits()))
    assert (server.count, server.connections) == (6, 4)


@pytest.mark.slow
def test_a_process_that_ends_closes_its_connections() -> None:
    """Nothing is left open, of which Python would have something to say."""
    script = (
        "import sys\n"
        "from prefect_dispatch import LLM, Brief, Item, Limits\n"
        "from prefect_dispatch.calls.attempt import run_attempt\n"
        "from prefect_dispatch.tasks import event_loop\n"
        "executor, brief = LLM(model='openai/test', api_base=sys.argv[1]), Brief(name='b', instructions='x')\n"
        "attempt = run_attempt(executor, brief, Item(key='a', value='a'), limits=Limits())\n"
        "answer = event_loop.run(attempt, group='test')\n"
        "print(answer.value)\n"
    )
    with openai_server(Behaviour(content="Said.")) as server:
        command = [sys.executable, "-W", "always::ResourceWarning", "-c", script, server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 -- this interpreter, a fixed text
    assert done.stdout == "Said.\n"
    assert "Unclosed" not in done.stderr


def test_a_proxy_of_the_environment_is_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the address is one that is reached without it."""
    with (
        openai_server(Behaviour(content="by the proxy")) as proxy,
        openai_server(Behaviour(content="itself")) as server,
    ):
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").removeprefix("http://"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert ask(LLM(model="openai/test", api_base=server.url)).value == "itself"
        assert ask(LLM(model="openai/test", api_base="http://nowhere.invalid/v1")).value == "by the proxy"
        monkeypatch.setenv("no_proxy", "")
        assert ask(LLM(model="openai/test", api_base=server.url)).value == "by the proxy"
