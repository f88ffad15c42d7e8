"""One HTTP exchange with a provider: bounds the response, validates redirects, and reads the served model and usage.

Our own requests (`openai_http`) use it, and those that litellm sends (by hooks, see `install`). A provider may be
broken or hostile, so the body is decompressed here in bounded steps and counted before anything parses it.
"""

from __future__ import annotations

import json
import logging
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

import httpx

from prefect_dispatch.security.redaction import redact
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator


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
_MOST_LOGGED = 256
_log = logging.getLogger("prefect_dispatch")
_logged: set[str] = set()


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
    for part in _parts(body):
        name = part.get("model") or part.get("modelVersion")
        served = served or (redact(name[:LONGEST_NAME]) if isinstance(name, str) else "")
        for key, zeros in _ZEROS.items():
            usage = part.get(key)
            if usage is not None and not (isinstance(usage, dict) and _is_sane(cast("dict[str, Any]", usage))):
                part[key] = dict(zeros)
                changed = True
    if changed:
        _log_once(model)
    return served, changed


def _parts(body: Any) -> list[dict[str, Any]]:  # noqa: ANN401 -- JSON
    if not isinstance(body, dict):
        return []
    top = cast("dict[str, Any]", body)
    return [top, *(cast("dict[str, Any]", top[key]) for key in _NESTED_KEYS if isinstance(top.get(key), dict))]


def _is_sane(usage: object, depth: int = 0) -> bool:
    """Return whether every token count in a usage is plausible."""
    if isinstance(usage, list):
        return depth < _MAX_DEPTH and all(_is_sane(part, depth + 1) for part in cast("list[object]", usage))
    if not isinstance(usage, dict):
        return True
    counts = cast("dict[str, object]", usage)
    for name, value in counts.items():
        if isinstance(value, (dict, list)):
            if depth >= _MAX_DEPTH or not _is_sane(cast("object", value), depth + 1):
                return False
        elif _is_count_name(name) and value is not None and not is_count(value):
            return False
    # At the top level these two counts must not be null.
    return depth > 0 or all(counts.get(name, 0) is not None for name in ("prompt_tokens", "completion_tokens"))


def is_count(value: object) -> bool:
    """Return whether a value is a plausible token count: an integer from 0 to `MOST_TOKENS`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def _is_count_name(name: str) -> bool:
    return name.lower().endswith(("tokens", "tokencount", "requests"))


def _log_once(model: str) -> None:
    if model not in _logged and len(_logged) < _MOST_LOGGED:
        _logged.add(model)
        _log.warning("%s: the response reports a usage that can't be true; it counts as unknown (unsettled).", model)


ACCEPTED_CODINGS = "gzip, deflate"
"""`Accept-Encoding` of requests: the codings that can be decompressed in bounded steps."""

ERROR_BYTES = 1 << 16
"""Bytes that are read of an error's body: litellm searches it for secrets, at 6 s per megabyte."""

MOST_REDIRECTS = 5
"""Redirects of one request that are followed."""

_STEP = 1 << 16
"""Bytes that are decompressed per step."""

_FIRST_ERROR_STATUS = 400

_BODY_PRESERVING = (307, 308)
"""Statuses of redirects that preserve the method and the body."""


class ResponseTooLargeError(Exception):
    """A response is longer than `PREFECT_DISPATCH_MAX_RESPONSE_BYTES`."""


class RedirectError(Exception):
    """A redirect that is refused, as the key or the request would go to another address."""


class MalformedResponseError(Exception):
    """A response that cannot be read: cut off, in an unknown coding, not JSON, or nested too deep."""


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
        try:
            target = urljoin(url, location)
            origin, target_origin = _origin(url), _origin(target)
        except ValueError:
            origin, target_origin, target = "", "an unreadable address", ""
        if origin != target_origin:
            raise self._record_failure(
                RedirectError(
                    f"the server at {_origin(url)} redirects to {target_origin}, which is not followed, as the key "
                    "would go there: set api_base to the address that is meant"
                )
            )
        if method not in {"GET", "HEAD"} and status not in _BODY_PRESERVING:
            raise self._record_failure(
                RedirectError(
                    f"the server at {origin} answers with a redirect (HTTP {status}) that drops the request's body: "
                    "set api_base to the address that is meant"
                )
            )
        return target

    def too_many_redirects_error(self, url: str) -> Exception:
        """Return the error of a server that redirects too often, and record it as the failure."""
        return self._record_failure(RedirectError(f"the server at {_origin(url)} redirects again and again"))

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
        limit = min(self._limit, ERROR_BYTES) if status >= _FIRST_ERROR_STATUS else self._limit
        received = yielded = 0
        decoder = self._decoder(coding)
        async for raw in pieces:
            received += len(raw)
            for piece in decoder.decode(raw) if decoder else (raw,):
                yielded += len(piece)
                # The body of an error is truncated at the limit; any other one is refused.
                if max(received, yielded) > limit:
                    if status >= _FIRST_ERROR_STATUS:
                        yield piece[: len(piece) - max(0, yielded - limit)]
                        return
                    raise self._record_failure(
                        ResponseTooLargeError(
                            f"the response has more than {limit} bytes, and was given up "
                            "(PREFECT_DISPATCH_MAX_RESPONSE_BYTES)"
                        )
                    )
                yield piece
        if decoder and received and not decoder.is_finished:
            raise self._record_failure(MalformedResponseError("the compressed response ended too early"))

    def parse(self, content: bytes) -> Any:  # noqa: ANN401 -- JSON
        """Parse a body as JSON.

        Raises:
            MalformedResponseError: If it is not JSON, not UTF-8, or nested too deep.
        """
        try:
            return json.loads(content)
        except RecursionError:
            raise self.malformed_response_error("the response is nested too deep") from None
        except UnicodeDecodeError:
            raise self.malformed_response_error("the response is not UTF-8") from None
        except ValueError as error:
            raise self.malformed_response_error(f"the response is not JSON: {error}") from None

    def inspect(self, content: bytes) -> bytes:
        """Return a JSON body without an implausible usage, and record the model that it names.

        Raises:
            MalformedResponseError: As `parse`.
        """
        body = self.parse(content)
        return json.dumps(body).encode() if self.inspect_parsed(body) else content

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

    def inspect_parsed(self, body: Any) -> bool:  # noqa: ANN401 -- JSON
        """Record the model that a body names, and replace an implausible usage; return whether there was one."""
        served, changed = inspect_body(body, self._model)
        self.served_model = served or self.served_model
        return changed

    def _inspect_line(self, line: bytes) -> bytes:
        is_relevant = b"usage" in line or (not self.served_model and any(key in line for key in MODEL_KEYS))
        if not (is_relevant and line.startswith(b"data:")):
            return line
        try:
            body: Any = json.loads(line[5:])
        except (ValueError, RecursionError):
            return line
        return b"data: " + json.dumps(body).encode() if self.inspect_parsed(body) else line

    def _decoder(self, coding: str) -> _Decoder | None:
        codings = [name for part in coding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
        if not codings:
            return None
        if len(codings) > 1 or codings[0] not in {"gzip", "x-gzip", "deflate"}:
            message = f"the response is in a coding that was not asked for: {coding[:100]!r}"
            raise self._record_failure(MalformedResponseError(message))
        return _Decoder(self, gzip=codings[0] != "deflate")

    def _record_failure(self, error: Exception) -> Exception:
        """Record an error as the failure of the exchange, and return it."""
        self.failure = error
        return error

    def malformed_response_error(self, words: str) -> Exception:
        """Return the error of a response that can't be read, and record it as the failure."""
        return self._record_failure(MalformedResponseError(words))


class _Decoder:
    """Decompresses a body in bounded steps."""

    def __init__(self, exchange: Exchange, *, gzip: bool) -> None:
        self._exchange, self._gzip = exchange, gzip
        self._has_started = False
        self._inner: Any = zlib.decompressobj(16 + zlib.MAX_WBITS if gzip else zlib.MAX_WBITS)

    @property
    def is_finished(self) -> bool:
        """Whether the end of the compressed data was reached."""
        return bool(self._inner.eof)

    def decode(self, raw: bytes) -> Iterator[bytes]:
        """Yield the decompressed chunks of some bytes."""
        while raw and not self._inner.eof:  # bytes after the end are dropped, as other clients do
            piece = self._decompress(raw)
            raw = self._inner.unconsumed_tail
            if piece:
                yield piece

    def _decompress(self, raw: bytes) -> bytes:
        try:
            return bytes(self._inner.decompress(raw, _STEP))
        except zlib.error:
            if self._gzip or self._has_started:
                raise self._exchange.malformed_response_error("the compressed response is damaged") from None
            # Some servers send deflate without the zlib header: start again without it.
            self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
            self._has_started = True
            return self._decompress(raw)
        finally:
            self._has_started = True


_current: ContextVar[Exchange | None] = ContextVar("prefect_dispatch_exchange", default=None)


@contextmanager
def use_exchange(exchange: Exchange) -> Generator[Exchange]:
    """Assign requests that litellm sends in this context to an exchange."""
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


def current_exchange() -> Exchange | None:
    """Return the exchange of the current context; None if a request isn't ours."""
    return _current.get()


def _origin(url: str) -> str:
    """Return the origin of an address: scheme, host and port.

    Example:
        >>> _origin("https://Example.org/v1"), _origin("http://user:pass@127.0.0.1:80/")
        ('https://example.org:443', 'http://127.0.0.1:80')
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{port}"


_OK = 200


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
        if isinstance(client, httpx.AsyncClient):
            hooks = client.event_hooks
            if _limit_response not in hooks["response"]:
                client.event_hooks = {
                    "request": [*hooks["request"], _limit_request],
                    "response": [_limit_response, *hooks["response"]],
                }
        return client

    create_with_hooks.has_limits = True  # type: ignore[attr-defined]
    return create_with_hooks


async def _limit_request(request: httpx.Request) -> None:
    """Ask only for codings that can be decompressed in bounded steps."""
    if current_exchange():
        request.headers["accept-encoding"] = ACCEPTED_CODINGS


async def _limit_response(response: httpx.Response) -> None:
    """Refuse a redirect to another origin, and bound the body."""
    exchange = current_exchange()
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
        inspects = self._status == _OK and self._exchange.inspects
        if inspects and self._type == "application/json":
            yield self._exchange.inspect(await self._exchange.read_all(self._stream, self._status, self._coding))
            return
        pieces = self._exchange.iter_bounded(self._stream, self._status, self._coding)
        is_stream = inspects and self._type == "text/event-stream"
        async for piece in self._exchange.iter_inspected_events(pieces) if is_stream else pieces:
            yield piece

    async def aclose(self) -> None:
        """Close the connection, or return it to the pool."""
        await self._stream.aclose()
