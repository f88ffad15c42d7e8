"""One HTTP exchange with a provider: how much of a response is read, which redirects are followed, and what it reports.

Both ways to a provider use it: our own requests (`wire`), and those that litellm sends (`litellm_http`). A provider
may be broken or hostile, so the body is decompressed here in bounded steps and counted before anything parses it.
"""

from __future__ import annotations

import json
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from prefect_dispatch.executors.response_body import MODEL_KEYS, read_body
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterator

ACCEPTED_CODINGS = "gzip, deflate"
"""Content codings that requests ask for: those that can be decompressed in bounded steps."""
ERROR_BYTES = 1 << 16
"""Bytes that are read of the body of an error: litellm searches it for secrets, 6 s per megabyte."""
MOST_REDIRECTS = 5
"""Redirects of one request that are followed."""

_STEP = 1 << 16
"""Bytes that are decompressed at once."""
_FAILED = 400
_BODY_KEPT = (307, 308)
"""Redirects after which a client sends the same method and body again."""


class ResponseTooLargeError(Exception):
    """A response is longer than `PREFECT_DISPATCH_MAX_RESPONSE_BYTES`."""


class RedirectError(Exception):
    """A redirect that is not followed, as the key or the request would go to another address."""


class MalformedResponseError(Exception):
    """A response that cannot be read: cut off, in an unknown coding, not JSON, or nested too deep."""


class Exchange:
    """One call's exchange with its provider.

    Args:
        model: The model that is asked, for messages.
        limit: The most bytes of a response, compressed or not; the setting by default.
        inspects: Whether its body is one JSON document or a stream of events, to be looked into.

    Attributes:
        inspects: As given.
        served_model: The model that the response names; empty where it names none.
        failure: Why the response was given up here, where it was: litellm may raise something else for it.
    """

    def __init__(self, model: str, limit: int | None = None, *, inspects: bool = True) -> None:
        """Start with nothing received."""
        self._model = model
        self.inspects = inspects
        self._limit = settings().max_response_bytes if limit is None else limit
        self.served_model = ""
        self.failure: Exception | None = None

    def require_allowed_redirect(self, method: str, url: str, status: int, location: str) -> str:
        """Return the address to which a redirect leads.

        Args:
            method: The method of the request.
            url: Its address.
            status: The status of the response.
            location: Its header `Location`.

        Raises:
            RedirectError: If it leads to another origin, or would drop the method and the body.
        """
        try:
            target = urljoin(url, location)
            here, there = _origin(url), _origin(target)
        except ValueError:
            here, there, target = "", "an unreadable address", ""
        if here != there:
            raise self._failed(
                RedirectError(
                    f"the server at {_origin(url)} redirects to {there}, which is not followed, as the key would go "
                    "there: set api_base to the address that is meant"
                )
            )
        if method not in {"GET", "HEAD"} and status not in _BODY_KEPT:
            raise self._failed(
                RedirectError(
                    f"the server at {here} answers with a redirect (HTTP {status}) that drops the request's body: "
                    "set api_base to the address that is meant"
                )
            )
        return target

    def redirected_too_often(self, url: str) -> Exception:
        """Return the error of a server that redirects again and again, and note it."""
        return self._failed(RedirectError(f"the server at {_origin(url)} redirects again and again"))

    async def read(self, pieces: AsyncIterable[bytes], status: int, coding: str) -> bytes:
        """Return a whole body, decompressed.

        Args:
            pieces: The body as it arrives.
            status: The status of the response.
            coding: Its header `Content-Encoding`.

        Raises:
            ResponseTooLargeError: If it is longer than the limit. That of an error is cut off instead.
            MalformedResponseError: If it can't be decompressed.
        """
        body = bytearray()
        try:
            async for piece in self.bounded(pieces, status, coding):
                body += piece
            return bytes(body)
        finally:
            body.clear()  # an error keeps this frame alive for a while, and all that it holds

    async def bounded(self, pieces: AsyncIterable[bytes], status: int, coding: str) -> AsyncIterator[bytes]:
        """Yield a body decompressed, piece by piece; arguments and errors are those of `read`."""
        limit = min(self._limit, ERROR_BYTES) if status >= _FAILED else self._limit
        received = yielded = 0
        decoder = self._decoder(coding)
        async for raw in pieces:
            received += len(raw)
            for piece in decoder.decode(raw) if decoder else (raw,):
                yielded += len(piece)
                if max(received, yielded) > limit:
                    if status >= _FAILED:
                        yield piece[: len(piece) - max(0, yielded - limit)]
                        return
                    raise self._failed(
                        ResponseTooLargeError(
                            f"the response has more than {limit} bytes, and was given up "
                            "(PREFECT_DISPATCH_MAX_RESPONSE_BYTES)"
                        )
                    )
                yield piece
        if decoder and received and not decoder.ended:
            raise self._failed(MalformedResponseError("the compressed response ended too early"))

    def parse(self, content: bytes) -> Any:  # noqa: ANN401 -- JSON
        """Return the JSON value of a body.

        Raises:
            MalformedResponseError: If it is not JSON, not UTF-8, or nested too deep.
        """
        try:
            return json.loads(content)
        except RecursionError:
            raise self.malformed("the response is nested too deep") from None
        except UnicodeDecodeError:
            raise self.malformed("the response is not UTF-8") from None
        except ValueError as error:
            raise self.malformed(f"the response is not JSON: {error}") from None

    def inspect(self, content: bytes) -> bytes:
        """Return a JSON body as it is to be parsed: without a usage that can't be true. Notes the model that it names.

        Raises:
            MalformedResponseError: As `parse`.
        """
        body = self.parse(content)
        return json.dumps(body).encode() if self.note(body) else content

    async def inspected_events(self, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield server-sent events, inspected as a body is; what can't be read is left as it is."""
        parts: list[bytes] = []
        try:
            async for piece in pieces:
                *lines, rest = piece.split(b"\n")
                if lines:
                    lines[0] = b"".join((*parts, lines[0]))
                    parts.clear()
                    yield b"".join(self._inspected_line(line) + b"\n" for line in lines)
                parts.append(rest)
            yield self._inspected_line(b"".join(parts))
        finally:
            parts.clear()  # as in `read`

    def note(self, body: Any) -> bool:  # noqa: ANN401 -- JSON
        """Note the model that a body names, and replace a usage that can't be true; return whether it had one."""
        served, changed = read_body(body, self._model)
        self.served_model = served or self.served_model
        return changed

    def _inspected_line(self, line: bytes) -> bytes:
        wanted = b"usage" in line or (not self.served_model and any(key in line for key in MODEL_KEYS))
        if not (wanted and line.startswith(b"data:")):
            return line
        try:
            body: Any = json.loads(line[5:])
        except (ValueError, RecursionError):
            return line
        return b"data: " + json.dumps(body).encode() if self.note(body) else line

    def _decoder(self, coding: str) -> _Decoder | None:
        codings = [name for part in coding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
        if not codings:
            return None
        if len(codings) > 1 or codings[0] not in {"gzip", "x-gzip", "deflate"}:
            words = f"the response is in a coding that was not asked for: {coding[:100]!r}"
            raise self._failed(MalformedResponseError(words))
        return _Decoder(self, gzip=codings[0] != "deflate")

    def _failed(self, error: Exception) -> Exception:
        self.failure = error
        return error

    def malformed(self, words: str) -> Exception:
        """Return the error of a response that can't be read, and note it."""
        return self._failed(MalformedResponseError(words))


class _Decoder:
    """Decompresses a body in bounded steps."""

    def __init__(self, exchange: Exchange, *, gzip: bool) -> None:
        self._exchange, self._gzip = exchange, gzip
        self._begun = False
        self._inner: Any = zlib.decompressobj(16 + zlib.MAX_WBITS if gzip else zlib.MAX_WBITS)

    @property
    def ended(self) -> bool:
        """Whether the compressed data came to their end."""
        return bool(self._inner.eof)

    def decode(self, raw: bytes) -> Iterator[bytes]:
        """Yield what some bytes expand to."""
        while raw and not self._inner.eof:  # what follows the end is dropped, as other clients do
            piece = self._decompressed(raw)
            raw = self._inner.unconsumed_tail
            if piece:
                yield piece

    def _decompressed(self, raw: bytes) -> bytes:
        try:
            return bytes(self._inner.decompress(raw, _STEP))
        except zlib.error:
            if self._gzip or self._begun:
                raise self._exchange.malformed("the compressed response is damaged") from None
            self._inner = zlib.decompressobj(-zlib.MAX_WBITS)  # some servers send deflate without its header
            self._begun = True
            return self._decompressed(raw)
        finally:
            self._begun = True


_current: ContextVar[Exchange | None] = ContextVar("prefect_dispatch_exchange", default=None)


@contextmanager
def exchanging(exchange: Exchange) -> Generator[Exchange]:
    """Have requests that litellm sends in this context belong to an exchange."""
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


def current_exchange() -> Exchange | None:
    """Return the exchange that a request belongs to; None if the request isn't ours."""
    return _current.get()


def _origin(url: str) -> str:
    """Return scheme, host and port of an address.

    Example:
        >>> _origin("https://Example.org/v1"), _origin("http://user:pass@127.0.0.1:80/")
        ('https://example.org:443', 'http://127.0.0.1:80')
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{port}"
