"""Numbers and dates in prose, read by their value: `1,000` is 1000, `31 January 2024` is 2024-01-31.

A point is a decimal point (unless there are several), a comma before three digits groups thousands.
`1.2 million` is 1200000, `5 Mio.` and `50 lakh` are 5000000, `12 %` is 12 per cent, `minus five` is -5. How
words and signs are read: see `numerals`; dates: see `dates`. A word with digits in it, such as
`BSD-3-Clause` or `v1.2`, is a name, compared letter by letter. Units are not compared, nor is `am` with
`pm`. Every pattern here takes time in proportion to the text.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.integrators.prose.dates import NAMED, Date, is_surely_named, named, numeric
from prefect_dispatch.integrators.prose.numerals import (
    GAP,
    GROUPS,
    LETTERS,
    ROMAN,
    SCALES,
    SIGN,
    SPELLED,
    number,
    plain,
    roman,
    sign,
    spelled,
    times,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPACED = r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\d\w])"
_WORD = rf"[{LETTERS}\d]+(?:(?:[-_./:+]|(?<=\d)[,{GROUPS}](?=\d))[{LETTERS}\d]+)*"
_TOKEN = re.compile(
    rf"(?P<date>{NAMED})|(?P<sign>{SIGN})|(?P<spaced>{_SPACED})|(?P<spelled>{SPELLED})|(?P<roman>{ROMAN})"
    rf"|(?P<word>{_WORD})"
)
_SCALE = "|".join(sorted(SCALES.keys() - {"k"}, key=len, reverse=True))
_AFTER = re.compile(
    rf"(?i)(?:{GAP}{{0,9}}|-)(?:(?P<percent>%|‰|(?:percent|per{GAP}{{1,9}}cent|pct|prozent)\b)"
    rf"|(?P<scale>(?:{_SCALE})(?:s\b|\b|(?<=[千万萬億亿兆]))|(?-i:k)\b))"
)
_QUANTITY = re.compile(rf"(?P<number>\d[\d.,{GROUPS}]*?)(?:-?(?P<unit>[{LETTERS}]+)|-[{LETTERS}-]+)")
_UNITS = {"K": 3, "M": 6, "B": 9}
_SCIENTIFIC = re.compile(r"\d{1,40}(?:[.,]\d{1,40})?[eE][-+]?\d{1,3}")
_STAMP = re.compile(r"([\d/.-]+)T([\d:.+-]+)Z?")
_MINUS = re.compile(rf"(?:^|[ \t\n(=:\[~\x00])[-−]\Z|(?i:(?<![\w-])(?<!\d )(?:minus|negative){GAP}{{1,9}})\Z")  # noqa: RUF001 -- a minus
_ENUMERATES = re.compile(r"(?:^|[.!?:;\n])\s*\Z")


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
    sure: bool = True
    """Whether it is surely a figure; what isn't gives evidence, but needs none."""


def figures(text: str) -> Iterator[Figure]:
    """Yield the figures of a text in order.

    Example:
        >>> [(each.kind, str(each.value)) for each in figures("Of 1,000 files, twelve need BSD-3-Clause.")]
        [('number', '1000'), ('number', '12'), ('name', '0')]
    """
    at = 0
    while match := _TOKEN.search(text, at):
        at = match.end()
        for figure in _read(text, match):
            at = max(at, figure.end)
            yield figure


def _read(text: str, match: re.Match[str]) -> Iterator[Figure]:
    start, end = match.span()
    if match["date"]:
        yield Figure("date", start, end, dates=(named(match[0]),), sure=is_surely_named(text, start, end))
    elif match["sign"]:
        yield _counted(text, start, end, sign(match[0]), whole=False)
    elif match["spaced"]:
        yield _counted(text, start, end, number(match[0]) or Decimal(0), whole=True)
    elif match["spelled"]:
        yield from _in_words(text, start, match[0])
    elif match["roman"]:
        yield Figure("number", start, end, roman(match[0]), name=segments(match[0]))
    elif any(map(str.isdecimal, match[0])):
        yield from _word(text, start, match[0])


def _in_words(text: str, start: int, run: str) -> Iterator[Figure]:
    for each in spelled(run):
        first, last = start + each.start, start + each.end
        # `Fourth, …` is the place of what is said, not a number in it.
        enumerates = text[last - 2 : last + 1] == "th," and _ENUMERATES.search(text[max(0, first - 9) : first])
        figure = _counted(text, first, last, each.value, whole=each.counts)
        yield figure._replace(sure=not enumerates and (each.sure or figure.end > last))


def _word(text: str, start: int, word: str) -> Iterator[Figure]:
    end = start + len(word)
    if found := numeric(word):
        yield Figure("date", start, end, dates=found)
        # `2010-12` may be a range of years, too.
        yield from (each._replace(sure=False) for each in _numerals(text, start, word) if found[0][2] is None)
    elif (stamp := _STAMP.fullmatch(word)) and numeric(stamp[1]):
        yield from _word(text, start, stamp[1])
        for each in _numerals(text, start + stamp.start(2), stamp[2]):
            yield each._replace(sure=each.value != 0)
    elif _SCIENTIFIC.fullmatch(word):
        value = Decimal(word.replace(",", "."))
        yield Figure("number", start, end, _signed(text, start, value), name=segments(word))
    elif (quantity := _QUANTITY.fullmatch(word)) and (bare := number(quantity["number"])) is not None:
        last = start + quantity.end("number")
        said = _counted(text, start, last, times(bare, 1, _UNITS.get(quantity["unit"] or "", 0)), whole=False)
        yield said if said.end > last else said._replace(end=end, name=segments(word))
    elif any(character.isalpha() for character in word):
        yield Figure("name", start, end, name=segments(word))
    else:
        yield from _numerals(text, start, word)


def _numerals(text: str, start: int, word: str) -> Iterator[Figure]:
    """Yield the numbers of a word without letters, such as a range, a ratio or a time."""
    for part in re.finditer(r"[^-_/:+]+", word):
        first, last = start + part.start(), start + part.end()
        if (value := number(part[0])) is None:
            yield Figure("name", first, last, name=segments(part[0]))
        else:
            yield _counted(text, first, last, value, whole=part[0].isdecimal())


def _counted(text: str, start: int, end: int, value: Decimal, *, whole: bool) -> Figure:
    """Return a number together with the percent sign or the scales that follow it, such as `hundred thousand`."""
    last, percent = end, False
    for _ in range(3):
        if percent or not (after := _AFTER.match(text, last)):
            break
        if after["scale"]:
            name = plain(after["scale"])
            value = times(value, SCALES.get(name) or SCALES[name.removesuffix("s")])
        else:
            percent = True
            value = times(value, 1, -1) if after["percent"] == "‰" else value
        last = after.end()
    return Figure("number", start, last, _signed(text, start, value), percent, counts=whole and last == end)


def _signed(text: str, start: int, value: Decimal) -> Decimal:
    return value.copy_negate() if value and _MINUS.search(text[max(0, start - 20) : start]) else value


def segments(word: str) -> str:
    r"""Return a name in its parts, as it can be found among others.

    Example:
        >>> segments("GPL-2.0")
        '\x1fgpl\x1f2.0\x1f'
    """
    parts = re.split(r"[-_/:+]|(?<!\d)\.|\.(?!\d)", word.casefold())
    return "\x1f" + "\x1f".join(filter(None, parts)) + "\x1f"
