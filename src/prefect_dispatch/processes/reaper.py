"""Clears away what flow processes that died have left: their programs, their workspaces, their folders."""

from __future__ import annotations

import logging
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING

from prefect_dispatch.processes.environment import LEASE
from prefect_dispatch.processes.leases import PLAIN, clear_abandoned
from prefect_dispatch.processes.logs import prune_logs
from prefect_dispatch.processes.sweep import Mark, end
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.processes.leases import Lease

    Cleaner = Callable[[Lease], None]

EVERY_S = 60.0
"""How often a process looks for what others have left."""
GRACE_S = 1.0
"""Seconds that a dead run's program has to end itself."""

_HOMES = {"room": "prefect_dispatch.workspaces.rooms"}
"""The modules that know how to clear a kind of lease away; each registers itself as it is imported."""
_cleaners: dict[str, Cleaner] = {PLAIN: lambda _: None}
_log = logging.getLogger("prefect_dispatch")
_lock = threading.Lock()
_next: dict[str, float] = {}


def cleaner(kind: str) -> Callable[[Cleaner], Cleaner]:
    """Register what clears away that which belongs to a kind of lease beside its folder.

    Its programs are ended before it is called, its folder is removed after it. If it raises, the lease stays, and
    it is called again at another start.
    """

    def register(function: Cleaner) -> Cleaner:
        _cleaners[kind] = function
        return function

    return register


def reap() -> list[Lease]:
    """Clear away what the dead have left; return what was cleared away. What belongs to the living is not touched.

    Raises:
        JobError: If the state folder can't be used.
    """
    prune_logs()
    return clear_abandoned(_clear)


def reap_now_and_then() -> None:
    """Clear away what the dead have left, unless this process has just done so.

    Raises:
        JobError: If the state folder can't be used.
    """
    with _lock:
        if time.monotonic() < _next.get("reap", 0.0):
            return
        _next["reap"] = time.monotonic() + EVERY_S
    for left in reap():
        _log.info("Cleared away what a run that died had left: %s", left.path)


def _clear(left: Lease) -> bool:
    end(Mark(LEASE, left.id), grace_s=GRACE_S)
    try:
        if home := _HOMES.get(left.kind):
            import_module(home)
        clean = _cleaners.get(left.kind)
        if clean is None:  # of another version
            return False
        clean(left)
    except Exception as error:  # noqa: BLE001 -- what can't be cleared away now stops no run
        _log.warning("What a run that died has left can't be cleared away (%s): %s", left.path, told(error))
        return False
    return True
