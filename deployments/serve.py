"""Serving of flows from this process to Prefect's UI, schedules and API, with retries during an outage.

Prefect's own `serve` ends when the API has failed a few times in a row. Here it is restarted with backoff, up to the
maximum length of an outage: a server that restarts, or is too busy for a while, must not stop the schedules.
"""

from __future__ import annotations

import signal
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
from prefect import serve as serve_deployments
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from prefect_dispatch.deployments.register import register_served
from prefect_dispatch.deployments.specs import ScheduleOverride
from prefect_dispatch.errors import DispatchError
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.security.redaction import safe_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefect_dispatch.deployments.register import RegisteredDeployment
    from prefect_dispatch.deployments.specs import PlannedDeployment

FIRST_S, MOST_S = 5.0, 60.0
"""Initial and maximum backoff in seconds."""
OUTAGE_S = 3600.0
"""Maximum length of an outage in seconds."""
HEALTHY_S = 600.0
"""Seconds of serving after which the next error begins a new outage."""
MAX_MESSAGE = 200
"""Maximum characters of an error that are shown."""


def serve(  # pragma: no cover -- never ends; test_worker runs it as a process
    deployments: Sequence[PlannedDeployment],
    timing: ScheduleOverride,
    on_registered: Callable[[Sequence[RegisteredDeployment]], None],
) -> None:
    """Register deployments and serve them, each with one run at a time, until interrupted.

    Args:
        deployments: The deployments.
        timing: The schedule options of the command line; after an outage, schedules are not changed again.
        on_registered: Called once with the registered deployments.

    Raises:
        JobError: If they can't be registered at first.
        DispatchError: If Prefect's API has been out of order for an hour.
    """
    # Errors of the first registration are the user's; only later ones can be an outage.
    on_registered(register_served(deployments, timing))
    outage = Outage()
    again = False
    while True:
        began = time.monotonic()
        try:
            if again:
                register_served(deployments, ScheduleOverride())
            serve_deployments(*(each.deployment for each in deployments), limit=len(deployments))
            return  # noqa: TRY300 -- interrupted by the user
        except Exception as error:
            if not is_outage(error):
                raise
            wait_s = outage.next_delay_s(error, began, time.monotonic())
            sys.stderr.write(
                f"Prefect's API is out of order ({_error_summary(error)}). Runs that were under way here have ended; "
                f"what had been answered is stored. Serving again in {wait_s:g} s.\n"
            )
            sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Prefect's handler belongs to the runner that has ended
        time.sleep(wait_s)
        again = True


class Outage:
    """Exponential backoff during an outage of Prefect's API."""

    def __init__(self) -> None:
        """Start without an outage."""
        self._since: float | None = None
        self._tries = 0

    def next_delay_s(self, error: BaseException, began: float, now: float) -> float:
        """Return how many seconds to wait before the next try.

        Args:
            error: The error of the last try.
            began: The start of the last try, in seconds of any clock.
            now: The end of the last try.

        Raises:
            DispatchError: If the outage has lasted too long.

        Example:
            >>> outage, error = Outage(), ConnectionError("refused")
            >>> [outage.next_delay_s(error, began, began) for began in (0, 5, 15, 35, 75, 135)]
            [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
            >>> outage.next_delay_s(error, 195, 9000)
            5.0
        """
        if self._since is None or now - began > HEALTHY_S:
            self._since, self._tries = now, 0
        if now - self._since > OUTAGE_S:
            raise DispatchError(
                f"Prefect's API has been out of order for {(now - self._since) / 60:.0f} min "
                f"({_error_summary(error)}): see to the server, and serve again."
            )
        self._tries += 1
        return min(MOST_S, FIRST_S * 2.0 ** (self._tries - 1))


def is_outage(error: BaseException) -> bool:
    """Return whether an error is a temporary failure of Prefect's API: unreachable, gone, too busy, or broken.

    Example:
        >>> is_outage(RuntimeError("Service exceeded error threshold.")), is_outage(RuntimeError("No such flow."))
        (True, False)
    """
    return any(
        isinstance(each, (httpx.TransportError, ConnectionError, TimeoutError))
        or (isinstance(each, RuntimeError) and str(each) == "Service exceeded error threshold.")
        or _is_transient_status(
            getattr(getattr(each, "response", None), "status_code", None)
        )  # of httpx, and of websockets
        or (isinstance(each, ConnectionClosed) and not _is_rejection(each))
        for each in _iter_causes(error)
    )


def _is_transient_status(code: object) -> bool:
    return isinstance(code, int) and (code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS)


def _is_rejection(closed: ConnectionClosed) -> bool:
    """Return whether the server rejected a connection; otherwise the server or the network failed."""
    return closed.rcvd is not None and closed.rcvd.code in (CloseCode.PROTOCOL_ERROR, CloseCode.POLICY_VIOLATION)


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the members of an exception group, and all causes and contexts."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            members: tuple[BaseException, ...] = getattr(each, "exceptions", ())
            pending += [*members, *filter(None, (each.__cause__, each.__context__))]


def _error_summary(error: BaseException) -> str:
    return strip_control_chars(safe_message(error))[:MAX_MESSAGE]
