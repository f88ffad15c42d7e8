"""Sets of things that are the same, some of which must not be."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.integrators.values import Key


class Unions:
    """Joins things into sets, and knows which sets must not be joined.

    Example:
        >>> a, b, c = [(0, ((1, 0, name),)) for name in "abc"]
        >>> sets = Unions([(a, c)])
        >>> sets.join(a, b)
        >>> sets.forbidden(b, c), sets.heads() == {a: a, b: a}
        (True, True)
    """

    def __init__(self, apart: Iterable[tuple[Key, Key]] = ()) -> None:
        """Keep what must not be in one set."""
        self._head: dict[Key, Key] = {}
        self._members: dict[Key, list[Key]] = {}
        self._foes: dict[Key, set[Key]] = defaultdict(set)
        for one, other in apart:
            self._foes[one].add(other)
            self._foes[other].add(one)

    def head(self, key: Key) -> Key:
        """Return the one that stands, for the time being, for the set that a thing is in."""
        return self._head.get(key, key)

    def forbidden(self, one: Key, other: Key) -> bool:
        """Return whether somebody in the set of the one must not be in the set of the other."""
        if not self._foes:
            return False
        theirs = self.head(other)
        return any(self.head(foe) == theirs for key in self._set(self.head(one)) for foe in self._foes.get(key, ()))

    def join(self, one: Key, other: Key) -> None:
        """Make two sets one."""
        small, large = sorted((self.head(one), self.head(other)), key=lambda head: (len(self._set(head)), head))
        moved = self._members.pop(small, [small])
        self._members.setdefault(large, [large]).extend(moved)
        for key in moved:
            self._head[key] = large

    def heads(self) -> dict[Key, Key]:
        """Return, for each thing that was joined with another, the first of its set."""
        return {key: first for keys in self._members.values() for first in [min(keys)] for key in keys}

    def _set(self, head: Key) -> list[Key]:
        return self._members.get(head, [head])
