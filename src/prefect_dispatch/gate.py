"""What stands before every call of a run: its budget and its pace."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.executors.base import Ask, Executor, Metered
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from prefect_dispatch.models import Limits


class Call:
    """A call that was let through."""

    usage: Usage | None = None
    """What it spent; to be set as soon as it is known."""


class Gate:
    """What every call of a run has to pass."""

    def __init__(self, limits: Limits) -> None:
        """Keep the limits."""
        self._limits = limits
        self._passed: Counter[str] = Counter()
        self._closed = False

    def close(self) -> None:
        """Let no further call through, as the run is interrupted; from any thread."""
        self._closed = True

    def passed(self, executor: Executor) -> int:
        """Return how many calls to whom this executor asks were answered so far."""
        return self._passed[_name(executor)]

    @asynccontextmanager
    async def call(self, executor: Executor, ask: Ask) -> AsyncGenerator[Call, None]:
        """Wait until a call may be sent, and account for it when it is over.

        Raises:
            ExecutorError: If the run is interrupted.
        """
        del ask
        if self._closed:
            raise ExecutorError("Interrupted.", kind="interrupted", usage=Usage())
        yield Call()
        self._passed[_name(executor)] += 1


def _name(executor: Executor) -> str:
    return executor.name if isinstance(executor, Metered) else type(executor).__name__
