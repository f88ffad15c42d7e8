"""What every test stands on: a real Prefect server of its own, and a store of its own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from tests.prefect_database import MIGRATED, cached_database, empty_database

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def pytest_configure(config: pytest.Config) -> None:
    """Let no busy machine fail a test of hypothesis, and take Ctrl-C where a shell has its background ignore it."""
    if config.getoption("numprocesses", None):
        # The processes of pytest-xdist need a database once they have collected: make it meanwhile.
        threading.Thread(target=cached_database, daemon=True).start()
    hypothesis_settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    hypothesis_settings.load_profile("busy")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    """A state folder of the tests' own: nothing is looked for, or left, in the user's.

    The temporary folder may lie in a repository; no test is to find that.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        ceilings = (str(tmp_path_factory.getbasetemp()), tempfile.gettempdir())
        patch.setenv("GIT_CEILING_DIRECTORIES", os.pathsep.join(ceilings))
        patch.setenv("PREFECT_DISPATCH_STATE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def forgotten_modules(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Forget modules that a test wrote and loaded: in the next test's folder another may have the name."""
    before = set(sys.modules)
    yield
    base = str(tmp_path_factory.getbasetemp())
    sys.path[:] = [each for each in sys.path if not each.startswith(base)]
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture
def state(isolated_environment: Path) -> Path:
    """The state folder."""
    return isolated_environment


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """A Prefect server with an empty database, for the whole session: it takes seconds to start.

    Each process of pytest-xdist has its own: while one writes, SQLite refuses what another client wants to write, and
    Prefect's client waits for seconds before it asks again.
    """
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415 -- imports the server: seconds

    folder = tmp_path_factory.mktemp("prefect")
    empty_database(folder / "prefect-test.db")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # The folder in which the harness has its database.
            patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(folder))
            patch.setenv(*MIGRATED)
            stack.enter_context(prefect_test_harness(server_startup_timeout=300))
        yield


@pytest.fixture
def store(prefect_server: None, tmp_path: Path) -> Generator[Path, None, None]:
    """An empty store of answers, and a server."""
    folder = tmp_path / "store"
    # At the end of a flow Prefect waits up to a second for the thread of its heartbeats.
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folder, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield folder
