"""Relay through which a container without a network reaches one address.

On this machine, `serve_address` listens on a Unix socket and connects each caller to the address. The same file runs in
the container, where it listens on a port of its loopback interface and connects each caller to that socket. So it
imports nothing but the standard library, and runs with Python 3.8. Bytes are copied and never interpreted: TLS is that
between the program in the container and the provider.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Awaitable, Callable, Tuple  # noqa: UP035 -- evaluated by Python 3.8, too

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SOCKET = "provider.sock"
"""Name of the socket's file."""
MAX_CONNECTIONS = 64
"""Most connections of one container at a time; further ones wait."""
CHUNK = 64 * 1024
"""Bytes that are copied at a time."""

Connect = Callable[[], Awaitable[Tuple[asyncio.StreamReader, asyncio.StreamWriter]]]  # noqa: UP006 -- as above
"""Function that opens a connection to the other side."""


@asynccontextmanager
async def serve_address(folder_path: str, host: str, port: int) -> AsyncGenerator[None, None]:
    """Listen on a Unix socket, and connect each caller to one address; all connections are closed at the end.

    Args:
        folder_path: The folder that the socket is created in.
        host: The host, whose name is resolved here.
        port: The port.

    Raises:
        OSError: If the socket can't be created.
    """
    callers = _Callers(partial(asyncio.open_connection, host, port))
    # A socket's path is limited to 107 bytes, so it is named by an open folder.
    folder = os.open(folder_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        server = await asyncio.start_unix_server(callers.connect, f"/proc/self/fd/{folder}/{SOCKET}")
        try:
            yield
        finally:
            server.close()
            await callers.close()
    finally:
        os.close(folder)


async def serve_port(listener: socket.socket, path: str) -> None:
    """Connect each caller of a listening socket to a Unix socket, until this is cancelled.

    Args:
        listener: The listening socket.
        path: The Unix socket.
    """
    callers = _Callers(partial(asyncio.open_unix_connection, path))
    server = await asyncio.start_server(callers.connect, sock=listener)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        await callers.close()


class _Callers:
    """Connections from callers, each joined with one to the other side."""

    def __init__(self, connect: Connect) -> None:
        """Begin without callers; `connect` opens a connection to the other side."""
        self._connect = connect
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy bytes in both directions until both sides have ended."""
        task = asyncio.ensure_future(self._join(reader, writer))
        self._tasks.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        """End all connections."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._slots:
            with suppress(OSError):  # the other side can't be reached, or has broken off: the caller's connection ends
                other_reader, other_writer = await self._connect()
                try:
                    await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))
                finally:
                    other_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes to the end of one direction, and pass on that end."""
    while True:
        data = await reader.read(CHUNK)
        if not data:
            writer.write_eof()
            return
        writer.write(data)
        await writer.drain()


def main(path: str, port: int) -> None:  # pragma: no cover -- in a container
    """Listen on a port of the loopback interface, and relay in a process of its own once the port is bound."""
    listener = socket.create_server(("127.0.0.1", port))
    if os.fork() == 0:
        asyncio.run(serve_port(listener, path))


if __name__ == "__main__":  # pragma: no cover -- in a container
    main(sys.argv[1], int(sys.argv[2]))
