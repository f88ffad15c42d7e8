"""The file in which all that a program prints can be read, without secrets, up to a size."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect_dispatch.scrub import scrubber

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.processes.program import Ran

MOST = 20_000_000
"""Bytes of output that a log holds; then come the ends of both streams. To look for secrets takes 3 s of them."""
LAST = 32 * 1024
"""Bytes of the end of each stream that follow where a log is full."""
HELD = 64 * 1024
"""Bytes that wait for the end of their line, or of a private key, at most."""

_KEY = b"-----BEGIN"
_KEY_END = re.compile(rb"-----END[^\n]*\n")
_EDGE = re.compile(rb"[\s\"'](?=[^\s\"']*\Z)")
"""The last place at which no secret is cut in two."""


class LogFile:
    """A log: complete lines are in it at once, those of two streams never within each other."""

    def __init__(self, path: Path) -> None:
        """Begin a log that nobody else can read.

        Raises:
            OSError: If that can't be.
            JobError: If a pattern of what is secret can't be used.
        """
        self._scrub = scrubber()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._held: dict[str, bytes] = {}
        self._size = 0

    def write(self, stream: str, chunk: bytes) -> None:
        """Write what came on a stream, as far as its lines are complete."""
        if self._size >= MOST:
            return
        held = self._held.get(stream, b"") + chunk
        cut = _cut(held)
        self._held[stream] = held[cut:]
        self._put(held[:cut])

    def end(self, ran: Ran) -> None:
        """Write what is held, and tell how much isn't there."""
        for held in self._held.values():
            self._put(held)
        if left_out := ran.stdout.size + ran.stderr.size - self._size:
            note = f"\n… {left_out:,} bytes left out, as a log holds {MOST:,}. How the streams end …"
            self._write("\n".join((note, ran.stdout.last(LAST), ran.stderr.last(LAST))))

    def close(self) -> None:
        """Close it."""
        os.close(self._file)

    def _put(self, text: bytes) -> None:
        self._size += len(text)
        self._write(self._scrub(text.decode("utf-8", "replace")))

    def _write(self, text: str) -> None:
        left = text.encode()
        with suppress(OSError):  # a disk that is full ends no program
            while left:
                left = left[os.write(self._file, left) :]


def _cut(held: bytes) -> int:
    """Return how much of what is held can be written: whole lines, and no part of a private key."""
    end = held.rfind(b"\n") + 1
    key = held.rfind(_KEY, 0, end)
    if key >= 0 and not _KEY_END.search(held, key, end):
        end = key
    if len(held) - end < HELD:
        return end
    edge = _EDGE.search(held, len(held) - 4096)
    return edge.end() if edge else len(held)
