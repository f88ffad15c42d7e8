"""How fast one model is asked: as fast as its provider takes it, and no faster.

What is stated for a minute is spread evenly over it. What isn't stated is learned: where the provider
refuses, all calls wait, for as long as it says or for doubling pauses; then one call tries; then the rest
follow, at the rate that was let through (see `creep`). A provider that bounds how many calls are under way
at once is served below what it allows; `limits.concurrency` tells its bound.

Limiters in libraries hold a rate that is known beforehand, and leave all of that to the caller.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefect_dispatch.block import Block, Turn, pause_s
from prefect_dispatch.creep import Creep
from prefect_dispatch.errors import PatienceError
from prefect_dispatch.line import Line

if TYPE_CHECKING:
    from prefect_dispatch.errors import BusyError
    from prefect_dispatch.limits import Limits

MINUTE = 60.0
MARGIN = 0.98
"""The share of what is stated that is used: two clocks, and the ways between them, are never quite alike."""
LATE_S = 1.0
"""How much lateness of a waiting call the next ones make good: a busy machine is often late; more would be a burst."""
TICK_S = 1e-6
"""What is due within this is due: a fraction of it can be too small for a clock to wait for."""


class Pace:
    """Lets the calls of one model pass, in the order in which they came.

    Everything but `enter` is instant. Each turn that it returns ends with exactly one of `passed`,
    `refused` and `lost`.

    Args:
        name: Who is asked, for messages.
        limits: What bounds the run.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        """Start without a rate, unless the limits state one."""
        self._name = name
        self._limits = limits
        self._creep = Creep()
        self._line: Line[Turn] = Line(self._pump, self.lost)
        self._timer: asyncio.TimerHandle | None = None
        self._window = float(limits.concurrency)
        self._under_way = 0
        self._idle_since: float | None = None
        self._requests_from = self._tokens_from = float("-inf")
        self._block: Block | None = None
        self._blocked_before_s = 0.0
        self._epoch = 0

    async def enter(self, tokens: int = 0, patience_s: float | None = None) -> Turn:
        """Wait for this call's turn.

        Args:
            tokens: The most that the call can take.
            patience_s: Seconds that it may wait for a provider that takes no more; `limits.wait_s` if empty.
                Waiting at a pace that is known doesn't count.

        Returns:
            The turn, now under way.

        Raises:
            PatienceError: If the provider asks for more patience than that.
        """
        now = _now()
        turn = Turn(tokens, self._limits.wait_s if patience_s is None else patience_s, now, self._blocked_s(now))
        if self._block and (error := self._impatient(self._block, turn, now)):
            raise error
        await self._line.wait(turn)
        return turn

    def passed(self, turn: Turn, tokens: int | None = None) -> None:
        """End a turn that the provider took; `tokens` is what it took, where that is known."""
        if tokens is not None:
            self._correct(turn, tokens)
        self._window = min(self._window + 1 / self._window, self._limits.concurrency)
        if self._block and turn is self._block.trying:
            self._open(self._block, turn)
        self._end()

    def lost(self, turn: Turn) -> None:
        """End a turn of which nobody knows whether the provider took it."""
        if self._block and turn is self._block.trying:
            self._block.trying = None
        self._end()

    def refused(self, turn: Turn, error: BusyError) -> None:
        """End a turn that the provider refused, and hold back all others."""
        now = _now()
        told_s = usable_wait_s(error, self._limits.wait_s)
        current = turn.epoch == self._epoch
        self._correct(turn, 0)
        self._creep.refused += current
        if self._block is None and (current or told_s):
            teaches = current and error.kind != "overloaded"
            self._block = Block(error.kind, teaches, since=now, until=now + (told_s or pause_s(0)), surely=now)
        if self._block:
            self._block.refused(turn, now, told_s)
            for waiting in self._line.waiting():
                if impatient := self._impatient(self._block, waiting, now):
                    self._line.refuse(waiting, impatient)
        self._end()

    def _end(self) -> None:
        self._under_way -= 1
        self._pump()
        if not self._under_way and not self._block and not self._line.first():
            self._idle_since = _now()

    def _pump(self) -> None:
        """Let pass who may pass now, and come back when the next one may."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while turn := self._line.first():
            due = self._due()
            if due is None:
                return
            if due > _now() + TICK_S:
                self._timer = asyncio.get_running_loop().call_at(due, self._pump)
                return
            if self._block and self._block.trying:
                self._open(self._block, self._block.trying)
            else:
                self._start(turn)

    def _due(self) -> float | None:
        """Return when the next thing happens; None if only the end of a call under way can bring it about."""
        if self._block and self._block.trying:
            return self._block.trying.started + self._block.verdict_s
        if self._under_way >= (self._limits.concurrency if self._block else int(self._window)):
            return None
        return self._block.until if self._block else max(self._requests_from, self._tokens_from)

    def _start(self, turn: Turn) -> None:
        now = _now()
        turn.started = now
        turn.blocked_s = self._blocked_s(now) - turn.blocked_before_s
        turn.epoch = self._epoch
        if self._block:
            turn.epoch += 1  # if it passes
            self._block.trying = turn
        else:
            self._creep.start(now, idle_s=now - self._idle_since if self._idle_since is not None else 0.0)
        self._idle_since = None
        since = max(turn.arrived, now - LATE_S)
        self._requests_from = max(self._requests_from, since) + self._request_s(now)
        self._tokens_from = max(self._tokens_from, since) + self._tokens_s(turn.tokens)
        self._under_way += 1
        self._line.grant()

    def _open(self, block: Block, trying: Turn) -> None:
        if 2 * self._creep.refused >= self._window:
            self._window = max(1.0, self._window / 2)
        self._creep.reopen(block, trying.started)
        self._blocked_before_s = self._blocked_s(_now())
        self._requests_from = trying.started + self._request_s(trying.started)
        self._block = None
        self._epoch += 1

    def _impatient(self, block: Block, turn: Turn, now: float) -> PatienceError | None:
        """Return the error of a call that would have to wait longer than it may."""
        left_s = max(block.until - now, 0.0)
        waited_s = self._blocked_s(now) - turn.blocked_before_s
        if waited_s + left_s <= turn.patience_s:
            return None
        return PatienceError(
            f"The provider of {self._name!r} takes no more for another {left_s:.1f} s at least, which is more than "
            f"this call may still wait: {max(turn.patience_s - waited_s, 0.0):.1f} s, of limits.wait_s "
            f"{self._limits.wait_s:g}; raise it, or run again later.",
            kind=block.kind,
        )

    def _blocked_s(self, now: float) -> float:
        """Return for how long the provider has taken no more, in all."""
        return self._blocked_before_s + (now - self._block.since if self._block else 0.0)

    def _request_s(self, now: float) -> float:
        """Return the seconds from one request to the next."""
        stated = self._limits.requests_per_minute
        return max(MINUTE / (stated * MARGIN) if stated else 0.0, self._creep.gap_s(now))

    def _tokens_s(self, tokens: int) -> float:
        """Return the seconds that so many tokens keep the next call waiting."""
        stated = self._limits.tokens_per_minute
        if not stated or not tokens:
            return 0.0
        return MINUTE / ((stated // tokens or stated / tokens) * MARGIN)  # calls don't fit into a minute in part

    def _correct(self, turn: Turn, tokens: int) -> None:
        self._tokens_from += self._tokens_s(tokens) - self._tokens_s(turn.tokens)


def usable_wait_s(error: BusyError, most_s: float) -> float:
    """Return the pause that a provider asks for, or 0 where it asks for none that is of use.

    One that is longer than any call may wait (days, or a broken header) would only fail them all: the provider is
    tried again after our own pauses instead, for as long as each call may wait.
    """
    told_s = error.retry_after_s
    return told_s if told_s is not None and 0 < told_s <= most_s else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
