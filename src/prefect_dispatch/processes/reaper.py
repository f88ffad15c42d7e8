"""Reaper: cleans up after flow processes that died, and removes their programs, workspaces, folders and old logs."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from prefect_dispatch.processes.environment import LEASE
from prefect_dispatch.processes.leases import remove_abandoned, state_folder
from prefect_dispatch.processes.log_files import prune_logs
from prefect_dispatch.processes.process_tree import Mark, end_processes

if TYPE_CHECKING:
    from prefect_dispatch.processes.leases import Lease

EVERY_S = 60.0
"""Shortest time in seconds between two clean-ups by one process."""
GRACE_S = 1.0
"""Seconds that a program of a dead run has to end itself."""

_log = logging.getLogger("prefect_dispatch")
_lock = threading.Lock()
_next: dict[str, float] = {}
"""Time of the next clean-up, by state folder."""


def reap() -> list[Lease]:
    """Clean up after processes that died, and return their leases; those of living processes are not touched.

    Raises:
        JobError: If the state folder can't be used.
    """
    prune_logs()
    return remove_abandoned(lambda abandoned: _end_programs(abandoned.id))


def reap_periodically() -> None:
    """Clean up, unless this process has done so within `EVERY_S`; called before a program is run.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = str(state_folder())
    with _lock:
        if time.monotonic() < _next.get(folder, 0.0):
            return
        _next[folder] = time.monotonic() + EVERY_S
    for abandoned in reap():
        _log.info("Cleared away what a run that died had left: %s", abandoned.path)


def _end_programs(lease: str) -> None:
    """End the programs that run for a lease."""
    end_processes(Mark(LEASE, lease), grace_s=GRACE_S)
