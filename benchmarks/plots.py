"""Plots of docs/performance.md as SVG; equal rows give equal files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results


def scale(results: Results, file: Path) -> None:
    """Plot time over items, and memory over time."""
    rows = [row for row in results.rows("scale") if row["way"] == "ours_nobody" and "failed" not in row]
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    figure: Any = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["done"] for row in rows], [row["seconds"] for row in rows], marker="o")
    left.set(xlabel="items", ylabel="seconds", title="Items of 10 ms, in shards", xlim=(0, None), ylim=(0, None))
    left.xaxis.set_major_formatter("{x:,.0f}")
    for row in rows:
        right.plot([at for at, _ in row["memory"]], [mb for _, mb in row["memory"]], label=f"{row['done']:,} items")
    right.set(xlabel="seconds", ylabel="MB", title="Memory of the whole process", ylim=(0, None))
    if rows:
        right.legend()
    figure.savefig(file, format="svg", metadata={"Date": None})
