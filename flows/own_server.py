"""The server that Prefect starts for a run where there is none."""

from __future__ import annotations

import signal
from contextlib import suppress
from contextvars import copy_context
from threading import Thread

from prefect.client.orchestration import get_client


def start_if_needed() -> None:
    """Have Prefect start its server, if it needs one of its own, deaf to Ctrl-C.

    A terminal sends that to every process of a command. The server would end at once, and the run wait for minutes to
    tell it how it ended. Prefect ends it with the process of the run, but where that is killed.
    """
    thread = Thread(target=copy_context().run, args=(_start,), daemon=True)
    thread.start()
    thread.join()


def _start() -> None:
    """Start it from a thread in which the signal is blocked, as it is then in what the thread starts."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch -- not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with suppress(Exception):  # the run meets it again, and tells it
        get_client(sync_client=True)
