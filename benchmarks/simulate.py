"""Capacity model for ten million items, from the measured costs: utilization of each stage, and the bottleneck.

Run `python -m benchmarks.simulate` to print it; `python -m benchmarks.table` puts it on the page. The model is a closed
form: the utilization of a stage is its cost per item times the rate, and the stage with the highest is the bottleneck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import find_row, table
from benchmarks.results import Results

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 10_000_000
RUN = 100_000
"""Items per run, the largest number that was measured."""
SHARD = 250
"""Items of a task run at that size (`tasks/fan_out.py`: at most 400 task runs)."""
LATENCY_S = 2.0
"""Latency of a call in seconds."""
CORES = 4
"""Cores per worker, with one process each."""
USED = 0.7
"""Planned utilization of a core; the rest absorbs load peaks and slow calls."""
HOURS = (24, 8, 1)
S3 = {"put": 5.0e-6, "get": 4.0e-7, "gb_month": 0.023}
"""US dollars: the list prices of S3 Standard in us-east-1, 2025, for a PUT, a GET and a GB in a month."""
UNSHARDED = "Prefect's server, with a task run for each item"
MOST_CALLS = 1000
"""Maximum number of concurrent calls of a run (`limits.concurrency`)."""
PUTS_PER_S = 3500
"""PUT requests per second that S3 supports for one prefix."""


@dataclass(frozen=True)
class Costs:
    """The measured costs."""

    item_ms: float
    """Processor time of a worker per item, the call included."""
    item_server_ms: float
    """Processor time of Prefect's server per item in shards, in the largest run."""
    run_server_ms: float
    """Processor time of Prefect's server per task run."""
    item_database_ms: float
    """Processor time of PostgreSQL per item in shards."""
    item_kb: float
    """Memory that a run needs per item until its end."""
    base_mb: float
    """Memory of a run without items."""
    record_bytes: float
    """Size of a stored answer."""


def read_costs(results: Results) -> Costs | None:
    """Return the measured costs; None if one of them is missing."""
    call = find_row(results, "overhead", "ours")
    shards = find_row(results, "records", "in shards, PostgreSQL")
    alone = find_row(results, "records", "one each, SQLite")
    stored = find_row(results, "stored", "ours_again")
    scale = [row for row in results.rows("scale") if row["way"] == "ours_nobody" and "failed" not in row]
    if not (call and shards and alone and stored and len(scale) > 1):
        return None
    small, large = min(scale, key=_item_count), max(scale, key=_item_count)
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


def _item_count(row: dict[str, int]) -> int:
    return row["done"]


@dataclass(frozen=True)
class Stage:
    """A component that processes every item."""

    name: str
    """The name."""
    seen: str
    """Its load per second, as text."""
    use: float
    """Its utilization; 1 is its capacity."""


def compute_stages(measured: Costs, rate: float, workers: int) -> Iterator[Stage]:
    """Yield the utilization of each stage at a rate of items per second."""
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


def create_tables(results: Results) -> str:
    """Return the tables of the model as Markdown."""
    measured = read_costs(results)
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
                (_plan_row(measured, hours) for hours in HOURS),
            ),
            f"The load of each stage per second, if all items are processed in {HOURS[1]} hours:",
            table(
                ("stage", "load", "use", "limit in items per second"),
                _utilization_rows(measured, ITEMS / HOURS[1] / 3600),
            ),
            f"A run of {RUN:,} items needs {_memory_gb(measured):,.2f} GB of memory. Cost of the object store:",
            table(("store", "requests", "US dollars"), _cost_rows(measured)),
        ]
    )


def _plan_row(measured: Costs, hours: float) -> list[str]:
    rate = ITEMS / hours / 3600
    workers, calls = _count_workers(measured, rate), rate * LATENCY_S
    runs = max(math.ceil(calls / MOST_CALLS), math.ceil(rate * measured.item_ms / 1000 / USED))
    planned = [each for each in compute_stages(measured, rate, workers) if each.name != UNSHARDED]
    first = max(planned, key=lambda stage: stage.use)
    used = f"{first.name}, {100 * first.use:,.0f} %"
    return [f"{hours} h", f"{rate:,.0f}", f"{calls:,.0f}", f"{runs}", f"{workers}", used]


def _utilization_rows(measured: Costs, rate: float) -> Iterator[list[str]]:
    for stage in compute_stages(measured, rate, _count_workers(measured, rate)):
        yield [stage.name, stage.seen, f"{100 * stage.use:,.0f} %", f"{rate / stage.use:,.0f}"]


def _memory_gb(measured: Costs) -> float:
    return (measured.base_mb + RUN * measured.item_kb / 1024) / 1024


def _count_workers(measured: Costs, rate: float) -> int:
    return math.ceil(rate * measured.item_ms / 1000 / USED / CORES)


def _cost_rows(measured: Costs) -> Iterator[list[str]]:
    size_gb = ITEMS * measured.record_bytes / 2**30
    put, look = ITEMS * S3["put"], ITEMS * S3["get"]
    yield ["look-up before the first run", f"{ITEMS:,} GETs", f"{look:,.2f}"]
    yield ["one file for each answer", f"{ITEMS:,} PUTs", f"{put:,.2f}"]
    yield ["each further run, all stored", f"{ITEMS:,} GETs", f"{look:,.2f}"]
    yield ["one month of storage", f"{size_gb:,.1f} GB", f"{size_gb * S3['gb_month']:,.2f}"]
    segments = ITEMS // SHARD
    yield [f"with {SHARD} answers in each file", f"{segments:,} PUTs", f"{segments * S3['put']:,.2f}"]


if __name__ == "__main__":
    print(create_tables(Results()))
