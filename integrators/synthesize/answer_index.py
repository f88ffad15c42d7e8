"""Citations of answers in a text, and the evidence for its numbers, dates and quotations in the cited answers."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from bisect import bisect_left
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.number_extraction import (
    Date,
    Figure,
    extract_figures,
    scale_exactly,
    supports_date,
)
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.serialization.json_values import iter_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome


CITATION = re.compile(r"(?<!\\)\[ {0,3}(\d{1,9}(?: {0,3}[-–,;] {0,3}\d{1,9}){0,999}) {0,3}\](?!\()")  # noqa: RUF001 -- a dash of ranges


"""Pattern of a citation."""


Span = tuple[int, int]


"""Start and end offset of a part of a text."""


# A line break inside a quotation, but not before a blank line, heading, list item, quotation or table row.
_WRAP = r"\n(?![ \t]{0,9}(?:\n|#{1,6}[ \t]|[-*+•|>]|\d{1,3}[.)][ \t]))"


def _quotation_pattern(opening: str, closing: str) -> str:
    """Return the pattern of a quotation between two marks, at most 2000 characters long."""
    return rf"{opening}(?:[^{opening}{closing}\n]|{_WRAP}){{1,2000}}[{closing}]"


_MARK_PAIRS = (("“", "”"), ("„", "“”"), ("«", "»"), ("»", "«"), ("‹", "›"), ("›", "‹"), ("「", "」"), ("『", "』"))  # noqa: RUF001 -- quotation marks


_QUOTATION = re.compile(
    "|".join(
        [
            r"(?P<block>(?m:^) {0,3}>[^\n]*(?:\n {0,3}>[^\n]*)*)",
            *(_quotation_pattern(opening, closing) for opening, closing in _MARK_PAIRS),
            r"(?<!\d)" + _quotation_pattern('"', '"'),
            _quotation_pattern("‘", "’") + r"(?!\w)",  # noqa: RUF001 -- quotation marks
            r"(?<!\w)" + _quotation_pattern("'", "'") + r"(?!\w)",
        ]
    )
)


# A line of a block quotation that starts with one of these names its source.
_ATTRIBUTION = ("—", "–", "--")  # noqa: RUF001 -- dashes


class Quotation(NamedTuple):
    """A quotation, in quotation marks or as a block."""

    start: int
    """Start offset, quotation marks included."""
    end: int
    """End offset, exclusive."""
    words: tuple[Span, ...]
    """Spans of the quoted words."""
    pieces: tuple[str, ...]
    """The quoted words in pieces, each of which a source has to hold."""


def find_quotations(text: str) -> list[Quotation]:
    r"""Return the quotations of a text, in order.

    Example:
        >>> [each.pieces for each in find_quotations("It says “see [2]”.\n\n> Keep it. [1]\n> — Ann")]
        [('see [2]',), ('Keep it.',)]
    """
    return [
        _parse_block_quotation(text, *match.span())
        if match["block"]
        else Quotation(*match.span(), ((match.start() + 1, match.end() - 1),), (match[0][1:-1],))
        for match in _QUOTATION.finditer(text)
    ]


def _parse_block_quotation(text: str, start: int, end: int) -> Quotation:
    """Return the quotation of a Markdown block; attributions and citations at the end of lines are not part of it."""
    words: list[Span] = []
    pieces = [""]
    at = start
    for line in text[start:end].split("\n"):
        first, last = at + line.index(">") + 1, at + len(line)
        ends = _end_before_citations(text, first, last)
        quoted = text[first:ends].lstrip(" >").rstrip()
        if not quoted.startswith(_ATTRIBUTION):
            words.append((first, ends))
            pieces[-1] += quoted + "\n"
        if ends < last or not quoted:
            pieces.append("")
        at = last + 1
    return Quotation(start, end, tuple(words), tuple(piece.strip() for piece in pieces if piece.strip()))


def _end_before_citations(text: str, start: int, end: int) -> int:
    """Return where a line ends if the citations at its end are left out."""
    last = end
    while True:
        while last > start and text[last - 1] in " \t.,;:!?":
            last -= 1
        opening = text.rfind("[", start, last)
        if opening < 0 or not CITATION.fullmatch(text, opening, last):
            return end
        end = last = opening


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return sorted spans, overlapping ones merged.

    Example:
        >>> merge_spans([(5, 9), (0, 2), (1, 6)])
        [(0, 9)]
    """
    merged_spans: list[Span] = []
    for start, end in sorted(spans):
        if merged_spans and start < merged_spans[-1][1]:
            merged_spans[-1] = (merged_spans[-1][0], max(end, merged_spans[-1][1]))
        else:
            merged_spans.append((start, end))
    return merged_spans


_NUMBER_OR_RANGE = re.compile(r"(\d+)(?: {0,3}[-–] {0,3}(\d+))?")  # noqa: RUF001 -- a dash of ranges


_YEARS = range(1000, 3000)


_TRAILING_CITATIONS = re.compile(rf"(?:[ \t]?{CITATION.pattern})+")


_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)*_]{0,9}(?=\s|\[|$)|[。！？]+[”’」』]{0,9}|\n\s*")  # noqa: RUF001 -- full stops of Chinese and Japanese


# A sentence split too often raises needless flags; one split too seldom credits a number to the wrong source.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“'])(?:(?i:approx|ca|cf|dr|e\.g|gen|hon|i\.e|lt|mr|mrs|ms|mt|prof|resp|rev|sgt|st|vs|d\.h|z\.b|bzw|ggf|vgl)"
    r"|(?:[A-Z]\.)*[A-Z])\.$"
)


_ABBREVIATION_BEFORE_LOWER_CASE = re.compile(
    r"(?i)(?:^|[\s(])(?:a\.m|al|co|corp|dept|est|etc|inc|jr|ltd|p\.m|sr|usw|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)


_ABBREVIATION_BEFORE_NUMBER = re.compile(
    r"(?i)(?:^|[\s(])(?:art|eq|fig|no|nos|nr|p|para|pp|sec|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)


_ENUMERATOR = re.compile(r"(?:^|\n)[ \t#]*\d{1,3}(?:\.\d{1,3}){0,4}\.$")


_LIST_MARKER = re.compile(r"(?:[ \t]*(?:[-*+•]|\(?\d{1,3}[.)]|[①-⑳])(?=[ \t])){1,3}[ \t]*")


_TABLE_ROW = re.compile(r"(?m)^ {0,3}\|[^\n]*")


class Citation(NamedTuple):
    """One pair of brackets that cites answers."""

    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    numbers: tuple[int, ...]
    """Numbers of the existing answers that it cites, sorted."""
    unknown: tuple[str, ...]
    """Numbers and ranges of answers that don't exist, as they are written."""


class Sentence(NamedTuple):
    """A sentence including its citations, which may follow the full stop."""

    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    cited: tuple[int, ...]
    """Numbers of the answers that it cites, sorted and unique."""


def find_citations(text: str, total: int) -> list[Citation]:
    """Return the citations of a text, outside quotations.

    Args:
        text: Prose, or Markdown.
        total: Number of answers, which are numbered from 1.

    Example:
        >>> text = "One [1]. Both [1-2], all [1, 9]. In [2024]."
        >>> [(found.numbers, found.unknown) for found in find_citations(text, 2)]
        [((1,), ()), ((1, 2), ()), ((1,), ('9',))]
    """
    quoted = [span for quotation in find_quotations(text) for span in quotation.words]
    return [
        found
        for match in CITATION.finditer(text)
        if not enclosing_span(match.start(), quoted) and (found := _parse_citation(match, total))
    ]


def enclosing_span(place: int, spans: Sequence[Span]) -> Span | None:
    """Return the span that contains an offset, or None; the spans are sorted and don't overlap."""
    at = bisect_left(spans, (place + 1, 0)) - 1
    return spans[at] if at >= 0 and place < spans[at][1] else None


def _parse_citation(match: re.Match[str], total: int) -> Citation | None:
    """Return the citation in a pair of brackets; None for a single number that may be a year."""
    numbers: set[int] = set()
    unknown: list[str] = []
    for part in _NUMBER_OR_RANGE.finditer(match[1]):
        first, last = int(part[1]), int(part[2] or part[1])
        in_range = range(max(first, 1), min(last, total) + 1)
        numbers.update(in_range)
        if not in_range or first < 1 or last > total:
            unknown.append(part[0])
    if not numbers and match[1].isdecimal() and int(match[1]) in _YEARS:
        return None
    return Citation(match.start(), match.end(), tuple(sorted(numbers)), tuple(unknown))


def collect_numbers(brackets: Iterable[Citation]) -> tuple[int, ...]:
    """Return the numbers of the answers that citations name, sorted and unique."""
    return tuple(sorted({number for each in brackets for number in each.numbers}))


def split_sentences(text: str, total: int) -> list[Sentence]:
    """Return the sentences of a text; headings, list items and table rows are sentences of their own.

    A quotation is not split; a quotation block without citations has those of the sentence before it.

    Args:
        text: Prose, or Markdown.
        total: Number of answers.

    Example:
        >>> text = "MIT is short [1]. Zlib, e.g., is not. [2] Both are old."
        >>> [(text[each.start : each.end], each.cited) for each in split_sentences(text, 2)]
        [('MIT is short [1].', (1,)), ('Zlib, e.g., is not. [2]', (2,)), ('Both are old.', ())]
    """
    brackets = find_citations(text, total)
    starts = [each.start for each in brackets]
    unsplit = merge_spans(
        [each[:2] for each in find_quotations(text)] + [row.span() for row in _TABLE_ROW.finditer(text)]
    )
    results: list[Sentence] = []
    for start, end in _sentence_spans(text, starts, unsplit):
        own = collect_numbers(brackets[bisect_left(starts, start) : bisect_left(starts, end)])
        before = results[-1].cited if results and text.startswith(">", start) else ()
        results.append(Sentence(start, end, own or before))
    return results


def _sentence_spans(text: str, citation_starts: list[int], unsplit: list[Span]) -> Iterator[Span]:
    """Yield the spans of the sentences.

    Args:
        text: The text.
        citation_starts: Start offsets of the citations, sorted.
        unsplit: Spans that are not split: quotations and table rows.
    """
    start = 0
    for match in _SENTENCE_END.finditer(text):
        end = match.end()
        if match.start() < start or _continues_sentence(text, match, unsplit):
            continue
        # Citations after the full stop belong to the sentence, or open the next one.
        if not text[match.start()].isspace() and (more := _TRAILING_CITATIONS.match(text, end)):
            has_own = bisect_left(citation_starts, start) < bisect_left(citation_starts, end)
            end = _end_with_citations(text, more, has_own=has_own)
        if span := _trim_span(text, start, end):
            yield span
        start = end
    if span := _trim_span(text, start, len(text)):
        yield span


def _continues_sentence(text: str, end: re.Match[str], unsplit: list[Span]) -> bool:
    """Return whether a sentence continues after what looks like its end."""
    before, following = text[max(0, end.start() - 12) : end.end()], text[end.end() : end.end() + 2].lstrip(" \t")[:1]
    if span := enclosing_span(end.start(), unsplit):
        return end.end() < span[1] or following.islower()
    if text[end.start()] == "\n":
        # A wrapped line continues in the next one.
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()].strip()
        return "\n" not in end[0][1:] and following.islower() and not line.startswith("#") and not line.endswith("]")
    return bool(
        _ABBREVIATION.search(before)
        or _ENUMERATOR.search(before if end.start() > 12 else "\n" + before)  # noqa: PLR2004 -- as above
        or (following.islower() and _ABBREVIATION_BEFORE_LOWER_CASE.search(before))
        or (following.isdecimal() and _ABBREVIATION_BEFORE_NUMBER.search(before))
    )


def _end_with_citations(text: str, more: re.Match[str], *, has_own: bool) -> int:
    """Return the end of a sentence that is followed by citations, with or without them.

    They open the next sentence if text follows on the same line, and the sentence has citations of its own or
    the text starts with a lower-case letter.
    """
    following = text[more.end() : more.end() + 2].lstrip(" \t")[:1]
    opens = following not in ("", "\n") and (has_own or following.islower())
    return more.start() if opens else more.end()


def _trim_span(text: str, start: int, end: int) -> Span | None:
    """Return a span without white space and list markers around it; None if nothing is left."""
    if lead := _LIST_MARKER.match(text, start, end):
        start = lead.end()
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


_QUOTATION_MARKS = str.maketrans(dict.fromkeys('“”„‟«»‹›「」『』‘’‚‛"', "'") | {"*": None})  # noqa: RUF001 -- all forms of quotation marks


"""Maps all forms of quotation marks to one, and drops asterisks."""


_ELLIPSIS = re.compile(r"[\[(]?(?:…|\.\.\.)[\])]?")


_EDGES = " .,;:!?'\x00"


class AnswerIndex:
    """Index of the figures, names and texts of one answer."""

    def __init__(self, value: JsonValue, label: str) -> None:
        """Index an answer and its label.

        Args:
            value: The answer.
            label: Brief and item of the answer.
        """
        self._value = value
        self._numbers: set[Decimal] = set()
        self._percents: set[Decimal] = set()
        self._dates: set[Date] = set()
        self._texts = [_normalize_quotation(label)]
        self._names: list[str] = []
        for text in _extract_texts(value):
            self._texts.append(_normalize_quotation(text))
            self._index_figures(text)
        if not isinstance(value, str):
            self._texts.append(_normalize_quotation(to_prompt_text(value)))
        # The year of a date is also evidence for a bare number, such as 2024.
        self._numbers |= {Decimal(year) for year, _, _ in self._dates if year}
        # The label is evidence for names only.
        self._names += [figure.name for figure in extract_figures(label)]
        self._joined_names = "\n".join(self._names)

    def _index_figures(self, text: str) -> None:
        for figure in extract_figures(text):
            self._names.append(figure.name)
            self._dates |= set(figure.dates)
            if figure.kind == "number":
                (self._percents if figure.percent else self._numbers).add(figure.value)

    def has_figure(self, figure: Figure) -> bool:
        """Return whether the answer has a figure; `12 %` matches 12 and 0.12, too, and the other way round."""
        if figure.name and figure.name in self._joined_names:
            return True
        if figure.kind == "date":
            return any(supports_date(claimed, own) for claimed in figure.dates for own in self._dates)
        if figure.kind == "name":
            return False
        if figure.percent:
            as_numbers = (figure.value, scale_exactly(figure.value, 1, -2))
            return figure.value in self._percents or not self._numbers.isdisjoint(as_numbers)
        return (
            not {figure.value, scale_exactly(figure.value, 100)}.isdisjoint(self._percents)
            or figure.value in self._numbers
        )

    def has_quotation(self, quotation: str) -> bool:
        """Return whether the answer holds a quotation; an ellipsis in it stands for any text."""
        fragments = [
            part for piece in _ELLIPSIS.split(quotation) if (part := _normalize_quotation(piece).strip(_EDGES))
        ]
        return bool(fragments) and any(_contains_in_order(fragments, text) for text in self._texts)

    def has_whole_sentence(self, sentence: str) -> bool:
        """Return whether the answer holds a text that includes a whole sentence, or a whole entry, of the answer."""
        words = _normalize_quotation(sentence)
        return self.has_quotation(sentence) and any(
            unit in words and re.search(rf"(?<!\w){re.escape(unit)}(?!\w)", words)
            for unit in self._sentences_and_entries
        )

    @cached_property
    def _sentences_and_entries(self) -> set[str]:
        """The answer as a whole, its sentences, and the entries of its objects."""
        units = [to_prompt_text(self._value)]
        for _, part in iter_parts(self._value):
            if isinstance(part, str):
                units += [part[each.start : each.end] for each in split_sentences(part, 0)]
            elif isinstance(part, dict):
                units += [f"{_json(name)}: {_json(inside)}" for name, inside in part.items()]
        return {_normalize_quotation(unit).strip(_EDGES) for unit in units} - {""}


class Source(NamedTuple):
    """An answer with the number by which it is cited."""

    number: int
    """Its position in the order of items and briefs, from 1."""
    ref: Ref
    """Its brief and item."""
    label: str
    """Brief and item as one line of text."""
    text: str
    """The answer as text for a model."""
    value: JsonValue
    """The answer."""
    evidence: AnswerIndex
    """Index of the answer."""

    @property
    def block(self) -> str:
        """The answer below its number and label; its lines are indented, so that none can pass for another label."""
        return f"[{self.number}] {self.label}:\n{indent_lines(self.text)}"


def number_answers(outcomes: Sequence[Outcome]) -> list[Source]:
    """Return the succeeded outcomes as numbered answers, in the order of items and briefs.

    Example:
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item=key, status="succeeded", value={"years": 5}) for key in "ba"]
        >>> print(number_answers(outcomes)[0].block)
        [1] terms/a:
            {"years": 5}
    """
    answered = sorted((o for o in outcomes if o.status == "succeeded"), key=lambda outcome: Ref.of(outcome).order)
    return [_create_source(at, outcome) for at, outcome in enumerate(answered, 1)]


def _create_source(number: int, outcome: Outcome) -> Source:
    label = strip_control_chars(str(Ref.of(outcome)))
    return Source(
        number, Ref.of(outcome), label, to_prompt_text(outcome.value), outcome.value, AnswerIndex(outcome.value, label)
    )


def to_prompt_text(value: JsonValue) -> str:
    """Return an answer as text for a model: text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else _json(value)


def _json(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def indent_lines(text: str) -> str:
    """Return a text with each line indented by four spaces."""
    return "\n".join("    " + line for line in text.splitlines() or [""])


def _extract_texts(value: JsonValue) -> Iterator[str]:
    """Yield the parts of a value as texts: its strings, its numbers, and the keys of its objects."""
    for _, part in iter_parts(value):
        if isinstance(part, dict):
            yield from part
        elif isinstance(part, str):
            yield part
        elif isinstance(part, (int, float)) and not isinstance(part, bool):
            yield json.dumps(part)


def _normalize_quotation(text: str) -> str:
    """Return a text normalized for the comparison of quotations."""
    text = unicodedata.normalize("NFKC", html.unescape(text).translate(_QUOTATION_MARKS))
    return " ".join(text.replace("\x00", " ").split())


def _contains_in_order(fragments: Sequence[str], text: str) -> bool:
    """Return whether a text holds fragments one after another, without overlap."""
    at = 0
    for fragment in fragments:
        at = text.find(fragment, at)
        if at < 0:
            return False
        at += len(fragment)
    return True


_WORD = re.compile(r"\w")


_TABLE_RULE = re.compile(r"[ \t]*\n {0,3}[|:=-][-=|: \t]+(?:\n|$)")


_HEADING = re.compile(r"#{1,6}\s[^\n]*|(?P<bold>\*\*|__)[^*_\n]+(?<!\.)(?P=bold)|[\s\S]*:[*_]{0,3}")


_NUMBERED_HEADING = re.compile(r"#{1,6}[ \t]+\d{1,2}(?:[.)]|(?:\.\d{1,2}){1,4}[.)]?)(?=[ \t])")


class Finding(NamedTuple):
    """Something in a text that the answers don't support."""

    kind: str
    """`number`, `date`, `quotation`, `citation`, `claim`, or `key`: a number in the name of a part."""
    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    message: str
    """What is wrong, in one sentence; sent to the model as a fault and shown to the user as a flag."""
    consulted: tuple[int, ...]
    """Numbers of the answers that were consulted."""


def claim_sentences(text: str, total: int) -> list[Sentence]:
    """Return the sentences of a text that make a statement; those of citations alone are left out."""
    masked = _mask_citations(text, find_citations(text, total))
    return [each for each in split_sentences(text, total) if _WORD.search(masked, each.start, each.end)]


def cited_numbers(text: str, total: int) -> tuple[int, ...]:
    """Return the numbers of the answers that a text cites, sorted and unique.

    Example:
        >>> cited_numbers("Both agree [1, 3]. [2]", 3), cited_numbers("[1]", 3)
        ((1, 2, 3), ())
    """
    return tuple(sorted({number for each in claim_sentences(text, total) for number in each.cited}))


def check_prose(text: str, sources: Sequence[Source], given: Sequence[int] = ()) -> list[Finding]:
    """Return what the answers don't support in a text, in the order of the text.

    Args:
        text: Prose with citations.
        sources: All answers in the order of their numbers.
        given: Numbers of the answers that support a text without citations of its own.

    Example:
        >>> from prefect_dispatch.integrators.synthesize.answer_index import number_answers
        >>> from prefect_dispatch.models.outcome import Outcome
        >>> outcomes = [Outcome(brief="terms", item="a", status="succeeded", value="Keep it for 5 years.")]
        >>> findings = check_prose("It is kept for 6 years [1].", number_answers(outcomes))
        >>> [(found.kind, found.message) for found in findings]
        [('number', "'6' doesn't stand in [1], which the sentence cites.")]
    """
    brackets = find_citations(text, len(sources))
    masked = _mask_citations(text, brackets)
    quoted = find_quotations(text)
    # 1. Citations of answers that don't exist.
    results = [
        Finding("citation", each.start, each.end, f"There is no answer {' or '.join(each.unknown)}.", ())
        for each in brackets
        if each.unknown
    ]
    given = () if any(each.numbers for each in brackets) else tuple(given)
    consulted: Sequence[Source]
    # 2. Sentences without a citation, and figures and quotations that the cited answers don't hold.
    for sentence in claim_sentences(text, len(sources)):
        if cites := sentence.cited or given:
            consulted, where = (
                [sources[number - 1] for number in cites],
                f"{format_citation(cites)}, which the sentence cites",
            )
        # A heading or a lead-in needs no citation, but its figures have to stand in some answer.
        elif _needs_no_citation(text, sentence):
            consulted, where = sources, "any answer"
            sentence = _strip_section_number(text, sentence)  # noqa: PLW2901 -- the number of `## 2. Scope` is no claim
        else:
            consulted, where = (), "an answer: the sentence cites none"
            results.append(Finding("claim", sentence.start, sentence.end, "The sentence cites no answer.", ()))
        results += _check_sentence(masked, sentence, quoted, consulted, where)
    return sorted(results, key=lambda each: (each.start, each.end, each.kind))


def _needs_no_citation(text: str, sentence: Sentence) -> bool:
    """Return whether a sentence is a heading, the head of a table, or a lead-in that ends with a colon."""
    is_heading = _HEADING.fullmatch(text, sentence.start, sentence.end)
    return bool(is_heading or _TABLE_RULE.match(text, sentence.end)) and not text.startswith(">", sentence.start)


def _strip_section_number(text: str, heading: Sentence) -> Sentence:
    """Return a heading without the number of its section."""
    match = _NUMBERED_HEADING.match(text, heading.start, heading.end)
    return heading._replace(start=match.end()) if match else heading


def _mask_citations(text: str, brackets: Sequence[Citation]) -> str:
    """Return a text of the same length with its citations replaced by null characters."""
    parts: list[str] = []
    last = 0
    for each in brackets:
        parts += [text[last : each.start], "\x00" * (each.end - each.start)]
        last = each.end
    return "".join([*parts, text[last:]])


def _check_sentence(
    masked: str, sentence: Sentence, quoted: Sequence[Quotation], consulted: Sequence[Source], where: str
) -> Iterator[Finding]:
    """Yield the quotations and figures of a sentence that none of the consulted answers holds.

    Args:
        masked: The text without citations.
        sentence: The sentence.
        quoted: The quotations of the text, in order.
        consulted: The answers that may support the sentence.
        where: These answers in words, for messages.
    """
    numbers = tuple(source.number for source in consulted)
    first, last = (bisect_left(quoted, at, key=lambda each: each.start) for at in (sentence.start, sentence.end))
    for each in quoted[first:last]:
        if not all(any(source.evidence.has_quotation(piece) for source in consulted) for piece in each.pieces):
            message = f"This quotation doesn't stand in {where}."
            yield Finding("quotation", each.start, each.end, message, numbers)
    # Figures in a quotation were compared with it.
    quoted_spans = [span for each in quoted[first:last] for span in each.words]
    for figure in extract_figures(masked[sentence.start : sentence.end]):
        start, end = sentence.start + figure.start, sentence.start + figure.end
        if figure.sure and not enclosing_span(start, quoted_spans) and not is_supported(figure, consulted):
            kind = "date" if figure.kind == "date" else "number"
            yield Finding(kind, start, end, f"{masked[start:end]!r} doesn't stand in {where}.", numbers)


def is_supported(figure: Figure, consulted: Sequence[Source]) -> bool:
    """Return whether one of the consulted answers has a figure, or the figure is the count of these answers."""
    is_count = figure.counts and len(consulted) > 1 and figure.value == len(consulted)
    return is_count or any(source.evidence.has_figure(figure) for source in consulted)


def format_citation(numbers: Sequence[int]) -> str:
    """Return the numbers of answers as a citation.

    Example:
        >>> format_citation([3, 7])
        '[3][7]'
    """
    return "".join(f"[{number}]" for number in numbers)
