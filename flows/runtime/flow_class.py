"""Flow classes of the ready flows: errors and retries of an attempt, awaiting from async code, data as parameters."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import anyio
from prefect import Flow, __version__, allow_failure
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import CancelledRun, ParameterTypeError, TerminationSignal
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Failed
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from prefect_dispatch.errors import DispatchError, DispatchFailed, JobError
from prefect_dispatch.models.brief import BriefsInput  # noqa: TC001 -- pydantic reads the annotations
from prefect_dispatch.prefect_compat import visit_parts
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.reporting.progress import on_interrupted
from prefect_dispatch.security.escaping import replace_nul
from prefect_dispatch.serialization.json_text import canonical_json, digest
from prefect_dispatch.sources import ItemsInput  # noqa: TC001 -- pydantic reads the annotations
from prefect_dispatch.tasks.stop_conditions import run_periodically

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from datetime import datetime

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from typing_extensions import Self

    from prefect_dispatch.models.report import Report


class AwaitCancelled(BaseException):
    """The asyncio task that awaits a run was cancelled (see `JobFlow.acall`)."""


INTERRUPTIONS = (KeyboardInterrupt, TerminationSignal, CancelledRun, AwaitCancelled)
"""Interruptions of a run from outside: Ctrl-C, SIGTERM, and a cancellation."""
_FAILED_ATTEMPT = "Encountered exception during execution: %r"
_ENGINE_EXIT = "Engine execution exited with unexpected exception"
"""Prefect's log messages for an error that a flow raised; both have a traceback."""
_RUN_OF_ERROR = "_prefect_dispatch_flow_run"
"""The attribute of an error with the id of the flow run that has reported it."""


MAX_HEARTBEAT_S = 180
"""Maximum seconds between two heartbeats of a run: Prefect's default interval."""


@contextmanager
def send_heartbeats() -> Generator[None]:
    """Send heartbeats of the current run while the body runs, if Prefect's are rarer than every `MAX_HEARTBEAT_S`.

    The automation that ends dead runs needs a maximum interval, and does not know the settings of the workers.
    """
    every_s = get_current_settings().flows.heartbeat_frequency
    with run_periodically(_send_heartbeat, MAX_HEARTBEAT_S) if (every_s or 0) > MAX_HEARTBEAT_S else nullcontext():
        yield


def _send_heartbeat() -> None:
    run = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
        "prefect.resource.name": str(flow_run.get_name()),
        "prefect.version": __version__,
    }
    with suppress(Exception):  # a lost heartbeat does no harm; Prefect ignores errors, too
        emit_event("prefect.flow-run.heartbeat", resource=run)


def cancelled_state(progress: str, error: BaseException) -> State[Any]:
    """Return the state of a run that was interrupted.

    Args:
        progress: The progress of the run until then.
        error: The interruption. Inside a caller's flow it is raised again, as it interrupts that, too.
    """
    if notify := on_interrupted.get():
        notify()
    if flow_run.get_parent_flow_run_id() and not isinstance(error, AwaitCancelled):
        raise error
    message = f"Cancelled: {progress}. Answers received so far are stored: the same job goes on from there."
    get_run_logger().warning(message)  # a worker that cancels a run replaces this state with a message of its own
    return Cancelled(message=message)


def run_attempt(step: Callable[[], Report]) -> Report:
    """Return the result of one attempt of a flow run; an error ends the attempt so that Prefect's retries work.

    - A `JobError` is returned as a `Failed` state, and the retries of the run are set to 0: no attempt can succeed.
    - A `DispatchFailed` is raised while Prefect has retries left, because the engine only begins another attempt
      for an error that was raised (3.8.8 leaves a run scheduled whose flow returned a failed state). Without retries
      it is returned as a `Failed` state, whose message is the error's own.
    - Any other error is raised.

    The traceback of our own errors is kept out of the log of the run, as it has no information beyond the message for
    an analyst who started the run from a form.

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
        _mark_reported(error)
        raise
    except Exception as error:
        if isinstance(error, DispatchError) or has_retries_left():
            _mark_reported(error)
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
    _mark_reported(error)
    return cast("Report", Failed(message=str(error), data=error))


def _disable_retries() -> None:
    """Set the retries of this run to 0 on Prefect's server, so that it starts no further attempt."""
    if has_retries_left():
        run = _current_run()
        policy = run.empirical_policy.model_copy(update={"retries": 0})
        client = cast("SyncPrefectClient", cast("Any", FlowRunContext.get()).client)
        client.update_flow_run(run.id, empirical_policy=policy)


def _current_run() -> FlowRun:
    """Return the flow run as Prefect read it when this attempt began."""
    return cast("FlowRun", cast("Any", FlowRunContext.get()).flow_run)


def _mark_reported(error: BaseException) -> None:
    setattr(error, _RUN_OF_ERROR, str(_current_run().id))


class _LogFilter(logging.Filter):
    """Log filter that removes redundant records of Prefect's engine about errors that `run_attempt` has marked.

    The state of the run has the message already. The record at the engine's exit is dropped: it may even belong to an
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


P = ParamSpec("P")
R = TypeVar("R")
_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class JobFlow(Flow[P, R]):
    """Flow whose result is that of its last attempt, and that async code can await."""

    def with_options(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed: Any = super().with_options(*args, **kwargs)
        changed.__class__ = type(self)  # Prefect builds a plain Flow, which has the same attributes
        return cast("Self", changed)

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the flow from async code, without blocking the event loop: `await dispatch.acall(…)`.

        It takes the arguments of the flow and returns what the flow returns. It runs in a thread of its own, within
        the context of the caller: inside a flow it is a subflow. When the awaiting task is cancelled, the run is
        interrupted as by Ctrl-C, and the cancellation propagates once the run has ended.

        Raises:
            asyncio.CancelledError: If the awaiting task was cancelled.
        """
        call: Any = _ThreadCall(partial(self, *args, **kwargs))
        return await cast("_ThreadCall[R]", call).wait()

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, return_state: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow; return the result of its last attempt.

            Prefect's own call raises the error of an earlier attempt where the last one returned a state.
            """
            _warn_if_blocking(self.fn.__name__)
            state: object = super().__call__(*args, return_state=True, **kwargs)
            if return_state or not isinstance(state, State):  # not while Prefect draws the caller's flow
                return state
            return cast("Any", state).result(_sync=True)


class _ThreadCall(Generic[R]):
    """Call in a thread of its own, which is interrupted when the awaiting task is cancelled."""

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._interrupted = False

    async def wait(self) -> R:
        """Make the call; return its result."""
        threads = ThreadPoolExecutor(1, thread_name_prefix="prefect-dispatch-acall")
        future = asyncio.get_running_loop().run_in_executor(threads, self._context.run, self._run)
        threads.shutdown(wait=False)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._interrupt()
            with anyio.CancelScope(shield=True):  # a time-out of Prefect's cancels again and again
                await asyncio.wait([future])
            future.exception()  # its state is recorded; the caller gets the cancellation
            raise

    def _run(self) -> R:
        with self._lock:
            if self._interrupted:  # before the thread began
                raise AwaitCancelled
            self._thread = threading.get_ident()
        try:
            return self._function()
        finally:
            with self._lock:
                self._thread = None

    def _interrupt(self) -> None:
        """Raise `AwaitCancelled` in the thread, as soon as it runs Python code again."""
        with self._lock:
            self._interrupted = True
            if self._thread is not None:
                # CPython's only way to interrupt another thread; the lock ensures that it is still running the call.
                ident, kind = ctypes.c_ulong(self._thread), ctypes.py_object(AwaitCancelled)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, kind)


def _warn_if_blocking(name: str) -> None:
    """Warn if the body of an `async def` calls a flow: its event loop would be blocked until the run has ended."""
    # Find the caller behind the `__call__` methods of the flow classes.
    level, frame = 1, sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- the only way to the caller
    while frame.f_code.co_name == "__call__" and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    if frame.f_code.co_flags & _COROUTINE:
        warnings.warn(
            f"{name}(…) blocks the event loop until its run has ended, and returns no awaitable; in async code write "
            f"`await {name}.acall(…)`.",
            RuntimeWarning,
            stacklevel=level + 1,
        )


MAX_RECORDED = 100_000
"""Characters of JSON beyond which Prefect records a size and a digest in place of the data."""


class _Data(TypedDict, total=False):
    """Parameters of the flow that are data."""

    briefs: BriefsInput
    items: ItemsInput


_ADAPTER = TypeAdapter(_Data)
_DATA_PARAMETERS = ("briefs", "items")
_OBJECT_PARAMETERS = ("executor", "integrator")


def at_home(module: str, name: str) -> object:
    """Return the attribute of a module, or None. Pickled flows refer to this function by name."""
    return getattr(sys.modules.get(module) or import_module(module), name, None)


def changed(module: str, name: str) -> Any:  # noqa: ANN401 -- a flow
    """Return a copy of a module's flow, to which other options are applied. Pickled flows refer to it by name."""
    original: Any = at_home(module, name)
    kind: Any = DataFlow
    copy: Any = kind.__new__(kind)
    copy.__dict__.update(original.__dict__)
    return copy


class DataFlow(JobFlow[P, R]):
    """Flow whose `briefs` and `items` are data, and whose executor and integrator may be any object."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the flow by name: Prefect pickles a user's flow with all that it calls, to run it in another process.

        A function that is replaced in its module by its flow would be pickled by value, without the names that its
        annotations use.
        """
        place = (self.fn.__module__, self.fn.__name__)
        if at_home(*place) is self:
            return at_home, place
        return changed, place, {name: value for name, value in vars(self).items() if value is not self.fn}

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow; a failed task run that its items come from is reported as an error of the items.

            Prefect would leave a run that waits forever, with a message that a result is not available.
            """
            names = list(self.parameters.properties)
            kwargs = {name: _allow_failures(value) if name == "items" else value for name, value in kwargs.items()}
            positional = zip(names, args, strict=False)
            args = (
                *(_allow_failures(value) if name == "items" else value for name, value in positional),
                *args[len(names) :],
            )
            # The server is started before the call, as validating the parameters may already need it.
            with use_server():
                return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in their types, with the data left as it is.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        # Prefect would copy and convert the data, so it validates the other parameters only.
        data = {name: parameters[name] for name in _DATA_PARAMETERS if name in parameters}
        valid = super().validate_parameters({**parameters, **dict.fromkeys(data, ())})
        try:
            return {**valid, **_ADAPTER.validate_python(data)}
        except ValidationError as error:
            raise ParameterTypeError.from_validation_error(error) from None

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as Prefect records them with the run; without NUL, which PostgreSQL can't store."""
        opaque = {
            name: f"<{type(parameters[name]).__name__}>"
            for name in _OBJECT_PARAMETERS
            if not isinstance(parameters.get(name), BaseModel | dict | None)
        }
        if isinstance(parameters.get("items"), allow_failure):
            parameters = {**parameters, "items": parameters["items"].unwrap()}
        if isinstance(parameters.get("items"), Iterator):  # serializing it would exhaust it
            opaque["items"] = "<iterator>"
        recorded = super().serialize_parameters({**parameters, **opaque})
        for name in _DATA_PARAMETERS:
            size = len(canonical_json(recorded.get(name)))
            if size > MAX_RECORDED:
                recorded[name] = f"<{size} characters of JSON, sha256 {digest(recorded[name])}>"
        return {name: replace_nul(value) for name, value in recorded.items()}


def _allow_failures(items: object) -> object:
    """Wrap items that contain futures in `allow_failure`, so that a failed task run is replaced by its error."""
    found: list[object] = []

    def collect(each: Any) -> Any:  # noqa: ANN401 -- any part of the items
        if isinstance(each, PrefectFuture):
            found.append(cast("object", each))
        return cast("object", each)

    if isinstance(items, list):  # without the texts: they contain no futures, and there may be very many
        visit_parts([each for each in cast("list[object]", items) if not isinstance(each, str)], collect)
    elif isinstance(items, PrefectFuture | tuple | dict):
        visit_parts(cast("object", items), collect)
    return allow_failure(items) if found else items  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
