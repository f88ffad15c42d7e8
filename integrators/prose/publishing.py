"""The text that is published: prose with its doubts marked, then what it leaves out, what is missing, the sources.

Everything after the prose follows from the outcomes, character by character, and the lines of answers
are set in. So the prose can be told from it again, whatever an answer or a model says.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.inert import plain
from prefect_dispatch.integrators.gaps import gap_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.integrators.prose.doubts import Finding
    from prefect_dispatch.integrators.prose.evidence import Source
    from prefect_dispatch.models import Outcome

MARK = " [unverified]"
"""Stands in the text right after whatever is not to be taken on trust."""
ALSO = "## Also reported\n\nThese answers are not cited above. They stand here as they came."
SOURCES = "## Sources"

_OURS = re.compile(r"(?im)^[ \t]{0,3}#{1,6}[ \t]*(also reported|sources)\b")
_HTML = re.compile(r"<(?=[A-Za-z/!?])")
_FENCE = re.compile(r"(?m)^([ \t>*+.)\d-]{0,20})(`{3}|~{3})")
_DEFINITION = re.compile(r"(?m)^([ \t>*+-]{0,9}(?:\d{1,3}[.)][ \t]{1,3})?)(\[[^\]\n]{1,999}\]):")


class Marked(NamedTuple):
    """A finding in the text that is published."""

    finding: Finding
    """What is wrong."""
    start: int
    """Where it starts."""
    text: str
    """The words in question, marks inside of them included."""


def cleaned(prose: str) -> str:
    r"""Return what a model wrote without what would pass for a part of ours.

    Marks lose their brackets, headings of our sections their signs; a definition that would make links of
    citations is taken apart. What could hide all that follows, HTML and fences of code, is made text.

    Example:
        >>> cleaned("Fine [1]. [unverified]\n## Sources\n[1]: https://example.org\n<!-- ")
        'Fine [1]. (unverified)\nSources\n[1] : https://example.org\n&lt;!--'
    """
    prose = prose.replace("\x00", " ").replace(MARK.strip(), f"({MARK.strip()[1:-1]})")
    text = _HTML.sub("&lt;", "\n".join(prose.splitlines()))
    for pattern, harmless in ((_OURS, r"\1"), (_FENCE, r"\1\\\2"), (_DEFINITION, r"\1\2 :")):
        text = pattern.sub(harmless, text)
    return text.strip()


def marked(prose: str, found: Iterable[Finding]) -> tuple[str, list[Marked]]:
    """Return a text with a mark after each finding, and where they stand now.

    Example:
        >>> from prefect_dispatch.integrators.prose.doubts import Finding
        >>> marked("It is 6 [1].", [Finding("number", 6, 7, "", (1,))])[0]
        'It is 6 [unverified] [1].'
    """
    found = list(found)
    ends = sorted({each.end for each in found})
    return with_marks(prose, ends), placed(prose, ends, found)


def with_marks(prose: str, ends: Sequence[int]) -> str:
    """Return a text with a mark at each of some places."""
    pieces = [prose[first:last] for first, last in zip([0, *ends], [*ends, len(prose)], strict=True)]
    return MARK.join(pieces)


def placed(prose: str, ends: Sequence[int], found: Iterable[Finding]) -> list[Marked]:
    """Return where findings stand once there are marks at some places."""
    text = with_marks(prose, ends)
    moved = [
        (
            each,
            each.start + len(MARK) * bisect_right(ends, each.start),
            each.end + len(MARK) * bisect_right(ends, each.end - 1),
        )
        for each in found
    ]
    return [Marked(each, start, text[start:end]) for each, start, end in moved]


def unmarked(text: str) -> tuple[str, list[int]]:
    """Return a text without its marks, and the places at which they stood.

    Example:
        >>> unmarked("It is 6 [unverified] [1].")
        ('It is 6 [1].', [7])
    """
    pieces = text.split(MARK)
    ends = list(accumulate(map(len, pieces[:-1])))
    return "".join(pieces), ends


def published(prose: str, sources: Sequence[Source], also: Iterable[int], outcomes: Sequence[Outcome]) -> str:
    """Return the whole text.

    Args:
        prose: What the model wrote.
        sources: All answers.
        also: The numbers of those that the prose doesn't cite.
        outcomes: All outcomes, those without an answer included.
    """
    blocks = [sources[number - 1].block for number in sorted(also)]
    extra = "\n\n".join([ALSO, *blocks]) if blocks else ""
    return "\n\n".join(filter(None, [prose, extra, _missing(outcomes), _listed(sources)]))


def taken_apart(
    text: str, sources: Sequence[Source], outcomes: Sequence[Outcome]
) -> tuple[str, tuple[int, ...], list[str]]:
    """Return the prose of a published text, the answers that stand under it, and what is not as it should be."""
    wrong: list[str] = []
    for part, name in ((_listed(sources), "list of sources"), (_missing(outcomes), "sentence on what is missing")):
        if part and (rest := _before(text, part)) is not None:
            text = rest
        elif part:
            wrong.append(f"the text's {name} is not the one that belongs there.")
    also: list[int] = []
    body = text
    for source in reversed(sources):
        if (rest := _before(body, source.block)) is not None:
            body = rest
            also.append(source.number)
    prose = _before(body, ALSO) if also else text
    return (text, (), wrong) if prose is None else (prose, tuple(reversed(also)), wrong)


def _before(text: str, end: str) -> str | None:
    if text == end:
        return ""
    return text.removesuffix("\n\n" + end) if text.endswith("\n\n" + end) else None


def _missing(outcomes: Sequence[Outcome]) -> str:
    return plain(gap_sentence(outcomes))


def _listed(sources: Sequence[Source]) -> str:
    lines = [f"[{source.number}] {source.label}  " for source in sources]
    return "\n".join([SOURCES, "", *lines]) if lines else ""
