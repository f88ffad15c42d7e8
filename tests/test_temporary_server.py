"""The temporary server of a process: it is supervised, and ends with the process, however that ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

from prefect_dispatch.errors import ServerError
from prefect_dispatch.processes import ephemeral_server
from prefect_dispatch.processes.ephemeral_server import (
    TemporaryServer,
    begin_server,
    has_server,
    kill_server,
    use_server,
)
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def children(app: str) -> list[psutil.Process]:
    """Return the living processes of this one that serve an application."""
    found: list[psutil.Process] = []
    for each in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE and f"tests.tiny_server:{app}" in each.cmdline():
                found.append(each)
    return found


@contextmanager
def serving(app: str, **env: str) -> Generator[tuple[TemporaryServer, list[str]]]:
    """Give a server of a small application, and what it reports."""
    said: list[str] = []
    server = TemporaryServer({**os.environ, **env}, said.append, app=f"tests.tiny_server:{app}")
    try:
        yield server, said
    finally:
        server.stop()


def start_up(server: TemporaryServer, timeout_s: float = START_S) -> None:
    """Start a server, and wait until it answers."""
    server.start(timeout_s)
    server.wait()


def process(server: TemporaryServer) -> int:
    """Return the number of the process that answers."""
    return int(httpx.get(f"{server.url}/health", timeout=60).text)


def test_a_module_of_the_users_is_not_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `json.py` in a job's folder, or in the one that the command was called in, keeps no server from starting."""
    (tmp_path / "json.py").write_text("raise RuntimeError\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with serving("create_app") as (server, _):
        start_up(server)
        assert process(server)


def test_a_server_that_is_killed_is_started_again() -> None:
    """At the same address; a request that comes meanwhile waits for it."""
    with serving("create_app") as (server, said):
        start_up(server)
        first = process(server)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(first), "the first has ended")
        assert process(server) != first
        wait_until(lambda: len(said) == 2, "both is reported")
        assert said == [
            "Prefect's temporary server ended (exit code -9). It is started again.",
            "Prefect's temporary server was started again; the run goes on.",
        ]
        assert server.failure is None
    assert children("create_app") == []


def test_a_server_that_hangs_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed when it has not answered for some time."""
    monkeypatch.setattr(ephemeral_server, "HEALTH_S", 0.5)
    monkeypatch.setattr(ephemeral_server, "SILENT_S", 2.0)
    with serving("create_app") as (server, said):
        start_up(server)
        first = process(server)
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: len(said) >= 2, "it is started again")
        assert said[0] == "Prefect's temporary server did not answer for 2 s. It is started again."
        assert not psutil.pid_exists(first)


def test_a_server_that_does_not_start_in_time_leaves_no_process() -> None:
    """The message says how long it was waited for, and the way out."""
    with (
        serving("hang") as (server, _),
        pytest.raises(ServerError, match=r"did not start within 1 s\. Start a server with `prefect server start`"),
    ):
        start_up(server, 1.0)
    assert children("hang") == []


def test_a_server_that_ends_while_it_starts_is_quoted() -> None:
    """The end of its log says why."""
    said = r"ended while it started \(exit code 4\)\. The end of its log: the database is locked Start a server"
    with serving("refuse") as (server, _), pytest.raises(ServerError, match=said):
        start_up(server)


def test_a_server_that_can_not_be_started_again(tmp_path: Path) -> None:
    """After some attempts its address refuses connections, and the message says why."""
    with serving("once", STARTED=str(tmp_path / "started")) as (server, said):
        start_up(server)
        os.kill(process(server), signal.SIGKILL)
        wait_until(lambda: bool(said) and said[-1].endswith("It is not started again."), "it is given up")
        assert len(said) == 2 + ephemeral_server.RESTARTS - 1
        assert said[-1].endswith("The end of its log: the database is locked It is not started again.")
        assert server.failure is not None
        with pytest.raises(httpx.ConnectError):
            process(server)


def test_a_server_is_stopped_while_it_starts() -> None:
    """Nothing is left of it, and nothing is reported."""
    with serving("hang") as (server, said):

        def start() -> None:
            with pytest.raises(ServerError, match="was stopped"):
                start_up(server)

        starting = threading.Thread(target=start)
        starting.start()
        wait_until(lambda: bool(children("hang")), "it is starting")
        server.stop(0.0)
        starting.join()
    assert (children("hang"), said) == ([], [])


PARENT = """
import os, sys, time
from prefect_dispatch.processes.ephemeral_server import TemporaryServer
server = TemporaryServer(dict(os.environ), print, app="tests.tiny_server:create_app")
server.start(120.0)
server.wait()
import httpx
print(httpx.get(server.url).text, flush=True)
time.sleep(600)
"""


def test_a_server_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """It looks whether its parent is there; nothing has to be left that could end it."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as parent:  # noqa: S603 -- our own
        assert parent.stdout
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server has ended")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A process without a server, whose temporary one is a small application."""
    made: Any = TemporaryServer.__init__

    def small(*args: object) -> None:
        made(*args, app="tests.tiny_server:create_app")

    monkeypatch.setattr(TemporaryServer, "__init__", small)
    monkeypatch.delitem(
        sys.modules, "prefect.server.api.server", raising=False
    )  # by which Prefect's own would be found
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL}):
        yield
        kill_server()
        ephemeral_server._servers.clear()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- the next test begins without


def test_a_process_has_one_server(
    tiny: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named by the settings within; the next use finds it again; what happens to it is logged."""
    assert not has_server()
    with use_server():
        url = PREFECT_API_URL.value()
        assert has_server()
        with use_server():
            assert PREFECT_API_URL.value() == url
    assert not has_server()
    said: list[str] = []
    with use_server(said.append):
        assert PREFECT_API_URL.value() == url
        (one,) = children("create_app")
        one.kill()
        wait_until(lambda: len(said) == 2, "it was started again")
    assert len(children("create_app")) == 1
    # Prefect's set-up of logging replaces the handlers of the root, whichever test it comes in.
    monkeypatch.setattr(logging.getLogger("prefect"), "handlers", [caplog.handler])
    ephemeral_server._log("It is started again.")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- by whom it is observed else
    assert "It is started again." in caplog.text


def test_a_server_is_begun_before_it_is_used(tiny: None) -> None:
    """What is imported meanwhile costs no time; the first use waits for it, and there is no second one."""
    assert begin_server()
    assert len(children("create_app")) == 1
    with use_server():
        assert httpx.get(f"{PREFECT_API_URL.value()}/health", timeout=60).is_success
        assert not begin_server()
    assert len(children("create_app")) == 1


def test_no_server_is_started_where_that_is_forbidden() -> None:
    """Prefect says then what is missing."""
    with (
        temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: False}, restore_defaults={PREFECT_API_URL}),
        use_server(),
    ):
        assert PREFECT_API_URL.value() is None
    kill_server()  # of which there is none


def test_a_server_that_answers_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked now and then, and no more is reported."""
    monkeypatch.setattr(ephemeral_server, "LOOK_S", 0.05)
    monkeypatch.setattr(ephemeral_server, "HEALTH_S", 0.3)
    with serving("create_app") as (server, said):
        start_up(server)
        first = process(server)
        end = time.monotonic() + 2.0
        wait_until(lambda: time.monotonic() > end, "it was asked several times")
        assert process(server) == first
    assert said == []
