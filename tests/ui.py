"""Prefect's UI as an analyst has it: a server, `prefect-dispatch serve`, and Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.prefect_database import MIGRATED, empty_database

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

CHROMIUM = "chromium"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_S = 240
PYTHON = (sys.executable, "-W", "ignore", "-m")


@dataclass(frozen=True)
class PrefectServer:
    """A Prefect server, and the environment in which commands find it."""

    url: str
    env: Mapping[str, str]

    def dispatch(self, *arguments: str, folder: Path) -> None:
        """Run a command of `prefect-dispatch` to its end, which must be a good one."""
        command = [*PYTHON, "prefect_dispatch", *arguments]
        subprocess.run(command, env=self.env, cwd=folder, check=True, capture_output=True)  # noqa: S603 -- our own

    @contextmanager
    def serving(self, *arguments: str, folder: Path, deployment: str) -> Generator[None]:
        """Run `prefect-dispatch serve` for as long as the block lasts."""
        with _running([*PYTHON, "prefect_dispatch", "serve", *arguments], self.env, folder):
            _wait(f"{self.url}/api/deployments/name/dispatch/{deployment}")
            yield


@contextmanager
def prefect_server(folder: Path, host: str = "127.0.0.1", **settings: str) -> Generator[PrefectServer]:
    """Run a Prefect server with an empty database for as long as the block lasts.

    Args:
        folder: Where it keeps what it knows.
        host: The address that it listens on.
        settings: More of its environment, and of that of commands.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(folder, port) | settings
    empty_database(folder / "home" / "prefect.db")
    command = [*PYTHON, "prefect", "server", "start", "--host", host, "--port", str(port)]
    with _running(command, {**env, **dict([MIGRATED])}, folder):
        _wait(f"{url}/api/health")
        yield PrefectServer(url, env)


def free_port() -> int:
    """Return a port of the loopback address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of a server, and of commands that talk to it.

    Args:
        folder: Where it keeps what it knows.
        port: Where it listens.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_DISPATCH_STATE": str(folder / "state"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "DO_NOT_TRACK": "1",
        "OPENAI_API_KEY": "none-needed",
    }


@contextmanager
def chromium() -> Generator[Browser]:
    """Run Debian's Chromium; without it the test is skipped, and on CI it fails."""
    path = shutil.which(CHROMIUM)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def _running(command: list[str], env: Mapping[str, str], folder: Path) -> Generator[None]:
    process = subprocess.Popen(  # noqa: S603 -- our own command
        command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind


def _wait(url: str) -> None:
    """Wait until an address answers with success."""
    for _ in range(PATIENCE_S * 5):
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{url} did not answer within {PATIENCE_S} s.")
