"""What a program prints on one stream: drained without end, kept in part."""

from __future__ import annotations

import os
from typing import IO

from prefect_dispatch.processes.program import Kept

CHUNK = 64 * 1024
"""Bytes that are read or written at once."""


class Stream:
    """One stream of output.

    Attributes:
        pipe: Where it comes from; reading never waits.
        is_open: Whether more may come.
    """

    def __init__(self, pipe: IO[bytes], keep: int) -> None:
        """Keep so many bytes of its beginning, and of its end."""
        self.pipe, self.is_open = pipe, True
        self._keep, self._head, self._tail, self._size = keep, bytearray(), bytearray(), 0
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> bytes:
        """Return what has come, and keep of it what is to be kept; empty if nothing has."""
        try:
            chunk = os.read(self.pipe.fileno(), CHUNK)
        except BlockingIOError:
            return b""
        self.is_open = bool(chunk)
        self._size += len(chunk)
        room = self._keep - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > 2 * self._keep + CHUNK:
            del self._tail[: len(self._tail) - self._keep]
        return chunk

    @property
    def kept(self) -> Kept:
        """What is kept."""
        return Kept(bytes(self._head), bytes(self._tail[max(0, len(self._tail) - self._keep) :]), self._size)
