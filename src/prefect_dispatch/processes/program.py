"""A program that is to be run, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KEEP = 256 * 1024
"""Bytes of the beginning and of the end of what a program prints that are kept, unless somebody says otherwise."""
EDGE = 4096
"""Bytes that are dropped where something was left out, up to the next line: half a secret isn't known for one."""


@dataclass(frozen=True)
class Program:
    """What is run."""

    argv: Sequence[str]
    """The program and its arguments; no shell reads them."""
    env: Mapping[str, str]
    """Its whole environment: nothing is inherited."""
    cwd: Path
    """The folder that it runs in."""
    stdin: bytes = b""
    """What it can read, and then comes the end of it."""
    idle_s: float | None = None
    """Seconds without any output after which it is ended. Empty: it may be silent."""
    keep: int = KEEP
    """Bytes of the beginning and of the end of each stream that are kept."""


@dataclass(frozen=True)
class Kept:
    r"""What is kept of a stream.

    Example:
        >>> Kept(head=b"one two", tail=b" three", size=13).text
        'one two three'
        >>> Kept(head=b"first\nsec", tail=b"mber\nlast", size=1_000_020).text
        'first\n… 1,000,010 bytes left out …\nlast'
    """

    head: bytes
    """Its beginning."""
    tail: bytes
    """Its end, as far as that isn't in `head`."""
    size: int
    """Bytes of the whole."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.size == len(self.head) + len(self.tail)

    @property
    def text(self) -> str:
        """It as text without secrets; where something was left out, that is said."""
        if self.is_whole:
            return _clean(self.head + self.tail)
        head = self.head[: _line_end(self.head)]
        tail = self.tail[_line_start(self.tail) :]
        return f"{_clean(head)}… {self.size - len(head) - len(tail):,} bytes left out …\n{_clean(tail)}"

    def last(self, most: int) -> str:
        r"""Return how it ends, as text without secrets, of about so many bytes: whole lines, if that leaves any.

        Args:
            most: Bytes of the text.

        Example:
            >>> Kept(head=b"", tail=b"first\nsecond\nlast", size=17).last(12)
            '…second\nlast'
            >>> Kept(head=b"", tail=b"." * 100_000 + b"the end", size=100_007).last(10)
            '…...the end'
        """
        if self.size <= most:
            return self.text
        whole = self.head + self.tail if self.is_whole else self.tail
        # A part of a secret isn't known for one. So more than is returned is taken, its first line is dropped, the rest
        # is searched for secrets, and only then is it cut.
        end = whole[-(most + EDGE) :]
        text = _clean(end if len(end) == self.size else end[_line_start(end) :])
        if len(text) > most:
            text = text[-most:]
            lines = text[text.find("\n") + 1 :]
            text = lines if lines.strip() else text
        return f"…{text}"


@dataclass(frozen=True)
class Ran:
    """What came of a program."""

    exit: int | None
    """Its exit code; empty if a signal ended it, or somebody else in this process took the code."""
    signal: int | None
    """The signal that ended it."""
    stdout: Kept
    """What it printed."""
    stderr: Kept
    """What it complained of."""
    seconds: float
    """How long it took."""
    stopped: Literal["", "idle"] = ""
    """Why it was ended, if it didn't end itself."""


def _clean(part: bytes) -> str:
    return scrub(part.decode("utf-8", "replace"))


def _line_end(head: bytes) -> int:
    """Return where the last whole line of a beginning ends, or what is surely no part of a cut secret."""
    return max(head.rfind(b"\n") + 1, len(head) - EDGE, 0)


def _line_start(tail: bytes) -> int:
    """Return where the first whole line of an end begins, or what is surely no part of a cut secret."""
    line = tail.find(b"\n") + 1
    return min(line or EDGE, EDGE, len(tail))
