"""Texts of a page: cut to a length that all of them allow, without secrets, safe inside a script element."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic_core import to_json

from prefect_dispatch.pieces import pieces
from prefect_dispatch.scrub import scrubber

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

LENGTHS = (4_000, 2_000, 1_000, 500, 200)
"""Characters that one text of an item's page may have; the most that the texts of all items allow."""
ALL = 16_000_000
"""Characters that those of all items may have together."""

_WINDOW = 8_000
"""Characters behind a cut that are searched for secrets as well, so that none is shown by half."""
_ACTIVE = re.compile("[<>&\u2028\u2029]")


def embedded(data: object) -> str:
    r"""Return data as JSON that can stand in a script element: it ends none, and opens none.

    Example:
        >>> embedded({"said": "</script><!--"})
        '{"said":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = to_json(data, inf_nan_mode="null").decode()
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def text_of(value: JsonValue) -> str:
    """Return a value to be read: a text as it is, anything else as indented JSON."""
    return value if isinstance(value, str) else to_json(value, indent=2).decode()


def length_for(sizes: Iterable[int], most: int = ALL) -> int:
    """Return how many characters each of many texts may have.

    Args:
        sizes: Their lengths.
        most: How many all may have.

    Example:
        >>> length_for([100] * 10), length_for([3_000] * 10_000)
        (4000, 1000)
    """
    known = list(sizes)
    return next((length for length in LENGTHS if sum(min(size, length) for size in known) <= most), LENGTHS[-1])


class Texts:
    """Shows the beginnings of texts, without secrets, by what the environment says when the page is made."""

    def __init__(self) -> None:
        """Take what is secret now."""
        self._hide = scrubber()

    def preview(self, text: str, length: int) -> list[str | int]:
        """Return the beginning of a text, and how many characters were cut, if any.

        Example:
            >>> Texts().preview("0123456789", 4)
            ['0123', 6]
            >>> Texts().preview("key: sk-proj-0123456789", 4000)
            ['key: ***']
        """
        return self._cut(text, len(text), length)

    def beginning(self, value: JsonValue, length: int) -> list[str | int]:
        r"""Return the same of a value as `text_of` shows it; no text of the whole is made, which may be large.

        Example:
            >>> Texts().beginning(["one", "two"], 8)
            ['[\n  "one', 12]
        """
        if isinstance(value, str):
            return self.preview(value, length)
        text, size = "", 0
        for piece in pieces(value, indent=2, odd="constants"):
            part = piece.decode()
            text += part[: max(0, length + _WINDOW - size)]
            size += len(part)
        return self._cut(text, size, length)

    def _cut(self, text: str, size: int, length: int) -> list[str | int]:
        clean = self._hide(text[: length + _WINDOW])
        return [clean[:length], size - length] if size > length else [clean]

    def line(self, text: str, length: int) -> str:
        r"""Return the beginning of a text as one line.

        Example:
            >>> Texts().line("one\ntwo three", 7)
            'one two…'
        """
        flat = " ".join(str(self.preview(text, length)[0]).split())
        return flat if len(text) <= length else f"{flat}…"
