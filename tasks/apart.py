"""Task runs that belong to no transaction of the caller's.

In a transaction, Prefect stores a task run's result when the outermost one ends, and
rolls all of it back when one task run fails. An answer that was paid for is stored at
once, and an item that failed is a gap, not the end of the caller's transaction.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from prefect.transactions import BaseTransaction

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextvars import ContextVar

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
