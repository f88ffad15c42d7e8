"""How a body goes over the wire: whole or broken, at once or slowly, as JSON or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Ending = Literal["whole", "cut", "reset", "stall", "short", "long"]
"""How a body ends: see `Behaviour.ending`."""

PIECES = 10
"""Into how many pieces a body is cut that drips."""


def completion(
    body: Mapping[str, Any], message: Mapping[str, Any], finish: str | None, usage: object, *, tier: str = ""
) -> str:
    """Return a chat completion's JSON; without a usage it tells no tokens, and without a tier none."""
    choice = {"index": 0, "message": message, "finish_reason": finish}
    more = {name: value for name, value in (("usage", usage), ("service_tier", tier)) if value}
    return json.dumps({**_head(body, "chat.completion", [choice]), **more})


def events(
    body: Mapping[str, Any], message: Mapping[str, Any], finish: str | None, usage: object, *, tier: str = ""
) -> Iterator[str]:
    """Yield a chat completion's server-sent events: the text by words, how it ended, the usage if that is asked for."""
    more = {"service_tier": tier} if tier else {}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [
        {name: word} for name in ("content", "refusal") for word in re.findall(r"\s*\S+|\s+", message[name] or "")
    ]
    for delta in deltas:
        yield _event(body, [{"index": 0, "delta": delta, "finish_reason": None}], **more)
    if finish is not None:
        yield _event(body, [{"index": 0, "delta": {}, "finish_reason": finish}], **more)
    if usage and body.get("stream_options") == {"include_usage": True}:
        yield _event(body, [], usage=usage, **more)
    yield "data: [DONE]\n\n"


async def deliver(
    request: web.Request,
    parts: Sequence[str],
    *,
    status: int,
    headers: Mapping[str, str],
    ending: Ending,
    drip_s: float,
) -> web.StreamResponse:
    """Send a body as told; one of several parts goes without a length, as a stream does."""
    whole, streamed = "".join(parts).encode(), len(parts) > 1
    if not streamed and ending == "whole" and not drip_s:
        return web.Response(body=whole, status=status, headers=headers)
    length = len(whole) + {"short": len(whole) // 2 - len(whole), "long": 100}.get(ending, 0)
    sized = {} if streamed and length == len(whole) else {"Content-Length": str(length)}
    if ending == "short":  # nobody else's request goes out on a connection that is about to end
        sized["Connection"] = "close"
    response = web.StreamResponse(status=status, headers={**headers, **sized})
    await response.prepare(request)
    pieces = [part.encode() for part in parts] if streamed else list(_pieces(whole))
    for number, piece in enumerate(pieces[: len(pieces) // 2] if ending in {"cut", "reset", "stall"} else pieces):
        if number and drip_s:
            await asyncio.sleep(drip_s)
        await response.write(piece)  # aiohttp keeps to the length
    if ending == "stall":
        await asyncio.Event().wait()
    if ending != "whole" and request.transport is not None:
        _break_off(request.transport, ending, whole[length:])
    return response


def _break_off(transport: asyncio.Transport, ending: Ending, surplus: bytes) -> None:
    if ending == "reset":
        linger = struct.pack("ii", 1, 0)  # closed that way, a socket sends RST
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    if surplus:
        transport.write(surplus)
    transport.close()


def _pieces(whole: bytes) -> Iterator[bytes]:
    size = max(1, -(-len(whole) // PIECES))
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _head(body: Mapping[str, Any], kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 0, "model": body.get("model"), "choices": choices}


def _event(body: Mapping[str, Any], choices: list[dict[str, Any]], **more: object) -> str:
    return f"data: {json.dumps({**_head(body, 'chat.completion.chunk', choices), **more})}\n\n"
