"""Flows, served from this process to Prefect's UI, schedules and API.

Prefect's own `serve` ends when the API has failed a few times in a row. Here it begins again, for as long as an
outage may last: a server that restarts, or is too busy for a while, must not leave schedules without anybody.
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

from prefect_dispatch.deployments.registering import register_served
from prefect_dispatch.deployments.timing import Timing
from prefect_dispatch.errors import DispatchError
from prefect_dispatch.inert import plain
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefect_dispatch.deployments.building import Wanted
    from prefect_dispatch.deployments.registering import Registered

FIRST_S, MOST_S = 5.0, 60.0
"""Seconds before the first new try, and before any."""
OUTAGE_S = 3600.0
"""Seconds that an outage may last."""
HEALTHY_S = 600.0
"""Seconds of serving after which an outage is another one than the last."""
MAX_SAID = 200
"""Characters of an error that are shown."""


def serve(  # pragma: no cover -- never ends; test_worker runs it as a process
    deployments: Sequence[Wanted], timing: Timing, tell: Callable[[Sequence[Registered]], None]
) -> None:
    """Register deployments and serve them, each with one run at a time, until interrupted.

    Args:
        deployments: What is served.
        timing: What is said of their schedules; where serving begins again, they stay as they are by then.
        tell: Told what is registered, once.

    Raises:
        JobError: If they can't be registered at first.
        DispatchError: If Prefect's API has been out of order for an hour.
    """
    tell(register_served(deployments, timing))
    outage = Outage()
    again = False
    while True:
        began = time.monotonic()
        try:
            if again:
                register_served(deployments, Timing())
            serve_deployments(*(each.made for each in deployments), limit=len(deployments))
            return  # noqa: TRY300 -- interrupted
        except Exception as error:
            if not is_outage(error):
                raise
            wait_s = outage.pause(error, began, time.monotonic())
            sys.stderr.write(
                f"Prefect's API is out of order ({_short(error)}). Runs that were under way here have ended; what had "
                f"been answered is stored. Serving again in {wait_s:g} s.\n"
            )
            sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Prefect's handler is that of a runner which is gone
        time.sleep(wait_s)
        again = True


class Outage:
    """How long Prefect's API has been out of order."""

    def __init__(self) -> None:
        """Begin with none."""
        self._since: float | None = None
        self._tries = 0

    def pause(self, error: BaseException, began: float, now: float) -> float:
        """Return how many seconds to wait before the next try.

        Args:
            error: What came of the last try.
            began: When that began, in seconds of any clock.
            now: When it ended.

        Raises:
            DispatchError: If the outage has lasted too long.

        Example:
            >>> outage, error = Outage(), ConnectionError("refused")
            >>> [outage.pause(error, began, began) for began in (0, 5, 15, 35, 75, 135)]
            [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
            >>> outage.pause(error, 195, 9000)
            5.0
        """
        if self._since is None or now - began > HEALTHY_S:
            self._since, self._tries = now, 0
        if now - self._since > OUTAGE_S:
            raise DispatchError(
                f"Prefect's API has been out of order for {(now - self._since) / 60:.0f} min ({_short(error)}): see to "
                "the server, and serve again."
            )
        self._tries += 1
        return min(MOST_S, FIRST_S * 2.0 ** (self._tries - 1))


def is_outage(error: BaseException) -> bool:
    """Return whether an error says that Prefect's API is out of order for now: unreachable, gone, too busy, or broken.

    Example:
        >>> is_outage(RuntimeError("Service exceeded error threshold.")), is_outage(RuntimeError("No such flow."))
        (True, False)
    """
    return any(
        isinstance(each, (httpx.TransportError, ConnectionError, TimeoutError))
        or (isinstance(each, RuntimeError) and str(each) == "Service exceeded error threshold.")
        or _is_passing(getattr(getattr(each, "response", None), "status_code", None))  # of httpx, and of websockets
        or (isinstance(each, ConnectionClosed) and not _is_refused(each))
        for each in _all(error)
    )


def _is_passing(code: object) -> bool:
    return isinstance(code, int) and (code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS)


def _is_refused(closed: ConnectionClosed) -> bool:
    """Return whether the server has closed a connection as it doesn't want it; else it went away, or the way to it."""
    return closed.rcvd is not None and closed.rcvd.code in (CloseCode.PROTOCOL_ERROR, CloseCode.POLICY_VIOLATION)


def _all(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those of which it is a group, and those that it arose from."""
    left, seen = [error], set[int]()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            inside: tuple[BaseException, ...] = getattr(each, "exceptions", ())
            left += [*inside, *filter(None, (each.__cause__, each.__context__))]


def _short(error: BaseException) -> str:
    return plain(told(error))[:MAX_SAID]
