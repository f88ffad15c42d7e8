"""Figures of a text: numbers, dates and names with digits, read so that they can be compared by value.

`1,000` is 1000, `31 January 2024` is 2024-01-31. A single point is a decimal point, and so is a single comma that isn't
followed by exactly three digits: `1.5` and `1,5` are equal, `1.000` is 1 and `1,000` is 1000. Where points and commas
stand in one number, the last one is the decimal sign: `1.234,5` and `1,234.5` are equal. `1.2 million` is 1200000,
`5 Mio.` and `50 lakh` are 5000000, `12 %` is 12 per cent, `minus five` is -5. Number words are read in English only,
month names in English and German.

A word with digits in it, such as `BSD-3-Clause` or `v1.2`, is a name and is compared letter by letter. So is a phrase
such as `half a million`. Roman numerals and signs such as `½` or `⑥` are no figures. `am` is not compared with `pm`.

`m`, `b` and `t` after an amount of money are scales: `$5.2m` and `5.2m euros` are 5200000. Elsewhere `5.2m` may be 5.2
metres or 5.2 million; it is looked up as millions first, and as metres where it is written `5.2 m`, or where the text
is about a length or about what the source measures. An amount is also looked up in other units of its dimension:
`5.4 t` is 5,400 kg. Every pattern here runs in time linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from decimal import Context, Decimal
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.integrators.synthesize.units import METRE, find_currency, read_measures, read_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefect_dispatch.integrators.synthesize.units import Measure, Unit

EXACT = Context(prec=200)
"""Arithmetic without rounding: a figure has at most 60 digits, and few scale words."""

_MAX_DIGITS = 60
"""Longest number that is read, in characters; a longer one is compared as a name."""

_LETTERS = "A-Za-zÀ-ɏͰ-ϿЀ-ӿ"
_GROUPS = "'’\u00a0\u202f\u2009"  # noqa: RUF001 -- thousands separators besides comma, point and space
_GAP = r"(?:[\s*_`\u200b\u2060]|&nbsp;)"
"""Pattern of what may stand inside a quantity: white space of any kind, and Markdown emphasis."""
_SPACE = rf"{_GAP}{{1,9}}"

# Numbers in digits.

_NUMBER = re.compile(
    rf"(?P<whole>\d{{1,3}}(?:,\d{{3}})+|\d{{1,3}}(?:\.\d{{3}}){{2,}}|\d{{1,3}}\.\d{{3}}(?=,\d+\Z)"
    rf"|\d{{1,3}}(?:[{_GROUPS} ]\d{{3}})+|\d+)(?:[.,](?P<fraction>\d+))?"
)
_SCIENTIFIC = re.compile(r"\d{1,40}(?:[.,]\d{1,40})?[eE][-+]?\d{1,3}")
_QUANTITY = re.compile(rf"(?P<number>\d[\d.,{_GROUPS}]*)-?[{_LETTERS}][{_LETTERS}-]*")
_MINUS_BEFORE = re.compile(rf"(?:^|[ \t\n(=:\[~\x00])[-−]\Z|(?i:(?<![\w-])(?<!\d )(?:minus|negative){_SPACE})\Z")  # noqa: RUF001 -- a minus

_SCALES = {
    name: 10**power
    for power, names in {
        2: "hundred",
        3: "thousand k K tausend tsd mille mila тыс ТЫС 千",
        4: "万 萬",
        5: "lakh lac",
        6: "million M mn mln mio millionen millón millones milione milioni milhão milhões miljoen млн МЛН",
        7: "crore",
        8: "億 亿",
        9: "billion B bn milliard milliarde milliarden mrd miliardo miliardi miljard млрд МЛРД",
        12: "trillion tn billionen billones 兆",
    }.items()
    for name in names.split()
} | {"dozen": 12}
"""Factor of each scale word that may follow a number; words of several letters in any case, also with a plural s."""

_SUFFIX = re.compile(
    rf"(?:{_GAP}{{0,9}}|-)(?:(?P<percent>%|‰|(?i:percent|per{_SPACE}cent|pct|prozent)\b)"
    rf"|(?P<scale>(?ai:{'|'.join(name for name in _SCALES if name not in 'kKMB')})s?|k|(?<=\d)[KMB])(?![{_LETTERS}\d]))"
)

_SCALE_LETTER = re.compile(r"\s?(?P<letter>[mbt])(?![\w²³/])")
_LETTER_POWERS = {"m": 6, "b": 9, "t": 12}
_CURRENCY_AFTER = re.compile(r"\s(?i:dollars?|euros?|pounds?|francs?|yen|rupees?|usd|eur|gbp|chf|jpy|inr)\b")

# Numbers in words.


def _any_of(words: Iterable[str]) -> str:
    return rf"(?ai:{'|'.join(words)})\b"


_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_UNIT_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_CARDINALS = {
    **{word: at for at, word in enumerate(_UNITS.split())},
    **{word: 10 * at for at, word in enumerate(_TENS.split(), 2)},
    "dozen": 12,
}
_ORDINALS = {
    **{word: at for at, word in enumerate(_UNIT_ORDINALS.split())},
    **{f"{word[:-1]}ieth": 10 * at for at, word in enumerate(_TENS.split(), 2)},
}
_AMBIGUOUS_WORDS = frozenset({"one", "first", "second", "third"})
"""Words that are often no number: `one of them`, `first of all`, `a second`."""

_JOINT = rf"(?:-|{_SPACE})"
_AND = rf"{_JOINT}(?:(?i:and){_SPACE})?"
_DIGIT = _any_of([*_UNITS.split()[1:10], *_UNIT_ORDINALS.split()[1:10]])
_BELOW_100 = rf"(?:{_any_of(_TENS.split())}(?:{_JOINT}{_DIGIT})?|{_any_of([*_CARDINALS, *_ORDINALS])})"
_HUNDRED = _any_of(["hundred"])
_BELOW_1000 = rf"(?:(?:{_BELOW_100}{_JOINT})?{_HUNDRED}(?:{_AND}{_BELOW_100}(?!{_JOINT}{_HUNDRED}))?|{_BELOW_100})"
_SCALE_WORDS = ("thousand", "million", "billion", "trillion", "lakh", "crore")
_BIG = _any_of(_SCALE_WORDS)
_BIGS = rf"{_BIG}(?:{_JOINT}{_BIG}){{0,2}}"
_SCALED = rf"(?:{_BELOW_1000}{_JOINT})?{_BIGS}(?:{_AND}{_BELOW_1000}{_JOINT}{_BIGS}){{0,6}}(?:{_AND}{_BELOW_1000})?"
_FIRST_WORD = _any_of(["half", "hundred", *_SCALE_WORDS, *_CARDINALS, *_ORDINALS])
_IN_WORDS = (
    rf"(?<![\w-])(?={_FIRST_WORD})(?:(?i:half){_JOINT}(?:(?i:an?){_SPACE})?)?(?:{_SCALED}|{_BELOW_1000})"
    rf"(?:{_SPACE}(?i:and{_SPACE}a{_SPACE}half)\b)?"
)
"""Pattern of one number in words, such as `two hundred and five thousand`, or of one with a half."""


def _value_of_words(words: Iterable[str]) -> int:
    """Return the value of the words of one number."""
    total = group = 0  # `group`: what is below the last scale word of 1000 or more
    for word in words:
        if word == "hundred":
            group = (group or 1) * 100
        elif word in _SCALES:
            total, group = (total + (group or 1) * _SCALES[word] if group or not total else total * _SCALES[word]), 0
        else:
            group += _CARDINALS.get(word) or _ORDINALS.get(word, 0)
    return total + group


_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"

# Dates, with a month's name or in digits.

Date = tuple[int | None, int | None, int | None]
"""Year, month and day; None for each part that isn't given."""

_MONTHS = {
    name: at
    for at, names in enumerate(
        ("jan", "feb", "mar mär", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt", "nov", "dec dez"), 1
    )
    for name in names.split()
}
_LONG_MONTHS = (
    "January|Januar|February|Februar|März|April|June|Juni|July|Juli|August|September|October|Oktober|November|"
    "December|Dezember"
)
_MONTH = (
    rf"(?:{_LONG_MONTHS}|March|May|Mai|Jan|Feb|Mar|Mär|Apr|Jun|Jul|Aug|Sept?|Oct|Okt|Nov|Dec|Dez)\b\.?(?![{_LETTERS}])"
)
_YEAR = rf"(?:,?{_SPACE}\d{{4}}(?!\d))"
_MONTH_NAME_DATE = (
    rf"(?<![{_LETTERS}\d])(?:\d{{1,2}}(?:st|nd|rd|th|\.)?(?:{_SPACE}of)?{_SPACE}{_MONTH}{_YEAR}?"
    rf"|{_MONTH}(?:{_SPACE}\d{{1,2}}(?:st|nd|rd|th)?(?!\d){_YEAR}?|{_YEAR})?)"
)
_UNAMBIGUOUS_DATE = re.compile(rf"(?s:{_LONG_MONTHS}|.*\d.*)")
"""Pattern of a match that is certainly a date; `May` and `Jan` at the start of a sentence may be other words."""

# Of each way to write a date in digits: its pattern, and which of its groups year, month and day may be; -1: none.
_NUMERIC_DATES = (
    (re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})"), ((0, 1, 2),)),
    (re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})"), ((2, 1, 0), (2, 0, 1))),
    (re.compile(r"(\d{4})-(\d{2})"), ((0, 1, -1),)),
    (re.compile(r"(\d{1,2})/((?:19|20)\d{2})"), ((1, 0, -1),)),
)
_TIME = re.compile(r"[\d:.+-]*Z?")


def _parse_month_name_date(text: str) -> Date:
    """Return the date in a text that holds the name of a month."""
    numbers = re.findall(r"\d+", text)
    year = next((int(number) for number in numbers if len(number) == 4), None)  # noqa: PLR2004 -- digits of a year
    day = next((int(number) for number in numbers if len(number) < 3), None)  # noqa: PLR2004 -- digits of a day
    month = next(filter(None, (_MONTHS.get(word[:3].casefold()) for word in re.findall(r"[^\W\d_]{3,}", text))))
    return (year, month, day)


def parse_numeric_date(word: str) -> tuple[Date, ...]:
    """Return the dates that a word of digits may stand for, day first before month first; empty if there is none.

    Example:
        >>> parse_numeric_date("2024-01"), parse_numeric_date("5/6/2024"), parse_numeric_date("2024-13-31")
        (((2024, 1, None),), ((2024, 6, 5), (2024, 5, 6)), ())
    """
    for pattern, orders in _NUMERIC_DATES:
        if match := pattern.fullmatch(word):
            parts = (*map(int, match.groups()), None)
            dates = [(parts[year], parts[month], parts[day]) for year, month, day in orders]
            return tuple(date for date in dates if 1 <= (date[1] or 0) <= 12 and 1 <= (date[2] or 1) <= 31)  # noqa: PLR2004 -- a calendar
    return ()


class Figure(NamedTuple):
    """A number, a date, or a name with digits in it, with its position in the text."""

    kind: Literal["number", "date", "name"]
    """How the figure is compared."""
    start: int
    """Start offset in the text."""
    end: int
    """End offset in the text, exclusive."""
    value: Decimal = Decimal(0)
    """The number's value."""
    percent: bool = False
    """Whether the number is given in per cent."""
    dates: tuple[Date, ...] = ()
    """The dates that it may stand for; more than one where the order of day and month is ambiguous."""
    name: str = ""
    """The name, split into segments; a number with letters attached can match as a name, too."""
    number_end: int = 0
    """Of a number: end offset of its digits, words and scale, exclusive; a unit may follow."""
    other: Decimal | None = None
    """The value in millions, if a bare `m` after the number may mean that."""
    counts: bool = False
    """Whether it is a bare whole number, and so may be a count of answers."""
    sure: bool = True
    """Whether it is certainly a figure. An uncertain one serves as evidence, but requires none."""


_QUARTER = re.compile(r"(?:q([1-4])|([1-4])q)")
_QUARTER_IN_WORDS = re.compile(
    r"(?ai:\b(first|second|third|fourth|last|1st|2nd|3rd|4th)\s+quarter\b|\b(?:q([1-4])|([1-4])q)\b)"
)
_QUARTERS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "last": 4, "1st": 1, "2nd": 2, "3rd": 3, "4th": 4}

_ENUMERATION = rf"(?:\A|(?<=[.!?:;\n]\s)){_any_of(_UNIT_ORDINALS.split())},"
"""Pattern of `Fourth, …` at the start of a sentence, which enumerates statements and is no number in one."""
_WORD = (
    r"(?:(?<![\w.,])\d{1,3}(?: \d{3})+(?![\d\w])"
    rf"|[{_LETTERS}\d]+(?:(?:[-_./:+]|(?<=\d)[,{_GROUPS}](?=\d))[{_LETTERS}\d]+)*)"
)
_TOKEN = re.compile(
    rf"{_ENUMERATION}|(?P<date>{_MONTH_NAME_DATE})|(?P<power>(?<=\d)[{_SUPERSCRIPTS}]{{1,9}})"
    rf"|(?P<words>{_IN_WORDS})|(?P<word>{_WORD})"
)


def extract_figures(text: str) -> Iterator[Figure]:
    """Yield the figures of a text, in order.

    Example:
        >>> [(each.kind, str(each.value)) for each in extract_figures("Of 1,000 files, twelve need BSD-3-Clause.")]
        [('number', '1000'), ('number', '12'), ('name', '0')]
    """
    at = 0
    while match := _TOKEN.search(text, at):
        at = match.end()
        for figure in _figures_of_token(text, match):
            at = max(at, figure.end)
            yield figure


def _figures_of_token(text: str, match: re.Match[str]) -> Iterator[Figure]:
    """Yield the figures of one token."""
    start, end = match.span()
    if match["date"]:
        sure = _UNAMBIGUOUS_DATE.fullmatch(match[0]) or re.search(r"[a-z,]\s$", text[max(0, start - 2) : start])
        yield Figure("date", start, end, dates=(_parse_month_name_date(match[0]),), sure=bool(sure))
    elif match["power"] or (match["words"] and "half" in match[0].lower()):
        yield Figure("name", start, end, name=join_segments(match[0]))
    elif match["words"]:
        words = re.findall(r"[a-z]+", match[0].lower())
        counts = all(word in _CARDINALS for word in words)
        figure = _read_number(text, start, end, Decimal(_value_of_words(words)), counts=counts)
        is_sure = words[0] not in _AMBIGUOUS_WORDS or len(words) > 1 or figure.end > end
        yield figure._replace(sure=is_sure or bool(_QUARTER_IN_WORDS.match(text, start)))
    elif match["word"] and any(map(str.isdecimal, match[0])):
        yield from _figures_of_word(text, start, match[0])


def _figures_of_word(text: str, start: int, word: str) -> Iterator[Figure]:
    """Yield the figures of a word with digits: a date, a time stamp, a number with or without a unit, or a name."""
    end = start + len(word)
    day, _, time = word.partition("T")
    if (dates := parse_numeric_date(day)) and _TIME.fullmatch(time):
        yield Figure("date", start, start + len(day), dates=dates)
        # `2010-12` may be a range of years, too.
        if dates[0][2] is None:
            yield from (each._replace(sure=False) for each in _figures_of_digits(text, start, day))
        for each in _figures_of_digits(text, start + len(day) + 1, time.removesuffix("Z")):
            yield each._replace(sure=each.value != 0)
    elif _SCIENTIFIC.fullmatch(word):
        value = Decimal(word.replace(",", "."))
        yield Figure("number", start, end, _apply_minus(text, start, value), name=join_segments(word))
    elif (quantity := _QUANTITY.fullmatch(word)) and (bare := parse_digits(quantity["number"])) is not None:
        last = start + quantity.end("number")
        figure = _read_number(text, start, last, bare)
        yield figure if figure.end > last else figure._replace(end=end, name=join_segments(word))
    elif any(map(str.isalpha, word)):
        yield Figure("name", start, end, name=join_segments(word))
    else:
        yield from _figures_of_digits(text, start, word)


def _figures_of_digits(text: str, start: int, word: str) -> Iterator[Figure]:
    """Yield the numbers of a word without letters, such as those of a range, a ratio or a time."""
    for part in re.finditer(r"[^-_/:+]+", word):
        first, last = start + part.start(), start + part.end()
        if (value := parse_digits(part[0])) is None:
            yield Figure("name", first, last, name=join_segments(part[0]))
        else:
            yield _read_number(text, first, last, value, counts=part[0].isdecimal())


def parse_digits(text: str) -> Decimal | None:
    """Return the value of digits with separators, or None if they are no number.

    Example:
        >>> str(parse_digits("1,000.5")), parse_digits("1.2.3")
        ('1000.5', None)
    """
    if len(text) > _MAX_DIGITS or not (match := _NUMBER.fullmatch(text)):
        return None
    return Decimal(re.sub(r"\D", "", match["whole"]) + "." + (match["fraction"] or ""))


def _read_number(text: str, start: int, end: int, value: Decimal, *, counts: bool = False) -> Figure:
    """Return the figure of a number, including the percent sign or scale words after it (`hundred thousand`).

    Args:
        text: The text.
        start: Offset where the number starts.
        end: Offset where its digits or words end.
        value: Its value without sign and scales.
        counts: Whether it may be a count of answers, if no scale or percent sign follows.
    """
    last, percent, other = end, False, None
    if letter := _SCALE_LETTER.match(text, end):
        scaled = EXACT.scaleb(value, _LETTER_POWERS[letter["letter"]])
        if find_currency(text, start) < start or _CURRENCY_AFTER.match(text, letter.end()):
            value, last = scaled, letter.end()
        elif letter["letter"] == "m":
            other = _apply_minus(text, start, scaled)
    # At most three suffixes follow a number: two scales and a percent sign.
    for _ in range(3):
        if percent or not (after := _SUFFIX.match(text, last)):
            break
        if name := after["scale"]:
            value = EXACT.multiply(value, _SCALES.get(name) or _SCALES.get(name.lower()) or _SCALES[name.lower()[:-1]])
        else:
            percent = True
            value = EXACT.scaleb(value, -1 if after["percent"] == "‰" else 0)
        last = after.end()
    value = _apply_minus(text, start, value)
    return Figure(
        "number", start, last, value, percent, number_end=last, other=other, counts=counts and last == end and not other
    )


def _apply_minus(text: str, start: int, value: Decimal) -> Decimal:
    """Return the value negated if a minus sign, `minus` or `negative` precedes it."""
    return value.copy_negate() if value and _MINUS_BEFORE.search(text[max(0, start - 20) : start]) else value


def join_segments(word: str) -> str:
    r"""Return the segments of a name, each between separators, so that a substring search matches whole segments.

    Example:
        >>> join_segments("GPL-2.0")
        '\x1fgpl\x1f2.0\x1f'
    """
    parts = re.split(r"[-_/:+\s]+|(?<!\d)\.|\.(?!\d)", word.casefold())
    return "\x1f" + "\x1f".join(filter(None, parts)) + "\x1f"


# What a source has.

_OTHER_NAMES = {join_segments("COVID-19"): re.compile(r"(?i:\b(?:covid|coronavirus|sars-cov-2|pandemic))")}
"""Names with digits that have names without them."""
_HEDGE = re.compile(
    r"(?i:(?P<about>about|around|roughly|approximately|approx\.?|some|circa|ca\.?|close to|rund|etwa|~)"
    r"|(?P<above>over|more than|at least|above)"
    r"|(?P<below>nearly|almost|just under|under|less than|up to|at most|below))\s?[$€£]?\s?\Z"
)
_LENGTH = re.compile(
    r"(?i:\b(?:long|wide|tall|high|deep|thick|length|width|height|depth|distance|away|met(?:re|er)s?|km|diameter|radius"
    r"|altitude|elevation|above|below|sprint|swim|dive)\b)"
)
"""Pattern of the words of a text about a length."""
_NEAR = 60
"""Characters on each side of a number in metres in which words say what is measured."""
_MEANING = re.compile(r"[^\W\d_]{4,}")
_ROUNDING = Decimal("0.05")
"""Largest deviation of a rounded number, as a share of it."""
_MORE = Decimal("1.5")
"""How many times the number the amount may be in `more than 100`."""
_MIN_ROUNDED = 10
"""Least number that a source's number may be rounded to without a word that says so."""


class FigureIndex:
    """The figures of a source by their values, so that a look-up takes no time that grows with the source."""

    def __init__(self, texts: Iterable[str], label: str) -> None:
        """Index the figures of a source.

        Args:
            texts: The texts of the source.
            label: Its name, which is evidence for names with digits only.
        """
        texts = list(texts)
        figures: list[Figure] = []
        # Of each number: its units, and whether it stands without one.
        self._units: dict[tuple[Decimal, bool], set[Unit]] = defaultdict(set)
        self._bare: set[tuple[Decimal, bool]] = set()
        self._measured: dict[Decimal, set[str]] = defaultdict(set)
        # The amounts of one kind and sign, by size in the first unit of the kind.
        self._amounts: dict[tuple[str, bool], list[Fraction]] = defaultdict(list)
        for text in texts:
            for figure in extract_figures(text):
                figures.append(figure)
                if figure.kind == "number":
                    self._add_units(figure, text)
        for amounts in self._amounts.values():
            amounts.sort()
        dates = {date for figure in figures for date in figure.dates}
        # Each date with all that it supports: `31 January 2024` supports `January 2024` and `2024`.
        self._dates = {part for date in dates for part in _list_parts(date)}
        self._days = {part for date in dates if not date[0] for part in _list_parts(date)}
        # Each number with whether it is in per cent. The year of a date is evidence for a bare number, such as 2024.
        self._numbers = {(figure.value, figure.percent) for figure in figures if figure.kind == "number"}
        self._numbers |= {(figure.other, False) for figure in figures if figure.other}
        self._numbers |= {(Decimal(year), False) for year, _, _ in dates if year}
        # The numbers of one sign, by size, for what is rounded.
        self._sizes: dict[tuple[bool, bool], list[Decimal]] = defaultdict(list)
        for number, percent in self._numbers:
            if number.is_normal():
                self._sizes[percent, number.is_signed()].append(abs(number))
        for sizes in self._sizes.values():
            sizes.sort()
        self._names = "\n".join(figure.name for figure in (*figures, *extract_figures(label)))
        # Where each segment of a name starts.
        self._segments: dict[str, list[int]] = defaultdict(list)
        for match in re.finditer(r"\x1f([^\x1f\n]+)", self._names):
            self._segments[match[1]].append(match.start())
        self._other_names = {
            name for name, pattern in _OTHER_NAMES.items() if any(pattern.search(text) for text in texts)
        }
        self._quarters = {
            _QUARTERS.get(match[1].lower(), 0) if match[1] else int(match[2] or match[3])
            for text in texts
            for match in _QUARTER_IN_WORDS.finditer(text)
        }

    def has(self, figure: Figure, text: str = "") -> bool:
        """Return whether the source has a figure, or what it is rounded from.

        `12 %` matches 12 and 0.12, too, and the other way round; `5.4 t` matches 5,400 kg.

        Args:
            figure: The figure.
            text: The text in which it stands; empty: it is compared as it is.
        """
        if (figure.name and self._has_name(figure.name)) or self.has_converted(figure, text):
            return True
        if figure.kind == "date":
            return any(each in self._dates or self._has_day(each) for each in figure.dates)
        if figure.kind == "name":
            return False
        if figure.other:
            in_millions = figure._replace(value=figure.other)
            return bool(self._find_numbers(in_millions, text)) or self._has_metres(figure, text)
        if self._find_numbers(figure, text):
            return True
        match = _QUARTER_IN_WORDS.search(text, figure.start, figure.end + len(" quarter"))
        return bool(match and match[1] and _QUARTERS[match[1].lower()] in self._quarters)

    def units_of(self, figure: Figure, text: str) -> set[Unit]:
        """Return the units in which the source gives a number, or what it is rounded from."""
        return {unit for number in self._find_numbers(figure, text) for unit in self._units.get(number, ())}

    def has_converted(self, figure: Figure, text: str) -> bool:
        """Return whether the source has an amount in any unit that its own converts into, or what it is rounded from.

        The digits that the text states say how exact it is: `5.40 t` is more exact than `5.4 t`, and 5,400 kg is exact
        unless a word such as `about` says that it is rounded.

        Args:
            figure: The figure.
            text: The text in which it stands.
        """
        measures = _read_measures(figure, text)
        # `5.2m` is a length only where the text says so.
        is_apart = text[figure.number_end : figure.number_end + 1].isspace()
        if not measures or (figure.other and not is_apart and not _LENGTH.search(text)):
            return False
        bounds = _list_bounds(figure, text, _stated_quantum(figure, text))
        for kind, size in measures:
            least, most = (Fraction(bound) * size for bound in bounds)
            amounts = self._amounts.get((kind, figure.value.is_signed()), [])
            at = bisect_left(amounts, least)
            if at < len(amounts) and amounts[at] <= most:
                return True
        return False

    def _add_units(self, figure: Figure, text: str) -> None:
        """Record the units of a number, and the words around one in metres."""
        number = (figure.value, figure.percent)
        units, end = read_units(text, figure.start, figure.number_end, percent=figure.percent)
        self._units[number] |= units
        if not units:
            self._bare.add(number)
        for kind, size in _read_measures(figure, text):
            self._amounts[kind, figure.value.is_signed()].append(abs(Fraction(figure.value)) * size)
        if METRE in units:
            around = text[max(0, figure.start - _NEAR) : end + _NEAR]
            self._measured[figure.value].update(_MEANING.findall(around.lower()))

    def _has_metres(self, figure: Figure, text: str) -> bool:
        """Return whether the source has a number with a bare `m` as it is: without a unit, or as the same length."""
        numbers = self._find_numbers(figure, text)
        if any(number in self._bare for number in numbers):
            return True
        # A unit is set apart from its number, a million rarely is; another length has another unit.
        if text[figure.number_end : figure.number_end + 1].isspace():
            return any(unit.dimension == METRE.dimension for number in numbers for unit in self._units[number])
        words = {word for number in numbers if METRE in self._units[number] for word in self._measured[number[0]]}
        is_length = not text or bool(_LENGTH.search(text))
        return bool(words) and (is_length or not words.isdisjoint(_MEANING.findall(text.lower())))

    def _find_numbers(self, figure: Figure, text: str) -> list[tuple[Decimal, bool]]:
        """Return the source's numbers that support a number, each with whether it is in per cent."""
        as_other = (EXACT.scaleb(figure.value, -2 if figure.percent else 2), not figure.percent)
        same = [(figure.value, True), (figure.value, False), as_other]
        found = [number for number in same if number in self._numbers]
        return found or ([*self._find_rounded(figure, text)] if text else [])

    def _has_day(self, date: Date) -> bool:
        """Return whether the source has a date without a year, and its year elsewhere: `17 August` may be of 2022."""
        year, month, day = date
        return bool(year) and (Decimal(year or 0), False) in self._numbers and (None, month, day) in self._days

    def _has_name(self, name: str) -> bool:
        """Return whether the source has a name with digits, or another name of it (`fourth quarter` for `Q4`)."""
        first, _, _ = name.strip("\x1f").partition("\x1f")
        if any(self._names.startswith(name, at) for at in self._segments.get(first, ())):
            return True
        if match := _QUARTER.fullmatch(first):
            return int(match[1] or match[2]) in self._quarters
        return name in self._other_names

    def _find_rounded(self, figure: Figure, text: str) -> Iterator[tuple[Decimal, bool]]:
        """Yield the numbers that the text gives rounded, or as a bound (`more than 100`)."""
        value = abs(figure.value)
        if not value.is_normal():
            return
        hedge = _find_hedge(figure, text)
        quantum = Decimal(1).scaleb(_exponent(value))
        is_bound = bool(hedge) and not (hedge and hedge["about"])
        least, most = _list_bounds(figure, text, quantum)
        is_scaled = figure.other == figure.value or text[figure.start : figure.end].strip("0123456789.,%- ") != ""
        is_rough = bool(hedge) or is_scaled or (value >= _MIN_ROUNDED and quantum <= 1)
        sizes = self._sizes.get((figure.percent, figure.value.is_signed()), [])
        for number in sizes[bisect_left(sizes, least) : bisect_right(sizes, most)] if is_rough else ():
            if is_bound or _exponent(number) < _exponent(value):
                yield number.copy_sign(figure.value), figure.percent


def _find_hedge(figure: Figure, text: str) -> re.Match[str] | None:
    """Return the words before a number that say that it is rounded, or a bound."""
    return _HEDGE.search(text[max(0, figure.start - 20) : figure.start])


def _list_bounds(figure: Figure, text: str, quantum: Decimal) -> tuple[Decimal, Decimal]:
    """Return the least and the most, without their sign, that a text may mean by a number.

    Args:
        figure: The number.
        text: The text in which it stands.
        quantum: The value of one in its last digit.
    """
    value, hedge = abs(figure.value), _find_hedge(figure, text)
    if hedge and hedge["above"]:
        return value, EXACT.multiply(value, _MORE)
    if hedge and hedge["below"]:
        return EXACT.divide(value, _MORE), value
    distance = min(quantum / 2, EXACT.multiply(value, _ROUNDING))
    return EXACT.subtract(value, distance), EXACT.add(value, distance)


def _stated_quantum(figure: Figure, text: str) -> Decimal:
    """Return the value of one in the last digit that a text states; zeros at the end of a rounded number are none."""
    is_scaled = bool(text[figure.start : figure.number_end].strip(f"0123456789.,{_GROUPS} "))
    if figure.value and (is_scaled or _find_hedge(figure, text)):
        return Decimal(1).scaleb(max(_exponent(figure.value), int(figure.value.as_tuple().exponent)))
    return Decimal(1).scaleb(int(figure.value.as_tuple().exponent))


def _read_measures(figure: Figure, text: str) -> list[Measure]:
    """Return what a number measures, if its unit converts into others; an ordinal measures nothing: `the fifth day`."""
    if not figure.number_end or not text:
        return []
    [*_, last] = re.split(r"[\s-]", text[figure.start : figure.number_end].lower())
    return [] if last in _ORDINALS else read_measures(text, figure.start, figure.number_end)


def _list_parts(date: Date) -> Iterator[Date]:
    """Yield a date and the less exact ones that it supports."""
    year, month, day = date
    yield from product((year, None), (month, None), (day, None))


def is_quarter(figure: Figure, text: str) -> bool:
    """Return whether a figure of a text is that of a quarter: `Q4`, or the first word of `third quarter`."""
    return bool(_QUARTER_IN_WORDS.match(text, figure.start))


def _exponent(value: Decimal) -> int:
    """Return the exponent of the last digit of a number that isn't 0."""
    return int(value.normalize(EXACT).as_tuple().exponent)
