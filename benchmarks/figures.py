"""Functions that several tables share: find rows, format figures, write Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import VARIED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.results import Results, Row

TIMES = "\u00d7"
NOTHING = "—"
"""Placeholder for a figure that was not measured."""


def find_row(results: Results, section: str, way: str, load: str | None = None) -> Row | None:
    """Return the row of a cell; None if it was not measured, or failed."""
    rows = (row for row in results.rows(section) if row["way"] == way and load in {None, row["load"]})
    return next((row for row in rows if "failed" not in row), None)


def figure(row: Row | None, name: str, digits: int = 2) -> str:
    """Return a figure of a row as text, or a dash if it has none.

    Example:
        >>> figure({"seconds": 12345.678}, "seconds", 1), figure(None, "seconds"), figure({"made": 5000}, "made", 0)
        ('12,345.7', '—', '5,000')
    """
    value = None if row is None else row.get(name)
    return NOTHING if value is None else f"{value:,.{digits}f}"


def ratio(results: Results, row: Row) -> float | None:
    """Return the time of a run relative to the ideal; where latencies vary, relative to a loop with aiohttp."""
    if row["load"] != str(VARIED):
        return row.get("ratio")
    least = find_row(results, "throughput", "aiohttp_loop", str(VARIED))
    return row["seconds"] / least["seconds"] if least and "seconds" in row else None


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table.

    Example:
        >>> print(table(("a", "b"), [("1", "2")]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    heads = list(heads)
    lines = [heads, *map(list, rows)]
    texts = [f"| {' | '.join(each)} |" for each in lines]
    return "\n".join([texts[0], "|" + "---|" * len(heads), *texts[1:]])
