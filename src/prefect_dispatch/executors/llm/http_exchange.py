"""HTTP exchanges with providers: bounded responses, validated redirects, the served model and a plausible usage.

A provider may be broken or hostile, so the body is decompressed here in bounded steps and counted before anything
parses it. That holds for the requests that litellm sends, by hooks (see `install`), and for those that are sent without
it (see `direct_calls` and `hosted_providers`).
"""

from __future__ import annotations

import json
import logging
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

import httpx

from prefect_dispatch.executors.llm.telemetry import note_url
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator, Mapping


MODEL_KEYS = (b'"model"', b'"modelVersion"')
"""Keys under which a provider names the model that served a call: OpenAI's and Anthropic's, Gemini's."""

MOST_TOKENS = 10**9
"""Upper bound of the tokens of a call: a response that reports more is broken."""

LONGEST_NAME = 200
"""Characters of a served model's name that are stored."""

_NESTED_KEYS = ("message", "response")
"""Keys under which an event of a stream may hold what a body has at its top level."""

_ZEROS: dict[str, dict[str, int]] = {
    "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"), 0),
    "usageMetadata": dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "totalTokenCount"), 0),
}
"""Placeholder for an unknown usage: no tokens at all, which no real call has."""

_MAX_DEPTH = 4
_log = logging.getLogger("prefect_dispatch")


def inspect_body(body: Any, model: str) -> tuple[str, bool]:  # noqa: ANN401 -- JSON
    """Return the model that a response names, and whether its usage was implausible and replaced.

    A usage with negative counts, texts, fractions or absurd numbers would break the parsing of a valid answer, or
    enter a sum. It is replaced in place by one without tokens, which means an unknown usage, and logged once per
    model.

    Args:
        body: The response, or an event of a stream.
        model: The model that was asked, for the log.

    Example:
        >>> body = {"model": "m-2025-01-01", "usage": {"prompt_tokens": -1}}
        >>> inspect_body(body, "openai/m"), body["usage"]["prompt_tokens"]
        (('m-2025-01-01', True), 0)
    """
    served, changed = "", False
    top = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    for nested in (top, *map(top.get, _NESTED_KEYS)):
        if not isinstance(nested, dict):
            continue
        part = cast("dict[str, Any]", nested)
        name = part.get("model") or part.get("modelVersion")
        served = served or (redact(name[:LONGEST_NAME]) if isinstance(name, str) else "")
        for key, zeros in _ZEROS.items():
            if part.get(key) is not None and not _is_plausible(part[key]):
                part[key] = dict(zeros)
                changed = True
    if changed:
        _log_implausible_usage(model)
    return served, changed


def _is_plausible(usage: object) -> bool:
    """Return whether every token count in a usage is plausible; two at its top level must not be null."""
    if not isinstance(usage, dict):
        return False
    counts = cast("dict[str, object]", usage)
    required = (counts.get(name, 0) for name in ("prompt_tokens", "completion_tokens"))
    return None not in required and _has_plausible_counts(counts)


def _has_plausible_counts(value: object, name: str = "", depth: int = 0) -> bool:
    """Return whether every token count in a part of a usage, of this name, is plausible."""
    parts: Any = value
    if isinstance(value, (dict, list)):
        named: Any = parts.items() if isinstance(value, dict) else (("", each) for each in parts)
        return depth <= _MAX_DEPTH and all(_has_plausible_counts(part, key, depth + 1) for key, part in named)
    is_named_count = name.lower().endswith(("tokens", "tokencount", "requests"))
    return value is None or not is_named_count or is_count(value)


def is_count(value: object) -> bool:
    """Return whether a value is a plausible token count: an integer from 0 to `MOST_TOKENS`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


@lru_cache(maxsize=256)
def _log_implausible_usage(model: str) -> None:
    """Log it, once per model."""
    _log.warning("%s: the response reports a usage that can't be true; it counts as unknown (unsettled).", model)


ACCEPTED_CODINGS = "gzip, deflate"
"""`Accept-Encoding` of requests: the codings that can be decompressed in bounded steps."""

ERROR_BYTES = 1 << 16
"""Bytes that are read of an error's body: litellm searches it for secrets, at 6 s per megabyte."""

MOST_REDIRECTS = 5
"""Redirects of one request that are followed."""

_STEP = 1 << 16
"""Bytes that are decompressed per step."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""Statuses of redirects."""

_BODY_PRESERVING = (307, 308)
"""Statuses of redirects that preserve the method and the body."""


class ResponseTooLargeError(Exception):
    """A response is longer than `PREFECT_DISPATCH_MAX_RESPONSE_BYTES`."""


class RedirectError(Exception):
    """A redirect that is refused, as the key or the request would go to another address."""


class MalformedResponseError(Exception):
    """A response that cannot be read: cut off, in an unknown coding, not JSON, or nested too deep."""


class ConnectError(Exception):
    """The connection could not be opened; `classify_error` recognizes the class by its name, as those above."""


class ReadError(Exception):
    """The connection failed after it was opened."""


class HTTPError(Exception):
    """An error response of a server, with the attributes that `classify_error` reads.

    Args:
        status: The HTTP status.
        headers: The headers.
        text: The body, which may contain the provider's error as JSON.
    """

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Store the response, and parse the provider's error in its body."""
        self.status_code, self.litellm_response_headers = status, headers
        self.body: dict[str, Any] = {}
        try:
            parsed: Any = json.loads(text)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            error: Any = cast("dict[str, Any]", parsed).get("error", parsed)
            self.body = cast("dict[str, Any]", error) if isinstance(error, dict) else {"message": str(error)}
        super().__init__(str(self.body.get("message") or text))


class Exchange:
    """HTTP exchange of one call with its provider.

    Args:
        model: The model that is asked, for messages.
        limit: Upper bound of a response in bytes, compressed or not; the setting by default.
        inspects: Whether the body is a JSON document or a stream of events, to be inspected.

    Attributes:
        inspects: As given.
        served_model: The model that the response names; empty where it names none.
        failure: The error with which the response was refused here, if it was: litellm may raise another one for it.
    """

    def __init__(self, model: str, limit: int | None = None, *, inspects: bool = True) -> None:
        """Start with nothing received."""
        self._model = model
        self.inspects = inspects
        self._limit = settings().max_response_bytes if limit is None else limit
        self.served_model = ""
        self.failure: Exception | None = None

    def fail(self, error: Exception) -> Exception:
        """Record an error as the failure of the exchange, and return it."""
        self.failure = error
        return error

    def require_allowed_redirect(self, method: str, url: str, status: int, location: str) -> str:
        """Return the address of a redirect that may be followed.

        Args:
            method: The method of the request.
            url: The address of the request.
            status: The status of the response.
            location: The response's header `Location`.

        Raises:
            RedirectError: If it leads to another origin, or would drop the method and the body.
        """
        origin = origin_of(url)
        try:
            target = urljoin(url, location)
            target_origin = origin_of(target)
        except ValueError:
            target = target_origin = "an unreadable address"
        if origin != target_origin:
            why = f"redirects to {target_origin}, which is not followed, as the key would go there"
        elif method not in {"GET", "HEAD"} and status not in _BODY_PRESERVING:
            why = f"answers with a redirect (HTTP {status}) that drops the request's body"
        else:
            return target
        raise self.fail(RedirectError(f"the server at {origin} {why}: set api_base to the address that is meant"))

    async def read_all(self, pieces: AsyncIterable[bytes], status: int, coding: str) -> bytes:
        """Read a whole body, decompressed.

        Args:
            pieces: The chunks of the body.
            status: The status of the response.
            coding: The response's header `Content-Encoding`.

        Raises:
            ResponseTooLargeError: If it is longer than the limit. The body of an error is truncated instead.
            MalformedResponseError: If it can't be decompressed.
        """
        body = bytearray()
        try:
            async for piece in self.iter_bounded(pieces, status, coding):
                body += piece
            return bytes(body)
        finally:
            body.clear()  # an error's traceback keeps this frame and its objects alive for a while

    async def iter_bounded(self, pieces: AsyncIterable[bytes], status: int, coding: str) -> AsyncIterator[bytes]:
        """Yield the decompressed chunks of a body; arguments and errors are those of `read_all`."""
        is_error = status >= HTTPStatus.BAD_REQUEST
        limit = min(self._limit, ERROR_BYTES) if is_error else self._limit
        coding = self._require_accepted(coding)
        received = yielded = 0
        decoder: Any = None
        async for raw in pieces:
            received += len(raw)
            if coding and raw and decoder is None:
                # Some servers send deflate without the zlib header, whose first byte ends in 8.
                is_raw = coding == "deflate" and raw[0] & 0x0F != zlib.DEFLATED
                decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else 32 + zlib.MAX_WBITS)
            for piece in self._decompress(decoder, raw) if decoder else (raw,):
                yielded += len(piece)
                # The body of an error is truncated at the limit; any other one is refused.
                if max(received, yielded) > limit:
                    if is_error:
                        yield piece[: len(piece) - max(0, yielded - limit)]
                        return
                    why = f"the response has more than {limit} bytes, and was given up"
                    raise self.fail(ResponseTooLargeError(f"{why} (PREFECT_DISPATCH_MAX_RESPONSE_BYTES)"))
                yield piece
        if decoder and not decoder.eof:
            raise self.fail(MalformedResponseError("the compressed response ended too early"))

    def parse(self, content: bytes) -> Any:  # noqa: ANN401 -- JSON
        """Parse a body as JSON.

        Raises:
            MalformedResponseError: If it is not JSON, not UTF-8, or nested too deep.
        """
        try:
            return json.loads(content)
        except RecursionError:
            why = "is nested too deep"
        except UnicodeDecodeError:
            why = "is not UTF-8"
        except ValueError as error:
            why = f"is not JSON: {error}"
        raise self.fail(MalformedResponseError(f"the response {why}"))

    def inspect_parsed(self, body: Any) -> bool:  # noqa: ANN401 -- JSON
        """Record the model that a body names, and replace an implausible usage; return whether there was one."""
        served, changed = inspect_body(body, self._model)
        self.served_model = served or self.served_model
        return changed

    async def iter_inspected_events(self, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield server-sent events, inspected like a body; an event that isn't JSON stays unchanged."""
        parts: list[bytes] = []
        try:
            # Lines are inspected when they are complete; the rest of a chunk waits in `parts` for its end.
            async for piece in pieces:
                *lines, rest = piece.split(b"\n")
                if lines:
                    lines[0] = b"".join((*parts, lines[0]))
                    parts.clear()
                    yield b"".join(self._inspect_line(line) + b"\n" for line in lines)
                parts.append(rest)
            yield self._inspect_line(b"".join(parts))
        finally:
            parts.clear()  # as in `read_all`

    def _inspect_line(self, line: bytes) -> bytes:
        is_relevant = b"usage" in line or (not self.served_model and any(key in line for key in MODEL_KEYS))
        if not (is_relevant and line.startswith(b"data:")):
            return line
        try:
            body: Any = json.loads(line[5:])
        except (ValueError, RecursionError):
            return line
        return b"data: " + json.dumps(body).encode() if self.inspect_parsed(body) else line

    def _require_accepted(self, coding: str) -> str:
        """Return the one coding of a response, or an empty text."""
        codings = [name for part in coding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
        if codings and codings not in (["gzip"], ["x-gzip"], ["deflate"]):
            message = f"the response is in a coding that was not asked for: {coding[:100]!r}"
            raise self.fail(MalformedResponseError(message))
        return "".join(codings)

    def _decompress(self, decoder: Any, raw: bytes) -> Iterator[bytes]:  # noqa: ANN401 -- zlib has no public type
        """Yield the decompressed chunks of some bytes; those after the end are dropped, as other clients do."""
        while raw and not decoder.eof:
            try:
                piece: bytes = decoder.decompress(raw, _STEP)
            except zlib.error:
                raise self.fail(MalformedResponseError("the compressed response is damaged")) from None
            raw = decoder.unconsumed_tail
            if piece:
                yield piece


def origin_of(url: str) -> str:
    """Return the origin of an address: scheme, host and port.

    Example:
        >>> origin_of("https://Example.org/v1"), origin_of("http://user:pass@127.0.0.1:80/")
        ('https://example.org:443', 'http://127.0.0.1:80')
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{port}"


_current: ContextVar[Exchange | None] = ContextVar("prefect_dispatch_exchange", default=None)
"""The exchange of the requests in this context; None if they aren't ours."""


@contextmanager
def use_exchange(exchange: Exchange) -> Generator[Exchange]:
    """Assign requests that litellm sends in this context to an exchange."""
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


class RequestCaptured(BaseException):
    """Ends a call of litellm before its request is sent; no `except Exception` of litellm's catches it.

    Args:
        request: The request.
    """

    def __init__(self, request: httpx.Request) -> None:
        """Store the request."""
        super().__init__("the request was captured")
        self.request = request


_captures: ContextVar[bool] = ContextVar("prefect_dispatch_captures", default=False)
"""Whether requests in this context are captured, and not sent."""


@contextmanager
def capture_requests() -> Generator[None]:
    """Have litellm's clients raise `RequestCaptured` in this context, in place of sending anything."""
    token = _captures.set(True)
    try:
        yield
    finally:
        _captures.reset(token)


def install(litellm: Any) -> None:  # noqa: ANN401 -- a module
    """Install hooks in every httpx client that litellm creates from now on; its cached clients are dropped.

    Raises:
        AttributeError: If this version of litellm creates its clients elsewhere.
    """
    handler = import_module("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler
    openai = import_module("litellm.llms.openai.common_utils").BaseOpenAILLM
    if getattr(handler.create_client, "has_limits", False):
        return
    handler.create_client = _with_hooks(handler.create_client)
    openai._get_async_http_client = staticmethod(_with_hooks(openai._get_async_http_client))  # noqa: SLF001 -- a contract test holds it
    litellm.in_memory_llm_clients_cache.flush_cache()


def _with_hooks(create: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(create)
    def create_with_hooks(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- litellm's own signature
        client = create(*args, **kwargs)
        if isinstance(client, httpx.AsyncClient) and _limit_response not in client.event_hooks["response"]:
            hooks = client.event_hooks
            client.event_hooks = {
                "request": [*hooks["request"], _limit_request],
                "response": [_limit_response, *hooks["response"]],
            }
        return client

    create_with_hooks.has_limits = True  # type: ignore[attr-defined]
    return create_with_hooks


async def _limit_request(request: httpx.Request) -> None:
    """Ask only for codings that can be decompressed in bounded steps; capture a request that isn't to be sent."""
    if _captures.get():
        raise RequestCaptured(request)
    if _current.get():
        request.headers["accept-encoding"] = ACCEPTED_CODINGS
        note_url(request.url)


async def _limit_response(response: httpx.Response) -> None:
    """Refuse a redirect to another origin, and bound the body."""
    exchange = _current.get()
    if exchange is None:
        return
    request = response.request
    if response.has_redirect_location:
        exchange.require_allowed_redirect(
            request.method, str(request.url), response.status_code, response.headers["location"]
        )
    response.stream = _Body(exchange, response)
    for name in ("content-encoding", "content-length"):  # the new stream is decompressed
        if name in response.headers:
            del response.headers[name]


class _Body(httpx.AsyncByteStream):
    """A response's body, bounded and inspected."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        """Keep the stream of a response, before it is replaced."""
        self._exchange, self._status = exchange, response.status_code
        self._stream: Any = response.stream
        self._coding = response.headers.get("content-encoding", "")
        self._type = response.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        inspects = self._status == HTTPStatus.OK and self._exchange.inspects
        if inspects and self._type == "application/json":
            content = await self._exchange.read_all(self._stream, self._status, self._coding)
            body = self._exchange.parse(content)
            yield json.dumps(body).encode() if self._exchange.inspect_parsed(body) else content
            return
        pieces = self._exchange.iter_bounded(self._stream, self._status, self._coding)
        is_stream = inspects and self._type == "text/event-stream"
        async for piece in self._exchange.iter_inspected_events(pieces) if is_stream else pieces:
            yield piece

    async def aclose(self) -> None:
        """Close the connection, or return it to the pool."""
        await self._stream.aclose()
