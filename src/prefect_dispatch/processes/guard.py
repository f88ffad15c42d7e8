"""One process that outlives this one, to end what this one was running.

It is started with the first program, in a session of its own, and reads from a pipe that nobody ever writes
an end to: when the pipe breaks, this process is gone, however it went.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, cast
from uuid import uuid4

import psutil

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.models import Usage
from prefect_dispatch.processes.sweep import Mark, end

if TYPE_CHECKING:
    from collections.abc import Generator

VARIABLE = "PREFECT_DISPATCH_GUARD"
"""The variable by which a guard knows what it has to end."""
GRACE_S = 1.0
"""Seconds that programs have to end themselves, once the process that started them is gone."""
LOOK_S = 0.5
"""How often a guard looks whether it still has its parent: a forked child may hold the pipe open."""
START_S = 30.0
"""Seconds in which a guard has to be there; it takes a tenth of one."""

_START = "import sys; sys.path[:] = sys.argv[2:]; from prefect_dispatch.processes import guard; guard.main(sys.argv[1])"
_lock = threading.Lock()
_here: dict[int, Guard] = {}
"""The guard of each process, of which a forked child sees its parent's, too."""


class Guard:
    """What stands by this process.

    Attributes:
        mark: What programs carry for it.
    """

    def __init__(self) -> None:
        """Start it.

        Raises:
            TerminalError: If it doesn't start: no program could be run safely.
        """
        self.mark = Mark(VARIABLE, uuid4().hex)
        self._roots: set[int] = set()
        self._start()

    def ready(self) -> None:
        """See to it that it is there; somebody may have ended it."""
        if self._process.poll() is not None:
            self._pipe.close()
            self._start()

    @contextmanager
    def watching(self, root: int) -> Generator[None, None, None]:
        """Let it know of a program that leads a session of its own, until that was waited for."""
        self._roots.add(root)
        self._say(f"+{root}\n")
        try:
            yield
        finally:
            self._roots.discard(root)
            self._say(f"-{root}\n")

    def close(self) -> None:
        """Let it do its work, which should be none, and wait for it."""
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(START_S)

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 -- ourselves
            [sys.executable, "-I", "-c", _START, self.mark.value, *sys.path],
            env={},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._pipe = cast("IO[bytes]", self._process.stdin)
        with cast("IO[bytes]", self._process.stdout) as said:
            there, _, _ = select.select([said], [], [], START_S)
            if not there or not said.read(1):
                self._process.kill()
                self._process.wait()
                self._pipe.close()
                raise TerminalError("The process that guards programs doesn't start.", kind="guard", usage=Usage())
        for root in tuple(self._roots):
            self._say(f"+{root}\n")

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # somebody has ended it: the next program starts it anew
            self._pipe.write(line.encode())


def guard_here() -> Guard:
    """Return the guard of this process.

    Raises:
        TerminalError: If it can't be started.
    """
    with _lock:
        here = _here.get(os.getpid())
        if here is None:
            here = Guard()
            atexit.register(_leave, os.getpid())
            _here[os.getpid()] = here
        here.ready()
        return here


def _leave(pid: int) -> None:  # pragma: no cover -- when a process ends, nobody counts any more
    if pid == os.getpid():
        _here.pop(pid).close()


def main(value: str) -> None:  # pragma: no cover -- in a process of its own
    """Be a guard: wait until whoever started this process is gone, and end what they left.

    Args:
        value: What their programs carry.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent, roots = os.getppid(), dict[int, psutil.Process]()
    os.write(1, b".")
    said = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], LOOK_S)[0]:
            continue
        if not (more := os.read(0, 65536)):
            break
        *lines, said = (said + more).split(b"\n")
        for line in lines:
            root = int(line[1:])
            roots.pop(root, None)
            if line[:1] == b"+":
                with suppress(psutil.Error):  # it has ended
                    roots[root] = psutil.Process(root)
    end(Mark(VARIABLE, value), [pid for pid, root in roots.items() if root.is_running()], grace_s=GRACE_S)
