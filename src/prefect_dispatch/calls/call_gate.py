"""Gate that every call of a run passes: it reserves budget, then waits for the rate limiter of the model.

```
async with gate.call(executor, ask) as call:
    reply = await executor.answer(ask)
    call.usage = reply.usage
```

No call is sent unless its upper bound fits into what is neither spent nor reserved, so no order of events can exceed a
cap. Only a call that uses more than was reserved for it can, because its provider counts tokens in another way. A
safety factor is added beforehand for that; where it wasn't enough, the usage counts in full, and the factor of that
model grows for every later call.
"""

from __future__ import annotations

import asyncio
import math
import operator
from collections import Counter, OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.calls.rate_limiter import FifoWaiters, RateLimiter
from prefect_dispatch.errors import BudgetError, BusyError, ExecutorError, JobError, TransientError
from prefect_dispatch.executors.base import Ask, BaseExecutor, executor_for
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from typing_extensions import Self

    from prefect_dispatch.executors.base import CostBound, Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.limits import Limits


NANO = 10**9
"""Units of money in a US dollar: integers of billionths add up exactly."""

FIRST_CORRECTION = (Fraction(5, 4), Fraction(1), Fraction(5, 4))
"""Initial correction factors of estimated prompt tokens, completion tokens and money: the provider may count more."""


class UsageAmount(NamedTuple):
    """Requests, tokens and money of one call or several, as integers.

    Example:
        >>> UsageAmount(requests=1, prompt=10) + UsageAmount(requests=1, nano_usd=5)
        UsageAmount(requests=2, prompt=10, completion=0, nano_usd=5)
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    nano_usd: int = 0

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.prompt + self.completion

    def __add__(self, other: UsageAmount) -> UsageAmount:  # type: ignore[override]  # no tuple is appended to an amount
        """Return the sum, part by part."""
        return UsageAmount(*map(operator.add, self, other))

    def __sub__(self, other: UsageAmount) -> UsageAmount:
        """Return the difference, part by part."""
        return UsageAmount(*map(operator.sub, self, other))


ZERO_AMOUNT = UsageAmount()


def to_amount(requests: int, prompt: int, completion: int, usd: float | None) -> UsageAmount:
    """Return an amount, with the US dollars in billionths, rounded up; an unknown cost is 0.

    Example:
        >>> to_amount(1, 0, 0, 0.1).nano_usd, to_amount(1, 0, 0, 1e-12).nano_usd
        (100000000, 1)
    """
    return UsageAmount(requests, prompt, completion, math.ceil(Decimal(str(usd)) * NANO) if usd else 0)


def usage_amount(usage: Usage) -> UsageAmount:
    """Return the usage of a call as an amount, an unknown cost as 0."""
    return to_amount(usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.cost_usd)


class BudgetCap(NamedTuple):
    """One limit of a budget."""

    key: str
    """`usd`, `tokens` or `requests`."""
    maximum: int
    """The limit: billionths of a US dollar, tokens, requests."""
    measure: Callable[[UsageAmount], int]
    """Returns the part of an amount that the limit bounds."""

    def format_amount(self, amount: int) -> str:
        """Return an amount with its unit as text."""
        return f"{Decimal(amount) / NANO:f} USD" if self.key == "usd" else f"{amount} {self.key}"


BUDGET_FIELDS = ("budget_usd", "budget_tokens", "budget_requests")
"""The fields of `Limits` that a budget enforces."""


def amount_from_caps(parts: Mapping[str, int]) -> UsageAmount:
    """Return the parts of each cap as one amount.

    Example:
        >>> amount_from_caps({"usd": 5, "requests": 2})
        UsageAmount(requests=2, prompt=0, completion=0, nano_usd=5)
    """
    return UsageAmount(parts.get("requests", 0), parts.get("tokens", 0), nano_usd=parts.get("usd", 0))


_INSTEAD = {
    "budget_usd": "budget_requests",
    "budget_tokens": "budget_requests",
    "tokens_per_minute": "requests_per_minute",
}
"""Limits that need an upper bound of a call, each with the limit that can replace it."""


def require_enforceable_limits(limits: Limits, executor: Executor, briefs: Sequence[Brief]) -> None:
    """Check that every cap can be enforced for every call, without sending one.

    Args:
        limits: Limits of the run.
        executor: The executor of the run.
        briefs: The briefs of the run.

    Raises:
        JobError: If a cap can't be enforced; the message says what to change.
    """
    for brief in briefs:
        ask = Ask(brief=brief, item=Item(key="any", value=""))
        for tier in BaseExecutor.of(executor_for(brief, executor)).fallback_chain:
            if reason := _explain_unenforceable(limits, executor_name(tier), find_cost_bound(limits, tier, ask)):
                raise JobError(reason)


def executor_name(executor: Executor) -> str:
    """Return the name of an executor: those with one name share a rate limiter."""
    return BaseExecutor.of(executor).name


def find_cost_bound(limits: Limits, executor: Executor, ask: Ask) -> CostBound | None:
    """Return the upper bound of a call; None if the executor has none, or no limit needs it."""
    is_needed = any(getattr(limits, key) is not None for key in _INSTEAD)
    return BaseExecutor.of(executor).cost_bound(ask) if is_needed else None


def _explain_unenforceable(limits: Limits, name: str, ceiling: CostBound | None) -> str | None:
    """Return why a limit can't be enforced for a call, and what to change; None if all can be."""
    held = [key for key in _INSTEAD if getattr(limits, key) is not None]
    if not held:
        return None
    key, why = held[0], ""
    if ceiling is None:
        why = f"{name!r} doesn't say beforehand what a call takes; set limits.{_INSTEAD[key]} in its place"
    elif ceiling.instead and held != ["budget_usd"]:  # a call that runs a program: only its cost can be bounded
        key = next(each for each in held if each != "budget_usd")
        tokens = f"{name!r} doesn't say beforehand how many tokens a run takes"
        why = f"{tokens}; set limits.{_INSTEAD[key]} in its place"
    elif ceiling.instead and ceiling.cost_usd is None:
        unbounded = f"nothing bounds what a run of {name!r} costs"
        why = f"{unbounded}; {ceiling.instead}, or limits.budget_requests in place of the budget"
    elif not ceiling.instead and ceiling.completion_tokens is None and key.startswith("budget"):
        why = f"nothing bounds the answers of {name!r}; set max_tokens among its params"
    elif not ceiling.instead and ceiling.cost_usd is None and limits.budget_usd is not None:
        why = f"the price of {name!r} is unknown; give it usd_per_million, or set limits.budget_tokens in its place"
    return f"limits.{key} can't be held: {why}." if why else None


class BudgetShare(NamedTuple):
    """Share of a budget that another process may spend."""

    reserved: UsageAmount
    """The amount that is reserved for it until it is settled."""
    limits: Limits
    """The limits for that process, with the share as their budget."""


@dataclass(eq=False)
class Reservation:
    """Reservation of one call until it is settled."""

    model: str
    """Name of the executor."""
    estimated: UsageAmount
    """The estimate before any correction."""
    has_price: bool
    """Whether its cost is bounded."""
    reserved: UsageAmount = ZERO_AMOUNT
    """The amount that is reserved."""


_JOURNAL_PARTS, _JOURNAL_CALLS = 16, 256
"""Upper bounds of a step of the spending journal: this fraction of the cap, and this many calls."""

_SPENT = " are spent, and this call could take "


class Budget:
    """Budget of a run: grants calls in order of arrival, as long as the caps allow.

    Args:
        limits: Limits of the run.
        sibling: A budget whose correction factors it shares.

    Attributes:
        spent_amount: The usage so far, in integers.
        corrections: Correction factors of the estimates by the executor's name: used divided by estimated, at most so
            far; see `FIRST_CORRECTION`.
    """

    def __init__(self, limits: Limits, sibling: Budget | None = None) -> None:
        """Start with nothing spent."""
        self._limits = limits
        usd = limits.budget_usd
        caps = (
            ("usd", None if usd is None else int(Decimal(str(usd)) * NANO), operator.attrgetter("nano_usd")),
            ("tokens", limits.budget_tokens, operator.attrgetter("tokens")),
            ("requests", limits.budget_requests, operator.attrgetter("requests")),
        )
        self._caps = [BudgetCap(key, maximum, measure) for key, maximum, measure in caps if maximum is not None]
        self.spent_amount = self._reserved = ZERO_AMOUNT
        self._priced = True
        self._unsettled = 0
        self.corrections: dict[str, Sequence[Fraction]] = sibling.corrections if sibling else {}
        self._write_journal: Callable[[dict[str, int]], Awaitable[None]] | None = None
        self._marks = {cap.key: 0 for cap in self._caps}
        self._writing: asyncio.Task[None] | None = None
        self._queue: FifoWaiters[Reservation] = FifoWaiters(
            self._grant_waiting, lambda unsent: self.settle(unsent, Usage())
        )

    @property
    def spent(self) -> Usage:
        """The usage so far; a call of unknown usage counts with its reservation."""
        requests, prompt, completion, nano_usd = self.spent_amount
        return Usage(
            requests=requests,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=nano_usd / NANO if self._priced else None,
            unsettled=self._unsettled,
        )

    @property
    def remaining(self) -> dict[str, float]:
        """The rest of each cap that is neither spent nor reserved: `usd`, `tokens`, `requests`."""
        return {key: left / NANO if key == "usd" else left for key, left in self._divide(1).items()}

    def journal_to(self, write: Callable[[dict[str, int]], Awaitable[None]]) -> None:
        """Write a journal ahead of all spending: marks beyond which the spending never goes.

        So the last marks of a process that died are an upper bound of what it has spent.

        Args:
            write: Writes the marks, one for each cap; a call is refused with the `TransientError` that it raises.
        """
        self._write_journal = write

    async def reserve(self, model: str, ceiling: CostBound | None) -> Reservation:
        """Reserve the budget for a call, and wait for it if calls in flight may free some.

        Args:
            model: Name of the executor.
            ceiling: Upper bound of the call, where it is known.

        Returns:
            The reservation, to be settled exactly once.

        Raises:
            BudgetError: If the budget doesn't suffice, even if the calls in flight used nothing.
        """
        call = self._create_reservation(model, ceiling)
        if self._caps:
            await self._queue.wait(call)
        else:
            self._grant(call, call.estimated)
        return call

    def reserve_now(self, model: str, ceiling: CostBound | None, *, sent: bool = False) -> Reservation:
        """Reserve the budget for a call that may be in flight for hours, without waiting for other calls.

        Args:
            model: Name of the executor.
            ceiling: Upper bound of the call, where it is known.
            sent: Whether it was sent before, so that it counts even beyond a cap.

        Raises:
            BudgetError: If the budget doesn't suffice.
        """
        call = self._create_reservation(model, ceiling)
        need, taken = self._need(call), self.spent_amount + self._reserved
        if not sent and (short := self._exceeded_cap(taken + need)):
            raise self._error(short, need, taken)
        self._grant(call, need)
        return call

    def settle(self, call: Reservation, usage: Usage | None) -> None:
        """Settle a reservation with the call's usage; if that is None, all of the reservation counts as spent."""
        self._reserved -= call.reserved
        self.spent_amount += self._settled_amount(call, usage)
        self._grant_waiting()

    def charge(self, usage: Usage) -> None:
        """Count usage that was never reserved."""
        self.settle(Reservation("", ZERO_AMOUNT, has_price=False), usage)

    def is_divisible(self, parts: int) -> bool:
        """Return whether the rest of each cap, divided into so many parts, is more than 0."""
        return all(self._divide(parts).values())

    def reserve_share(self, parts: int) -> BudgetShare:
        """Reserve a share of the rest for another process; no sum of shares and calls exceeds a cap.

        Args:
            parts: Number of parts into which the rest is divided.

        Returns:
            The share, to be settled exactly once.
        """
        part = self._divide(parts)
        share = BudgetShare(
            amount_from_caps(part),
            self._limits.model_copy(
                update={f"budget_{key}": value / NANO if key == "usd" else value for key, value in part.items()}
            ),
        )
        self._reserved += share.reserved
        return share

    def settle_share(self, share: BudgetShare, took: UsageAmount | None) -> None:
        """Settle a share with what the other process spent; if that is None, all of the share counts as spent."""
        self._reserved -= share.reserved
        self.spent_amount += share.reserved if took is None else took

    def as_whole_budget_error(self, error: BudgetError) -> BudgetError:
        """Return the error of a call that a share refused, with the numbers of the whole budget in its message."""
        start, separator, rest = str(error).partition(_SPENT)
        for cap in self._caps:
            if separator and start.startswith(f"limits.budget_{cap.key} is "):
                error.args = (f"{self._describe_spent(cap, self.spent_amount)}{separator}{rest}",)
        return error

    def _divide(self, parts: int) -> dict[str, int]:
        """Return an equal part of what is neither spent nor reserved, by the cap's key."""
        taken = self.spent_amount + self._reserved
        return {cap.key: max(cap.maximum - cap.measure(taken), 0) // parts for cap in self._caps}

    def _settled_amount(self, call: Reservation, usage: Usage | None) -> UsageAmount:
        """Return the amount with which a call counts as spent, and update the correction factors of its model."""
        if usage is None:
            self._unsettled += 1
            self._priced &= call.has_price
            return call.reserved
        took = usage_amount(usage)
        self._unsettled += usage.unsettled
        self._priced &= call.has_price or usage.cost_usd is not None
        if any(call.estimated[1:]):
            factors = self.corrections.get(call.model, FIRST_CORRECTION)
            parts = zip(factors, call.estimated[1:], took[1:], strict=True)
            self.corrections[call.model] = [
                max(by, Fraction(used, counted)) if counted else by for by, counted, used in parts
            ]
        # Of a call with unknown parts the larger of usage and reservation counts, of an unpriced one the reserved cost.
        if usage.unsettled:
            return UsageAmount(*map(max, took, call.reserved))
        return took if usage.cost_usd is not None else took._replace(nano_usd=call.reserved.nano_usd)

    def _create_reservation(self, model: str, ceiling: CostBound | None) -> Reservation:
        if reason := _explain_unenforceable(self._limits, model, ceiling):
            raise BudgetError(reason)
        if ceiling is None:
            return Reservation(model, UsageAmount(requests=1), has_price=False)
        estimated = to_amount(1, ceiling.prompt_tokens, ceiling.completion_tokens or 0, ceiling.cost_usd)
        return Reservation(model, estimated, has_price=ceiling.cost_usd is not None)

    def _need(self, call: Reservation) -> UsageAmount:
        """Return the amount to reserve for a call: its corrected estimate."""
        if not any(call.estimated[1:]):  # no limit needs an estimate, so there is none
            return call.estimated
        factors = self.corrections.get(call.model, FIRST_CORRECTION)
        corrected = (math.ceil(one * by) for one, by in zip(call.estimated[1:], factors, strict=True))
        return UsageAmount(call.estimated.requests, *corrected)

    def _grant(self, call: Reservation, need: UsageAmount) -> None:
        call.reserved = need
        self._reserved += need

    def _grant_waiting(self) -> None:
        """Grant or refuse calls from the front of the queue, up to one that has to wait."""
        while call := self._queue.peek():
            need = self._need(call)
            total = self.spent_amount + self._reserved + need
            if short := self._exceeded_cap(self.spent_amount + need):
                # 1. Refuse it if it doesn't fit into what isn't spent.
                self._queue.reject(call, self._error(short, need, self.spent_amount))
            elif self._exceeded_cap(total) or not self._is_journaled(total, need):
                # 2. Let it wait if it fits once calls in flight use less than is reserved for them, or once the
                #    journal covers it.
                return
            else:
                # 3. Grant it.
                self._grant(call, need)
                self._queue.grant_first()

    def _is_journaled(self, total: UsageAmount, need: UsageAmount) -> bool:
        """Return whether the journal's marks cover an amount; if not, start to write higher ones.

        Args:
            total: What would be spent or reserved with the next call.
            need: Upper bound of that call alone.
        """
        if self._write_journal is None or all(cap.measure(total) <= self._marks[cap.key] for cap in self._caps):
            return True
        if self._writing is None:
            marks: dict[str, int] = {}
            for cap in self._caps:
                ahead = min(cap.maximum // _JOURNAL_PARTS, _JOURNAL_CALLS * cap.measure(need))
                marks[cap.key] = min(cap.measure(total) + ahead, cap.maximum)
            self._writing = asyncio.ensure_future(self._raise_marks(self._write_journal(marks), marks))
        return False

    async def _raise_marks(self, written: Awaitable[None], marks: dict[str, int]) -> None:
        """Use new marks when they are written; if that fails, refuse the first call with the error."""
        try:
            await written
            self._marks = marks
        except TransientError as error:
            if call := self._queue.peek():
                self._queue.reject(call, error)
        self._writing = None
        self._grant_waiting()

    def _exceeded_cap(self, total: UsageAmount) -> BudgetCap | None:
        """Return a cap that an amount exceeds; None if there is none."""
        return next((cap for cap in self._caps if cap.measure(total) > cap.maximum), None)

    def _error(self, cap: BudgetCap, need: UsageAmount, taken: UsageAmount) -> BudgetError:
        return BudgetError(
            f"{self._describe_spent(cap, taken)}{_SPENT}{cap.format_amount(cap.measure(need))}. "
            "Raise it; what was answered is stored, and another run goes on from there."
        )

    @staticmethod
    def _describe_spent(cap: BudgetCap, taken: UsageAmount) -> str:
        whole, spent = cap.format_amount(cap.maximum), cap.format_amount(cap.measure(taken))
        return f"limits.budget_{cap.key} is {whole}: {spent}"


class CallGate:
    """Budget and rate limiters that all calls of a run pass; used from one event loop.

    Args:
        limits: Limits of the run.
        sibling: A gate whose concurrency slots and rate limiters it shares; its budget is its own.

    Attributes:
        limits: Limits of the run.
        budget: The budget of the run.
        waited_s: Seconds that calls have waited here, in all.
        slots: Concurrency slots, one for each call that may be in flight, for items without a task run each; see
            `ConcurrencySlot`.
        rate_limiters: The rate limiter of each model, by the executor's name.
        processed: Number of calls that the provider of each model has taken, by the executor's name.
        is_closed: Whether all further calls are refused, as the run is interrupted; set from any thread.
    """

    def __init__(self, limits: Limits, sibling: CallGate | None = None) -> None:
        """Start with a full budget and no rate limiter."""
        self.limits = limits
        self.budget: Budget = Budget(limits, sibling.budget if sibling else None)
        self.waited_s = 0.0
        self.slots: asyncio.Semaphore = sibling.slots if sibling else asyncio.Semaphore(limits.concurrency)
        self.rate_limiters: dict[str, RateLimiter] = sibling.rate_limiters if sibling else {}
        self.processed: Counter[str] = sibling.processed if sibling else Counter()
        self.is_closed = False

    def close(self) -> None:
        """Refuse all further calls, as the run is interrupted; safe from any thread."""
        self.is_closed = True

    def require_open(self) -> None:
        """Check that calls are still accepted.

        Raises:
            ExecutorError: If the run is interrupted.
        """
        if self.is_closed:
            raise ExecutorError("Interrupted.", kind="interrupted", usage=Usage())

    def call(self, executor: Executor, ask: Ask, *, wait_s: float | None = None) -> GatedCall:
        """Return a context manager for one call; entering it waits until the call may be sent.

        Leaving it settles the call in the budget: with its `usage`, with that of the `ExecutorError` that was raised,
        or, where neither is known, with all that was reserved for it.

        Args:
            executor: The executor that is called.
            ask: The ask that it gets.
            wait_s: Seconds that the call may wait in cooldowns of the provider; `limits.wait_s` if None.

        Raises:
            BudgetError: On entering, if the budget doesn't suffice.
            PatienceError: On entering, if the provider's cooldown is longer than the call may wait.
            ExecutorError: On entering, if the run is interrupted.
        """
        return GatedCall(self, executor, ask, self.limits.wait_s if wait_s is None else wait_s)

    def processed_calls(self, executor: Executor) -> int:
        """Return the number of calls that the executor's provider has taken so far."""
        return self.processed[executor_name(executor)]


class ConcurrencySlot:
    """Concurrency slot of one item, held during each of its calls and during nothing else.

    After a failed call it is held until `close`, so that no other item gets it before the failure's consequences for
    the run are known.

    Args:
        semaphore: The semaphore with the slots.
        require_wanted: Called when the first slot was acquired; may raise to cancel the item.
    """

    def __init__(self, semaphore: asyncio.Semaphore, require_wanted: Callable[[], None]) -> None:
        """Start without a slot."""
        self._semaphore, self._require_wanted = semaphore, require_wanted
        self._has_started = self._has_slot = False

    async def __aenter__(self) -> None:
        """Acquire a slot, unless one is held."""
        if not self._has_slot:
            await self._semaphore.acquire()
            self._has_slot = True
        if not self._has_started:
            self._require_wanted()
        self._has_started = True

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Release the slot after a reply."""
        if error is None:
            self.close()

    def close(self) -> None:
        """Release the slot, if one is held."""
        if self._has_slot:
            self._semaphore.release()
        self._has_slot = False


class GatedCall:
    """One call, from its place in the queue until it is settled in the budget.

    Attributes:
        usage: What it spent; the caller sets it as soon as it is known.
        sent: Whether the call was let through.
        waited_s: Seconds that it waited, in all.
        blocked_s: Those of them in a cooldown of the provider.
    """

    def __init__(self, gate: CallGate, executor: Executor, ask: Ask, patience_s: float) -> None:
        """Start as neither queued nor sent."""
        self.usage: Usage | None = None
        self.sent = False
        self.waited_s = self.blocked_s = 0.0
        self._gate, self._executor, self._ask, self._patience_s = gate, executor, ask, patience_s
        self._name = name = executor_name(executor)
        if name not in gate.rate_limiters:
            gate.rate_limiters[name] = RateLimiter(name, gate.limits)
        self._rate_limiter = gate.rate_limiters[name]

    async def __aenter__(self) -> Self:
        """Wait for the budget, then for the rate limiter."""
        start = asyncio.get_running_loop().time()
        try:
            await self._enter()
        finally:
            self.waited_s = asyncio.get_running_loop().time() - start
            self._gate.waited_s += self.waited_s
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Settle the call, without an await, so that no cancellation can interrupt it."""
        usage = self.usage
        if isinstance(error, ExecutorError):
            usage = error.usage or usage
        if isinstance(error, BusyError):
            usage = usage or Usage(requests=1)  # a refused call isn't billed
            self._rate_limiter.on_rejected(self._turn, error)
        elif error is None or isinstance(error, ExecutorError):
            self._gate.processed[self._name] += 1
            self._rate_limiter.on_success(self._turn, usage.tokens if usage and not usage.unsettled else None)
        else:
            self._rate_limiter.on_unknown(self._turn)
        self._gate.budget.settle(self._reservation, usage)

    async def _enter(self) -> None:
        gate = self._gate
        gate.require_open()
        ceiling = find_cost_bound(gate.limits, self._executor, self._ask)
        self._reservation = await gate.budget.reserve(self._name, ceiling)
        turn = None
        try:
            most = self._reservation.reserved.tokens if ceiling else 0
            turn = await self._rate_limiter.enter(most, self._patience_s)
            gate.require_open()
        except BaseException:  # it is never sent
            if turn:
                self._rate_limiter.on_unknown(turn)
            gate.budget.settle(self._reservation, Usage())
            raise
        self._turn, self.sent, self.blocked_s = turn, True, turn.blocked_s


MAX_GATES = 1000
"""Upper bound of the gates that are cached: the end of a user's own flow is not signalled."""

_lock = Lock()
_gates: OrderedDict[tuple[str, Limits], CallGate] = OrderedDict()


def gate_for_run(flow_run: str, limits: Limits) -> CallGate:
    """Return the gate of a flow run under some limits, created on first use.

    Args:
        flow_run: The id of the flow run; empty outside of flows, where each call has a gate of its own.
        limits: The limits.
    """
    if not flow_run:
        return CallGate(limits)
    with _lock:
        if (gate := _gates.get((flow_run, limits))) is None:
            gate = _gates[flow_run, limits] = CallGate(limits)
        _gates.move_to_end((flow_run, limits))
        while len(_gates) > MAX_GATES:
            _gates.popitem(last=False)
        return gate


def gate_with_own_budget(name: str, flow_run: str, limits: Limits) -> CallGate:
    """Return a gate with its own budget that shares slots and rate limiters with the flow run's other gates here.

    Args:
        name: The key under which it is cached, in place of a flow run's id.
        flow_run: The id of the flow run.
        limits: The limits; those of the other gates are the same, but for the budget.
    """
    without_budget = limits.model_copy(update=dict.fromkeys(BUDGET_FIELDS))
    gate = CallGate(limits, sibling=gate_for_run(flow_run, without_budget))
    with _lock:
        return _gates.setdefault((name, limits), gate)


def reopen_gates(flow_run: str) -> None:
    """Reopen the gates of a flow run that Prefect retries, within the same budget.

    Args:
        flow_run: The id of the flow run; none of its calls is in flight.
    """
    with _lock:
        for (name, _), gate in _gates.items():
            if name == flow_run:
                gate.is_closed = False


def forget_gate(name: str, limits: Limits) -> None:
    """Remove a gate from the cache."""
    with _lock:
        _gates.pop((name, limits), None)
