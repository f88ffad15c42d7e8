"""Runs Prefect's server in a separate process, on SQLite or PostgreSQL, and reads its processor time from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import httpx
import psutil

from benchmarks.subprocesses import ENVIRONMENT, kill_session
from tests.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

Database = Literal["sqlite", "postgres"]
PASSWORD = "benchmark"  # noqa: S105 -- of a temporary database
STARTING_S = 180
TUNED = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""Settings with which the server records in batches; by default it writes each state of a task run separately."""
ENDED = {"task_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}}
GROWING_S = 20.0
"""Seconds without a new record after which missing records are no longer waited for."""


@dataclass(frozen=True)
class Records:
    """Number of task runs of a run that the server has recorded."""

    recorded: int
    lag_s: float
    """Seconds from the end of the run to its last record."""


class PrefectServer:
    """A running Prefect server.

    Attributes:
        env: Environment variables with which a process uses it.
    """

    def __init__(
        self, url: str, env: Mapping[str, str], process: psutil.Process, database: psutil.Process | None
    ) -> None:
        """Store the processes, and open a client."""
        self.env = dict(env)
        self._database = database
        self._api = httpx.Client(base_url=f"{url}/api", timeout=180)
        self._process = process

    @property
    def is_running(self) -> bool:
        """Whether its process is alive."""
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    def cpu_s(self) -> float:
        """Return the processor time of the server and its child processes, in seconds."""
        return _cpu_s(self._process)

    def database_cpu_s(self) -> float | None:
        """Return the processor time of its database in seconds; None if that has no separate process."""
        return None if self._database is None else _cpu_s(self._database)

    def count(self) -> int:
        """Return the number of task runs that it has recorded as ended."""
        found = self._api.post("/task_runs/count", json=ENDED)
        found.raise_for_status()
        return int(found.json())

    def wait_for_records(self, before: int, made: int, ended: float, limit_s: float) -> Records:
        """Wait until all task runs of a run are recorded, or no further records arrive.

        Args:
            before: The number of records before the run.
            made: The number of task runs that it created.
            ended: The time of its end.
            limit_s: Time limit in seconds.
        """
        last, seen = time.time(), -1
        while True:
            now, recorded = time.time(), self.count() - before
            if recorded != seen:
                last, seen = now, recorded
            if recorded >= made or now - last > GROWING_S or now - ended > limit_s:
                return Records(recorded, round(max(0.0, last - ended), 1))
            time.sleep(0.5)

    def close(self) -> None:
        """Close the client."""
        self._api.close()


@contextmanager
def prefect_server(database: Database = "sqlite", *, tuned: bool = False) -> Generator[PrefectServer]:
    """Run a server with an empty database.

    Args:
        database: Its database; PostgreSQL is Debian's, and is started here.
        tuned: Whether it records task runs in batches.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="prefect-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        database_process = None
        here = {"PREFECT_HOME": folder, "PREFECT_API_URL": f"{url}/api"}
        if database == "postgres":
            address = stack.enter_context(postgres(PASSWORD)).replace("psycopg2", "asyncpg")
            here["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = address
            database_process = _postmaster(str(httpx.URL(address).port))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        env = {**kept, **ENVIRONMENT, **here, **(TUNED if tuned else {})}
        process = subprocess.Popen(  # noqa: S603 -- our own command
            [sys.executable, "-W", "ignore", "-m", "prefect", "server", "start", "--port", str(port)],
            env=env,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(kill_session, process)
        _wait_until_ready(f"{url}/api/health", process)
        server = PrefectServer(url, here, psutil.Process(process.pid), database_process)
        stack.callback(server.close)
        yield server


def _cpu_s(process: psutil.Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def _postmaster(port: str) -> psutil.Process | None:
    """Return the process of PostgreSQL that listens on a port."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "postgres" and port in (process.info["cmdline"] or ()):
            return process
    return None


class Servers:
    """A Prefect server that several cells use one after another, since it takes seconds to start."""

    def __init__(self) -> None:
        """Create the holder; no server is started."""
        self._kind: tuple[Database, bool] | None = None
        self._running = ExitStack()
        self._server: PrefectServer | None = None

    def get(self, database: Database = "sqlite", *, tuned: bool = False) -> PrefectServer:
        """Return a running server of a kind; a server of another kind is stopped first."""
        if self._server is None or self._kind != (database, tuned) or not self._server.is_running:
            self.drop()
            self._server = self._running.enter_context(prefect_server(database, tuned=tuned))
            self._kind = database, tuned
        return self._server

    def drop(self) -> None:
        """Stop the server, for example so that the next cell has no backlog."""
        self._server = None
        self._running.close()


def _wait_until_ready(url: str, process: subprocess.Popen[Any]) -> None:
    """Wait until the server responds.

    Raises:
        TimeoutError: If it doesn't respond in time.
    """
    last = time.monotonic() + STARTING_S
    while time.monotonic() < last and process.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"Prefect's server didn't start within {STARTING_S} s.")
