"""A model's server on 127.0.0.1 that answers after a fixed or random latency, at almost no processor cost.

It speaks the protocols of OpenAI, Anthropic and Gemini, chosen by the path of a request.

Run as `python -m benchmarks.latency_server MEDIAN_S SIGMA ANSWER`: it prints its address and then, for each line on its
standard input, the number of requests so far and the seconds between the second one and the last; it ends when the
input is closed. Latencies are lognormal and depend only
on the number of the request, so every way has the same ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

ANSWER = "fine"


def format_responses(answer: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the responses by the end of the path, the last for any path."""
    chat = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "test",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "test",
        "content": [{"type": "text", "text": answer}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    candidate = {"content": {"role": "model", "parts": [{"text": answer}]}, "finishReason": "STOP", "index": 0}
    counts = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    generated = {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "test"}
    bodies: tuple[tuple[bytes, object], ...] = ((b"/messages", message), (b":generateContent", generated), (b"", chat))
    return tuple((end, _format_response(json.dumps(body).encode())) for end, body in bodies)


def _format_response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class _Latencies:
    """Latency of each request, the number of requests, and when they came."""

    def __init__(self, median_s: float, sigma: float) -> None:
        """Draw all latencies in advance."""
        draw = random.Random(1)
        self._drawn = [median_s * draw.lognormvariate(0, sigma) if sigma else median_s for _ in range(10_007)]
        self.count = 0
        self.span_s = 0.0
        self._second = 0.0

    def next(self) -> float:
        """Count a request and return its latency in seconds; the first one is a warm-up."""
        self.count += 1
        now = time.monotonic()
        if self.count <= 2:
            self._second = now
        self.span_s = now - self._second
        return self._drawn[self.count % len(self._drawn)]


class _Connection(asyncio.Protocol):
    """One connection; its requests are answered one after another."""

    def __init__(self, latencies: _Latencies, responses: tuple[tuple[bytes, bytes], ...]) -> None:
        self._latencies, self._loop, self._responses = latencies, asyncio.get_running_loop(), responses
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- what a stream server is given
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the protocol's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if found and len(rest) >= _length(head):
            self._received = b""
            path = head.split(b" ", 2)[1]
            response = next(response for end, response in self._responses if path.endswith(end))
            self._loop.call_later(self._latencies.next(), self._send_response, response)

    def _send_response(self, response: bytes) -> None:
        if self._transport:
            self._transport.write(response)


def _length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((int(value) for name, _, value in fields if name.lower() == b"content-length"), 0)


async def _serve(median_s: float, sigma: float, answer: str) -> None:
    latencies, responses = _Latencies(median_s, sigma), format_responses(answer)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(latencies, responses), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(latencies.count, latencies.span_s, flush=True)


class LatencyServer:
    """Handle of the server, which runs in a separate process.

    Attributes:
        url: Its address.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until the server listens."""
        self._process = process
        self.url = self._read_line()

    @property
    def count(self) -> int:
        """Number of requests so far."""
        return int(self._ask()[0])

    @property
    def span_s(self) -> float:
        """Seconds between the second request and the last; the first one is a warm-up."""
        return float(self._ask()[1])

    def _ask(self) -> list[str]:
        assert self._process.stdin  # noqa: S101 -- it is a pipe
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read_line().split()

    def _read_line(self) -> str:
        assert self._process.stdout  # noqa: S101 -- it is a pipe
        return self._process.stdout.readline().strip()


@contextmanager
def latency_server(median_s: float, sigma: float = 0.0, answer: str = ANSWER) -> Generator[LatencyServer]:
    """Run the server in a separate process.

    Args:
        median_s: Seconds from a request to its answer.
        sigma: Standard deviation of the logarithm of the latencies; 0 for a fixed latency.
        answer: The text of every answer.
    """
    command = [sys.executable, "-m", "benchmarks.latency_server", str(median_s), str(sigma), answer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 -- this file
        try:
            yield LatencyServer(process)
        finally:
            process.kill()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
