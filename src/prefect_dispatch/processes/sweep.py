"""Find every process that comes of a program, and end it.

A program carries a mark in its environment, which all that it starts inherits: sessions of their own and
launchers that are gone hide nothing. Who takes the mark off is found by its session, or by its parent.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Collection

LAST_S = 5.0
"""How long to go on killing what doesn't go away, such as a process of another user."""
PAUSE_S = 0.05


class Mark(NamedTuple):
    """An environment variable that marks processes."""

    variable: str
    value: str


def found(mark: Mark, roots: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living processes that carry a mark, and all that descend from them.

    Args:
        mark: What they carry in the environment that they began with.
        roots: Processes that lead sessions of their own, which count with all in their sessions. They must not have
            been waited for, so that their numbers are still theirs.
    """
    everybody: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    ours: set[int] = set()
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):  # it has ended meanwhile
            process = psutil.Process(pid)
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1:
                    continue  # with more, its first thread has ended, and the others go on
                everybody[pid], parents[pid] = process, process.ppid()
                if os.getsid(pid) in roots or process.environ().get(mark.variable) == mark.value:
                    ours.add(pid)
    while born := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= born
    return [everybody[pid] for pid in sorted(ours)]


def end(mark: Mark, roots: Collection[int] = (), *, grace_s: float) -> int:
    """End all processes that `found` finds; return how many there were at first.

    Args:
        mark: What they carry.
        roots: See `found`.
        grace_s: Seconds that they have for ending themselves, once they have been asked to.
    """
    first = left = found(mark, roots)
    _signal(first, "terminate")
    last = time.monotonic() + grace_s
    while left and time.monotonic() < last:  # not `psutil.wait_procs`, which takes away a child's exit code
        time.sleep(PAUSE_S)
        left = found(mark, roots)
    last = time.monotonic() + LAST_S
    while left and time.monotonic() < last:
        _signal(left, "kill")
        time.sleep(PAUSE_S)
        left = found(mark, roots)
    return len(first)


def _signal(processes: list[psutil.Process], how: str) -> None:
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile, or is somebody else's
            getattr(process, how)()
