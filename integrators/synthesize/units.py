"""Units of figures, read so that two units of one dimension can be distinguished.

A unit follows its number (`5 mg`, `5-day`, `five calendar weeks`, `5 percentage points`), or is a currency before it
(`€5`). Different names of one unit, such as `km` and `kilometres`, are equal; units are not converted.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit."""

    dimension: str
    """What it measures: two units of one dimension are different units."""
    name: str
    """Its first name in the list below."""


# Of each dimension: units with all their names. Names of one or two letters, and those with capitals, keep their case.
_NAMES = {
    "share": "%|percentage-point percentage-points percent-point percent-points pp ppt prozentpunkt prozentpunkte"
    "|basis-point basis-points bp bps basispunkte",
    "time": "ms millisecond milliseconds|s sec secs second seconds sekunde sekunden"
    "|min mins minute minutes minuten|h hr hrs hour hours hourly stunde stunden|day days daily tag tage tagen"
    "|week weeks weekly woche wochen|month months monthly monat monate monaten"
    "|year years yearly annual annually jahr jahre jahren|decade decades|century centuries",
    "currency": "$ dollar dollars USD US$|€ euro euros EUR|£ pound pounds GBP|CHF franc francs|¥ yen JPY"
    "|₹ rupee rupees INR|cent cents",
    "length": "mm millimetre millimeter millimetres millimeters|cm centimetre centimeter centimetres centimeters"
    "|m metre meter metres meters|km kilometre kilometer kilometres kilometers|mi mile miles|ft foot feet|inch inches"
    "|yd yard yards",
    "area": "m² sqm|km²|ha hectare hectares hektar|acre acres",
    "mass": "µg μg mcg microgram micrograms|mg milligram milligrams|g gram grams gramm|kg kilogram kilograms kilo kilos"
    "|t tonne tonnes ton tons|lb lbs pound pounds|oz ounce ounces",
    "volume": "ml millilitre milliliter millilitres milliliters|cl|l litre liter litres liters|m³|gallon gallons"
    "|pint pints",
    "data": "kB KB kb kilobyte kilobytes|MB mb megabyte megabytes|GB gb gigabyte gigabytes|TB tb terabyte terabytes",
    "power": "W watt watts|kW kilowatt kilowatts|MW megawatt megawatts|GW gigawatt gigawatts|TW terawatt terawatts",
    "energy": "Wh|kWh|MWh|GWh|TWh|kJ kilojoule kilojoules|MJ megajoule megajoules|kcal",
    "temperature": "°C celsius|°F fahrenheit",
    "frequency": "Hz hertz|kHz|MHz|GHz",
    "speed": "km/h kmh kph|mph|m/s",
}
_UNITS: dict[str, list[Unit]] = {}
for _dimension, _units in _NAMES.items():
    for _names in _units.split("|"):
        for _name in _names.split():
            _UNITS.setdefault(_name.replace("-", " "), []).append(Unit(_dimension, _names.split()[0].replace("-", " ")))

METRE = Unit("length", "m")
"""The unit that `m` stands for; it may mean a million, too."""
_PERCENT = Unit("share", "%")
_MIN_WORD = 3
"""Least length of a name whose case doesn't count."""
_EXACT = sorted((re.escape(name) for name in _UNITS), key=len, reverse=True)
_ANY_CASE = [name for name in _EXACT if name.isalpha() and name.islower() and len(name) >= _MIN_WORD]
_GAP = r"(?:[\s*_`]|&nbsp;|-){0,3}"
_NAME = rf"(?P<name>{'|'.join(_EXACT)}|(?i:{'|'.join(_ANY_CASE)}|percent(?:age)?\s+points?))(?![\w²³/°])"
_AFTER = re.compile(rf"{_GAP}(?:{_NAME})")
_AFTER_A_WORD = re.compile(rf"(?:\s+|-)[A-Za-z]{{2,20}}(?:\s+|-)(?P<name>(?i:{'|'.join(_ANY_CASE)}))(?![\w/])")
_CURRENCY_BEFORE = re.compile(r"(?P<name>US\$|[$€£¥₹]|(?<![A-Za-z])(?:USD|EUR|GBP|CHF|JPY|INR))\s?[-−]?\Z")  # noqa: RUF001 -- a minus
_LONGEST_BEFORE = 6


def find_currency(text: str, start: int) -> int:
    """Return the offset of the currency before a number that starts at an offset; that offset if there is none.

    Example:
        >>> find_currency("It is $5.", 7), find_currency("It is 5.", 6)
        (6, 6)
    """
    first = max(0, start - _LONGEST_BEFORE)
    before = _CURRENCY_BEFORE.search(text[first:start])
    return first + before.start() if before else start


def read_units(text: str, start: int, end: int, *, percent: bool = False) -> tuple[frozenset[Unit], int]:
    """Return the units that a number may have, and the offset where the number ends with its unit.

    Args:
        text: The text.
        start: Offset where the number starts.
        end: Offset where its digits, words and scale end.
        percent: Whether it is in per cent.

    Example:
        >>> read_units("It is 5 kilometres.", 6, 7)
        (frozenset({Unit(dimension='length', name='km')}), 18)
    """
    if percent:
        return frozenset({_PERCENT}), end
    units: set[Unit] = set()
    if before := _CURRENCY_BEFORE.search(text[max(0, start - _LONGEST_BEFORE) : start]):
        units.update(_UNITS[before["name"]])
    if after := _AFTER.match(text, end) or _AFTER_A_WORD.match(text, end):
        name = " ".join(after["name"].split())
        units.update(_UNITS.get(name) or _UNITS[name.lower()])
        end = after.end()
    return frozenset(units), end
