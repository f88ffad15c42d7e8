"""What records say about a field, and the built-in rules that decide between it.

Claims come without nulls, and in order of preference: higher priority of the brief first, then
of the item, then the record whose JSON text is the smaller one. So a rule that takes the first
of equals breaks every tie by content, never by arrival.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from pydantic import JsonValue, TypeAdapter, ValidationError

from prefect_dispatch.integrators.values import content, get, order
from prefect_dispatch.ledger import Ref  # noqa: TC001 -- a NamedTuple's annotations may be read at run time

Rank = tuple[int, int, str, int]


class Claim(NamedTuple):
    """What one record says about a field."""

    value: JsonValue
    """What it says; never null unless every record says so."""
    text: str
    """The same as text: equal for equal values."""
    source: Ref
    """The outcome that the record comes from."""
    record: JsonValue
    """The whole record."""
    rank: Rank
    """Its place in the order of preference, the smallest first."""


RuleFunction = Callable[[Sequence[Claim]], JsonValue]
"""A rule: takes one claim or more in order of preference, returns the JSON value that is to stand."""

_WHEN = TypeAdapter(datetime)
_YEAR = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
MONTHS = 12


def priority(claims: Sequence[Claim]) -> JsonValue:
    """Return what the brief, then the item, of the highest priority says."""
    return claims[0].value


def majority(claims: Sequence[Claim]) -> JsonValue:
    """Return what most outcomes say."""
    voters: dict[str, set[Ref]] = {}
    for claim in claims:
        voters.setdefault(claim.text, set()).add(claim.source)
    return max(claims, key=lambda claim: len(voters[claim.text])).value


def longest(claims: Sequence[Claim]) -> JsonValue:
    """Return the longest text; of a value that is no text its JSON counts."""
    return max(claims, key=lambda claim: len(claim.value if isinstance(claim.value, str) else claim.text)).value


def largest(claims: Sequence[Claim]) -> JsonValue:
    """Return the greatest value: numbers by size, below texts by code point, below the rest by its JSON."""
    return max(claims, key=lambda claim: order(claim.value)).value


def smallest(claims: Sequence[Claim]) -> JsonValue:
    """Return the least value, in the order of `largest`."""
    return min(claims, key=lambda claim: order(claim.value)).value


def union(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values, sorted; a list counts as its elements."""
    return sorted(_distinct(claims), key=order)


def keep_all(claims: Sequence[Claim]) -> JsonValue:
    """Return the distinct values in order of preference; a list counts as its elements."""
    return _distinct(claims)


def newest(by: str) -> RuleFunction:
    """Return the rule that takes what the newest record says.

    Args:
        by: Dotted path, in the record, of a date or time (ISO 8601, UTC unless it has an
            offset), of a year, of a year and month, or of seconds since 1970. Texts that are neither come before all
            dates, in order; records without it count only where none has it.
    """

    def rule(claims: Sequence[Claim]) -> JsonValue:
        return max(claims, key=lambda claim: _moment(get(claim.record, by.split(".")))).value

    return rule


def elements(value: JsonValue) -> list[JsonValue]:
    """Return what a value counts as where values are gathered: a list's elements, or itself."""
    return value if isinstance(value, list) else [value]


RULES: dict[str, RuleFunction] = {
    "priority": priority,
    "majority": majority,
    "trust": majority,
    "longest": longest,
    "max": largest,
    "min": smallest,
    "union": union,
    "keep_all": keep_all,
}


def _distinct(claims: Sequence[Claim]) -> list[JsonValue]:
    found: dict[str, JsonValue] = {}
    for claim in claims:
        for element in elements(claim.value):
            found.setdefault(content(element), element)
    return list(found.values())


def _moment(value: JsonValue) -> tuple[int, datetime, str]:
    never = datetime.min.replace(tzinfo=timezone.utc)
    if value is None or isinstance(value, bool):
        return (0, never, "")
    if (year := _YEAR.fullmatch(str(value))) and 1 <= int(year[2] or 1) <= MONTHS and int(year[1]):
        return (2, datetime(int(year[1]), int(year[2] or 1), 1, tzinfo=timezone.utc), "")
    try:
        when = _WHEN.validate_python(value)
    except ValidationError:
        return (1, never, value if isinstance(value, str) else content(value))
    return (2, when if when.tzinfo else when.replace(tzinfo=timezone.utc), "")
