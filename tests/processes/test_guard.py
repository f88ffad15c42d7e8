"""Whoever dies leaves no program running: a guard stands by each process that runs one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.processes import process_tree
from prefect_dispatch.processes.process_tree import Watchdog, get_watchdog
from tests.processes.programs import ENV, Crowd, done, program, said_by
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

RUNS = (
    "import asyncio, os, sys\n"
    "from pathlib import Path\n"
    "from prefect_dispatch.processes.runner import Program, run\n"
    "folder = Path(sys.argv[1])\n"
    "what = Program(('/bin/sh', str(folder / 'many.sh')), {'PATH': os.environ['PATH']}, folder)\n"
    "asyncio.run(run(what, log=folder / 'log'))\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_death_of_a_process_is_that_of_its_programs(number: int, tmp_path: Path) -> None:
    """However it dies: what has a session of its own, ignores requests or takes the mark off is ended as well."""
    crowd = Crowd()
    (tmp_path / "many.sh").write_text(
        f"{crowd.waits} &\n"
        f"setsid {crowd.waits} &\n"
        f"(setsid {crowd.lingers} &)\n"
        f"env -i PATH={ENV['PATH']} {crowd.waits} &\n"
        f"exec {crowd.waits}\n"
    )
    with subprocess.Popen(  # noqa: S603 -- this interpreter, a fixed text
        [sys.executable, "-c", RUNS, str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        crowd.require(5)
        process.send_signal(number)
        process.wait()
    crowd.require_gone()


def test_a_process_with_many_connections_has_a_guard() -> None:
    """Of a descriptor from 1,024 on, too, it is seen that the guard has begun."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    first = os.open(os.devnull, os.O_RDONLY)
    taken = [first]
    try:
        while taken[-1] < 1024:
            taken.append(os.dup(first))
        guard = Watchdog()
        guard.close()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_guard_that_somebody_ended_is_started_again(tmp_path: Path) -> None:
    """It stands by the next program, and knows of those that run."""
    own = Watchdog()
    sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)  # noqa: S607 -- whichever is installed
    with sleeper:
        try:
            with own.watch(sleeper.pid):
                first = own._process  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- what a hostile user would end
                first.kill()
                first.wait()
                with own.watch(1):  # nobody hears it
                    pass
                own.ensure_running()
                own.ensure_running()
                assert own._process.pid != first.pid  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- the same
                own.close()
            assert sleeper.wait(30) == -signal.SIGTERM
        finally:
            sleeper.kill()
    assert get_watchdog() is get_watchdog()
    assert done(program("echo on", tmp_path)).stdout.text == "on\n"


@pytest.mark.slow
def test_the_watchdog_runs_commands_after_a_death(tmp_path: Path) -> None:
    """Those of what still goes on, even if it was started again; one that fails is passed over."""
    own = Watchdog()
    env = {"NAME": "it's"}
    with own.run_after_death(["/bin/sh", "-c", f"echo over > {tmp_path}/over"], {}):
        pass
    with (
        own.run_after_death([str(tmp_path / "missing")], {}),
        own.run_after_death(["/bin/sh", "-c", f'echo "$NAME" > {tmp_path}/name'], env),
    ):
        own._process.kill()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- what a hostile user would end
        own._process.wait()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- the same
        own.ensure_running()
        own.close()
    assert (tmp_path / "name").read_text() == "it's\n"
    assert not (tmp_path / "over").exists()


def test_without_a_guard_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every item would meet it; nothing of it is left."""
    monkeypatch.setattr(process_tree, "_START", "import sys; sys.exit(1)")
    before = psutil.Process().children()
    with pytest.raises(TerminalError, match="doesn't start") as caught:
        Watchdog()
    assert (caught.value.kind, caught.value.usage and caught.value.usage.requests) == ("guard", 0)
    assert psutil.Process().children() == before


def test_a_module_of_the_users_is_not_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job's folder is the first place for imports; a `json.py` in it keeps no guard from starting."""
    (tmp_path / "json.py").write_text("raise RuntimeError\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Watchdog().close()


@pytest.mark.slow
def test_a_forked_process_has_a_guard_of_its_own(tmp_path: Path) -> None:
    """The end of the child ends what the child ran, and nothing of its parent's."""
    crowd = Crowd()
    script = (
        "import asyncio, os, sys, threading\n"
        "from pathlib import Path\n"
        "from prefect_dispatch.processes.process_tree import get_watchdog\n"
        "first = get_watchdog()\n"
        "if os.fork() == 0:\n"
        "    assert get_watchdog() is not first\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print(first._process.poll())\n"
    )
    assert said_by(script) == "None\n"
    crowd.require_gone()


@pytest.mark.slow
def test_a_process_that_ends_well_leaves_no_guard() -> None:
    """It goes with the process that it stands by."""
    script = "from prefect_dispatch.processes.process_tree import get_watchdog\nprint(get_watchdog()._process.pid)\n"
    left = int(said_by(script))
    wait_until(lambda: not psutil.pid_exists(left), "the guard is gone")
    assert left != os.getpid()
