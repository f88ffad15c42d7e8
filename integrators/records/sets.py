"""Lists merged as sets: elements that are the same are one, and have fields of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from prefect_dispatch.integrators.records.normalising import comparable
from prefect_dispatch.integrators.values import Order, get, order, silent

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rulebook import Path, Rulebook

Key = tuple[int, tuple[Order, ...]]
_SAME, _ALONE = 0, 1


def element_key(value: JsonValue, identity: Sequence[Path]) -> tuple[Order, ...] | None:
    """Return what elements of the same identity share, or None if an element has none.

    Example:
        >>> element_key({"name": "Ada "}, [("name",)]) == element_key({"name": "ada", "born": 1815}, [("name",)])
        True
        >>> element_key("et al.", [("name",)])
    """
    named = [comparable(get(value, path)) for path in identity]
    if any(silent(each) or each in ("", []) for each in named):
        return None
    return tuple(map(order, named))


class Group(NamedTuple):
    """Elements that are one."""

    same: bool
    """Whether they have an identity; else they are equal."""
    members: list[int]
    """Their places among those that were grouped."""


def grouped(values: Sequence[JsonValue], identity: Sequence[Path], *, ordered: bool) -> list[Group]:
    """Return which elements are one.

    Args:
        values: The elements, in order of preference.
        identity: What makes them the same; without it, equal ones are.
        ordered: Whether groups come in order of identity, then of what has none; else in order of preference.
    """
    found: dict[Key, list[int]] = {}
    for at, value in enumerate(values):
        key = element_key(value, identity)
        place: Key = (_ALONE, (order(value),)) if key is None else (_SAME, key)
        found.setdefault(place, []).append(at)
    return [Group(place[0] == _SAME, found[place]) for place in (sorted(found) if ordered else found)]


def split(record: JsonValue, book: Rulebook) -> list[tuple[Hashable, JsonValue]]:
    """Return a record without its elements that have an identity, and each of these, with the scope that it is in.

    The record's own scope is `()`; an element's names the lists and the identities on the way to it.
    """
    splitting = _Splitting(book)
    whole = splitting.walk(record, (), ())
    return [((), whole), *splitting.found]


class _Splitting:
    """One record on its way; no functions within functions, whose cycle would keep all that was found."""

    def __init__(self, book: Rulebook) -> None:
        self._book = book
        self.found: list[tuple[Hashable, JsonValue]] = []

    def walk(self, value: JsonValue, path: Path, scope: tuple[Hashable, ...]) -> JsonValue:
        if identity := self._book.elements(path):
            return [left for each in _listed(value) for left in self._outside(each, identity, path, scope)]
        if isinstance(value, dict):
            return self._fields(value, path, scope)
        return value

    def _fields(self, value: dict[str, JsonValue], path: Path, scope: tuple[Hashable, ...]) -> dict[str, JsonValue]:
        left = {name: self.walk(part, (*path, name), scope) for name, part in value.items()}
        # A list of which all elements went their own way says nothing by itself; an empty one says that there are none.
        return {name: part for name, part in left.items() if part != [] or value[name] == []}

    def _outside(
        self, value: JsonValue, identity: Sequence[Path], path: Path, scope: tuple[Hashable, ...]
    ) -> list[JsonValue]:
        key = element_key(value, identity)
        if key is None:
            return [value]
        inner = (*scope, (path, key))
        self.found.append((inner, self._fields(cast("dict[str, JsonValue]", value), path, inner)))
        return []


class Place(NamedTuple):
    """Where in a merged record something stands."""

    scope: Hashable
    """Its scope, as `split` names it."""
    is_set: bool
    """Whether it is a list that is merged as a set, so that its elements are in scopes of their own."""


def locate(record: JsonValue, tokens: Iterable[str], book: Rulebook) -> Place:
    """Return where keys and indices into a merged record lead to."""
    path: Path = ()
    scope: tuple[Hashable, ...] = ()
    value, listed = record, False
    for token in tokens:
        listed = isinstance(value, list)
        if isinstance(value, list):
            value = value[int(token)]
            if (identity := book.elements(path)) and (key := element_key(value, identity)):
                scope = (*scope, (path, key))
        else:
            path = (*path, token)
            value = get(value, [token])
    return Place(scope, isinstance(value, list) and not listed and bool(book.elements(path)))


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]
