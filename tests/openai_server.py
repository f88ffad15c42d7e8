"""A real server on 127.0.0.1 that speaks `/v1/chat/completions`, and misbehaves as told.

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        if n == 1 and share(request) < 0.1:  # a tenth of the documents fail once, always the same ones
            return failure(429, "slow down", retry_after=1)
        return Behaviour(content='{"sum": 3}')

    with openai_server(behave) as server:
        LLM(model="openai/test", api_base=server.url)  # OPENAI_API_KEY may be anything
        ...
    assert server.count == 22

- `openai_server(behave)`: starts it in a thread, on a free port; `behave` may also be one `Behaviour` for all.
- `behave(request, n)`: the request's JSON and how often this very document was asked by now, from 1 on.
  It runs in the server's thread, one call at a time, and must not block.
- `Behaviour`: what one answer is like; `failure(…)`, `HTML_ERROR`, `MALFORMED`, `CUT`, `HANG`: ready ones.
- `document(request)`: the first user message; `share(request)`: a number in [0, 1) that depends on it alone.
- `server.url` (ends in `/v1`), `.requests` (each with `.body` and `.headers`), `.count`, `.usage` (tokens it
  reported, requests it received), `.peak` (most requests at once), `.hung_up` (requests the client gave up).

All of the server's attributes may be read from any thread, also after it has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from prefect_dispatch.models import Usage


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one answer is like; the default is a plain good one."""

    content: str | None = "fine"
    """The assistant's text; None for a message without any."""
    finish_reason: str = "stop"
    """`stop`, `length`, `content_filter`, …"""
    refusal: str | None = None
    """The assistant's `refusal`."""
    prompt_tokens: int = 10
    """Tokens that the server claims to have read."""
    completion_tokens: int = 5
    """Tokens that the server claims to have written."""
    status: int = 200
    """The HTTP status."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """More response headers."""
    body: str | None = None
    """Replaces the whole response body, good or bad, and reports no tokens."""
    content_type: str = "application/json"
    """The response's content type."""
    delay_s: float = 0.0
    """Seconds before the answer."""
    hang: bool = False
    """Never answer; ends when the client hangs up."""
    cut: bool = False
    """Cut the connection in the middle of the body."""


def failure(
    status: int, message: str = "it failed", *, code: str | None = None, retry_after: int | None = None
) -> Behaviour:
    """Return an error as OpenAI words them."""
    body = json.dumps({"error": {"message": message, "type": code, "param": None, "code": code}})
    return Behaviour(status=status, body=body, headers={} if retry_after is None else {"Retry-After": str(retry_after)})


HTML_ERROR = Behaviour(status=502, body="<html><h1>502 Bad Gateway</h1></html>", content_type="text/html")
"""A proxy's error page."""
MALFORMED = Behaviour(body='{"choices": [{"mess')
"""Status 200, and a body that is not JSON."""
CUT = Behaviour(cut=True)
"""The connection ends in the middle of the body."""
HANG = Behaviour(hang=True)
"""No answer ever."""

Behave = Callable[[dict[str, Any], int], Behaviour]


def document(request: Mapping[str, Any]) -> str:
    """Return the first user message of a request: the same for all asks and re-asks of one document."""
    return next((str(message["content"]) for message in request["messages"] if message["role"] == "user"), "")


def share(request: Mapping[str, Any], salt: str = "") -> float:
    """Return a number in [0, 1) that depends on the request's document, and the salt, alone."""
    digest = hashlib.sha256(f"{salt}\0{document(request)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    body: dict[str, Any]
    """Its JSON."""
    headers: dict[str, str]
    """Its headers, names in lower case."""


class OpenAIServer:
    """What the server has seen; see the module's text."""

    def __init__(self, behave: Behave) -> None:
        """Start with nothing seen."""
        self.url = ""
        self._behave = behave
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._asked: Counter[str] = Counter()
        self._usage = Usage()
        self._under_way = 0
        self._closing = False
        self.peak = 0
        self.hung_up = 0

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return tuple(self._requests)

    @property
    def count(self) -> int:
        """How many requests came."""
        return len(self.requests)

    @property
    def usage(self) -> Usage:
        """The sums of what it reported; the cost is 0."""
        with self._lock:
            return self._usage

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body: dict[str, Any] = await request.json()
        with self._lock:
            self._requests.append(Request(body, {name.lower(): text for name, text in request.headers.items()}))
            self._asked[document(body)] += 1
            n = self._asked[document(body)]
            self._usage += Usage(requests=1)
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            return await self._answer(request, body, self._behave(body, n))
        except asyncio.CancelledError:
            self.hung_up += not self._closing
            raise
        finally:
            with self._lock:
                self._under_way -= 1

    async def close(self, *, patience_s: float = 1.0) -> None:
        """Wait a moment for clients that have just hung up to be noticed; whoever is left is cut off."""
        for _ in range(int(patience_s / 0.01)):
            if not self._under_way:
                break
            await asyncio.sleep(0.01)
        self._closing = True

    async def _answer(self, request: web.Request, body: dict[str, Any], behaviour: Behaviour) -> web.StreamResponse:
        if behaviour.hang:
            await asyncio.Event().wait()
        if behaviour.delay_s:
            await asyncio.sleep(behaviour.delay_s)
        text = behaviour.body if behaviour.body is not None else _completion(body, behaviour)
        if behaviour.cut:
            half = web.StreamResponse(headers={"Content-Length": str(len(text)), "Content-Type": "application/json"})
            await half.prepare(request)
            await half.write(text[: len(text) // 2].encode())
            if request.transport is not None:
                request.transport.close()
            return half
        if behaviour.body is None and behaviour.status == web.HTTPOk.status_code:
            spent = Usage(prompt_tokens=behaviour.prompt_tokens, completion_tokens=behaviour.completion_tokens)
            with self._lock:
                self._usage += spent
        return web.Response(
            text=text, status=behaviour.status, headers=behaviour.headers, content_type=behaviour.content_type
        )


def _completion(body: dict[str, Any], behaviour: Behaviour) -> str:
    message = {"role": "assistant", "content": behaviour.content, "refusal": behaviour.refusal}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": behaviour.finish_reason}],
            "usage": {
                "prompt_tokens": behaviour.prompt_tokens,
                "completion_tokens": behaviour.completion_tokens,
                "total_tokens": behaviour.prompt_tokens + behaviour.completion_tokens,
            },
        }
    )


@contextmanager
def openai_server(behave: Behave | Behaviour = Behaviour()) -> Generator[OpenAIServer]:
    """Run a server for as long as the block lasts."""
    server = OpenAIServer((lambda _request, _n: behave) if isinstance(behave, Behaviour) else behave)
    started, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", server.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await ended.wait()
        await server.close()
        await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run, name="openai-server", daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
