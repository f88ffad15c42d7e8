r"""Citations in prose: where they stand, what they name, and which sentence they belong to.

An answer is cited by its number in square brackets: `[3]`, `[3, 7]`, `[3-5]`. No citation is what
stands for something else in Markdown: `[3](address)`, `\[3]`, `[^3]`; or in a quotation, where it is somebody
else's. A number that can be none of the answers but may be a year, such as `[2024]`, is read as a number; any
other number in brackets that is copied from an answer without quotation marks is read as a citation. Every
pattern here takes time in proportion to the text: what a model writes must not stop a run.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.prose.quotations import CITATION, merged, quotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.integrators.prose.quotations import Span

_PARTS = re.compile(r"(\d+)(?: {0,3}[-–] {0,3}(\d+))?")  # noqa: RUF001 -- a dash of ranges
_YEARS = range(1000, 3000)

_TRAILING = re.compile(rf"(?:[ \t]?{CITATION.pattern})+")
_ENDS = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)*_]{0,9}(?=\s|\[|$)|[。！？]+[”’」』]{0,9}|\n\s*")  # noqa: RUF001 -- full stops of Chinese and Japanese
# Whoever splits too often flags too much; whoever splits too seldom lends a number to the wrong source.
_SHORT = re.compile(
    r"(?:^|[\s(\"“'])(?:(?i:approx|ca|cf|dr|e\.g|gen|hon|i\.e|lt|mr|mrs|ms|mt|prof|resp|rev|sgt|st|vs|d\.h|z\.b|bzw|ggf|vgl)"
    r"|(?:[A-Z]\.)*[A-Z])\.$"
)
_SHORT_BEFORE_SMALL = re.compile(
    r"(?i)(?:^|[\s(])(?:a\.m|al|co|corp|dept|est|etc|inc|jr|ltd|p\.m|sr|usw|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)
_SHORT_BEFORE_NUMBERS = re.compile(
    r"(?i)(?:^|[\s(])(?:art|eq|fig|no|nos|nr|p|para|pp|sec|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)
_MARKER = re.compile(r"(?:^|\n)[ \t#]*\d{1,3}(?:\.\d{1,3}){0,4}\.$")
_LEADING = re.compile(r"(?:[ \t]*(?:[-*+•]|\(?\d{1,3}[.)]|[①-⑳])(?=[ \t])){1,3}[ \t]*")
_ROW = re.compile(r"(?m)^ {0,3}\|[^\n]*")


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
    quoted = [span for quotation in quotations(text) for span in quotation.words]
    return [
        found
        for match in CITATION.finditer(text)
        if not around(match.start(), quoted) and (found := _citation(match, total))
    ]


def around(place: int, spans: Sequence[Span]) -> Span | None:
    """Return the stretch, of some in order, in which a place lies."""
    at = bisect_left(spans, (place + 1, 0)) - 1
    return spans[at] if at >= 0 and place < spans[at][1] else None


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


def sentences(text: str, total: int) -> list[Sentence]:
    """Return the sentences of a text; headings, points of a list and rows of a table are sentences of their own.

    A quotation is not taken apart; a block that cites nothing belongs to the sentence before it.

    Args:
        text: Prose, or Markdown.
        total: How many answers there are.

    Example:
        >>> text = "MIT is short [1]. Zlib, e.g., is not. [2] Both are old."
        >>> [(text[each.start : each.end], each.cited) for each in sentences(text, 2)]
        [('MIT is short [1].', (1,)), ('Zlib, e.g., is not. [2]', (2,)), ('Both are old.', ())]
    """
    brackets = citations(text, total)
    starts = [each.start for each in brackets]
    whole = merged([each[:2] for each in quotations(text)] + [row.span() for row in _ROW.finditer(text)])
    found: list[Sentence] = []
    for start, end in _stretches(text, starts, whole):
        own = cited(brackets[bisect_left(starts, start) : bisect_left(starts, end)])
        before = found[-1].cited if found and text.startswith(">", start) else ()
        found.append(Sentence(start, end, own or before))
    return found


def _stretches(text: str, places: list[int], whole: list[Span]) -> Iterator[Span]:
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


def _goes_on(text: str, end: re.Match[str], whole: list[Span]) -> bool:
    """Return whether a sentence doesn't end at what looks like its end."""
    before, following = text[max(0, end.start() - 12) : end.end()], text[end.end() : end.end() + 2].lstrip(" \t")[:1]
    if span := around(end.start(), whole):
        return end.end() < span[1] or following.islower()
    if text[end.start()] == "\n":
        # A line that is broken off goes on in the next one.
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()].strip()
        return "\n" not in end[0][1:] and following.islower() and not line.startswith("#") and not line.endswith("]")
    return bool(
        _SHORT.search(before)
        or _MARKER.search(before if end.start() > 12 else "\n" + before)  # noqa: PLR2004 -- as above
        or (following.islower() and _SHORT_BEFORE_SMALL.search(before))
        or (following.isdecimal() and _SHORT_BEFORE_NUMBERS.search(before))
    )


def _belonging(text: str, more: re.Match[str], *, has_own: bool) -> int:
    """Return the end of a sentence that citations follow: they are its own, or open the next one."""
    following = text[more.end() : more.end() + 2].lstrip(" \t")[:1]
    opens = following not in ("", "\n") and (has_own or following.islower())
    return more.start() if opens else more.end()


def _trimmed(text: str, start: int, end: int) -> Span | None:
    """Return a stretch without white space and marks of a list around it, or None if nothing is left."""
    if lead := _LEADING.match(text, start, end):
        start = lead.end()
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None
