"""What a process of a pool does first: it leaves Ctrl-C to its parent, and ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


def settle_in() -> None:  # pragma: no cover -- in a process of its own
    """Settle in as a process of a pool.

    A terminal sends Ctrl-C to all processes; the parent ends what is under way, and waits for it. A parent that was
    killed can't: pools of Python's leave their processes behind then, waiting for more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_follow, args=(parent,), name="prefect-dispatch-parent", daemon=True).start()


def _follow(parent: BaseProcess) -> None:  # pragma: no cover -- in a process of its own
    parent.join()
    os._exit(1)
