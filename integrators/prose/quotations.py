"""Quotations in prose: words between quotation marks of any kind, and blocks of lines that start with `>`.

Between marks, a quotation may be wrapped over lines, but not over paragraphs, headings or points of a list.
A straight mark after a digit, as in `5"`, opens none. Brackets inside belong to what is quoted: they stand in
the source. To a block belong neither citations at the ends of its lines nor lines with a dash in front, which
say whose words they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

CITATION = re.compile(r"(?<!\\)\[ {0,3}(\d{1,9}(?: {0,3}[-–,;] {0,3}\d{1,9}){0,999}) {0,3}\](?!\()")  # noqa: RUF001 -- a dash of ranges
"""What looks like a citation."""
Span = tuple[int, int]
"""Start and end of a stretch of a text."""

_WRAP = r"\n(?![ \t]{0,9}(?:\n|#{1,6}[ \t]|[-*+•|>]|\d{1,3}[.)][ \t]))"


def _between(opening: str, closing: str) -> str:
    return rf"{opening}(?:[^{opening}{closing}\n]|{_WRAP}){{1,2000}}[{closing}]"


_PAIRS = (("“", "”"), ("„", "“”"), ("«", "»"), ("»", "«"), ("‹", "›"), ("›", "‹"), ("「", "」"), ("『", "』"))  # noqa: RUF001 -- quotation marks
_QUOTATION = re.compile(
    "|".join(
        [
            r"(?P<block>(?m:^) {0,3}>[^\n]*(?:\n {0,3}>[^\n]*)*)",
            *(_between(opening, closing) for opening, closing in _PAIRS),
            r"(?<!\d)" + _between('"', '"'),
            _between("‘", "’") + r"(?!\w)",  # noqa: RUF001 -- quotation marks
            r"(?<!\w)" + _between("'", "'") + r"(?!\w)",
        ]
    )
)
_ATTRIBUTION = ("—", "–", "--")  # noqa: RUF001 -- dashes


class Quotation(NamedTuple):
    """Words of somebody else."""

    start: int
    """Where it starts, its marks included."""
    end: int
    """Where it ends."""
    words: tuple[Span, ...]
    """Where the words stand."""
    pieces: tuple[str, ...]
    """The words, each stretch of which must stand in a source."""


def quotations(text: str) -> list[Quotation]:
    r"""Return the quotations of a text in order.

    Example:
        >>> [each.pieces for each in quotations("It says “see [2]”.\n\n> Keep it. [1]\n> — Ann")]
        [('see [2]',), ('Keep it.',)]
    """
    return [
        _block(text, *match.span())
        if match["block"]
        else Quotation(*match.span(), ((match.start() + 1, match.end() - 1),), (match[0][1:-1],))
        for match in _QUOTATION.finditer(text)
    ]


def _block(text: str, start: int, end: int) -> Quotation:
    words: list[Span] = []
    pieces = [""]
    at = start
    for line in text[start:end].split("\n"):
        first, last = at + line.index(">") + 1, at + len(line)
        ends = _uncited(text, first, last)
        said = text[first:ends].lstrip(" >").rstrip()
        if not said.startswith(_ATTRIBUTION):
            words.append((first, ends))
            pieces[-1] += said + "\n"
        if ends < last or not said:
            pieces.append("")
        at = last + 1
    return Quotation(start, end, tuple(words), tuple(piece.strip() for piece in pieces if piece.strip()))


def _uncited(text: str, start: int, end: int) -> int:
    """Return where a line ends without the citations at its end."""
    last = end
    while True:
        while last > start and text[last - 1] in " \t.,;:!?":
            last -= 1
        opening = text.rfind("[", start, last)
        if opening < 0 or not CITATION.fullmatch(text, opening, last):
            return end
        end = last = opening


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return stretches in order, those that overlap as one.

    Example:
        >>> merged([(5, 9), (0, 2), (1, 6)])
        [(0, 9)]
    """
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
