"""Adaptive rate limiter for the calls of one model.

A stated rate per minute is spread evenly over the minute. An unstated one is learned: after a refusal (429,
overloaded) all calls wait for a cooldown, as long as the provider's `Retry-After` or an exponential backoff; then
one call probes; then the rest follow at the rate that the provider let through (see the adaptive rate below). A
provider that bounds how many calls are in flight at once is served below that bound; set `limits.concurrency` to it.

Rate limiters in libraries hold a rate that is known beforehand, and leave the learning to the caller.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from prefect_dispatch.errors import PatienceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.errors import BusyError
    from prefect_dispatch.models.limits import Limits


INITIAL_DISCOUNT = 0.03
"""Share by which an epoch, the time between two cooldowns, begins below the learned rate."""

MIN_RECOVERY_S, MAX_UNCONFIRMED_RECOVERY_S, MAX_RECOVERY_S = 10.0, 45.0, 120.0
"""Bounds of the time in which the rate grows back to the learned one. It is the length of the epoch in which it was
learned, between the first two; each confirmation doubles it, up to the last."""

SIMILARITY, FEW_CALLS, MANY_CALLS, LONG_EPOCH_S = 0.15, 10, 100, 20.0
"""An estimate is confirmed if it differs from the one before by at most the first share, and both with all similar ones
before rest on more than the third number of calls, or on an epoch of at least the fourth length. An unconfirmed
estimate is doubted if it rests on at most the second number of calls; on at most the third, if the provider refused
after the end of its own `Retry-After`."""

MAX_DOUBLINGS = 60.0
"""Upper bound of how often a doubted rate is doubled: by then there is practically no limit."""

STRAY_WINDOW, STRAY_SHARE, STRAY_SHARE_FAR_BELOW = 600.0, 0.01, 0.1
"""A provider that refuses less than the second share of about so many recent calls refuses at random. Nothing is
learned from a single refusal then: the rate would fall again and again, and as large a share of the calls be refused.
The third share counts while the rate is below half of the highest confirmed one."""

PEAK_DECAY = 0.98
"""Factor by which the highest confirmed rate decays with each new estimate."""


CLOCK_TOLERANCE_S = 1e-6
"""Time within which an event counts as due: a smaller wait can be below the clock's resolution."""


class AdaptiveRate:
    """Adaptive rate: estimates the calls per second that a provider allows, from what it lets through and refuses.

    After each estimate the rate grows along a cubic curve, as in TCP CUBIC: from a little below the estimate, over a
    plateau at it, to more and more above it, until the provider refuses again.

    Attributes:
        opened_at: Start of the epoch, on the event loop's clock in seconds: when the last cooldown ended.
        started: Calls started since then.
        refused: Calls of this epoch that the provider refused.

    Example:
        >>> from prefect_dispatch.calls.rate_limiter import Cooldown
        >>> rate = AdaptiveRate()
        >>> rate.interval_s(now=0.0)
        0.0
        >>> rate.opened_at, rate.started, rate.refused = 0.0, 620, 20
        >>> cooldown = Cooldown("rate_limit", is_rate_related=True, since=4.0, until=60.0, blocked_until_at_least=59.0)
        >>> rate.start_epoch(cooldown, now=60.0)
        >>> round(60 / rate.interval_s(now=60.0))
        582
    """

    def __init__(self) -> None:
        """Start without a rate."""
        self.opened_at: float | None = None
        self.started = self.refused = 0
        self._rate = math.inf
        self._recovery_s = MIN_RECOVERY_S
        self._doubling_calls = math.inf
        self._calls_since_refusal = self._confirming_calls = 0
        self._was_misled = False
        self._learned_at = 0.0
        self._calls = self._refusals = 0.0
        self._peak_rate = 0.0

    def start(self, now: float, *, idle_s: float) -> None:
        """Count a call that starts.

        Args:
            now: The time in seconds.
            idle_s: Seconds before it in which no call waited; they count for no rate.
        """
        self.started += 1
        self.opened_at = now if self.opened_at is None else self.opened_at + idle_s
        self._calls_since_refusal += 1
        self._learned_at += idle_s

    def start_epoch(self, block: Cooldown, now: float) -> None:
        """Begin a new epoch after a cooldown, whose probe is its first call, and learn from the epoch that ended.

        Args:
            block: The cooldown that ended.
            now: When its probe was sent.
        """
        passed = self.started - self.refused
        if self._is_stray(block):
            self._learned_at += now - block.since
        else:
            if block.is_rate_related and passed and self.opened_at is not None:
                self._learn(block, passed, max(block.until - self.opened_at, CLOCK_TOLERANCE_S))
            self._learned_at = now
        self.opened_at, self.started, self.refused = now, 1, 0

    def interval_s(self, now: float) -> float:
        """Return the seconds between the starts of two calls; 0 while no rate has been learned."""
        return 1 / self._rate_at(now)

    def _is_stray(self, block: Cooldown) -> bool:
        """Return whether a cooldown followed a single refusal by a provider that refuses calls at random."""
        decay = 0.5 ** (self.started / STRAY_WINDOW)
        self._calls = decay * self._calls + self.started
        self._refusals = decay * self._refusals + self.refused
        far_below = self._rate_at(block.since) < self._peak_rate / 2
        stray = STRAY_SHARE_FAR_BELOW if far_below else STRAY_SHARE
        return block.is_short and self.refused == 1 and self._refusals < stray * self._calls

    def _learn(self, block: Cooldown, passed: int, whole_s: float) -> None:
        """Estimate the rate from an epoch and the cooldown after it.

        Args:
            block: The cooldown.
            passed: Calls of the epoch that the provider took.
            whole_s: Seconds of the epoch, the cooldown included.
        """
        # 1. The allowed rate lies between what passed in all of the time and what passed before the refusal: take the
        #    geometric mean.
        least = passed / whole_s
        most = min(self._rate_at(block.since), 2 * least) * (1 - (block.blocked_until_at_least - block.since) / whole_s)
        estimate = math.sqrt(least * max(least, most))
        # 2. See whether it confirms the estimate before it. A confirmed rate grows more slowly, so that fewer calls are
        #    refused.
        alike = abs(estimate - self._rate) <= SIMILARITY * self._rate < math.inf
        self._confirming_calls = passed + alike * self._confirming_calls
        confirmed = alike and (self._confirming_calls > MANY_CALLS or whole_s >= LONG_EPOCH_S)
        unconfirmed_s = min(max(whole_s, MIN_RECOVERY_S), MAX_UNCONFIRMED_RECOVERY_S)
        self._recovery_s = min(2 * self._recovery_s, MAX_RECOVERY_S) if confirmed else unconfirmed_s
        # 3. A doubted rate doubles as calls pass, and so is soon corrected if it is far too low.
        self._was_misled |= block.retry_after_was_too_short
        doubted = not confirmed and passed <= (MANY_CALLS if self._was_misled else FEW_CALLS)
        self._doubling_calls = max(self._confirming_calls / 2, 1.0) if doubted else math.inf
        self._calls_since_refusal = 0
        self._rate = estimate
        self._peak_rate = max(estimate if confirmed else 0.0, PEAK_DECAY * self._peak_rate)

    def _rate_at(self, now: float) -> float:
        """Return the allowed calls per second: the learned rate along a cubic curve, doubled while it is doubted."""
        along = (now - self._recovery_s - self._learned_at) / self._recovery_s
        doubled = 2 ** min(self._calls_since_refusal / self._doubling_calls, MAX_DOUBLINGS)
        return self._rate * (1 + INITIAL_DISCOUNT * along**3) * doubled


FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 8.0
"""Bounds of the exponential backoff before a probe, where the provider sends no `Retry-After`; it doubles each time."""

TRUSTED_PROBES = 10
"""So many probes in a row may fail before pauses that the provider asks for are made longer, too."""

RETRY_AFTER_ROUNDING_S = 1.0
"""Providers round `Retry-After` up to whole seconds: it may be so much longer than needed."""


@dataclass(eq=False)
class PendingCall:
    """A call, first in the queue and then in flight; times are seconds on the event loop's clock."""

    tokens: int
    """Upper bound of its tokens."""
    patience_s: float
    """Seconds that it may wait in cooldowns."""
    arrived: float
    """When it joined the queue."""
    blocked_before_s: float
    """Seconds of all cooldowns before that."""
    epoch: int = 0
    """The epoch in which it was sent."""
    started: float = 0.0
    """When it was sent."""
    blocked_s: float = 0.0
    """Seconds that it has waited in cooldowns."""


@dataclass
class Cooldown:
    """Cooldown of a provider: from a refusal to the next call that passes.

    Attributes:
        kind: The `kind` of the error with which the provider refused.
        is_rate_related: Whether a rate can be learned from it.
        since: When it began.
        until: When the next call may probe.
        blocked_until_at_least: Up to when the provider certainly took no more calls.
        failed_probes: Number of failed probes.
        probe: The probe in flight.
        probe_timeout_s: Seconds after which a probe that wasn't refused counts as taken.
    """

    kind: str
    is_rate_related: bool
    since: float
    until: float
    blocked_until_at_least: float
    failed_probes: int = 0
    probe: PendingCall | None = None
    probe_timeout_s: float = 0.0
    has_retry_after: bool = False
    """Whether the provider sent a `Retry-After` of a second at least."""

    @property
    def retry_after_was_too_short(self) -> bool:
        """Whether the provider refused a probe after the end of its own `Retry-After`."""
        return self.has_retry_after and self.failed_probes > 0

    @property
    def is_short(self) -> bool:
        """Whether the first probe passed, and the provider asked for no long wait."""
        return not self.failed_probes and self.until - self.since <= FIRST_BACKOFF_S + RETRY_AFTER_ROUNDING_S

    def record_refusal(self, turn: PendingCall, now: float, retry_after_s: float) -> None:
        """Record a refusal: of the call that began the cooldown, of a probe, or of a call that was in flight.

        Args:
            turn: The call.
            now: The time in seconds.
            retry_after_s: The provider's `Retry-After`; 0 where it sent none.
        """
        if turn is self.probe:
            self.probe = None
            self.failed_probes += 1
            failed = self.failed_probes // TRUSTED_PROBES if retry_after_s else self.failed_probes
            self.until = now + max(retry_after_s, backoff_s(failed))
        else:
            self.until = max(self.until, now + retry_after_s)
        self.has_retry_after |= retry_after_s >= RETRY_AFTER_ROUNDING_S
        self.blocked_until_at_least = max(
            self.blocked_until_at_least, turn.started, now + retry_after_s - RETRY_AFTER_ROUNDING_S
        )
        # Providers refuse fast: a probe without a refusal after twice the time of a refusal was taken.
        self.probe_timeout_s = max(self.probe_timeout_s, 2 * (now - turn.started))


def backoff_s(tries: int) -> float:
    """Return the exponential backoff in seconds after so many failed probes, with a jitter of a quarter."""
    return min(FIRST_BACKOFF_S * 2.0**tries, MAX_BACKOFF_S) * random.uniform(0.75, 1.25)  # noqa: S311 -- no secret


T = TypeVar("T")


class FifoWaiters(Generic[T]):
    """FIFO queue of waiting tasks that loses no grant when a task is cancelled.

    Args:
        pump: Called when the front of the queue may have changed; grants or refuses from the front on.
        give_back: Called with an entry that was granted to a task which was cancelled before it resumed.
    """

    def __init__(self, pump: Callable[[], None], give_back: Callable[[T], None]) -> None:
        """Start with an empty queue."""
        self._pump = pump
        self._give_back = give_back
        self._waiters: deque[tuple[T, asyncio.Future[None]]] = deque()

    async def wait(self, entry: T) -> None:
        """Wait until the entry is granted.

        Raises:
            Exception: The error with which it was refused.
        """
        waiter = (entry, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._pump()
        try:
            await waiter[1]
        except asyncio.CancelledError:
            # A cancelled task leaves the queue, or gives back what it was granted.
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._pump()
            elif not waiter[1].cancelled() and waiter[1].exception() is None:
                self._give_back(entry)
            raise

    def list_waiting(self) -> list[T]:
        """Return the waiting entries in order of arrival."""
        return [entry for entry, future in self._waiters if not future.done()]

    def peek(self) -> T | None:
        """Return the entry at the front; None if the queue is empty."""
        while self._waiters and self._waiters[0][1].done():  # cancelled, and its task hasn't resumed yet
            self._waiters.popleft()
        return self._waiters[0][0] if self._waiters else None

    def grant_first(self) -> None:
        """Grant the entry at the front."""
        self._waiters.popleft()[1].set_result(None)

    def reject(self, entry: T, error: Exception) -> None:
        """Remove an entry from the queue, and raise an error in its task."""
        waiter = next(waiter for waiter in self._waiters if waiter[0] is entry)
        self._waiters.remove(waiter)
        waiter[1].set_exception(error)


MINUTE_S = 60.0

RATE_MARGIN = 0.98
"""Share of a stated rate that is used: the provider's clock and latency differ a little from ours."""

MAX_CATCH_UP_S = 1.0
"""Seconds of delay of a waiting call that the next ones make up for: a busy machine is often late, more is a burst."""


class RateLimiter:
    """Rate limiter for the calls of one model, in order of arrival.

    Only `enter` waits. Each turn that it returns ends with exactly one of `on_success`,
    `on_rejected` and `on_unknown`.

    Args:
        name: Name of the executor, for messages.
        limits: Limits of the run.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        """Start without a rate, unless the limits state one."""
        self._name = name
        self._limits = limits
        self._adaptive_rate = AdaptiveRate()
        self._queue: FifoWaiters[PendingCall] = FifoWaiters(self._wake_next, self.on_unknown)
        self._timer: asyncio.TimerHandle | None = None
        # Calls that may be in flight: grows by one per window of calls, and halves if half of a window was refused
        # (additive increase, multiplicative decrease).
        self._window = float(limits.concurrency)
        self._in_flight = 0
        self._idle_since: float | None = None
        # Earliest time of the next call, by the rate of requests and by that of tokens.
        self._requests_from = self._tokens_from = float("-inf")
        self._cooldown: Cooldown | None = None
        self._blocked_before_s = 0.0
        self._epoch = 0

    async def enter(self, tokens: int = 0, patience_s: float | None = None) -> PendingCall:
        """Wait until a call may be sent.

        Args:
            tokens: Upper bound of the call's tokens.
            patience_s: Seconds that it may wait in cooldowns; `limits.wait_s` if None.
                Waiting for its turn at a known rate doesn't count.

        Returns:
            The call's turn, now in flight.

        Raises:
            PatienceError: If the provider's cooldown is longer than that.
        """
        now = _now()
        turn = PendingCall(tokens, self._limits.wait_s if patience_s is None else patience_s, now, self._blocked_s(now))
        if self._cooldown and (error := self._patience_error(self._cooldown, turn, now)):
            raise error
        await self._queue.wait(turn)
        return turn

    def on_success(self, turn: PendingCall, tokens: int | None = None) -> None:
        """End a turn of a call that the provider took.

        Args:
            turn: The turn.
            tokens: Tokens that the call used; None where unknown.
        """
        if tokens is not None:
            self._correct(turn, tokens)
        self._window = min(self._window + 1 / self._window, self._limits.concurrency)
        if self._cooldown and turn is self._cooldown.probe:
            self._end_cooldown(self._cooldown, turn)
        self._end()

    def on_unknown(self, turn: PendingCall) -> None:
        """End a turn without knowing whether the provider took the call."""
        if self._cooldown and turn is self._cooldown.probe:
            self._cooldown.probe = None
        self._end()

    def on_rejected(self, turn: PendingCall, error: BusyError) -> None:
        """End a turn of a call that the provider refused, and start or extend the cooldown."""
        now = _now()
        retry_after_s = usable_retry_after_s(error, self._limits.wait_s)
        current = turn.epoch == self._epoch
        self._correct(turn, 0)
        self._adaptive_rate.refused += current
        # A late refusal of an earlier epoch's call, without a `Retry-After`, is outdated and starts no cooldown.
        if self._cooldown is None and (current or retry_after_s):
            teaches = current and error.kind != "overloaded"
            self._cooldown = Cooldown(
                error.kind, teaches, since=now, until=now + (retry_after_s or backoff_s(0)), blocked_until_at_least=now
            )
        if self._cooldown:
            self._cooldown.record_refusal(turn, now, retry_after_s)
            for waiting in self._queue.list_waiting():
                if impatient := self._patience_error(self._cooldown, waiting, now):
                    self._queue.reject(waiting, impatient)
        self._end()

    def _end(self) -> None:
        """Count a call as no longer in flight, and wake the next one."""
        self._in_flight -= 1
        self._wake_next()
        if not self._in_flight and not self._cooldown and not self._queue.peek():
            self._idle_since = _now()

    def _wake_next(self) -> None:
        """Let every call pass that may pass now, and schedule itself for the next one."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while turn := self._queue.peek():
            due = self._next_event_at()
            if due is None:
                return
            if due > _now() + CLOCK_TOLERANCE_S:
                self._timer = asyncio.get_running_loop().call_at(due, self._wake_next)
                return
            if self._cooldown and self._cooldown.probe:  # the probe wasn't refused in time, so it was taken
                self._end_cooldown(self._cooldown, self._cooldown.probe)
            else:
                self._start_call(turn)

    def _next_event_at(self) -> float | None:
        """Return the time of the next event; None if it depends on the end of a call in flight."""
        if self._cooldown and self._cooldown.probe:
            return self._cooldown.probe.started + self._cooldown.probe_timeout_s
        if self._in_flight >= (self._limits.concurrency if self._cooldown else int(self._window)):
            return None
        return self._cooldown.until if self._cooldown else max(self._requests_from, self._tokens_from)

    def _start_call(self, turn: PendingCall) -> None:
        """Grant the call at the front of the queue, and compute when the next one may start."""
        now = _now()
        turn.started = now
        turn.blocked_s = self._blocked_s(now) - turn.blocked_before_s
        turn.epoch = self._epoch
        # 1. During a cooldown the call is the probe: it belongs to the epoch that begins if it passes.
        if self._cooldown:
            turn.epoch += 1
            self._cooldown.probe = turn
        else:
            self._adaptive_rate.start(now, idle_s=now - self._idle_since if self._idle_since is not None else 0.0)
        self._idle_since = None
        # 2. Intervals count from when the call could have started, so that a late timer doesn't lower the rate.
        since = max(turn.arrived, now - MAX_CATCH_UP_S)
        self._requests_from = max(self._requests_from, since) + self._request_s(now)
        self._tokens_from = max(self._tokens_from, since) + self._tokens_s(turn.tokens)
        self._in_flight += 1
        self._queue.grant_first()

    def _end_cooldown(self, block: Cooldown, trying: PendingCall) -> None:
        """End a cooldown, as its probe has passed, and begin a new epoch."""
        if 2 * self._adaptive_rate.refused >= self._window:
            self._window = max(1.0, self._window / 2)
        self._adaptive_rate.start_epoch(block, trying.started)
        self._blocked_before_s = self._blocked_s(_now())
        self._requests_from = trying.started + self._request_s(trying.started)
        self._cooldown = None
        self._epoch += 1

    def _patience_error(self, block: Cooldown, turn: PendingCall, now: float) -> PatienceError | None:
        """Return the error for a call that would have to wait longer than it may; None if it need not."""
        left_s = max(block.until - now, 0.0)
        waited_s = self._blocked_s(now) - turn.blocked_before_s
        if waited_s + left_s <= turn.patience_s:
            return None
        # What the tier has no capacity for, the same provider answers at its regular price.
        way_out = "run it again with mode: live" if block.kind == "capacity" else "run again later"
        return PatienceError(
            f"The provider of {self._name!r} accepts no more calls for another {left_s:.1f} s at least, which is more "
            f"than this call may still wait: {max(turn.patience_s - waited_s, 0.0):.1f} s, of limits.wait_s "
            f"{self._limits.wait_s:g}; raise it, or {way_out}.",
            kind=block.kind,
        )

    def _blocked_s(self, now: float) -> float:
        """Return the seconds of all cooldowns so far."""
        return self._blocked_before_s + (now - self._cooldown.since if self._cooldown else 0.0)

    def _request_s(self, now: float) -> float:
        """Return the seconds between two requests, by the stated and the learned rate."""
        stated = self._limits.requests_per_minute
        return max(MINUTE_S / (stated * RATE_MARGIN) if stated else 0.0, self._adaptive_rate.interval_s(now))

    def _tokens_s(self, tokens: int) -> float:
        """Return the seconds for which so many tokens delay the next call."""
        stated = self._limits.tokens_per_minute
        if not stated or not tokens:
            return 0.0
        # Only whole calls fit into a minute, unless one alone exceeds the stated tokens.
        return MINUTE_S / ((stated // tokens or stated / tokens) * RATE_MARGIN)

    def _correct(self, turn: PendingCall, tokens: int) -> None:
        """Replace the reserved tokens of a call by those that it used."""
        self._tokens_from += self._tokens_s(tokens) - self._tokens_s(turn.tokens)


def usable_retry_after_s(error: BusyError, most_s: float) -> float:
    """Return the `Retry-After` of an error in seconds; 0 if there is none, or if it is longer than any call may wait.

    A longer one (days, or a broken header) would fail all calls: the provider is probed after our own backoff instead,
    for as long as each call may wait.

    Args:
        error: The provider's refusal.
        most_s: The longest wait of a call, in seconds.
    """
    retry_after_s = error.retry_after_s
    return retry_after_s if retry_after_s is not None and 0 < retry_after_s <= most_s else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
