"""The pace: as fast as a provider takes it, and hardly ever refused."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Protocol

import pytest

from prefect_dispatch.errors import BusyError
from prefect_dispatch.models import Limits
from prefect_dispatch.pace import Pace
from tests.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable

ALLOWED = 600
"""Requests a minute, at every provider here."""


class Provider(Protocol):
    """How a provider counts."""

    def refusal_s(self, now: float) -> float | None:
        """Take a request, returning None; or refuse it, returning when the next one would be taken."""
        ...


class FixedWindow:
    """So many in each minute of its clock, which began before the run."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s, self.minute, self.count = offset_s, -1, 0

    def refusal_s(self, now: float) -> float | None:
        minute, past_s = divmod(now + self.offset_s, 60)
        if minute != self.minute:
            self.minute, self.count = int(minute), 0
        if self.count < ALLOWED:
            self.count += 1
            return None
        return 60 - past_s


class SlidingWindow:
    """So many in any 60 seconds."""

    def __init__(self) -> None:
        self.taken: deque[float] = deque()

    def refusal_s(self, now: float) -> float | None:
        while self.taken and self.taken[0] <= now - 60:
            self.taken.popleft()
        if len(self.taken) < ALLOWED:
            self.taken.append(now)
            return None
        return self.taken[0] + 60 - now


class Bucket:
    """Tokens that flow in evenly, up to a burst."""

    def __init__(self, burst: int) -> None:
        self.burst, self.level, self.seen = burst, float(burst), 0.0

    def refusal_s(self, now: float) -> float | None:
        self.level = min(self.burst, self.level + (now - self.seen) * ALLOWED / 60)
        self.seen = now
        if self.level >= 1:
            self.level -= 1
            return None
        return (1 - self.level) * 60 / ALLOWED


class Seen:
    """What a provider saw: when it took a request, and when it refused one."""

    def __init__(self) -> None:
        self.passed: list[float] = []
        self.refused: list[float] = []

    def passed_within(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.passed)

    def refused_within(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.refused)


async def simulate(
    provider: Provider, limits: Limits, *, latency_s: float, minutes: float, hint: Callable[[float], float] | None
) -> Seen:
    """Ask a provider as fast as the pace lets `limits.concurrency` callers."""
    loop = asyncio.get_running_loop()
    pace = Pace("simulated", limits)
    seen = Seen()

    async def ask_on() -> None:
        while True:
            turn = await pace.enter()
            await asyncio.sleep(latency_s / 2)
            refusal_s = provider.refusal_s(loop.time())
            (seen.passed if refusal_s is None else seen.refused).append(loop.time())
            await asyncio.sleep(latency_s / 2)
            if refusal_s is None:
                pace.passed(turn, None)
            else:
                pace.refused(turn, BusyError("429", retry_after_s=hint(refusal_s) if hint else None))

    callers = [asyncio.create_task(ask_on()) for _ in range(limits.concurrency)]
    await asyncio.sleep(minutes * 60)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return seen
