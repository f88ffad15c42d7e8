"""Task runs that belong to no transaction of the caller's, and leave no trace of their results in its run.

In a transaction, Prefect stores a task run's result when the outermost one ends, and
rolls all of it back when one task run fails. An answer that was paid for is stored at
once, and an item that failed is a gap, not the end of the caller's transaction.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from prefect.context import FlowRunContext
from prefect.transactions import BaseTransaction
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import ContextVar

    from prefect.futures import PrefectFuture

_active = cast("ContextVar[BaseTransaction | None]", BaseTransaction.__var__)


@contextmanager
def apart() -> Generator[None]:
    """Run what is inside as if no transaction were open.

    Example:
        >>> from prefect.transactions import get_transaction, transaction
        >>> with transaction() as mine:
        ...     with apart():
        ...         print(get_transaction())
        ...     print(get_transaction() is mine)
        None
        True
    """
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def unlinked(result: object, future: PrefectFuture[object]) -> None:
    """Have Prefect forget of which task run something is the result.

    Until the flow ends it would keep a state for each, and look there for what later task runs depend on;
    ours depend on no other.
    """
    context = FlowRunContext.get()
    if context is None:
        return
    parts = vars(result).values() if isinstance(result, BaseModel) else ()
    for part in (result, *parts):
        state, *_ = context.run_results.get(id(part), (None,))
        if state is not None and state.state_details.task_run_id == future.task_run_id:
            context.run_results.pop(id(part), None)
