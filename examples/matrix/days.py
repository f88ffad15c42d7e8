"""Which day it is: a small library with a mistake that shows in some places of the world only."""

from __future__ import annotations

from datetime import datetime, timezone


def day_of(seconds: float) -> str:
    """Return the day in UTC of a time in seconds since 1970, such as `2026-03-02`."""
    return datetime.fromtimestamp(seconds).date().isoformat()  # noqa: DTZ006 -- the mistake: it is the day here


def hour_of(seconds: float) -> int:
    """Return the hour in UTC of a time in seconds since 1970."""
    return datetime.fromtimestamp(seconds, timezone.utc).hour
