"""Asking litellm piece by piece, so that a call which has fallen silent can be told from one that is slow."""

from __future__ import annotations

from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.failures import timed_out
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CONNECT_S = 60.0
"""Seconds for a connection to be made."""

_DEAF = ("gemini/", "vertex_ai/")
"""Providers whose streams litellm asks for without the time-out of the call, but through a client that is passed in."""


async def streamed(litellm: Any, model: str, request: dict[str, Any], idle_s: float) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Return the response to a request as if it had come in one piece.

    Args:
        litellm: The module.
        model: Who is asked, as errors name it.
        request: What `acompletion` takes.
        idle_s: Seconds without a new byte after which the connection is closed.

    Raises:
        TransientError: If nothing came for too long, or the stream ended before the answer did.
    """
    import httpx  # noqa: PLC0415 -- comes with litellm, and is loaded with it
    from openai import AsyncStream  # noqa: PLC0415 -- as above

    refusals: list[str] = []
    timeout = httpx.Timeout(CONNECT_S, read=idle_s)
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "timeout": timeout}
    if model.startswith(_DEAF):
        more["client"] = _client(litellm, timeout)
    try:
        stream = await litellm.acompletion(**request, **more)
        raw: object = stream.completion_stream
        if isinstance(raw, AsyncStream):
            stream.completion_stream = _overheard(stream.completion_stream, refusals)
        async with aclosing(stream):
            async for _ in stream:
                pass
    except Exception as error:  # a client may raise anything; all but silence goes on
        if timed_out(error):
            raise _lost(f"{model!r} failed: nothing came for {idle_s:g} s", "idle") from None
        raise
    if not stream.chunks:
        raise _lost(f"{model!r} failed: what came was no stream", "malformed")
    if not (stream.received_finish_reason or stream.intermittent_finish_reason):
        raise _lost(f"{model!r} failed: the stream ended before the answer did", "connection")
    return _whole(litellm, stream.chunks, refusals)


def _client(litellm: Any, timeout: Any) -> Any:  # noqa: ANN401 -- as above
    handlers = import_module("litellm.llms.custom_httpx.http_handler")
    return handlers.get_async_httpx_client(litellm.LlmProviders.VERTEX_AI, params={"timeout": timeout})


async def _overheard(stream: Any, refusals: list[str]) -> AsyncGenerator[Any, None]:  # noqa: ANN401 -- openai's stream
    """Pass a stream on, and note what litellm drops."""
    async with stream:
        async for chunk in stream:
            deltas = (choice.delta for choice in chunk.choices)
            refusals.extend(filter(None, (getattr(delta, "refusal", None) for delta in deltas)))
            yield chunk


def _whole(litellm: Any, chunks: list[Any], refusals: list[str]) -> Any:  # noqa: ANN401 -- as above
    response = litellm.stream_chunk_builder(chunks)
    if not any(getattr(chunk, "usage", None) for chunk in chunks):
        response.usage = None  # litellm guesses
    if refusals:
        response.choices[0].message.provider_specific_fields = {"refusal": "".join(refusals)}
    return response


def _lost(message: str, kind: str) -> TransientError:
    return TransientError(message, kind=kind, usage=Usage(requests=1, unsettled=1))
