"""What in a text can't be taken on trust: checked sentence by sentence against the answers that it cites.

A number, a date or a quotation must stand in one of the answers that its sentence cites. One exception:
a bare whole number that equals the number of answers cited there, if these are two or more, is a count
of them (`three licences [1][2][3]`). Headings, the heads of tables and what leads in to more (it ends with a
colon) need no citation: what they say may stand in any answer. Every other sentence must cite.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.prose.citations import Citation, Sentence, around, citations, sentences
from prefect_dispatch.integrators.prose.figures import Figure, figures
from prefect_dispatch.integrators.prose.quotations import Quotation, quotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.prose.evidence import Source

_WORD = re.compile(r"\w")
_RULE = re.compile(r"[ \t]*\n {0,3}[|:=-][-=|: \t]+(?:\n|$)")
_HEADING = re.compile(r"#{1,6}\s[^\n]*|(?P<bold>\*\*|__)[^*_\n]+(?<!\.)(?P=bold)|[\s\S]*:[*_]{0,3}")
_ENUMERATED = re.compile(r"#{1,6}[ \t]+\d{1,2}(?:[.)]|(?:\.\d{1,2}){1,4}[.)]?)(?=[ \t])")


class Finding(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    """`number`, `date`, `quotation`, `citation`, `claim`, or `key`: a number in the name of a part."""
    start: int
    """Where it starts."""
    end: int
    """Where it ends."""
    message: str
    """What is wrong, in a sentence."""
    looked: tuple[int, ...]
    """The answers that were looked into."""


def claims(text: str, total: int) -> list[Sentence]:
    """Return the sentences of a text that say something: citations alone account for nothing."""
    masked = _masked(text, citations(text, total))
    return [each for each in sentences(text, total) if _WORD.search(masked, each.start, each.end)]


def known(text: str, total: int) -> tuple[int, ...]:
    """Return the answers that a text cites, in order, each once.

    Example:
        >>> known("Both agree [1, 3]. [2]", 3), known("[1]", 3)
        ((1, 2, 3), ())
    """
    return tuple(sorted({number for each in claims(text, total) for number in each.cited}))


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
    quoted = quotations(text)
    found = [
        Finding("citation", each.start, each.end, f"There is no answer {' or '.join(each.unknown)}.", ())
        for each in brackets
        if each.unknown
    ]
    given = () if any(each.known for each in brackets) else tuple(given)
    looked: Sequence[Source]
    for sentence in claims(text, len(sources)):
        if cites := sentence.cited or given:
            looked, where = [sources[number - 1] for number in cites], f"{named(cites)}, which the sentence cites"
        elif _leads_in(text, sentence):
            looked, where = sources, "any answer"
            sentence = _without_number(text, sentence)  # noqa: PLW2901 -- `## 2. Scope` says nothing of two
        else:
            looked, where = (), "an answer: the sentence cites none"
            found.append(Finding("claim", sentence.start, sentence.end, "The sentence cites no answer.", ()))
        found += _unfounded(masked, sentence, quoted, looked, where)
    return sorted(found, key=lambda each: (each.start, each.end, each.kind))


def _leads_in(text: str, sentence: Sentence) -> bool:
    """Return whether a sentence only says what others are about."""
    is_heading = _HEADING.fullmatch(text, sentence.start, sentence.end)
    return bool(is_heading or _RULE.match(text, sentence.end)) and not text.startswith(">", sentence.start)


def _without_number(text: str, heading: Sentence) -> Sentence:
    found = _ENUMERATED.match(text, heading.start, heading.end)
    return heading._replace(start=found.end()) if found else heading


def _masked(text: str, brackets: Sequence[Citation]) -> str:
    """Return a text of the same length without the numbers of its citations."""
    parts: list[str] = []
    last = 0
    for each in brackets:
        parts += [text[last : each.start], "\x00" * (each.end - each.start)]
        last = each.end
    return "".join([*parts, text[last:]])


def _unfounded(
    masked: str, sentence: Sentence, quoted: Sequence[Quotation], looked: Sequence[Source], where: str
) -> Iterator[Finding]:
    numbers = tuple(source.number for source in looked)
    first, last = (bisect_left(quoted, at, key=lambda each: each.start) for at in (sentence.start, sentence.end))
    for each in quoted[first:last]:
        if not all(any(source.evidence.quotes(piece) for source in looked) for piece in each.pieces):
            message = f"This quotation doesn't stand in {where}."
            yield Finding("quotation", each.start, each.end, message, numbers)
    words = [span for each in quoted[first:last] for span in each.words]
    for figure in figures(masked[sentence.start : sentence.end]):
        start, end = sentence.start + figure.start, sentence.start + figure.end
        if figure.sure and not around(start, words) and not is_founded(figure, looked):
            kind = "date" if figure.kind == "date" else "number"
            yield Finding(kind, start, end, f"{masked[start:end]!r} doesn't stand in {where}.", numbers)


def is_founded(figure: Figure, looked: Sequence[Source]) -> bool:
    """Return whether a figure stands in one of some answers, or is the number of them."""
    is_count = figure.counts and len(looked) > 1 and figure.value == len(looked)
    return is_count or any(source.evidence.has(figure) for source in looked)


def named(numbers: Sequence[int]) -> str:
    """Return numbers of answers as they are cited.

    Example:
        >>> named([3, 7])
        '[3][7]'
    """
    return "".join(f"[{number}]" for number in numbers)
