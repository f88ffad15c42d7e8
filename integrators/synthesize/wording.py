"""Comparison of a statement's wording with its sources, by rules and without a model.

Words are compared by their stems. A statement is reported for

- a name that stands in no source (`name`);
- a negation of a word that no source negates (`negation`), and the lack of one that every source has;
- a word whose opposite stands in the nearest sentences of the sources, where the word itself stands in none, and a
  word such as `always` that no source has (`direction`);
- a figure in another unit (`unit`), or of another subject (`subject`);
- little in common with its sources (`support`).

The rules are for English. In a text of another language nothing is reported. What passes them is not proven: two words
may mean the same, and a sentence of the same words may mean something else.

The thresholds were chosen on one half of public data and measured on the other (`benchmarks/texts.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.vocabulary import (
    ABSENCE_STEMS,
    CERTAINTY_WORDS,
    COPULAS,
    FUNCTION_WORDS,
    META_STEMS,
    NEGATIONS,
    NEGATIVE_PREFIXES,
    OPPOSITES_BY_STEM,
    PLAIN_NEGATIONS,
    SMALL_COUNTS,
    UNITS,
    stem_word,
)
from prefect_dispatch.security.escaping import join_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MISSING_SHARE = 0.7
"""Share of a statement's content words that no source has from which on it has little in common with them."""
MIN_WORDS = 5
"""Number of content words from which on that share counts; a shorter statement needs one word that a source has."""
MISSING_RUN = 4
"""Number of content words in a row that no source has, from which on they are a detail that no source gives."""
MIN_PAIRS = 6
"""Number of pairs of neighbouring content words of which at least one has to stand together in a source."""
PAIR_DISTANCE = 2
"""Largest distance of two content words, in content words, that stand together."""
NEAREST = 3
"""Number of the most similar sentences of the sources that a statement is compared with for opposites."""
REACH = 2
"""Number of words with content after a negation that a source may negate by it."""
NEGATION_OVERLAP = 0.5
"""Share of a statement's content words in a negated sentence from which on the statement is about the same."""
_MIN_PREFIX = 5
_MIN_STEM = 6
_ENDING = 2
"""Longest ending in which two stems that mean the same may differ, as in `bankrupt` and `bankruptcy`."""
_MIN_POSITIVE = 4
"""Least length of a word that a negative prefix turns into its opposite."""
_ACRONYM = re.compile(r"[A-Z]{2,6}s?")

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,]\d+)*")  # noqa: RUF001 -- an apostrophe
"""Pattern of a word or a number."""
_DIGITS = re.compile(r"[-./]?\d")
_BEFORE_START = re.compile(r"(?:\A|[.:!?…|>\"“”„«»;\x00])[\s*_#'‘(\[-]*\Z")  # noqa: RUF001 -- quotation marks
"""Pattern of what precedes a word that is capitalised as the first of a sentence, a cell or a quotation."""


class Remark(NamedTuple):
    """A doubt about the wording of a statement."""

    kind: str
    """`name`, `negation`, `direction`, `unit`, `subject` or `support`."""
    start: int
    """Start offset in the statement."""
    end: int
    """End offset in the statement, exclusive."""
    message: str
    """What is wrong, in one sentence with `{where}` in place of the sources."""


def is_negation(word: str) -> bool:
    """Return whether a word negates what follows it.

    Example:
        >>> is_negation("doesn't"), is_negation("note")
        (True, False)
    """
    return word in NEGATIONS or word.endswith("n't")


@dataclass(frozen=True)
class Statement:
    """A sentence as its words."""

    words: tuple[str, ...]
    """The words and numbers in lower case."""
    spans: tuple[tuple[int, int], ...]
    """Where they stand in the text."""
    is_negated: bool = False
    """Whether all of it is negated, as `"copyleft": false`."""

    @classmethod
    def parse(cls, text: str, *, is_negated: bool = False) -> Statement:
        """Return a sentence as its words."""
        found = [*TOKEN.finditer(text)]
        words = tuple(match[0].lower().replace("’", "'") for match in found)  # noqa: RUF001 -- an apostrophe
        return cls(words, tuple(match.span() for match in found), is_negated)

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The stems of the words."""
        return tuple(map(stem_word, self.words))

    @cached_property
    def stem_set(self) -> frozenset[str]:
        """The different stems."""
        return frozenset(self.stems)

    @cached_property
    def content(self) -> tuple[int, ...]:
        """Indices of the words with content of their own, without numbers."""
        return tuple(
            at
            for at, word in enumerate(self.words)
            if len(word) > 1
            and not word[0].isdigit()
            and word.partition("'")[0] not in FUNCTION_WORDS
            and not is_negation(word)
        )

    @cached_property
    def content_stems(self) -> tuple[str, ...]:
        """The stems of the words with content."""
        return tuple(self.stems[at] for at in self.content)

    @cached_property
    def has_negation(self) -> bool:
        """Whether anything in it is negated."""
        return self.is_negated or any(map(is_negation, self.words))

    def negated_stems(self, reach: int) -> frozenset[str]:
        """Return the stems of the words that are negated: so many words with content after each negation."""
        if self.is_negated:
            return self.stem_set
        return frozenset(
            self.stems[each]
            for at, word in enumerate(self.words)
            if is_negation(word)
            for each in [after for after in self.content if after > at][:reach]
        )


class WordIndex:
    """The words of a source.

    Attributes:
        statements: Its sentences.
        stems: The stems of all its words.
    """

    def __init__(self, statements: Iterable[Statement], text: str) -> None:
        """Index the sentences of a source.

        Args:
            statements: Its sentences.
            text: All of its text, from which names and abbreviations are read.
        """
        self.statements = [each for each in statements if each.words]
        words = Statement.parse(text)
        self.stems = frozenset(stem for each in (*self.statements, words) for stem in each.stems)
        self._joined = re.sub(r"[\W_]+", "", text.lower())
        self._by_prefix: dict[str, list[str]] = {}
        for stem in self.stems:
            if len(stem) >= _MIN_STEM:
                self._by_prefix.setdefault(stem[:_MIN_PREFIX], []).append(stem)
        tokens = [text[first:last] for first, last in words.spans]
        self._initials = "".join(token[0].lower() for token in tokens if token[0].isalpha())
        self._acronyms = {token.lower().removesuffix("s") for token in tokens if _ACRONYM.fullmatch(token)}

    def has_word(self, word: str, stem: str) -> bool:
        """Return whether the source has a word, a form of it, or a word that means the same."""
        if stem in self.stems or (len(word) >= _MIN_PREFIX and word in self._joined):
            return True
        if any(same & self.stems for same, _ in OPPOSITES_BY_STEM.get(stem, ())):
            return True
        if len(stem) < _MIN_STEM or word.startswith(NEGATIVE_PREFIXES):
            return False
        return any(
            other.startswith(stem[:-_ENDING]) or stem.startswith(other[:-_ENDING])
            for other in self._by_prefix.get(stem[:_MIN_PREFIX], ())
        )

    def has_name(self, name: str) -> bool:
        """Return whether the source has a capitalised word: the word, or what it abbreviates."""
        lowered = name.lower()
        return self.has_word(lowered, stem_word(lowered)) or (
            bool(_ACRONYM.fullmatch(name)) and lowered.removesuffix("s") in self._initials
        )

    def is_traced(self, statement: Statement, others: Sequence[WordIndex]) -> bool:
        """Return whether a statement has a number or a word of this source alone, or half of its words from it.

        One that only speaks about its sources, such as `both agree`, has all of its words from them.
        """
        if any(word in self.stems for word in statement.words if word[0].isdigit()):
            return True
        judged = [at for at in statement.content if statement.stems[at] not in META_STEMS]
        shared = [at for at in judged if self.has_word(statement.words[at], statement.stems[at])]
        if len(shared) * 2 >= len(judged):
            return True
        return any(not all(statement.stems[at] in other.stems for other in others) for at in shared)

    def has_acronym(self, names: Sequence[str]) -> bool:
        """Return whether the source abbreviates a name of several words."""
        return len(names) > 1 and "".join(name[0].lower() for name in names) in self._acronyms


def check_wording(text: str, sources: Sequence[WordIndex], *, is_heading: bool = False) -> Iterator[Remark]:
    """Yield what the wording of a statement has that its sources don't.

    Args:
        text: One sentence, without its citations.
        sources: The sources that it rests on; at least one.
        is_heading: Whether it is a heading or a lead-in, which rests on no source in particular.

    Example:
        >>> source = WordIndex([Statement.parse("The client paid its invoice.")], "The client paid its invoice.")
        >>> [remark.kind for remark in check_wording("The client did not pay its invoice.", [source])]
        ['negation']
        >>> [remark.kind for remark in check_wording("The client is paid by Bosch.", [source])]
        ['name']
    """
    claim = Statement.parse(text)
    yield from _check_names(text, claim, sources, is_heading=is_heading)
    yield from _check_units(claim, sources)
    if not is_heading:
        yield from _check_negations(claim, sources)
        yield from _check_lost_negations(claim, sources)
        yield from _check_opposites(claim, sources)
        yield from _check_subjects(text, claim, sources)
        yield from _check_support(text, claim, sources)


def _check_names(text: str, claim: Statement, sources: Sequence[WordIndex], *, is_heading: bool) -> Iterator[Remark]:
    """Yield the capitalised words that no source has; a single one at the start of a sentence may be any word."""
    tokens = [text[first:last] for first, last in claim.spans]
    capitalised = [token[0].isupper() for token in tokens]
    if is_heading and sum(capitalised[at] for at in claim.content) > len(claim.content) / 2:  # in title case
        capitalised = [each and token[1:] != token[1:].lower() for each, token in zip(capitalised, tokens, strict=True)]
    content = set(claim.content)
    for at in claim.content:
        start, end = claim.spans[at]
        # A name with digits, such as `COVID-19`, is compared as a figure.
        if not capitalised[at] or _DIGITS.match(text, end):
            continue
        has_next = at + 1 in content and capitalised[at + 1] and text[end : claim.spans[at + 1][0]] == " "
        is_first = bool(_BEFORE_START.search(text[:start]))
        if (is_first and not has_next and tokens[at][1:] == tokens[at][1:].lower()) or len(tokens[at]) < 2:  # noqa: PLR2004 -- an initial
            continue
        first = last = at
        while first - 1 in content and capitalised[first - 1]:
            first -= 1
        while last + 1 in content and capitalised[last + 1]:
            last += 1
        if not any(each.has_name(tokens[at]) or each.has_acronym(tokens[first : last + 1]) for each in sources):
            yield Remark("name", start, end, f"The name {tokens[at]!r} doesn't stand in {{where}}.")


def _check_negations(claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield the negations of words that the sources have, and never negate."""
    statements = [each for source in sources for each in source.statements]
    for at, word in enumerate(claim.words):
        following = next((each for each in claim.content if each > at), None)
        if not is_negation(word) or following is None:
            continue
        stem = claim.stems[following]
        if all(stem in source.stems for source in sources):
            if not any(stem in each.negated_stems(REACH) for each in statements):
                message = f"{word!r} negates {claim.words[following]!r}, which isn't negated in {{where}}."
                yield _remark("negation", claim, at, message)
        # One of several sources may be silent on what the sentence says that it doesn't have.
        elif len(sources) == 1 and (word in PLAIN_NEGATIONS or word.endswith("n't")):
            nearest = _find_nearest(claim, statements, 2)
            if nearest and not any(each.has_negation for each in nearest) and not claim.stem_set & ABSENCE_STEMS:
                yield _remark("negation", claim, at, f"The negation {word!r} doesn't stand in {{where}}.")


def _check_lost_negations(claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield the words that the most similar sentence negates, no sentence affirms, and the statement affirms."""
    statements = [each for source in sources for each in source.statements]
    nearest = _find_nearest(claim, statements, 1)
    stems = frozenset(claim.content_stems)
    if claim.has_negation or not nearest or len(stems & nearest[0].stem_set) < NEGATION_OVERLAP * len(stems):
        return
    affirmed = {stem for each in statements for stem in each.stem_set - each.negated_stems(REACH)}
    # `It is unsafe` says the same as `it is not safe`.
    if any(OPPOSITES_BY_STEM.get(stem) or stem.startswith(NEGATIVE_PREFIXES) for stem in stems - affirmed):
        return
    negated = nearest[0].negated_stems(REACH) - affirmed
    for at in claim.content:
        if claim.stems[at] in negated:
            message = f"{claim.words[at]!r} isn't negated here, as it is in {{where}}."
            yield _remark("negation", claim, at, message)


def _check_opposites(claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield the words whose opposite stands in the nearest sentences, and words that make a statement stronger."""
    statements = [each for source in sources for each in source.statements]
    present = frozenset(stem for source in sources for stem in source.stems)
    near = frozenset(stem for each in _find_nearest(claim, statements, NEAREST) for stem in each.stems)
    negated = frozenset(stem for each in statements for stem in each.negated_stems(REACH))
    own = claim.negated_stems(REACH)
    for at, (word, stem) in enumerate(zip(claim.words, claim.stems, strict=True)):
        if stem in present:
            continue
        if word in CERTAINTY_WORDS:
            yield _remark("direction", claim, at, f"{word!r} doesn't stand in {{where}}.")
        is_reversed = any(
            not same & present and not opposite & (claim.stem_set | negated) and opposite & near
            for same, opposite in OPPOSITES_BY_STEM.get(stem, ())
        )
        positives = {stem_word(word.removeprefix(each)) for each in NEGATIVE_PREFIXES if word.startswith(each)}
        positives = {each for each in positives if len(each) >= _MIN_POSITIVE} & (present - negated)
        has_prefix = bool(positives) and at in claim.content and not claim.has_negation
        if stem not in own and (is_reversed or has_prefix):
            yield _remark("direction", claim, at, f"{word!r} is the opposite of what stands in {{where}}.")


def _check_units(claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield the numbers that the sources give in another unit of the same dimension."""
    for at, word in enumerate(claim.words):
        if not (word[0].isdigit() or word in SMALL_COUNTS) or not (own := _units_after(claim, at)):
            continue
        found = [
            _units_after(each, place)
            for source in sources
            for each in source.statements
            for place, other in enumerate(each.words)
            if other == word
        ]
        others = {unit for units in found for unit in units}
        if others and not own & others and {name for name, _ in own} & {name for name, _ in others}:
            yield _remark("unit", claim, at, f"{word!r} has another unit in {{where}}.", last=at + 1)


def _units_after(statement: Statement, at: int) -> set[tuple[str, int]]:
    """Return the units in the two words after a number."""
    return {UNITS[word] for word in statement.words[at + 1 : at + 3] if word in UNITS}


def _check_subjects(text: str, claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield the numbers that the sources give for another name, where they give another number for this one."""
    names = {claim.stems[at] for at in claim.content if text[claim.spans[at][0]].isupper() and len(claim.words[at]) > 1}
    statements = [each for source in sources for each in source.statements]
    for at, word in enumerate(claim.words):
        if not word[0].isdigit():
            continue
        holders = [each for each in statements if word in each.words]
        mine = [each for each in statements if names & each.stem_set]
        following = {claim.stems[after] for after in claim.content if 0 < after - at <= PAIR_DISTANCE}
        rivals = [
            each
            for each in mine
            if word not in each.words and any(_counts(each, place, following) for place in range(len(each.words)))
        ]
        if holders and rivals and following and not any(names & each.stem_set for each in holders):
            yield _remark("subject", claim, at, f"{word!r} is the number of another subject in {{where}}.")


def _counts(statement: Statement, place: int, things: set[str]) -> bool:
    """Return whether a word of a statement is a number that stands beside one of some stems, as `5 years`."""
    if not statement.words[place][0].isdigit():
        return False
    return any(statement.stems[at] in things for at in statement.content if abs(at - place) <= PAIR_DISTANCE)


def _check_support(text: str, claim: Statement, sources: Sequence[WordIndex]) -> Iterator[Remark]:
    """Yield a statement that has little in common with its sources."""
    judged = [at for at in claim.content if claim.stems[at] not in META_STEMS]
    found = [any(source.has_word(claim.words[at], claim.stems[at]) for source in sources) for at in judged]
    numbers = {word for word in claim.words if word[0].isdigit()}
    if not judged:
        return
    missing = [claim.words[at] for at, each in zip(judged, found, strict=True) if not each]
    run = longest = 0
    for each in found:
        run = 0 if each else run + 1
        longest = max(longest, run)
    pairs = [(claim.stems[one], claim.stems[other]) for one, other in pairwise(judged)]
    apart = len(pairs) >= MIN_PAIRS and not any(
        _stand_together(pair, each) for pair in pairs for source in sources for each in source.statements
    )
    start, end = claim.spans[0][0], len(text.rstrip("\x00 \n"))
    # A short sentence needs no more than its predicate to be about something else: `The client is bankrupt.`
    if len(judged) < MIN_WORDS:
        last = judged[-1]
        is_predicate = len(judged) < MIN_WORDS - 1 and claim.words[last - 1] in COPULAS and not found[-1]
        has_figure = any(numbers & source.stems for source in sources)
        strange = is_predicate or not (any(found) or has_figure)
    else:
        strange = len(missing) >= MISSING_SHARE * len(judged)
    if strange:
        words = f"{join_names(map(repr, missing[:MISSING_RUN]))} {'is' if len(missing) == 1 else 'are'}"
        yield Remark("support", start, end, f"Too few of its words stand in {{where}}; {words} missing.")
    elif longest >= MISSING_RUN:
        yield Remark("support", start, end, f"{longest} words in a row don't stand in {{where}}.")
    elif apart:
        yield Remark("support", start, end, "No two of its words stand together in {where}.")


def _stand_together(pair: tuple[str, str], statement: Statement) -> bool:
    """Return whether two stems stand close to each other in a statement."""
    one, other = pair
    if one not in statement.stem_set or other not in statement.stem_set:
        return False
    places = {stem: [at for at, each in enumerate(statement.content_stems) if each == stem] for stem in pair}
    return any(abs(first - last) <= PAIR_DISTANCE for first in places[one] for last in places[other])


def _find_nearest(claim: Statement, statements: Sequence[Statement], most: int) -> list[Statement]:
    """Return the sentences that share most words with a statement; a word counts less, the more sentences have it."""
    stems = frozenset(claim.content_stems)
    shared = [stems & each.stem_set for each in statements]
    frequency = Counter(stem for each in shared for stem in each)
    scores = [sum((1 + frequency[stem]) ** -0.5 for stem in sorted(each)) for each in shared]
    order = sorted(range(len(statements)), key=lambda at: (-scores[at], at))
    return [statements[at] for at in order[:most] if scores[at] > 0]


def _remark(kind: str, claim: Statement, at: int, message: str, *, last: int | None = None) -> Remark:
    """Return a remark on the words from one index to another."""
    end = claim.spans[min(at if last is None else last, len(claim.spans) - 1)][1]
    return Remark(kind, claim.spans[at][0], end, message)


def counts_otherwise(word: str, following: Statement, source: WordIndex) -> bool:
    """Return whether a source has another number of the things that a number word counts.

    Args:
        word: The number word, such as `two`.
        following: What follows it.
        source: The source.
    """
    content = set(following.content)
    counted = {following.stems[at] for at in range(PAIR_DISTANCE) if content.issuperset(range(at + 1))}
    for each in source.statements:
        for place, other in enumerate(each.words):
            is_other = other != word and (
                other in SMALL_COUNTS or (other.isdecimal() and int(other) != SMALL_COUNTS[word])
            )
            after = {each.stems[at] for at in each.content if 0 < at - place <= PAIR_DISTANCE}
            if is_other and counted & after:
                return True
    return False
