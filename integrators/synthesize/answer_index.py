"""Citations of answers in a text, and the evidence for its numbers, dates and quotations in the cited answers."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from bisect import bisect_left
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.figures import Figure, FigureIndex
from prefect_dispatch.integrators.synthesize.vocabulary import detect_language, is_english, list_word_starts
from prefect_dispatch.integrators.synthesize.word_index import Statement, WordIndex
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.serialization.json_values import iter_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.synthesize.units import Unit
    from prefect_dispatch.models.outcome import Outcome

Span = tuple[int, int]
"""Start and end offset of a part of a text."""

# Citations and quotations.

CITATION = re.compile(r"(?<!\\)\[ {0,3}(\d{1,9}(?: {0,3}[-–,;] {0,3}\d{1,9}){0,999}) {0,3}\](?!\()")  # noqa: RUF001 -- a dash of ranges
"""Pattern of a citation."""

_NUMBER_OR_RANGE = re.compile(r"(\d+)(?: {0,3}[-–] {0,3}(\d+))?")  # noqa: RUF001 -- a dash of ranges
_YEARS = range(1000, 3000)

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
        ends = last
        for match in reversed([*CITATION.finditer(text, first, last)]):
            if text[match.end() : ends].strip(" \t.,;:!?"):
                break
            ends = match.start()
        quoted = text[first:ends].lstrip(" >").rstrip()
        if not quoted.startswith(_ATTRIBUTION):
            words.append((first, ends))
            pieces[-1] += quoted + "\n"
        if ends < last or not quoted:
            pieces.append("")
        at = last + 1
    return Quotation(start, end, tuple(words), tuple(piece.strip() for piece in pieces if piece.strip()))


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
    return Citation(*match.span(), tuple(sorted(numbers)), tuple(unknown))


def format_citation(numbers: Sequence[int]) -> str:
    """Return the numbers of answers as a citation.

    Example:
        >>> format_citation([3, 7])
        '[3][7]'
    """
    return "".join(f"[{number}]" for number in numbers)


def enclosing_span(place: int, spans: Sequence[Span]) -> Span | None:
    """Return the span that contains an offset, or None; the spans are sorted and don't overlap."""
    at = bisect_left(spans, (place + 1, 0)) - 1
    return spans[at] if at >= 0 and place < spans[at][1] else None


# Sentences.

_TRAILING_CITATIONS = re.compile(rf"(?:[ \t]?{CITATION.pattern})+")
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)*_]{0,9}(?=\s|\[|$)|[。！？]+[”’」』]{0,9}|\n\s*|\Z")  # noqa: RUF001 -- full stops of Chinese and Japanese

# A sentence split too often raises needless flags; one split too seldom credits a number to the wrong source.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“'])(?:(?i:approx|ca|cf|dr|e\.g|gen|hon|i\.e|lt|mr|mrs|ms|mt|prof|resp|rev|sgt|st|vs|d\.h|z\.b|bzw|ggf|vgl"
    r"|evtl|fa|hr|inkl|mio|mrd|tsd|u\.a|zzgl)|(?:[A-Z]\.)*[A-Z])\.$"
)
_SPACED_ABBREVIATION = re.compile(r"(?:^|[\s(])[a-z]\.\s?[A-ZÄa-zä]\.")
"""A German abbreviation of two letters with a space, such as `z. B.` or `e. V.`."""
_GERMAN_ORDINAL = re.compile(
    r"\b\d{1,2}\.[ \t](?:Januar|Jänner|Februar|März|Mai|Juni|Juli|Oktober|Dezember|Quartal|Halbjahr)\b"
    r"|(?i:\b(?:am|ab|bis|seit|vom|zum)[ \t])\d{1,2}\.[ \t](?:April|August|September|November)\b"
    r"|(?i:\b(?:der|die|das|dem|des|im|vom|zum|zur|beim)[ \t])\d{1,3}\.[ \t]\w"
)
"""A date or an ordinal number in German, whose full stop ends no sentence."""
_ABBREVIATION_BEFORE_LOWER_CASE = re.compile(
    r"(?i)(?:^|[\s(])(?:a\.m|al|co|corp|dept|est|etc|inc|jr|ltd|p\.m|sr|usw|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)
_ABBREVIATION_BEFORE_NUMBER = re.compile(
    r"(?i)(?:^|[\s(])(?:art|eq|fig|no|nos|nr|p|para|pp|sec|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$"
)
_ENUMERATOR = re.compile(r"(?:^|\n)[ \t#]*\d{1,3}(?:\.\d{1,3}){0,4}\.$")
_LONGEST_ABBREVIATION = 12
"""Characters before a full stop that decide whether a sentence ends there."""
_LIST_MARKERS = re.compile(r"\A(?:[ \t]*(?:[-*+•]|\(?\d{1,3}[.)]|[①-⑳])(?=[ \t])){0,3}\s*")
_UNSPLIT = re.compile(rf"(?m:^) {{0,3}}\|[^\n]*|{_QUOTATION.pattern}")
"""Pattern of what holds no end of a sentence: a row of a table, or a quotation."""
_STATEMENT = re.compile(r"\w")


class Sentence(NamedTuple):
    """A sentence including its citations, which may follow the full stop."""

    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    cited: tuple[int, ...]
    """Numbers of the answers that it cites, sorted and unique."""


class Prose:
    """A text, or Markdown, with its quotations, citations and sentences.

    Attributes:
        quotations: The quotations, in order.
        citations: The citations outside quotations, in order.
        masked: The text with null characters in place of its citations.

    Example:
        >>> text = "MIT is short [1]. Zlib, e.g., is not. [2] Both are old [9]. In [2024]."
        >>> prose = Prose(text, 2)
        >>> [(each.numbers, each.unknown) for each in prose.citations]
        [((1,), ()), ((2,), ()), ((), ('9',))]
        >>> [(text[each.start : each.end], each.cited) for each in prose.sentences][1:3]
        [('Zlib, e.g., is not. [2]', (2,)), ('Both are old [9].', ())]
    """

    def __init__(self, text: str, total: int) -> None:
        """Find the quotations and citations.

        Args:
            text: The text.
            total: Number of answers, which are numbered from 1.
        """
        self._text = text
        self.quotations = find_quotations(text)
        quoted = [span for quotation in self.quotations for span in quotation.words]
        self.citations = [
            found
            for match in CITATION.finditer(text)
            if not enclosing_span(match.start(), quoted) and (found := _parse_citation(match, total))
        ]
        self._citation_starts = [each.start for each in self.citations]
        starts = set(self._citation_starts)
        self.masked = CITATION.sub(lambda each: "\x00" * len(each[0]) if each.start() in starts else each[0], text)

    @cached_property
    def sentences(self) -> list[Sentence]:
        """The sentences; headings, list items and table rows are sentences of their own.

        A quotation is not split; a quotation block without citations has those of the sentence before it.
        """
        results: list[Sentence] = []
        for start, end in self._sentence_spans():
            own = {number for each in self.citations[self._citation_slice(start, end)] for number in each.numbers}
            before = results[-1].cited if results and self._text.startswith(">", start) else ()
            results.append(Sentence(start, end, tuple(sorted(own)) or before))
        return results

    @property
    def claims(self) -> list[Sentence]:
        """The sentences that make a statement; those of citations alone are left out."""
        return [each for each in self.sentences if _STATEMENT.search(self.masked, each.start, each.end)]

    def _citation_slice(self, start: int, end: int) -> slice:
        """Return the indices of the citations that start between two offsets."""
        return slice(bisect_left(self._citation_starts, start), bisect_left(self._citation_starts, end))

    def _sentence_spans(self) -> Iterator[Span]:
        """Yield the spans of the sentences, without white space and list markers around them."""
        text = self._text
        unsplit = [match.span() for match in _UNSPLIT.finditer(text)]
        start = 0
        for match in _SENTENCE_END.finditer(text):
            end = match.end()
            if match[0] and (match.start() < start or _continues_sentence(text, match, unsplit)):
                continue
            # Citations after the full stop belong to the sentence, or open the next one.
            if not match[0].isspace() and (more := _TRAILING_CITATIONS.match(text, end)):
                has_own = self._citation_slice(start, end) != self._citation_slice(start, start)
                end = _end_with_citations(text, more, has_own=has_own)
            sentence = _LIST_MARKERS.sub("", text[start:end])
            if stripped := sentence.rstrip():
                yield end - len(sentence), end - len(sentence) + len(stripped)
            start = end


def _continues_sentence(text: str, end: re.Match[str], unsplit: Sequence[Span]) -> bool:
    """Return whether a sentence continues after what looks like its end."""
    before = text[max(0, end.start() - _LONGEST_ABBREVIATION) : end.end()]
    following = text[end.end() : end.end() + 2].lstrip(" \t")[:1]
    if span := enclosing_span(end.start(), unsplit):
        return end.end() < span[1] or following.islower()
    if text[end.start()] == "\n":
        # A wrapped line continues in the next one.
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()].strip()
        return "\n" not in end[0][1:] and following.islower() and not line.startswith("#") and not line.endswith("]")
    first = max(0, end.start() - _LONGEST_ABBREVIATION)
    around, at = text[first : end.end() + _LONGEST_ABBREVIATION], end.start() - first
    if any(
        match.start() < at < match.end()
        for pattern in (_GERMAN_ORDINAL, _SPACED_ABBREVIATION)
        for match in pattern.finditer(around)
    ):
        return True
    return bool(
        _ABBREVIATION.search(before)
        or _ENUMERATOR.search(before)
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


def cited_numbers(text: str, total: int) -> tuple[int, ...]:
    """Return the numbers of the answers that a text cites, sorted and unique.

    Example:
        >>> cited_numbers("Both agree [1, 3]. [2]", 3), cited_numbers("[1]", 3)
        ((1, 2, 3), ())
    """
    return tuple(sorted({number for each in Prose(text, total).claims for number in each.cited}))


# Answers, and what they support.

_QUOTATION_MARKS = str.maketrans(dict.fromkeys('“”„‟«»‹›「」『』‘’‚‛"', "'") | {"*": None})  # noqa: RUF001 -- all forms of quotation marks
"""Maps all forms of quotation marks to one, and drops asterisks."""
_ELLIPSIS = re.compile(r"[\[(]?(?:…|\.\.\.)[\])]?")
_EDGES = " .,;:!?'\x00"
_CONTRACTION = re.compile(r"\b((?:do|does|did|is|are|was|were|has|have|had|would|could|should|must|need))n't\b")
"""Pattern of `didn't`, which a quotation may give as `did not`."""


class Source:
    """An answer with the number by which it is cited, and the index of its figures, names and texts.

    Attributes:
        number: Its position in the order of items and briefs, from 1.
        ref: Its brief and item.
        label: Brief and item as one line of text.
        value: The answer.
        text: The answer as text for a model.
    """

    def __init__(self, number: int, outcome: Outcome) -> None:
        """Index the answer of an outcome, and its label."""
        self.number = number
        self.ref = Ref.of(outcome)
        self.label = strip_control_chars(str(self.ref))
        self.value = outcome.value
        self.text = to_prompt_text(outcome.value)
        texts = list(_extract_texts(outcome.value))
        self._quotable_texts = [_normalize_quotation(text) for text in sorted({self.label, self.text, *texts})]
        self._figures = FigureIndex(texts, self.label)

    @property
    def block(self) -> str:
        """The answer below its number and label; its lines are indented, so that none can pass for another label."""
        return f"[{self.number}] {self.label}:\n{indent_lines(self.text)}"

    def has_figure(self, figure: Figure, text: str = "") -> bool:
        """Return whether the answer has a figure; see `FigureIndex.has`."""
        return self._figures.has(figure, text)

    def has_converted(self, figure: Figure, text: str) -> bool:
        """Return whether the answer has an amount in a unit of its dimension; see `FigureIndex.has_converted`."""
        return self._figures.has_converted(figure, text)

    def units_of(self, figure: Figure, text: str) -> set[Unit]:
        """Return the units in which the answer gives a number; see `FigureIndex.units_of`."""
        return self._figures.units_of(figure, text)

    def has_quotation(self, quotation: str) -> bool:
        """Return whether the answer holds a quotation; an ellipsis in it stands for any text."""
        fragments = _split_quotation(quotation)
        # The words within a fragment are whole words of the text; so few texts are searched.
        words = {word for fragment in fragments for word in fragment.split(" ")[1:-1]}
        return bool(fragments) and any(
            _contains_in_order(fragments, text)
            for text, own in zip(self._quotable_texts, self._quotable_words, strict=True)
            if words <= own
        )

    def has_whole_sentence(self, sentence: str) -> bool:
        """Return whether the answer holds a text that includes a whole sentence, or a whole entry, of the answer."""
        words = _normalize_quotation(sentence)
        return self.has_quotation(sentence) and any(
            unit in words and re.search(rf"(?<!\w){re.escape(unit)}(?!\w)", words)
            for unit in self._sentences_and_entries
        )

    @cached_property
    def _quotable_words(self) -> list[frozenset[str]]:
        return [frozenset(text.split(" ")) for text in self._quotable_texts]

    @cached_property
    def is_english(self) -> bool:
        """Whether the answer is in English, or too short to know."""
        return is_english(self.text)

    @cached_property
    def language(self) -> str:
        """The answer's language; empty if it is unknown."""
        return detect_language(self.text)

    @cached_property
    def word_starts(self) -> frozenset[str]:
        """The starts of the answer's words; see `list_word_starts`."""
        return frozenset(list_word_starts(self.text))

    @cached_property
    def words(self) -> WordIndex:
        """The index of the answer's words."""
        return WordIndex(_list_statements(self.value), f"{self.text}\n{self.label}")

    @cached_property
    def _sentences_and_entries(self) -> set[str]:
        """The answer as a whole, its sentences, and the entries of its objects."""
        units = [self.text]
        for _, part in iter_parts(self.value):
            if isinstance(part, str):
                units += [part[each.start : each.end] for each in Prose(part, 0).sentences]
            elif isinstance(part, dict):
                units += [f"{_json(name)}: {_json(inside)}" for name, inside in part.items()]
        return {_normalize_quotation(unit).strip(_EDGES) for unit in units} - {""}


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
    return [Source(at, outcome) for at, outcome in enumerate(answered, 1)]


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


def _list_statements(value: JsonValue) -> Iterator[Statement]:
    """Yield the sentences of a value: those of its texts, and each entry of its objects as `key: value`.

    What is false or null is a negated statement: `"copyleft": false` is evidence for `no copyleft`.
    """
    for _, part in iter_parts(value):
        if isinstance(part, str):
            yield from (Statement.parse(part[each.start : each.end]) for each in Prose(part, 0).sentences)
        elif isinstance(part, dict):
            entries = [(name, inside) for name, inside in part.items() if not isinstance(inside, (dict, list))]
            for name, inside in entries:
                lacks = inside in (None, False) or str(inside).strip().lower() in ("no", "none", "never", "n/a", "")
                yield Statement.parse(f"{name}: {inside}".replace("_", " "), is_negated=lacks)
            # All entries together say which number belongs to which name.
            yield Statement.parse(", ".join(f"{name}: {inside}" for name, inside in entries).replace("_", " "))


def _normalize_quotation(text: str) -> str:
    """Return a text normalized for the comparison of quotations."""
    text = unicodedata.normalize("NFKC", html.unescape(text).translate(_QUOTATION_MARKS))
    text = _CONTRACTION.sub(r"\1 not", text)
    return " ".join(text.replace("\x00", " ").split())


@lru_cache(maxsize=1024)
def _split_quotation(quotation: str) -> tuple[str, ...]:
    """Return the normalized parts of a quotation between its ellipses."""
    parts = (_normalize_quotation(piece).strip(_EDGES) for piece in _ELLIPSIS.split(quotation))
    return tuple(filter(None, parts))


def _contains_in_order(fragments: Sequence[str], text: str) -> bool:
    """Return whether a text holds fragments one after another, without overlap."""
    at = 0
    for fragment in fragments:
        at = text.find(fragment, at)
        if at < 0:
            return False
        at += len(fragment)
    return True
