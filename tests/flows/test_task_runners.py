"""`task_runner`: what a job can say of it, and what is refused before anything is spent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_dispatch import Brief, dispatch
from prefect_dispatch.cli import commands
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.flows.remote_targets import shard_target
from prefect_dispatch.tasks.shards.options import Dask, Processes, Ray, Threads
from prefect_dispatch.tasks.shards.remote import RemoteTarget, WorkerCapacity, capacity_of
from prefect_dispatch.testing import ScriptedExecutor
from tests.prefect_database import empty_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
BRIEF = Brief(name="b", instructions="Shout.")
JOB = {"briefs": [{"name": "b", "instructions": "Shout."}], "items": ["a"], "executor": {"model": "openai/gpt-5-mini"}}


def shout(value: str) -> str:
    """Answer in capitals."""
    return value.upper()


@pytest.fixture
def told(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Any], tuple[int, str]]:
    """Plan a job with a task runner; return the exit status and what was said."""

    def plan(said: object) -> tuple[int, str]:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "task_runner": said}))
        status = commands.main(["plan", str(tmp_path / "job.yaml")])
        return status, " ".join(capsys.readouterr().err.split())

    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        "threads",
        "processes",
        "dask",
        "ray",
        {"kind": "processes", "workers": 2},
        {"kind": "ray", "address": "ray://h:1"},
    ],
)
def test_what_a_job_may_say(told: Callable[[Any], tuple[int, str]], said: object) -> None:
    """A word, or more of it; a plan starts nothing."""
    assert told(said) == (0, "")


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ("desk", "task_runner: there is no 'desk'; did you mean 'dask'?"),
        ({"workers": 2}, "task_runner: name its kind: threads, processes, dask, ray"),
        ({"kind": "dask", "worker": 2}, "task_runner: unknown key 'worker'; did you mean 'workers'?"),
        ({"kind": "processes", "workers": 0}, "task_runner.workers: Input should be greater than or equal to 1"),
        ({"kind": "ray", "workers": 2, "address": "ray://h:1"}, "leave one of 'workers' and 'address' out"),
    ],
)
def test_what_is_refused(told: Callable[[Any], tuple[int, str]], said: object, refusal: str) -> None:
    """With the key and the way out."""
    status, words = told(said)
    assert status == 2
    assert refusal in words


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_an_extra_that_is_missing(
    told: Callable[[Any], tuple[int, str]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its plan says what to install."""
    monkeypatch.setitem(sys.modules, f"prefect_{kind}", None)
    status, words = told(kind)
    assert status == 2
    assert f"pip install 'prefect-dispatch[{kind}]'" in words


def test_two_places_at_once() -> None:
    """A job says once where its shards run."""
    elsewhere = RemoteTarget(ProcessPoolTaskRunner, capacity_of)
    with pytest.raises(JobError, match="leave one of them out"):
        shard_target(Processes(), ScriptedExecutor({}), elsewhere)
    assert shard_target(None, ScriptedExecutor({}), elsewhere) is elsewhere
    assert shard_target(Threads(), ScriptedExecutor({}), None) is None


@pytest.mark.usefixtures("store")
def test_an_executor_that_stays_here() -> None:
    """What can't be pickled can't go."""
    with pytest.raises(JobError, match="ScriptedExecutor can't be sent to another process"):
        dispatch([BRIEF], ["a"], executor=ScriptedExecutor({"a": "A"}), task_runner=Processes())


def test_the_runners_that_are_made() -> None:
    """Each is Prefect's own, made when a fan-out begins, with as many processes as were asked for."""
    anybody = PythonCallable(function=shout, version="1")
    made_of = {"ProcessPool": Processes, "DaskTaskRunner": Dask, "RayTaskRunner": Ray}
    for name, kind in made_of.items():
        by: Any = kind(workers=3)
        where = shard_target(by, anybody, None)
        assert where
        assert type(where.make()).__name__ == name
    pool = shard_target(Processes(workers=3), anybody, None)
    assert pool
    assert pool.capacity(pool.make()) == WorkerCapacity(3, 3)
    for far, address in ((Dask(address="tcp://h:1"), "tcp://h:1"), (Ray(address="ray://h:1"), "ray://h:1")):
        where = shard_target(far, anybody, None)
        assert where
        made: Any = where.make()
        assert made.address == address


def test_the_room_of_a_runner_that_does_not_say() -> None:
    """As many as there are cores."""
    assert capacity_of(object()) == WorkerCapacity(os.cpu_count() or 1, os.cpu_count() or 1)


COUNTS = """
import os
import psutil
from prefect_dispatch import Brief, Limits, dispatch
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.tasks.shards.options import Dask, Processes

def servers(value: str) -> str:
    run = psutil.Process(int(os.environ["RUN"]))
    return str(sum("create_app" in " ".join(each.cmdline()) for each in run.children(recursive=True)))

if __name__ == "__main__":
    os.environ["RUN"] = str(os.getpid())
    from counts import servers
    brief = Brief(name="b", instructions="Count.")
    executor = PythonCallable(function=servers, version="1")
    where = {kind}(workers=2)
    report = dispatch([brief], ["a", "b", "c", "d"], executor=executor, limits=Limits(shard=2), task_runner=where)
    print(*sorted(str(each.value) for each in report.outcomes))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["Processes", pytest.param("Dask", marks=pytest.mark.long)])
def test_all_processes_of_a_run_have_one_server(tmp_path: Path, kind: str) -> None:
    """Where no server is set, Prefect starts one for the run, and no further one for each process."""
    (tmp_path / "counts.py").write_text(COUNTS.replace("{kind}", kind))
    empty_database(tmp_path / "home" / "prefect.db")
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}"}
    environment |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "counts.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"] * 4, done.stderr


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from prefect_dispatch.tasks.shards.remote import initialize_pool_process

if __name__ == "__main__":
    initialize_pool_process()  # in no child: it ends with nobody
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initialize_pool_process) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_process_of_a_pool_ends_with_its_parent(tmp_path: Path) -> None:
    """It passes over Ctrl-C, which its parent sees to, and doesn't outlive that."""
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "pool.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:  # noqa: S603 -- our own
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        child.send_signal(signal.SIGINT)
        assert child.is_running()
        parent.kill()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child has ended")
