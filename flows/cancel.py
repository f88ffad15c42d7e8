"""A run that is interrupted: from the terminal, by its process's end, or from Prefect's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

INTERRUPTIONS = (KeyboardInterrupt, TerminationSignal, CancelledRun)
"""What ends a run from outside: Ctrl-C, SIGTERM, and somebody who cancels it."""


def cancelled(told: str, error: BaseException) -> State[Any]:
    """Return the state of a run that was interrupted.

    Args:
        told: How far it came.
        error: What interrupted it. Inside a flow of a caller's it is raised again: it interrupts that, too.
    """
    if flow_run.get_parent_flow_run_id():
        raise error
    message = f"Cancelled: {told}. What came back is stored: the same job goes on from there."
    get_run_logger().warning(message)  # a worker that cancels a run puts words of its own into the state after this one
    return Cancelled(message=message)
