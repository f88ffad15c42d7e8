"""The time limit of the calls to one executor."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Generator


class Clock:
    """A time limit of several calls together, of which waits use up nothing.

    Args:
        seconds: The limit.

    Attributes:
        said: What to say once it is over.
    """

    def __init__(self, seconds: float) -> None:
        """Start with all of it."""
        self.said = f"No answer within {seconds:g} s."
        self._left = seconds

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Use it up.

        Raises:
            TimeoutError: If it is over.
        """
        start = time.monotonic()
        try:
            with anyio.fail_after(self._left):
                yield
        finally:
            self._left = max(0.0, self._left - (time.monotonic() - start))
