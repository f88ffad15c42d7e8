"""Task that answers one brief for one item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect import task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.tasks import exponential_backoff
from prefect.transactions import BaseTransaction, get_transaction

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.calls.call_gate import gate_for_run
from prefect_dispatch.errors import ExecutorError, TransientError
from prefect_dispatch.executors.base import BaseExecutor, Executor, executor_for, fingerprint
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Answer, Attempt, Failure, Usage
from prefect_dispatch.prefect_compat import keep_own_record
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.settings import settings
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.circuit_breaker import failure_of
from prefect_dispatch.tasks.storage.get_or_compute import ResultLocation, get_or_compute
from prefect_dispatch.tasks.storage.result_store import (
    AnswerSerializer,
    BlobStore,
    FingerprintPolicy,
    blob_store_of,
    storage_key,
    validate_stored,
)
from prefect_dispatch.tasks.work_item import WorkItem, WorkResult

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from prefect import Task
    from prefect.client.schemas.objects import TaskRun

    from prefect_dispatch.calls.attempt import Checkpoint
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome


NAME_LENGTH = 120


JITTER = 0.5


_earlier: dict[UUID, tuple[Attempt, ...]] = {}
"""Attempts of task runs that wait for a retry; Prefect retries in the same process."""


def run_name(parameters: dict[str, Any]) -> str:
    """Return the name of the task run for a brief and an item, without secrets."""
    brief: Brief = parameters["brief"]
    part = " (part)" if brief.part else ""
    name = redact(" ".join(strip_control_chars(f"{brief.name}: {parameters['item'].key}{part}").split()))
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


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
    place = ResultLocation.from_transaction(transaction, context.task.cache_expiration)
    if transaction.key is None:  # an answer that can't be stored is not paid for
        place.blobs.load(storage_key(work.fingerprint))  # raises the reason, if the storage still can't be used
        raise TransientError("The result storage can't be used, so nothing was asked.", kind="storage", usage=Usage())
    # 2. Get the stored answer, or compute it; attempts of earlier tries of this task run are part of it.
    earlier = _earlier.pop(run.id, ())

    async def ask(draft: Checkpoint) -> Answer:
        answer = await answer_with_gate(brief, item, executor, limits, group, draft)
        return answer.model_copy(update={"attempts": (*earlier, *answer.attempts), "fingerprint": work.fingerprint})

    try:
        answer, stored = event_loop.run(
            get_or_compute(place, work, ask, call_s=limits.timeout_s, again=transaction.overwrite), group=group
        )
    except event_loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    except ExecutorError as error:
        error.attempts = (*earlier, *error.attempts)
        if isinstance(error, TransientError) and run.run_count <= context.task.retries:
            _earlier[run.id] = error.attempts
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


def result_store_for_run() -> BlobStore:
    """Return the store that `run_brief` uses here: the result storage of the flow run, or Prefect's default."""
    return blob_store_of(run_brief)


async def answer_with_gate(  # noqa: PLR0917 -- each is part of an attempt
    brief: Brief,
    item: Item,
    executor: Executor,
    limits: Limits,
    group: str,
    draft: Checkpoint | None = None,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> Answer:
    """Return the answer to a brief for an item, from one attempt through the call gate of a flow run.

    Args:
        brief: The brief.
        item: The item.
        executor: The executor; the brief may choose another model.
        limits: The limits of the attempt.
        group: The name of the gate.
        draft: The checkpoint of the replies. None: there is none.
        turn: Context that is entered for each call, and waits there for a place of the run. None: no wait.
    """
    chosen = executor_for(brief, executor)
    await BaseExecutor.of(chosen).warm_up()
    return await run_attempt(
        chosen, brief, item, limits=limits, gate=gate_for_run(group, limits), checkpoint=draft, slot=turn
    )


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
