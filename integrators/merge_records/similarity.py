"""Normal form and similarity of the texts that identify records.

`normalize_value` makes only those spellings equal that cannot distinguish two things:

- Unicode compatibility forms, case, white space, quotation marks and dashes, invisible characters;
- a number with unambiguously grouped digits: "1,000,000", "1,000.50", or grouped by a no-break space (but not
  "1,000", where the comma may be a decimal one, nor "12 345", which may be two numbers);
- a date with a single reading: "1 May 2024", "May 1st, 2024", "2024/5/1", "13/04/2024"
  (but not "03/04/2024");
- a quantity (see `normalize_quantity`): "10 km", "10000 m".

The last three apply only if they are the whole text. Accents, other punctuation, the sign of a number and
its decimals ("1.1" and "1.10" may be versions) remain significant.

`compare_texts` is looser: accents and punctuation are ignored, digits ungrouped ("1,000" is one thousand),
"Smith, John" is read as "John Smith". However similar, texts are not a certain match if

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
from collections import defaultdict
from datetime import date
from decimal import Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from pydantic import ConfigDict, Field, model_validator
from rapidfuzz.distance import OSA

from prefect_dispatch.integrators.merge_records.field_rules import FieldPath
from prefect_dispatch.models.base import Strict
from prefect_dispatch.serialization.json_values import content_text, value_order

if TYPE_CHECKING:
    from collections.abc import Container

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.serialization.json_values import Order


# Normal form: quantities.

_PREFIXES = {
    "": ("", "1"),
    "n": ("nano", "1e-9"),
    "µ": ("micro", "1e-6"),
    "m": ("milli", "1e-3"),
    "c": ("centi", "1e-2"),
    "d": ("deci", "1e-1"),
    "h": ("hecto", "1e2"),
    "k": ("kilo", "1e3"),
    "M": ("mega", "1e6"),
    "G": ("giga", "1e9"),
    "T": ("tera", "1e12"),
    "Ki": ("kibi", "1024"),
    "Mi": ("mebi", "1048576"),
    "Gi": ("gibi", "1073741824"),
    "Ti": ("tebi", "1099511627776"),
}
"""The name and the factor of each prefix of a unit; no prefix has the factor 1."""
_UNIT_FAMILIES = (
    ("m", "metre, meter", "n µ m c d k"),
    ("g", "gram, gramme", "n µ m k"),
    ("l", "litre, liter", "µ m c d h"),
    ("L", "", "µ m c d h"),
    ("s", "second", "n µ m"),
    ("Hz", "hertz", "k M G T"),
    ("W", "watt", "m k M G T"),
    ("Wh", "watt-hour, watt hour", "k M G T"),
    ("V", "volt", "m k"),
    ("J", "joule", "k M G"),
    ("Pa", "pascal", "h k M"),
    ("B", "byte", "k M G T Ki Mi Gi Ti"),
)
"""Units that take prefixes: the symbol, the names, and the prefixes in use."""
_OTHER_UNITS = {
    "t": ("g", Decimal(1_000_000)),
    "tonne": ("g", Decimal(1_000_000)),
    "min": ("s", Decimal(60)),
    "minute": ("s", Decimal(60)),
    "h": ("s", Decimal(3600)),
    "hour": ("s", Decimal(3600)),
}
_CAPITALS = {"KG": "kg", "KM": "km"}
MIN_UNIT_NAME_LENGTH = 3
"""Minimum length of a unit's name that means the same in any case."""
_QUANTITY = re.compile(r"([-+]?\d{1,30}(?:\.\d{1,30})?) ?([^\W\d_]+(?:[- ]hours?)?)")
_EXACT = Context(prec=120)  # digits: sufficient for 30 before the point, 30 behind it, and any factor


def _build_units() -> dict[str, tuple[str, Decimal]]:
    """Return all units by symbol and by name, in singular and plural: the base unit and the factor."""
    units = dict(_OTHER_UNITS)
    for symbol, names, prefixes in _UNIT_FAMILIES:
        base = "l" if symbol == "L" else symbol  # the litre has two symbols
        for prefix in ("", *prefixes.split()):
            word, factor = _PREFIXES[prefix]
            for name in (prefix + symbol, *(word + name for name in names.split(", ") if name)):
                units[name] = (base, Decimal(factor))
    plural = {name + "s": unit for name, unit in units.items() if len(name) > MIN_UNIT_NAME_LENGTH}  # no symbols
    return {**units, **plural}


_UNITS = _build_units()
_FOLDED_UNITS: dict[str, set[tuple[str, Decimal]]] = defaultdict(set)
"""Units by case-folded name, for names in any case."""
for _name, _unit in _UNITS.items():
    if _unit[0] != "B" or len(_name) > MIN_UNIT_NAME_LENGTH:  # "kb" means kilobits as often as kilobytes
        _FOLDED_UNITS[_name.casefold()].add(_unit)


def normalize_quantity(text: str) -> str | None:
    """Return a quantity in base units, the same text for equal quantities, or None if a text is no number with a unit.

    The case of a unit is significant: "5 mW" and "5 MW" differ. A unit in the wrong case counts
    only if it can mean a single unit ("10 KM").

    Example:
        >>> tuple(map(normalize_quantity, ("10 km", "10000 metres", "1.5 h", "5 C")))
        ('10000 m', '10000 m', '5400 s', None)
    """
    match = _QUANTITY.fullmatch(text.replace("\N{GREEK SMALL LETTER MU}", "µ"))
    unit = _find_unit(match[2]) if match else None
    if match is None or unit is None:
        return None
    value = _EXACT.fma(Decimal(match[1]), unit[1], 0)  # adding 0 makes -0 equal to 0
    return f"{_EXACT.normalize(value):f} {unit[0]}"


def _find_unit(name: str) -> tuple[str, Decimal] | None:
    if name in _UNITS:
        return _UNITS[name]
    if len(name) < MIN_UNIT_NAME_LENGTH:  # for short symbols, case is significant: `mm` and `Mm`, `t` and `T`
        return _UNITS.get(_CAPITALS.get(name, ""))
    candidates = _FOLDED_UNITS.get(name.casefold(), ())
    return next(iter(candidates)) if len(candidates) == 1 else None


# Normal form: dates.

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = "|".join((*_MONTHS, *(f"{name[:3]}[.]?" for name in _MONTHS), "sept[.]?"))
_MONTH_NUMBERS = {name[:3]: number for number, name in enumerate(_MONTHS, 1)}
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<y>\d{4})([-/.])(?P<m>\d{1,2})\2(?P<d>\d{1,2})",
        rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: |-| of )(?P<m>{_MONTH}),?[ -](?P<y>\d{{4}})",
        rf"(?P<m>{_MONTH}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}})",
        r"(?P<d>\d{1,2})([-/.])(?P<m>\d{1,2})\2(?P<y>\d{4})",
    )
)
"""Patterns of dates; in the last one, month and day may be in either order."""


def normalize_date(text: str) -> str | None:
    """Return a date as ISO 8601, or None if a (case-folded) text is no date, or an ambiguous one.

    Example:
        >>> tuple(map(normalize_date, ("may 1st, 2024", "13/04/2024", "03/04/2024", "30 february 2024")))
        ('2024-05-01', '2024-04-13', None, None)
    """
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            month = _MONTH_NUMBERS.get(match["m"][:3]) or int(match["m"])
            readings = [(month, int(match["d"]))]
            if pattern is _DATES[-1]:
                readings.append((int(match["d"]), month))
            dates = {parsed for reading in readings if (parsed := _to_iso_date(int(match["y"]), *reading))}
            return dates.pop() if len(dates) == 1 else None
    return None


def _to_iso_date(year: int, month: int, day: int) -> str | None:
    """Return a date as ISO 8601, or None if there is no such day."""
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return None


# Normal form: texts.

_EQUIVALENTS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u2060\ufeff", ""),
    }
)
# Superscripts and fractions are separated first: NFKC would turn "10²" into 102 and "5½" into 51/2.
_RAISED = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_NO_BREAK = re.compile(r"(?<=\d)[\u00a0\u2009\u202f'\u2019](?=\d{3}(?!\d))")
_GROUPED = re.compile(r"([-+]?[1-9]\d{0,2})((?:,\d{3})+)(\.\d+)?(?=$| ?[^\W\d_]+$)")
_DIGIT = re.compile(r"\d")
_LONGEST_QUANTITY = 80  # characters


def normalize_value(value: JsonValue) -> JsonValue:
    r"""Return a value in the form in which identities are compared.

    Example:
        >>> tuple(map(normalize_value, ("  The  Straße\n", "1 May 2024", "1,000,000", "10 km")))
        ('the strasse', '2024-05-01', '1000000', '10000 m')
        >>> normalize_value("03/04/2024"), normalize_value("1,000"), normalize_value("C++"), normalize_value("1.10")
        ('03/04/2024', '1,000', 'c++', '1.10')
    """
    if isinstance(value, str):
        return _normalize_cached(value) if len(value) <= _LONGEST_QUANTITY else _normalize_text(value)
    if isinstance(value, list):
        return [normalize_value(part) for part in value]
    if isinstance(value, dict):
        return {name: normalize_value(part) for name, part in value.items()}
    return value


def _normalize_text(text: str) -> str:
    """Return a text normalized: as a date, a quantity or a number if all of it is one, else case-folded."""
    # 1. Fast path: for ASCII text without digits, which most names are, nothing else applies.
    if text.isascii() and not _DIGIT.search(text):
        return " ".join(text.replace("`", "'").casefold().split())
    # 2. Unify Unicode forms, white space and equivalent characters.
    spaced = " ".join(_NO_BREAK.sub("", _VULGAR.sub(" ", _RAISED.sub("^", text))).split())
    cased = " ".join(unicodedata.normalize("NFKC", spaced).translate(_EQUIVALENTS).split())
    folded = unicodedata.normalize("NFKC", cased.casefold())
    if len(folded) > _LONGEST_QUANTITY or not any(map(str.isdigit, folded)):
        return folded
    # 3. Use the canonical form of a date, a quantity or a number.
    plain = remove_digit_grouping(cased)
    if canonical := normalize_date(folded) or normalize_quantity(plain):
        return canonical
    # "5 M" is not "5 m": a text that is a quantity only after case folding keeps its case.
    is_number = plain[-1:].isdigit() and plain != cased
    return plain if is_number or normalize_quantity(remove_digit_grouping(folded)) else folded


_normalize_cached = lru_cache(maxsize=1 << 17)(_normalize_text)
"""A merge and its audit normalize each text five times."""


def remove_digit_grouping(text: str, *, least: int = 2) -> str:
    """Return a number, alone or with a unit, without the commas that group its digits.

    Args:
        text: Any text; a text that is no such number is returned unchanged.
        least: Minimum number of groups, unless decimals show that the comma groups digits.

    Example:
        >>> tuple(map(remove_digit_grouping, ("1,000,000 m", "1,000.50", "1,000")))
        ('1000000 m', '1000.50', '1,000')
        >>> remove_digit_grouping("1,000", least=1)
        '1000'
    """
    match = _GROUPED.match(text)
    if match is None or (match[2].count(",") < least and not match[3]):
        return text
    return match[0].replace(",", "") + text[match.end() :]


# Similarity.

MIN_TYPO_LENGTH = 5
"""Minimum length of words whose difference of one letter counts as a typo."""
LOOSE_EQUALITY_SCORE = 0.99
"""Similarity of texts that differ only in accents, punctuation and the like; 1 is for equal texts."""
ABBREVIATION_SCORE = 0.9
"""Similarity of a word and its abbreviation."""
INITIAL_SCORE = 0.6
"""Similarity of a word and its first letter."""
MOST_LETTERS = 2_000
"""Maximum number of letters of a text that is split into words: a longer one is no name."""
MOST_TOKENS = 40
"""Maximum number of tokens of texts that are compared word by word."""
_NUMBER_WEIGHT = 8  # minimum weight of a number, in letters
_REORDERED = 0.97  # similarity of texts whose words are only reordered or joined
_LATIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})
_ACCENT = re.compile(r"(?<=[a-z\u0370-\u03ff])[\u0300-\u036f]+")
_ACRONYM = re.compile(r"(?<![^\W\d_])([^\W\d_])\.(?=[^\W\d_](?:\.|\b))")
_SPACED = re.compile(r"[-+]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?(?: ?[^\W\d_]+)?")
_GAP = re.compile(r"(?<=\d) (?=\d)")
_COMMAS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_ISO_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
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


_EVEN = 0.5  # probability of what is as probable as not


class Matching(Strict):
    """Thresholds for matching records whose identities are spelled differently."""

    model_config = ConfigDict(title="Matching")

    sure: float = Field(default=0.95, gt=0, le=1)
    """Records at least so similar are merged, unless a number, a symbol or a whole word differs."""
    propose: float = Field(default=0.85, gt=0, le=1)
    """Records at least so similar, but no certain match, are proposed in the report and kept apart. With a `model`, 0.5
    by default: those that are rather the same than not."""
    fields: tuple[FieldPath, ...] = ()
    """Fields compared in addition to the identity, such as a place or a date: agreement is evidence, and records that
    contradict each other in one are never merged without a decision; a missing value doesn't count."""
    model: Literal["learned"] | None = None
    """`learned`: how much agreement in each field says is learned from the records, without labels. The thresholds are
    probabilities then, an equal identity is evidence like all else, a part of it suffices, and all fields are compared
    unless `fields` names some."""

    @model_validator(mode="before")
    @classmethod
    def _propose_by_probability(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        if given.get("model") is None or "propose" in given:
            return given
        sure = given.get("sure")
        return {**given, "propose": min(_EVEN, sure) if isinstance(sure, (int, float)) else _EVEN}

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.propose > self.sure:
            raise ValueError(f"'propose' ({self.propose}) is above 'sure' ({self.sure}); it must not be")
        return self


class ComparableText(NamedTuple):
    """Text prepared for comparison."""

    source: str
    """The normalized text."""
    tokens: tuple[str, ...]
    """Its words, numbers and symbols."""
    exact_tokens: tuple[str, ...]
    """The tokens that a match must have, too: numbers, symbols, single letters, Roman numerals."""

    @property
    def text(self) -> str:
        """The tokens, joined by spaces."""
        return " ".join(self.tokens)

    @property
    def sorted_text(self) -> str:
        """The sorted tokens, joined by spaces."""
        return " ".join(sorted(self.tokens))


class TextSimilarity(NamedTuple):
    """Similarity of two texts."""

    score: float
    """The similarity, from 0 to 1."""
    objection: str = ""
    """The difference that rules out a certain match, in words; empty if there is none."""


def prepare_value(value: JsonValue) -> ComparableText:
    """Return a value prepared for comparison."""
    return prepare_order(value_order(normalize_value(value)))


def prepare_order(order: Order) -> ComparableText:
    """Return a normalized value, given as its sort key, prepared for comparison.

    One that is neither text nor number is compared as a whole.
    """
    kind, number, text = order
    if kind == 0:
        return prepare_text(content_text(number))
    return prepare_text(text) if kind == 1 else ComparableText(text, (text,), (text,))


@lru_cache(maxsize=1 << 14)
def prepare_text(text: str) -> ComparableText:
    """Return a normalized text, prepared for comparison.

    Example:
        >>> prepare_text("smith-jones, zoë (u.s.a.)").text, prepare_text("sold 1,000 on 1 may 2024").text
        ('zoe usa smith jones', 'sold 1000 on 2024 05 01')
    """
    tokens = _tokenize(text) if len(text) <= MOST_LETTERS else ()
    if not tokens:  # long texts, and texts like "?!" and "...", can only be compared as a whole
        return ComparableText(text, (text,), (text,))
    return ComparableText(text, tokens, tuple(filter(_must_match_exactly, tokens)))


def _tokenize(text: str) -> tuple[str, ...]:
    """Return the words, numbers and symbols of a normalized text."""
    # 1. Remove accents, grouping of digits, dots of acronyms and apostrophes.
    loose = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text))).translate(_LATIN)
    has_digits = any(map(str.isdigit, loose))
    if has_digits:
        loose = _normalize_numbers(loose)
    loose = _ACRONYM.sub(r"\1", loose).replace("'", "").replace("&", " and ")
    # 2. Read "Smith, John" as "John Smith".
    last, comma, first = loose.partition(",")
    if comma and "," not in first and not has_digits:
        loose = f"{first} {last}"
    # 3. Split into tokens.
    return tuple(_TOKEN.findall(loose))


def _normalize_numbers(text: str) -> str:
    """Return a text with its numbers, quantities and dates in one form."""
    plain = _GAP.sub("", text) if _SPACED.fullmatch(text) else remove_digit_grouping(text, least=1)
    whole = normalize_quantity(plain) or normalize_date(plain) or plain
    dated = _DATE.sub(lambda match: normalize_date(match[0]) or match[0], whole)
    return _COMMAS.sub(lambda match: match[0].replace(",", ""), _ISO_DATE.sub(r"\1 \2 \3", dated))


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
        return TextSimilarity(1.0)
    if one.tokens == other.tokens:
        return TextSimilarity(LOOSE_EQUALITY_SCORE)
    agree = one.exact_tokens == other.exact_tokens
    objection = "" if agree else _describe_difference(one.exact_tokens, other.exact_tokens)
    if agree and one.sorted_text == other.sorted_text:
        return TextSimilarity(_REORDERED, "their words are in another order")
    # 2. Long texts: the edit distance of the texts.
    if max(len(one.tokens), len(other.tokens)) > MOST_TOKENS:
        score = OSA.normalized_similarity(one.text, other.text)
        return TextSimilarity(round(score, 4), objection or "they are too long to be compared word by word")
    # 3. Short texts: the better of an alignment word by word and, if all marks agree, the edit distance of the letters.
    aligned = _align_words(one, other, words)
    unspaced = OSA.normalized_similarity("".join(one.tokens), "".join(other.tokens)) if agree else 0.0
    if unspaced == 1.0:
        return TextSimilarity(_REORDERED)
    return TextSimilarity(round(max(aligned.score, unspaced), 4), objection or aligned.objection)


def _align_words(one: ComparableText, other: ComparableText, words: Container[str]) -> TextSimilarity:
    """Return the similarity of two texts word by word."""
    # 1. Pair equal tokens.
    left, right = list(one.tokens), list(other.tokens)
    total = sum(map(_weight, left + right))
    common = 0.0
    for token in one.tokens:
        if token in right:
            left.remove(token)
            right.remove(token)
            common += 2 * _weight(token)
    # 2. Pair the remaining tokens greedily, the most similar first.
    pairs = sorted((-_word_similarity(a, b), i, j) for i, a in enumerate(left) for j, b in enumerate(right))
    free_left, free_right = dict(enumerate(left)), dict(enumerate(right))
    objection = ""
    for score, i, j in pairs:
        if score < 0 and i in free_left and j in free_right:
            a, b = free_left.pop(i), free_right.pop(j)
            common += -score * (len(a) + len(b))
            if not objection and (not _is_typo(a, b) or (a in words and b in words)):
                objection = f"{a!r} may not be {b!r}"
    # 3. Tokens without a counterpart rule out a certain match, as does another order.
    if not objection and (unpaired := [*free_left.values(), *free_right.values()]):
        objection = f"{unpaired[0]!r} occurs in only one of them"
    if not objection and not all(a == b or _is_typo(a, b) for a, b in zip(one.tokens, other.tokens, strict=True)):
        objection = "their words are in another order"
    return TextSimilarity(common / total, objection)


def _weight(token: str) -> int:
    """Return the weight of a token, in letters; numbers weigh more, so that texts with different numbers score low."""
    return max(len(token), _NUMBER_WEIGHT) if token[-1:].isdigit() else len(token)


@lru_cache(maxsize=1 << 16)  # most comparisons are between common words
def _word_similarity(one: str, other: str) -> float:
    """Return the similarity of two different words; 0 for marks, which must be equal."""
    short, long = sorted((one, other), key=len)
    if not short.isalpha() or not long.isalpha() or (_must_match_exactly(short) and _must_match_exactly(long)):
        return 0.0
    if _is_abbreviation(short, long):
        return ABBREVIATION_SCORE if len(short) > 1 else INITIAL_SCORE
    return OSA.normalized_similarity(one, other, score_cutoff=0.5)  # less than half counts as another word


def _is_abbreviation(short: str, long: str) -> bool:
    """Return whether a word abbreviates another: its beginning, or its first, last and some other letters ("Intl")."""
    if len(short) > len(long) - 2:
        return False
    letters = iter(long)
    ends = short[0] == long[0] and short[-1] == long[-1] and len(short) * 2 <= len(long)
    return long.startswith(short) or (ends and all(letter in letters for letter in short))


def _is_typo(one: str, other: str) -> bool:
    """Return whether two words may differ by a typo: one edit, in alphabetic words that are long enough."""
    alphabetic = max(map(ord, one + other)) < _NO_ALPHABET
    return alphabetic and min(len(one), len(other)) >= MIN_TYPO_LENGTH and OSA.distance(one, other, score_cutoff=1) <= 1


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
