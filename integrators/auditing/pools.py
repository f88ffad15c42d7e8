"""What is said, indexed by the names of fields: the audit's memory."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.values import is_leaf, nodes, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.values import Node


class Pool:
    """The content of values and of their parts, by the name of the field."""

    __slots__ = ("_all", "named", "whole")  # an audit holds two for each outcome

    def __init__(self, values: Iterable[JsonValue] = (), name: str | None = None) -> None:
        """Take in values, and all their parts, that stand in a field of a name."""
        self.named: dict[str | None, set[str]] = defaultdict(set)
        self._all: set[str] | None = None
        self.whole: set[str] = set()
        for value in values:
            self.take(value, name)

    def take(self, value: JsonValue, name: str | None = None) -> None:
        """Take in a value, and all its parts, that stands in a field of a name."""
        found = nodes(value, name)
        self.add(found)
        self.whole.add(found[-1].text)

    def add(self, found: Iterable[Node]) -> None:
        """Take in parts of values."""
        for node in found:
            self.named[node.name].add(node.text)
        self._all = None

    @property
    def all(self) -> set[str]:
        """What stands in any field; only where a field's name doesn't tell is it asked for."""
        if self._all is None:
            first, *more = self.named.values() or (set[str](),)
            self._all = first.union(*more) if more else first
        return self._all

    def texts(self, name: str | None) -> set[str]:
        """Return what stands in fields of a name; where there is no such field, in all."""
        return self.named[name] if name is not None and name in self.named else self.all


def has(pools: Sequence[Pool], name: str | None, text: str) -> bool:
    """Return whether something stands in a field of a name; where no pool has such a field, in any."""
    named = [pool.named[name] for pool in pools if name is not None and name in pool.named]
    return any(text in texts for texts in named or [pool.all for pool in pools])


def leaves(values: Iterable[JsonValue], name: str | None = None) -> list[Node]:
    """Return what values say: their parts without parts of their own, but for null and `{}`."""
    return [node for value in values for node in nodes(value, name) if is_leaf(node.value) and not silent(node.value)]
