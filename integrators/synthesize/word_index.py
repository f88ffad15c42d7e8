"""Index of the words of sources: each is built once, so that a look-up takes no time that grows with their length."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import nlargest
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.synthesize.vocabulary import (
    ARTICLES,
    COPULAS,
    FUNCTION_WORDS,
    JOINS,
    META_STEMS,
    NEGATIONS,
    NEGATIVE_PREFIXES,
    OPPOSITES_BY_STEM,
    PARTNERS,
    SMALL_COUNTS,
    SYMMETRIC_STEMS,
    TIMES,
    stem_word,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REACH = 2
"""Number of words with content after a negation that a source may negate by it."""
_MAX_BETWEEN = 5
"""Largest number of words between two nouns of one action."""
_MIN_PART = 5
"""Least length of a word that may be a part of another one, as `operate` of `cooperate`."""
_MIN_STEM = 6
_ENDING = 2
"""Longest ending in which two stems that mean the same may differ, as in `bankrupt` and `bankruptcy`."""
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
"""The other spelling of German names: `Mueller` for `Müller`."""
_LETTERS_WITHOUT_MARKS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "’": "'"})  # noqa: RUF001 -- an apostrophe
"""Letters that Unicode doesn't decompose, and the typographic apostrophe."""
_POSSESSIVE = re.compile(r"'s?\Z")
_MIN_SIMILAR = 5
"""Least length of a name that is distinguished from a similar one."""
_MAX_SIMILAR = 30
"""Number of letters of a name from which on similar names are not looked for."""
_ACRONYM = re.compile(r"[A-Z]{2,6}s?")

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,]\d+)*")  # noqa: RUF001 -- an apostrophe
"""Pattern of a word or a number."""


def is_negation(word: str) -> bool:
    """Return whether a word negates what follows it.

    Example:
        >>> is_negation("doesn't"), is_negation("note")
        (True, False)
    """
    return word in NEGATIONS or word.endswith("n't")


@lru_cache(maxsize=1 << 16)
def fold_name(name: str) -> str:
    """Return a name without case, diacritics and a possessive ending, by which names are compared.

    Example:
        >>> fold_name("José's"), fold_name("Ångström"), fold_name("Müller") == fold_name("Mueller")
        ('jose', 'angstrom', False)
    """
    name = unicodedata.normalize("NFKD", name.casefold().translate(_LETTERS_WITHOUT_MARKS))
    return _POSSESSIVE.sub("", "".join(letter for letter in name if not unicodedata.combining(letter)))


def is_other_number(word: str, count: str) -> bool:
    """Return whether a word is a number other than a small number word.

    Example:
        >>> is_other_number("3", "two"), is_other_number("2", "two"), is_other_number("few", "two")
        (True, False, False)
    """
    return word != count and (word in SMALL_COUNTS or (word.isdecimal() and int(word) != SMALL_COUNTS[count]))


class Action(NamedTuple):
    """What a sentence says that one does to another."""

    doer: str
    """Stem of the subject."""
    words: frozenset[str]
    """Stems of the words between both."""
    target: str
    """Stem of the object."""


@dataclass(frozen=True)
class Statement:
    """A sentence as its words."""

    words: tuple[str, ...]
    """The words and numbers in lower case."""
    spans: tuple[tuple[int, int], ...]
    """Where they stand in the text."""
    capitals: frozenset[int] = frozenset()
    """Indices of the words with a capital letter."""
    is_negated: bool = False
    """Whether all of it is negated, as `"copyleft": false`."""

    @classmethod
    def parse(cls, text: str, *, is_negated: bool = False) -> Statement:
        """Return a sentence as its words."""
        found = [*TOKEN.finditer(text)]
        words = tuple(match[0].lower().replace("’", "'") for match in found)  # noqa: RUF001 -- an apostrophe
        capitals = frozenset(at for at, match in enumerate(found) if match[0][0].isupper())
        return cls(words, tuple(match.span() for match in found), capitals, is_negated)

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

    @cached_property
    def negated_stems(self) -> frozenset[str]:
        """The stems of the words that are negated: those with content after a negation, within its reach."""
        if self.is_negated:
            return self.stem_set
        return frozenset(
            self.stems[each]
            for at, word in enumerate(self.words)
            if is_negation(word)
            for each in self.content[bisect_right(self.content, at) :][:REACH]
        )

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """What stands between two neighbouring names, or nouns with an article; a passive voice is turned round.

        Example:
            >>> [(each.doer, each.target) for each in Statement.parse("Acme sued Bosch in May.").actions]
            [('acm', 'bosch')]
            >>> [(each.doer, each.target) for each in Statement.parse("The tenant was paid by the landlord.").actions]
            [('landlord', 'tenant')]
        """
        words = self.words
        nouns = [
            at
            for at in self.content
            if words[at] not in TIMES and (at in self.capitals or (at and words[at - 1] in ARTICLES))
        ]
        actions: list[Action] = []
        for one, other in pairwise(nouns):
            between = words[one + 1 : other]
            verbs = frozenset(self.stems[at] for at in range(one + 1, other) if at in self.content)
            if (
                verbs
                and len(between) <= _MAX_BETWEEN
                and verbs.isdisjoint(SYMMETRIC_STEMS)
                and not any(word in JOINS or word in PARTNERS or is_negation(word) for word in between)
            ):
                first, last = self.stems[one], self.stems[other]
                is_passive = "by" in between and not COPULAS.isdisjoint(between)
                actions.append(Action(last, verbs, first) if is_passive else Action(first, verbs, last))
        return tuple(actions)

    def has_pair(self, one: str, other: str, distance: int) -> bool:
        """Return whether two stems of content stand close to each other, at most so many words with content apart."""
        if one not in self.stem_set or other not in self.stem_set:
            return False
        places = {stem: [at for at, each in enumerate(self.content_stems) if each == stem] for stem in (one, other)}
        return any(abs(first - last) <= distance for first in places[one] for last in places[other])


class Remark(NamedTuple):
    """A doubt about the wording of a statement."""

    kind: str
    """`name`, `negation`, `direction`, `subject` or `support`."""
    start: int
    """Start offset in the statement."""
    end: int
    """End offset in the statement, exclusive."""
    message: str
    """What is wrong, in one sentence with `{where}` in place of the sources."""


def make_remark(kind: str, claim: Statement, at: int, message: str, *, last: int | None = None) -> Remark:
    """Return a remark on the words from one index to another."""
    end = claim.spans[min(at if last is None else last, len(claim.spans) - 1)][1]
    return Remark(kind, claim.spans[at][0], end, message)


class WordIndex:
    """The words of a source.

    Attributes:
        statements: Its sentences.
        stems: The stems of all its words.
        negated: Those that some sentence negates.
        affirmed: Those that some sentence has without negating them.
    """

    def __init__(self, statements: Iterable[Statement], text: str) -> None:
        """Index the sentences of a source.

        Args:
            statements: Its sentences.
            text: All of its text, from which names and abbreviations are read.
        """
        self.statements = [each for each in statements if each.words]
        tokens = TOKEN.findall(text)
        self._words = {token.lower() for token in tokens}
        self.stems = frozenset(stem for each in self.statements for stem in each.stem_set) | {
            stem_word(word) for word in self._words
        }
        self.negated = frozenset(stem for each in self.statements for stem in each.negated_stems)
        self.affirmed = frozenset(stem for each in self.statements for stem in each.stem_set - each.negated_stems)
        # Which sentences have a word: all but numbers and words without content, which need no look-up.
        self._places: dict[str, list[int]] = defaultdict(list)
        self._numbers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, statement in enumerate(self.statements):
            for stem in statement.stem_set:
                if stem not in FUNCTION_WORDS and not stem[0].isdigit():
                    self._places[stem].append(number)
            for at, word in enumerate(statement.words):
                if word[0].isdigit() or word in SMALL_COUNTS:
                    self._numbers[word].append((number, at))
        self._stems_by_start = _group(stem for stem in self.stems if len(stem) >= _MIN_STEM)
        self._words_by_start = _group(word for word in self._words if len(word) > _MIN_PART)
        self._words_by_end = _group(word[::-1] for word in self._words if len(word) > _MIN_PART)
        tokens_in_lower_case = {token for token in set(tokens) if token[0].islower()}
        self._names = {name for token in set(tokens) for name in _fold_both(token)}
        self._similar = {
            part
            for token in set(tokens)
            if token[0].isupper() and token.lower() not in tokens_in_lower_case
            for part in _list_similar(fold_name(token))
        }
        self._common_stems = {stem_word(token) for token in tokens_in_lower_case}
        self._initials = "".join(token[0].lower() for token in tokens if token[0].isalpha())
        self._acronyms = {token.lower().removesuffix("s") for token in tokens if _ACRONYM.fullmatch(token)}

    @cached_property
    def _actions(self) -> dict[frozenset[str], set[Action]]:
        """The actions by their subject and object, in any order."""
        actions: dict[frozenset[str], set[Action]] = defaultdict(set)
        for statement in self.statements:
            for each in statement.actions:
                actions[frozenset({each.doer, each.target})].add(each)
        return actions

    def find_actions(self, one: str, other: str) -> set[Action]:
        """Return the different things that one does to another, or the other to the one."""
        return self._actions.get(frozenset({one, other}), set())

    def find_statements(self, stem: str) -> list[int]:
        """Return the indices of the sentences that have a stem of content."""
        return self._places.get(stem, [])

    def find_numbers(self, word: str) -> Iterator[tuple[Statement, int]]:
        """Yield the sentences that have a number word, with its index in each."""
        for number, at in self._numbers.get(word, ()):
            yield self.statements[number], at

    def counts_otherwise(self, things: set[str], word: str, distance: int) -> bool:
        """Return whether the source has another number than a small number word, of the same things.

        Args:
            things: Stems of what is counted.
            word: The number word, such as `two`.
            distance: Largest distance of a number and what it counts, in words.
        """
        return any(
            place in statement.content
            for stem in sorted(things)
            for statement in (self.statements[number] for number in self.find_statements(stem))
            for place, each in enumerate(statement.stems)
            if each == stem
            for at in range(max(0, place - distance), place)
            if is_other_number(statement.words[at], word)
        )

    def has_word(self, word: str, stem: str) -> bool:
        """Return whether the source has a word, a form of it, or a word that means the same."""
        if stem in self.stems or self._has_part(word):
            return True
        if any(not same.isdisjoint(self.stems) for same, _ in OPPOSITES_BY_STEM.get(stem, ())):
            return True
        if len(stem) < _MIN_STEM or word.startswith(NEGATIVE_PREFIXES):
            return False
        return any(
            other.startswith(stem[:-_ENDING]) or stem.startswith(other[:-_ENDING])
            for other in self._stems_by_start.get(stem[:_MIN_PART], ())
        )

    def _has_part(self, word: str) -> bool:
        """Return whether a word is the start or the end of one of the source, or two of its neighbours in one."""
        if len(word) < _MIN_PART:
            return False
        backwards = word[::-1]
        return (
            any(other.startswith(word) for other in self._words_by_start.get(word[:_MIN_PART], ()))
            or any(other.startswith(backwards) for other in self._words_by_end.get(backwards[:_MIN_PART], ()))
            or any(self._are_neighbours(word[:at], word[at:]) for at in range(2, len(word) - 1))
        )

    def _are_neighbours(self, one: str, other: str) -> bool:
        """Return whether two words stand side by side, so that they may be written as one."""
        return (
            one in self._words
            and other in self._words
            and any(
                pair == (one, other)
                for number in self._places.get(stem_word(one), []) or self._places.get(stem_word(other), [])
                for pair in pairwise(self.statements[number].words)
            )
        )

    def has_name(self, name: str, names: Sequence[str]) -> bool:
        """Return whether the source has a capitalised word; a name is compared letter by letter.

        Args:
            name: The word.
            names: The capitalised words that it stands among.
        """
        lowered = name.lower()
        stem = stem_word(lowered)
        return (
            not self._names.isdisjoint(_fold_both(name))
            or fold_name("".join(names)) in self._names  # `JP Morgan` and `JPMorgan`
            or any(self._are_neighbours(lowered[:at], lowered[at:]) for at in range(2, len(lowered) - 1))
            # A word that the source has in lower case is no name, and may have another form.
            or stem in self._common_stems
            or any(not same.isdisjoint(self._common_stems) for same, _ in OPPOSITES_BY_STEM.get(stem, ()))
            or (bool(_ACRONYM.fullmatch(name)) and lowered.removesuffix("s") in self._initials)
            or self.has_acronym(names)
        )

    def has_similar_name(self, name: str) -> bool:
        """Return whether the source has a name that differs from a word in one letter."""
        return not self._similar.isdisjoint(_list_similar(fold_name(name)))

    def has_acronym(self, names: Sequence[str]) -> bool:
        """Return whether the source abbreviates a name of several words."""
        return len(names) > 1 and "".join(name[0].lower() for name in names) in self._acronyms


def _fold_both(name: str) -> set[str]:
    """Return the folded name, and that with umlauts in two letters."""
    return {fold_name(name), fold_name(name.lower().translate(_UMLAUTS))}


def _list_similar(name: str) -> list[str]:
    """Return a name and all forms of it that lack one letter; two names have one in common if they differ in one."""
    if len(name) < _MIN_SIMILAR:
        return []
    return [name, *(name[:at] + name[at + 1 :] for at in range(min(len(name), _MAX_SIMILAR)))]


def _group(words: Iterable[str]) -> dict[str, list[str]]:
    """Return words by their first letters."""
    groups: dict[str, list[str]] = defaultdict(list)
    for word in words:
        groups[word[:_MIN_PART]].append(word)
    return groups


class Evidence:
    """The sources that a statement rests on, looked up as one; what was looked up before takes no time.

    Attributes:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[WordIndex]) -> None:
        """Combine the indexes of some sources."""
        self.sources = tuple(sources)
        self._words: dict[str, bool] = {}
        self._names: dict[tuple[str, tuple[str, ...]], bool] = {}

    def has_stem(self, stem: str) -> bool:
        """Return whether a source has a stem."""
        return any(stem in each.stems for each in self.sources)

    def is_negated(self, stem: str) -> bool:
        """Return whether a sentence of a source negates a stem."""
        return any(stem in each.negated for each in self.sources)

    def is_affirmed(self, stem: str) -> bool:
        """Return whether a sentence of a source has a stem without negating it."""
        return any(stem in each.affirmed for each in self.sources)

    def has_word(self, word: str, stem: str) -> bool:
        """Return whether a source has a word; see `WordIndex.has_word`."""
        if word not in self._words:
            self._words[word] = any(each.has_word(word, stem) for each in self.sources)
        return self._words[word]

    def has_name(self, name: str, names: Sequence[str]) -> bool:
        """Return whether a source has a name, or abbreviates the names that it stands among."""
        key = (name, tuple(names))
        if key not in self._names:
            self._names[key] = any(each.has_name(name, names) for each in self.sources)
        return self._names[key]

    def has_similar_name(self, name: str) -> bool:
        """Return whether a source has a name that differs from a word in one letter."""
        return any(each.has_similar_name(name) for each in self.sources)

    def find_numbers(self, word: str) -> Iterator[tuple[Statement, int]]:
        """Yield the sentences that have a number word, with its index in each."""
        for each in self.sources:
            yield from each.find_numbers(word)

    def find_actions(self, one: str, other: str) -> Iterator[Action]:
        """Yield what one does to another in the sources, or the other to the one."""
        for each in self.sources:
            yield from each.find_actions(one, other)

    def find_statements(self, stems: Iterable[str]) -> list[Statement]:
        """Return the sentences that have any of some stems of content, in the order of the sources."""
        stems = sorted(stems)
        return [
            each.statements[number]
            for each in self.sources
            for number in sorted({number for stem in stems for number in each.find_statements(stem)})
        ]

    def stand_together(self, one: str, other: str, distance: int) -> bool:
        """Return whether two stems of content stand close to each other in a sentence.

        Args:
            one: A stem.
            other: Another stem.
            distance: Their largest distance, in words with content.
        """
        return any(
            each.statements[number].has_pair(one, other, distance)
            for each in self.sources
            for number in min(each.find_statements(one), each.find_statements(other), key=len)
        )

    def find_nearest(self, claim: Statement, most: int) -> list[Statement]:
        """Return the sentences that share most words with a statement; see `rank_sentences`."""
        return [self.sources[at].statements[number] for at, number in self.rank_sentences(claim, most)]

    def rank_sentences(self, claim: Statement, most: int) -> list[tuple[int, int]]:
        """Return the sentences that share most words with a statement, as the indices of source and sentence.

        A word counts less, the more sentences have it.

        Words are looked up from the rarest on. Once the others together count less than what the best sentences have
        before, no further sentence can be among these, so that frequent words take no time.

        Args:
            claim: The statement.
            most: Number of sentences.
        """
        found = {
            stem: sum(len(each.find_statements(stem)) for each in self.sources)
            for stem in sorted(set(claim.content_stems))
        }
        weights = {stem: (1 + found[stem]) ** -0.5 for stem in sorted(found, key=lambda each: (found[each], each))}
        scores: dict[tuple[int, int], float] = {}
        rest = sum(weights.values())
        for stem, weight in weights.items():
            if len(scores) >= most and rest < nlargest(most, scores.values())[-1]:
                for at, number in scores:
                    if stem in self.sources[at].statements[number].stem_set:
                        scores[at, number] += weight
            else:
                for at, each in enumerate(self.sources):
                    for number in each.find_statements(stem):
                        scores[at, number] = scores.get((at, number), 0.0) + weight
            rest -= weight
        return sorted(scores, key=lambda place: (-scores[place], place))[:most]


def list_untraced(citing: dict[int, list[Statement]], sources: Sequence[WordIndex]) -> list[int]:
    """Return the numbers of the sources of which nothing stands in the statements that cite them.

    A source is traced by a number, by a word that not every source has, or by half of a statement's words. A statement
    that only speaks about its sources, such as `both agree`, has all of its words from them.

    Args:
        citing: The statements that cite a source, by its number.
        sources: The indexes of all sources in the order of their numbers.
    """
    holders: dict[str, int] = defaultdict(int)
    for each in sources:
        for stem in each.stems:
            holders[stem] += 1

    def is_traced(statement: Statement, source: WordIndex) -> bool:
        if any(word in source.stems for word in statement.words if word[0].isdigit()):
            return True
        judged = [at for at in statement.content if statement.stems[at] not in META_STEMS]
        shared = [at for at in judged if source.has_word(statement.words[at], statement.stems[at])]
        if len(shared) * 2 >= len(judged):
            return True
        # Not every other source has the word, too.
        return any(
            holders[stem] - (stem in source.stems) < len(sources) - 1 for stem in (statement.stems[at] for at in shared)
        )

    return [
        number
        for number, statements in sorted(citing.items())
        if not any(is_traced(each, sources[number - 1]) for each in statements)
    ]
