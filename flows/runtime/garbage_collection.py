"""Garbage collection during a run: existing objects are frozen, as scanning them took a third of a fan-out's time."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

YOUNG = 10_000
"""Threshold of the youngest generation: with Python's 700, the objects of each item would be scanned twice."""
_lock = threading.Lock()
_users: list[object] = []
_before = gc.get_threshold()


@contextmanager
def frozen_gc() -> Generator[None]:
    """Exclude the present objects from garbage collection while the body runs.

    Prefect and litellm create some 600,000 objects, which Python would otherwise scan each time that items have created
    a quarter as many. Nothing is changed if the process has frozen objects of its own.
    """
    global _before  # noqa: PLW0603 -- the thresholds of the collector are global to the process, too
    mine = object()
    with _lock:
        if _users or not gc.get_freeze_count():
            if not _users:
                _before = gc.get_threshold()
                gc.set_threshold(_before[0] and max(_before[0], YOUNG), *_before[1:])
            _users.append(mine)
            gc.freeze()
    try:
        yield
    finally:
        with _lock:
            if mine in _users:
                _users.remove(mine)
                if not _users:
                    gc.unfreeze()
                    gc.set_threshold(*_before)
