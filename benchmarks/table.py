"""The page docs/performance.md, made of what was measured: run `python -m benchmarks.table` after `benchmarks.run`."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from benchmarks import goals, simulate
from benchmarks.figures import NOTHING, TIMES, figure, ratio, table
from benchmarks.loads import FIVE_THOUSAND, THOUSAND, VARIED
from benchmarks.peer_environments import PEERS
from benchmarks.results import Results
from benchmarks.sections import SECTIONS
from benchmarks.subprocesses import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Row

NAMES = {
    "aiohttp_loop": "aiohttp, a loop by hand, nothing stored",
    "litellm_loop": "litellm, a loop by hand, nothing stored",
    "litellm_batch": "`litellm.batch_completion`",
    "prefect_map": "Prefect `.map`, litellm in it",
    "prefect_async_map": "Prefect `.map` of coroutines",
    "prefect_gathered": "Prefect coroutine tasks, gathered",
    "prefect_map_nothing": "Prefect `.map`, empty task",
    "ours": "**prefect-dispatch**",
    "ours_alone": "prefect-dispatch, `shard: 1`",
    "ours_nobody": "prefect-dispatch, no model",
    "ours_nobody_alone": "prefect-dispatch, no model, `shard: 1`",
    "litellm_openai": "litellm, OpenAI",
    "litellm_anthropic": "litellm, Anthropic",
    "litellm_gemini": "litellm, Gemini",
    "answer_openai": "`LLM` alone, OpenAI",
    "answer_anthropic": "`LLM` alone, Anthropic",
    "answer_gemini": "`LLM` alone, Gemini",
    "ours_openai": "**prefect-dispatch**, OpenAI",
    "ours_anthropic": "**prefect-dispatch**, Anthropic",
    "ours_gemini": "**prefect-dispatch**, Gemini",
    "ours_again": "**prefect-dispatch**, second run",
    "ours_planned": "`plan`",
    "curator": "Curator",
    "curator_again": "Curator, second run: one fingerprint for all",
    "pydantic_ai": "pydantic-ai agents, gathered",
    "pydantic_ai_prefect": "pydantic-ai on Prefect",
    "files": "**one file for each record**",
    "sqlite_each": "SQLite, one transaction for each record",
    "sqlite_together": "SQLite, one transaction for 100 records",
    "lmdb_each": "LMDB, one transaction for each record",
    "lmdb_together": "LMDB, one transaction for 100 records",
    "parquet_segments": "Parquet, one file for 1,000 records, read into memory",
    "docetl": "DocETL `map`",
    "lotus": "LOTUS `sem_map`",
}
"""Names of the ways in tables; a way without an entry is shown by its own name."""

PAGE = Template(Path(__file__).with_name("page.md").read_text(encoding="utf-8"))
"""The text around the tables."""
FILE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "assets" / "scale.svg"


def page(results: Results) -> str:
    """Return the page."""
    parts = {
        "machine": _machines(results),
        "reached": goals.create_goals_table(results),
        "throughput": "\n\n".join(_throughput(results, str(load)) for load in (THOUSAND, FIVE_THOUSAND, VARIED)),
        "overhead": _rows(results, "overhead"),
        "hosted": _hosted(results),
        "start": _start(results),
        "stored": _stored(results),
        "kept": _kept(results),
        "phases": _phases(results),
        "processes": _processes(results),
        "scale": _rows(results, "scale"),
        "records": _rows(results, "records"),
        "model": simulate.create_tables(results),
        "pins": ", ".join(sorted({f"`{peer.pins[0]}`" for peer in PEERS.values()})),
    }
    return PAGE.substitute(parts)


def _name(row: Row) -> str:
    way: str = row["way"]
    name = NAMES.get(way, way)
    return f"{name}, the quickest of {row['runs']} runs" if "runs" in row else name


def _machines(results: Results) -> str:
    every = [results.machine(section) for section in SECTIONS if results.rows(section)]
    days = sorted({row["day"] for section in SECTIONS for row in results.rows(section)})
    if not every:
        return "Not measured yet."
    return f"{'; '.join(dict.fromkeys(every))}; measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."


def _throughput(results: Results, load: str) -> str:
    rows = [row for row in results.rows("throughput") if row["load"] == load]
    rows.sort(key=lambda row: row.get("seconds", float("inf")))
    return f"### {load}\n\n{_listed(results, rows, _measure(load))}"


def _measure(load: str) -> str:
    return f"{TIMES} aiohttp loop" if load == str(VARIED) else f"{TIMES} ideal"


def _rows(results: Results, section: str) -> str:
    return _listed(results, results.rows(section))


def _listed(results: Results, rows: list[Row], measure: str = "") -> str:
    """Return rows as a table; without a measure, with the workload."""
    heads = ["way", measure or "workload", "s", "client ms/item", "server ms/item"]
    heads += ["task runs made", "recorded", "complete after s", "MB", "load before"]

    def line(row: Row) -> Iterator[str]:
        yield _name(row)
        times = ratio(results, row)
        yield row["load"] if not measure else NOTHING if times is None else f"{times:.2f}"
        if "failed" in row:
            yield row["failed"]
            yield from [""] * 6
        else:
            yield figure(row, "seconds")
            yield figure(row, "cpu_ms")
            yield figure(row, "server_cpu_ms")
            yield figure(row, "made", 0)
            yield figure(row, "recorded", 0)
            yield figure(row, "lag_s", 1)
            yield figure(row, "rss_mb", 0)
        yield figure(row, "busy", 1)

    return table(heads, map(line, rows)) if rows else "Not measured yet."


def _phases(results: Results) -> str:
    """Return the parts of two whole commands as a table."""
    rows = {(row["way"], row["load"]): row for row in results.rows("phases")}
    heads = ("part", "items asked, s", "processor s", "items stored, s", "processor s")

    def line(part: str) -> Iterator[str]:
        yield part
        for run in ("asked", "stored"):
            yield figure(rows.get((part, run)), "seconds")
            yield figure(rows.get((part, run)), "cpu_s")

    return table(heads, map(line, dict.fromkeys(part for part, _ in rows))) if rows else "Not measured yet."


def _processes(results: Results) -> str:
    """Return runs with each task runner as a table."""
    heads = ("workload", "task runner", "s", "processor s, own", "processor s, other processes", "load before")
    rows = [
        [row["load"], row["way"], *(figure(row, name, 1) for name in ("seconds", "own_cpu_s", "workers_cpu_s", "busy"))]
        for row in results.rows("processes")
    ]
    return table(heads, rows) if rows else "Not measured yet."


def _hosted(results: Results) -> str:
    heads = ("way", "workload", "s", f"{TIMES} ideal", "calls alone", "client ms/item", "server ms/item", "MB")
    names = ("seconds", "ratio", "calls", "cpu_ms", "server_cpu_ms")
    lines = [
        [
            _name(row),
            row["load"],
            *(figure(row, name) for name in names),
            figure(row, "rss_mb", 0),
            figure(row, "busy", 1),
        ]
        for row in results.rows("hosted")
    ]
    return table((*heads, "load before"), lines) if lines else "Not measured yet."


def _start(results: Results) -> str:
    rows = results.rows("start")
    return table(
        ("command", "s", "processor s", "load before"),
        ([row["way"], figure(row, "seconds"), figure(row, "cpu_s"), figure(row, "busy", 1)] for row in rows),
    )


def _stored(results: Results) -> str:
    rows = results.rows("stored")
    return table(
        (
            "way",
            "workload",
            "first run, s",
            "second run, s",
            "client ms/item",
            "MB",
            "files",
            "MB stored",
            "load before",
        ),
        (
            [
                _name(row),
                row["load"],
                figure(row, "first_s"),
                figure(row, "seconds"),
                figure(row, "cpu_ms"),
                figure(row, "rss_mb", 0),
                figure(row, "files", 0),
                f"{row['bytes'] / 2**20:,.1f}" if "bytes" in row else NOTHING,
                figure(row, "busy", 1),
            ]
            for row in rows
        ),
    )


def _kept(results: Results) -> str:
    rows = results.rows("kept")
    heads = ("way", "ms to write one", "processor ms", "ms to look one up", "MB on the disk", "files", "load before")
    parts = (("write_ms", 2), ("write_cpu_ms", 2), ("read_ms", 3), ("disk_mb", 1), ("files", 0), ("busy", 1))
    return table(heads, ([_name(row), *(figure(row, *part) for part in parts)] for row in rows))


def main() -> None:
    """Write the page and its plot."""
    from benchmarks import plots  # noqa: PLC0415 -- only what draws needs matplotlib

    results = Results()
    FILE.write_text(page(results), encoding="utf-8")
    plots.scale(results, PLOT)
    print(f"written: {FILE.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
