"""The class of every ready flow: it ends with its last attempt, and async code can await it."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import inspect
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import anyio
from prefect import Flow
from prefect.client.schemas.objects import State

from prefect_dispatch.flows.ending import AwaitCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

P = ParamSpec("P")
R = TypeVar("R")

_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class JobFlow(Flow[P, R]):
    """A flow that is retried, awaited and given options like any flow of Prefect's."""

    def with_options(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed: Any = super().with_options(*args, **kwargs)
        changed.__class__ = type(self)  # Prefect builds a plain Flow, which has the same attributes
        return cast("Self", changed)

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the flow from async code, without blocking the event loop: `await dispatch.acall(…)`.

        It takes the arguments of the flow and returns what the flow returns. It runs in a thread of its own, within
        the context of the caller: inside a flow it is a subflow. When the awaiting task is cancelled, the run is
        interrupted as by Ctrl-C, and the cancellation goes on once the run has ended.

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
    """A call in a thread of its own, which ends when the task that waits for it is cancelled."""

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
            if self._interrupted:  # before the thread came to run
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
                ident, kind = ctypes.c_ulong(self._thread), ctypes.py_object(AwaitCancelled)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, kind)


def _warn_if_blocking(name: str) -> None:
    """Warn where the body of an `async def` calls a flow: its event loop would stand still until the run has ended."""
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
