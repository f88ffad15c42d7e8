"""The temporary Prefect server of a process that has no server: started, supervised, and ended with the process.

Prefect's own temporary server inherits the terminal and the output of the process, outlives a process that was killed,
and is not started again when it dies. This one has a session and a log file of its own, polls its parent, and serves a
socket that its parent keeps open: while a server that died is started again, requests wait for it and don't fail.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prefect_dispatch.errors import ServerError
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

RESTARTS = 3
"""How often a server that died is started again."""
RESTART_S = 120.0
"""Seconds within which a server that is started again has to answer."""
LOOK_S = 0.5
"""Seconds between two checks of the server's process, and of the server's parent."""
HEALTH_S = 10.0
"""Seconds between two requests that check whether the server answers."""
SILENT_S = 60.0
"""Seconds without an answer after which the server counts as hung: it is killed and started again."""
GRACE_S = 5.0
"""Seconds that the server has to end by itself."""
LOG_CHARS = 2000
"""Characters of the end of the server's log that an error quotes."""
BACKLOG = 1024
"""Connections that wait while the server is started again."""

APP = "prefect.server.api.server:create_app"
"""Prefect's server."""
# The user's folders come last: a `json.py` of theirs is not Python's.
_START = (
    "import sys; sys.path += sys.argv[4:]; "
    "from prefect_dispatch.processes.ephemeral_server import serve; serve(*sys.argv[1:4])"
)
_MODE = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""Settings that Prefect uses for its own temporary server."""

_lock = threading.Lock()
_servers: dict[int, TemporaryServer] = {}
"""Servers by process id, as a forked child inherits the entry of its parent."""


class TemporaryServer:
    """A Prefect server in a process of its own, which is supervised, and ends with this process.

    Attributes:
        url: The address of its API.
        failure: Why there is no server any more. None: there is one, or one is being started again.
        observe: Called with a message when the server died, was started again, or can't be started again.
    """

    def __init__(self, env: dict[str, str], observe: Callable[[str], object], app: str = APP) -> None:
        """Choose a free port, and listen there.

        Args:
            env: The environment of the server.
            observe: Called with a message when the server dies and when it is started again.
            app: The factory of the application, as uvicorn imports it.
        """
        self._env, self._app = env, app
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"
        self.failure: str | None = None
        self.observe = observe
        self._spawned, self._ready, self._ending = threading.Event(), threading.Event(), threading.Event()

    def start(self, timeout_s: float) -> None:
        """Start the server's process; `wait` waits until it answers.

        Args:
            timeout_s: Seconds that it may need.
        """
        self._supervisor = threading.Thread(
            target=self._supervise, args=(timeout_s,), name="prefect-dispatch-server", daemon=True
        )
        self._supervisor.start()
        self._spawned.wait()

    def wait(self) -> None:
        """Wait until the server, which was started, answers.

        Raises:
            ServerError: If it ends, or does not answer in time; then no process of it is left.
        """
        self._ready.wait()
        if self.failure:
            raise ServerError(
                f"{self.failure} Start a server with `prefect server start`, set PREFECT_API_URL to its address, and "
                "run the job again."
            )

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the server, which was started.

        Args:
            grace_s: Seconds that it has to end by itself.
        """
        self._ending.set()
        self._spawned.wait()
        _end_process(self._process, grace_s)
        self._socket.close()

    def _supervise(self, timeout_s: float) -> None:
        """Start the server, and start it again when it has died, until `stop` is called or starts fail."""
        restarts = 0
        while True:
            with tempfile.TemporaryFile() as log:
                self._process = self._spawn(log)
                self._spawned.set()
                reason = self._watch(self._process, timeout_s)
                _end_process(self._process, 0.0)
                quoted = f"{reason}{_tail(log)}"
            # Give up after `stop`, if the first start failed, or after too many restarts.
            if self._ending.is_set() or not self._ready.is_set() or restarts == RESTARTS:
                break
            restarts, timeout_s = restarts + 1, RESTART_S
            self.observe(f"{reason} It is started again.")
        self.failure = quoted
        self._socket.close()  # requests that wait for the server fail now
        if self._ready.is_set() and not self._ending.is_set():
            self.observe(f"{quoted} It is not started again.")
        self._ready.set()

    def _spawn(self, log: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 -- a temporary file has no public type
        """Start the server's process, which inherits the listening socket."""
        listening = self._socket.fileno()
        return subprocess.Popen(  # noqa: S603 -- this module
            [sys.executable, "-I", "-c", _START, self._app, str(listening), str(os.getpid()), *sys.path],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(listening,),
            start_new_session=True,
        )

    def _watch(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Wait until a server ends, hangs or doesn't start in time, and return a message on that."""
        answers, deadline = False, time.monotonic() + timeout_s
        while not self._ending.is_set():
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(HEALTH_S if answers else 0.0)
                return f"Prefect's temporary server ended{'' if answers else ' while it started'} (exit code {code})."
            if self._is_healthy(HEALTH_S if answers else LOOK_S):
                if not answers and self._ready.is_set():
                    self.observe("Prefect's temporary server was started again; the run goes on.")
                answers, deadline = True, time.monotonic() + SILENT_S
                self._ready.set()
            elif time.monotonic() > deadline:
                problem = f"answer for {SILENT_S:g} s" if answers else f"start within {timeout_s:g} s"
                return f"Prefect's temporary server did not {problem}."
        return "Prefect's temporary server was stopped."

    def _is_healthy(self, timeout_s: float) -> bool:
        """Return whether the server answers a health check in time."""
        import httpx  # noqa: PLC0415 -- not for a job file that is refused

        try:
            # A proxy from the environment can't reach this machine.
            return httpx.get(f"{self.url}/health", timeout=timeout_s, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def _end_process(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End a process, and wait for it."""
    if grace_s:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    process.kill()  # does nothing once it was waited for
    process.wait()


def _tail(log: Any) -> str:  # noqa: ANN401 -- a temporary file has no public type
    """Return the end of a log as part of a message."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_CHARS))
    text = redact(log.read().decode(errors="replace")).strip()
    return f" The end of its log: {text}" if text else ""


def has_server() -> bool:
    """Return whether the settings name a Prefect server, or forbid a temporary one."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 -- imports Prefect

    settings = get_current_settings()
    return bool(settings.api.url) or not settings.server.ephemeral.enabled


@contextmanager
def use_server(observe: Callable[[str], object] | None = None) -> Generator[None]:
    """Run the code within with a Prefect server: the configured one, else the temporary one of this process.

    The first use starts the temporary server; it ends with the process. The code within, and processes that inherit
    Prefect's settings from it, find its address in the setting `PREFECT_API_URL`.

    Args:
        observe: Called with a message when the temporary server dies and when it is started again. None: it is logged.

    Raises:
        ServerError: If the temporary server can't be started.
    """
    if has_server():
        yield
        return
    from prefect_dispatch.prefect_compat import (  # noqa: PLC0415 -- imports Prefect
        ephemeral_server_url,
        override_settings,
    )

    url = ephemeral_server_url()
    if url is None:
        server = _get_or_start_server(observe)
        server.wait()
        url = server.url
    with override_settings("api", url=url):
        yield


def begin_server() -> bool:
    """Start the temporary server where `use_server` would, and return whether it did; it isn't waited for.

    What happens to it is logged until `use_server` names another observer.
    """
    if has_server():
        return False
    _get_or_start_server(None)
    return True


def kill_server() -> None:
    """Kill the temporary server of this process, if there is one; for a process that is about to exit."""
    if server := _servers.get(os.getpid()):
        server.stop(0.0)


def _get_or_start_server(observe: Callable[[str], object] | None) -> TemporaryServer:
    """Return the temporary server of this process; start it if there is none, or the last one failed."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 -- imports Prefect

    settings = get_current_settings()
    with _lock:
        server = _servers.get(os.getpid())
        if server is None or server.failure:
            # The server's process gets all settings of this one, profiles included, as environment variables.
            env = {**os.environ, **_MODE, **settings.to_environment_variables(exclude_unset=True)}
            server = TemporaryServer(env, observe or _log)
            server.start(settings.server.ephemeral.startup_timeout_seconds)
            _servers[os.getpid()] = server
            atexit.register(_stop_at_exit, os.getpid())
        elif observe is not None:
            server.observe = observe
        return server


def _log(message: str) -> None:
    from prefect.logging import get_logger  # noqa: PLC0415 -- imports Prefect

    get_logger("dispatch").warning(message)


def _stop_at_exit(pid: int) -> None:  # pragma: no cover -- at the end of a process, which is not measured any more
    if pid == os.getpid() and (server := _servers.pop(pid, None)):
        server.stop()


def serve(app: str, listening: str, parent: str) -> None:  # pragma: no cover -- in a process of its own
    """Serve an application until the parent process is gone; the body of the server's process.

    Args:
        app: The factory of the application.
        listening: The file descriptor of a socket that listens.
        parent: The process id of the parent.
    """
    threading.Thread(target=_exit_with_parent, args=(int(parent),), daemon=True).start()
    import uvicorn  # noqa: PLC0415 -- only here

    config = uvicorn.Config(app, factory=True, log_level="error", lifespan="on", timeout_graceful_shutdown=int(GRACE_S))
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(listening))])


def _exit_with_parent(parent: int) -> None:  # pragma: no cover -- in a process of its own
    """End this process once its parent is gone: gracefully, else by force."""
    import signal  # noqa: PLC0415 -- only here

    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
