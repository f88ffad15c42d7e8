"""A real server on 127.0.0.1 that speaks `/v1/chat/completions`, and misbehaves as told; at other paths too.

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
- `Behaviour`: what one answer is like; `failure(…)`, `HTML_ERROR`, `HTML`, `MALFORMED`, `CUT`, `RESET`, `STALL`,
  `SHORT`, `LONG`, `DRIP`, `HANG`: ready ones. A request that says `stream` gets server-sent events, broken alike.
- `RateLimiter(…)`: a `behave` that allows so many per window and answers 429 to the rest; it counts both by second.
- `PrefixCache(…)`: a `behave` that caches system messages as OpenAI does, and reports what it found there.
- `revoked(after)`: a `behave` that answers 401 from a certain call on.
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
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Any

import tiktoken
from aiohttp import web

from prefect_dispatch.executors.llm.litellm_adapter import count_prompt_tokens
from prefect_dispatch.models.outcome import Usage
from tests.openai_wire import Ending, completion, deliver, events


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one answer is like; the default is a plain good one."""

    content: str | None = "fine"
    """The assistant's text; None for a message without any."""
    finish_reason: str | None = "stop"
    """`stop`, `length`, `content_filter`, …; None for an answer that doesn't say."""
    refusal: str | None = None
    """The assistant's `refusal`."""
    annotations: Sequence[object] = ()
    """The assistant's `annotations`, where it has searched the web."""
    tells_tokens: bool = True
    """Whether it reports a usage."""
    prompt_tokens: int = 10
    """Tokens that the server claims to have read."""
    completion_tokens: int = 5
    """Tokens that the server claims to have written."""
    cached_tokens: int = 0
    """How many of those that it has read it claims to have found in its cache."""
    service_tier: str = ""
    """The tier in which it claims to have answered; empty: it says nothing about that."""
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
    ending: Ending = "whole"
    """How the body ends: `whole`; in its middle `cut`, `reset` (RST) or `stall` (nothing more comes);
    `short` or `long` by its Content-Length, which is less or more than what comes."""
    drip_s: float = 0.0
    """Seconds between the pieces of the body."""

    @property
    def message(self) -> dict[str, Any]:
        """What the assistant says."""
        more = {"annotations": list(self.annotations)} if self.annotations else {}
        return {"role": "assistant", "content": self.content, "refusal": self.refusal, **more}

    @property
    def usage(self) -> dict[str, Any] | None:
        """What it reports as spent."""
        total = self.prompt_tokens + self.completion_tokens
        told: dict[str, Any] = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        told["total_tokens"] = total
        if self.cached_tokens:
            told["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return told if self.tells_tokens else None


def failure(
    status: int,
    message: str = "it failed",
    *,
    code: str | None = None,
    retry_after: float | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Behaviour:
    """Return an error as OpenAI words them; `retry_after` is seconds, fractions too, or an HTTP date."""
    body = json.dumps({"error": {"message": message, "type": code, "param": None, "code": code}})
    wait = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Behaviour(status=status, body=body, headers={**wait, **(headers or {})})


HTML_ERROR = Behaviour(status=502, body="<html><h1>502 Bad Gateway</h1></html>", content_type="text/html")
"""A proxy's error page."""
MALFORMED = Behaviour(body='{"choices": [{"mess')
"""Status 200, and a body that is not JSON."""
HTML = Behaviour(body="<html><h1>Sign in</h1></html>", content_type="text/html")
"""Status 200, and a page: a proxy's, or that of a network which wants one to sign in first."""
CUT = Behaviour(ending="cut")
"""The connection ends in the middle of the body."""
RESET = Behaviour(ending="reset")
"""The same, with a reset."""
STALL = Behaviour(ending="stall")
"""Half of the body, and then nothing more."""
SHORT = Behaviour(ending="short")
"""The Content-Length ends before the body does."""
LONG = Behaviour(ending="long")
"""The body ends before its Content-Length."""
DRIP = Behaviour(drip_s=0.05)
"""A body that comes little by little, and whole."""
HANG = Behaviour(hang=True)
"""No answer ever."""

Behave = Callable[[dict[str, Any], int], Behaviour]


def document(request: Mapping[str, Any]) -> str:
    """Return the first user message of a request: the same for all asks and re-asks of one document."""
    return next((str(message["content"]) for message in request.get("messages", ()) if message["role"] == "user"), "")


def share(request: Mapping[str, Any], salt: str = "") -> float:
    """Return a number in [0, 1) that depends on the request's document, and the salt, alone."""
    digest = hashlib.sha256(f"{salt}\0{document(request)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def revoked(after: int, behaviour: Behaviour = Behaviour()) -> Behave:
    """Return a behave whose key is taken back after so many calls: from then on it answers 401."""
    calls = count(1)
    return lambda _request, _n: behaviour if next(calls) <= after else failure(401, "the key was revoked")


class PrefixCache:
    """A behave that caches the system message of each request as OpenAI does, and bills it.

    A prefix of 1,024 tokens or more can be read from the cache once a request with it has been answered, in steps of
    128 tokens. Tokens are counted by OpenAI's own tokenizer.

    Attributes:
        prompt_tokens: Tokens that it has read, in all.
        cached_tokens: How many of them it has found in its cache.
    """

    def __init__(self, behaviour: Behaviour = Behaviour(), encoding: str = "o200k_base") -> None:
        """Start with nothing cached."""
        count_prompt_tokens("openai/gpt-4o-mini", [])  # so that the tokenizer's file is litellm's, without a network
        self._behaviour, self._encoding = behaviour, encoding
        self._ready_at: dict[str, float] = {}
        self.prompt_tokens = self.cached_tokens = 0

    def __call__(self, request: dict[str, Any], _n: int) -> Behaviour:
        """Answer, and count."""
        system, *others = [str(message["content"]) for message in request["messages"]]
        prefix = self._count(system) + 3
        prompt = prefix + sum(self._count(text) + 3 for text in others) + 3
        now = time.monotonic()
        is_cached = now >= self._ready_at.setdefault(system, now + self._behaviour.delay_s)
        cached = prefix // 128 * 128 if is_cached and prefix >= 1024 else 0
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        return replace(self._behaviour, prompt_tokens=prompt, cached_tokens=cached)

    @lru_cache(maxsize=10_000)  # noqa: B019 -- as long as the test
    def _count(self, text: str) -> int:
        return len(tiktoken.get_encoding(self._encoding).encode(text))


class RateLimiter:
    """A behave that allows so many calls per window, and answers 429 to the rest.

    Example:
        >>> limiter = RateLimiter(2, window_s=1.0, clock=iter([0.0, 0.0, 0.2, 0.6, 0.9, 1.0]).__next__)
        >>> [limiter({}, 1).status for _ in range(5)]
        [200, 200, 429, 429, 200]
    """

    def __init__(
        self,
        limit: int,
        *,
        window_s: float = 1.0,
        says_when: bool = True,
        behaviour: Behaviour = Behaviour(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with an empty window; `says_when`: whether a refusal says when to come again."""
        self._limit, self._window_s, self._says_when, self._behaviour = limit, window_s, says_when, behaviour
        self._clock, self._start = clock, clock()
        self._recent: deque[float] = deque()
        self.accepted: Counter[int] = Counter()
        """Calls that were allowed, by the second since it was made."""
        self.refused: Counter[int] = Counter()
        """Calls that were refused, by the second since it was made."""

    def __call__(self, _request: dict[str, Any], _n: int) -> Behaviour:
        """Answer, or refuse."""
        now = self._clock() - self._start
        while self._recent and self._recent[0] <= now - self._window_s:
            self._recent.popleft()
        if len(self._recent) < self._limit:
            self._recent.append(now)
            self.accepted[int(now)] += 1
            return self._behaviour
        self.refused[int(now)] += 1
        wait = self._recent[0] + self._window_s - now
        return failure(429, "slow down", retry_after=f"{wait:.3f}" if self._says_when else None)


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
        self._peers = set[tuple[str, int]]()
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
    def connections(self) -> int:
        """How many connections they came by."""
        with self._lock:
            return len(self._peers)

    @property
    def usage(self) -> Usage:
        """The sums of what it reported; the cost is 0."""
        with self._lock:
            return self._usage

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body: dict[str, Any] = await request.json()
        with self._lock:
            if request.transport:
                self._peers.add(request.transport.get_extra_info("peername"))
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
        good = behaviour.body is None and behaviour.status == web.HTTPOk.status_code
        said = (body, behaviour.message, behaviour.finish_reason, behaviour.usage)
        content_type = behaviour.content_type
        if behaviour.body is not None:
            parts = [behaviour.body]
        elif body.get("stream"):
            parts, content_type = list(events(*said, tier=behaviour.service_tier)), "text/event-stream"
        else:
            parts = [completion(*said, tier=behaviour.service_tier)]
        if good and behaviour.tells_tokens and behaviour.ending == "whole":
            spent = Usage(prompt_tokens=behaviour.prompt_tokens, completion_tokens=behaviour.completion_tokens)
            with self._lock:
                self._usage += spent
        return await deliver(
            request,
            parts,
            status=behaviour.status,
            headers={**behaviour.headers, "Content-Type": content_type},
            ending=behaviour.ending,
            drip_s=behaviour.drip_s,
        )


@contextmanager
def openai_server(
    behave: Behave | Behaviour = Behaviour(), *, routes: Callable[[web.Application], None] = lambda _app: None
) -> Generator[OpenAIServer]:
    """Run a server for as long as the block lasts; `routes` may add more that it answers."""
    server = OpenAIServer((lambda _request, _n: behave) if isinstance(behave, Behaviour) else behave)
    started, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        routes(app)
        app.router.add_post("/v1/{path:.*}", server.handle)
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
