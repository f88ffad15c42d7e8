r"""Redaction of an item's own text in error messages.

Messages of providers, validators and the user's code quote their input, and messages end up in logs, states and
artifacts. A quotation is a long run of characters that occurs in a text of the item, or a whole text of the item. Both
sides are compared with white space and backslashes normalized, as a message may hold a `repr` or JSON.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import TYPE_CHECKING

from prefect_dispatch.security.escaping import replace_nul
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

    from prefect_dispatch.errors import ExecutorError
    from prefect_dispatch.models.item import Item

_log = logging.getLogger("prefect_dispatch")

WITHHELD = "[…]"
RUN = 24
"""Minimum length of a run of characters that counts as a quotation."""
WHOLE = 8
"""Minimum length of a text of the item that is redacted where it occurs as a whole, as a separate word."""
LONGEST = 4_000
"""Maximum characters of a message."""
_PIECE = RUN // 2
"""Length of the sampled pieces: of the pieces at every `RUN - _PIECE + 1` characters, each run contains one."""
_STEP = RUN - _PIECE + 1
_SPACE_OR_ESCAPE = re.compile(
    r"""(?P<blank>(?:\s|\\+[nrtfv])+)|\\+(?:u(?P<u>[0-9a-fA-F]{4})|x(?P<x>[0-9a-fA-F]{2})|(?P<self>["'/]))?"""
)


def redact_item_text(error: ExecutorError, item: Item) -> ExecutorError:
    """Redact the message of an error so that it quotes nothing of an item; the full text is logged at debug level."""
    log_error(error)
    error.args = (replace_nul(redact_quotes(redact(str(error)), item.value)),)
    return error


def log_error(error: BaseException) -> None:
    """Log an error at debug level with its traceback and causes; secrets are redacted."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s", redact("".join(traceback.format_exception(error))))


def redact_quotes(message: str, value: JsonValue) -> str:
    """Redact the quotations of an item's value in a message, and truncate it to `LONGEST` characters.

    Example:
        >>> text = "Permission is hereby granted, free of charge, to any person."
        >>> redact_quotes(f"{text[:45]!r} is not of type 'object'", {"text": text})
        "'[…]' is not of type 'object'"
    """
    if len(message) > LONGEST:
        message = message[:LONGEST] + "…"
    # 1. Normalize the message and the item's texts.
    normal, places = _normalize_with_places(message)
    texts = [_normalize(text) for text in _texts(value)]
    # 2. Mark the characters of the normalized message that are quotations.
    quoted = bytearray(len(normal))
    for start, end in (*_quoted_runs(normal, texts), *_quoted_wholes(normal, texts)):
        quoted[start:end] = b"\1" * (end - start)
    # 3. Replace the marked runs in the original message.
    parts: list[str] = []
    end = 0
    for match in re.finditer(b"\1+", bytes(quoted)):
        parts += (message[end : places[match.start()]], WITHHELD)
        end = places[match.end()]
    return "".join((*parts, message[end:]))


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield every text in a value that is long enough to be quoted; keys are names, not texts."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if len(part) >= WHOLE:
                yield part
        elif isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _quoted_runs(message: str, texts: list[str]) -> Iterator[tuple[int, int]]:
    """Return the spans of the message that are runs of `RUN` characters of a text.

    A text is sampled at every `_STEP` characters, and only around samples that occur in the message all runs are
    compared, so that a long text is scanned quickly.
    """
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


def _quoted_wholes(message: str, texts: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the spans of the message that are a whole short text, as a separate word."""
    for text in set(texts):
        if WHOLE <= len(text) < RUN and text in message:
            for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", message):
                yield match.span()


def _normalize(text: str) -> str:
    return _normalize_with_places(text)[0].strip() if "\\" in text else " ".join(text.split())


def _normalize_with_places(text: str) -> tuple[str, list[int]]:
    """Normalize white space and escapes; return the text, and the original offset of each character and of the end."""
    parts: list[str] = []
    places: list[int] = []
    end = 0
    for match in _SPACE_OR_ESCAPE.finditer(text):
        parts += (text[end : match.start()], _normalize_match(match))
        places += range(end, match.start() + 1)
        end = match.end()
    return "".join((*parts, text[end:])), [*places, *range(end, len(text) + 1)]


def _normalize_match(match: re.Match[str]) -> str:
    """Return the character that a run of white space, or an escape, is normalized to."""
    if match["blank"]:
        return " "
    if code := match["u"] or match["x"]:
        return chr(int(code, 16))
    return match["self"] or "\\"
