"""Findings on a text: what the answers that its sentences cite don't support."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.answer_index import Prose, enclosing_span, format_citation
from prefect_dispatch.integrators.synthesize.figures import Figure, extract_figures, is_quarter
from prefect_dispatch.integrators.synthesize.units import read_units
from prefect_dispatch.integrators.synthesize.vocabulary import (
    META_STEMS,
    SMALL_COUNTS,
    detect_language,
    is_english,
    list_word_starts,
)
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


_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_BEFORE_YEAR = re.compile(
    r"(?i:\b(?:in|since|until|till|by|from|during|before|after|of|year|early|mid|late|spring|summer|autumn|fall|winter)"
    r"[\s-])\Z"
)
"""Pattern of what precedes a year."""
_COUNTED_CHARS = 40
"""Length of the text after a number word that says what it counts."""

_MIN_COMPARED = 3
"""Number of words with content from which on a sentence is compared with answers that it doesn't cite."""
_MOST_SUPPORTERS = 3
"""Number of the most similar sentences whose answers may support a sentence that cites others."""
_SUPPORTED_SHARE = 0.9
"""Share of the words of a sentence that an answer which supports it has."""

WORDING_KINDS = frozenset({"name", "negation", "direction", "unit", "subject", "support", "source", "miscited"})
"""Kinds of the findings of `check_claims`."""


class Finding(NamedTuple):
    """Something in a text that the answers don't support."""

    kind: str
    """`number`, `date`, `identifier` (a name with digits), `quotation`, `citation`, `claim`, `key` (a number in the
    name of a part), or a wording kind."""
    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    message: str
    """What is wrong, in one sentence; sent to the model as a fault and shown to the user as a flag."""
    consulted: tuple[int, ...]
    """Numbers of the answers that were consulted."""


def check_prose(
    text: str, sources: Sequence[Source], given: Sequence[int] = (), *, noun: str = "answer"
) -> list[Finding]:
    """Return what the answers don't support in a text, in the order of the text.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.
        noun: What messages call an answer.

    Example:
        >>> from prefect_dispatch.integrators.synthesize.answer_index import number_answers
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item="a", status="succeeded", value="Keep it for 5 years.")]
        >>> findings = check_prose("It is kept for 6 years [1].", number_answers(outcomes))
        >>> [(found.kind, found.message) for found in findings]
        [('number', "'6' doesn't stand in [1], which the sentence cites.")]
    """
    prose = Prose(text, len(sources))
    # 1. Citations of answers that don't exist.
    results = [
        Finding("citation", each.start, each.end, f"There is no {noun} {' or '.join(each.unknown)}.", ())
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
            where = describe_numbers(cites, len(sources), noun, is_cited=bool(cited))
        # A heading, the head of a table, or a lead-in needs no citation, but its figures stand in some answer.
        elif is_lead_in(text, start, end):
            consulted, where = list(sources), f"any {noun}"
            if numbered := _SECTION_NUMBER.match(text, start, end):
                start = numbered.end()
        else:
            consulted, where = [], f"what the sentence cites: it cites no {noun}"
            results.append(Finding("claim", start, end, f"The sentence cites no {noun}.", ()))
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
    quotations = _quotations_between(prose, start, end)
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
            kind, name = describe_figure(figure, prose.masked[start:end])
            message = f"{name}{prose.masked[at:until]!r} doesn't stand in {where}."
            yield Finding(kind, at, until, message, numbers)


def describe_numbers(numbers: Sequence[int], total: int, noun: str, *, is_cited: bool) -> str:
    """Return the answers that a sentence is compared with, for a message.

    Example:
        >>> describe_numbers([2], 3, "source", is_cited=True), describe_numbers([1, 2, 3], 3, "source", is_cited=False)
        ('[2], which the sentence cites', 'any source')
    """
    if is_cited:
        return f"{format_citation(numbers)}, which the sentence cites"
    return f"any {noun}" if len(numbers) == total else f"{format_citation(numbers)}, which it rests on"


def describe_figure(figure: Figure, text: str) -> tuple[str, str]:
    """Return the kind of a finding on a figure, and what a message calls the figure; empty for a number.

    Example:
        >>> [describe_figure(each, text) for text in ("in 2024", "in Q4", "5") for each in extract_figures(text)]
        [('date', 'The year '), ('date', 'The quarter '), ('number', '')]
    """
    if figure.kind == "date":
        return "date", "The date "
    if is_quarter(figure, text):
        return "date", "The quarter "
    # Others that are compared letter by letter are numbers, such as `half a million`.
    if figure.kind == "name" and _has_letters_and_digits(text[figure.start : figure.end]):
        return "identifier", "The name "
    if (
        figure.counts
        and _YEAR.fullmatch(text, figure.start, figure.end)
        and _BEFORE_YEAR.search(text[max(0, figure.start - _COUNTED_CHARS) : figure.start])
    ):
        return "date", "The year "
    return "number", ""


def _has_letters_and_digits(text: str) -> bool:
    return any(map(str.isalpha, text)) and any(map(str.isdigit, text))


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


class _Reader:
    """Compares sentences of a text with answers; the index of answers that are cited together is made once."""

    def __init__(self, prose: Prose, sources: Sequence[Source]) -> None:
        self._prose, self._sources = prose, sources
        self._is_english = is_english(prose.masked)
        self._evidence: dict[tuple[int, ...], Evidence] = {}

    def compare(
        self, start: int, end: int, numbers: tuple[int, ...], where: str, *, is_heading: bool = False
    ) -> Iterator[Finding]:
        """Yield what a sentence says otherwise than some answers: units, and in English the wording."""
        consulted = [self._sources[number - 1] for number in numbers]
        yield from self._check_units(start, end, consulted, where)
        if not self._is_english or not all(each.is_english for each in consulted):
            return
        for kind, first, last, message in check_wording(
            self._read_spoken(start, end), self._evidence_of(numbers), is_heading=is_heading
        ):
            yield Finding(kind, start + first, start + last, message.replace("{where}", where), numbers)

    def find_supporter(self, start: int, end: int, cited: tuple[int, ...], *, is_doubtful: bool) -> int | None:
        """Return the number of an answer that supports a sentence which those that it cites don't.

        They don't if there is a doubt, or if half of its words stand in none of them. The other answer has to have
        nearly all words of the sentence, and to leave no doubt.
        """
        everything = tuple(each.number for each in self._sources)
        claim = Statement.parse(self._read_spoken(start, end))
        judged = [at for at in claim.content if claim.stems[at] not in META_STEMS]
        if not self._is_english or len(everything) == len(cited) or len(judged) < _MIN_COMPARED:
            return None

        def count_found(numbers: tuple[int, ...]) -> int:
            evidence = self._evidence_of(numbers)
            return sum(evidence.has_word(claim.words[at], claim.stems[at]) for at in judged)

        own = count_found(cited)
        is_doubtful = is_doubtful or any(
            _check_sentence(self._prose, start, end, [self._sources[number - 1] for number in cited], "")
        )
        if own == len(judged) or not (is_doubtful or own * 2 <= len(judged)):
            return None
        ranked = self._evidence_of(everything).rank_sentences(claim, _MOST_SUPPORTERS)
        for number in dict.fromkeys(at + 1 for at, _ in ranked):
            source = self._sources[number - 1]
            if (
                number not in cited
                and source.is_english
                and count_found((number,)) >= _SUPPORTED_SHARE * len(judged)
                and not any(_check_sentence(self._prose, start, end, [source], ""))
                and not any(self.compare(start, end, (number,), ""))
            ):
                return number
        return None

    def _evidence_of(self, numbers: tuple[int, ...]) -> Evidence:
        """Return the index of some answers."""
        if numbers not in self._evidence:
            self._evidence[numbers] = Evidence([self._sources[number - 1].words for number in numbers])
        return self._evidence[numbers]

    def _read_spoken(self, start: int, end: int) -> str:
        """Return a sentence without its quotations, which are compared letter by letter."""
        spoken = list(self._prose.masked[start:end])
        for quotation in _quotations_between(self._prose, start, end):
            if not _is_term(self._prose, start, quotation):
                spoken[quotation.start - start : quotation.end - start] = " " * (quotation.end - quotation.start)
        return "".join(spoken)

    def _check_units(self, start: int, end: int, consulted: Sequence[Source], where: str) -> Iterator[Finding]:
        """Yield the numbers that the answers give in another unit of the same dimension."""
        text = self._prose.masked[start:end]
        quoted = [span for each in _quotations_between(self._prose, start, end) for span in each.words]
        for figure in extract_figures(text):
            if figure.kind != "number" or enclosing_span(start + figure.start, quoted):
                continue
            own, last = read_units(text, figure.start, figure.number_end, percent=figure.percent)
            others = {unit for source in consulted if own for unit in source.units_of(figure, text)}
            rivals = {each.name for each in others if each.dimension in {unit.dimension for unit in own}}
            is_converted = any(source.has_converted(figure, text) for source in consulted)
            if rivals and own.isdisjoint(others) and not is_converted:
                given = " or ".join(map(repr, sorted(rivals)))
                message = f"The unit of {text[figure.start : last]!r} is {given} in {where}."
                numbers = tuple(source.number for source in consulted)
                yield Finding("unit", start + figure.start, start + max(last, figure.end), message, numbers)


def _quotations_between(prose: Prose, start: int, end: int) -> Sequence[Quotation]:
    """Return the quotations that start between two offsets."""
    first, last = (bisect_left(prose.quotations, at, key=lambda each: each.start) for at in (start, end))
    return prose.quotations[first:last]


def check_claims(
    text: str, sources: Sequence[Source], given: Sequence[int] = (), *, noun: str = "answer"
) -> list[Finding]:
    """Return what the wording of a text says otherwise than the answers, by rules; see `wording`.

    These findings are reasons to look. They are neither sent back to a model nor marked in a text. In a text or an
    answer that is not English nothing is found.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.
        noun: What messages call an answer.

    Example:
        >>> from prefect_dispatch.integrators.synthesize.answer_index import number_answers
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> sources = number_answers([Outcome(brief="a", item="b", status="succeeded", value="The client has paid.")])
        >>> [found.message for found in check_claims("The client is bankrupt [1].", sources)]
        ["Too few of its words stand in [1], which the sentence cites; 'bankrupt' is missing."]
    """
    prose = Prose(text, len(sources))
    if any(each.numbers for each in prose.citations):
        given = ()
    results: list[Finding] = []
    reader = _Reader(prose, sources)
    for start, end, cited in prose.claims:
        is_heading = not cited and is_lead_in(text, start, end)
        numbers = cited or tuple(given) or (tuple(each.number for each in sources) if is_heading else ())
        if not numbers or text.startswith(">", start):
            continue
        where = describe_numbers(numbers, len(sources), noun, is_cited=bool(cited))
        found = list(reader.compare(start, end, numbers, where, is_heading=is_heading))
        results += found
        if cited and (other := reader.find_supporter(start, end, cited, is_doubtful=bool(found))):
            message = f"[{other}] supports this sentence, which cites {format_citation(cited)} instead."
            results.append(Finding("miscited", start, end, message, (other, *cited)))
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
    traced: set[int] = set()
    for start, end, cited in prose.claims:
        sentence = prose.masked[start:end]
        statement = Statement.parse(sentence)
        figures = [each for each in extract_figures(sentence) if each.sure]
        for number in cited or given:
            citing.setdefault(number, []).append(statement)
            if number not in traced and any(sources[number - 1].has_figure(each, sentence) for each in figures):
                traced.add(number)
    comparable = {
        number: statements
        for number, statements in citing.items()
        if number not in traced and sources[number - 1].is_english and sources[number - 1].words.stems
    }
    return list_untraced(comparable, [each.words for each in sources]) if comparable else []


def find_unchecked(text: str, sources: Sequence[Source], given: Sequence[int] = ()) -> list[Finding]:
    """Return the sentences whose words no rule can compare with the answers.

    They are in another language than these, or the rules on the wording don't apply to them and no word and no figure
    of theirs stands in an answer.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.
    """
    prose = Prose(text, len(sources))
    language = detect_language(prose.masked)
    is_english_text = is_english(prose.masked)
    results: list[Finding] = []
    for start, end, cited in prose.claims:
        numbers = cited or tuple(given)
        consulted = [sources[number - 1] for number in numbers]
        is_compared = is_english_text and all(each.is_english for each in consulted)
        if not consulted or is_compared or text.startswith(">", start):
            continue
        sentence = prose.masked[start:end]
        own = language if is_english_text else detect_language(sentence) or language
        where = describe_numbers(numbers, len(sources), "source", is_cited=bool(cited))
        same = [each for each in consulted if not (own and each.language) or own == each.language]
        starts = list_word_starts(sentence)
        is_traced = (
            any(not each.word_starts.isdisjoint(starts) for each in same)
            or any(each.has_figure(figure) for figure in extract_figures(sentence) for each in same)
            or not (starts or any(True for _ in extract_figures(sentence)))
        )
        if not same:
            message = f"This is in another language than {where}, so the words can't be compared."
        elif not is_traced:
            message = f"No word of this stands in {where}, and only English is compared further."
        else:
            continue
        results.append(Finding("language", start, end, message, numbers))
    return results
