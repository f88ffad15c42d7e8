"""What leads to what in a graph."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.tasks.preflight import strongly_connected_components

GRAPHS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14)


def _reached(pairs: list[tuple[int, int]], start: int) -> set[int]:
    reached = {start}
    for _ in pairs:
        reached |= {target for node, target in pairs if node in reached}
    return reached


@given(pairs=GRAPHS)
def test_components(pairs: list[tuple[int, int]]) -> None:
    """Nodes stand together if and only if each leads to the other, and after all that lead to them."""
    edges: dict[int, list[int]] = {}
    for node, target in pairs:
        edges.setdefault(node, []).append(target)
    found = strongly_connected_components(edges)
    place = {node: index for index, group in enumerate(found) for node in group}
    nodes = {node for pair in pairs for node in pair}
    assert sorted(node for group in found for node in group) == sorted(nodes)
    reached = {node: _reached(pairs, node) for node in nodes}
    for one in nodes:
        for other in nodes:
            assert (place[one] == place[other]) is (other in reached[one] and one in reached[other])
            assert place[one] <= place[other] or other not in reached[one]


@pytest.mark.slow
def test_a_long_chain() -> None:
    """Depth costs no recursion."""
    edges = {n: [n + 1] for n in range(50_000)}
    assert strongly_connected_components(edges) == [[n] for n in range(50_001)]
