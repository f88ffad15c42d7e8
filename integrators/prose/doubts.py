"""What in a text can't be taken on trust: checked sentence by sentence against the answers that it cites.

A number, a date or a quotation must stand in one of the answers that its sentence cites. One exception:
a bare whole number that equals the number of answers cited there, if these are two or more, is a count
of them (`three licences [1][2][3]`). Headings need no citation; every other sentence does.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.prose.citations import Citation, Sentence, citations, sentences
from prefect_dispatch.integrators.prose.figures import Figure, figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.prose.evidence import Source

_QUOTATION = re.compile(
    r"“[^“”\n]{1,2000}”|«[^«»\n]{1,2000}»|„[^„“”\n]{1,2000}[“”]|\"[^\"\n]{1,2000}\"|‘[^‘’\n]{1,2000}’(?!\w)"  # noqa: RUF001 -- quotation marks
    r"|(?<!\w)'[^'\n]{1,2000}'(?!\w)"
)
_WORD = re.compile(r"\w")


class Finding(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    """`number`, `date`, `quotation`, `citation` or `claim`."""
    start: int
    """Where it starts."""
    end: int
    """Where it ends."""
    message: str
    """What is wrong, in a sentence."""
    looked: tuple[int, ...]
    """The answers that were looked into."""


def claims(text: str, total: int) -> list[Sentence]:
    """Return the sentences of a text that say something; quotations are not taken apart."""
    whole = [match.span() for match in _QUOTATION.finditer(text)]
    return [each for each in sentences(text, total, whole) if _WORD.search(text, each.start, each.end)]


def findings(text: str, sources: Sequence[Source], given: Sequence[int] = ()) -> list[Finding]:
    """Return what is wrong with a text, in the order in which it stands there.

    Args:
        text: Prose with citations.
        sources: All answers, the first one being number 1.
        given: The answers that stand for a text without any citation.

    Example:
        >>> from prefect_dispatch.integrators.prose.evidence import numbered
        >>> from prefect_dispatch.models import Outcome
        >>> said = [Outcome(brief="terms", item="a", status="succeeded", value="Keep it for 5 years.")]
        >>> [(found.kind, found.message) for found in findings("It is kept for 6 years [1].", numbered(said))]
        [('number', "'6' doesn't stand in [1], which the sentence cites.")]
    """
    brackets = citations(text, len(sources))
    masked = _masked(text, brackets)
    quotations = [match.span() for match in _QUOTATION.finditer(masked)]
    found = [
        Finding("citation", each.start, each.end, f"There is no answer {' or '.join(each.unknown)}.", ())
        for each in brackets
        if each.unknown
    ]
    given = () if any(each.known for each in brackets) else tuple(given)
    for sentence in claims(text, len(sources)):
        cited = sentence.cited or given
        if not cited and not text.startswith("#", sentence.start):
            found.append(Finding("claim", sentence.start, sentence.end, "The sentence cites no answer.", ()))
        found += _unfounded(masked, sentence, quotations, [sources[number - 1] for number in cited])
    return sorted(found, key=lambda each: (each.start, each.end, each.kind))


def _masked(text: str, brackets: Sequence[Citation]) -> str:
    """Return a text of the same length without the numbers of its citations."""
    parts: list[str] = []
    last = 0
    for each in brackets:
        parts += [text[last : each.start], "\x00" * (each.end - each.start)]
        last = each.end
    return "".join([*parts, text[last:]])


def _unfounded(
    masked: str, sentence: Sentence, quotations: Sequence[tuple[int, int]], looked: Sequence[Source]
) -> Iterator[Finding]:
    numbers = tuple(source.number for source in looked)
    first = bisect_left(quotations, (sentence.start, 0))
    inside = quotations[first : bisect_left(quotations, (sentence.end, 0))]
    for start, end in inside:
        if not any(source.evidence.quotes(masked[start + 1 : end - 1]) for source in looked):
            yield Finding("quotation", start, end, _nowhere("This quotation", numbers), numbers)
    for each in figures(masked[sentence.start : sentence.end]):
        start, end = sentence.start + each.start, sentence.start + each.end
        at = bisect_left(inside, (end, 0)) - 1
        if at >= 0 and start < inside[at][1]:
            continue
        if not is_founded(each, looked):
            kind = "date" if each.kind == "date" else "number"
            yield Finding(kind, start, end, _nowhere(repr(masked[start:end]), numbers), numbers)


def is_founded(figure: Figure, looked: Sequence[Source]) -> bool:
    """Return whether a figure stands in one of some answers, or is the number of them."""
    is_count = figure.counts and len(looked) > 1 and figure.value == len(looked)
    return is_count or any(source.evidence.has(figure) for source in looked)


def _nowhere(what: str, numbers: Sequence[int]) -> str:
    if not numbers:
        return f"{what} stands in a sentence that cites no answer."
    return f"{what} doesn't stand in {named(numbers)}, which the sentence cites."


def named(numbers: Sequence[int]) -> str:
    """Return numbers of answers as they are cited.

    Example:
        >>> named([3, 7])
        '[3][7]'
    """
    return "".join(f"[{number}]" for number in numbers)
