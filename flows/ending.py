"""How an attempt of a flow run ends that doesn't complete: refused, failed, tried again, or interrupted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from prefect_dispatch.errors import DispatchError, DispatchFailed, JobError
from prefect_dispatch.progress import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

    from prefect_dispatch.report import Report


class AwaitCancelled(BaseException):
    """The asyncio task that awaits a run was cancelled (see `JobFlow.acall`)."""


INTERRUPTIONS = (KeyboardInterrupt, TerminationSignal, CancelledRun, AwaitCancelled)
"""What ends a run from outside: Ctrl-C, SIGTERM, and somebody who cancels it."""

_FAILED_ATTEMPT = "Encountered exception during execution: %r"
_ENGINE_EXIT = "Engine execution exited with unexpected exception"
"""Prefect's log messages about an error that a flow raised; both come with a traceback."""
_RUN_OF_ERROR = "_prefect_dispatch_flow_run"
"""The attribute of an error that holds the id of the flow run which has reported it."""


def cancelled(told: str, error: BaseException) -> State[Any]:
    """Return the state of a run that was interrupted.

    Args:
        told: How far it came.
        error: What interrupted it. Inside a flow of a caller's it is raised again: it interrupts that, too.
    """
    if notify := interrupted.get():
        notify()
    if flow_run.get_parent_flow_run_id() and not isinstance(error, AwaitCancelled):
        raise error
    message = f"Cancelled: {told}. What came back is stored: the same job goes on from there."
    get_run_logger().warning(message)  # a worker that cancels a run puts words of its own into the state after this one
    return Cancelled(message=message)


def run_attempt(step: Callable[[], Report]) -> Report:
    """Return the result of one attempt of a flow run; an error ends the attempt so that Prefect's retries work.

    - A `JobError` is returned as a `Failed` state, and the retries of the run are set to 0: no attempt can succeed.
    - A `DispatchFailed` is raised while Prefect has retries left, because the engine only begins another attempt
      for an error that was raised (3.8.8 leaves a run scheduled whose flow returned a failed state). Without retries
      it is returned as a `Failed` state, whose message is the error's own.
    - Any other error is raised.

    The traceback of our own errors is kept out of the log of the run: an analyst who started it from a form would see
    pages that say no more than the message.

    Args:
        step: Runs the job.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_log_filter)
    try:
        return step()
    except JobError as error:
        _disable_retries()
        return _fail(error)
    except DispatchFailed as error:
        if not has_retries_left():
            return _fail(error)
        _mark(error)
        raise
    except Exception as error:
        if isinstance(error, DispatchError) or has_retries_left():
            _mark(error)
        raise


def has_retries_left() -> bool:
    """Return whether Prefect will begin another attempt if this one fails.

    The rule is that of Prefect's server (`RetryFailedFlows`).
    """
    run = _current_run()
    return run.run_count <= (run.empirical_policy.retries or 0)


def start_of_earlier_attempts() -> datetime | None:
    """Return when the first attempt of this run began, or None if this is the first one."""
    run = _current_run()
    return run.start_time if run.run_count > 1 else None


def _fail(error: DispatchError) -> Report:
    _mark(error)
    return cast("Report", Failed(message=str(error), data=error))


def _disable_retries() -> None:
    """Have Prefect's server begin no further attempt of this run."""
    if has_retries_left():
        run = _current_run()
        policy = run.empirical_policy.model_copy(update={"retries": 0})
        client = cast("SyncPrefectClient", cast("Any", FlowRunContext.get()).client)
        client.update_flow_run(run.id, empirical_policy=policy)


def _current_run() -> FlowRun:
    """Return the flow run as Prefect read it when this attempt began."""
    return cast("FlowRun", cast("Any", FlowRunContext.get()).flow_run)


def _mark(error: BaseException) -> None:
    setattr(error, _RUN_OF_ERROR, str(_current_run().id))


class _LogFilter(logging.Filter):
    """Remove what Prefect's engine logs in excess about errors that `run_attempt` has marked.

    The state of the run has the message already. The record at the engine's exit is dropped: it may even be about an
    earlier attempt, as the engine of a run that succeeded after a retry still raises the first error at its end.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged; its traceback may be removed."""
        error = record.exc_info[1] if record.exc_info else None
        run = getattr(error, _RUN_OF_ERROR, None)
        if run is None or run != getattr(record, "flow_run_id", None):  # an error of the caller's own flow, say
            return True
        if record.msg == _ENGINE_EXIT:
            return False
        if record.msg == _FAILED_ATTEMPT and isinstance(error, DispatchError):
            record.exc_info = None
        return True


_log_filter = _LogFilter()
