"""One real server for all tests of deployments, with its schedules and automations, and commands beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.ui import prefect_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

ROOT = Path(__file__).parents[2]
SCHEDULER_S = 2
"""Seconds between two rounds of the server's scheduler."""
PATIENCE_S = 240
"""Seconds for whatever is waited for: on a busy machine a run alone takes a minute to begin."""


@dataclass(frozen=True)
class Place:
    """A server, and where commands run that talk to it."""

    env: Mapping[str, str]
    """The environment of commands."""
    folder: Path
    """Where they run."""
    python: str = sys.executable
    """The Python whose commands they are."""

    @contextmanager
    def client(self) -> Generator[SyncPrefectClient]:
        """Give a client of the server."""
        auth = self.env.get("PREFECT_API_AUTH_STRING")
        with (
            temporary_settings({PREFECT_API_URL: self.env["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: auth}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command of this Python to its end; return what it said."""
        done = subprocess.run(  # noqa: S603 -- our own command
            [self.python, "-W", "ignore", "-m", *command],
            env=self.env,
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def running(self, *command: str) -> Generator[subprocess.Popen[bytes]]:
        """Run a command of this Python beside the block, and end it and all that it started."""
        with (self.folder / "said").open("ab") as said:
            process = subprocess.Popen(  # noqa: S603 -- our own command
                [self.python, "-W", "ignore", "-m", *command],
                env=self.env,
                cwd=self.folder,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @contextmanager
    def worker(self, pool: str) -> Generator[subprocess.Popen[bytes]]:
        """Run a worker of a pool."""
        with self.running("prefect", "worker", "start", "--pool", pool) as process:
            yield process

    def ended(self, deployment: UUID, number: int = 1, state: str | None = None) -> list[FlowRun]:
        """Wait until so many runs of a deployment have ended; return them in order of their start.

        Args:
            deployment: Its id.
            number: How many.
            state: The name of the state in which they are to be; None: whichever is final.
        """
        found: list[FlowRun] = []

        def enough() -> bool:
            found[:] = [
                run
                for run in self.runs(deployment)
                if run.state is not None and run.state.is_final() and state in {None, run.state.name}
            ]
            return len(found) >= number

        self.wait(enough, f"{number} runs of the deployment have ended as {state or 'they may'}")
        return found

    def runs(self, deployment: UUID) -> list[FlowRun]:
        """Return the runs of a deployment in the order in which they were due."""
        only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        with self.client() as client:
            found = client.read_flow_runs(deployment_filter=only)
        return sorted(found, key=lambda run: str(run.expected_start_time))

    def end_schedule(self, deployment: UUID) -> None:
        """Pause a deployment, and remove what is still due, so that no later worker gets it.

        A round of the server's scheduler that has begun before the pause adds runs after it.
        """
        with self.client() as client:
            client.pause_deployment(deployment)
            quiet = time.monotonic()
            while time.monotonic() - quiet < 2 * SCHEDULER_S:
                for run in self.runs(deployment):
                    if run.state is not None and run.state.is_scheduled():
                        client.delete_flow_run(run.id)
                        quiet = time.monotonic()
                time.sleep(0.5)

    def wait(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something; if it doesn't come, tell what commands have said."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > end:
                said = self.folder / "said"
                pytest.fail(f"not within {PATIENCE_S} s: {what}\n{said.read_text()[-5000:] if said.exists() else ''}")
            time.sleep(0.2)

    def artifacts(self, key: str) -> list[Any]:
        """Return every artifact under a key, the oldest first."""
        asked = {"artifacts": {"key": {"any_": [key]}}, "sort": "UPDATED_DESC"}
        with self.client() as client:
            found = client.request("POST", "/artifacts/filter", json=asked).json()
        return [each["data"] for each in sorted(found, key=lambda each: each["created"])]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    """A Prefect server whose clocks go fast."""
    folder = tmp_path_factory.mktemp("prefect")
    fast = {
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": str(SCHEDULER_S),
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": str(SCHEDULER_S),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    }
    with prefect_server(folder, **fast) as prefect:
        yield Place({**prefect.env, "PYTHONPATH": str(ROOT / "src")}, folder)
