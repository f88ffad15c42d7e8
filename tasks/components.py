"""What leads to what in a graph: its components, in order."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

_T = TypeVar("_T", bound="Hashable")


def components(edges: Mapping[_T, Iterable[_T]]) -> list[list[_T]]:
    """Return the strongly connected components, each after all that lead to it (Kosaraju's way).

    Args:
        edges: For each node those that it leads to.

    Example:
        >>> [sorted(each) for each in components({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []})]
        [['a'], ['b', 'c'], ['d']]
    """
    back: dict[_T, list[_T]] = defaultdict(list)
    for node, targets in edges.items():
        for target in targets:
            back[target].append(node)
    left = [node for group in _walks(edges, list(edges)) for node in group]
    return _walks(back, left[::-1])


def _walks(edges: Mapping[_T, Iterable[_T]], starts: list[_T]) -> list[list[_T]]:
    """Return, for each start not met before, all that is reached from it, in the order in which it is left."""
    seen: set[_T] = set()
    walks: list[list[_T]] = []
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        walk: list[_T] = []
        path = [(start, iter(edges.get(start, ())))]
        while path:
            node, targets = path[-1]
            following = next((target for target in targets if target not in seen), None)
            if following is None:
                walk.append(node)
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(edges.get(following, ()))))
        walks.append(walk)
    return walks
