"""Adapter for every use of a Prefect internal that its documentation does not guarantee.

Each name here is one such use. `tests/test_prefect_compat.py` has a contract test for each, which fails with the number
of the version of Prefect that breaks it; a test keeps such uses out of every other module. Both ends of the range that
`pyproject.toml` declares are tested: Prefect 3.8.8 and 3.9.1.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.input import keyset_from_base_key
from prefect.input.actions import read_flow_run_input
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]  # no public way
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.transactions import BaseTransaction, TransactionState
from prefect.utilities.callables import ParameterSchema, parameter_docstrings
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import propose_state_sync
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from contextvars import ContextVar
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.deployments.runner import RunnerDeployment
    from prefect.futures import PrefectFuture
    from prefect.input.run_input import Keyset
    from prefect.serializers import Serializer
    from typing_extensions import Self

R = TypeVar("R")

_active_flow_run = FlowRunContext.__var__
_active_transaction = cast("ContextVar[BaseTransaction | None]", BaseTransaction.__var__)


@contextmanager
def outside_transactions() -> Generator[None]:
    """Run the body outside of any open transaction.

    In a transaction, Prefect stores the results of task runs when the outermost one ends, and rolls all of them back
    when one task run fails. Here an answer that was paid for is stored at once, and a failed item is a gap and must
    not end the caller's transaction.

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
    """Prevent Prefect from storing the result of a task run that has stored it itself.

    Args:
        transaction: The task run's transaction.
        was_stored: Whether the result was stored before this task run, so that its state becomes `Cached`.
    """
    transaction.write_on_commit = False
    if was_stored:
        transaction.state = TransactionState.COMMITTED


def forget_result(result: object, future: PrefectFuture[object]) -> None:
    """Remove a result from Prefect's record of which task run returned it.

    Prefect keeps a state for each result until the flow ends, to find the dependencies of later task runs. The task
    runs of a fan-out depend on no other, so the states would only take memory.

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
    """Return a result in the serialized form in which Prefect stores it.

    This is the record of `ResultStore.create_result_record`, without its check of each folder above the key's.

    Args:
        result: The result.
        serializer: The serializer of the result.
        storage_key: The key of the record; a path in a local storage.
        storage_block: The block of the storage, if it has one.
        expiration: When the record expires, if ever.
    """
    metadata = ResultRecordMetadata(
        serializer=serializer,
        expiration=cast("Any", expiration),
        storage_key=storage_key,
        storage_block_id=storage_block,
    )
    return ResultRecord(result=result, metadata=metadata).serialize()


class ReportState(State[R]):
    """State whose data Prefect does not search for futures.

    Prefect traverses the fields of a returned state, data included. For a report of 10,000 items that takes longer than
    all the rest of a run whose answers are stored.
    """

    def __iter__(self) -> Generator[tuple[str, Any]]:
        """Yield all fields except the data."""
        return (field for field in super().__iter__() if field[0] != "data")


@contextmanager
def override_settings(group: str, **values: object) -> Generator[None]:
    """Override settings of Prefect within the body.

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
    """Process pool of Prefect's that sends its processes little, and whose message-forwarding thread has the settings.

    With each task run, Prefect sends the flow and all of its parameters, so that a process would import all that the
    flow needs, which takes as long as Prefect itself, and read all items again for each shard. A task run needs only
    the name of its flow.

    That thread inherits no context variables. Without the address of the run's server it would start another server
    and never stop it.
    """

    def __enter__(self) -> Self:
        """Start the pool."""
        self._run_context = copy_context()
        return super().__enter__()

    @staticmethod
    def _run_elsewhere() -> None:
        """Stand in for the code of the flow, which is not called there."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- those of the overridden method
        """Submit a task run, with the context of its flow run reduced to what it needs."""
        context: Any = FlowRunContext.get()  # a fan-out is always in a flow run
        named = Flow(self._run_elsewhere, name=context.flow.name)
        token = _active_flow_run.set(context.model_copy(update={"flow": named, "parameters": {}}))
        try:
            return super().submit(*args, **kwargs)
        finally:
            _active_flow_run.reset(token)

    def _forward_subprocess_messages(self) -> None:
        self._run_context.run(super()._forward_subprocess_messages)


def visit_parts(data: object, visit: Callable[[Any], Any]) -> None:
    """Call a function for every part of nested data, as Prefect does to find futures in parameters.

    Args:
        data: Nested lists, tuples, mappings and other values.
        visit: The function, which is called with each part.
    """
    visit_collection(data, visit_fn=visit, return_data=False)


def form_keys(pause_key: str) -> Keyset:
    """Return the keys under which Prefect stores the form of a pause, and the answer to it.

    Args:
        pause_key: The key of the pause, as its state has it.
    """
    return keyset_from_base_key(f"paused-{pause_key}")


def form_answer(flow_run: UUID, pause_key: str) -> object:
    """Return the submitted answer to the form of a pause, or None.

    Args:
        flow_run: The id of the flow run that was paused.
        pause_key: The key of the pause.
    """
    return cast("object", read_flow_run_input(form_keys(pause_key)["response"], flow_run))


def propose_state(client: SyncPrefectClient, state: State[R], flow_run: UUID) -> State[R]:
    """Propose a state of a flow run to Prefect's orchestration; return the state that the run has then.

    Raises:
        Abort: If the run must not go on.
    """
    return propose_state_sync(client, state, flow_run_id=flow_run)


def ephemeral_server_url() -> str | None:
    """Return the address of the temporary server that Prefect has started for this process, or None."""
    module: Any = sys.modules.get("prefect.server.api.server")  # without importing it, which takes seconds
    kind = getattr(module, "SubprocessASGIServer", None)
    running = [each for each in getattr(kind, "_instances", {}).values() if each.running]
    return running[0].api_url if running else None


def has_next_date(cron: str) -> bool:
    """Return whether the server's scheduler finds a date for a cron expression.

    Args:
        cron: The expression.

    Raises:
        ValueError: If it is invalid, or its date never occurs.
    """
    from prefect.server.schemas.schedules import CronSchedule  # noqa: PLC0415 -- importing the server takes seconds

    return bool(asyncio.run(CronSchedule(cron=cron).get_dates(1)))


def parameter_descriptions(function: Callable[..., object]) -> dict[str, str]:
    """Return the descriptions of a function's parameters, as Prefect reads them in its docstring for a form."""
    return dict(parameter_docstrings(inspect.getdoc(function)))


class _NamedParameters(ParameterSchema):
    """Schema of a deployment's parameters that admits no other names."""

    propertyNames: dict[str, list[str]]  # noqa: N815 -- a keyword of JSON Schema


def require_known_parameters(deployment: RunnerDeployment, names: Sequence[str]) -> None:
    """Have Prefect's server refuse runs of a deployment with unknown parameters.

    Without this it accepts them, and the run's process ends with a traceback before the flow begins. Parameters that
    the form doesn't show are known, too, so `additionalProperties: false` would refuse too much.

    Args:
        deployment: The deployment, which is not registered yet.
        names: The names of the flow's parameters.
    """
    schema = deployment._parameter_openapi_schema  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- no public way
    given = {**schema.model_dump(exclude_unset=True), "propertyNames": {"enum": [*names]}}
    deployment._parameter_openapi_schema = _NamedParameters.model_validate(given)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error means that Prefect's API can't be reached when a flow run begins.

    Prefect raises a plain `RuntimeError` there, which differs from others by its message only.
    """
    return isinstance(error, RuntimeError) and str(error).startswith("Failed to reach API")
