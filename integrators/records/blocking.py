"""Which texts are worth comparing, so that 100,000 of them don't mean five billion comparisons.

Texts are cut into parts of three letters; numbers and the like are parts as they are. Two texts
are compared if they share one of their rarest parts, or two of them where the rarest are
common. (That is the prefix filter of set similarity joins: texts that share most of their
parts share a rare one.) A part that stands in one text alone finds nobody and doesn't count, so a
slip of the pen doesn't use up the rare parts. Where more texts than `WINDOW` share what is looked
up, a text is compared with that many before it in the order of the alphabet; how many pairs
that passes over is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.records.likeness import Shape

RAREST = 6
"""How many of a text's parts others are looked up by."""
WINDOW = 32
"""How many of those that share a part, or two, a text is compared with."""


class Blocks:
    """Finds, for each of many texts, those that it is to be compared with.

    Attributes:
        passed_over: How many times two texts that share a looked-up part were not compared on account of it.

    Example:
        >>> from prefect_dispatch.integrators.records.likeness import shape
        >>> texts = sorted(["apache license", "apache licence", "mit"])
        >>> [(at, found) for at, found in Blocks([[shape(text)] for text in texts]).pairs() if found]
        [(1, [0])]
    """

    def __init__(self, rows: Sequence[Sequence[Shape]], groups: Sequence[str] | None = None) -> None:
        """Cut texts into parts.

        Args:
            rows: The texts, one or more for each place, places in the order of the alphabet.
            groups: Only places of one group are compared.
        """
        self.passed_over = 0
        self._parts = [
            [prefix + part for at, shape in enumerate(row) for part in _parts(shape, at)]
            for row, prefix in zip(rows, groups or [""] * len(rows), strict=True)
        ]
        self._counts = Counter(part for parts in self._parts for part in parts)

    def pairs(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each place, and the places before it that it is to be compared with."""
        blocks: dict[object, list[int]] = defaultdict(list)
        for at, parts in enumerate(self._parts):
            found: set[int] = set()
            for name in self._looked_up(parts):
                block = blocks[name]
                if len(block) > WINDOW:
                    self.passed_over += len(block) - WINDOW
                    found.update(block[-WINDOW:])
                else:
                    found.update(block)
                block.append(at)
            yield at, [*found]

    def _looked_up(self, parts: list[str]) -> list[object]:
        counts = self._counts
        shared = sorted([(counts[part], part) for part in parts if counts[part] > 1])[:RAREST]
        rare = [part for count, part in shared if count <= WINDOW]
        common = sorted(part for count, part in shared if count > WINDOW)
        return [*rare, *(combinations(common, 2) if len(common) > 1 else common)]


def _parts(shape: Shape, at: int) -> set[str]:
    """Return the parts of a text, each with the number of its field."""
    found: set[str] = set()
    for token in shape.tokens:
        if token in shape.marks or not token.isalpha():
            found.add(f"{at}={token}")
        else:
            padded = f"^{token}$"
            found.update([f"{at}{padded[i : i + 3]}" for i in range(len(padded) - 2)])
    return found
