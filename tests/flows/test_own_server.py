"""`prefect-dispatch run` without a server of the user's: its temporary one may die or hang, and never outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from prefect_dispatch.processes.ephemeral_server import APP
from tests.openai_server import Behaviour, OpenAIServer, document, openai_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
START_S = "300"
GRACE_S = 2.0
RUN = ("-m", "prefect_dispatch", "run", "job.yaml", "--out", "out")


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Answer; take time over what goes slowly, and never answer what hangs."""
    del n
    text = document(request)
    return Behaviour(content="fine", delay_s=30 if "slowly" in text else 0, hang="hangs" in text)


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """A model."""
    with openai_server(behave) as server:
        yield server


@dataclass
class Place:
    """Where runs have their files, their store and Prefect's database."""

    folder: Path
    model: OpenAIServer

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command, without any of Prefect's settings of the tests."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return env | {
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_LOCAL_STORAGE_PATH": str(self.folder / "store"),
            "PREFECT_DISPATCH_STATE": str(self.folder / "state"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": START_S,
            "PYTHONPATH": f"{ROOT / 'src'}:{self.folder}",
            "OPENAI_API_KEY": "none-needed",
        }

    def job(self, *items: str) -> None:
        """Write a job."""
        data: dict[str, Any] = {
            "briefs": [{"name": "say", "instructions": "Say it."}],
            "items": list(items),
            "executor": {"model": "openai/test", "api_base": self.model.url},
            "limits": {"retries": 0, "grace_s": GRACE_S},
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(data))

    @contextmanager
    def running(self, *command: str) -> Generator[subprocess.Popen[bytes]]:
        """Run a command of this Python beside the block; what it says goes into a file."""
        with (self.folder / "said").open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 -- our own command
                [sys.executable, *command],
                cwd=self.folder,
                env=self.env,
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

    def said(self) -> str:
        """Return what the command has said."""
        return (self.folder / "said").read_text()

    def wait(self, true: Callable[[], bool], what: str, patience_s: float = 900) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < end, f"not within {patience_s} s: {what}\n{self.said()}"
            time.sleep(0.1)

    def servers(self) -> list[psutil.Process]:
        """Return the servers that use the database of this place."""
        found: list[psutil.Process] = []
        for each in psutil.process_iter():
            with suppress(psutil.Error):
                mine = each.environ().get("PREFECT_HOME") == str(self.folder / "home")
                if mine and APP in each.cmdline() and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    def in_flight(self, run: subprocess.Popen[bytes], asked: int) -> psutil.Process:
        """Wait until a run has asked so often; return its server."""
        before = self.model.count
        self.wait(lambda: self.model.count >= before + asked or run.poll() is not None, "all are asked")
        (server,) = self.servers()
        return server


@pytest.fixture(scope="module")
def home(model: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database after a first run whose output was piped: it has ended, and has left no server."""
    place = Place(tmp_path_factory.mktemp("first"), model)
    place.job("one")
    command = [sys.executable, *RUN]
    with (place.folder / "said").open("wb") as said:
        done = subprocess.run(  # noqa: S603 -- our own command
            command, cwd=place.folder, env=place.env, check=True, stdout=subprocess.PIPE, stderr=said, text=True
        )
    assert "Report: " in done.stdout, place.said()
    assert place.servers() == []
    return place.folder / "home"


@pytest.fixture
def place(home: Path, model: OpenAIServer, tmp_path: Path) -> Place:
    """A place of the test's own."""
    shutil.copytree(home, tmp_path / "home")
    return Place(tmp_path, model)


def test_a_run_outlives_its_server(place: Place) -> None:
    """Killed with `kill -9`, that is started again, and the run completes."""
    place.job("one", "two", "three goes slowly")
    with place.running(*RUN) as run:
        place.in_flight(run, 3).kill()
        place.wait(lambda: run.poll() is not None, "the run has ended")
    assert run.returncode == 0, place.said()
    assert "Prefect's temporary server ended (exit code -9). It is started again." in place.said()
    assert json.loads((place.folder / "out" / "report.json").read_text())["status"] == "complete"
    assert place.servers() == []


@pytest.mark.long
def test_a_run_ends_without_a_server_that_can_not_be_started_again(place: Place) -> None:
    """With its report; what Prefect lacks is said."""
    place.job("one", "two goes slowly")
    with place.running(*RUN) as run:
        server = place.in_flight(run, 2)
        for each in (place.folder / "home").glob("prefect.db*"):
            each.unlink()
        (place.folder / "home" / "prefect.db").mkdir()
        server.kill()
        place.wait(lambda: run.poll() is not None, "the run has ended")
    assert run.returncode == 0, place.said()
    assert "Prefect's API did not take the end of the run" in place.said()
    assert "Complete: 2 of 2 answered." in place.said()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interruption_ends_a_run_whose_server_hangs(place: Place, number: int) -> None:
    """Within its grace and five seconds, which are printed; nothing is left of it."""
    place.job("one", "two hangs")
    with place.running(*RUN) as run:
        place.in_flight(run, 2).suspend()
        time.sleep(3)
        run.send_signal(number)
        began = time.monotonic()
        place.wait(lambda: run.poll() is not None, "the run has ended")
        print(f"\nsignal {number}: {time.monotonic() - began:.1f} s; grace_s is {GRACE_S:g}")  # noqa: T201 -- the figure
    assert run.returncode == 130, place.said()
    assert "the same command goes on from there" in place.said()
    assert place.servers() == []


def test_a_server_does_not_outlive_a_run_that_is_killed(place: Place) -> None:
    """It sees by itself that the run is gone."""
    place.job("one hangs")
    with place.running(*RUN) as run:
        place.in_flight(run, 1)
        run.kill()
        run.wait()
        place.wait(lambda: not place.servers(), "the server has ended")


CALLS = """
from prefect import flow
from prefect_dispatch import Brief, Limits, LLM, dispatch
import os, psutil

def servers():
    return sum("prefect.server.api.server:create_app" in each.cmdline() for each in psutil.Process().children())

def ask(item):
    executor = LLM(model="openai/test", api_base=os.environ["MODEL"])
    return dispatch([Brief(name="say", instructions="Say it.")], [item], executor=executor).status

@flow
def around():
    return ask("three")

if __name__ == "__main__":
    print("direct:", ask("one"), ask("two"), servers())
    print("within:", around(), servers())
"""


def test_a_direct_call_has_one_server(place: Place) -> None:
    """One for all calls of the process, supervised; a flow of the user's around it has Prefect's own beside it."""
    (place.folder / "calls.py").write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "calls.py"],
        cwd=place.folder,
        env={**place.env, "MODEL": place.model.url},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["direct: complete complete 1", "within: complete 2"], done.stderr
    assert place.servers() == []
