"""Providers that are broken or hostile: what is read of a response is bounded, and no key goes to another address."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm.http_exchange import (
    ERROR_BYTES,
    MOST_REDIRECTS,
    Exchange,
    MalformedResponseError,
    inspect_body,
    install,
)
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Usage
from tests.openai_server import openai_server
from tests.openai_wire import completion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Handler = Callable[[web.Request], Any]

ASK = Ask(brief=Brief(name="sum", instructions="Sum it up."), item=Item(key="a", value="One document."))
LIMIT = 1 << 20
GOOD = completion({"model": "m"}, {"role": "assistant", "content": "fine"}, "stop", {"prompt_tokens": 1}).encode()
ANTHROPIC = json.dumps(
    {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "fine"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
).encode()
GEMINI = json.dumps(
    {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "fine"}]}, "finishReason": "STOP"}],
        "modelVersion": "gemini-2.5-pro-001",
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    }
).encode()
PROVIDERS = {
    "own": ("openai/test", None, GOOD),
    "openai": ("openai/test", "OPENAI_BASE_URL", GOOD),
    "anthropic": ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_BASE", ANTHROPIC),
    "gemini": ("gemini/gemini-2.5-pro", "GEMINI_API_BASE", GEMINI),
}
every_provider = pytest.mark.parametrize("name", list(PROVIDERS))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("PREFECT_DISPATCH_MAX_RESPONSE_BYTES", str(LIMIT))


@pytest.fixture(name="ask")
def _ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reply]:
    """Return what asks a provider as users reach it: by its address, or by the variable that has it."""

    def ask(name: str, url: str, **fields: Any) -> Reply:  # noqa: ANN401 -- the executor's
        model, variable, _ = PROVIDERS[name]
        base = url.replace("/v1", "/hostile")
        if variable:
            monkeypatch.setenv(variable, base)
        executor = LLM(model=model, api_base=None if variable else base, **fields)
        return asyncio.run(executor.answer(ASK))

    return ask


def serving(handler: Handler) -> Callable[[web.Application], None]:
    """Return what has a handler answer every request."""

    def add(app: web.Application) -> None:
        app.router.add_route("*", "/hostile/{path:.*}", handler)

    return add


def sending(
    pieces: Callable[[], Iterator[bytes]], *, status: int = 200, coding: str = "", kind: str = "application/json"
) -> Handler:
    """Return a handler that sends a body, piece by piece, until the client hangs up."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": kind, **({"Content-Encoding": coding} if coding else {})}
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        for piece in pieces():
            await response.write(piece)
        return response

    return handle


def endless(piece: bytes = b" " * 65536) -> Iterator[bytes]:
    """Yield the same again and again, up to much more than is read."""
    for _ in range(64 * LIMIT // len(piece)):
        yield piece


def bomb(wbits: int) -> Iterator[bytes]:
    """Yield compressed blanks: 256 MB in 256 kB."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    for _ in range(256):
        yield compressor.compress(b" " * 1_000_000)
    yield compressor.flush()


@pytest.mark.slow
@every_provider
@pytest.mark.parametrize(
    ("handler", "fields"),
    [
        pytest.param(sending(endless), {}, id="endless"),
        pytest.param(sending(lambda: bomb(31), coding="gzip"), {}, id="gzip"),
        pytest.param(sending(lambda: bomb(15), coding="deflate"), {}, id="deflate"),
        pytest.param(sending(endless, kind="text/event-stream"), {"idle_s": 5}, id="stream"),
        pytest.param(
            sending(lambda: bomb(31), coding="gzip", kind="text/event-stream"), {"idle_s": 5}, id="stream-gzip"
        ),
    ],
)
def test_a_response_that_is_too_long_is_given_up(
    name: str, handler: Handler, fields: dict[str, Any], ask: Callable[..., Reply]
) -> None:
    """Whoever sends the request: the call fails for that, may have cost something, and isn't made again."""
    with openai_server(routes=serving(handler)) as server, pytest.raises(RejectedError) as caught:
        ask(name, server.url, **fields)
    assert caught.value.kind == "response_too_large"
    assert "PREFECT_DISPATCH_MAX_RESPONSE_BYTES" in str(caught.value)
    assert caught.value.usage == Usage(requests=1, unsettled=1)


@pytest.mark.slow
@every_provider
def test_the_body_of_an_error_is_cut_off(name: str, ask: Callable[..., Reply]) -> None:
    """Its status says what it is, however long it is."""
    handler = sending(lambda: endless(b"x" * 65536), status=500, kind="text/plain")
    with openai_server(routes=serving(handler)) as server, pytest.raises(TransientError) as caught:
        ask(name, server.url)
    assert caught.value.kind == "server"
    assert ERROR_BYTES > 0


@every_provider
def test_endless_headers_fail_the_call(name: str, ask: Callable[..., Reply]) -> None:
    """They count as a broken connection; they are held in no memory."""

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.write(
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 4000) for n in range(4000))
        )
        await asyncio.sleep(0.5)
        request.transport.abort()
        return web.Response()

    with openai_server(routes=serving(handle)) as server, pytest.raises(TransientError):
        ask(name, server.url)


@every_provider
@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw-deflate"])
def test_a_compressed_answer_is_read(name: str, coding: str, ask: Callable[..., Reply]) -> None:
    """In the codings that are asked for, whatever follows its end."""
    body = PROVIDERS[name][2]
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = {
        "gzip": gzip.compress(body) + b"what follows",
        "deflate": zlib.compress(body),
        "raw-deflate": raw.compress(body) + raw.flush(),
    }[coding]
    handler = sending(lambda: iter([packed[:20], packed[20:]]), coding=coding.removeprefix("raw-"))
    with openai_server(routes=serving(handler)) as server:
        assert ask(name, server.url).value == "fine"


DEEP = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.mark.slow
@every_provider
@pytest.mark.parametrize(
    ("pieces", "coding"),
    [
        pytest.param(b"\xff\xfe{not utf-8", "", id="not-utf-8"),
        pytest.param(GOOD[:40], "", id="cut"),
        pytest.param(DEEP, "", id="deep"),
        pytest.param(gzip.compress(GOOD)[:30], "gzip", id="cut-gzip"),
        pytest.param(b"no gzip at all", "gzip", id="no-gzip"),
        pytest.param(b"\x8b\x02\x80fine\x03", "br", id="unasked-coding"),
        pytest.param(gzip.compress(gzip.compress(GOOD)), "gzip, gzip", id="twice"),
        pytest.param(b'{"choices": "words", "content": 5, "candidates": [7]}', "", id="another-form"),
    ],
)
def test_a_response_that_cannot_be_read_is_tried_again(
    name: str, pieces: bytes, coding: str, ask: Callable[..., Reply]
) -> None:
    """It is a failure in passing, which may have cost something."""
    handler = sending(lambda: iter([pieces]), coding=coding)
    with openai_server(routes=serving(handler)) as server, pytest.raises(TransientError) as caught:
        ask(name, server.url)
    assert caught.value.kind in {"malformed", "connection", "server"}
    assert caught.value.usage == Usage(requests=1, unsettled=1)


NONSENSE: list[Any] = [
    {"prompt_tokens": -5, "input_tokens": -5, "promptTokenCount": -5},
    {"prompt_tokens": "many", "input_tokens": "many", "promptTokenCount": "many"},
    {"prompt_tokens": 10**30, "input_tokens": 10**30, "promptTokenCount": 10**30},
    {"prompt_tokens": 1.5, "input_tokens": 1.5, "promptTokenCount": 1.5},
    {"prompt_tokens": True, "input_tokens": True, "promptTokenCount": True},
    {"prompt_tokens": None, "completion_tokens": 5},
    {"prompt_tokens": {"a": 1}, "input_tokens": {"tokens": -1}, "promptTokenCount": [{"tokenCount": -1}]},
    "a text",
    [1],
]


@every_provider
@pytest.mark.parametrize("fields", [{}, {"idle_s": 5}], ids=["whole", "stream"])
@pytest.mark.parametrize("usage", NONSENSE, ids=lambda usage: json.dumps(usage)[:30])
def test_nonsense_in_the_usage_discards_no_answer(
    name: str,
    usage: Any,  # noqa: ANN401 -- JSON
    fields: dict[str, Any],
    ask: Callable[..., Reply],
) -> None:
    """The answer counts; what it took is unknown."""
    if fields and name not in {"own", "openai"}:
        pytest.skip("their streams have another form")
    body = json.loads(PROVIDERS[name][2])
    key = "usageMetadata" if name == "gemini" else "usage"
    content = json.dumps({**body, key: usage}).encode()
    if fields:
        choice = {"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        content = f"data: {json.dumps({**chunk, 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
    kind = "text/event-stream" if fields else "application/json"
    with openai_server(routes=serving(sending(lambda: iter([content]), kind=kind))) as server:
        reply = ask(name, server.url, **fields)
    assert reply.value == "fine"
    assert (reply.usage.requests, reply.usage.unsettled, reply.usage.tokens) == (1, 1, 0)


def test_nonsense_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """For each model, however many answers have it."""
    body = json.dumps({**json.loads(GOOD), "usage": {"prompt_tokens": -1}}).encode()
    with openai_server(routes=serving(sending(lambda: iter([body])))) as server:
        executor = LLM(model="openai/logged-once", api_base=server.url.replace("/v1", "/hostile"))
        for _ in range(3):
            asyncio.run(executor.answer(ASK))
    said = [record.getMessage() for record in caplog.records if "openai/logged-once" in record.getMessage()]
    assert len(said) == 1
    assert "counts as unknown" in said[0]


@every_provider
def test_the_model_that_a_response_names_is_told(name: str, ask: Callable[..., Reply]) -> None:
    """As the provider's own response has it, not as litellm does."""
    body = PROVIDERS[name][2]
    with openai_server(routes=serving(sending(lambda: iter([body])))) as server:
        said = json.loads(body)
        assert ask(name, server.url).served_model == said.get("model", said.get("modelVersion"))


@every_provider
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("fields", [{}, {"idle_s": 5}], ids=["whole", "stream"])
def test_a_redirect_to_another_origin_is_refused(
    name: str, status: int, fields: dict[str, Any], ask: Callable[..., Reply]
) -> None:
    """Every item would meet it; neither the key nor the item goes there."""
    with openai_server() as other:

        async def handle(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"{other.url}{request.path}"})

        with openai_server(routes=serving(handle)) as server, pytest.raises(TerminalError) as caught:
            ask(name, server.url, **fields)
    assert caught.value.kind == "redirect"
    assert "api_base" in str(caught.value)
    assert caught.value.usage == Usage(requests=1)
    assert other.count == 0


@every_provider
def test_a_redirect_within_the_origin_is_followed_where_it_keeps_the_request(
    name: str, ask: Callable[..., Reply]
) -> None:
    """With 307 and 308; after others a client would send no body."""
    body = PROVIDERS[name][2]
    seen: list[tuple[str, str, bytes]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, await request.read()))
        if request.path.startswith("/hostile/again"):
            return web.Response(body=body, content_type="application/json")
        status = 308 if len(seen) == 1 else 302
        return web.Response(status=status, headers={"Location": f"/hostile/again{request.path}"}, text="moved")

    with openai_server(routes=serving(handle)) as server:
        assert ask(name, server.url).value == "fine"
        assert [method for method, _, _ in seen] == ["POST", "POST"]
        assert seen[0][2] == seen[1][2]
        with pytest.raises(TerminalError, match="drops the request's body"):
            ask(name, server.url)


@pytest.mark.slow
@every_provider
@pytest.mark.parametrize("location", ["", "http://[", "/hostile/round"])
def test_odd_redirects(name: str, location: str, ask: Callable[..., Reply]) -> None:
    """One that leads nowhere, and one that leads round and round, end the call."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": location} if location else {})

    with openai_server(routes=serving(handle)) as server, pytest.raises(ExecutorError) as caught:
        ask(name, server.url)
    assert caught.value.kind == ("redirect" if location else "server")
    assert len(seen) <= 25
    assert MOST_REDIRECTS < 25


def test_requests_that_are_not_ours_are_left_alone() -> None:
    """A call of the user's own through litellm has neither limit nor rule."""
    litellm = load_litellm()
    body = json.dumps({**json.loads(GOOD), "padding": "x" * 2 * LIMIT}).encode()
    with openai_server(routes=serving(sending(lambda: iter([body])))) as server:
        call = litellm.acompletion(
            model="openai/m",
            messages=[{"role": "user", "content": "x"}],
            api_base=server.url.replace("/v1", "/hostile"),
            api_key="sk-x",
        )
        assert asyncio.run(call).choices[0].message.content == "fine"


def test_an_error_in_the_body_of_a_success_is_one() -> None:
    """Some proxies answer so."""
    body = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": "429"}}'
    with openai_server(routes=serving(sending(lambda: iter([body])))) as server, pytest.raises(ExecutorError):
        asyncio.run(LLM(model="openai/m", api_base=server.url.replace("/v1", "/hostile")).answer(ASK))


def test_a_client_of_the_user_has_the_limits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that litellm was given; what is no client is left alone."""
    litellm = load_litellm()
    create = litellm.llms.openai.common_utils.BaseOpenAILLM._get_async_http_client  # noqa: SLF001 -- what is wrapped
    client = httpx.AsyncClient()
    monkeypatch.setattr(litellm, "aclient_session", client)
    assert create() is create() is client
    assert [len(hooks) for hooks in client.event_hooks.values()] == [1, 1]
    monkeypatch.setattr(litellm, "aclient_session", other := object())
    assert create() is other
    asyncio.run(client.aclose())


def test_the_limits_are_installed_once() -> None:
    """This version of litellm makes its clients where they are wrapped."""
    litellm = load_litellm()
    handler: Any = litellm.llms.custom_httpx.http_handler.AsyncHTTPHandler
    wrapped = handler.create_client
    assert wrapped.has_limits
    install(litellm)
    assert handler.create_client is wrapped


MEASURED = """
import asyncio, json, os, resource, sys
from prefect_dispatch import LLM, Brief, Item
from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.executors.base import Ask

ask = Ask(brief=Brief(name="a", instructions="x"), item=Item(key="a", value="a"))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main():
    await LLM(model="openai/m").warm_up()
    before = peak()
    for model, variable, base, idle_s in json.loads(sys.argv[1]):
        if variable:
            os.environ[variable] = base
        executor = LLM(model=model, api_base=None if variable else base, idle_s=idle_s)
        try:
            await executor.answer(ask)
        except ExecutorError as error:
            print(json.dumps([model, variable, base[-8:], idle_s, error.kind, peak() - before]))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_memory_of_a_hostile_response_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default limit of 32 MiB an endless body, or 2 GB out of 2 MB, take less than 250 MB, whoever reads."""
    monkeypatch.delenv("PREFECT_DISPATCH_MAX_RESPONSE_BYTES")
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, again = (compressor.compress(b" " * 10_000_000) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))

    async def handle(request: web.Request) -> web.StreamResponse:
        streamed = b'"stream": true' in await request.read() or b'"stream":true' in await request.read()
        kind = "text/event-stream" if streamed else "application/json"
        if "/bomb" in request.path:
            answer: web.StreamResponse = await sending(lambda: iter([first, *[again] * 199]), coding="gzip", kind=kind)(
                request
            )
        else:
            answer = await sending(lambda: (b" " * 65536 for _ in range(65536)), kind=kind)(request)
        return answer

    with openai_server(routes=serving(handle)) as server:
        cases = [
            (model, variable, f"{server.url.replace('/v1', '/hostile')}/{what}", idle_s)
            for model, variable, _ in (PROVIDERS[name] for name in ("own", "openai", "anthropic"))
            for what in ("endless", "bomb")
            for idle_s in (None, 30)
        ]
        command = [sys.executable, "-c", MEASURED, json.dumps(cases)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 -- this interpreter, a fixed text
    print(f"\n{done.stdout}")  # noqa: T201 -- a measurement
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kind for *_, kind, _ in measured] == ["response_too_large"] * len(cases)
    assert max(megabytes for *_, megabytes in measured) < 250


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b'{"a": "\xff"}', "is not UTF-8", id="not-utf-8"),
        pytest.param(b"[" * 200_000, "is nested too deep", id="deep"),
        pytest.param(b"{", "is not JSON", id="cut"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, why: str) -> None:
    """The exchange keeps it as its failure."""
    exchange = Exchange("openai/m")
    with pytest.raises(MalformedResponseError, match=why):
        exchange.parse(body)
    assert isinstance(exchange.failure, MalformedResponseError)


def test_a_line_of_a_stream_that_is_no_json_goes_on_as_it_is() -> None:
    """Whoever parses it says what is wrong with it."""

    async def lines() -> bytes:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'data: {"usage": {"prompt_tokens": -1}\n'

        return b"".join([line async for line in Exchange("openai/m").iter_inspected_events(pieces())])

    assert asyncio.run(lines()) == b'data: {"usage": {"prompt_tokens": -1}\n'


def test_counts_may_stand_in_lists() -> None:
    """What is no count there counts for nothing; one that can't be true is found."""
    details: Any = [{"modality": "TEXT", "tokenCount": 3}, "text"]
    for count, changed in ((3, False), (-3, True)):
        details[0]["tokenCount"] = count
        assert inspect_body({"usage": {"details": details}}, "openai/lists")[1] is changed
