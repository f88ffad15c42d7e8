"""How alike two texts are, and what keeps them from being taken for the same.

What is compared is looser than what makes identities equal: without accents and punctuation,
digits ungrouped ("1,000" is one thousand), "Smith, John" read as "John Smith". However alike,
texts are not the same for sure if

- their numbers, symbols, single letters or Roman numerals differ ("GPL 2.0", "C++", "Type A", "Henry IV");
- a word stands in one of them alone, is abbreviated in one, or stands elsewhere;
- two words differ by more than one slip of the pen (a letter more, less, another, or two swapped),
  or are too short, or of a script without an alphabet, to tell a slip from another word.

Where numbers differ, they count as more than their digits, so that a series ("Report 1", "Report 2", …) is
not proposed pair by pair. Texts of more than 2,000 letters are equal or nothing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz.distance import OSA

from prefect_dispatch.integrators.records.normalising import day, ungrouped
from prefect_dispatch.integrators.records.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Container

SLIP_FROM = 5
"""Letters that a word must have for a difference of one to be a slip."""
LOOSELY_EQUAL = 0.99
"""How alike texts are that differ in accents, punctuation and the like; 1 is for what is equal."""
ABBREVIATED = 0.9
"""How alike a word and its abbreviation are."""
INITIAL = 0.6
"""How alike a word and its first letter are."""
_NUMBER = 8  # letters that a number counts as
_LONGEST = 2_000  # letters; what has more is no name, and would take long to compare
_MOST = 40  # words that are compared one by one
_REORDERED = 0.97
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
_NO_ALPHABET = 0x2E80


class Shape(NamedTuple):
    """A text, as it is compared."""

    source: str
    """The text."""
    tokens: tuple[str, ...]
    """Its words, numbers and symbols."""
    text: str
    """The same, as one text."""
    ordered: str
    """The same, sorted."""
    marks: tuple[str, ...]
    """Those that must agree."""

    @classmethod
    def whole(cls, text: str) -> Shape:
        """Return a text that is compared as a whole: it is equal to another, or nothing."""
        return cls(text, (text,), text, text, (text,))


class Likeness(NamedTuple):
    """How alike two texts are."""

    score: float
    """From 0 to 1."""
    doubt: str
    """Why they are not the same for sure, in words; empty if nothing speaks against it."""


@lru_cache(maxsize=1 << 14)
def shape(text: str) -> Shape:
    """Return a text, normalised before, as it is compared.

    Example:
        >>> shape("smith-jones, zoë (u.s.a.)").text, shape("sold 1,000 on 1 may 2024").text
        ('zoe usa smith jones', 'sold 1000 on 2024 05 01')
    """
    if len(text) > _LONGEST:
        return Shape.whole(text)
    loose = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text))).translate(_LATIN)
    if any(map(str.isdigit, loose)):
        loose = _numbers(loose)
    loose = _ACRONYM.sub(r"\1", loose).replace("'", "").replace("&", " and ")
    last, comma, first = loose.partition(",")
    if comma and "," not in first and not any(map(str.isdigit, loose)):
        loose = f"{first} {last}"
    tokens = tuple(_TOKEN.findall(loose))
    if not tokens:  # "?!" and "..." have nothing to compare but themselves
        return Shape.whole(text)
    marks = tuple(token for token in tokens if _is_mark(token))
    return Shape(text, tokens, " ".join(tokens), " ".join(sorted(tokens)), marks)


def likeness(one: Shape, other: Shape, words: Container[str] = ()) -> Likeness:
    """Return how alike two texts are.

    Args:
        one: A text.
        other: Another.
        words: Words that are known to be words: two of them are no slips of each other.

    Example:
        >>> likeness(shape("mueller verlag"), shape("muller verlag"))
        Likeness(score=0.9257, doubt='')
        >>> likeness(shape("gpl 2.0"), shape("gpl 3.0")).doubt
        "'2.0' and '3.0' differ"
    """
    if one.source == other.source:
        return Likeness(1.0, "")
    if one.tokens == other.tokens:
        return Likeness(LOOSELY_EQUAL, "")
    agree = one.marks == other.marks
    doubt = "" if agree else _differing(one.marks, other.marks)
    if agree and one.ordered == other.ordered:
        return Likeness(_REORDERED, "their words stand in another order")
    if len(one.tokens) > _MOST or len(other.tokens) > _MOST:
        score = OSA.normalized_similarity(one.text, other.text)
        return Likeness(round(score, 4), doubt or "they are too long to be compared word by word")
    aligned, doubts = _aligned(one, other, words)
    spelt = OSA.normalized_similarity(one.text.replace(" ", ""), other.text.replace(" ", "")) if agree else 0.0
    if spelt == 1.0:
        return Likeness(_REORDERED, "")
    return Likeness(round(max(aligned, spelt), 4), doubt or doubts)


def _aligned(one: Shape, other: Shape, words: Container[str]) -> tuple[float, str]:
    """Return how alike texts are word by word, and what speaks against their being the same."""
    left, right = list(one.tokens), list(other.tokens)
    total = sum(map(_weight, left)) + sum(map(_weight, right))
    common = 0.0
    for token in one.tokens:
        if token in right:
            left.remove(token)
            right.remove(token)
            common += 2 * _weight(token)
    pairs = sorted((-_words(a, b), i, j) for i, a in enumerate(left) for j, b in enumerate(right))
    free_left, free_right = set(range(len(left))), set(range(len(right)))
    doubt = ""
    for score, i, j in pairs:
        if score < 0 and i in free_left and j in free_right:
            free_left.discard(i)
            free_right.discard(j)
            common += -score * (len(left[i]) + len(right[j]))
            if not doubt and (not _is_slip(left[i], right[j]) or (left[i] in words and right[j] in words)):
                doubt = f"{left[i]!r} may not be {right[j]!r}"
    alone = [left[i] for i in sorted(free_left)] + [right[j] for j in sorted(free_right)]
    if alone and not doubt:
        doubt = f"{alone[0]!r} stands in one alone"
    return common / total, doubt or _moved(one, other)


def _weight(token: str) -> int:
    """Return how many letters a token counts as: texts that differ in a number alone are hardly alike."""
    return max(len(token), _NUMBER) if token[-1:].isdigit() else len(token)


def _moved(one: Shape, other: Shape) -> str:
    """Return a doubt if texts whose words pair up have them in another order."""
    same = all(a == b or _is_slip(a, b) for a, b in zip(one.tokens, other.tokens, strict=True))
    return "" if same else "their words stand in another order"


@lru_cache(maxsize=1 << 16)  # most of the words that are compared are the common ones
def _words(one: str, other: str) -> float:
    """Return how alike two words are that are not equal: 0 for marks, which are equal or nothing."""
    short, long = sorted((one, other), key=len)
    if not short.isalpha() or not long.isalpha() or (_is_mark(short) and _is_mark(long)):
        return 0.0
    if _abbreviates(short, long):
        return ABBREVIATED if len(short) > 1 else INITIAL
    score = OSA.normalized_similarity(one, other)
    return score if score >= 0.5 else 0.0  # noqa: PLR2004 -- less than half is another word


def _abbreviates(short: str, long: str) -> bool:
    """Return whether a word is the beginning of another, or its first, its last and some letters between ("Intl")."""
    if len(short) > len(long) - 2:
        return False
    letters = iter(long)
    ends = short[0] == long[0] and short[-1] == long[-1] and len(short) * 2 <= len(long)
    return long.startswith(short) or (ends and all(letter in letters for letter in short))


def _is_slip(one: str, other: str) -> bool:
    short = min(len(one), len(other))
    alphabetic = max(map(ord, one + other)) < _NO_ALPHABET
    return alphabetic and short >= SLIP_FROM and OSA.distance(one, other, score_cutoff=1) <= 1


@lru_cache(maxsize=1 << 16)
def _is_mark(token: str) -> bool:
    return (
        len(token) == 1
        or not token.isalpha()
        or bool(_ROMAN.fullmatch(token))
        or any(unicodedata.numeric(letter, None) is not None for letter in token)
    )


def _differing(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return f"{a!r} and {b!r} differ"
    longer = max(one, other, key=len)
    return f"{longer[min(len(one), len(other))]!r} stands in one alone"


def _numbers(text: str) -> str:
    plain = _GAP.sub("", text) if _SPACED.fullmatch(text) else ungrouped(text, least=1)
    whole = quantity(plain) or day(plain) or plain
    dated = _DATE.sub(lambda match: day(match[0]) or match[0], whole)
    dated = re.sub(r"(\d{4})-(\d{2})-(\d{2})", r"\1 \2 \3", dated)
    return _COMMAS.sub(lambda match: match[0].replace(",", ""), dated)
