"""Texts of an HTML report: truncated to fit the page's size, redacted, and escaped for script elements."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic_core import to_json

from prefect_dispatch.security.redaction import redactor
from prefect_dispatch.serialization.json_text import iter_json_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

LENGTHS = (4_000, 2_000, 1_000, 500, 200)
"""Limits in characters for one text of an item; the first one with which all texts fit in `MAX_TOTAL` is used."""
MAX_TOTAL = 16_000_000
"""Most characters of the texts of all items together."""

_WINDOW = 8_000
"""Characters after the end of a truncated text that are searched for secrets, too, so that no part of one is shown."""
_ACTIVE = re.compile("[<>&\u2028\u2029]")


def to_script_json(data: object) -> str:
    r"""Return data as JSON that is safe in a script element: characters with a meaning in HTML are escaped.

    Example:
        >>> to_script_json({"text": "</script><!--"})
        '{"text":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = to_json(data, inf_nan_mode="null").decode()
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_readable_text(value: JsonValue) -> str:
    """Return a value as readable text: a string as it is, any other value as indented JSON."""
    return value if isinstance(value, str) else to_json(value, indent=2).decode()


def fit_length(sizes: Iterable[int], most: int = MAX_TOTAL) -> int:
    """Return the most characters of each of many texts.

    Args:
        sizes: The lengths of the texts.
        most: The most characters of all texts together.

    Returns:
        The largest of `LENGTHS` with which they fit, or the smallest if they don't fit with any.

    Example:
        >>> fit_length([100] * 10), fit_length([3_000] * 10_000)
        (4000, 1000)
    """
    every = list(sizes)
    return next((length for length in LENGTHS if sum(min(size, length) for size in every) <= most), LENGTHS[-1])


class TextPreviews:
    """Truncates and redacts texts."""

    def __init__(self) -> None:
        """Read the secrets to redact from the environment as it is now."""
        self._hide = redactor()

    def preview(self, text: str, length: int) -> list[str | int]:
        """Return the beginning of a text, and the number of characters that were cut off, if any.

        Example:
            >>> TextPreviews().preview("0123456789", 4)
            ['0123', 6]
            >>> TextPreviews().preview("key: sk-proj-0123456789", 4000)
            ['key: ***']
        """
        return self._truncate(text, len(text), length)

    def preview_value(self, value: JsonValue, length: int) -> list[str | int]:
        r"""Return the beginning of a value as readable text, and the number of characters that were cut off, if any.

        The value is serialized in chunks, as its whole text may be large.

        Example:
            >>> TextPreviews().preview_value(["one", "two"], 8)
            ['[\n  "one', 12]
        """
        if isinstance(value, str):
            return self.preview(value, length)
        text, size = "", 0
        for piece in iter_json_chunks(value, indent=2, odd="constants"):
            part = piece.decode()
            text += part[: max(0, length + _WINDOW - size)]
            size += len(part)
        return self._truncate(text, size, length)

    def _truncate(self, text: str, size: int, length: int) -> list[str | int]:
        """Return the beginning of a text, redacted, and the number of characters that were cut off, if any.

        Args:
            text: The text, or so much of it that all secrets in its beginning are whole.
            size: The length of the whole text.
            length: Most characters of the result.
        """
        clean = self._hide(text[: length + _WINDOW])
        return [clean[:length], size - length] if size > length else [clean]

    def preview_line(self, text: str, length: int) -> str:
        r"""Return the beginning of a text as one line.

        Example:
            >>> TextPreviews().preview_line("one\ntwo three", 7)
            'one two…'
        """
        flat = " ".join(str(self.preview(text, length)[0]).split())
        return flat if len(text) <= length else f"{flat}…"
