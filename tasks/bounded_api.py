"""Bounded requests to Prefect's API that a run does not depend on: sent once, with a timeout of half a minute.

Prefect's client tries a request six times over more than a minute, and waits a minute for each answer. That is right
for the state of a run, and wrong for what is only displayed or looked up now and then.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, PrefectException
from prefect.runtime import flow_run

from prefect_dispatch.prefect_compat import override_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prefect.client.orchestration import SyncPrefectClient
    from typing_extensions import Self

TIMEOUT_S = 30.0
"""Seconds that one request may take."""
UNAVAILABLE = (httpx.HTTPError, PrefectException)
"""Errors of a request that the API did not answer, or refused."""


@contextmanager
def bounded_client() -> Generator[SyncPrefectClient]:
    """Yield a client that sends each request once, and waits half a minute for the answer."""
    with (
        override_settings("client", max_retries=0),
        get_client(httpx_settings={"timeout": TIMEOUT_S}, sync_client=True) as client,
    ):
        yield client


def is_cancelled(client: SyncPrefectClient, run: UUID) -> bool:
    """Return whether a flow run was cancelled; False if the API does not answer."""
    try:
        state = client.read_flow_run(run).state
    except UNAVAILABLE:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def raise_if_cancelled(run: UUID) -> None:
    """Check that a flow run was not cancelled.

    Raises:
        CancelledRun: If it was.
    """
    with bounded_client() as client:
        cancelled = is_cancelled(client, run)
    if cancelled:
        raise CancelledRun("The flow run was cancelled.")


class CancelWatch:
    """Background thread that checks whether the flow run was cancelled: an API that hangs delays nothing else."""

    def __init__(self, every_s: float) -> None:
        """Create the thread.

        Args:
            every_s: Seconds between two requests.
        """
        self._every_s = every_s
        self._run = UUID(flow_run.get_id())
        self._cancelled, self._stop_requested = threading.Event(), threading.Event()
        self._thread = start_thread(self._poll, "prefect-dispatch-cancel-watch", start=False)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread; a pending request is not waited for."""
        self._stop_requested.set()

    def check(self) -> None:
        """Check that the run was not cancelled, by the last request.

        Raises:
            CancelledRun: If it was.
        """
        if self._cancelled.is_set():
            raise CancelledRun("The flow run was cancelled.")

    def _poll(self) -> None:
        with bounded_client() as client:
            while not self._stop_requested.wait(self._every_s):
                if is_cancelled(client, self._run):
                    self._cancelled.set()
                    return


def start_thread(target: Callable[[], object], name: str, *, start: bool = True) -> threading.Thread:
    """Return a daemon thread that runs a function in a copy of this context, which includes Prefect's settings.

    Args:
        target: The function.
        name: The name of the thread.
        start: Whether to start it.
    """
    run: Callable[..., None] = cast("Any", copy_context().run)
    thread = threading.Thread(target=run, args=(target,), name=name, daemon=True)
    if start:
        thread.start()
    return thread
