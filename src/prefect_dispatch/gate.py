"""The one way to a call: through the budget, and then at the pace of the model that is asked.

```
async with gate.call(executor, ask) as call:
    reply = await executor.answer(ask)
    call.usage = reply.usage
```
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from prefect_dispatch.bounds import ceiling_of, name_of
from prefect_dispatch.budget import Budget
from prefect_dispatch.errors import BusyError, ExecutorError
from prefect_dispatch.models import Usage
from prefect_dispatch.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from prefect_dispatch.executors.base import Ask, Executor
    from prefect_dispatch.limits import Limits


MOST_NAMES = 64
"""Executors whose names are kept."""


class Gate:
    """What all calls of a run go through; used from one event loop.

    Args:
        limits: What bounds the run.
        beside: A gate whose places and paces it shares; with a budget of its own.

    Attributes:
        limits: What bounds the run.
        budget: What is spent, and what is left.
        waited_s: Seconds that calls have waited here, in all.
        places: One for each call that may be under way, for items that don't have a task run each; see `Turn`.
        paces: The pace of each model.
        taken: How many calls the provider of each model has taken.
    """

    def __init__(self, limits: Limits, beside: Gate | None = None) -> None:
        """Start with a full budget, and no pace but the stated one."""
        self.limits = limits
        self.budget: Budget = Budget(limits, beside.budget if beside else None)
        self.waited_s = 0.0
        self.places: asyncio.Semaphore = beside.places if beside else asyncio.Semaphore(limits.concurrency)
        self.paces: dict[str, Pace] = beside.paces if beside else {}
        self.taken: Counter[str] = beside.taken if beside else Counter()
        self._names: dict[int, tuple[Executor, str]] = {}
        self._closed = False

    def took(self, executor: Executor) -> None:
        """Count a call that its provider has taken."""
        self.taken[self.name(executor)] += 1

    def close(self) -> None:
        """Let no further call through, as the run is interrupted; from any thread."""
        self._closed = True

    def reopen(self) -> None:
        """Let calls through again, in a further attempt of the run."""
        self._closed = False

    def require_open(self) -> None:
        """Check that calls are still let through.

        Raises:
            ExecutorError: If the run is interrupted.
        """
        if self._closed:
            raise ExecutorError("Interrupted.", kind="interrupted", usage=Usage())

    def call(self, executor: Executor, ask: Ask, *, wait_s: float | None = None) -> Call:
        """Return a call, to be made in an `async with`; entering waits until it may be sent.

        Leaving settles it: with its `usage`, with that of the `ExecutorError` that was raised, or, where
        neither is known, with all that was reserved for it.

        Args:
            executor: Who is asked.
            ask: What is asked.
            wait_s: Seconds that it may wait for a provider that takes no more; `limits.wait_s` if empty.

        Raises:
            BudgetError: On entering, if the budget doesn't hold it.
            PatienceError: On entering, if the provider asks for more patience than it has.
            ExecutorError: On entering, if the run is interrupted.
        """
        return Call(self, executor, ask, self.limits.wait_s if wait_s is None else wait_s)

    def passed(self, executor: Executor) -> int:
        """Return how many calls its provider has taken so far."""
        return self.taken[self.name(executor)]

    def name(self, executor: Executor) -> str:
        """Return who is asked, which takes a while to find out before Python 3.12."""
        if self._names.get(id(executor), (None, ""))[0] is not executor:
            if len(self._names) >= MOST_NAMES:  # an executor may be another one for each attempt
                self._names.clear()
            self._names[id(executor)] = executor, name_of(executor)
        return self._names[id(executor)][1]

    def pace(self, name: str) -> Pace:
        """Return the pace of a model; there is one for each."""
        if name not in self.paces:
            self.paces[name] = Pace(name, self.limits)
        return self.paces[name]


class Turn:
    """A place, taken for each call of an item and for nothing else that is to be done with it.

    After a call that failed it is kept until `close`, so that nobody has it before it is known what that means for all.

    Args:
        places: Those that there are.
        require_wanted: Called once it has the first; what that raises ends it.
    """

    def __init__(self, places: asyncio.Semaphore, require_wanted: Callable[[], None]) -> None:
        """Take none yet."""
        self._places, self._require_wanted = places, require_wanted
        self._begun = self._has_one = False

    async def __aenter__(self) -> None:
        """Wait for a place."""
        if not self._has_one:
            await self._places.acquire()
            self._has_one = True
        if not self._begun:
            self._require_wanted()
        self._begun = True

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Give it back after a reply."""
        if error is None:
            self.close()

    def close(self) -> None:
        """Give it back, if it has one."""
        if self._has_one:
            self._places.release()
        self._has_one = False


class Call:
    """One call, from its place in the queue until it is settled.

    Attributes:
        usage: What it took; to be set by the caller as soon as that is known.
        sent: Whether its turn came.
        waited_s: Seconds that it waited, in all.
        blocked_s: Those in which the provider took no more; they use up its patience.
    """

    def __init__(self, gate: Gate, executor: Executor, ask: Ask, patience_s: float) -> None:
        """Prepare to wait."""
        self.usage: Usage | None = None
        self.sent = False
        self.waited_s = self.blocked_s = 0.0
        self._gate, self._executor, self._ask, self._patience_s = gate, executor, ask, patience_s
        self._name = gate.name(executor)
        self._pace = gate.pace(self._name)

    async def __aenter__(self) -> Self:
        """Wait for room in the budget, then for the turn."""
        began = asyncio.get_running_loop().time()
        try:
            await self._enter()
        finally:
            self.waited_s = asyncio.get_running_loop().time() - began
            self._gate.waited_s += self.waited_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle the call; nothing is awaited here, so nothing can come between."""
        usage = self.usage
        if isinstance(error, ExecutorError):
            usage = error.usage or usage
        if isinstance(error, BusyError):
            usage = usage or Usage(requests=1)  # what is refused isn't billed
            self._pace.refused(self._turn, error)
        elif error is None or isinstance(error, ExecutorError):
            self._gate.took(self._executor)
            self._pace.passed(self._turn, usage.tokens if usage and not usage.unsettled else None)
        else:
            self._pace.lost(self._turn)
        self._gate.budget.settle(self._held, usage)

    async def _enter(self) -> None:
        self._gate.require_open()
        ceiling = ceiling_of(self._gate.limits, self._executor, self._ask)
        self._held = await self._gate.budget.reserve(self._name, ceiling)
        try:
            most = self._held.held.tokens if ceiling else 0
            self._turn = await self._pace.enter(most, self._patience_s)
            self._require_still_open()
        except BaseException:
            self._gate.budget.settle(self._held, Usage())  # never sent
            raise
        self.sent, self.blocked_s = True, self._turn.blocked_s

    def _require_still_open(self) -> None:
        try:
            self._gate.require_open()
        except ExecutorError:
            self._pace.lost(self._turn)
            raise
