"""Find and end all processes that descend from a program, even after this process has died.

A program has a mark in its environment, which its descendants inherit, so that they are found even in sessions of
their own, or after their parent has ended. A process that removes the mark is found by its session, or by its parent.

The watchdog is a process that is started with the first program, in a session of its own, and reads from a pipe that
stays open as long as this process lives: when the pipe is closed, this process is gone, however it ended, and the
watchdog ends the programs that it was running. Then it runs the commands that it was given for what no mark reaches,
such as one that removes a container.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, NamedTuple, cast
from uuid import uuid4

import psutil

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.models.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

KILL_TIMEOUT_S = 5.0
"""Seconds to go on killing processes that don't end, such as those of another user."""
PAUSE_S = 0.05
"""Seconds between two searches for processes that are left."""
VARIABLE = "PREFECT_DISPATCH_GUARD"
"""The environment variable that marks the programs which a watchdog has to end."""
ORPHAN_GRACE_S = 1.0
"""Seconds that programs have to end themselves, once the process that started them is gone."""
LOOK_S = 0.5
"""Seconds between two checks of the watchdog's parent, as a forked child may keep the pipe open."""
START_S = 30.0
"""Seconds within which a watchdog has to start; it usually takes 0.1 s."""
COMMAND_S = 60.0
"""Seconds that a command of the watchdog may take."""

# The user's folders come last: a `json.py` of theirs is not Python's.
_START = (
    "import sys; sys.path += sys.argv[2:]; "
    "from prefect_dispatch.processes import process_tree; process_tree.main(sys.argv[1])"
)
_lock = threading.Lock()
_watchdogs: dict[int, Watchdog] = {}
"""Watchdogs by process id, as a forked child inherits the entry of its parent."""


class Mark(NamedTuple):
    """An environment variable that marks processes."""

    variable: str
    value: str


def find_processes(mark: Mark, roots: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living processes that have a mark, and all their descendants.

    Args:
        mark: The mark in the environment that they were started with.
        roots: Ids of processes that lead sessions of their own; all processes in these sessions count. They must not
            have been waited for, else their ids may be reused.
    """
    processes: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    matching: set[int] = set()
    # 1. Processes with the mark, or in the session of a root.
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):  # it has just ended
            process = psutil.Process(pid)
            with process.oneshot():
                # A zombie with several threads is alive: only its main thread has ended.
                if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1:
                    continue
                processes[pid], parents[pid] = process, process.ppid()
                if os.getsid(pid) in roots or process.environ().get(mark.variable) == mark.value:
                    matching.add(pid)
    # 2. Their children, until there are no more.
    while children := {pid for pid, parent in parents.items() if parent in matching} - matching:
        matching |= children
    return [processes[pid] for pid in sorted(matching)]


def end_processes(
    mark: Mark, roots: Collection[int] = (), *, grace_s: float, pause: Callable[[float], object] = time.sleep
) -> None:
    """End all processes that `find_processes` finds: ask them to end, then kill what is left.

    Args:
        mark: The mark in their environment.
        roots: See `find_processes`.
        grace_s: Seconds that they have to end themselves, after SIGTERM.
        pause: Called to wait for some seconds.
    """
    remaining = find_processes(mark, roots)
    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
        deadline, signalled = time.monotonic() + limit_s, set[psutil.Process]()
        while remaining and time.monotonic() < deadline:  # not `psutil.wait_procs`, which reaps children
            for process in remaining:  # in their order, so that a parent is asked before its children
                if process not in signalled:
                    signalled.add(process)
                    with suppress(psutil.Error):  # it has just ended, or belongs to another user
                        process.send_signal(number)
            pause(PAUSE_S)
            remaining = find_processes(mark, roots)


class Watchdog:
    """Handle of this process's watchdog.

    Attributes:
        mark: The mark for the environment of programs.
    """

    def __init__(self) -> None:
        """Start the watchdog process.

        Raises:
            TerminalError: If it doesn't start, so that no program could be run safely.
        """
        self.mark = Mark(VARIABLE, uuid4().hex)
        self._roots: set[int] = set()
        self._commands: dict[str, str] = {}
        self._writing = threading.Lock()
        self._start()

    def ensure_running(self) -> None:
        """Restart the watchdog process if it has ended."""
        if self._process.poll() is not None:
            self._pipe.close()
            self._start()

    @contextmanager
    def watch(self, root: int) -> Generator[None, None, None]:
        """Register a program with the watchdog until it was waited for.

        Args:
            root: The process id of the program, which leads a session of its own.
        """
        self._roots.add(root)
        self._send(f"+{root}\n")
        try:
            yield
        finally:
            self._roots.discard(root)
            self._send(f"-{root}\n")

    @contextmanager
    def run_after_death(self, argv: Sequence[str], env: Mapping[str, str]) -> Generator[None, None, None]:
        """Have the watchdog run a command, if this process dies in this context, after it has ended the programs.

        Args:
            argv: The command, with the absolute path of its program; it has to be harmless if it runs twice.
            env: Its whole environment.
        """
        name = uuid4().hex
        self._commands[name] = line = f"*{name} {json.dumps([[*argv], {**env}])}\n"
        self._send(line)
        try:
            yield
        finally:
            del self._commands[name]
            self._send(f"/{name}\n")

    def close(self) -> None:
        """Close the pipe, upon which the watchdog ends what is left and exits, and wait for it."""
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(START_S)

    def _start(self) -> None:
        """Start the watchdog process, wait for its first byte, and register the running programs and the commands."""
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
        with cast("IO[bytes]", self._process.stdout) as output:
            ready = select.poll()  # `select.select` refuses descriptors from 1,024 on, as a run with many calls has
            ready.register(output, select.POLLIN)
            if not ready.poll(START_S * 1000) or not output.read(1):
                self._process.kill()
                self._process.wait()
                self._pipe.close()
                raise TerminalError("The process that guards programs doesn't start.", kind="guard", usage=Usage())
        for root in tuple(self._roots):
            self._send(f"+{root}\n")
        for command in tuple(self._commands.values()):
            self._send(command)

    def _send(self, line: str) -> None:
        """Send a line: `+` or `-` and the process id of a program, or `*` or `/` and the name of a command."""
        # The system keeps short lines of several threads apart, and no long ones.
        with self._writing, suppress(OSError, ValueError):  # the watchdog was killed; the next program restarts it
            self._pipe.write(line.encode())


def get_watchdog() -> Watchdog:
    """Return the watchdog of this process; start it if there is none.

    Raises:
        TerminalError: If it can't be started.
    """
    with _lock:
        watchdog = _watchdogs.get(os.getpid())
        if watchdog is None:
            watchdog = _watchdogs[os.getpid()] = Watchdog()
            atexit.register(_close_at_exit, os.getpid())
        watchdog.ensure_running()
        return watchdog


def _close_at_exit(pid: int) -> None:  # pragma: no cover -- at the exit of a process, which is not measured any more
    if pid == os.getpid():
        _watchdogs.pop(pid).close()


def main(value: str) -> None:  # pragma: no cover -- in a process of its own
    """Run as a watchdog: wait until the parent process is gone, and end the programs that it left.

    Args:
        value: The value of the mark in the environment of its programs.
    """
    # 1. Ignore signals that are meant for the parent, and report the start.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent, roots, commands = os.getppid(), dict[int, psutil.Process](), dict[str, str]()
    os.write(1, b".")
    # 2. Follow which programs run, until the pipe is closed or the parent is another process.
    partial_line = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], LOOK_S)[0]:
            continue
        if not (more := os.read(0, 65536)):
            break
        *lines, partial_line = (partial_line + more).split(b"\n")
        for line in lines:
            if line[:1] in b"*/":
                name, _, command = line[1:].decode().partition(" ")
                commands.pop(name, None)
                if command:
                    commands[name] = command
                continue
            root = int(line[1:])
            roots.pop(root, None)
            if line[:1] == b"+":
                with suppress(psutil.Error):  # it has ended
                    roots[root] = psutil.Process(root)
    # 3. End what is left; a `Process` knows whether its id was reused.
    living = [pid for pid, root in roots.items() if root.is_running()]
    end_processes(Mark(VARIABLE, value), living, grace_s=ORPHAN_GRACE_S)
    # 4. Run the commands: no program is left that could begin again what they end.
    for command in commands.values():
        argv, env = json.loads(command)
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(  # noqa: S603 -- as this module's own process has given it
                argv,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=COMMAND_S,
                check=False,
            )
