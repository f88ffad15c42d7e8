"""Table of the performance goals and the measured results, for the end of `benchmarks.run` and the page's start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.figures import NOTHING, TIMES, figure, find_row, ratio, table
from benchmarks.loads import FIVE_THOUSAND, THOUSAND, VARIED
from benchmarks.sections import MILLION, SCALES

if TYPE_CHECKING:
    from benchmarks.results import Results, Row


def create_goals_table(results: Results) -> str:
    """Return a table of the goals, our results and those of other libraries."""

    def of(section: str, way: str, load: object = None, name: str = "seconds") -> str:
        return figure(find_row(results, section, way, None if load is None else str(load)), name)

    def times(way: str, load: object) -> str:
        row = find_row(results, "throughput", way, str(load))
        got = ratio(results, row) if row else None
        return NOTHING if got is None else f"{got:.2f}"

    largest = find_row(results, "scale", "ours_nobody", str(SCALES[-1]))
    rows = [
        [
            str(load),
            f"{TIMES} aiohttp loop" if load == VARIED else f"{TIMES} ideal",
            goal,
            times("ours", load),
            _others(times, load),
        ]
        for load, goal in ((THOUSAND, "1.10"), (FIVE_THOUSAND, "1.5"), (VARIED, "1.10"))
    ]
    rows += [
        [
            "overhead per item, client process",
            "ms",
            "1",
            of("overhead", "ours_nobody", None, "cpu_ms"),
            _prefect(of, "cpu_ms"),
        ],
        [
            "overhead per item, Prefect's server",
            "ms",
            "1",
            of("overhead", "ours_nobody", None, "server_cpu_ms"),
            _prefect(of, "server_cpu_ms"),
        ],
        [
            "second run, 10,000 stored answers",
            "s",
            "2",
            of("stored", "ours_again"),
            f"Curator {of('stored', 'curator_again')}",
        ],
        [
            f"{SCALES[-1]}",
            "task runs recorded; MB",
            "all; 1,000",
            f"{figure(largest, 'recorded', 0)} of {figure(largest, 'made', 0)}; {figure(largest, 'rss_mb', 0)}",
            "",
        ],
        [f"`plan` of {MILLION.items:,} items", "s; MB", "", f"{of('scale', 'ours_planned')}; {_million(results)}", ""],
        [
            "`import prefect_dispatch` on top of Prefect",
            "ms",
            "50",
            _milliseconds(find_row(results, "start", "import prefect_dispatch after these")),
            "",
        ],
        ["`prefect-dispatch --help`", "s", "0.5", of("start", "prefect-dispatch --help"), ""],
    ]
    return table(("what", "unit", "target, at most", "prefect-dispatch", "others"), rows)


def _million(results: Results) -> str:
    return figure(find_row(results, "scale", "ours_planned", str(MILLION)), "rss_mb", 0)


def _others(times: object, load: object) -> str:
    assert callable(times)  # noqa: S101 -- the function beside it
    named = (
        ("Curator", "curator"),
        ("litellm loop", "litellm_loop"),
        ("DocETL", "docetl"),
        ("LOTUS", "lotus"),
        ("`.map`", "prefect_map"),
    )
    said = [f"{name} {times(way, load)}" for name, way in named]
    return ", ".join(each for each in said if NOTHING not in each)


def _prefect(of: object, name: str) -> str:
    assert callable(of)  # noqa: S101 -- the function beside it
    return f"Prefect's task run {of('overhead', 'prefect_map_nothing', None, name)}"


def _milliseconds(row: Row | None) -> str:
    return NOTHING if row is None else f"{1000 * row['cpu_s']:,.1f}"
