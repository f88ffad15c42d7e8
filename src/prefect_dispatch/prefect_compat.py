"""Every use of something in Prefect that its documentation does not promise.

Each name here is one such use. `tests/test_prefect_compat.py` has a contract test for each, which fails with the number
of the version of Prefect that breaks it; a house test keeps such uses out of every other module. Both ends of the range
that `pyproject.toml` declares are tested: Prefect 3.8.8 and 3.9.1.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.input import keyset_from_base_key
from prefect.input.actions import read_flow_run_input
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # no public way
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.transactions import BaseTransaction, TransactionState
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import propose_state_sync
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import ContextVar
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.futures import PrefectFuture
    from prefect.input.run_input import Keyset
    from prefect.serializers import Serializer
    from typing_extensions import Self

R = TypeVar("R")

_active_transaction = cast("ContextVar[BaseTransaction | None]", BaseTransaction.__var__)


@contextmanager
def outside_transactions() -> Generator[None]:
    """Run what is inside as if no transaction were open.

    In a transaction, Prefect stores a task run's result when the outermost one ends, and rolls all of it back when one
    task run fails. An answer that was paid for is stored at once, and an item that failed is a gap, not the end of the
    caller's transaction.

    Example:
        >>> from prefect.transactions import get_transaction, transaction
        >>> with transaction() as mine:
        ...     with outside_transactions():
        ...         print(get_transaction())
        ...     print(get_transaction() is mine)
        None
        True
    """
    token = _active_transaction.set(None)
    try:
        yield
    finally:
        _active_transaction.reset(token)


def keep_own_record(transaction: BaseTransaction, *, was_stored: bool) -> None:
    """Have Prefect not store the result of a task run that has stored it by itself.

    Args:
        transaction: The task run's transaction.
        was_stored: Whether the result was stored before this task run, so that its state is to be `Cached`.
    """
    transaction.write_on_commit = False
    if was_stored:
        transaction.state = TransactionState.COMMITTED


def forget_result(result: object, future: PrefectFuture[object]) -> None:
    """Have Prefect forget of which task run something is the result.

    Until the flow ends it would keep a state for each, and look there for what later task runs depend on. The task
    runs of a fan-out depend on no other.

    Args:
        result: What the task run returned.
        future: The future of the task run.
    """
    context = FlowRunContext.get()
    if context is None:
        return
    parts = vars(result).values() if isinstance(result, BaseModel) else ()
    for part in (result, *parts):
        state, *_ = context.run_results.get(id(part), (None,))
        if state is not None and state.state_details.task_run_id == future.task_run_id:
            context.run_results.pop(id(part), None)


def result_record(
    result: object, serializer: Serializer, *, storage_key: str, storage_block: UUID | None, expiration: datetime | None
) -> bytes:
    """Return a result as Prefect stores it.

    This is what `ResultStore.create_result_record` makes, without its look at each folder above the key's.

    Args:
        result: The result.
        serializer: What writes and reads it.
        storage_key: The key under which the record will stand; a path in a local storage.
        storage_block: The block of the storage, if it has one.
        expiration: When the record is no longer valid, if ever.
    """
    metadata = ResultRecordMetadata(
        serializer=serializer,
        expiration=cast("Any", expiration),
        storage_key=storage_key,
        storage_block_id=storage_block,
    )
    return ResultRecord(result=result, metadata=metadata).serialize()


class ReportState(State[R]):
    """A state in whose data Prefect looks for no futures.

    Prefect walks through the fields of a returned state, data included. For a report of 10,000 items that takes longer
    than all the rest of a run whose answers are stored.
    """

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Yield the fields but for the data."""
        return (field for field in super().__iter__() if field[0] != "data")


@contextmanager
def override_settings(group: str, **values: object) -> Generator[None]:
    """Run what is inside with other settings of Prefect.

    Prefect's `temporary_settings` reads the whole environment again, which takes fifty milliseconds.

    Args:
        group: The group of settings, such as `flows`.
        **values: The settings of the group, such as `heartbeat_frequency`.
    """
    context = get_settings_context()
    changed = getattr(context.settings, group).model_copy(update=values)
    settings = context.settings.model_copy(update={group: changed})
    with SettingsContext(profile=context.profile, settings=settings):
        yield


class ProcessPool(ProcessPoolTaskRunner):
    """Prefect's process pool, whose thread that forwards messages has the settings of the run.

    That thread inherits no context variables. Without the address of the run's server it would start another one, and
    leave it behind.
    """

    def __enter__(self) -> Self:
        """Start the pool."""
        self._run_context = copy_context()
        return super().__enter__()

    def _forward_subprocess_messages(self) -> None:
        self._run_context.run(super()._forward_subprocess_messages)


def visit_parts(data: object, visit: Callable[[Any], Any]) -> None:
    """Call a function for every part of nested data, as Prefect does to find futures in parameters.

    Args:
        data: Lists, tuples, mappings and whatever they hold.
        visit: What is called with each part.
    """
    visit_collection(data, visit_fn=visit, return_data=False)


def form_keys(pause_key: str) -> Keyset:
    """Return the keys under which Prefect keeps the form of a pause, and the answer to it.

    Args:
        pause_key: The key of the pause, as its state has it.
    """
    return keyset_from_base_key(f"paused-{pause_key}")


def form_answer(flow_run: UUID, pause_key: str) -> object:
    """Return what was sent with the form of a pause; None if nothing was.

    Args:
        flow_run: The id of the flow run that was paused.
        pause_key: The key of the pause.
    """
    return cast("object", read_flow_run_input(form_keys(pause_key)["response"], flow_run))


def propose_state(client: SyncPrefectClient, state: State[R], flow_run: UUID) -> State[R]:
    """Return the state that a flow run has after another one was proposed to Prefect's orchestration.

    Raises:
        Abort: If the run must not go on.
    """
    return propose_state_sync(client, state, flow_run_id=flow_run)


def ephemeral_server_url() -> str | None:
    """Return the address of the server that Prefect has started in this process, if it has."""
    module: Any = sys.modules.get("prefect.server.api.server")  # its import alone takes seconds
    kind = getattr(module, "SubprocessASGIServer", None)
    running = [each for each in getattr(kind, "_instances", {}).values() if each.running]
    return running[0].api_url if running else None


def has_next_date(cron: str) -> bool:
    """Return whether the server's scheduler finds a date for a cron expression.

    Args:
        cron: The expression.

    Raises:
        ValueError: If it is none, or if its day never comes.
    """
    from prefect.server.schemas.schedules import CronSchedule  # noqa: PLC0415 -- importing the server takes seconds

    return bool(asyncio.run(CronSchedule(cron=cron).get_dates(1)))


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error says that Prefect's API can't be reached, as a flow run begins.

    Prefect raises a plain `RuntimeError` there, which only its words tell from others.
    """
    return isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API")
