"""Running programs: what they get, what is kept of them, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.processes import runner
from prefect_dispatch.processes.process_tree import get_watchdog
from prefect_dispatch.processes.runner import OutputBuffer, run, wait_for_exit
from prefect_dispatch.tasks import event_loop
from tests.processes.programs import ENV, Crowd, done, log_of, program, said_by
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_dispatch.processes.runner import CompletedProgram

HIDES = "from os import environ; print(*sorted(environ))"


def test_what_a_program_prints_and_how_it_ends(tmp_path: Path) -> None:
    """Both streams are kept apart, with the exit code, and the log has both."""
    ran = done(program("echo out; echo complaint >&2; exit 3", tmp_path))
    assert (ran.exit, ran.signal, ran.stopped) == (3, None, "")
    assert (ran.stdout.text, ran.stderr.text) == ("out\n", "complaint\n")
    assert sorted(log_of(tmp_path).splitlines()) == ["complaint", "out"]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_program_that_a_signal_ends(tmp_path: Path) -> None:
    """It has no exit code, but a signal."""
    ran = done(program("kill -SEGV $$", tmp_path))
    assert (ran.exit, ran.signal) == (None, signal.SIGSEGV)


def test_nothing_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program sees the variables that it is given, two marks, and no more."""
    monkeypatch.setenv("SOME_TOKEN", "of-the-parent")
    ran = done(program([sys.executable, "-c", HIDES], tmp_path, env={**ENV, "MINE": "1", "LC_ALL": "C"}))
    assert ran.stdout.text.split() == ["LC_ALL", "MINE", "PATH", "PREFECT_DISPATCH_COOKIE", "PREFECT_DISPATCH_GUARD"]


def test_a_secret_is_in_nothing_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a variable that holds a key is hidden in both streams and in the log, wherever it is cut."""
    monkeypatch.setenv("DEPLOY_TOKEN", "correct-horse-battery")
    what = program("for i in $(seq 400); do echo $i correct-horse-battery $i; done; echo end >&2", tmp_path, keep=1000)
    ran = done(what)
    assert "horse" not in log_of(tmp_path)
    assert log_of(tmp_path).count("***") == 400
    assert not {"horse", "correct-h", "e-battery"} & set(ran.stdout.text.split())
    assert "bytes left out" in ran.stdout.text
    assert ran.stderr.text == "end\n"


def test_more_input_than_a_pipe_holds(tmp_path: Path) -> None:
    """A program may read all of its input, or none of it."""
    much = b"x" * 1_000_000
    assert done(program("wc -c", tmp_path, stdin=much)).stdout.text.strip() == "1000000"
    assert done(program("true", tmp_path, stdin=much)).exit == 0
    assert done(program("exec <&-; sleep 0.2; echo closed", tmp_path, stdin=much)).stdout.text == "closed\n"
    assert done(program("wc -c", tmp_path)).stdout.text.strip() == "0"


def test_output_without_lines_and_output_that_is_no_text(tmp_path: Path) -> None:
    """Whatever is printed is kept, byte for byte, as far as it is kept."""
    ran = done(program("head -c 300000 /dev/zero | tr '\\0' 'x'", tmp_path))
    assert (ran.stdout.size, len(ran.stdout.head), len(ran.stdout.tail)) == (300_000, 100_000, 100_000)
    assert not ran.stdout.is_whole
    assert log_of(tmp_path) == "x" * 300_000
    ran = done(program("printf '\\377\\000\\n\\200'", tmp_path))
    assert ran.stdout.head == b"\xff\x00\n\x80"
    assert ran.stdout.text == "\ufffd\x00\n\ufffd"


@pytest.mark.slow
def test_half_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    """What is printed is drained to its end; beginning and end are kept, and the log ends where it says so."""
    script = (
        "import asyncio, resource, sys\n"
        "from pathlib import Path\n"
        "from prefect_dispatch.processes.runner import Program, run\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "what = ('/bin/sh', '-c', 'echo begin; yes \"some line of a build\" | head -c 500000000; echo; echo end')\n"
        "folder = Path(sys.argv[2])\n"
        "ran = asyncio.run(run(Program(what, {'PATH': sys.argv[1]}, folder), log=folder / 'log'))\n"
        "print(ran.exit, ran.stdout.size, ran.stdout.text[:5], ran.stdout.text[-4:].strip())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    said = said_by(script, ENV["PATH"], str(tmp_path))
    first, megabytes = said.splitlines()
    assert first == "0 500000011 begin end"
    assert int(megabytes) < 60
    log = log_of(tmp_path)
    assert len(log) < runner.MAX_LOG_BYTES + 200_000
    assert "bytes left out, as a log holds 20,000,000" in log
    assert log.rstrip().endswith("end")


@pytest.mark.slow
def test_time_ends_a_program_with_all_that_it_started(tmp_path: Path) -> None:
    """Sessions of their own, double forks, who ignores the request, who takes the mark off: all are gone."""
    crowd = Crowd()
    script = tmp_path / "many.sh"
    script.write_text(
        f"{crowd.waits} &\n"
        f"setsid {crowd.waits} &\n"
        f"(setsid {crowd.lingers} &)\n"
        f"env -i {crowd.waits} &\n"
        f"env -i setsid {crowd.waits} &\n"
        f"{crowd.waits}\n"
    )

    async def ended(how: Callable[[asyncio.Task[CompletedProgram]], Any]) -> None:
        task = asyncio.ensure_future(run(program(["sh", str(script)], tmp_path), log=tmp_path / "log"))
        await asyncio.to_thread(crowd.require, 6)
        with pytest.raises(asyncio.CancelledError):
            await how(task)
        assert crowd.alive == []

    async def twice(task: asyncio.Task[CompletedProgram]) -> None:
        task.cancel()
        await asyncio.sleep(0.2)
        task.cancel()
        await task

    asyncio.run(ended(twice))


@pytest.mark.slow
def test_the_time_limit_of_an_ask(tmp_path: Path) -> None:
    """A limit that cancels again and again waits for the end, and keeps nobody busy meanwhile."""
    crowd = Crowd()

    async def limited() -> float:
        started = time.process_time()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.5):
                await run(program(["sh", "-c", f"exec {crowd.lingers}"], tmp_path), log=tmp_path / "log")
        assert crowd.alive == []
        return time.process_time() - started

    assert asyncio.run(limited()) < 2  # 3 s pass
    assert log_of(tmp_path) == "here\n"


@pytest.mark.slow
def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    """A program's end is the end of all; who still holds its output open keeps nobody waiting."""
    crowd = Crowd()
    ran = done(program(f"{crowd.waits} & setsid {crowd.waits} & env -i {crowd.waits} & echo done", tmp_path))
    assert (ran.exit, ran.stdout.text) == (0, "done\n")
    assert crowd.alive == []


@pytest.mark.slow
def test_a_program_that_falls_silent(tmp_path: Path) -> None:
    """It is ended; one that goes on printing is not, however long it takes."""
    ran = done(program("echo hello; sleep 1000", tmp_path, idle_s=0.3))
    assert (ran.stopped, ran.exit, ran.signal, ran.stdout.text) == ("idle", None, signal.SIGTERM, "hello\n")
    ran = done(program("for i in 1 2 3 4; do echo $i; sleep 0.3; done", tmp_path, idle_s=1.0))
    assert (ran.stopped, ran.exit) == ("", 0)
    ran = done(program("exec >&- 2>&-; sleep 0.5; exit 4", tmp_path))  # nothing can come any more; it runs on
    assert (ran.stopped, ran.exit) == ("", 4)


@pytest.mark.parametrize(
    ("argv", "kind", "error", "told"),
    [
        pytest.param(["no-such-program-4711"], "missing_program", TerminalError, "in no folder of PATH", id="missing"),
        pytest.param(["./nothing.sh"], "missing_program", TerminalError, "is not installed here", id="no-file"),
        pytest.param(["./script"], "missing_program", TerminalError, "first line names", id="no-interpreter"),
        pytest.param(["./plain"], "not_executable", TerminalError, "Permission denied", id="not-executable"),
        pytest.param(["./folder"], "not_executable", TerminalError, "Permission denied", id="a-folder"),
        pytest.param(["./text"], "not_executable", TerminalError, "#!/bin/sh", id="no-first-line"),
        pytest.param(["echo", "x" * 3_000_000], "too_large", RejectedError, "are too long", id="too-long"),
        pytest.param(["echo", "a\0b"], "nul", RejectedError, "NUL", id="nul"),
    ],
)
def test_a_program_that_cannot_be_started(
    argv: list[str], kind: str, error: type[ExecutorError], told: str, tmp_path: Path
) -> None:
    """The error says why, whether other items would fare better, and that nothing was spent."""
    for name, text, mode in (
        ("script", "#!/no/such/interpreter\n", 0o755),
        ("plain", "", 0o644),
        ("text", "x\n", 0o755),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=told) as caught:
        done(program(argv, tmp_path))
    assert caught.value.kind == kind
    assert caught.value.usage is not None
    assert caught.value.usage.requests == 0


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It is not taken for a missing program."""
    what = program("true", tmp_path / "gone")
    with pytest.raises(TerminalError, match=r"The folder '.*gone' isn't there"):
        asyncio.run(run(what, log=tmp_path / "log"))


@pytest.mark.slow
def test_the_system_has_no_room(tmp_path: Path) -> None:
    """What may pass is tried again: too many files are open."""
    limit = (
        "import asyncio, resource, sys\n"
        "from pathlib import Path\n"
        "from prefect_dispatch.errors import TransientError\n"
        "from prefect_dispatch.processes.process_tree import get_watchdog\n"
        "from prefect_dispatch.processes.runner import Program\n"
        "from prefect_dispatch.processes.runner import start_program\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))\n"
        "try:\n"
        "    start_program(Program(('true',), {}, Path(sys.argv[1])), {})\n"
        "except TransientError as error:\n"
        "    print(error.kind)\n"
    )
    said = said_by(limit, str(tmp_path))
    assert said == "resources\n"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_what_may_pass_is_no_fault_of_the_program(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no memory: another try may do."""
    get_watchdog()

    def scarce(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", scarce)
    with pytest.raises(TransientError, match="can't be started now") as caught:
        done(program("true", tmp_path))
    assert caught.value.kind == "resources"


@pytest.mark.slow
def test_what_goes_wrong_meanwhile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own ends the program, too."""
    crowd = Crowd()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runner.LogFile, "write", fail)
    with pytest.raises(ZeroDivisionError):
        done(program(f"echo x; {crowd.waits}", tmp_path))
    assert crowd.alive == []


def test_a_stream_on_which_nothing_has_come() -> None:
    """It is looked at without waiting, and stays open."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as pipe, os.fdopen(theirs, "wb"):
        stream = OutputBuffer(pipe, 10)
        assert (stream.read_available(), stream.is_open, stream.captured_output.text) == (b"", True, "")


def test_an_end_that_somebody_else_has_seen() -> None:
    """Neither an exit code nor a signal is made up."""
    process = subprocess.Popen(["true"])  # noqa: S607 -- whichever is installed
    os.waitpid(process.pid, 0)
    assert wait_for_exit(process) is None
    process.wait()


@pytest.mark.slow
def test_many_at_once_in_the_shared_loop(tmp_path: Path) -> None:
    """Sixteen threads run a program each in one event loop; no file, process or thread is left open."""
    get_watchdog()

    def open_files() -> list[str]:
        return sorted(file.name for file in Path("/proc/self/fd").iterdir())

    def one(number: int) -> int | None:
        folder = tmp_path / str(number)
        folder.mkdir()
        what = program(f"sleep 0.1; setsid sleep 1000 & head -c 200000 /dev/zero; exit {number}", folder)
        return event_loop.run(run(what, log=folder / "log"), group="sixteen").exit

    event_loop.run(asyncio.sleep(0), group="sixteen")
    here, before = psutil.Process(), open_files()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == list(range(16))
    assert open_files() == before
    assert not [child for child in here.children() if child.status() == psutil.STATUS_ZOMBIE]
    wait_until(lambda: not any("program" in each.name for each in threading.enumerate()), "no thread is left")


@pytest.mark.slow
def test_an_exit_code_that_somebody_else_takes(tmp_path: Path) -> None:
    """It isn't taken for success where it is lost: here the process wants no exit codes of its children."""
    script = (
        "import asyncio, signal, sys\n"
        "from pathlib import Path\n"
        "from prefect_dispatch.processes.runner import Program, run\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "what = Program(('/bin/sh', '-c', 'echo out; exit 7'), {'PATH': sys.argv[1]}, Path(sys.argv[2]))\n"
        "ran = asyncio.run(run(what, log=Path(sys.argv[2], 'log')))\n"
        "print(ran.exit, ran.signal, ran.stdout.text, end='')\n"
    )
    said = said_by(script, ENV["PATH"], str(tmp_path))
    assert said == "None None out\n"


def test_a_loop_that_ends_before_its_program(tmp_path: Path) -> None:
    """A loop that is closed in the midst of it ends the program, too, and nobody is told."""
    crowd = Crowd()
    own = asyncio.new_event_loop()
    task = own.create_task(run(program(f"exec {crowd.waits}", tmp_path), log=tmp_path / "log"))
    own.run_until_complete(asyncio.sleep(0))
    own.run_until_complete(asyncio.to_thread(crowd.require, 1))
    own.close()
    task.get_coro().close()  # as its end would do
    crowd.require_gone()
    del task


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """No program is started without a log; a disk that fills up ends none."""
    with pytest.raises(FileNotFoundError):
        asyncio.run(run(program("true", tmp_path), log=tmp_path / "no" / "log"))
    assert asyncio.run(run(program("echo x", tmp_path), log=Path("/dev/full"))).exit == 0


HALF_DEAD = (
    "import ctypes, platform, threading, time\n"
    "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    "print('here', flush=True)\n"
    "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)\n"
)
"""A program whose first thread ends, and whose second one goes on: it looks dead, and is not."""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process ends with its first thread")
def test_a_program_that_only_looks_dead(tmp_path: Path) -> None:
    """It is ended all the same, and waited for."""
    crowd = Crowd()
    ran = done(program([sys.executable, "-c", HALF_DEAD, crowd.word], tmp_path, idle_s=0.3))
    assert (ran.stdout.text, ran.stopped) == ("here\n", "idle")
    assert not [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]
