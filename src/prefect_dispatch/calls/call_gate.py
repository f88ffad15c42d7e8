"""Gate that every call of a run passes: it reserves budget, then waits for the rate limiter of the model.

```
async with gate.call(executor, ask) as call:
    reply = await executor.answer(ask)
    call.usage = reply.usage
```
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from prefect_dispatch.calls.prompt_prefixes import PromptPrefixes
from prefect_dispatch.calls.rate_limiter import RateLimiter
from prefect_dispatch.errors import BusyError, ExecutorError
from prefect_dispatch.models.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Ask, Executor
    from prefect_dispatch.models.limits import Limits

from prefect_dispatch.calls.budget import BUDGET_FIELDS, Budget, executor_name, find_cost_bound


class CallGate:
    """Budget and rate limiters that all calls of a run pass; used from one event loop.

    Args:
        limits: Limits of the run.
        sibling: A gate whose concurrency slots and rate limiters it shares; its budget is its own.
        run: The id of the flow run; empty outside of flows.

    Attributes:
        limits: Limits of the run.
        run: The id of the flow run; empty outside of flows.
        budget: The budget of the run.
        waited_s: Seconds that calls have waited here, in all.
        slots: Concurrency slots, one for each call that may be in flight, for items without a task run each; see
            `ConcurrencySlot`.
        rate_limiters: The rate limiter of each model, by the executor's name.
        processed: Number of calls that the provider of each model has taken, by the executor's name.
        prefixes: The common beginnings of prompts, of which the first call goes ahead.
        is_closed: Whether all further calls are refused, as the run is interrupted; set from any thread.
    """

    def __init__(self, limits: Limits, sibling: CallGate | None = None, *, run: str = "") -> None:
        """Start with a full budget and no rate limiter."""
        self.limits = limits
        self.run = run
        self.budget: Budget = Budget(limits, sibling.budget if sibling else None)
        self.waited_s = 0.0
        self.slots: asyncio.Semaphore = sibling.slots if sibling else asyncio.Semaphore(limits.concurrency)
        self.rate_limiters: dict[str, RateLimiter] = sibling.rate_limiters if sibling else {}
        self.processed: Counter[str] = sibling.processed if sibling else Counter()
        self.prefixes: PromptPrefixes = sibling.prefixes if sibling else PromptPrefixes()
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

    def require_budget(self, executors: Sequence[Executor], ask: Ask) -> None:
        """Check that the budget could pay for a call of each of these executors, if calls in flight used nothing.

        Args:
            executors: The executors; one may be there several times.
            ask: The ask that each gets.

        Raises:
            BudgetError: If it couldn't.
        """
        self.budget.require_unspent(
            [(executor_name(each), find_cost_bound(self.limits, each, ask)) for each in executors]
        )

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
            gate = _gates[flow_run, limits] = CallGate(limits, run=flow_run)
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
    gate = CallGate(limits, sibling=gate_for_run(flow_run, without_budget), run=flow_run)
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
