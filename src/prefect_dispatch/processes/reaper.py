"""Clears away what flow processes that died have left: programs, workspaces, folders, old logs."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from prefect_dispatch.processes.environment import LEASE
from prefect_dispatch.processes.leases import clear_abandoned, state_folder
from prefect_dispatch.processes.logs import prune_logs
from prefect_dispatch.processes.sweep import Mark, end

if TYPE_CHECKING:
    from prefect_dispatch.processes.leases import Lease

EVERY_S = 60.0
"""How often a process looks for what others have left."""
GRACE_S = 1.0
"""Seconds that the program of a dead run has to end itself."""

_log = logging.getLogger("prefect_dispatch")
_lock = threading.Lock()
_next: dict[str, float] = {}
"""When to look again, for each state folder."""


def reap() -> list[Lease]:
    """Clear away what the dead have left; return whose it was. What belongs to the living is not touched.

    Raises:
        JobError: If the state folder can't be used.
    """
    prune_logs()
    return clear_abandoned(lambda left: _end(left.id))


def reap_now_and_then() -> None:
    """Do so before a program is run, unless this process has just done so.

    Raises:
        JobError: If the state folder can't be used.
    """
    folder = str(state_folder())
    with _lock:
        if time.monotonic() < _next.get(folder, 0.0):
            return
        _next[folder] = time.monotonic() + EVERY_S
    for left in reap():
        _log.info("Cleared away what a run that died had left: %s", left.path)


def _end(lease: str) -> None:
    end(Mark(LEASE, lease), grace_s=GRACE_S)
