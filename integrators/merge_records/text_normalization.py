"""Normalize text for the comparison of identities.

Only spellings that cannot distinguish two things are made equal:

- Unicode compatibility forms, case, white space, quotation marks and dashes, invisible characters;
- a number with unambiguously grouped digits: "1,000,000", "1,000.50", or grouped by a no-break space (but not
  "1,000", where the comma may be a decimal one, nor "12 345", which may be two numbers);
- a date with a single reading: "1 May 2024", "May 1st, 2024", "2024/5/1", "13/04/2024"
  (but not "03/04/2024");
- a quantity (see `normalize_quantity`): "10 km", "10000 m".

The last three apply only if they are the whole text. Accents, other punctuation, the sign of a number and
its decimals ("1.1" and "1.10" may be versions) remain significant.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue


# SI prefixes: symbol -> (name, power of ten). The symbol "" is the unit without a prefix.
_DECIMAL: dict[str, tuple[str, int]] = {
    "n": ("nano", -9),
    "µ": ("micro", -6),
    "m": ("milli", -3),
    "c": ("centi", -2),
    "d": ("deci", -1),
    "": ("", 0),
    "h": ("hecto", 2),
    "k": ("kilo", 3),
    "M": ("mega", 6),
    "G": ("giga", 9),
    "T": ("tera", 12),
}


# IEC prefixes: symbol -> (name, power of 1024).
_BINARY = {"Ki": ("kibi", 1), "Mi": ("mebi", 2), "Gi": ("gibi", 3), "Ti": ("tebi", 4)}


# Prefixes in use with the litre, whose symbol is both "l" and "L".
_LITRE_PREFIXES = ("µ", "m", "c", "d", "", "h")
# Units that take prefixes: symbol, names, and the prefixes in use.
_PREFIXED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("m", ("metre", "meter"), ("n", "µ", "m", "c", "d", "", "k")),
    ("g", ("gram", "gramme"), ("n", "µ", "m", "", "k")),
    ("l", ("litre", "liter"), _LITRE_PREFIXES),
    ("s", ("second",), ("n", "µ", "m", "")),
    ("Hz", ("hertz",), ("", "k", "M", "G", "T")),
    ("W", ("watt",), ("m", "", "k", "M", "G", "T")),
    ("Wh", ("watt-hour", "watt hour"), ("", "k", "M", "G", "T")),
    ("V", ("volt",), ("m", "", "k")),
    ("J", ("joule",), ("", "k", "M", "G")),
    ("Pa", ("pascal",), ("", "h", "k", "M")),
    ("B", ("byte",), ("", "k", "M", "G", "T")),
)


# Units without prefixes: name -> (base unit, factor).
_PLAIN = {
    "t": ("g", 10**6),
    "tonne": ("g", 10**6),
    "min": ("s", 60),
    "minute": ("s", 60),
    "h": ("s", 3600),
    "hour": ("s", 3600),
}


_CASE_SENSITIVE = ("B",)  # "kb" means kilobits as often as kilobytes
_DIGITS = 120  # sufficient for 30 digits before the point, 30 behind it, and any factor


_NUMBER = r"[-+]?\d{1,30}(?:\.\d{1,30})?"


_QUANTITY = re.compile(rf"({_NUMBER}) ?([^\W\d_]+(?:[- ]hours?)?)")


def _build_units() -> dict[str, tuple[str, Fraction]]:
    """Return all units by symbol and by name, in singular and plural: the base unit and the exact factor."""
    units = {name: (base, Fraction(factor)) for name, (base, factor) in _PLAIN.items()}
    for base, names, prefixes in _PREFIXED:
        for prefix in prefixes:
            word, power = _DECIMAL[prefix]
            for name in (prefix + base, *(word + name for name in names)):
                units[name] = (base, Fraction(10) ** power)
    for prefix in _LITRE_PREFIXES:
        units[prefix + "L"] = units[prefix + "l"]
    for prefix, (word, power) in _BINARY.items():
        units[prefix + "B"] = units[word + "byte"] = ("B", Fraction(1024) ** power)
    plural = {name + "s": unit for name, unit in units.items() if len(name) > 3}  # noqa: PLR2004 -- names, not symbols
    return {**units, **plural}


_UNITS = _build_units()


_FOLDED: dict[str, set[tuple[str, Fraction]]] = {}
"""Units by case-folded name, for names in any case."""

for _name, _unit in _UNITS.items():
    if _unit[0] not in _CASE_SENSITIVE or len(_name) > 3:  # noqa: PLR2004 -- as above
        _FOLDED.setdefault(_name.casefold(), set()).add(_unit)


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
    value = Fraction(match[1]) * unit[1]
    # Every factor is an integer or a product of twos and fives, so the division is exact.
    decimal = Context(prec=_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{decimal:f} {unit[0]}"


_CAPITALS = {"KG": "kg", "KM": "km"}
MIN_UNIT_NAME_LENGTH = 3
"""Minimum length of a unit's name that means the same in any case."""


def _find_unit(name: str) -> tuple[str, Fraction] | None:
    if name in _UNITS:
        return _UNITS[name]
    if len(name) < MIN_UNIT_NAME_LENGTH:  # for short symbols, case is significant: `mm` and `Mm`, `t` and `T`
        return _UNITS.get(_CAPITALS.get(name, ""))
    candidates = _FOLDED.get(name.casefold(), set())
    return next(iter(candidates)) if len(candidates) == 1 else None


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


_LONGEST = 80


_MONTHS = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]


_MONTH = "|".join((*_MONTHS, *(f"{name[:3]}[.]?" for name in _MONTHS), "sept[.]?"))


_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<y>\d{4})([-/.])(?P<m>\d{1,2})\2(?P<d>\d{1,2})",
        rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: |-| of )(?P<m>{_MONTH}),?[ -](?P<y>\d{{4}})",
        rf"(?P<m>{_MONTH}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}})",
        r"(?P<d>\d{1,2})([-/.])(?P<m>\d{1,2})\2(?P<y>\d{4})",
    )
)


def normalize_value(value: JsonValue) -> JsonValue:
    r"""Return a value in the form in which identities are compared.

    Example:
        >>> tuple(map(normalize_value, ("  The  Straße\n", "1 May 2024", "1,000,000", "10 km")))
        ('the strasse', '2024-05-01', '1000000', '10000 m')
        >>> normalize_value("03/04/2024"), normalize_value("1,000"), normalize_value("C++"), normalize_value("1.10")
        ('03/04/2024', '1,000', 'c++', '1.10')
    """
    if isinstance(value, str):
        return _normalize_cached(value) if len(value) <= _LONGEST else _normalize_text(value)
    if isinstance(value, list):
        return [normalize_value(part) for part in value]
    if isinstance(value, dict):
        return {name: normalize_value(part) for name, part in value.items()}
    return value


def normalize_date(text: str) -> str | None:
    """Return a date as ISO 8601, or None if a (case-folded) text is no date, or an ambiguous one.

    Example:
        >>> tuple(map(normalize_date, ("may 1st, 2024", "13/04/2024", "03/04/2024", "30 february 2024")))
        ('2024-05-01', '2024-04-13', None, None)
    """
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            year, month, number = match["y"], match["m"], match["d"]
            is_name = month[:3].isalpha()
            ambiguous = pattern is _DATES[-1]
            first = (
                _MONTHS.index(next(name for name in _MONTHS if name[:3] == month[:3])) + 1 if is_name else int(month)
            )
            readings = {(first, int(number)), *([(int(number), first)] if ambiguous else [])}
            dates = {parsed for reading in readings if (parsed := _to_iso_date(int(year), *reading))}
            return dates.pop() if len(dates) == 1 else None
    return None


@lru_cache(maxsize=1 << 17)
def _normalize_cached(text: str) -> str:
    """Return a short text normalized; cached, because a merge and its audit normalize each text five times."""
    return _normalize_text(text)


def _normalize_text(text: str) -> str:
    """Return a text normalized: as a date, a quantity or a number if all of it is one, else case-folded."""
    # 1. Fast path: for ASCII text without digits, which most names are, nothing else applies.
    if text.isascii() and not _DIGIT.search(text):
        return " ".join(text.replace("`", "'").casefold().split())
    # 2. Unify Unicode forms, white space and equivalent characters.
    spaced = " ".join(_NO_BREAK.sub("", _VULGAR.sub(" ", _RAISED.sub("^", text))).split())
    cased = " ".join(unicodedata.normalize("NFKC", spaced).translate(_EQUIVALENTS).split())
    folded = unicodedata.normalize("NFKC", cased.casefold())
    if len(folded) > _LONGEST or not any(map(str.isdigit, folded)):
        return folded
    # 3. Use the canonical form of a date, a quantity or a number.
    plain = remove_digit_grouping(cased)
    if canonical := normalize_date(folded) or normalize_quantity(plain):
        return canonical
    # "5 M" is not "5 m": a text that is a quantity only after case folding keeps its case.
    if (folded != cased and normalize_quantity(remove_digit_grouping(folded))) or (
        plain[-1:].isdigit() and plain != cased
    ):
        return plain
    return folded


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
    return match[1] + match[2].replace(",", "") + (match[3] or "") + text[match.end() :]


def _to_iso_date(year: int, month: int, number: int) -> str | None:
    """Return a date as ISO 8601, or None if there is no such day."""
    try:
        return date(year, month, number).isoformat()
    except ValueError:
        return None
