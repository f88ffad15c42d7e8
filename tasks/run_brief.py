"""The task: one brief for one item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect import task
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff
from prefect.transactions import BaseTransaction, get_transaction

from prefect_dispatch.asking import attempt
from prefect_dispatch.errors import ExecutorError, TransientError
from prefect_dispatch.executors.base import Executor, Warmable
from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.inert import plain
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Answer, Attempt, Brief, Item, Usage
from prefect_dispatch.prefect_compat import keep_own_record
from prefect_dispatch.scrub import scrub
from prefect_dispatch.settings import settings
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.gates import gate_of
from prefect_dispatch.tasks.once import Place, once
from prefect_dispatch.tasks.shelf import Shelf, shelf_of
from prefect_dispatch.tasks.store import AnswerSerializer, FingerprintPolicy, key_of
from prefect_dispatch.tasks.work import Work

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

    from prefect_dispatch.draft import Draft

NAME_LENGTH = 120
JITTER = 0.5

_earlier: dict[UUID, tuple[Attempt, ...]] = {}
"""Attempts of task runs that wait for a retry; Prefect retries in the same process."""


def run_name(parameters: dict[str, Any]) -> str:
    """Return the name of the task run for a brief and an item, without secrets."""
    brief: Brief = parameters["brief"]
    part = " (part)" if brief.part else ""
    name = scrub(" ".join(plain(f"{brief.name}: {parameters['item'].key}{part}").split()))
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 -- Prefect's signature
    """Return whether a task run failed in passing, so that Prefect tries it again."""
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
    cache_result_in_memory=False,  # what is asked again would still be the old answer there
)
def run_brief(brief: Brief, item: Item, executor: Executor, limits: Limits | None = None) -> Answer:
    """Return the answer to a brief for an item: the stored one, else a new one.

    The answer is stored under the fingerprint of the work, in Prefect's result storage,
    and reused by whatever run asks the same again. Failures are not stored. Transient
    errors are retried by Prefect; invalid answers are sent back within an attempt.

    Args:
        brief: What is asked.
        item: What it is asked about.
        executor: Who is asked.
        limits: Re-asks and the time limit of an attempt. Retries are the task's own
            (`run_brief.with_options(retries=…)`); `within` sets both from the same limits.

    Returns:
        The answer, with every attempt that it took.

    Raises:
        ExecutorError: If there is no valid answer; `.attempts` holds what was spent.
        JobError: If a setting can't be used; nobody was asked.
    """
    limits = limits or Limits()
    settings()  # one that can't be used is told before anything is spent
    context, own = TaskRunContext.get(), get_transaction()
    if context is None or context.task.fn is not run_brief.fn or own is None or not _is_kept(context, own):
        group = "" if context is None else str(context.task_run.flow_run_id or "")
        return loop.run(asked(brief, item, executor, limits, group), group=group)
    run = context.task_run
    group = str(run.flow_run_id or "")
    work = Work(brief, item, fingerprint(brief, item, executor))
    place = Place.of(own, context.task.cache_expiration)
    if own.key is None:  # what can't be stored is not paid for
        place.shelf.read(key_of(work.fingerprint))  # says why, if it still is so
        raise TransientError("The result storage can't be used, so nobody was asked.", kind="storage", usage=Usage())
    before = _earlier.pop(run.id, ())

    async def ask(draft: Draft) -> Answer:
        answer = await asked(brief, item, executor, limits, group, draft)
        return answer.model_copy(update={"attempts": (*before, *answer.attempts), "fingerprint": work.fingerprint})

    try:
        answer, stored = loop.run(once(place, work, ask, call_s=limits.timeout_s, again=own.overwrite), group=group)
    except loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    except ExecutorError as error:
        error.attempts = (*before, *error.attempts)
        if isinstance(error, TransientError) and run.run_count <= context.task.retries:
            _earlier[run.id] = error.attempts
        raise
    keep_own_record(own, was_stored=stored)
    return answer


def _is_kept(context: TaskRunContext, own: BaseTransaction) -> bool:
    """Return whether the answer of a task run is to be stored."""
    keyed = own.key is not None or isinstance(context.task.cache_policy, FingerprintPolicy)
    return own.write_on_commit and keyed


def within(limits: Limits, *, refresh: bool = False) -> Task[[Brief, Item, Executor, Limits | None], Answer]:
    """Return `run_brief` with the retries of some limits.

    Args:
        limits: The limits; pass them to the task itself as well.
        refresh: Ask again even where an answer is stored.
    """
    return run_brief.with_options(
        retries=limits.retries,
        retry_delay_seconds=exponential_backoff(limits.retry_delay_s),
        refresh_cache=refresh,
    )


def answer_shelf() -> Shelf:
    """Return the storage that `run_brief` uses here: the result storage of the flow run, or Prefect's default."""
    return shelf_of(run_brief)


async def asked(  # noqa: PLR0917 -- what makes an attempt
    brief: Brief,
    item: Item,
    executor: Executor,
    limits: Limits,
    group: str,
    draft: Draft | None = None,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> Answer:
    """Return the answer to a brief for an item, from one attempt through the gate of a flow run."""
    who = executor_for(brief, executor)
    if isinstance(who, Warmable):
        await who.warm_up()
    return await attempt(who, brief, item, limits=limits, gate=gate_of(group, limits), draft=draft, turn=turn)
