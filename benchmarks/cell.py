"""One way to ask, in a process of its own: what is asked by, timed, and told in one line of JSON.

Nothing but Python's own library is imported here, since the peers run it with interpreters of theirs.
What is done once is not counted: each way has loaded what it takes, and asked one item, before its clock starts.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.loads import Workload, load_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[Workload, str], int | dict[str, Any]]


def cpu_s() -> float:
    """Return the seconds of processor that this process and those that it has waited for have taken."""
    return sum(os.times()[:4])


def peak_mb() -> float:
    """Return the most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(way: Way, load: Workload, url: str) -> dict[str, Any]:
    """Return what one way takes for one workload.

    Args:
        way: Asks it all, and returns how many were answered, or figures of its own: `done`, and with Prefect `made`,
            the number of task runs. A figure of its own counts before one that is taken here.
        load: What is asked.
        url: The address of the model's server.
    """
    start, cpu = time.perf_counter(), cpu_s()
    said = way(load, url)
    seconds, spent = time.perf_counter() - start, cpu_s() - cpu
    return {
        "seconds": round(seconds, 3),
        "cpu_ms": round(1000 * spent / load.items, 3),
        "rss_mb": round(peak_mb()),
        "ended": time.time(),
        **(said if isinstance(said, dict) else {"done": said}),
    }


def told(way: Way) -> None:
    """Run a way on one item, then on what the command line says, `LOAD URL`, and print what that took."""
    load, url = load_of(sys.argv[1]), sys.argv[2]
    warm = way(load._replace(items=1, concurrency=1), url)
    found = timed(way, load, url)
    if isinstance(warm, dict) and "made" in warm:
        found["made"] += warm["made"]
    print(json.dumps(found), flush=True)
