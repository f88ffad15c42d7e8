"""Providers with a limit of so many requests a minute, each counting in its own way."""

from __future__ import annotations

from collections import deque
from typing import Protocol

ALLOWED = 600
"""Requests a minute, at every provider here."""


class Provider(Protocol):
    """How a provider counts."""

    def refusal_s(self, now: float) -> float | None:
        """Take a request, returning None; or refuse it, returning in how many seconds one would be taken."""
        ...


class FixedWindow:
    """So many in each minute of its clock."""

    def __init__(self, past_s: float = 0.0) -> None:
        """Start when some of the minute is over already."""
        self.past_s, self.minute, self.count = past_s, -1.0, 0

    def refusal_s(self, now: float) -> float | None:
        """Count within the minute."""
        minute, past_s = divmod(now + self.past_s, 60)
        if minute != self.minute:
            self.minute, self.count = minute, 0
        if self.count < ALLOWED:
            self.count += 1
            return None
        return 60 - past_s


class SlidingWindow:
    """So many in any 60 seconds."""

    def __init__(self) -> None:
        """Start with none."""
        self.taken: deque[float] = deque()

    def refusal_s(self, now: float) -> float | None:
        """Count what was taken in the last 60 seconds."""
        while self.taken and self.taken[0] <= now - 60:
            self.taken.popleft()
        if len(self.taken) < ALLOWED:
            self.taken.append(now)
            return None
        return self.taken[0] + 60 - now


class Bucket:
    """Permits that flow in evenly, up to a burst."""

    def __init__(self, burst: int) -> None:
        """Start full."""
        self.burst, self.level, self.seen = burst, float(burst), 0.0

    def refusal_s(self, now: float) -> float | None:
        """Take a permit if there is one."""
        self.level = min(self.burst, self.level + (now - self.seen) * ALLOWED / 60)
        self.seen = now
        if self.level >= 1:
            self.level -= 1
            return None
        return (1 - self.level) * 60 / ALLOWED
