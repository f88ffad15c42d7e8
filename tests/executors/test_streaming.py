"""Calls that are ended once nothing comes any more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from prefect_dispatch.errors import BusyError, ExecutorError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Usage
from tests.openai_server import (
    CUT,
    DRIP,
    HANG,
    HTML,
    HTML_ERROR,
    LONG,
    MALFORMED,
    RESET,
    STALL,
    Behaviour,
    openai_server,
)

RECORD: dict[str, Any] = {"type": "object", "required": ["a"]}
ITEM = Item(key="a", value="One document.")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def ask(url: str, *, idle_s: float | None = 5, model: str = "openai/gpt-4o", output: Any = "text") -> Reply:  # noqa: ANN401 -- a brief's output
    """Ask once."""
    brief = Brief(name="sum", instructions="Sum it up.", output=output)
    executor = LLM(model=model, api_base=url, idle_s=idle_s)
    return asyncio.run(executor.answer(Ask(brief=brief, item=ITEM)))


def events(*data: Any) -> Behaviour:  # noqa: ANN401 -- JSON
    """Return a stream of these events."""
    text = "".join(f"data: {json.dumps(each)}\n\n" for each in data)
    return Behaviour(body=text, content_type="text/event-stream")


def delta(text: str) -> dict[str, Any]:
    """Return an event with a part of the answer."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Behaviour(content="one  two\n\nthree ünï 漢"), id="text"),
        pytest.param(Behaviour(content="cut", finish_reason="length"), id="length"),
        pytest.param(Behaviour(content="", finish_reason="content_filter"), id="filter"),
        pytest.param(Behaviour(content=None, refusal="No, not that."), id="refusal"),
        pytest.param(Behaviour(content=None), id="no-content"),
        pytest.param(Behaviour(tells_tokens=False), id="no-usage"),
        pytest.param(DRIP, id="drip"),
    ],
)
@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/mine"])
def test_a_stream_says_what_a_body_says(behaviour: Behaviour, model: str) -> None:
    """The reply is the same: text, end, refusal, tokens and price."""
    with openai_server(behaviour) as server:
        streamed, whole = ask(server.url, model=model), ask(server.url, idle_s=None, model=model)
    assert streamed == whole
    assert [request.body.get("stream", False) for request in server.requests] == [True, False]


def test_the_schema_goes_along() -> None:
    """But for being streamed, the request is the same."""
    with openai_server(Behaviour(content='{"a": 1}')) as server:
        ask(server.url, output=RECORD)
        ask(server.url, output=RECORD, idle_s=None)
    streamed, whole = (request.body for request in server.requests)
    assert streamed == {**whole, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [pytest.param(HANG, id="never-began"), pytest.param(STALL, id="stalled")])
@pytest.mark.parametrize(
    "model", ["openai/gpt-4o", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "hosted_vllm/x"]
)
def test_silence_ends_the_call(behaviour: Behaviour, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says nothing more is left, and the connection closed."""
    for provider in ("ANTHROPIC", "GEMINI", "HOSTED_VLLM"):
        monkeypatch.setenv(f"{provider}_API_KEY", "sk-test-0123456789")
    with openai_server(behaviour) as server, pytest.raises(TransientError, match=r"nothing came for 0\.2 s") as caught:
        ask(server.url, idle_s=0.2, model=model)
    assert caught.value.kind == "idle"
    assert caught.value.usage == Usage(requests=1, unsettled=1)
    assert server.hung_up == server.count == 1


@pytest.mark.slow
def test_a_slow_stream_is_not_silent() -> None:
    """What takes longer in all than the idle limit is heard to its end."""
    slow = Behaviour(content=" ".join("abcdefghij"), drip_s=0.1)
    with openai_server(slow) as server:
        assert ask(server.url, idle_s=1.2).value == slow.content
    assert server.hung_up == 0


def test_given_up_it_is_closed() -> None:
    """A stream that is cancelled leaves no connection behind."""

    async def give_up(executor: LLM) -> None:
        await asyncio.wait_for(executor.answer(Ask(brief=Brief(name="a", instructions="Do."), item=ITEM)), 0.3)

    with openai_server(STALL) as server, pytest.raises((TimeoutError, asyncio.TimeoutError)):
        asyncio.run(give_up(LLM(model="openai/x", api_base=server.url, idle_s=60)))
    assert server.hung_up == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "kind"),
    [
        pytest.param(HTML_ERROR, TransientError, "server", id="html-502"),
        pytest.param(CUT, TransientError, "connection", id="cut"),
        pytest.param(RESET, TransientError, "connection", id="reset"),
        pytest.param(Behaviour(ending="short"), TransientError, "connection", id="length-too-short"),
        pytest.param(Behaviour(finish_reason=None), TransientError, "connection", id="no-end"),
        pytest.param(events(delta("half")), TransientError, "connection", id="ended-in-good-order"),
        pytest.param(HTML, TransientError, "malformed", id="html"),
        pytest.param(MALFORMED, TransientError, "malformed", id="no-stream"),
        pytest.param(Behaviour(body=""), TransientError, "malformed", id="nothing"),
        pytest.param(
            Behaviour(body='data: {"choices\n\n', content_type="text/event-stream"),
            TransientError,
            "malformed",
            id="broken-event",
        ),
        pytest.param(
            events(delta("half"), {"error": {"message": "Overloaded", "type": "overloaded_error"}}),
            BusyError,
            "overloaded",
            id="overloaded",
        ),
        pytest.param(
            events(delta("half"), {"error": {"message": "slow down", "code": 429}}), BusyError, "rate_limit", id="429"
        ),
        pytest.param(events({"error": {"message": "no key", "code": 401}}), TerminalError, "credentials", id="401"),
        pytest.param(events(delta("half"), {"error": {"message": "oh"}}), TransientError, "server", id="error"),
    ],
)
def test_streams_that_end_badly(behaviour: Behaviour, error: type[ExecutorError], kind: str) -> None:
    """Half an answer never passes for one."""
    with openai_server(behaviour) as server, pytest.raises(ExecutorError) as caught:
        ask(server.url)
    assert (type(caught.value), caught.value.kind) == (error, kind)
    assert "MidStream" not in str(caught.value)
    assert caught.value.usage == Usage(requests=1, unsettled=int(kind not in {"rate_limit", "credentials"}))


def test_what_comes_after_the_end_does_not_matter() -> None:
    """An answer that was heard to its end stands, whatever becomes of the connection."""
    with openai_server(LONG) as server:
        assert ask(server.url).value == "fine"


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/mine"])
def test_a_stream_that_ends_before_the_answer_is_tried_again(model: str) -> None:
    """What came is a part, and no answer."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    chunk |= {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}

    async def handle(_: web.Request) -> web.Response:
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        return web.Response(body=body, content_type="text/event-stream")

    def routes(app: web.Application) -> None:
        app.router.add_route("*", "/half/{path:.*}", handle)

    with openai_server(routes=routes) as server, pytest.raises(TransientError) as caught:
        ask(server.url.replace("/v1", "/half"), idle_s=5, model=model)
    assert caught.value.usage == Usage(requests=1, unsettled=1)
