"""What the tables say of the rows: figures that several of them need, each from what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import VARIED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.results import Results, Row

TIMES = "\u00d7"
NOTHING = "—"
"""What stands where nothing was measured."""


def found(results: Results, section: str, way: str, load: str | None = None) -> Row | None:
    """Return the row of a cell; None where it was not measured, or failed."""
    rows = (row for row in results.rows(section) if row["way"] == way and load in {None, row["load"]})
    return next((row for row in rows if "failed" not in row), None)


def figure(row: Row | None, name: str, digits: int = 2) -> str:
    """Return a figure as text; a dash where there is none.

    Example:
        >>> figure({"seconds": 12345.678}, "seconds", 1), figure(None, "seconds"), figure({"made": 5000}, "made", 0)
        ('12,345.7', '—', '5,000')
    """
    value = None if row is None else row.get(name)
    return NOTHING if value is None else f"{value:,.{digits}f}"


def ratio(results: Results, row: Row) -> float | None:
    """Return how many times the ideal a run took; where latencies vary, how many times a loop with aiohttp."""
    if row["load"] != str(VARIED):
        return row.get("ratio")
    least = found(results, "throughput", "aiohttp_loop", str(VARIED))
    return row["seconds"] / least["seconds"] if least and "seconds" in row else None


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown.

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
