"""Numbers and dates in prose, read by their value: `1,000` is 1000, `31 January 2024` is 2024-01-31.

A point is a decimal point (unless there are several), a comma before three digits groups thousands.
`1.2 million` is 1200000, `12 %` is 12 per cent. English number words from two to ninety-nine are read,
`one` is not: it is mostly a pronoun. A word with digits in it, such as `BSD-3-Clause` or `v1.2`, is a
name, compared letter by letter. Units are not compared. A date with an unclear order of day and month
may be either; months are known by their English names, in other languages their days and years are
read as numbers. Every pattern here takes time in proportion to the text.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Date = tuple[int | None, int | None, int | None]
"""Year, month and day, as far as they are told."""

_LETTERS = "A-Za-zÀ-ɏͰ-ϿЀ-ӿ"
_GROUPS = "'’\u00a0\u202f\u2009"  # noqa: RUF001 -- what groups thousands besides comma, point and space
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_STEMS = ("thir", "four", "fif", "six", "seven", "eigh", "nine")
_WORDS = {word: at for at, word in enumerate((*_SMALL, *(f"{stem}teen" for stem in _STEMS)))}
_TENS = {f"{stem}ty": 10 * at for at, stem in enumerate(("twen", "thir", "for", *_STEMS[2:]), 2)}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_POWERS = {"hundred": 2, "k": 3, "thousand": 3, "mn": 6, "million": 6, "bn": 9, "billion": 9, "trillion": 12}
_LONGEST = 60
"""Digits of a number that is read; a longer one is compared as a word."""

_MONTH = (
    r"(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)\.?(?![A-Za-z])"
)
_NAMED_DATE = (
    rf"(?<![{_LETTERS}\d])(?:(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? (?P<year>\d{{4}})(?!\d))?"
    rf"|{_MONTH} (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?!\d)(?:,? (?P<year2>\d{{4}})(?!\d))?"
    rf"|{_MONTH},? (?P<year3>\d{{4}})(?!\d))"
)
_SPACED = r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\d\w])"
_WORD = rf"[{_LETTERS}\d]+(?:(?:[-_./:+]|(?<=\d)[,{_GROUPS}](?=\d))[{_LETTERS}\d]+)*"
_TOKEN = re.compile(rf"(?P<date>{_NAMED_DATE})|(?P<spaced>{_SPACED})|(?P<word>{_WORD})")
_AFTER = re.compile(
    r"[ \u00a0\u202f]?(?:(?P<percent>%|percent\b|per cent\b)"
    r"|(?P<power>hundred|thousand|million|billion|trillion|bn|mn)\b)"
)
_QUANTITY = re.compile(rf"(?P<number>\d[\d.,{_GROUPS}]*?)(?:-?(?P<unit>[{_LETTERS}]+)|-[{_LETTERS}-]+)")
_ISO = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:T[\d:.+-]*Z?)?")
_TURNED = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})")
_FORMS = (
    (re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"), ",", "."),
    (re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?"), ".", ","),
    (re.compile(rf"\d{{1,3}}(?:[{_GROUPS} ]\d{{3}})+(?:[.,]\d+)?"), _GROUPS + " ", ","),
    (re.compile(r"\d+(?:[.,]\d+)?"), "", ","),
)


class Figure(NamedTuple):
    """A number, a date, or a name with digits in it, where it stands in a text."""

    kind: Literal["number", "date", "name"]
    """How it is compared."""
    start: int
    """Where it starts."""
    end: int
    """Where it ends."""
    value: Decimal = Decimal(0)
    """The number."""
    percent: bool = False
    """Whether it is told in per cent."""
    dates: tuple[Date, ...] = ()
    """What the date may be."""
    name: str = ""
    """The name as it is compared; a number with letters on it may be found as one, too."""
    counts: bool = False
    """Whether it is a bare whole number, as a count is."""


def figures(text: str) -> Iterator[Figure]:
    """Yield the figures of a text in order.

    Example:
        >>> [(each.kind, str(each.value)) for each in figures("Of 1,000 files, twelve need BSD-3-Clause.")]
        [('number', '1000'), ('number', '12'), ('name', '0')]
    """
    for match in _TOKEN.finditer(text):
        if match["date"]:
            yield Figure("date", match.start(), match.end(), dates=(_named(match),))
        elif match["spaced"]:
            yield _counted(text, match.start(), match.end(), _number(match[0]) or Decimal(0), whole=True)
        else:
            yield from _word(text, match.start(), match["word"])


def _word(text: str, start: int, word: str) -> Iterator[Figure]:
    end = start + len(word)
    if not any(map(str.isdecimal, word)):
        if (value := _spelled(word)) is not None:
            yield _counted(text, start, end, Decimal(value), whole=word.isalpha() or word.casefold() in _WORDS)
    elif found := _dates(word):
        yield Figure("date", start, end, dates=found)
    elif (quantity := _QUANTITY.fullmatch(word)) and (number := _number(quantity["number"])) is not None:
        power = {"k": 3, "K": 3, "M": 6, "B": 9, "bn": 9, "mn": 6}.get(quantity["unit"] or "", 0)
        yield Figure("number", start, end, _signed(text, start, _shifted(number, power)), name=segments(word))
    elif any(character.isalpha() for character in word):
        yield Figure("name", start, end, name=segments(word))
    else:
        yield from _numerals(text, start, word)


def _numerals(text: str, start: int, word: str) -> Iterator[Figure]:
    """Yield the numbers of a word without letters, such as a range or a ratio."""
    for part in re.finditer(r"[^-_/:+]+", word):
        first, last = start + part.start(), start + part.end()
        if (number := _number(part[0])) is None:
            yield Figure("name", first, last, name=segments(part[0]))
        else:
            yield _counted(text, first, last, number, whole=part[0].isdecimal())


def _counted(text: str, start: int, end: int, value: Decimal, *, whole: bool) -> Figure:
    """Return a number together with the percent sign or the power of ten that follows it."""
    after = _AFTER.match(text, end)
    power = _POWERS.get(after["power"] or "", 0) if after else 0
    percent = bool(after and after["percent"])
    value = _signed(text, start, _shifted(value, power))
    return Figure("number", start, after.end() if after else end, value, percent, counts=whole and not after)


def _signed(text: str, start: int, value: Decimal) -> Decimal:
    before = text[max(0, start - 2) : start]
    minus = before[-1:] in ("-", "−") and (len(before) == 1 or before[0] in " \t\n(=:[~\x00")  # noqa: RUF001 -- a minus
    return value.copy_negate() if minus and value else value


def _shifted(value: Decimal, power: int) -> Decimal:
    """Return a number times a power of ten, exactly, however many digits it has."""
    sign, digits, exponent = value.as_tuple()
    return Decimal((sign, digits, int(exponent) + power))


def _number(text: str) -> Decimal | None:
    if len(text) <= _LONGEST:
        for form, groups, point in _FORMS:
            if form.fullmatch(text):
                bare = "".join(character for character in text if character not in groups)
                return Decimal(bare.replace(point, "."))
    return None


def _spelled(word: str) -> int | None:
    """Return what a number word says, also with a noun on it (`two-clause`); `one` says nothing by itself."""
    first, _, rest = word.casefold().partition("-")
    if first in _TENS:
        return _TENS[first] + (_WORDS[rest] if rest in _SMALL[1:10] else 0)
    return _WORDS.get(first) if first != "one" else None


def _dates(word: str) -> tuple[Date, ...]:
    if found := _ISO.fullmatch(word):
        year, month, day = map(int, found.groups())
        return _valid((year, month, day))
    if found := _TURNED.fullmatch(word):
        one, other, year = map(int, found.groups())
        return (*_valid((year, other, one)), *_valid((year, one, other)))
    return ()


def _valid(date: tuple[int, int, int]) -> tuple[Date, ...]:
    return (date,) if 1 <= date[1] <= 12 and 1 <= date[2] <= 31 else ()  # noqa: PLR2004 -- a calendar


def _named(match: re.Match[str]) -> Date:
    year = match["year"] or match["year2"] or match["year3"]
    day = match["day"] or match["day2"]
    name = next(part for part in re.findall(r"[A-Za-z]+", match[0]) if part[:3].casefold() in _MONTHS)
    return (int(year) if year else None, _MONTHS.index(name[:3].casefold()) + 1, int(day) if day else None)


def segments(word: str) -> str:
    r"""Return a name in its parts, as it can be found among others.

    Example:
        >>> segments("GPL-2.0")
        '\x1fgpl\x1f2.0\x1f'
    """
    parts = re.split(r"[-_/:+]|(?<!\d)\.|\.(?!\d)", word.casefold())
    return "\x1f" + "\x1f".join(filter(None, parts)) + "\x1f"
