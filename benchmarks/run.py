"""Every table of docs/performance.md, measured by one command.

Run `python -m benchmarks.run [--quick] [--sections …] [--peers] [--missing] [--repeat N] [--json FOLDER]`. Each cell
runs in separate processes with a time limit; a cell that fails or exceeds the limit is a row with the failure. All ways
call one local server with a fixed latency, which is never the bottleneck. Each row is written to `benchmarks/results`
immediately, so `--missing` continues an interrupted run. At the end the goals are printed beside the stored results.
`python -m benchmarks.table` writes the page from the rows.
The ideal time of a run is that of a machine without any overhead: ceil(N / C) times L.
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

from benchmarks.goals import create_goals_table
from benchmarks.measuring import Cell, Lab
from benchmarks.results import FOLDER, Results
from benchmarks.sections import ALWAYS, SECTIONS

if TYPE_CHECKING:
    from benchmarks.results import Row

SHOWN = (
    "done",
    "seconds",
    "ratio",
    "calls",
    "cpu_ms",
    "server_cpu_ms",
    "rss_mb",
    "made",
    "recorded",
    "lag_s",
    "busy",
    "failed",
)


def select_cells(lab: Lab, names: list[str], *, quick: bool) -> list[Cell]:
    """Return the cells of the named sections, in order."""
    return [cell for name in names for cell in SECTIONS[name](lab, quick=quick)]


def measure_quickest(cell: Cell, repeat: int) -> Row:
    """Measure a cell several times and return the quickest row, with the number of runs if there were several."""
    rows = [cell.row() for _ in range(repeat)]
    quickest = min(rows, key=lambda row: row.get("seconds", float("inf")))
    return {**quickest, "runs": repeat} if repeat > 1 else quickest


def format_row(cell: Cell, row: Row) -> str:
    """Return a row as one line of text."""
    shown = {name: row[name] for name in SHOWN if name in row}
    return f"{cell.section}: {cell.way}, {cell.load}: {json.dumps(shown, ensure_ascii=False)}"


def _exit_on_signal(number: int, _: object) -> None:
    """Raise SystemExit on a signal, so that the servers are stopped as well."""
    sys.exit(128 + number)


def main() -> None:
    """Measure the selected cells, print them and write them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small workloads, to check that everything runs; rows go to a temporary folder",
    )
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"sections to measure: {', '.join(SECTIONS)}"
    )
    parser.add_argument("--peers", action="store_true", help="also measure the sections that take long")
    parser.add_argument("--missing", action="store_true", help="measure only cells that have no result yet, or failed")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="measure each cell N times and keep the quickest"
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="folder of the rows")
    arguments = parser.parse_args()
    names = arguments.sections or [name for name in SECTIONS if name in ALWAYS or arguments.peers]
    results = Results(arguments.json or (Path(mkdtemp(prefix="quick-")) if arguments.quick else FOLDER))
    lab = Lab()
    cells = select_cells(lab, names, quick=arguments.quick)
    if arguments.missing:
        cells = [cell for cell in cells if not results.has(cell.section, cell.way, cell.load)]
    left = sum(cell.about_s for cell in cells) * arguments.repeat
    print(f"{len(cells)} cells, about {left / 60:.0f} minutes; rows are written to {results.folder}", flush=True)
    start = time.monotonic()
    before = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        for cell in cells:
            row = measure_quickest(cell, arguments.repeat)
            results.put(cell.section, row)
            print(format_row(cell, row), flush=True)
    finally:
        lab.servers.drop()
        signal.signal(signal.SIGTERM, before)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes\n\n{create_goals_table(results)}", flush=True)


if __name__ == "__main__":
    main()
