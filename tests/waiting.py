"""Waiting for something in another thread or process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end, f"not within 90 s: {what}"
        time.sleep(0.05)
