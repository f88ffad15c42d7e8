"""Local shards: task runs in progress in this process, for one piece of work each or for many."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from prefect_dispatch.calls.call_gate import ConcurrencySlot, gate_for_run
from prefect_dispatch.errors import BudgetError, ExecutorError, TerminalError, TransientError
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.prefect_compat import forget_result
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.run_brief import (
    JITTER,
    NAME_LENGTH,
    answer_with_gate,
    is_transient,
    run_brief,
    run_name,
    with_limits,
)
from prefect_dispatch.tasks.shards.protocol import ItemResult, ShardEnvelope, ShardResult, ShardSupervisor
from prefect_dispatch.tasks.shards.server_backlog import TaskRunCounter
from prefect_dispatch.tasks.storage.get_or_compute import CancelledBeforeSendError, ResultLocation, get_or_compute
from prefect_dispatch.tasks.storage.result_store import storage_key, validate_stored
from prefect_dispatch.tasks.work_item import WorkItem, WorkResponse, unmapped_quote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from prefect import Task
    from prefect.futures import PrefectFuture
    from typing_extensions import Self

    from prefect_dispatch.calls.attempt import Checkpoint
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.outcome import Answer


class Listener(Protocol):
    """Observer of a shard in its own process."""

    stopped: bool
    """Whether nothing more is to be asked."""

    def on_result(self, item_result: WorkResponse) -> None:
        """Handle the result of a piece of work, as soon as it is there."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """Work that one task run does."""

    work: tuple[WorkItem, ...]
    again: frozenset[str] = frozenset()
    """The fingerprints that are asked even where an answer is stored."""
    listener: str = ""
    """The name of the listener in this process that is notified of results."""
    envelope: ShardEnvelope | None = None
    """Identity and control note of a shard that goes to another process."""


@dataclass
class _ShardState:
    """State of a shard, over all attempts of its task run."""

    shard: Shard
    listener: Listener | None = None
    supervisor: ShardSupervisor | None = None
    """Its listener, where it was sent to this process."""
    settled: dict[str, WorkResponse] = field(default_factory=dict[str, WorkResponse])
    """Final results, by fingerprint."""
    transient_errors: dict[str, TransientError] = field(default_factory=dict[str, TransientError])
    """Transient errors, by fingerprint; each holds all attempts so far."""


_listeners: dict[str, Listener] = {}


_earlier: dict[UUID, _ShardState] = {}
"""State of shards that wait for a retry, by task run; Prefect retries in the same process."""


def subscribe(name: str, listener: Listener) -> None:
    """Register a listener for the results of shards that name it."""
    _listeners[name] = listener


def unsubscribe(name: str) -> None:
    """Remove a listener."""
    _listeners.pop(name, None)


def _run_name(parameters: dict[str, Any]) -> str:
    work = cast("Shard", parameters["shard"]).work
    if len(work) == 1:
        return run_name({"brief": work[0].brief, "item": work[0].item})
    # Names of task runs are shown in the UI: without secrets, on one line, and of limited length.
    names = [
        redact(" ".join(strip_control_chars(f"{each.brief.name}: {each.item.key}").split()))
        for each in (work[0], work[-1])
    ]
    length = (NAME_LENGTH - 30) // 2
    first, last = (name if len(name) <= length else name[: length - 1] + "…" for name in names)
    return f"{len(work)} items, {first} to {last}"


def _run_shard(shard: Shard, executor: Executor, limits: Limits) -> list[WorkResponse] | ShardResult:
    """Return the results that no listener in this process was notified of.

    Each answer is stored under its own fingerprint, as by `run_brief`, and reused the same way. A retry of
    the task run asks only the work that failed with a transient error.

    Args:
        shard: The work.
        executor: The executor of the work.
        limits: As for `run_brief`; at most `concurrency` calls are in progress in one process.

    Raises:
        TransientError: If some work failed with a transient error and a retry is left.
        ExecutorError: If it was interrupted.
    """
    context = cast("TaskRunContext", TaskRunContext.get())
    run = context.task_run
    group = str(run.flow_run_id or "")
    state = _earlier.pop(run.id, None)
    # 1. Set up: a retry goes on with the state of the attempt before it.
    if state is None:
        supervisor = ShardSupervisor(shard.envelope, executor, limits, group) if shard.envelope else None
        state = _ShardState(shard, cast("Listener | None", supervisor) or _listeners.get(shard.listener), supervisor)
        try:
            if supervisor and not supervisor.start():
                return supervisor.finish(begun_before=True)
        except TerminalError as error:  # all others would meet it
            return ShardResult([ItemResult(shard.work[0].fingerprint, error)])
    # 2. Ask what is left.
    supervisor = state.supervisor
    attempt = _ShardAttempt(state, executor, limits, supervisor.group if supervisor else group)
    try:
        event_loop.run(supervisor.run(attempt.run()) if supervisor else attempt.run(), group=group)
    except event_loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    # 3. Have Prefect retry while transient errors are left, else finish.
    again = run.run_count <= context.task.retries
    if state.transient_errors and not attempt.stopped and again:
        _earlier[run.id] = state
        raise TransientError(
            f"{len(state.transient_errors)} of {len(shard.work)} items failed with a transient error; they are asked "
            "again."
        )
    results = attempt.finish(again=again)
    return supervisor.finish() if supervisor else results


run_shard = task(  # of a function under a name of its own: so it is pickled by name, not with what its module holds
    name="run-shard",
    task_run_name=cast("Any", _run_name),  # a name from parameters, which the type leaves out
    retries=Limits().retries,
    retry_delay_seconds=exponential_backoff(Limits().retry_delay_s),
    retry_jitter_factor=JITTER,
    retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,  # each answer is stored by itself
    persist_result=False,
)(_run_shard)


def shard_task(limits: Limits) -> Task[[Shard, Executor, Limits], list[WorkResponse] | ShardResult]:
    """Return `run_shard` with the retries of some limits."""
    return run_shard.with_options(retries=limits.retries, retry_delay_seconds=exponential_backoff(limits.retry_delay_s))


class _ShardAttempt:
    """One attempt at a shard."""

    def __init__(self, state: _ShardState, executor: Executor, limits: Limits, group: str) -> None:
        self._state, self._executor, self._limits, self._group = state, executor, limits, group
        self._store = get_result_store()
        self._places = gate_for_run(group, limits).slots
        self._listener = state.listener
        self._fatal_error: BaseException | None = None  # an error that all further work would meet

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be asked."""
        return self._fatal_error is not None or (self._listener is not None and self._listener.stopped)

    async def run(self) -> None:
        """Do the remaining work, with up to `concurrency` coroutines that wait for the places of the run."""
        waiting = iter([work for work in self._state.shard.work if work.fingerprint not in self._state.settled])
        workers = min(self._limits.concurrency, len(self._state.shard.work))
        await asyncio.gather(*(self._run_worker(waiting) for _ in range(workers)))

    async def _run_worker(self, waiting: Iterator[WorkItem]) -> None:
        while not self.stopped and (work := next(waiting, None)):
            await self._process(work)

    async def _process(self, work: WorkItem) -> None:
        last_error = self._state.transient_errors.pop(work.fingerprint, None)
        earlier = last_error.attempts if last_error else ()

        async def ask(draft: Checkpoint) -> Answer:
            with closing(ConcurrencySlot(self._places, self._raise_if_cancelled)) as turn:
                answer = await answer_with_gate(
                    work.brief, work.item, self._executor, self._limits, self._group, draft, turn
                )
            return answer.model_copy(update={"attempts": (*earlier, *answer.attempts), "fingerprint": work.fingerprint})

        # Errors become results, too: an item must not end the other items of its shard.
        place = ResultLocation(self._store, storage_key(work.fingerprint), run_brief.cache_expiration)
        ignore_stored = work.fingerprint in self._state.shard.again
        try:
            answer, stored = await get_or_compute(place, work, ask, call_s=self._limits.timeout_s, again=ignore_stored)
        except CancelledBeforeSendError:
            # Nothing was sent. Keep the last error, as the attempts before it have to be reported.
            if last_error:
                self._state.transient_errors[work.fingerprint] = last_error
        except ExecutorError as error:
            error.attempts = (*earlier, *error.attempts)
            if isinstance(error, TransientError):
                self._state.transient_errors[work.fingerprint] = error
            else:
                self._settle(WorkResponse(work, error))
        except Exception as error:  # noqa: BLE001 -- a check of the user's, or the engine: still an outcome
            self._settle(WorkResponse(work, error))
        else:
            self._settle(WorkResponse(work, answer, stored=stored))

    def _raise_if_cancelled(self) -> None:
        if self.stopped:
            raise CancelledBeforeSendError

    def finish(self, *, again: bool) -> list[WorkResponse]:
        """Settle what failed with transient errors; return the results that no listener was notified of.

        Args:
            again: Whether Prefect would have retried the task run.
        """
        # Where a retry was left that the budget prevented, the budget is the reason.
        for work in self._state.shard.work:
            if last_error := self._state.transient_errors.pop(work.fingerprint, None):
                error = (
                    BudgetError(str(self._fatal_error))
                    if again and isinstance(self._fatal_error, BudgetError)
                    else last_error
                )
                error.attempts = last_error.attempts  # between two of which the budget may have stopped it
                self._settle(WorkResponse(work, error))
        if self._listener:
            return []
        return [self._state.settled.get(each.fingerprint, WorkResponse(each, None)) for each in self._state.shard.work]

    def _settle(self, item_result: WorkResponse) -> None:
        if self._fatal_error is None and isinstance(item_result.result, (TerminalError, BudgetError)):
            self._fatal_error = item_result.result
        settled = item_result if self._listener is None else item_result._replace(result=None)  # the listener has it
        self._state.settled[item_result.work.fingerprint] = settled
        if self._listener:
            self._listener.on_result(item_result)


MAX_SINGLE = 200
"""Number of asks up to which each has a task run of its own, for visibility."""


MIN_SHARD_SIZE = 100
"""Items of a shard, at least: fewer would share a task run's overhead among too few."""


MAX_TASK_RUNS = 400
"""Task runs of a fan-out, at most."""


MIN_ROUNDS = 10
"""Items in a shard for each place of another process, at least: while the last ones finish, places are idle."""


_RATES = ("requests_per_minute", "tokens_per_minute")


def shard_size(asks: int, limits: Limits) -> int:
    """Return how many items a task run takes in this process.

    Args:
        asks: The number of asks.
        limits: The limits; `shard` overrides the choice.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> [shard_size(asks, Limits()) for asks in (20, 200, 1000, 100_000)]
        [1, 1, 100, 250]
        >>> shard_size(20, Limits(shard=5))
        5
    """
    if limits.shard is not None:
        return limits.shard
    return 1 if asks <= MAX_SINGLE else max(MIN_SHARD_SIZE, -(-asks // MAX_TASK_RUNS))


def remote_shard_size(asks: int, limits: Limits, at_once: int) -> int:
    """Return how many items a task run takes in another process, where one costs about 100 ms.

    Args:
        asks: The number of asks.
        limits: The limits of one process; `shard` overrides the choice.
        at_once: How many task runs are in progress at once.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> [remote_shard_size(asks, Limits(concurrency=100), 2) for asks in (20, 2000, 1_000_000)]
        [10, 1000, 2500]
    """
    if limits.shard is not None:
        return limits.shard
    size = max(MIN_SHARD_SIZE, MIN_ROUNDS * limits.concurrency, -(-asks // MAX_TASK_RUNS))
    return max(1, min(size, -(-asks // at_once)))


def max_divisible_processes(limits: Limits) -> int:
    """Return among how many processes places and rates can be divided, with at least one of each for every process.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> max_divisible_processes(Limits(concurrency=8))
        8
        >>> max_divisible_processes(Limits(concurrency=8, requests_per_minute=2))
        2
    """
    rates: list[int | None] = [getattr(limits, name) for name in _RATES]
    return min(each for each in (limits.concurrency, *rates) if each is not None)


def divide_limits(limits: Limits, processes: int) -> Limits:
    """Return the share of one process of so many: places and rates divided.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> one = divide_limits(Limits(concurrency=9, requests_per_minute=60), 2)
        >>> one.concurrency, one.requests_per_minute, one.tokens_per_minute
        (4, 30, None)
    """
    totals = {name: getattr(limits, name) for name in ("concurrency", *_RATES)}
    return limits.model_copy(update={name: total // processes for name, total in totals.items() if total is not None})


LOOKAHEAD = 2
"""Factor of the concurrency up to which work of shards may be in progress, as their items share places."""


class InFlight:
    """Task runs of a fan-out that are in progress.

    Attributes:
        size: How many items a task run takes.
        stopped: Whether nothing more is to be asked, by shards that have work left.
        counter: Counter of the task runs that Prefect's server has recorded.
    """

    def __init__(self, executor: Executor, limits: Limits) -> None:
        """Create the tasks for an executor and limits."""
        self._executor, self._limits = executor, limits
        self._one, self._refreshing = with_limits(limits), with_limits(limits, refresh=True)
        self._shard_task: Any = shard_task(limits)
        self._runs: dict[PrefectFuture[Any], dict[str, WorkItem]] = {}
        self._groups: dict[str, dict[str, WorkItem]] = {}
        self._events: SimpleQueue[PrefectFuture[Any] | WorkResponse] = SimpleQueue()
        self._name = uuid4().hex
        self.size = 1
        self.stopped = False
        self.counter = TaskRunCounter()

    def __len__(self) -> int:
        """Return how much work is in progress."""
        return len(self._groups)

    def __enter__(self) -> Self:
        """Listen to the results of shards in this process."""
        subscribe(self._name, self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.counter.stop()
        unsubscribe(self._name)

    def prepare(self, asks: int) -> None:
        """Choose the shard size for a number of asks."""
        self.size = shard_size(asks, self._limits)

    @property
    def note(self) -> str:
        """What is waited for, where no work is being done; for the progress display."""
        return ""

    @property
    def takes_more(self) -> bool:
        """Whether another task run may be submitted.

        Items of shards share the places of the run, so that twice as many may wait for one: no place is idle while a
        task run finishes.
        """
        return len(self) < (LOOKAHEAD if self.size > 1 else 1) * self._limits.concurrency

    def submit(self, work: Sequence[WorkItem], again: Collection[str] = ()) -> None:
        """Submit a task run for some work.

        Args:
            work: One piece of work, or those of a shard.
            again: The fingerprints that are asked even where an answer is stored.
        """
        future: PrefectFuture[Any]
        if self.size == 1:
            (one,) = work
            task: Any = self._refreshing if one.fingerprint in again else self._one
            future = task.submit(one.brief, unmapped_quote(one.item), self._executor, self._limits)
        else:
            ignore_stored = frozenset(each.fingerprint for each in work if each.fingerprint in again)
            future = self._shard_task.submit(
                unmapped_quote(Shard(tuple(work), ignore_stored, self._name)), self._executor, self._limits
            )
        # All work of a task run shares one dictionary, whose rest is what still has no result.
        by_fingerprint = {each.fingerprint: each for each in work}
        self._runs[future] = by_fingerprint
        self._groups |= dict.fromkeys(by_fingerprint, by_fingerprint)
        future.add_done_callback(self._events.put)
        self.counter.count_started(len(self._runs))

    def on_result(self, item_result: WorkResponse) -> None:
        """Queue the result of a piece of work of a shard; thread-safe."""
        self.stopped = self.stopped or isinstance(item_result.result, (TerminalError, BudgetError))
        self._events.put(item_result)

    def next_results(self, timeout: float) -> list[WorkResponse]:
        """Return the next results, at least one; errors are returned, not raised.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            Empty: If there is none in time.
        """
        while True:
            event = self._events.get(timeout=max(0.0, timeout))
            results = [event] if isinstance(event, WorkResponse) else self._collect(event)
            for each in results:
                self._groups.pop(each.work.fingerprint).pop(each.work.fingerprint)
            if results:
                return results

    def halt(self) -> None:
        """Have shards start nothing more."""
        self.stopped = True

    def close(self, grace_s: float) -> float:
        """Close the call gate, as the run is interrupted; return how many seconds to wait for work in progress.

        Args:
            grace_s: Seconds that calls in progress have to finish.
        """
        gate_for_run(str(flow_run.get_id()), self._limits).close()
        return grace_s

    def _collect(self, future: PrefectFuture[Any]) -> list[WorkResponse]:
        """Return the results of a task run, except those that the listener was notified of before."""
        pending = self._runs.pop(future)
        if not pending:
            return []
        # An engine error is a result, too: a fan-out must return an outcome for each item.
        try:
            future.wait()
            result: object = future.result(raise_on_failure=False)
            forget_result(result, future)
            stored = future.state.name == "Cached"
        except Exception as broken:  # noqa: BLE001 -- Prefect's engine failed: still an outcome
            result, stored = broken, False
        if isinstance(result, list):
            results = {each.work.fingerprint: each for each in cast("list[WorkResponse]", result)}
            # Work without a result was not asked. Results may hold copies of the work, which the originals replace.
            return [results.get(name, WorkResponse(work, None))._replace(work=work) for name, work in pending.items()]
        return [_validate_stored(WorkResponse(work, result, stored=stored)) for work in pending.values()]


def _validate_stored(item_result: WorkResponse) -> WorkResponse:
    """Return a result of a task run, with a stored answer that is no longer valid replaced by None or by the error."""
    if not item_result.stored:
        return item_result
    try:
        return item_result._replace(result=validate_stored(item_result.result, item_result.work))
    except TerminalError as broken:  # a check of the user's
        return item_result._replace(result=broken, stored=False)
