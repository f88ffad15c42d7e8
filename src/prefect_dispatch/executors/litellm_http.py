"""Limits for the requests that litellm sends: the rules of `exchange`, as event hooks of its httpx clients.

litellm makes its clients in two places, neither of which takes hooks for all providers; both are wrapped here, once
per process. Requests that don't belong to a call of ours pass the hooks untouched.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx

from prefect_dispatch.executors.exchange import ACCEPTED_CODINGS, current_exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect_dispatch.executors.exchange import Exchange

_OK = 200


def install(litellm: Any) -> None:  # noqa: ANN401 -- a module
    """Give every httpx client that litellm makes from now on the hooks; clients that it keeps are made again.

    Raises:
        AttributeError: If this version of litellm makes its clients elsewhere.
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
    def created(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- litellm's own signature
        client = create(*args, **kwargs)
        if isinstance(client, httpx.AsyncClient):
            hooks = client.event_hooks
            if _limit_response not in hooks["response"]:
                client.event_hooks = {
                    "request": [*hooks["request"], _limit_request],
                    "response": [_limit_response, *hooks["response"]],
                }
        return client

    created.has_limits = True  # type: ignore[attr-defined]
    return created


async def _limit_request(request: httpx.Request) -> None:
    """Ask only for codings that can be decompressed in bounded steps."""
    if current_exchange():
        request.headers["accept-encoding"] = ACCEPTED_CODINGS


async def _limit_response(response: httpx.Response) -> None:
    """Refuse a redirect to another origin, and bound what is read of a body."""
    exchange = current_exchange()
    if exchange is None:
        return
    request = response.request
    if response.has_redirect_location:
        exchange.require_allowed_redirect(
            request.method, str(request.url), response.status_code, response.headers["location"]
        )
    response.stream = _Body(exchange, response)
    for name in ("content-encoding", "content-length"):  # it is decompressed from now on
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
            yield self._exchange.inspect(await self._exchange.read(self._stream, self._status, self._coding))
            return
        pieces = self._exchange.bounded(self._stream, self._status, self._coding)
        is_stream = inspects and self._type == "text/event-stream"
        async for piece in self._exchange.inspected_events(pieces) if is_stream else pieces:
            yield piece

    async def aclose(self) -> None:
        """Close the connection, or give it back."""
        await self._stream.aclose()
