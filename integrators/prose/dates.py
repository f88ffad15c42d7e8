"""Dates in prose, as far as they tell: `31 January 2024`, `31/01/2024`, `January 2024`, `2024-01`, `in March`.

Months are known by their English and German names; in other languages the days and years are read as
numbers. A date with an unclear order of day and month may be either. Days of the week are not read.
"""

from __future__ import annotations

import re

from prefect_dispatch.integrators.prose.numerals import GAP, LETTERS

Date = tuple[int | None, int | None, int | None]
"""Year, month and day, as far as they are told."""

_MONTHS = {
    name: at
    for at, names in enumerate(
        ("jan", "feb", "mar mär", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt", "nov", "dec dez"), 1
    )
    for name in names.split()
}
_PLAIN = (
    "January|Januar|February|Februar|März|April|June|Juni|July|Juli|August|September|October|Oktober|November|"
    "December|Dezember"
)
_MONTH = rf"(?:{_PLAIN}|March|May|Mai|Jan|Feb|Mar|Mär|Apr|Jun|Jul|Aug|Sept?|Oct|Okt|Nov|Dec|Dez)\b\.?(?![{LETTERS}])"
_S = rf"{GAP}{{1,9}}"
_YEAR = rf"(?:,?{_S}\d{{4}}(?!\d))"
NAMED = (
    rf"(?<![{LETTERS}\d])(?:\d{{1,2}}(?:st|nd|rd|th|\.)?(?:{_S}of)?{_S}{_MONTH}{_YEAR}?"
    rf"|{_MONTH}(?:{_S}\d{{1,2}}(?:st|nd|rd|th)?(?!\d){_YEAR}?|{_YEAR})?)"
)
"""A date with the name of a month, or such a name alone."""

_SURE = re.compile(rf"{_PLAIN}|.*\d.*", re.DOTALL)
_ISO = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_TURNED = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})")
_OF_YEAR = re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})|(?P<first>\d{1,2})/(?P<second>(?:19|20)\d{2})")


def named(text: str) -> Date:
    """Return the date that a text with the name of a month tells.

    Example:
        >>> named("3rd of March 2024"), named("May")
        ((2024, 3, 3), (None, 5, None))
    """
    numbers = re.findall(r"\d+", text)
    year = next((int(number) for number in numbers if len(number) == 4), None)  # noqa: PLR2004 -- digits of a year
    day = next((int(number) for number in numbers if len(number) < 3), None)  # noqa: PLR2004 -- digits of a day
    name = next(part[:3].casefold() for part in re.findall(r"[^\W\d_]{3,}", text) if part[:3].casefold() in _MONTHS)
    return (year, _MONTHS[name], day)


def is_surely_named(text: str, start: int, end: int) -> bool:
    """Return whether a date with a name is one: where a sentence starts, `May` and `Jan` may be other words."""
    return bool(_SURE.fullmatch(text, start, end)) or bool(re.search(r"[a-z,]\s$", text[max(0, start - 2) : start]))


def numeric(word: str) -> tuple[Date, ...]:
    """Return what a word of digits may be as a date; nothing where it is none.

    Example:
        >>> numeric("2024-01"), numeric("5/6/2024"), numeric("2024-13-31")
        (((2024, 1, None),), ((2024, 6, 5), (2024, 5, 6)), ())
    """
    if found := _ISO.fullmatch(word):
        year, month, day = map(int, found.groups())
        return _valid((year, month, day))
    if found := _TURNED.fullmatch(word):
        one, other, year = map(int, found.groups())
        return (*_valid((year, other, one)), *_valid((year, one, other)))
    if found := _OF_YEAR.fullmatch(word):
        return _valid((int(found["year"] or found["second"]), int(found["month"] or found["first"]), None))
    return ()


def _valid(date: tuple[int, int, int | None]) -> tuple[Date, ...]:
    return (date,) if 1 <= date[1] <= 12 and (date[2] is None or 1 <= date[2] <= 31) else ()  # noqa: PLR2004 -- a calendar


def agrees(told: Date, known: Date) -> bool:
    """Return whether a date is known as far as it is told.

    Example:
        >>> agrees((2024, 1, None), (2024, 1, 31)), agrees((2024, 1, 31), (2024, 1, None))
        (True, False)
    """
    return all(part is None or part == other for part, other in zip(told, known, strict=True))
