"""What is in memory anyway is no garbage: collecting it again and again took a third of a fan-out's time."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

YOUNG = 10_000
"""Objects after which garbage is looked for: after 700, as Python does, what each item leaves is looked at twice."""

_lock = threading.Lock()
_users: list[object] = []
_before = gc.get_threshold()


@contextmanager
def at_rest() -> Generator[None]:
    """Leave what is in memory now out of the collections of garbage meanwhile.

    Prefect and litellm bring some 600,000 objects, which Python else walks through each time that items have brought
    a quarter as many. Whoever has frozen their own is left alone.
    """
    global _before  # noqa: PLW0603 -- of the process, as what it says is
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
