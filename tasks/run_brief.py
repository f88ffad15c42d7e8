"""Tasks that answer: `run_brief` one brief for one item, and `run_shard` many, in this process or in another."""

from __future__ import annotations

import asyncio
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.results import get_result_store
from prefect.tasks import exponential_backoff
from prefect.transactions import BaseTransaction, get_transaction

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.calls.call_gate import ConcurrencySlot, gate_for_run
from prefect_dispatch.errors import BudgetError, ExecutorError, TerminalError, TransientError
from prefect_dispatch.executors.base import BaseExecutor, Executor, executor_for, fingerprint
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Answer, Attempt, Failure, Usage
from prefect_dispatch.prefect_compat import keep_own_record
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.settings import settings
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.get_or_compute import CancelledBeforeSendError, ResultLocation, get_or_compute
from prefect_dispatch.tasks.result_store import (
    AnswerSerializer,
    BlobStore,
    FingerprintPolicy,
    blob_store_of,
    storage_key,
    validate_stored,
)
from prefect_dispatch.tasks.shards.protocol import ShardHeader, ShardResult, ShardSupervisor
from prefect_dispatch.tasks.stop_conditions import failure_of
from prefect_dispatch.tasks.work_item import WorkItem, WorkResponse, WorkResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from prefect import Task
    from prefect.client.schemas.objects import TaskRun
    from prefect.results import ResultStore

    from prefect_dispatch.calls.attempt import Checkpoint
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome


MAX_NAME_LENGTH = 120
"""Maximum length of the name of a task run, in characters."""
JITTER = 0.5
"""Largest share of a retry's delay that is added at random, so that failed task runs don't all retry at once."""


_earlier_attempts: dict[UUID, tuple[Attempt, ...]] = {}
"""Attempts of task runs that wait for a retry; Prefect retries in the same process."""


def run_name(parameters: dict[str, Any]) -> str:
    """Return the name of the task run for a brief and an item, without secrets."""
    brief: Brief = parameters["brief"]
    part = " (part)" if brief.part else ""
    return display_name(f"{brief.name}: {parameters['item'].key}{part}", MAX_NAME_LENGTH)


def display_name(name: str, length: int) -> str:
    """Return a name as the UI shows it: without secrets, on one line, and of limited length."""
    return shorten(redact(" ".join(strip_control_chars(name).split())), length)


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 -- Prefect's signature
    """Return whether a task run failed with a transient error, so that Prefect retries it."""
    return isinstance(state.data, TransientError)


@task(
    name="run-brief",
    task_run_name=cast("Any", run_name),  # a name from parameters, which the type leaves out
    retries=Limits().retries,
    retry_delay_seconds=exponential_backoff(Limits().retry_delay_s),
    retry_jitter_factor=JITTER,
    retry_condition_fn=is_transient,
    cache_policy=FingerprintPolicy(),
    result_serializer=AnswerSerializer(),
    persist_result=True,
    cache_result_in_memory=False,  # after a refresh, the memory would still hold the old answer
)
def run_brief(brief: Brief, item: Item, executor: Executor, limits: Limits | None = None) -> Answer:
    """Return the answer to a brief for an item: the stored one, else a new one.

    The answer is stored under the fingerprint of the work, in Prefect's result storage,
    and reused by any run that asks the same again. Failures are not stored. Transient
    errors are retried by Prefect; invalid answers are sent back within an attempt.

    Args:
        brief: The brief.
        item: The item.
        executor: The executor that answers.
        limits: Re-asks and the time limit of an attempt. Retries are the task's own
            (`run_brief.with_options(retries=…)`); `with_limits` sets both from the same limits.

    Returns:
        The answer, with every attempt that it took.

    Raises:
        ExecutorError: If there is no valid answer; `.attempts` holds the usage.
        JobError: If a setting can't be used; nothing was asked.
    """
    limits = limits or Limits()
    settings()  # raises for an invalid setting, before anything is spent
    context, transaction = TaskRunContext.get(), get_transaction()
    # 1. Outside a task run, or without persistence, answer without the store.
    if (
        context is None
        or context.task.fn is not run_brief.fn
        or transaction is None
        or not _is_persisted(context, transaction)
    ):
        # The group is the flow run, whose gate and interruption its task runs share.
        group = "" if context is None else str(context.task_run.flow_run_id or "")
        return event_loop.run(answer_with_gate(brief, item, executor, limits, group), group=group)
    run = context.task_run
    group = str(run.flow_run_id or "")
    work = WorkItem(brief, item, fingerprint(brief, item, executor))
    # The location that Prefect uses for the task run, and checks before the next one.
    store, key = cast("ResultStore", transaction.store), cast("str", transaction.key)
    location = ResultLocation(store, key, context.task.cache_expiration)
    if transaction.key is None:  # an answer that can't be stored is not paid for
        location.blobs.load(storage_key(work.fingerprint))  # raises the reason, if the storage still can't be used
        raise TransientError("The result storage can't be used, so nothing was asked.", kind="storage", usage=Usage())
    # 2. Get the stored answer, or compute it; attempts of earlier tries of this task run are part of it.
    earlier = _earlier_attempts.pop(run.id, ())
    answering = _get_or_answer(location, work, executor, limits, group, earlier, again=transaction.overwrite)
    try:
        answer, stored = event_loop.run(answering, group=group)
    except event_loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    except ExecutorError as error:
        if isinstance(error, TransientError) and run.run_count <= context.task.retries:
            _earlier_attempts[run.id] = error.attempts
        raise
    keep_own_record(transaction, was_stored=stored)
    return answer


def _is_persisted(context: TaskRunContext, transaction: BaseTransaction) -> bool:
    """Return whether the answer of a task run is to be stored."""
    has_key = transaction.key is not None or isinstance(context.task.cache_policy, FingerprintPolicy)
    return transaction.write_on_commit and has_key


def with_limits(limits: Limits, *, refresh: bool = False) -> Task[[Brief, Item, Executor, Limits | None], Answer]:
    """Return `run_brief` with the retries of some limits.

    Args:
        limits: The limits; pass them to the task itself as well.
        refresh: Whether to ask even where an answer is stored.
    """
    return run_brief.with_options(
        retries=limits.retries,
        retry_delay_seconds=exponential_backoff(limits.retry_delay_s),
        refresh_cache=refresh,
    )


def result_locations() -> Callable[[str], ResultLocation]:
    """Return a function that returns the location of an answer in the store of this run, by the work's fingerprint."""
    store = cast("Any", get_result_store()).update_for_task(run_brief, _sync=True)
    return lambda work: ResultLocation(store, storage_key(work), run_brief.cache_expiration)


def result_store_for_run() -> BlobStore:
    """Return the store that `run_brief` uses here: the result storage of the flow run, or Prefect's default."""
    return blob_store_of(run_brief)


async def _get_or_answer(
    location: ResultLocation,
    work: WorkItem,
    executor: Executor,
    limits: Limits,
    group: str,
    earlier: tuple[Attempt, ...],
    *,
    again: bool,
    slot: ConcurrencySlot | None = None,
) -> tuple[Answer, bool]:
    """Return the answer to some work, and whether it was stored before.

    Args:
        location: The location of the answer.
        work: The work.
        executor: The executor.
        limits: The limits of the attempt.
        group: The name of the gate.
        earlier: The attempts of earlier tries of the task run; they become part of the answer, or of the error.
        again: Whether to ask even where an answer is stored.
        slot: The slot of the run that each call waits for. None: no wait.

    Raises:
        ExecutorError: If there is no valid answer.
    """

    async def ask(draft: Checkpoint) -> Answer:
        with closing(slot) if slot else nullcontext():
            answer = await answer_with_gate(work.brief, work.item, executor, limits, group, draft, slot)
        return answer.model_copy(update={"attempts": (*earlier, *answer.attempts), "fingerprint": work.fingerprint})

    try:
        return await get_or_compute(location, work, ask, call_s=limits.timeout_s, again=again)
    except ExecutorError as error:
        error.attempts = (*earlier, *error.attempts)
        raise


async def answer_with_gate(  # noqa: PLR0917 -- each is part of an attempt
    brief: Brief,
    item: Item,
    executor: Executor,
    limits: Limits,
    group: str,
    draft: Checkpoint | None = None,
    slot: ConcurrencySlot | None = None,
) -> Answer:
    """Return the answer to a brief for an item, from one attempt through the call gate of a flow run.

    Args:
        brief: The brief.
        item: The item.
        executor: The executor; the brief may choose another model.
        limits: The limits of the attempt.
        group: The name of the gate.
        draft: The checkpoint of the replies. None: there is none.
        slot: The slot of the run that each call waits for. None: no wait.
    """
    chosen = executor_for(brief, executor)
    await BaseExecutor.of(chosen).warm_up()
    return await run_attempt(
        chosen, brief, item, limits=limits, gate=gate_for_run(group, limits), checkpoint=draft, slot=slot
    )


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
    listener: Listener | None = None
    """Notified of results, where it is in this process."""
    header: ShardHeader | None = None
    """Identity and control note of a shard that goes to another process."""


@dataclass
class _ShardState:
    """State of a shard, over all attempts of its task run."""

    shard: Shard
    listener: Listener
    """Notified of results; says whether nothing more is to be asked."""
    settled: set[str] = field(default_factory=set[str])
    """The fingerprints of the work that has a final result."""
    transient_errors: dict[str, TransientError] = field(default_factory=dict[str, TransientError])
    """Transient errors, by fingerprint; each holds all attempts so far."""


_earlier_states: dict[UUID, _ShardState] = {}
"""State of shards that wait for a retry, by task run; Prefect retries in the same process."""


def _shard_name(parameters: dict[str, Any]) -> str:
    work = cast("Shard", parameters["shard"]).work
    if len(work) == 1:
        return run_name({"brief": work[0].brief, "item": work[0].item})
    first, last = (
        display_name(f"{each.brief.name}: {each.item.key}", (MAX_NAME_LENGTH - 30) // 2) for each in (work[0], work[-1])
    )
    return f"{len(work)} items, {first} to {last}"


def _run_shard(shard: Shard, executor: Executor, limits: Limits) -> ShardResult | None:
    """Do the work; the listener in this process is notified of the results, or they are returned to another process.

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
    state = _earlier_states.pop(run.id, None)
    # 1. Set up: a retry goes on with the state of the attempt before it.
    if state is None:
        supervisor = ShardSupervisor(shard.header, executor, limits, group) if shard.header else None
        state = _ShardState(shard, cast("Listener", supervisor or shard.listener))
        try:
            if supervisor and not supervisor.start():
                return supervisor.finish(begun_before=True)
        except TerminalError as error:  # all others would meet it
            return ShardResult.failed(error, shard.work[0])
    # 2. Ask what is left.
    supervisor = state.listener if isinstance(state.listener, ShardSupervisor) else None
    attempt = _ShardAttempt(state, executor, limits, supervisor.group if supervisor else group)
    try:
        event_loop.run(supervisor.run(attempt.run()) if supervisor else attempt.run(), group=group)
    except event_loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    # 3. Have Prefect retry while transient errors are left, else finish.
    again = run.run_count <= context.task.retries
    if state.transient_errors and not attempt.stopped and again:
        _earlier_states[run.id] = state
        raise TransientError(
            f"{len(state.transient_errors)} of {len(shard.work)} items failed with a transient error; they are asked "
            "again."
        )
    attempt.finish(again=again)
    return supervisor.finish() if supervisor else None


run_shard = task(  # of a function under a name of its own: so it is pickled by name, not with what its module holds
    name="run-shard",
    task_run_name=cast("Any", _shard_name),  # a name from parameters, which the type leaves out
    retries=Limits().retries,
    retry_delay_seconds=exponential_backoff(Limits().retry_delay_s),
    retry_jitter_factor=JITTER,
    retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,  # each answer is stored by itself
    persist_result=False,
)(_run_shard)


def shard_task(limits: Limits) -> Task[[Shard, Executor, Limits], ShardResult | None]:
    """Return `run_shard` with the retries of some limits."""
    return run_shard.with_options(retries=limits.retries, retry_delay_seconds=exponential_backoff(limits.retry_delay_s))


class _ShardAttempt:
    """One attempt at a shard."""

    def __init__(self, state: _ShardState, executor: Executor, limits: Limits, group: str) -> None:
        self._state, self._executor, self._limits, self._group = state, executor, limits, group
        self._store = get_result_store()
        self._slots = gate_for_run(group, limits).slots
        self._listener = state.listener
        self._fatal_error: BaseException | None = None  # an error that all further work would meet

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be asked."""
        return self._fatal_error is not None or self._listener.stopped

    async def run(self) -> None:
        """Do the remaining work, with up to `concurrency` coroutines that wait for the slots of the run."""
        waiting = iter([work for work in self._state.shard.work if work.fingerprint not in self._state.settled])
        workers = min(self._limits.concurrency, len(self._state.shard.work))
        await asyncio.gather(*(self._run_worker(waiting) for _ in range(workers)))

    async def _run_worker(self, waiting: Iterator[WorkItem]) -> None:
        while not self.stopped and (work := next(waiting, None)):
            await self._process(work)

    async def _process(self, work: WorkItem) -> None:
        last_error = self._state.transient_errors.pop(work.fingerprint, None)
        # Errors become results, too: an item must not end the other items of its shard.
        location = ResultLocation(self._store, storage_key(work.fingerprint), run_brief.cache_expiration)
        answering = _get_or_answer(
            location,
            work,
            self._executor,
            self._limits,
            self._group,
            last_error.attempts if last_error else (),
            again=work.fingerprint in self._state.shard.again,
            slot=ConcurrencySlot(self._slots, self._raise_if_cancelled),
        )
        try:
            answer, stored = await answering
        except CancelledBeforeSendError:
            # Nothing was sent. Keep the last error, as the attempts before it have to be reported.
            if last_error:
                self._state.transient_errors[work.fingerprint] = last_error
        except ExecutorError as error:
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

    def finish(self, *, again: bool) -> None:
        """Settle what failed with transient errors.

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

    def _settle(self, item_result: WorkResponse) -> None:
        if self._fatal_error is None and isinstance(item_result.result, (TerminalError, BudgetError)):
            self._fatal_error = item_result.result
        self._state.settled.add(item_result.work.fingerprint)
        self._listener.on_result(item_result)


def outcome_of(brief: Brief, item: Item, said: PrefectFuture[Any] | State[Any] | Answer | BaseException) -> Outcome:
    """Return the outcome of a brief for an item, of a success or a failure: `integrate` needs one for each.

    Args:
        brief: The brief.
        item: The item.
        said: The result of `run_brief`: a future (of `.submit` or `.map`, which is waited for), a state, an answer, or
            the error that it raised.

    Returns:
        A success, or a failure with its reason: an error, a crash, a cancelled task run, a stored answer that is
        not valid any more.

    Example:
        >>> from prefect_dispatch import Brief, Item
        >>> brief, item = Brief(name="b", instructions="Do."), Item(key="a", value=1)
        >>> outcome_of(brief, item, Answer(value="yes")).value
        'yes'
        >>> outcome_of(brief, item, ExecutorError("No.", kind="refused")).error
        Failure(kind='refused', message='No.')
    """
    state: State[Any] | None = None
    if isinstance(said, PrefectFuture):
        said.wait()
        state = said.state
    elif isinstance(said, State):
        state = said
    result: object = said if state is None else _state_result(state)
    return _to_outcome(brief, item, result, stored=state is not None and state.name == "Cached")


def _state_result(state: State[Any]) -> object:
    """Return the result of a task run, or its error."""
    try:
        return state.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 -- it never ran, or its result can't be read; still an outcome
        return error


def _to_outcome(brief: Brief, item: Item, result: object, *, stored: bool) -> Outcome:
    work = WorkItem(brief, item, result.fingerprint if isinstance(result, Answer) else "")
    if isinstance(result, BaseException):
        attempts = result.attempts if isinstance(result, ExecutorError) else ()
        end = WorkResult(work, "failed", error=failure_of(result), attempts=attempts)
    elif (answer := validate_stored(result, work)) is not None:
        end = WorkResult(work, "succeeded", answer, stored=stored)
    else:
        message = "The result is not a valid answer to this brief; ask again with refresh_cache=True."
        end = WorkResult(work, "failed", error=Failure(kind="invalid_output", message=message))
    return end.to_outcomes([work], ())[0]
