"""Quantities: a number with a unit, as the same text however it is written.

A table of our own rather than a library's: equal quantities are fused without asking, and a
library for physics also reads "5 C" (degrees? coulombs?), "2 pt" (points? pints?) and "3 a"
(a year?). Here stand only units that mean one thing in whatever text they are found.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction

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
_LITRE = ("µ", "m", "c", "d", "", "h")
_BINARY = {"Ki": ("kibi", 1), "Mi": ("mebi", 2), "Gi": ("gibi", 3), "Ti": ("tebi", 4)}
_PREFIXED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("m", ("metre", "meter"), ("n", "µ", "m", "c", "d", "", "k")),
    ("g", ("gram", "gramme"), ("n", "µ", "m", "", "k")),
    ("l", ("litre", "liter"), _LITRE),
    ("s", ("second",), ("n", "µ", "m", "")),
    ("Hz", ("hertz",), ("", "k", "M", "G", "T")),
    ("W", ("watt",), ("m", "", "k", "M", "G", "T")),
    ("Wh", ("watt-hour", "watt hour"), ("", "k", "M", "G", "T")),
    ("V", ("volt",), ("m", "", "k")),
    ("J", ("joule",), ("", "k", "M", "G")),
    ("Pa", ("pascal",), ("", "h", "k", "M")),
    ("B", ("byte",), ("", "k", "M", "G", "T")),
)
_PLAIN = {
    "t": ("g", 10**6),
    "tonne": ("g", 10**6),
    "min": ("s", 60),
    "minute": ("s", 60),
    "h": ("s", 3600),
    "hour": ("s", 3600),
}
_CASE_TELLS = ("B",)  # kb are kilobits as often as kilobytes
_DIGITS = 120  # more than 30 before the point, 30 behind it, and any factor can need
_NUMBER = r"[-+]?\d{1,30}(?:\.\d{1,30})?"
_QUANTITY = re.compile(rf"({_NUMBER}) ?([^\W\d_]+(?:[- ]hours?)?)")


def _table() -> dict[str, tuple[str, Fraction]]:
    found = {name: (base, Fraction(factor)) for name, (base, factor) in _PLAIN.items()}
    for base, names, prefixes in _PREFIXED:
        for prefix in prefixes:
            word, power = _DECIMAL[prefix]
            for name in (prefix + base, *(word + name for name in names)):
                found[name] = (base, Fraction(10) ** power)
    for prefix in _LITRE:
        found[prefix + "L"] = found[prefix + "l"]  # the SI has both symbols of the litre
    for prefix, (word, power) in _BINARY.items():
        found[prefix + "B"] = found[word + "byte"] = ("B", Fraction(1024) ** power)
    plural = {name + "s": unit for name, unit in found.items() if len(name) > 3}  # noqa: PLR2004 -- a word, no symbol
    return {**found, **plural}


_UNITS = _table()
_FOLDED: dict[str, set[tuple[str, Fraction]]] = {}
for _name, _unit in _UNITS.items():
    if _unit[0] not in _CASE_TELLS or len(_name) > 3:  # noqa: PLR2004 -- the same
        _FOLDED.setdefault(_name.casefold(), set()).add(_unit)


def quantity(text: str) -> str | None:
    """Return the text that equal quantities share, or None if a text is no number with a unit.

    The case of a unit tells: "5 mW" and "5 MW" differ, and what is written in the wrong case
    counts only where it can mean one unit ("10 KM").

    Example:
        >>> quantity("10 km"), quantity("10000 metres"), quantity("1.5 h"), quantity("5 C")
        ('10000 m', '10000 m', '5400 s', None)
    """
    match = _QUANTITY.fullmatch(text.replace("\N{GREEK SMALL LETTER MU}", "µ"))
    unit = _unit_named(match[2]) if match else None
    if match is None or unit is None:
        return None
    value = Fraction(match[1]) * unit[1]
    # Every factor is whole, or a product of twos and fives: nothing is rounded.
    decimal = Context(prec=_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{decimal:f} {unit[0]}"


_CAPITALS = {"KG": "kg", "KM": "km"}
SPELT_OUT = 3
"""Letters from which a unit's name means the same in capitals."""


def _unit_named(name: str) -> tuple[str, Fraction] | None:
    if name in _UNITS:
        return _UNITS[name]
    if len(name) < SPELT_OUT:  # `mm` and `Mm`, `t` and `T` are different units
        return _UNITS.get(_CAPITALS.get(name, ""))
    meant = _FOLDED.get(name.casefold(), set())
    return next(iter(meant)) if len(meant) == 1 else None
