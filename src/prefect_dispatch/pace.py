"""How fast one model is asked: as fast as its provider takes it, and no faster.

What a user says a minute allows is spread evenly over it. What nobody says is learned: where the
provider refuses, all calls wait, for as long as it says or for doubling pauses; then one call tries;
then the rest follow, just below the rate that was let through, creeping up until it refuses again.
Limiters in libraries hold a rate that is known beforehand, and leave all of that to the caller.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_dispatch.creep import MINUTE, Creep
from prefect_dispatch.errors import BusyError

if TYPE_CHECKING:
    from prefect_dispatch.models import Limits

MARGIN = 0.98
"""The share of a stated limit that is used: two clocks, and the way between them, are never quite alike."""
LATE_S = 0.1
"""How much lateness of a waiting call is made good by the next one; more would be a burst."""
LONGEST_PAUSE_S = 8.0
"""The longest pause before the next try, where the provider doesn't say."""
TICK_S = 1e-6
"""What is due within this is due: a clock's fraction can be too small to wait for."""


@dataclass(eq=False)
class Turn:
    """One call's place in the queue, and then its time under way."""

    tokens: int
    patience_s: float
    arrived: float
    blocked_before: float
    gate: asyncio.Future[None]
    epoch: int = 0
    started: float = 0.0
    blocked_s: float = 0.0
    """How long it waited for a provider that took no more."""


class Pace:
    """Lets calls of one model pass, in the order in which they came.

    Everything but `enter` is instant, and called from one event loop; each turn that `enter`
    returns ends with exactly one of `passed`, `refused` and `lost`.

    Args:
        name: Who is asked, for messages.
        limits: What bounds the run.

    Attributes:
        taken: How many calls the provider has taken so far.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        """Start without a rate, unless the limits state one."""
        self.taken = 0
        self._name = name
        self._limits = limits
        self._creep = Creep()
        self._queue: deque[Turn] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._window = float(limits.concurrency)
        self._requests_from = self._tokens_from = float("-inf")
        self._block: _Block | None = None
        self._blocked_s = 0.0
        self._epoch = 0

    async def enter(self, tokens: int = 0, patience_s: float | None = None) -> Turn:
        """Wait for this call's turn.

        Args:
            tokens: The most that the call can take.
            patience_s: Seconds that it may wait for a provider that takes no more; `limits.wait_s` if empty.
                Waiting for its turn at the pace that is known doesn't count.

        Returns:
            The turn, now under way.

        Raises:
            BusyError: If the provider asks for more patience than that.
        """
        loop = asyncio.get_running_loop()
        patience_s = self._limits.wait_s if patience_s is None else patience_s
        turn = Turn(tokens, patience_s, loop.time(), self._blocked(), loop.create_future())
        self._queue.append(turn)
        if self._block:
            self._dismiss(self._block)
        self._pump()
        try:
            await turn.gate
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
                self._pump()
            elif turn.gate.done() and not turn.gate.cancelled() and turn.gate.exception() is None:
                self.lost(turn)  # its turn had come, and it never knew
            raise
        return turn

    def passed(self, turn: Turn, tokens: int | None) -> None:
        """End a turn that the provider took; `tokens` is what it really took, where that is known."""
        self.taken += 1
        if tokens is not None:
            self._correct(turn, tokens)
        self._window = min(self._window + 1 / self._window, self._limits.concurrency)
        if self._block and turn is self._block.trying:
            self._open(self._block)
        self._end()

    def lost(self, turn: Turn) -> None:
        """End a turn of which nobody knows whether the provider took it."""
        if self._block and turn is self._block.trying:
            self._block.trying = None
        self._end()

    def refused(self, turn: Turn, retry_after_s: float | None, *, teaches: bool) -> None:
        """End a turn that the provider refused, and hold all others back.

        Args:
            turn: The turn.
            retry_after_s: When the provider wants to be asked again, where it said so.
            teaches: Whether it speaks of a rate; a provider that is overloaded doesn't.
        """
        now = _now()
        self._correct(turn, 0)
        told_s = retry_after_s if retry_after_s is not None and retry_after_s > 0 else 0.0
        block = self._block
        if turn.epoch == self._epoch:
            self._creep.refused += 1
        if block is None and (turn.epoch == self._epoch or told_s):
            block = self._block = _Block(since=now, shut=now, until=now + (told_s or _pause(0)), teaches=teaches)
        elif block and turn is block.trying:
            block.trying = None
            block.tries += 1
            block.until = now + max(told_s, _pause(block.tries))
        elif block and told_s:
            block.until = max(block.until, now + told_s)
        if block:
            block.shut = max(block.shut, turn.started, now + told_s - 1)
            block.verdict_s = max(block.verdict_s, 2 * (now - turn.started))
            self._dismiss(block)
        self._end()

    def _end(self) -> None:
        self._under_way -= 1
        self._pump()

    def _pump(self) -> None:
        """Let pass who may pass now, and come back when the next one may."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            due = self._due()
            if due is None:
                return
            if due > _now() + TICK_S:
                self._timer = asyncio.get_running_loop().call_at(due, self._pump)
                return
            if self._block and self._block.trying:
                self._open(self._block)
            else:
                self._start(self._queue.popleft())

    def _due(self) -> float | None:
        """Return when the next thing happens; None if only a turn's end can bring it about."""
        block = self._block
        if block and block.trying:
            return block.trying.started + block.verdict_s  # refusals come fast: no news is good news
        if self._under_way >= (self._limits.concurrency if block else int(self._window)):
            return None
        return block.until if block else max(self._requests_from, self._tokens_from)

    def _start(self, turn: Turn) -> None:
        now = _now()
        turn.started = now
        turn.epoch = self._epoch
        turn.blocked_s = self._blocked() - turn.blocked_before
        since = max(turn.arrived, now - LATE_S)
        self._requests_from = max(self._requests_from, since) + self._request_s(now)
        self._tokens_from = max(self._tokens_from, since) + self._tokens_s(turn.tokens)
        self._under_way += 1
        if self._block:
            self._block.trying = turn
            turn.epoch += 1
        else:
            self._creep.start(now)
        turn.gate.set_result(None)

    def _open(self, block: _Block) -> None:
        trying = block.trying
        assert trying  # noqa: S101 -- only a try opens
        if self._creep.refused * 2 >= self._window:
            self._window = max(1.0, self._window / 2)
        self._creep.reopen(block.since, block.shut - block.since, trying.started, teaches=block.teaches)
        self._requests_from = trying.started + self._request_s(trying.started)
        self._blocked_s = self._blocked()
        self._block = None
        self._epoch += 1

    def _dismiss(self, block: _Block) -> None:
        """Send away who would have to wait longer than they may."""
        left_s = block.until - _now()
        for turn in list(self._queue):
            if self._blocked() - turn.blocked_before + max(left_s, 0) > turn.patience_s:
                self._queue.remove(turn)
                turn.gate.set_exception(self._busy(left_s, turn.patience_s))

    def _busy(self, left_s: float, patience_s: float) -> BusyError:
        return BusyError(
            f"The provider of {self._name!r} takes no more for another {max(left_s, 0):.0f} s, which is more than the "
            f"{patience_s:.0f} s that may be waited in all; raise limits.wait_s, or run again later.",
            retry_after_s=left_s,
        )

    def _blocked(self) -> float:
        """Return for how many seconds the provider has taken no more, in all."""
        return self._blocked_s + (_now() - self._block.since if self._block else 0)

    def _request_s(self, now: float) -> float:
        """Return the seconds between one request and the next."""
        stated = self._limits.requests_per_minute
        return max(MINUTE / (stated * MARGIN) if stated else 0.0, self._creep.gap_s(now))

    def _tokens_s(self, tokens: int) -> float:
        """Return the seconds that so many tokens keep the next call waiting."""
        stated = self._limits.tokens_per_minute
        if not stated or not tokens:
            return 0.0
        return MINUTE / ((stated // tokens or stated / tokens) * MARGIN)  # only whole calls fit into a minute

    def _correct(self, turn: Turn, tokens: int) -> None:
        self._tokens_from += self._tokens_s(tokens) - self._tokens_s(turn.tokens)


@dataclass
class _Block:
    """A time in which the provider takes no more."""

    since: float
    shut: float
    until: float
    teaches: bool
    tries: int = 0
    trying: Turn | None = field(default=None)
    verdict_s: float = 0.0
    """How long to wait for the verdict on a try: twice as long as a refusal ever took."""


def _pause(tries: int) -> float:
    """Return the pause before the next try: doubling, each time a little different."""
    return min(0.5 * 2.0**tries, LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)  # noqa: S311 -- not cryptography


def _now() -> float:
    return asyncio.get_running_loop().time()
