"""Heartbeats that end with their run.

The thread that sends Prefect's own looks once a second whether its run has ended, and Prefect waits for it: for half a
second on average, and a run that finds everything stored takes little longer itself. So a flow that is called is run
without, and sends the same ones by itself. One that a worker begins has Prefect's, and where those are rarer than every
`MOST_S` seconds, ours beside them: the automation that ends dead runs has to know how long a living run is silent, and
it does not know the settings of the workers.
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
"""Seconds between two heartbeats at most: Prefect's default."""
LAST_S = 5.0
"""Seconds that a step which is under way has to end."""
_before: ContextVar[float | None] = ContextVar("before", default=None)
"""Seconds between two heartbeats by the settings with which the flow that is being called was called, if any."""


@contextmanager
def without_prefects() -> Generator[None]:
    """Have Prefect send none for the flow that is called within."""
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
def beating() -> Generator[None]:
    """Send those that Prefect was kept from sending; for flows that are called within, it sends its own.

    In a run whose heartbeats Prefect sends, send more of them where Prefect's are rare.
    """
    before = _before.get()
    every_s = before or get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        yield
        return
    if before is None:
        with ticking(_beat, MOST_S) if every_s > MOST_S else nullcontext():
            yield
        return
    token = _before.set(None)
    try:
        with override_settings("flows", heartbeat_frequency=every_s):
            _beat()
            with ticking(_beat, min(every_s, MOST_S)):
                yield
    finally:
        _before.reset(token)


@contextmanager
def ticking(step: Callable[[], object], every_s: float) -> Generator[None]:
    """Take a step every so many seconds, beside what is done within and no longer."""
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
        thread.join(LAST_S)  # a step may hang that asks the API


def _beat() -> None:
    run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
        "prefect.resource.name": str(flow_run.get_name()),
        "prefect.version": __version__,
    }
    with suppress(Exception):  # one that is lost is none the worse; Prefect's go on in the same way
        emit_event("prefect.flow-run.heartbeat", resource=run)
