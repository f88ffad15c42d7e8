"""A model's server on 127.0.0.1 that answers after a set time and costs next to nothing itself.

Run as `python -m benchmarks.latency_server MEDIAN_S SIGMA SAID`: it prints its address, then, for each line on its
standard input, how many requests have come; it ends when that is closed. Latencies are lognormal, and depend on nothing
but the number of the request, so that every way to ask meets the same ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

SAID = "fine"


def _answer(said: str) -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "test",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class _Latencies:
    """How long each request takes, and how many there were."""

    def __init__(self, median_s: float, sigma: float) -> None:
        """Draw them all beforehand."""
        draw = random.Random(1)
        self._drawn = [median_s * draw.lognormvariate(0, sigma) if sigma else median_s for _ in range(10_007)]
        self.count = 0

    def next(self) -> float:
        """Return the next."""
        self.count += 1
        return self._drawn[self.count % len(self._drawn)]


class _Connection(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    def __init__(self, latencies: _Latencies, said: bytes) -> None:
        self._latencies, self._loop, self._said = latencies, asyncio.get_running_loop(), said
        self._come = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- what a stream server is given
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the protocol's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._come += data
        head, found, rest = self._come.partition(b"\r\n\r\n")
        if found and len(rest) >= _length(head):
            self._come = b""
            self._loop.call_later(self._latencies.next(), self._answer)

    def _answer(self) -> None:
        if self._transport:
            self._transport.write(self._said)


def _length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((int(value) for name, _, value in fields if name.lower() == b"content-length"), 0)


async def _serve(median_s: float, sigma: float, said: str) -> None:
    latencies, answer = _Latencies(median_s, sigma), _answer(said)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(latencies, answer), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(latencies.count, flush=True)


class LatencyServer:
    """The server, in a process of its own.

    Attributes:
        url: Its address.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until it listens."""
        self._process = process
        self.url = self._told()

    @property
    def count(self) -> int:
        """How many requests have come."""
        assert self._process.stdin  # noqa: S101 -- it is a pipe
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._told())

    def _told(self) -> str:
        assert self._process.stdout  # noqa: S101 -- it is a pipe
        return self._process.stdout.readline().strip()


@contextmanager
def latency_server(median_s: float, sigma: float = 0.0, said: str = SAID) -> Generator[LatencyServer]:
    """Run the server.

    Args:
        median_s: Seconds from a request to its answer.
        sigma: The spread of their logarithm; 0 for equal ones.
        said: What every answer says.
    """
    command = [sys.executable, "-m", "benchmarks.latency_server", str(median_s), str(sigma), said]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 -- this file
        try:
            yield LatencyServer(process)
        finally:
            process.kill()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
