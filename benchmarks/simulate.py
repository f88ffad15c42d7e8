"""Ten million items on paper: what the measured costs make of them, and where it breaks first.

Run `python -m benchmarks.simulate` to print it; `python -m benchmarks.table` puts it on the page. A closed form: every
stage takes so much of an item, a stage's use is that times the rate, and the stage that is used most breaks first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import found, table
from benchmarks.results import Results

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 10_000_000
RUN = 100_000
"""Items of one run: as many as were measured."""
SHARD = 250
"""Items of a task run at that size (`tasks/shards.py`: at most 400 task runs)."""
LATENCY_S = 2.0
"""Seconds of a call."""
CORES = 4
"""Of a worker; a process for each."""
USED = 0.7
"""The share of a core that is planned for: the rest is for waves and stragglers."""
HOURS = (24, 8, 1)
S3 = {"put": 5.0e-6, "get": 4.0e-7, "gb_month": 0.023}
"""US dollars: the list prices of S3 Standard in us-east-1, 2025, for a PUT, a GET and a GB in a month."""
UNSHARDED = "Prefect's server, with a task run for each item"
MOST_CALLS = 1000
"""Calls that one run has under way at most (`limits.concurrency`)."""
PUTS_PER_S = 3500
"""PUTs in a second that S3 promises under one prefix."""


@dataclass(frozen=True)
class Costs:
    """What was measured."""

    item_ms: float
    """Processor of a worker for an item: the call and all around it."""
    item_server_ms: float
    """Processor of Prefect's server for an item in shards, in the largest run."""
    run_server_ms: float
    """The same for a task run."""
    item_database_ms: float
    """Processor of PostgreSQL for an item in shards."""
    item_kb: float
    """Memory of a run that an item takes until its end."""
    base_mb: float
    """Memory of a run without items."""
    record_bytes: float
    """A stored answer."""


def costs(results: Results) -> Costs | None:
    """Return them; None where one was not measured."""
    call = found(results, "overhead", "ours")
    shards = found(results, "records", "in shards, PostgreSQL")
    alone = found(results, "records", "one each, SQLite")
    stored = found(results, "stored", "ours_again")
    scale = [row for row in results.rows("scale") if row["way"] == "ours_nobody" and "failed" not in row]
    if not (call and shards and alone and stored and len(scale) > 1):
        return None
    small, large = min(scale, key=_done), max(scale, key=_done)
    item_mb = (large["rss_mb"] - small["rss_mb"]) / (large["done"] - small["done"])
    return Costs(
        item_ms=call["cpu_ms"],
        item_server_ms=large["server_cpu_ms"],
        run_server_ms=alone["server_cpu_ms"],
        item_database_ms=shards["database_cpu_ms"],
        item_kb=1024 * item_mb,
        base_mb=small["rss_mb"] - item_mb * small["done"],
        record_bytes=stored["bytes"] / stored["files"],
    )


def _done(row: dict[str, int]) -> int:
    return row["done"]


@dataclass(frozen=True)
class Stage:
    """Something that an item passes through."""

    name: str
    """What it is."""
    seen: str
    """What comes there in a second."""
    use: float
    """The share of what it can take."""


def stages(measured: Costs, rate: float, workers: int) -> Iterator[Stage]:
    """Yield what is used how much at a rate of items in a second."""
    runs = rate / SHARD
    cores = rate * measured.item_ms / 1000
    yield Stage("workers' cores", f"{cores:,.1f} cores of work", cores / (workers * CORES))
    server = rate * measured.item_server_ms / 1000
    yield Stage("Prefect's server, one core", f"{runs:,.2f} task runs", server)
    database = rate * measured.item_database_ms / 1000
    yield Stage("its database, one core", f"{4 * runs:,.1f} rows and {3 * runs:,.1f} events of them", database)
    written = f"{rate:,.0f} PUTs, {rate * measured.record_bytes / 2**20:,.2f} MB"
    yield Stage("S3, one prefix", written, rate / PUTS_PER_S)
    alone = rate * measured.run_server_ms / 1000
    yield Stage(UNSHARDED, f"{rate:,.0f} task runs", alone)


def tables(results: Results) -> str:
    """Return the model as Markdown."""
    measured = costs(results)
    if measured is None:
        return "Not measured yet."
    return "\n\n".join(
        [
            table(
                (
                    "time",
                    "items per second",
                    "calls in progress",
                    "concurrent runs",
                    f"workers of {CORES} cores",
                    "most used stage",
                ),
                (_planned(measured, hours) for hours in HOURS),
            ),
            f"The load of each stage per second, if all items are processed in {HOURS[1]} hours:",
            table(("stage", "load", "use", "limit in items per second"), _seen(measured, ITEMS / HOURS[1] / 3600)),
            f"A run of {RUN:,} items needs {_held_gb(measured):,.2f} GB of memory. Cost of the object store:",
            table(("store", "requests", "US dollars"), _money(measured)),
        ]
    )


def _planned(measured: Costs, hours: float) -> list[str]:
    rate = ITEMS / hours / 3600
    workers, calls = _workers(measured, rate), rate * LATENCY_S
    runs = max(math.ceil(calls / MOST_CALLS), math.ceil(rate * measured.item_ms / 1000 / USED))
    planned = [each for each in stages(measured, rate, workers) if each.name != UNSHARDED]
    first = max(planned, key=lambda stage: stage.use)
    used = f"{first.name}, {100 * first.use:,.0f} %"
    return [f"{hours} h", f"{rate:,.0f}", f"{calls:,.0f}", f"{runs}", f"{workers}", used]


def _seen(measured: Costs, rate: float) -> Iterator[list[str]]:
    for stage in stages(measured, rate, _workers(measured, rate)):
        yield [stage.name, stage.seen, f"{100 * stage.use:,.0f} %", f"{rate / stage.use:,.0f}"]


def _held_gb(measured: Costs) -> float:
    return (measured.base_mb + RUN * measured.item_kb / 1024) / 1024


def _workers(measured: Costs, rate: float) -> int:
    return math.ceil(rate * measured.item_ms / 1000 / USED / CORES)


def _money(measured: Costs) -> Iterator[list[str]]:
    size_gb = ITEMS * measured.record_bytes / 2**30
    put, look = ITEMS * S3["put"], ITEMS * S3["get"]
    yield ["look-up before the first run", f"{ITEMS:,} GETs", f"{look:,.2f}"]
    yield ["one file for each answer", f"{ITEMS:,} PUTs", f"{put:,.2f}"]
    yield ["each further run, all stored", f"{ITEMS:,} GETs", f"{look:,.2f}"]
    yield ["one month of storage", f"{size_gb:,.1f} GB", f"{size_gb * S3['gb_month']:,.2f}"]
    segments = ITEMS // SHARD
    yield [f"with {SHARD} answers in each file", f"{segments:,} PUTs", f"{segments * S3['put']:,.2f}"]


if __name__ == "__main__":
    print(tables(Results()))
