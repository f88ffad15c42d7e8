"""What two texts have to share to be the same without anybody being asked.

Only spelling that never tells two things apart is made equal:

- Unicode's compatible forms, case, white space, quotation marks and dashes, invisible characters;
- a number with digits grouped beyond doubt: "1,000,000", "1,000.50", or by a no-break space (but not
  "1,000", which may be one, nor "12 345", which may be two numbers);
- a date that can be read in one way only: "1 May 2024", "May 1st, 2024", "2024/5/1", "13/04/2024"
  (but not "03/04/2024");
- a quantity (see `quantities`): "10 km", "10000 m".

The latter three only where they are the whole text. Accents, other punctuation, the sign of a number and
its decimals ("1.1", "1.10": may be versions) all make a difference.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.records.quantities import quantity

if TYPE_CHECKING:
    from pydantic import JsonValue

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u2060\ufeff", ""),
    }
)
# Compatible forms would make "10²" 102 and "5½" 51/2.
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


def comparable(value: JsonValue) -> JsonValue:
    r"""Return a value as identities are compared.

    Example:
        >>> comparable("  The  Straße\n"), comparable("1 May 2024"), comparable("1,000,000"), comparable("10 km")
        ('the strasse', '2024-05-01', '1000000', '10000 m')
        >>> comparable("03/04/2024"), comparable("1,000"), comparable("C++"), comparable("1.10")
        ('03/04/2024', '1,000', 'c++', '1.10')
    """
    if isinstance(value, str):
        return _short(value) if len(value) <= _LONGEST else _text(value)
    if isinstance(value, list):
        return [comparable(part) for part in value]
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()}
    return value


def day(text: str) -> str | None:
    """Return a date as ISO 8601, or None if a (case folded) text is none, or may be another.

    Example:
        >>> day("may 1st, 2024"), day("13/04/2024"), day("03/04/2024"), day("30 february 2024")
        ('2024-05-01', '2024-04-13', None, None)
    """
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            year, month, number = match["y"], match["m"], match["d"]
            named = month[:3].isalpha()
            either_way = pattern is _DATES[-1]
            first = _MONTHS.index(next(name for name in _MONTHS if name[:3] == month[:3])) + 1 if named else int(month)
            readings = {(first, int(number)), *([(int(number), first)] if either_way else [])}
            found = {made for reading in readings if (made := _date(int(year), *reading))}
            return found.pop() if len(found) == 1 else None
    return None


@lru_cache(maxsize=1 << 17)
def _short(text: str) -> str:
    """Return what a text is compared as; a merge and its audit ask five times."""
    return _text(text)


def _text(text: str) -> str:
    if text.isascii() and not _DIGIT.search(text):  # nothing else can apply to most names
        return " ".join(text.replace("`", "'").casefold().split())
    spaced = " ".join(_NO_BREAK.sub("", _VULGAR.sub(" ", _RAISED.sub("^", text))).split())
    cased = " ".join(unicodedata.normalize("NFKC", spaced).translate(_ALIKE).split())
    folded = unicodedata.normalize("NFKC", cased.casefold())
    if len(folded) > _LONGEST or not any(map(str.isdigit, folded)):
        return folded
    plain = ungrouped(cased)
    if found := day(folded) or quantity(plain):
        return found
    # "5 M" is not "5 m": where only its case keeps a text from being a quantity, the case is kept.
    if (folded != cased and quantity(ungrouped(folded))) or (plain[-1:].isdigit() and plain != cased):
        return plain
    return folded


def ungrouped(text: str, *, least: int = 2) -> str:
    """Return a text that is a number, or one with a unit, without the commas that group its digits.

    Args:
        text: Any text; what is no such number is returned as it is.
        least: How many groups there must be, unless decimals show that the comma is none.

    Example:
        >>> ungrouped("1,000,000 m"), ungrouped("1,000.50"), ungrouped("1,000"), ungrouped("1,000", least=1)
        ('1000000 m', '1000.50', '1,000', '1000')
    """
    match = _GROUPED.match(text)
    if match is None or (match[2].count(",") < least and not match[3]):
        return text
    return match[1] + match[2].replace(",", "") + (match[3] or "") + text[match.end() :]


def _date(year: int, month: int, number: int) -> str | None:
    try:
        return date(year, month, number).isoformat()
    except ValueError:
        return None
