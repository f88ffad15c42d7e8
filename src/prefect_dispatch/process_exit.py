"""The end of the command line's process: within a stated time, whatever Prefect's threads still wait for.

Prefect waits at the end of a process until all events and logs are sent, and in an engine that reports a state for
minutes; to a server that is gone or hangs, that is without end. What a run has to keep is stored by then.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

EXIT_S = 15.0
"""Seconds that the process has to exit by itself, once its command has ended."""
INTERRUPTED_S = 4.5
"""Seconds beyond the grace period in which an interrupted run has to end by itself."""
LOOK_S = 0.2
"""Seconds between two looks at the time."""
STOPPED = "\nInterrupted. What came back is stored: the same command goes on from there."


class ExitGuard:
    """Ends this process by force if it has not ended by itself when its time is over."""

    def __init__(self, leave: Callable[[int], object] | None) -> None:
        """Set no time yet.

        Args:
            leave: Ends the process with an exit status. None: the process belongs to a caller, and is left alone.
        """
        self._leave = leave
        self._lock = threading.Lock()
        self._until = float("inf")
        self._code, self._summary, self._message = 0, "", ""
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float, code: int, message: str = "", *, summary: str = "") -> None:
        """Set the time; of several times the earliest counts.

        Args:
            seconds: Seconds from now.
            code: The exit status.
            message: What is printed on standard error then.
            summary: What is printed on standard output then.
        """
        until = time.monotonic() + seconds
        with self._lock:
            if self._leave is None or until >= self._until:
                return
            self._until, self._code, self._message, self._summary = until, code, message, summary
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="prefect-dispatch-exit", daemon=True)
                self._thread.start()

    def settle(self, code: int) -> None:
        """Note that the command has ended and has printed what there is: only the process remains to be ended."""
        with self._lock:
            self._code, self._message, self._summary = code, "", ""
        self.arm(EXIT_S, code)

    def _wait(self) -> None:
        while (left := self._until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))
        with self._lock:
            if self._summary:
                print(self._summary, flush=True)  # noqa: T201 -- the command line's own output
            if self._message:
                print(self._message, file=sys.stderr, flush=True)  # noqa: T201 -- the command line's own output
        if "prefect_dispatch.temporary_server" in sys.modules:
            import_module("prefect_dispatch.temporary_server").kill_server()
        cast("Callable[[int], object]", self._leave)(self._code)


@contextmanager
def interruptible(guard: ExitGuard, grace_s: float, code: int) -> Generator[None]:
    """Have Ctrl-C, SIGTERM and a cancellation end what runs within, and this process soon after, in any case.

    Args:
        guard: Ends the process.
        grace_s: Seconds that calls under way have to end.
        code: The exit status of an interrupted run.
    """
    from prefect_dispatch.progress import interrupted  # noqa: PLC0415 -- imports pydantic, and is loaded by then

    def on_signal(number: int, frame: Any) -> None:  # noqa: ANN401 -- a frame
        guard.arm(grace_s + INTERRUPTED_S, code, STOPPED)
        signal.default_int_handler(number, frame)

    token = interrupted.set(lambda: guard.arm(INTERRUPTED_S, code, STOPPED))
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
        interrupted.reset(token)
