"""Curator's second run of the same data set, from its own cache."""

from __future__ import annotations

from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from benchmarks.cell import measure_way, print_measurement
from benchmarks.peers.curator import ask

if TYPE_CHECKING:
    from benchmarks.loads import Workload


def again(load: Workload, url: str) -> dict[str, Any]:
    """Process the items twice and return the figures of the second run."""
    folder = mkdtemp()
    ask(load, url, folder)
    return measure_way(lambda workload, address: ask(workload, address, folder), load, url)


if __name__ == "__main__":
    print_measurement(again)
