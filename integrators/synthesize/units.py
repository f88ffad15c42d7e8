"""Units of figures, read so that two units of one dimension can be distinguished.

A unit follows its number (`5 mg`, `5-day`, `five calendar weeks`, `5 percentage points`), or is a currency before it
(`€5`). Different names of one unit, such as `km` and `kilometres`, are equal.

`read_measures` converts an amount for a comparison, such as `5.4 t` and `5,400 kg`. It knows only units whose ratio is
defined exactly, and that have one meaning: no currencies (a rate changes), no temperatures (they have different zeros),
no gallons, pints and kilocalories (there are several), and no months in days. `ton` is read as `tonne`, `kB` as 1000
bytes and `KiB` as 1024.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    "area": "m² m2 sqm square-metre square-meter square-metres square-meters"
    "|km² km2 square-kilometre square-kilometer square-kilometres square-kilometers"
    "|ha hectare hectares hektar|acre acres",
    "mass": "µg μg mcg microgram micrograms|mg milligram milligrams|g gram grams gramm|kg kilogram kilograms kilo kilos"
    "|t tonne tonnes ton tons|lb lbs pound pounds|oz ounce ounces",
    "volume": "ml mL millilitre milliliter millilitres milliliters|cl|l L litre liter litres liters"
    "|m³ m3 cubic-metre cubic-meter cubic-metres cubic-meters|gallon gallons|pint pints",
    "data": "byte bytes|kB KB kb kilobyte kilobytes|MB mb megabyte megabytes|GB gb gigabyte gigabytes"
    "|TB tb terabyte terabytes|PB petabyte petabytes|KiB kibibyte kibibytes|MiB mebibyte mebibytes"
    "|GiB gibibyte gibibytes|TiB tebibyte tebibytes|PiB pebibyte pebibytes",
    "power": "W watt watts|kW kilowatt kilowatts|MW megawatt megawatts|GW gigawatt gigawatts|TW terawatt terawatts",
    "energy": "Wh watt-hour watt-hours|kWh kilowatt-hour kilowatt-hours|MWh megawatt-hour megawatt-hours"
    "|GWh gigawatt-hour gigawatt-hours|TWh terawatt-hour terawatt-hours|joule joules|kJ kilojoule kilojoules"
    "|MJ megajoule megajoules|GJ gigajoule gigajoules|kcal",
    "temperature": "°C celsius|°F fahrenheit",
    "frequency": "Hz hertz|kHz|MHz|GHz",
    "speed": "km/h kmh kph|mph|m/s",
}
_UNITS: dict[str, list[Unit]] = {}
for _dimension, _units in _NAMES.items():
    for _names in _units.split("|"):
        for _name in _names.split():
            _UNITS.setdefault(_name.replace("-", " "), []).append(Unit(_dimension, _names.split()[0].replace("-", " ")))

# Of each kind of units that convert into each other: how many of the first each is. Months have no fixed days.
_SIZES = {
    "mass": "kg 1|µg 0.000000001|mg 0.000001|g 0.001|t 1000|lb 0.45359237|oz 0.028349523125",
    "length": "m 1|mm 0.001|cm 0.01|km 1000|mi 1609.344|ft 0.3048|inch 0.0254|yd 0.9144",
    "time": "s 1|ms 0.001|min 60|h 3600|day 86400|week 604800",
    "months": "month 1|year 12|decade 120|century 1200",
    "area": "m² 1|km² 1000000|ha 10000|acre 4046.8564224",
    "volume": "l 1|ml 0.001|cl 0.01|m³ 1000",
    "data": "byte 1|kB 1000|MB 1000000|GB 1000000000|TB 1000000000000|PB 1000000000000000"
    "|KiB 1024|MiB 1048576|GiB 1073741824|TiB 1099511627776|PiB 1125899906842624",
    "power": "W 1|kW 1000|MW 1000000|GW 1000000000|TW 1000000000000",
    "energy": "joule 1|kJ 1000|MJ 1000000|GJ 1000000000|Wh 3600|kWh 3600000|MWh 3600000000|GWh 3600000000000"
    "|TWh 3600000000000000",
}


class Measure(NamedTuple):
    """What a unit measures, and its size."""

    kind: str
    """Units of one kind convert into each other."""
    size: Fraction
    """How many of the first unit of its kind it is."""


_MEASURES = {
    Unit("time" if _kind == "months" else _kind, _name): Measure(_kind, Fraction(_size))
    for _kind, _sizes in _SIZES.items()
    for _name, _size in (each.split() for each in _sizes.split("|"))
}
_RATES = frozenset({"hourly", "daily", "weekly", "monthly", "yearly", "annual", "annually"})
"""Names of units that say how often: twelve monthly payments are not one annual payment."""

METRE = Unit("length", "m")
"""The unit that `m` stands for; it may mean a million, too."""
_PERCENT = Unit("share", "%")
_MIN_WORD = 3
"""Least length of a name whose case doesn't count."""
_BY_LENGTH = sorted(_UNITS, key=len, reverse=True)


def _any_of(names: Iterable[str]) -> str:
    """Return the pattern of any of some names; their words may be joined by spaces or a hyphen."""
    return "|".join(r"(?:\s+|-)".join(map(re.escape, name.split())) for name in names)


_ANY_CASE = _any_of(
    name
    for name in _BY_LENGTH
    if re.fullmatch(r"[^\W\d_ ]+(?: [^\W\d_ ]+)*", name) and name.islower() and len(name) >= _MIN_WORD
)
_GAP = r"(?:[\s*_`]|&nbsp;|-){0,3}"
_NAME = rf"(?P<name>{_any_of(_BY_LENGTH)}|(?i:{_ANY_CASE}))(?![\w²³/°])"
_AFTER = re.compile(rf"{_GAP}(?:{_NAME})")
_AFTER_A_WORD = re.compile(
    rf"(?:\s+|-)(?!(?i:square|cubic)\b)[A-Za-z]{{2,20}}(?:\s+|-)(?P<name>(?i:{_ANY_CASE}))(?![\w/])"
)
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
        units.update(_find_units(after["name"]))
        end = after.end()
    return frozenset(units), end


def read_measures(text: str, start: int, end: int) -> list[Measure]:
    """Return what a number measures, if its unit converts into others; more than one if its name is ambiguous.

    Only a unit right after its number counts: `5 nautical miles` are no miles, and `5 working days` are no 120 hours.

    Args:
        text: The text.
        start: Offset where the number starts.
        end: Offset where its digits, words and scale end.

    Example:
        >>> read_measures("It is 5 kilometres.", 6, 7), read_measures("It is 5 dollars.", 6, 7)
        ([Measure(kind='length', size=Fraction(1000, 1))], [])
    """
    after = _AFTER.match(text, end)
    # `1990s` and `the 90s` are no seconds.
    if not after or after["name"].lower() in _RATES or after[0] == "s" or find_currency(text, start) < start:
        return []
    return [_MEASURES[unit] for unit in _find_units(after["name"]) if unit in _MEASURES]


def _find_units(name: str) -> list[Unit]:
    """Return the units of a name as it is written."""
    name = " ".join(name.replace("-", " ").split())
    return _UNITS.get(name) or _UNITS[name.lower()]
