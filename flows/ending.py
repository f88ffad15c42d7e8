"""How a run ends that doesn't complete: refused, failed, or interrupted from the terminal, by a signal, in the UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.progress import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State

    from prefect_dispatch.report import Report

INTERRUPTIONS = (KeyboardInterrupt, TerminationSignal, CancelledRun)
"""What ends a run from outside: Ctrl-C, SIGTERM, and somebody who cancels it."""


def cancelled(told: str, error: BaseException) -> State[Any]:
    """Return the state of a run that was interrupted.

    Args:
        told: How far it came.
        error: What interrupted it. Inside a flow of a caller's it is raised again: it interrupts that, too.
    """
    if notify := interrupted.get():
        notify()
    if flow_run.get_parent_flow_run_id():
        raise error
    message = f"Cancelled: {told}. What came back is stored: the same job goes on from there."
    get_run_logger().warning(message)  # a worker that cancels a run puts words of its own into the state after this one
    return Cancelled(message=message)


def told(step: Callable[[], Report]) -> Report:
    """Return what a step returns; where it refuses a job, or has failed, the state of which Prefect raises the error.

    Raised here, Prefect would log its traceback: to who started the run from a form, pages that say no more than the
    message.
    """
    try:
        return step()
    except (JobError, DispatchFailed) as error:
        return cast("Report", Failed(message=str(error), data=error))
