"""What a reader calls a place in a merged value: by its JSON Pointer, a dotted path, its name, or its record."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_dispatch.inert import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow

NAMING = 80
"""A longer text is no name of a record."""


def tokens(path: str) -> list[str]:
    """Return the keys and indexes of a JSON Pointer.

    Example:
        >>> tokens("/records/0/a~1b")
        ['records', '0', 'a/b']
    """
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def dotted(path: str) -> str:
    """Return a JSON Pointer as a dotted path.

    Example:
        >>> dotted("/records/0/year")
        'records.0.year'
    """
    return ".".join(tokens(path))


def named(what: str, fields: Sequence[FieldRow], value: JsonValue) -> list[FieldRow]:
    """Return the rows that a reader means, in the order of the rows; those of the first reading that finds any.

    Args:
        what: A JSON Pointer, a dotted path, the name of a field, a record (any of its short values), or
            `record.field`. A place inside a field stands for the field, one above several for all of them.
        fields: Every row.
        value: The merged value.
    """
    path = what.removesuffix("/")
    readings: tuple[Callable[[FieldRow], bool], ...] = (
        lambda row: what in (row.path, dotted(row.path)),
        lambda row: path != "" and row.path.startswith(f"{path}/"),
        lambda row: dotted(row.path).startswith(f"{what}."),
        lambda row: f"{what}/".startswith(f"{row.path}/") or what.startswith(f"{dotted(row.path)}."),
        lambda row: tokens(row.path)[-1:] == [what],
    )
    for reading in readings:
        if found := [row for row in fields if reading(row)]:
            return found
    names = record_names(fields, value)
    return [row for row in fields if _of_record(what, row, names[_record(row)])]


def record_names(fields: Sequence[FieldRow], value: JsonValue) -> dict[tuple[str, ...], list[str]]:
    """Return what each record may be called: its short values, what it was called before a merge included."""
    names: dict[tuple[str, ...], list[str]] = {}
    for row in fields:
        if _record(row) not in names:
            entry = value
            for token in _record(row):
                entry = _step(entry, token)
            inner = entry.get("value") if isinstance(entry, dict) else None
            parts = [part for each in (entry, inner) if isinstance(each, dict) for part in each.values()]
            names[_record(row)] = list(_short(parts))
        names[_record(row)] += _short(loser.value for loser in row.losers)
    return names


def called(fields: Sequence[FieldRow], value: JsonValue) -> Iterator[str]:
    """Yield what rows may be called, for suggestions."""
    names = record_names(fields, value)
    for row in fields:
        yield row.path
        yield dotted(row.path)
        if inside := tokens(row.path)[2:]:
            yield from (f"{name}.{inside[-1]}" for name in names[_record(row)])


def _record(row: FieldRow) -> tuple[str, ...]:
    """Return where the record that a row is about stands: an entry of a list of the value."""
    return tuple(tokens(row.path)[:2])


def _short(values: Iterable[JsonValue]) -> Iterator[str]:
    for value in values:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and 0 < len(shown(value)) <= NAMING:
            yield shown(value)


def _of_record(what: str, row: FieldRow, names: Iterable[str]) -> bool:
    wanted, inside = _folded(what), tokens(row.path)[2:]
    tails = ["", *(f".{'.'.join(inside[at:])}" for at in range(len(inside)))]
    return any(wanted == _folded(f"{name}{tail}") for name in names for tail in tails)


def _step(value: JsonValue, token: str) -> JsonValue:
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and token.isdecimal() and len(token) < NAMING and int(token) < len(value):
        return value[int(token)]
    return None


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
