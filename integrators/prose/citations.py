r"""Citations in prose: where they stand, what they name, and which sentence they belong to.

An answer is cited by its number in square brackets: `[3]`, `[3, 7]`, `[3-5]`. No citation is what
stands for something else in Markdown: `[3](address)`, `\[3]`, `[^3]`. A number that can be none of
the answers but may be a year, such as `[2024]`, is read as a number. Every pattern here takes time in
proportion to the text: what a model writes must not stop a run.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CITATION = re.compile(r"(?<!\\)\[ {0,3}(\d{1,9}(?: {0,3}[-–,;] {0,3}\d{1,9}){0,999}) {0,3}\](?!\()")  # noqa: RUF001 -- a dash of ranges
_PARTS = re.compile(r"(\d+)(?: {0,3}[-–] {0,3}(\d+))?")  # noqa: RUF001 -- see above
_YEARS = range(1000, 3000)

_TRAILING = re.compile(rf"(?:[ \t]?{_CITATION.pattern})+")
_ENDS = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)*_]{0,9}(?=\s|\[|$)|[。！？]+[”’」』]{0,9}|\n\s*")  # noqa: RUF001 -- full stops of Chinese and Japanese
# Whoever splits too often flags too much; whoever splits too seldom lends a number to the wrong source.
_SHORT = re.compile(r"(?i)(?:^|[\s(])(?:approx|ca|cf|dr|e\.g|i\.e|mr|mrs|ms|prof|resp|st|vs|z\.b|bzw)\.$")
_SHORT_BEFORE_NUMBERS = re.compile(r"(?i)(?:^|[\s(])(?:art|eq|fig|no|nos|nr|p|para|pp|sec|vol)\.$")
_MARKER = re.compile(r"(?:^|\n)[ \t]*\d{1,3}\.$")
_LEADING = re.compile(r"[ \t]*(?:[-*+•>]|\d{1,3}[.)])[ \t]+")


class Citation(NamedTuple):
    """One pair of brackets."""

    start: int
    """Where it starts."""
    end: int
    """Where it ends."""
    known: tuple[int, ...]
    """The answers that it names, in order."""
    unknown: tuple[str, ...]
    """What it names and isn't there, as it stands."""


class Sentence(NamedTuple):
    """A sentence with its citations, also those that follow its full stop."""

    start: int
    """Where it starts."""
    end: int
    """Where it ends."""
    cited: tuple[int, ...]
    """The answers that it names, in order, each once."""


def citations(text: str, total: int) -> list[Citation]:
    """Return the citations of a text, given that there are `total` answers, numbered from 1.

    Example:
        >>> [(found.known, found.unknown) for found in citations("One [1]. Both [1-2], all [1, 9]. In [2024].", 2)]
        [((1,), ()), ((1, 2), ()), ((1,), ('9',))]
    """
    return [found for match in _CITATION.finditer(text) if (found := _citation(match, total))]


def _citation(match: re.Match[str], total: int) -> Citation | None:
    known: set[int] = set()
    unknown: list[str] = []
    for part in _PARTS.finditer(match[1]):
        first, last = int(part[1]), int(part[2] or part[1])
        named = range(max(first, 1), min(last, total) + 1)
        known.update(named)
        if not named or first < 1 or last > total:
            unknown.append(part[0])
    if not known and match[1].isdecimal() and int(match[1]) in _YEARS:
        return None
    return Citation(match.start(), match.end(), tuple(sorted(known)), tuple(unknown))


def cited(found: Iterable[Citation]) -> tuple[int, ...]:
    """Return the answers that citations name, in order, each once."""
    return tuple(sorted({number for each in found for number in each.known}))


def sentences(text: str, total: int, whole: Iterable[tuple[int, int]] = ()) -> list[Sentence]:
    """Return the sentences of a text; headings and points of a list are sentences of their own.

    Args:
        text: Prose, or Markdown.
        total: How many answers there are.
        whole: Stretches that stay together, such as quotations.

    Example:
        >>> text = "MIT is short [1]. Zlib, e.g., is not. [2] Both are old."
        >>> [(text[each.start : each.end], each.cited) for each in sentences(text, 2)]
        [('MIT is short [1].', (1,)), ('Zlib, e.g., is not. [2]', (2,)), ('Both are old.', ())]
    """
    found = citations(text, total)
    starts = [each.start for each in found]
    return [
        Sentence(start, end, cited(found[bisect_left(starts, start) : bisect_left(starts, end)]))
        for start, end in _stretches(text, starts, sorted(whole))
    ]


def _stretches(text: str, places: list[int], whole: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _ENDS.finditer(text):
        end = match.end()
        if match.start() < start or _goes_on(text, match, whole):
            continue
        if not text[match.start()].isspace() and (more := _TRAILING.match(text, end)):
            has_own = bisect_left(places, start) < bisect_left(places, end)
            end = _belonging(text, more, has_own=has_own)
        if stretch := _trimmed(text, start, end):
            yield stretch
        start = end
    if stretch := _trimmed(text, start, len(text)):
        yield stretch


def _goes_on(text: str, end: re.Match[str], whole: list[tuple[int, int]]) -> bool:
    """Return whether a sentence doesn't end at what looks like its end."""
    before, following = text[max(0, end.start() - 12) : end.end()], text[end.end() : end.end() + 2].lstrip(" \t")[:1]
    if text[end.start()] == "\n":
        # A line that is broken off goes on in the next one.
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()].strip()
        return "\n" not in end[0][1:] and following.islower() and not line.startswith("#") and not line.endswith("]")
    at = bisect_left(whole, (end.start(), 0)) - 1
    if at >= 0 and end.start() < whole[at][1] - 1:
        return True
    return bool(
        _SHORT.search(before)
        or _MARKER.search(before if end.start() > 12 else "\n" + before)  # noqa: PLR2004 -- as above
        or (following.isdecimal() and _SHORT_BEFORE_NUMBERS.search(before))
    )


def _belonging(text: str, more: re.Match[str], *, has_own: bool) -> int:
    """Return the end of a sentence that citations follow: they are its own, or open the next one."""
    following = text[more.end() : more.end() + 2].lstrip(" \t")[:1]
    opens = following not in ("", "\n") and (has_own or following.islower())
    return more.start() if opens else more.end()


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return a stretch without white space and marks of a list around it, or None if nothing is left."""
    if lead := _LEADING.match(text, start, end):
        start = lead.end()
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None
