"""How often a call about a batch is tried, and how long is waited in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefect_dispatch.errors import BusyError, TransientError
from prefect_dispatch.pace import usable_wait_s

if TYPE_CHECKING:
    from prefect_dispatch.limits import Limits

MOST_DELAY_S = 3600.0
"""How long to wait before a retry, at most."""
_DOUBLINGS = 20


class Patience:
    """What one call may still try: a busy provider is waited for, any other failure is retried as the limits say.

    Args:
        limits: How the run is bounded.
        submitted: Whether the call is about a batch that is under way: then nothing is lost by looking again
            later, so whatever is wrong is waited for as a busy provider is.
        least_s: Seconds of the first wait; each further one is twice as long.
        most_s: Seconds of a wait, at most, unless the provider asks for more.
    """

    def __init__(self, limits: Limits, *, submitted: bool, least_s: float, most_s: float) -> None:
        """Start with all of it."""
        self._limits, self._submitted = limits, submitted
        self._least_s, self._most_s = least_s, most_s
        self._last = time.monotonic() + limits.wait_s
        self._waits = self._retries = 0

    def after(self, error: TransientError) -> tuple[float, str]:
        """Return for how many seconds to wait before the next try, and which limit that draws on.

        Args:
            error: What became of the last one.

        Raises:
            TransientError: The same, if that was the last one.
        """
        if not self._submitted and not isinstance(error, BusyError):
            return self._retry(error)
        told_s = usable_wait_s(error, self._limits.wait_s) if isinstance(error, BusyError) else 0.0
        pause_s = max(min(self._least_s * 2 ** min(self._waits, _DOUBLINGS), self._most_s), told_s)
        left_s = self._last - time.monotonic()
        if pause_s > left_s:
            raise error
        self._waits += 1
        return pause_s, f"{left_s:.0f} s are left of limits.wait_s"

    def _retry(self, error: TransientError) -> tuple[float, str]:
        if self._retries >= self._limits.retries:
            raise error
        pause_s = min(self._limits.retry_delay_s * 2**self._retries, MOST_DELAY_S)
        self._retries += 1
        return pause_s, f"retry {self._retries} of {self._limits.retries}, limits.retries"
