r"""Keep an item's own text out of what is told of it.

Messages of providers, validators and of anybody's code quote what they are about, and messages
end up in logs, states and artifacts. What counts as a quotation is a long run of characters
that stands in a text of the item, or such a text as a whole. Both sides are compared
with white space and backslashes evened out, as a message may hold a `repr` or JSON.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import TYPE_CHECKING

from prefect_dispatch.inert import nowhere_nul
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

    from prefect_dispatch.errors import ExecutorError
    from prefect_dispatch.models import Item

_log = logging.getLogger("prefect_dispatch")

WITHHELD = "[…]"
RUN = 24
"""Characters in a row that are a quotation."""
WHOLE = 8
"""Characters from which on a text of the item is withheld where it stands whole, as a word of its own."""
LONGEST = 4_000
"""Characters of a message that are kept."""

_PIECE = RUN // 2
"""In every run of the item's text stands one of the pieces that begin every `RUN - _PIECE + 1` characters."""
_STEP = RUN - _PIECE + 1
_UNEVEN = re.compile(
    r"""(?P<blank>(?:\s|\\+[nrtfv])+)|\\+(?:u(?P<u>[0-9a-fA-F]{4})|x(?P<x>[0-9a-fA-F]{2})|(?P<self>["'/]))?"""
)


def hushed(error: ExecutorError, item: Item) -> ExecutorError:
    """Return an error whose message quotes nothing of an item, and can be kept; at debug level the log has it all."""
    logged(error)
    error.args = (nowhere_nul(withheld(scrub(str(error)), item.value)),)
    return error


def logged(error: BaseException) -> None:
    """Tell the log, at debug level, what an error says, where it arose and what caused it; secrets stay hidden."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s", scrub("".join(traceback.format_exception(error))))


def withheld(message: str, value: JsonValue) -> str:
    """Return a message, cut to `LONGEST` characters, without what it quotes of an item's value.

    Example:
        >>> text = "Permission is hereby granted, free of charge, to any person."
        >>> withheld(f"{text[:45]!r} is not of type 'object'", {"text": text})
        "'[…]' is not of type 'object'"
    """
    if len(message) > LONGEST:
        message = message[:LONGEST] + "…"
    even, places = _evened(message)
    texts = [_even(text) for text in _texts(value)]
    quoted = bytearray(len(even))
    for start, end in (*_runs(even, texts), *_wholes(even, texts)):
        quoted[start:end] = b"\1" * (end - start)
    told: list[str] = []
    end = 0
    for found in re.finditer(b"\1+", bytes(quoted)):
        told += (message[end : places[found.start()]], WITHHELD)
        end = places[found.end()]
    return "".join((*told, message[end:]))


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield every text in a value, long enough to be quoted; keys are names, not texts."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            if len(part) >= WHOLE:
                yield part
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part


def _runs(message: str, texts: list[str]) -> Iterator[tuple[int, int]]:
    starts = range(len(message) - RUN + 1)
    runs = {message[start : start + RUN] for start in starts}
    pieces = {message[start : start + _PIECE] for start in range(len(message) - _PIECE + 1)}
    quoted: set[str] = set()
    for text in texts:
        for at in range(0, len(text) - RUN + _STEP, _STEP):
            if text[at : at + _PIECE] in pieces:
                quoted |= runs.intersection(
                    text[start : start + RUN] for start in range(max(0, at - _STEP + 1), at + 1)
                )
    return ((start, start + RUN) for start in starts if message[start : start + RUN] in quoted)


def _wholes(message: str, texts: list[str]) -> Iterator[tuple[int, int]]:
    for text in set(texts):
        if WHOLE <= len(text) < RUN and text in message:
            for found in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", message):
                yield found.span()


def _even(text: str) -> str:
    return _evened(text)[0].strip() if "\\" in text else " ".join(text.split())


def _evened(text: str) -> tuple[str, list[int]]:
    """Return a text evened out, and where each of its characters began; the last place is the end."""
    even: list[str] = []
    places: list[int] = []
    end = 0
    for found in _UNEVEN.finditer(text):
        even += (text[end : found.start()], _character(found))
        places += range(end, found.start() + 1)
        end = found.end()
    return "".join((*even, text[end:])), [*places, *range(end, len(text) + 1)]


def _character(found: re.Match[str]) -> str:
    """Return the one character that something uneven stands for."""
    if found["blank"]:
        return " "
    if code := found["u"] or found["x"]:
        return chr(int(code, 16))
    return found["self"] or "\\"
