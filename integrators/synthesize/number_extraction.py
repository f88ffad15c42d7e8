"""Extraction of numbers and dates from prose, compared by value: `1,000` is 1000, `31 January 2024` is 2024-01-31.

A point is a decimal point (unless there are several); a comma before three digits is a thousands separator.
`1.2 million` is 1200000, `5 Mio.` and `50 lakh` are 5000000, `12 %` is 12 per cent, `minus five` is -5. Number
words are parsed in English only, month names in English and German. A word with digits in it, such as
`BSD-3-Clause` or `v1.2`, is a name and is compared letter by letter. Units are not compared, nor is `am` with
`pm`. Every pattern here runs in time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


# Numbers: digits, number words, signs, Roman numerals.

LETTERS = "A-Za-zÀ-ɏͰ-ϿЀ-ӿ"

GAP = r"(?:[\s*_`\u200b\u2060]|&nbsp;)"
"""Pattern of what may stand inside a quantity: white space of any kind, and Markdown emphasis."""

GROUPS = "'’\u00a0\u202f\u2009"  # noqa: RUF001 -- thousands separators besides comma, point and space

_MAX_DIGITS = 60
"""Longest number that is parsed, in digits; a longer one is compared as a word."""

# Of each way to write a number: its pattern, its thousands separators, its decimal separator.
_NUMBER_FORMS = (
    (re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"), ",", "."),
    (re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?"), ".", ","),
    (re.compile(rf"\d{{1,3}}(?:[{GROUPS} ]\d{{3}})+(?:[.,]\d+)?"), GROUPS + " ", ","),
    (re.compile(r"\d+(?:[.,]\d+)?"), "", ","),
)

_UNIT_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)

_STEMS = ("thir", "four", "fif", "six", "seven", "eigh", "nine")
_SMALL = {word: at for at, word in enumerate((*_UNIT_WORDS, *(f"{stem}teen" for stem in _STEMS)))}
_TENS = {f"{stem}ty": 10 * at for at, stem in enumerate(("twen", "thir", "for", *_STEMS[2:]), 2)}
_IRREGULAR_ORDINALS = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}

_ORDINALS = {
    **_IRREGULAR_ORDINALS,
    **{f"{word}th": at for word, at in _SMALL.items() if at > 3 and at not in _IRREGULAR_ORDINALS.values()},  # noqa: PLR2004 -- `fourth` on
    **{f"{word[:-1]}ieth": at for word, at in _TENS.items()},
}

_WORD_VALUES = {**_SMALL, **_TENS, **_ORDINALS}

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
"""Factor of each scale word that may follow a number; matched in any case, also with a plural s."""

_SCALE_WORDS = ("hundred", "thousand", "million", "billion", "trillion", "lakh", "crore", "dozen")
_NUMBER_WORD = "|".join(sorted((*_WORD_VALUES, *_SCALE_WORDS, "half"), key=len, reverse=True))
_JOINT = rf"(?:-|{GAP}{{1,9}}(?:and{GAP}{{1,9}})?(?:an?{GAP}{{1,9}})?)"

NUMBER_WORDS = rf"(?i:(?<![\w-])(?:{_NUMBER_WORD})\b(?:{_JOINT}(?:{_NUMBER_WORD})\b)*)"
"""Pattern of a run of number words, which may hold several numbers."""

_NEXT_WORD = re.compile(rf"(?i)(?:^|(?P<joint>{_JOINT}))(?P<word>{_NUMBER_WORD})\b")

# Words that are often no number: `one of them`, `first of all`, `half of it`.
_AMBIGUOUS_WORDS = frozenset({"one", "first", "second", "third", "half"})

_MAX_WORDS = 16
"""Longest number in words, in words."""

_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_FRACTIONS = "\u00bc-\u00be\u2150-\u215e\u2189"
_ENCLOSED = "\u2160-\u2182\u2185-\u2188\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3251-\u325f\u32b1-\u32bf"

NUMBER_SIGN = rf"\d{{0,9}}[ \u2009]?[{_FRACTIONS}]|[{_ENCLOSED}]|(?<=[\d{_SUPERSCRIPTS}])[{_SUPERSCRIPTS}]{{1,9}}"
"""Pattern of one character that is a number, with the digits before a fraction; superscripts after digits."""

# Greater numerals are too often ordinary words.
ROMAN = r"(?<![\w-])(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})(?![\w-])"
"""Pattern of a Roman numeral from 2 to 39 with at least two letters."""


class NumberInWords(NamedTuple):
    """A number in words, with its position in the run of number words."""

    start: int
    """Start offset in the run."""
    end: int
    """End offset in the run, exclusive."""
    value: Decimal
    """The number's value."""
    counts: bool
    """Whether it may be a count of things: no ordinal, no scale word such as `million`."""
    sure: bool
    """Whether it is certainly meant as a number; `one` alone is not."""


class _WordMatch(NamedTuple):
    """A number word, with its offsets in the run and the text that joins it to the word before."""

    word: str
    start: int
    end: int
    joint: str


def normalize_number_word(word: str) -> str:
    """Return a word in the spelling of the lookup tables.

    A pattern that ignores case also matches a dotless i for an i, so both are mapped to `i`.
    """
    return word.casefold().replace("\u0131", "i").replace("\u0307", "")


def parse_digits(text: str) -> Decimal | None:
    """Return the value of digits with separators, or None if they are no number.

    Example:
        >>> str(parse_digits("1,000.5")), parse_digits("1.2.3")
        ('1000.5', None)
    """
    if len(text) <= _MAX_DIGITS:
        for pattern, groups, point in _NUMBER_FORMS:
            if pattern.fullmatch(text):
                bare = "".join(character for character in text if character not in groups)
                return Decimal(bare.replace(point, "."))
    return None


def scale_exactly(value: Decimal, factor: int, power: int = 0) -> Decimal:
    """Return `value * factor * 10**power` exactly, however many digits it has."""
    sign, digits, exponent = value.as_tuple()
    product = int("".join(map(str, digits))) * factor
    return Decimal((sign, tuple(map(int, str(product))), int(exponent) + power))


def parse_number_sign(text: str) -> Decimal:
    """Return the value of a character that is a number: a fraction, an enclosed number, superscripts.

    Example:
        >>> [str(parse_number_sign(each)) for each in ("1½", "⑥", "²³")]
        ['1.5', '6', '23']
    """
    digits = unicodedata.normalize("NFKC", text)
    if digits.isdecimal():
        return Decimal(digits)
    return Decimal(text[:-1].strip() or 0) + Decimal(f"{unicodedata.numeric(text[-1]):.16g}")


def parse_roman_numeral(text: str) -> Decimal:
    """Return the value of a Roman numeral."""
    values = [{"I": 1, "V": 5, "X": 10}[each] for each in text]
    following = [*values[1:], 0]
    return Decimal(sum(-one if one < other else one for one, other in zip(values, following, strict=True)))


def parse_number_words(run: str) -> Iterator[NumberInWords]:
    """Yield the numbers in a run of number words.

    Example:
        >>> [int(each.value) for run in ("half a dozen", "two and three") for each in parse_number_words(run)]
        [6, 2, 3]
    """
    words = [
        _WordMatch(
            normalize_number_word(match["word"]), match.start("word"), match.end(), (match["joint"] or "").casefold()
        )
        for match in _NEXT_WORD.finditer(run)
    ]
    first = 0
    while first < len(words):
        last = first + 1
        while last < min(len(words), first + _MAX_WORDS) and _continues_number(words, last):
            last += 1
        number_words = [each.word for each in words[first:last]]
        counts = all(word in _SMALL or word in _TENS for word in number_words)
        sure = len(number_words) > 1 or number_words[0] not in _AMBIGUOUS_WORDS
        yield NumberInWords(words[first].start, words[last - 1].end, _value_of_words(number_words), counts, sure)
        first = last


def _continues_number(words: list[_WordMatch], at: int) -> bool:
    """Return whether the word at an index continues the number of the word before it."""
    previous, current = words[at - 1].word, words[at]
    together = "and" not in current.joint
    if previous in _ORDINALS:
        return False
    if current.word == "half":
        return not together and previous != "half"
    if current.word in SCALES:
        return together
    if previous in _TENS:
        return together and 0 < _WORD_VALUES[current.word] < 10  # noqa: PLR2004 -- a digit
    # A scale occurs once in a number: `one hundred and two hundred` are two numbers.
    following = words[at + 1].word if at + 1 < len(words) else ""
    return previous in SCALES and previous not in (following, "dozen")


def _value_of_words(number_words: list[str]) -> Decimal:
    """Return the value of the words of one number.

    Sums are kept doubled, so that a half is an integer; the last step halves the total exactly.
    """
    total = group = 0  # `group`: what is below the last scale word of 1000 or more
    previous = ""
    for word in number_words:
        scale = SCALES.get(word)
        if scale is None:
            group += 1 if word == "half" else 2 * _WORD_VALUES[word]
        elif scale <= 100:  # noqa: PLR2004 -- a dozen, a hundred
            group = (group or 2) * scale
        elif previous in SCALES and not group:
            total *= scale
        else:
            total, group = total + (group or 2) * scale, 0
        previous = word
    twice = total + group
    return scale_exactly(Decimal(twice), 5, -1) if twice % 2 else Decimal(twice // 2)


Date = tuple[int | None, int | None, int | None]
"""Year, month and day; None for each part that isn't given."""

# Dates: with a month's name, or of digits.
_MONTHS = {
    name: at
    for at, names in enumerate(
        ("jan", "feb", "mar mär", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt", "nov", "dec dez"), 1
    )
    for name in names.split()
}

_MONTH_NAMES = (
    "January|Januar|February|Februar|März|April|June|Juni|July|Juli|August|September|October|Oktober|November|"
    "December|Dezember"
)

_MONTH = (
    rf"(?:{_MONTH_NAMES}|March|May|Mai|Jan|Feb|Mar|Mär|Apr|Jun|Jul|Aug|Sept?|Oct|Okt|Nov|Dec|Dez)\b\.?(?![{LETTERS}])"
)

_SPACE = rf"{GAP}{{1,9}}"
_YEAR = rf"(?:,?{_SPACE}\d{{4}}(?!\d))"

MONTH_NAME_DATE = (
    rf"(?<![{LETTERS}\d])(?:\d{{1,2}}(?:st|nd|rd|th|\.)?(?:{_SPACE}of)?{_SPACE}{_MONTH}{_YEAR}?"
    rf"|{_MONTH}(?:{_SPACE}\d{{1,2}}(?:st|nd|rd|th)?(?!\d){_YEAR}?|{_YEAR})?)"
)
"""Pattern of a date with the name of a month, or of such a name alone."""

_UNAMBIGUOUS_DATE = re.compile(rf"{_MONTH_NAMES}|.*\d.*", re.DOTALL)
_YEAR_FIRST = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_YEAR_LAST = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})")
_MONTH_AND_YEAR = re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})|(?P<first>\d{1,2})/(?P<second>(?:19|20)\d{2})")


def parse_month_name_date(text: str) -> Date:
    """Return the date in a text that holds the name of a month.

    Example:
        >>> parse_month_name_date("3rd of March 2024"), parse_month_name_date("May")
        ((2024, 3, 3), (None, 5, None))
    """
    numbers = re.findall(r"\d+", text)
    year = next((int(number) for number in numbers if len(number) == 4), None)  # noqa: PLR2004 -- digits of a year
    day = next((int(number) for number in numbers if len(number) < 3), None)  # noqa: PLR2004 -- digits of a day
    name = next(part[:3].casefold() for part in re.findall(r"[^\W\d_]{3,}", text) if part[:3].casefold() in _MONTHS)
    return (year, _MONTHS[name], day)


def is_unambiguous_date(text: str, start: int, end: int) -> bool:
    """Return whether a match with a month's name is certainly a date.

    A short name at the start of a sentence, such as `May` or `Jan`, may be another word.
    """
    return bool(_UNAMBIGUOUS_DATE.fullmatch(text, start, end)) or bool(
        re.search(r"[a-z,]\s$", text[max(0, start - 2) : start])
    )


def parse_numeric_date(word: str) -> tuple[Date, ...]:
    """Return the dates that a word of digits may stand for, day first before month first; empty if there is none.

    Example:
        >>> parse_numeric_date("2024-01"), parse_numeric_date("5/6/2024"), parse_numeric_date("2024-13-31")
        (((2024, 1, None),), ((2024, 6, 5), (2024, 5, 6)), ())
    """
    if match := _YEAR_FIRST.fullmatch(word):
        year, month, day = map(int, match.groups())
        return _dates_in_range((year, month, day))
    if match := _YEAR_LAST.fullmatch(word):
        one, other, year = map(int, match.groups())
        return (*_dates_in_range((year, other, one)), *_dates_in_range((year, one, other)))
    if match := _MONTH_AND_YEAR.fullmatch(word):
        return _dates_in_range((int(match["year"] or match["second"]), int(match["month"] or match["first"]), None))
    return ()


def _dates_in_range(date: tuple[int, int, int | None]) -> tuple[Date, ...]:
    """Return the date in a tuple, or nothing if month or day are out of range."""
    return (date,) if 1 <= date[1] <= 12 and (date[2] is None or 1 <= date[2] <= 31) else ()  # noqa: PLR2004 -- a calendar


def supports_date(claim: Date, evidence: Date) -> bool:
    """Return whether the evidence has every part that the claimed date gives.

    Example:
        >>> supports_date((2024, 1, None), (2024, 1, 31)), supports_date((2024, 1, 31), (2024, 1, None))
        (True, False)
    """
    return all(part is None or part == other for part, other in zip(claim, evidence, strict=True))


# Figures: the tokens of a text.

_SPACED = r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\d\w])"
_WORD = rf"[{LETTERS}\d]+(?:(?:[-_./:+]|(?<=\d)[,{GROUPS}](?=\d))[{LETTERS}\d]+)*"

_TOKEN = re.compile(
    rf"(?P<date>{MONTH_NAME_DATE})|(?P<sign>{NUMBER_SIGN})|(?P<spaced>{_SPACED})|(?P<spelled>{NUMBER_WORDS})|(?P<roman>{ROMAN})"
    rf"|(?P<word>{_WORD})"
)

_SCALE = "|".join(sorted(SCALES.keys() - {"k"}, key=len, reverse=True))

_SUFFIX = re.compile(
    rf"(?i)(?:{GAP}{{0,9}}|-)(?:(?P<percent>%|‰|(?:percent|per{GAP}{{1,9}}cent|pct|prozent)\b)"
    rf"|(?P<scale>(?:{_SCALE})(?:s\b|\b|(?<=[千万萬億亿兆]))|(?-i:k)\b))"
)

_QUANTITY = re.compile(rf"(?P<number>\d[\d.,{GROUPS}]*?)(?:-?(?P<unit>[{LETTERS}]+)|-[{LETTERS}-]+)")
_MAGNITUDES = {"K": 3, "M": 6, "B": 9}
_SCIENTIFIC = re.compile(r"\d{1,40}(?:[.,]\d{1,40})?[eE][-+]?\d{1,3}")
_TIMESTAMP = re.compile(r"([\d/.-]+)T([\d:.+-]+)Z?")
_MINUS_BEFORE = re.compile(rf"(?:^|[ \t\n(=:\[~\x00])[-−]\Z|(?i:(?<![\w-])(?<!\d )(?:minus|negative){GAP}{{1,9}})\Z")  # noqa: RUF001 -- a minus
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n])\s*\Z")


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
    counts: bool = False
    """Whether it is a bare whole number, and so may be a count of answers."""
    sure: bool = True
    """Whether it is certainly a figure. An uncertain one serves as evidence, but requires none."""


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
        yield Figure(
            "date", start, end, dates=(parse_month_name_date(match[0]),), sure=is_unambiguous_date(text, start, end)
        )
    elif match["sign"]:
        yield _figure_with_suffix(text, start, end, parse_number_sign(match[0]), whole=False)
    elif match["spaced"]:
        yield _figure_with_suffix(text, start, end, parse_digits(match[0]) or Decimal(0), whole=True)
    elif match["spelled"]:
        yield from _figures_of_number_words(text, start, match[0])
    elif match["roman"]:
        yield Figure("number", start, end, parse_roman_numeral(match[0]), name=join_segments(match[0]))
    elif any(map(str.isdecimal, match[0])):
        yield from _figures_of_word(text, start, match[0])


def _figures_of_number_words(text: str, start: int, run: str) -> Iterator[Figure]:
    """Yield the figures of a run of number words that starts at an offset of the text."""
    for each in parse_number_words(run):
        first, last = start + each.start, start + each.end
        # `Fourth, …` at the start of a sentence enumerates statements; it is no number in one.
        enumerates = text[last - 2 : last + 1] == "th," and _SENTENCE_START.search(text[max(0, first - 9) : first])
        figure = _figure_with_suffix(text, first, last, each.value, whole=each.counts)
        yield figure._replace(sure=not enumerates and (each.sure or figure.end > last))


def _figures_of_word(text: str, start: int, word: str) -> Iterator[Figure]:
    """Yield the figures of a word with digits: a date, a time stamp, a number with or without a unit, or a name."""
    end = start + len(word)
    if found := parse_numeric_date(word):
        yield Figure("date", start, end, dates=found)
        # `2010-12` may be a range of years, too.
        yield from (each._replace(sure=False) for each in _figures_of_digits(text, start, word) if found[0][2] is None)
    elif (stamp := _TIMESTAMP.fullmatch(word)) and parse_numeric_date(stamp[1]):
        yield from _figures_of_word(text, start, stamp[1])
        for each in _figures_of_digits(text, start + stamp.start(2), stamp[2]):
            yield each._replace(sure=each.value != 0)
    elif _SCIENTIFIC.fullmatch(word):
        value = Decimal(word.replace(",", "."))
        yield Figure("number", start, end, _apply_minus(text, start, value), name=join_segments(word))
    elif (quantity := _QUANTITY.fullmatch(word)) and (bare := parse_digits(quantity["number"])) is not None:
        last = start + quantity.end("number")
        figure = _figure_with_suffix(
            text, start, last, scale_exactly(bare, 1, _MAGNITUDES.get(quantity["unit"] or "", 0)), whole=False
        )
        yield figure if figure.end > last else figure._replace(end=end, name=join_segments(word))
    elif any(character.isalpha() for character in word):
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
            yield _figure_with_suffix(text, first, last, value, whole=part[0].isdecimal())


def _figure_with_suffix(text: str, start: int, end: int, value: Decimal, *, whole: bool) -> Figure:
    """Return the figure of a number, including the percent sign or scale words after it (`hundred thousand`).

    Args:
        text: The text.
        start: Offset where the number starts.
        end: Offset where its digits or words end.
        value: Its value without sign and scales.
        whole: Whether it may be a count of answers, if no scale or percent sign follows.
    """
    last, percent = end, False
    # At most three suffixes follow a number: two scales and a percent sign.
    for _ in range(3):
        if percent or not (after := _SUFFIX.match(text, last)):
            break
        if after["scale"]:
            name = normalize_number_word(after["scale"])
            value = scale_exactly(value, SCALES.get(name) or SCALES[name.removesuffix("s")])
        else:
            percent = True
            value = scale_exactly(value, 1, -1) if after["percent"] == "‰" else value
        last = after.end()
    return Figure("number", start, last, _apply_minus(text, start, value), percent, counts=whole and last == end)


def _apply_minus(text: str, start: int, value: Decimal) -> Decimal:
    """Return the value negated if a minus sign, `minus` or `negative` precedes it."""
    return value.copy_negate() if value and _MINUS_BEFORE.search(text[max(0, start - 20) : start]) else value


def join_segments(word: str) -> str:
    r"""Return the segments of a name, each between separators, so that a substring search matches whole segments.

    Example:
        >>> join_segments("GPL-2.0")
        '\x1fgpl\x1f2.0\x1f'
    """
    parts = re.split(r"[-_/:+]|(?<!\d)\.|\.(?!\d)", word.casefold())
    return "\x1f" + "\x1f".join(filter(None, parts)) + "\x1f"
