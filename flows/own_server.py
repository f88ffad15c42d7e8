"""The server that Prefect starts for a run where there is none."""

from __future__ import annotations

import signal
from contextlib import nullcontext, suppress
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from prefect.task_runners import TaskRunner


def start_if_needed() -> None:
    """Have Prefect start its server, if it needs one of its own, deaf to Ctrl-C.

    A terminal sends that to every process of a command. The server would end at once, and the run wait for minutes to
    tell it how it ended. Prefect ends it with the process of the run, but where that is killed.
    """
    thread = Thread(target=copy_context().run, args=(_start,), daemon=True)
    thread.start()
    thread.join()


def _start() -> None:
    """Start it from a thread in which the signal is blocked, as it is then in what the thread starts."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch -- not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with suppress(Exception):  # the run meets it again, and tells it
        get_client(sync_client=True)


def sharing(runner: TaskRunner[Any]) -> TaskRunner[Any]:
    """Return a task runner, and have its processes use the server of this one.

    Prefect tells them its settings, and there is none that names a server which it started itself: each process would
    start another, and leave it behind where the run is killed.
    """
    submit = runner.submit

    def told(*args: Any, **named: Any) -> Any:  # noqa: ANN401 -- whatever a task runner of Prefect's takes and returns
        with _named():
            return submit(*args, **named)

    vars(runner)["submit"] = told
    return runner


def _named() -> AbstractContextManager[object]:
    """Name the server that this process has started, if it has, in Prefect's settings, while they are sent."""
    server = SubprocessASGIServer()  # the one of this process
    if PREFECT_API_URL.value() or not server.running:
        return nullcontext()
    return temporary_settings({PREFECT_API_URL: server.api_url})
