"""Every table of docs/performance.md, measured by one command.

Run `python -m benchmarks.run [--quick] [--sections …] [--peers] [--missing] [--repeat N] [--json FOLDER]`. Each cell
has processes of its own and a time limit; what fails or takes too long is a row that says so. All ask one local server
of a set latency that none of them can exhaust. A row is kept as soon as it is measured, in `benchmarks/results`, so
that `--missing` goes on where a run was ended; what was to be reached comes last, beside all that is kept there.
`python -m benchmarks.table` makes the page of it.
The ideal is what a machine without any cost of its own would take: ceil(N / C) times L.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

if not __package__:  # run as a file: `python benchmarks/run.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.goals import reached
from benchmarks.measuring import Cell, Lab
from benchmarks.results import FOLDER, Results
from benchmarks.sections import ALWAYS, SECTIONS

if TYPE_CHECKING:
    from benchmarks.results import Row

SHOWN = ("done", "seconds", "ratio", "cpu_ms", "server_cpu_ms", "rss_mb", "made", "recorded", "lag_s", "busy", "failed")


def chosen(lab: Lab, names: list[str], *, quick: bool) -> list[Cell]:
    """Return the cells of some sections, in order."""
    return [cell for name in names for cell in SECTIONS[name](lab, quick=quick)]


def best(cell: Cell, repeat: int) -> Row:
    """Return the quickest of some runs of a cell; how many there were, if more than one."""
    rows = [cell.row() for _ in range(repeat)]
    quickest = min(rows, key=lambda row: row.get("seconds", float("inf")))
    return {**quickest, "runs": repeat} if repeat > 1 else quickest


def line(cell: Cell, row: Row) -> str:
    """Return a row in a line of text."""
    shown = {name: row[name] for name in SHOWN if name in row}
    return f"{cell.section}: {cell.way}, {cell.load}: {json.dumps(shown, ensure_ascii=False)}"


def _ended(number: int, _: object) -> None:
    """End as by an exception, so that the servers are ended, too."""
    sys.exit(128 + number)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small workloads: whether everything runs; kept apart")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--peers", action="store_true", help="the sections that take long, too")
    parser.add_argument("--missing", action="store_true", help="only what was not measured yet, or failed")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run each cell N times, keep the quickest")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="where rows are kept")
    arguments = parser.parse_args()
    names = arguments.sections or [name for name in SECTIONS if name in ALWAYS or arguments.peers]
    results = Results(arguments.json or (Path(mkdtemp(prefix="quick-")) if arguments.quick else FOLDER))
    lab = Lab()
    cells = chosen(lab, names, quick=arguments.quick)
    if arguments.missing:
        cells = [cell for cell in cells if not results.has(cell.section, cell.way, cell.load)]
    left = sum(cell.about_s for cell in cells) * arguments.repeat
    print(f"{len(cells)} cells, about {left / 60:.0f} minutes; rows are kept in {results.folder}", flush=True)
    start = time.monotonic()
    before = signal.signal(signal.SIGTERM, _ended)
    try:
        for cell in cells:
            row = best(cell, arguments.repeat)
            results.put(cell.section, row)
            print(line(cell, row), flush=True)
    finally:
        lab.servers.drop()
        signal.signal(signal.SIGTERM, before)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes\n\n{reached(results)}", flush=True)


if __name__ == "__main__":
    main()
