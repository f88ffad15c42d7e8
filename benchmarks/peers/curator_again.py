"""Curator's second run of the same data set, from its own cache."""

from __future__ import annotations

from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from benchmarks.cell import timed, told
from benchmarks.peers.curator import ask

if TYPE_CHECKING:
    from benchmarks.loads import Workload


def again(load: Workload, url: str) -> dict[str, Any]:
    """Ask what was asked before."""
    folder = mkdtemp()
    ask(load, url, folder)
    return timed(lambda workload, address: ask(workload, address, folder), load, url)


if __name__ == "__main__":
    told(again)
