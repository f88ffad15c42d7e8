"""Heartbeats of a flow run that stop without delay when the run ends.

The thread of Prefect's own heartbeats checks once a second whether its run has ended, and Prefect waits for it: half a
second on average, and a run whose answers are all stored takes little longer itself. So a flow that is called runs
without them and sends equal ones itself. A flow that a worker starts has Prefect's heartbeats, and additional ones of
ours if those are rarer than every `MOST_S` seconds: the automation that ends dead runs needs a maximum interval, and it
does not know the settings of the workers.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING

from prefect import __version__
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from prefect_dispatch.prefect_compat import override_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

MOST_S = 180
"""Maximum seconds between two heartbeats: Prefect's default interval."""
LAST_S = 5.0
"""Time limit in seconds for a step in progress to end."""
_before: ContextVar[float | None] = ContextVar("before", default=None)
"""The interval in seconds by the settings of the caller of the current flow; None if Prefect sends its heartbeats."""


@contextmanager
def without_prefect_heartbeats() -> Generator[None]:
    """Disable Prefect's heartbeats for the flow that is called in the body."""
    every_s = get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        yield
        return
    token = _before.set(every_s)
    try:
        with override_settings("flows", heartbeat_frequency=None):
            yield
    finally:
        _before.reset(token)


@contextmanager
def send_heartbeats() -> Generator[None]:
    """Send the heartbeats of the current run while the body runs.

    If Prefect's were disabled by `without_prefect_heartbeats`, send all of them, and enable Prefect's for flows called
    in the body. Otherwise send additional ones if Prefect's interval is longer than `MOST_S`.
    """
    before = _before.get()
    every_s = before or get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        yield
        return
    if before is None:
        with run_periodically(_send_heartbeat, MOST_S) if every_s > MOST_S else nullcontext():
            yield
        return
    token = _before.set(None)
    try:
        with override_settings("flows", heartbeat_frequency=every_s):
            _send_heartbeat()
            with run_periodically(_send_heartbeat, min(every_s, MOST_S)):
                yield
    finally:
        _before.reset(token)


@contextmanager
def run_periodically(step: Callable[[], object], every_s: float) -> Generator[None]:
    """Run a step periodically in a thread while the body runs."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(every_s):
            step()

    thread = threading.Thread(target=copy_context().run, args=(tick,), name="prefect-dispatch-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_S)  # with a time limit, as a step that calls the API may hang


def _send_heartbeat() -> None:
    run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
        "prefect.resource.name": str(flow_run.get_name()),
        "prefect.version": __version__,
    }
    with suppress(Exception):  # a lost heartbeat does no harm; Prefect ignores errors, too
        emit_event("prefect.flow-run.heartbeat", resource=run)
