"""Measures one way of sending the calls, in a separate process, and prints the figures as one line of JSON.

Only the standard library is imported, because peers run this module with the interpreters of their own environments.
Start-up costs are excluded: before the clock starts, each way has imported its libraries and processed one item.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.loads import Workload, parse_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[Workload, str], int | dict[str, Any]]


def cpu_s() -> float:
    """Return the processor time of this process and its reaped children, in seconds."""
    return sum(os.times()[:4])


def peak_mb() -> float:
    """Return the peak resident memory of this process, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_way(way: Way, load: Workload, url: str) -> dict[str, Any]:
    """Run a way on a workload and return the measured figures.

    Args:
        way: Processes all items and returns the number of answers, or its own figures: `done` and, with Prefect,
            `made`, the number of task runs. Its own figures override those that are measured here.
        load: The workload.
        url: The address of the model's server.
    """
    start, cpu = time.perf_counter(), cpu_s()
    result = way(load, url)
    seconds, spent = time.perf_counter() - start, cpu_s() - cpu
    return {
        "seconds": round(seconds, 3),
        "cpu_ms": round(1000 * spent / load.items, 3),
        "rss_mb": round(peak_mb()),
        "ended": time.time(),
        **(result if isinstance(result, dict) else {"done": result}),
    }


def print_measurement(way: Way) -> None:
    """Run a way on one item, then on the workload of the command line (`LOAD URL`), and print the figures."""
    load, url = parse_workload(sys.argv[1]), sys.argv[2]
    warm = way(load._replace(items=1, concurrency=1), url)
    found = measure_way(way, load, url)
    if isinstance(warm, dict) and "made" in warm:
        found["made"] += warm["made"]
    print(json.dumps(found), flush=True)
