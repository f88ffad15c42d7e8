"""Findings on a text: what the answers that its sentences cite don't support."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.answer_index import Prose, enclosing_span, format_citation
from prefect_dispatch.integrators.synthesize.figures import Figure, extract_figures
from prefect_dispatch.integrators.synthesize.vocabulary import SMALL_COUNTS, is_english
from prefect_dispatch.integrators.synthesize.word_index import Evidence, Statement, list_untraced
from prefect_dispatch.integrators.synthesize.wording import check_wording, counts_otherwise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.synthesize.answer_index import Quotation, Source

_TERM = re.compile(r"[^\W\d_]+(?:[- '’][^\W\d_]+){0,2},?")  # noqa: RUF001 -- an apostrophe
"""Pattern of what stands in quotation marks as a term, and not as a quotation: up to three words."""
_SAYS = re.compile(
    r"(?i:\b(?:sa(?:ys?|id|ying)|stat(?:es?|ed|ing)|writes?|wrote|quot\w+|answer\w*|repl\w+|reads?|words?)|[:,])\s*\Z"
)
"""Pattern of what precedes a quotation."""
_TABLE_RULE = re.compile(r"[ \t]*\n {0,3}[|:=-][-=|: \t]+(?:\n|$)")
_HEADING = re.compile(r"#{1,6}\s[^\n]*|(?P<bold>\*\*|__)[^*_\n]+(?<!\.)(?P=bold)|[\s\S]*:[*_]{0,3}")
_SECTION_NUMBER = re.compile(r"#{1,6}[ \t]+\d{1,2}(?:[.)]|(?:\.\d{1,2}){1,4}[.)]?)(?=[ \t])")
"""Pattern of the start of a heading with a number, such as `## 2. Scope`: the number is no claim."""


_COUNTED_CHARS = 40
"""Length of the text after a number word that says what it counts."""

WORDING_KINDS = frozenset({"name", "negation", "direction", "unit", "subject", "support", "source"})
"""Kinds of the findings of `check_claims`."""


class Finding(NamedTuple):
    """Something in a text that the answers don't support."""

    kind: str
    """`number`, `date`, `quotation`, `citation`, `claim`, `key` (a number in the name of a part), or a wording kind."""
    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    message: str
    """What is wrong, in one sentence; sent to the model as a fault and shown to the user as a flag."""
    consulted: tuple[int, ...]
    """Numbers of the answers that were consulted."""


def check_prose(text: str, sources: Sequence[Source], given: Sequence[int] = ()) -> list[Finding]:
    """Return what the answers don't support in a text, in the order of the text.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item="a", status="succeeded", value="Keep it for 5 years.")]
        >>> findings = check_prose("It is kept for 6 years [1].", number_answers(outcomes))
        >>> [(found.kind, found.message) for found in findings]
        [('number', "'6' doesn't stand in [1], which the sentence cites.")]
    """
    prose = Prose(text, len(sources))
    # 1. Citations of answers that don't exist.
    results = [
        Finding("citation", each.start, each.end, f"There is no answer {' or '.join(each.unknown)}.", ())
        for each in prose.citations
        if each.unknown
    ]
    if any(each.numbers for each in prose.citations):
        given = ()
    # 2. Sentences without a citation, and figures and quotations that the cited answers don't hold.
    for sentence in prose.claims:
        start, end, cited = sentence
        if cites := cited or given:
            consulted = [sources[number - 1] for number in cites]
            where = f"{format_citation(cites)}, which the sentence cites"
        # A heading, the head of a table, or a lead-in needs no citation, but its figures stand in some answer.
        elif is_lead_in(text, start, end):
            consulted, where = list(sources), "any answer"
            if numbered := _SECTION_NUMBER.match(text, start, end):
                start = numbered.end()
        else:
            consulted, where = [], "an answer: the sentence cites none"
            results.append(Finding("claim", start, end, "The sentence cites no answer.", ()))
        results += _check_sentence(prose, start, end, consulted, where)
    return sorted(results, key=lambda each: (each.start, each.end, each.kind))


def _is_term(prose: Prose, start: int, quotation: Quotation) -> bool:
    """Return whether quotation marks stand around a term, such as a “quick win”, and not around a quotation."""
    [first, *more] = quotation.pieces or ("",)
    return not more and bool(_TERM.fullmatch(first)) and not _SAYS.search(prose.masked[start : quotation.start])


def _check_sentence(prose: Prose, start: int, end: int, consulted: Sequence[Source], where: str) -> Iterator[Finding]:
    """Yield the quotations and figures of a sentence that none of the consulted answers holds.

    Args:
        prose: The text.
        start: Start offset of the sentence.
        end: End offset of the sentence.
        consulted: The answers that may support the sentence.
        where: These answers in words, for messages.
    """
    numbers = tuple(source.number for source in consulted)
    first, last = (bisect_left(prose.quotations, at, key=lambda each: each.start) for at in (start, end))
    quotations = prose.quotations[first:last]
    for each in quotations:
        if not _is_term(prose, start, each) and not all(
            any(source.has_quotation(piece) for source in consulted) for piece in each.pieces
        ):
            yield Finding("quotation", each.start, each.end, f"This quotation doesn't stand in {where}.", numbers)
    # Figures in a quotation were compared with it.
    quoted_spans = [span for each in quotations for span in each.words]
    for figure in unsupported_figures(prose.masked[start:end], consulted):
        at, until = start + figure.start, start + figure.end
        if not enclosing_span(at, quoted_spans):
            kind = "date" if figure.kind == "date" else "number"
            yield Finding(kind, at, until, f"{prose.masked[at:until]!r} doesn't stand in {where}.", numbers)


def unsupported_figures(text: str, consulted: Sequence[Source]) -> Iterator[Figure]:
    """Yield the figures of a text that none of the consulted answers has, and that don't count these answers.

    A small number word such as `two` may count what an answer lists. It is yielded only if an answer counts the same
    things with another number.
    """
    for figure in extract_figures(text):
        is_count = figure.counts and len(consulted) > 1 and figure.value == len(consulted)
        if not figure.sure or is_count or any(source.has_figure(figure, text) for source in consulted):
            continue
        word = text[figure.start : figure.end].lower()
        negated = figure._replace(value=figure.value.copy_negate())
        if SMALL_COUNTS.get(word) == figure.value and not any(source.has_figure(negated) for source in consulted):
            following = Statement.parse(text[figure.end : figure.end + _COUNTED_CHARS])
            if not any(counts_otherwise(word, following, source.words) for source in consulted):
                continue
        yield figure


def check_claims(text: str, sources: Sequence[Source], given: Sequence[int] = ()) -> list[Finding]:
    """Return what the wording of a text says otherwise than the answers, by rules; see `wording`.

    These findings are reasons to look. They are neither sent back to a model nor marked in a text. In a text or an
    answer that is not English nothing is found.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> sources = number_answers([Outcome(brief="a", item="b", status="succeeded", value="The client has paid.")])
        >>> [found.message for found in check_claims("The client is bankrupt [1].", sources)]
        ["Too few of its words stand in [1], which the sentence cites; 'bankrupt' is missing."]
    """
    prose = Prose(text, len(sources))
    if any(each.numbers for each in prose.citations):
        given = ()
    if not is_english(prose.masked):
        return []
    results: list[Finding] = []
    evidence: dict[tuple[int, ...], Evidence] = {}  # of the sources that are cited together
    for start, end, cited in prose.claims:
        is_heading = not cited and is_lead_in(text, start, end)
        numbers = cited or tuple(given) or (tuple(each.number for each in sources) if is_heading else ())
        consulted = [sources[number - 1] for number in numbers]
        if not consulted or text.startswith(">", start) or not all(each.is_english for each in consulted):
            continue
        where = "any answer" if is_heading else f"{format_citation(numbers)}, which the sentence cites"
        if numbers not in evidence:
            evidence[numbers] = Evidence([each.words for each in consulted])
        # What is quoted is compared letter by letter.
        spoken = list(prose.masked[start:end])
        for quotation in prose.quotations:
            if start <= quotation.start < end and not _is_term(prose, start, quotation):
                spoken[quotation.start - start : quotation.end - start] = " " * (quotation.end - quotation.start)
        for kind, first, last, message in check_wording("".join(spoken), evidence[numbers], is_heading=is_heading):
            results.append(Finding(kind, start + first, start + last, message.replace("{where}", where), numbers))
    for number in find_untraced(prose, sources):
        place = next(each for each in prose.citations if number in each.numbers)
        message = f"Nothing of [{number}] stands in a sentence that cites it."
        results.append(Finding("source", place.start, place.end, message, (number,)))
    return sorted(results, key=lambda each: (each.start, each.end, each.kind))


def is_lead_in(text: str, start: int, end: int) -> bool:
    """Return whether a sentence without citations is a heading, the head of a table, or a lead-in of a list."""
    return not text.startswith(">", start) and bool(
        _HEADING.fullmatch(text, start, end) or _TABLE_RULE.match(text, end)
    )


def find_untraced(prose: Prose, sources: Sequence[Source], given: Sequence[int] = ()) -> list[int]:
    """Return the numbers of the answers of which nothing stands in any sentence that cites them.

    An answer is traced by a figure, by a word that not every answer has, or by half of a sentence's words.

    Args:
        prose: The text.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that each sentence without a citation cites.
    """
    if not is_english(prose.masked):
        return []
    citing: dict[int, list[Statement]] = {}
    for start, end, cited in prose.claims:
        statement = Statement.parse(prose.masked[start:end])
        for number in cited or given:
            citing.setdefault(number, []).append(statement)
    comparable = {
        number: statements
        for number, statements in citing.items()
        if sources[number - 1].is_english and sources[number - 1].words.stems
    }
    return list_untraced(comparable, [each.words for each in sources]) if comparable else []
