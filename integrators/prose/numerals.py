"""Numbers by their value, whatever they are written in: digits, English words, single signs.

`1.000,5`, `two hundred and five`, `half a dozen`, `sixth`, `½` and `⑥` are read. What mostly says something
else (`one`, `a second`, `the third party`, `half`) is read, but not sure. Years in words (`nineteen
ninety`), fractions of two words (`two thirds`), `twice` and number words of other languages are not.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LETTERS = "A-Za-zÀ-ɏͰ-ϿЀ-ӿ"
GAP = r"(?:[\s*_`\u200b\u2060]|&nbsp;)"
"""What may stand inside a quantity: white space of any kind, and the marks of Markdown."""
GROUPS = "'’\u00a0\u202f\u2009"  # noqa: RUF001 -- what groups thousands besides comma, point and space
_LONGEST = 60
"""Digits of a number that is read; a longer one is compared as a word."""
_FORMS = (
    (re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"), ",", "."),
    (re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?"), ".", ","),
    (re.compile(rf"\d{{1,3}}(?:[{GROUPS} ]\d{{3}})+(?:[.,]\d+)?"), GROUPS + " ", ","),
    (re.compile(r"\d+(?:[.,]\d+)?"), "", ","),
)

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_STEMS = ("thir", "four", "fif", "six", "seven", "eigh", "nine")
_SMALL = {word: at for at, word in enumerate((*_UNITS, *(f"{stem}teen" for stem in _STEMS)))}
_TENS = {f"{stem}ty": 10 * at for at, stem in enumerate(("twen", "thir", "for", *_STEMS[2:]), 2)}
_ODD = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
_ORDINALS = {
    **_ODD,
    **{f"{word}th": at for word, at in _SMALL.items() if at > 3 and at not in _ODD.values()},  # noqa: PLR2004 -- `fourth` on
    **{f"{word[:-1]}ieth": at for word, at in _TENS.items()},
}
_PLAIN = {**_SMALL, **_TENS, **_ORDINALS}
SCALES = {
    name: 10**power
    for power, names in {
        2: "hundred",
        3: "thousand k tausend tsd mille mila тыс 千",
        4: "万 萬",
        5: "lakh lac",
        6: "million mn mio millionen millón millones milione milioni milhão milhões miljoen млн",
        7: "crore",
        8: "億 亿",
        9: "billion bn milliard milliarde milliarden mrd miliardo miliardi miljard млрд",
        12: "trillion tn billionen billones 兆",
    }.items()
    for name in names.split()
} | {"dozen": 12}
"""What a number is multiplied by where it follows one, in any case, also with an s."""

_SPOKEN = ("hundred", "thousand", "million", "billion", "trillion", "lakh", "crore", "dozen")
_WORD = "|".join(sorted((*_PLAIN, *_SPOKEN, "half"), key=len, reverse=True))
_JOINT = rf"(?:-|{GAP}{{1,9}}(?:and{GAP}{{1,9}})?(?:an?{GAP}{{1,9}})?)"
SPELLED = rf"(?i:(?<![\w-])(?:{_WORD})\b(?:{_JOINT}(?:{_WORD})\b)*)"
"""A run of number words, such as `spelled` reads."""
_EACH = re.compile(rf"(?i)(?:^|(?P<joint>{_JOINT}))(?P<word>{_WORD})\b")
_QUIET = frozenset({"one", "first", "second", "third", "half"})
_MOST = 16
"""Words of one number."""

_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_VULGAR = "\u00bc-\u00be\u2150-\u215e\u2189"
_ENCLOSED = "\u2160-\u2182\u2185-\u2188\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3251-\u325f\u32b1-\u32bf"
SIGN = rf"\d{{0,9}}[ \u2009]?[{_VULGAR}]|[{_ENCLOSED}]|(?<=[\d{_RAISED}])[{_RAISED}]{{1,9}}"
"""A sign that is a number, with the digits before a fraction; raised digits after others."""
# Greater ones are too often words of their own.
ROMAN = r"(?<![\w-])(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})(?![\w-])"
"""A Roman number from 2 to 39 of two letters or more."""


class Spelled(NamedTuple):
    """A number in words."""

    start: int
    """Where it starts in the run."""
    end: int
    """Where it ends."""
    value: Decimal
    """What it says."""
    counts: bool
    """Whether it may be a count of things: no ordinal, no `million`."""
    sure: bool
    """Whether it is surely meant as a number."""


class _Said(NamedTuple):
    word: str
    start: int
    end: int
    joint: str


def plain(word: str) -> str:
    """Return a word as the tables here have it; a pattern that ignores case takes a dotless i for one, too."""
    return word.casefold().replace("\u0131", "i").replace("\u0307", "")


def number(text: str) -> Decimal | None:
    """Return what digits say; nothing where they are no number.

    Example:
        >>> str(number("1,000.5")), number("1.2.3")
        ('1000.5', None)
    """
    if len(text) <= _LONGEST:
        for form, groups, point in _FORMS:
            if form.fullmatch(text):
                bare = "".join(character for character in text if character not in groups)
                return Decimal(bare.replace(point, "."))
    return None


def times(value: Decimal, factor: int, power: int = 0) -> Decimal:
    """Return a number times a factor and a power of ten, exactly, however many digits it has."""
    sign, digits, exponent = value.as_tuple()
    product = int("".join(map(str, digits))) * factor
    return Decimal((sign, tuple(map(int, str(product))), int(exponent) + power))


def sign(text: str) -> Decimal:
    """Return what a sign says.

    Example:
        >>> [str(sign(each)) for each in ("1½", "⑥", "²³")]
        ['1.5', '6', '23']
    """
    digits = unicodedata.normalize("NFKC", text)
    if digits.isdecimal():
        return Decimal(digits)
    return Decimal(text[:-1].strip() or 0) + Decimal(f"{unicodedata.numeric(text[-1]):.16g}")


def roman(text: str) -> Decimal:
    """Return what a Roman number says."""
    values = [{"I": 1, "V": 5, "X": 10}[each] for each in text]
    following = [*values[1:], 0]
    return Decimal(sum(-one if one < other else one for one, other in zip(values, following, strict=True)))


def spelled(run: str) -> Iterator[Spelled]:
    """Yield the numbers of a run of number words.

    Example:
        >>> [int(each.value) for run in ("half a dozen", "two and three") for each in spelled(run)]
        [6, 2, 3]
    """
    words = [
        _Said(plain(found["word"]), found.start("word"), found.end(), (found["joint"] or "").casefold())
        for found in _EACH.finditer(run)
    ]
    first = 0
    while first < len(words):
        last = first + 1
        while last < min(len(words), first + _MOST) and _goes_on(words, last):
            last += 1
        said = [each.word for each in words[first:last]]
        counts = all(word in _SMALL or word in _TENS for word in said)
        sure = len(said) > 1 or said[0] not in _QUIET
        yield Spelled(words[first].start, words[last - 1].end, _value(said), counts, sure)
        first = last


def _goes_on(words: list[_Said], at: int) -> bool:
    """Return whether a word belongs to the number of the word before it."""
    previous, said = words[at - 1].word, words[at]
    together = "and" not in said.joint
    if previous in _ORDINALS:
        return False
    if said.word == "half":
        return not together and previous != "half"
    if said.word in SCALES:
        return together
    if previous in _TENS:
        return together and 0 < _PLAIN[said.word] < 10  # noqa: PLR2004 -- a digit
    # The same scale comes but once: `one hundred and two hundred` are two numbers.
    following = words[at + 1].word if at + 1 < len(words) else ""
    return previous in SCALES and previous not in (following, "dozen")


def _value(said: list[str]) -> Decimal:
    """Return what words say; twice as much is counted, so that a half is whole."""
    total = group = 0
    previous = ""
    for word in said:
        scale = SCALES.get(word)
        if scale is None:
            group += 1 if word == "half" else 2 * _PLAIN[word]
        elif scale <= 100:  # noqa: PLR2004 -- a dozen, a hundred
            group = (group or 2) * scale
        elif previous in SCALES and not group:
            total *= scale
        else:
            total, group = total + (group or 2) * scale, 0
        previous = word
    twice = total + group
    return times(Decimal(twice), 5, -1) if twice % 2 else Decimal(twice // 2)
