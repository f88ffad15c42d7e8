"""Similarity of texts, and the differences that rule out a certain match.

The comparison is looser than the one for equal identities: accents and punctuation are ignored,
digits ungrouped ("1,000" is one thousand), "Smith, John" is read as "John Smith". However similar,
texts are not a certain match if

- their numbers, symbols, single letters or Roman numerals differ ("GPL 2.0", "C++", "Type A", "Henry IV");
- a word occurs in only one of them, is abbreviated in one, or occurs at another position;
- two words differ by more than one typo (a letter more, less, another, or two swapped), or are too short, or of
  a script without an alphabet, so that a typo cannot be distinguished from another word.

A number weighs more than its digits, so that the texts of a series ("Report 1", "Report 2", …) are not proposed
pair by pair. Texts of more than 2,000 letters are compared only for equality.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from math import fsum
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ConfigDict, Field, model_validator
from rapidfuzz.distance import OSA

from prefect_dispatch.integrators.merge_records.field_rules import FieldPath
from prefect_dispatch.integrators.merge_records.text_normalization import (
    normalize_date,
    normalize_quantity,
    normalize_value,
    remove_digit_grouping,
)
from prefect_dispatch.models.base import Strict
from prefect_dispatch.serialization.json_values import content_text

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.serialization.json_values import Key


MIN_TYPO_LENGTH = 5
"""Minimum length of words whose difference of one letter counts as a typo."""
LOOSE_EQUALITY_SCORE = 0.99
"""Similarity of texts that differ only in accents, punctuation and the like; 1 is for equal texts."""
ABBREVIATION_SCORE = 0.9
"""Similarity of a word and its abbreviation."""
INITIAL_SCORE = 0.6
"""Similarity of a word and its first letter."""
_NUMBER_WEIGHT = 8  # minimum weight of a number, in letters
_LONGEST = 2_000  # letters; a longer text is no name, and would take long to compare
_MOST_TOKENS = 40  # beyond this, texts are not compared word by word
_REORDERED = 0.97  # similarity of texts whose words are only reordered or joined
_LATIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})
_ACCENT = re.compile(r"(?<=[a-z\u0370-\u03ff])[\u0300-\u036f]+")
_ACRONYM = re.compile(r"(?<![^\W\d_])([^\W\d_])\.(?=[^\W\d_](?:\.|\b))")
_SPACED = re.compile(r"[-+]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?(?: ?[^\W\d_]+)?")
_GAP = re.compile(r"(?<=\d) (?=\d)")
_COMMAS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_DATE = re.compile(
    r"\b(?:\d{1,2}(?:st|nd|rd|th)?(?: of)? [a-z]{3,9}\.?,? \d{4}|[a-z]{3,9}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4})\b"
)
_TOKEN = re.compile(
    r"(?:(?<![^\s(])-)?\d+(?:[.,:/]\d+)*"  # a number, with its sign
    r"|[^\W\d_]+"  # a word
    r"|(?<=\w)-(?!\S)|(?<!\S)\.(?=\w)"  # the grade A-, the framework .NET
    r"|[^\w\s.,;:!?'\"()\[\]{}/\-]"  # a symbol
)
_ROMAN = re.compile(r"(?=[ivxlcdm])m{0,3}(?:cm|cd|d?c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})")
_NO_ALPHABET = 0x2E80  # first code point of the CJK scripts, which have no alphabet


class ComparableText(NamedTuple):
    """Text prepared for comparison."""

    source: str
    """The normalized text."""
    tokens: tuple[str, ...]
    """Its words, numbers and symbols."""
    text: str
    """The tokens, joined by spaces."""
    sorted_text: str
    """The sorted tokens, joined by spaces."""
    exact_tokens: tuple[str, ...]
    """The tokens that a match must have, too: numbers, symbols, single letters, Roman numerals."""

    @classmethod
    def as_single_token(cls, text: str) -> ComparableText:
        """Return a text as a single token, which is either equal to another one or not similar at all."""
        return cls(text, (text,), text, text, (text,))


class TextSimilarity(NamedTuple):
    """Similarity of two texts."""

    score: float
    """The similarity, from 0 to 1."""
    objection: str
    """The difference that rules out a certain match, in words; empty if there is none."""


@lru_cache(maxsize=1 << 14)
def prepare_text(text: str) -> ComparableText:
    """Return a normalized text, prepared for comparison.

    Example:
        >>> prepare_text("smith-jones, zoë (u.s.a.)").text, prepare_text("sold 1,000 on 1 may 2024").text
        ('zoe usa smith jones', 'sold 1000 on 2024 05 01')
    """
    if len(text) > _LONGEST:
        return ComparableText.as_single_token(text)
    # 1. Remove accents, grouping of digits, dots of acronyms and apostrophes.
    loose = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text))).translate(_LATIN)
    if any(map(str.isdigit, loose)):
        loose = _normalize_numbers(loose)
    loose = _ACRONYM.sub(r"\1", loose).replace("'", "").replace("&", " and ")
    # 2. Read "Smith, John" as "John Smith".
    last, comma, first = loose.partition(",")
    if comma and "," not in first and not any(map(str.isdigit, loose)):
        loose = f"{first} {last}"
    # 3. Split into tokens.
    tokens = tuple(_TOKEN.findall(loose))
    if not tokens:  # texts like "?!" and "..." can only be compared as a whole
        return ComparableText.as_single_token(text)
    marks = tuple(token for token in tokens if _must_match_exactly(token))
    return ComparableText(text, tokens, " ".join(tokens), " ".join(sorted(tokens)), marks)


def compare_texts(one: ComparableText, other: ComparableText, words: Container[str] = ()) -> TextSimilarity:
    """Return the similarity of two texts.

    Args:
        one: A text.
        other: Another text.
        words: Established words: a difference between two of them is no typo.

    Example:
        >>> compare_texts(prepare_text("mueller verlag"), prepare_text("muller verlag"))
        TextSimilarity(score=0.9257, objection='')
        >>> compare_texts(prepare_text("gpl 2.0"), prepare_text("gpl 3.0")).objection
        "'2.0' and '3.0' differ"
    """
    # 1. Texts that are equal, or equal but for accents, punctuation or order.
    if one.source == other.source:
        return TextSimilarity(1.0, "")
    if one.tokens == other.tokens:
        return TextSimilarity(LOOSE_EQUALITY_SCORE, "")
    agree = one.exact_tokens == other.exact_tokens
    objection = "" if agree else _describe_difference(one.exact_tokens, other.exact_tokens)
    if agree and one.sorted_text == other.sorted_text:
        return TextSimilarity(_REORDERED, "their words are in another order")
    # 2. Long texts: the edit distance of the texts.
    if len(one.tokens) > _MOST_TOKENS or len(other.tokens) > _MOST_TOKENS:
        score = OSA.normalized_similarity(one.text, other.text)
        return TextSimilarity(round(score, 4), objection or "they are too long to be compared word by word")
    # 3. Short texts: the better of an alignment word by word and, if all marks agree, the edit distance of the letters.
    aligned, alignment_objection = _align_words(one, other, words)
    unspaced = OSA.normalized_similarity(one.text.replace(" ", ""), other.text.replace(" ", "")) if agree else 0.0
    if unspaced == 1.0:
        return TextSimilarity(_REORDERED, "")
    return TextSimilarity(round(max(aligned, unspaced), 4), objection or alignment_objection)


def _align_words(one: ComparableText, other: ComparableText, words: Container[str]) -> tuple[float, str]:
    """Return the similarity of two texts word by word, and the difference that rules out a certain match."""
    # 1. Pair equal tokens.
    left, right = list(one.tokens), list(other.tokens)
    total = sum(map(_weight, left)) + sum(map(_weight, right))
    common = 0.0
    for token in one.tokens:
        if token in right:
            left.remove(token)
            right.remove(token)
            common += 2 * _weight(token)
    # 2. Pair the remaining tokens greedily, the most similar first.
    pairs = sorted((-_word_similarity(a, b), i, j) for i, a in enumerate(left) for j, b in enumerate(right))
    free_left, free_right = set(range(len(left))), set(range(len(right)))
    objection = ""
    for score, i, j in pairs:
        if score < 0 and i in free_left and j in free_right:
            free_left.discard(i)
            free_right.discard(j)
            common += -score * (len(left[i]) + len(right[j]))
            if not objection and (not _is_typo(left[i], right[j]) or (left[i] in words and right[j] in words)):
                objection = f"{left[i]!r} may not be {right[j]!r}"
    # 3. Tokens without a counterpart rule out a certain match.
    unpaired = [left[i] for i in sorted(free_left)] + [right[j] for j in sorted(free_right)]
    if unpaired and not objection:
        objection = f"{unpaired[0]!r} occurs in only one of them"
    return common / total, objection or _order_objection(one, other)


def _weight(token: str) -> int:
    """Return the weight of a token, in letters; numbers weigh more, so that texts with different numbers score low."""
    return max(len(token), _NUMBER_WEIGHT) if token[-1:].isdigit() else len(token)


def _order_objection(one: ComparableText, other: ComparableText) -> str:
    """Return an objection if the words of two texts pair up, but in another order; else an empty text."""
    same = all(a == b or _is_typo(a, b) for a, b in zip(one.tokens, other.tokens, strict=True))
    return "" if same else "their words are in another order"


@lru_cache(maxsize=1 << 16)  # most comparisons are between common words
def _word_similarity(one: str, other: str) -> float:
    """Return the similarity of two different words; 0 for marks, which must be equal."""
    short, long = sorted((one, other), key=len)
    if not short.isalpha() or not long.isalpha() or (_must_match_exactly(short) and _must_match_exactly(long)):
        return 0.0
    if _is_abbreviation(short, long):
        return ABBREVIATION_SCORE if len(short) > 1 else INITIAL_SCORE
    score = OSA.normalized_similarity(one, other)
    return score if score >= 0.5 else 0.0  # noqa: PLR2004 -- less than half counts as another word


def _is_abbreviation(short: str, long: str) -> bool:
    """Return whether a word abbreviates another: its beginning, or its first, last and some other letters ("Intl")."""
    if len(short) > len(long) - 2:
        return False
    letters = iter(long)
    ends = short[0] == long[0] and short[-1] == long[-1] and len(short) * 2 <= len(long)
    return long.startswith(short) or (ends and all(letter in letters for letter in short))


def _is_typo(one: str, other: str) -> bool:
    """Return whether two words may differ by a typo: one edit, in alphabetic words that are long enough."""
    short = min(len(one), len(other))
    alphabetic = max(map(ord, one + other)) < _NO_ALPHABET
    return alphabetic and short >= MIN_TYPO_LENGTH and OSA.distance(one, other, score_cutoff=1) <= 1


@lru_cache(maxsize=1 << 16)
def _must_match_exactly(token: str) -> bool:
    """Return whether a token must be equal in both texts: a number, a symbol, a single letter, a Roman numeral."""
    return (
        len(token) == 1
        or not token.isalpha()
        or bool(_ROMAN.fullmatch(token))
        or any(unicodedata.numeric(letter, None) is not None for letter in token)
    )


def _describe_difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Return the first difference between the marks of two texts, in words."""
    for a, b in zip(one, other, strict=False):
        if a != b:
            return f"{a!r} and {b!r} differ"
    longer = max(one, other, key=len)
    return f"{longer[min(len(one), len(other))]!r} occurs in only one of them"


def _normalize_numbers(text: str) -> str:
    """Return a text with its numbers, quantities and dates in one form."""
    plain = _GAP.sub("", text) if _SPACED.fullmatch(text) else remove_digit_grouping(text, least=1)
    whole = normalize_quantity(plain) or normalize_date(plain) or plain
    dated = _DATE.sub(lambda match: normalize_date(match[0]) or match[0], whole)
    dated = re.sub(r"(\d{4})-(\d{2})-(\d{2})", r"\1 \2 \3", dated)
    return _COMMAS.sub(lambda match: match[0].replace(",", ""), dated)


_ROUNDING = 1e-3  # tolerance, because scores are rounded
_MOST_VALUES = 8  # values of one field, among the records of one identity, that are compared pairwise


class Matching(Strict):
    """Thresholds for matching records whose identities are spelled differently."""

    model_config = ConfigDict(title="Matching")

    sure: float = Field(default=0.95, gt=0, le=1)
    """Records at least so similar are merged, unless a number, a symbol or a whole word differs."""
    propose: float = Field(default=0.85, gt=0, le=1)
    """Records at least so similar, but no certain match, are proposed in the report and kept apart."""
    fields: tuple[FieldPath, ...] = ()
    """Fields compared in addition to the identity, such as a place or a date; a missing value doesn't count."""

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.propose > self.sure:
            raise ValueError(f"'propose' ({self.propose}) is above 'sure' ({self.sure}); it must not be")
        return self


class ComparableIdentity(NamedTuple):
    """Identity of some record, with everything that is compared."""

    key: Key
    """The key of the identity."""
    partition: str
    """The item's key, if it is a part of the identity: only identities with an equal one are compared."""
    texts: Mapping[str, ComparableText]
    """The fields of the identity, prepared for comparison."""
    evidence: Mapping[str, tuple[ComparableText, ...]]
    """The distinct values of each other compared field in the records of this identity."""

    @property
    def sorted_text(self) -> str:
        """The identity as one text, the words of each field sorted."""
        return "\n".join([each.sorted_text for each in self.texts.values()])

    @property
    def text(self) -> str:
        """The identity as one text."""
        return "\n".join([each.text for each in self.texts.values()])


class Match(NamedTuple):
    """Similarity of two identities."""

    score: float
    """The similarity, from 0 to 1."""
    why: str
    """The compared fields and their similarity, as a sentence."""
    sure: bool
    """Whether it is a certain match."""


def prepare_value(value: JsonValue) -> ComparableText:
    """Return a value prepared for comparison; one that is neither text nor number is compared as a whole."""
    plain = normalize_value(value)
    if isinstance(plain, str):
        return prepare_text(plain)
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    return prepare_text(content_text(plain)) if is_number else ComparableText.as_single_token(content_text(plain))


def compare_identities(
    one: ComparableIdentity, other: ComparableIdentity, matching: Matching, words: Container[str] = ()
) -> Match | None:
    """Return the similarity of two identities, the mean over their fields; None if it is below the thresholds.

    Args:
        one: An identity.
        other: Another identity.
        matching: The thresholds.
        words: Established words: a difference between two of them is no typo.
    """
    # 1. Compare the identity's fields, the shortest first; stop when the threshold is out of reach.
    similarities: dict[str, TextSimilarity] = {}
    shortfall = 0.0
    for name in sorted(one.texts, key=lambda name: len(one.texts[name].tokens)):
        similarities[name] = compare_texts(one.texts[name], other.texts[name], words)
        shortfall += 1 - similarities[name].score
        if shortfall > (1 - matching.propose) * (len(one.texts) + len(one.evidence)) + _ROUNDING:
            return None
    by_field = {name: similarities[name] for name in one.texts}
    # 2. Compare the other fields, by their most similar values.
    beside = {name: _best_similarity(each, other.evidence[name], words) for name, each in one.evidence.items()}
    scores = {name: score for name, score in beside.items() if score is not None}
    scores = {**{name: each.score for name, each in by_field.items()}, **scores}
    # 3. Compute the score; an objection lowers it below the threshold of a certain match.
    score = min(round(fsum(scores.values()) / len(scores), 4), LOOSE_EQUALITY_SCORE)
    if score < matching.propose:
        return None
    objection = next((each.objection for each in by_field.values() if each.objection), "")
    if objection:
        score = min(score, max(matching.propose, round(matching.sure - 0.01, 4)))
    compared = ", ".join(f"{name!r} {value:g}" for name, value in scores.items())
    return Match(
        score, f"Alike: {compared}{'; but ' if objection else ''}{objection}.", score >= matching.sure and not objection
    )


def _best_similarity(
    one: Sequence[ComparableText], other: Sequence[ComparableText], words: Container[str]
) -> float | None:
    """Return the similarity of the two most similar values, or None if either side has none."""
    if not one or not other:
        return None
    if {each.source for each in one} & {each.source for each in other}:
        return 1.0
    return max(compare_texts(a, b, words).score for a in one[:_MOST_VALUES] for b in other[:_MOST_VALUES])
