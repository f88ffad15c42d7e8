"""Find and end all processes that descend from a program.

A program has a mark in its environment, which its descendants inherit, so that they are found even in sessions of
their own, or after their parent has ended. A process that removes the mark is found by its session, or by its parent.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection


KILL_TIMEOUT_S = 5.0
"""Seconds to go on killing processes that don't end, such as those of another user."""
PAUSE_S = 0.05
"""Seconds between two searches for processes that are left."""


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


def end_processes(mark: Mark, roots: Collection[int] = (), *, grace_s: float) -> int:
    """End all processes that `find_processes` finds; return how many there were at first.

    Args:
        mark: The mark in their environment.
        roots: See `find_processes`.
        grace_s: Seconds that they have to end themselves, after SIGTERM.
    """
    # 1. Ask them to end, and wait.
    first = remaining = find_processes(mark, roots)
    _signal(first, "terminate")
    deadline = time.monotonic() + grace_s
    while remaining and time.monotonic() < deadline:  # not `psutil.wait_procs`, which reaps children of this process
        time.sleep(PAUSE_S)
        remaining = find_processes(mark, roots)
    # 2. Kill what is left, and what it has started since.
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while remaining and time.monotonic() < deadline:
        _signal(remaining, "kill")
        time.sleep(PAUSE_S)
        remaining = find_processes(mark, roots)
    return len(first)


def _signal(processes: list[psutil.Process], how: str) -> None:
    """Signal processes: `how` is the method of `psutil.Process`, `terminate` or `kill`."""
    for process in processes:
        with suppress(psutil.Error):  # it has just ended, or belongs to another user
            getattr(process, how)()


class ExitStatus(NamedTuple):
    """Exit status of a program; both are None if other code in this process has reaped it."""

    exit: int | None = None
    signal: int | None = None


if sys.platform == "darwin":  # pragma: no cover -- without `waitid` before Python 3.13

    def poll_exit_status(process: subprocess.Popen[bytes]) -> ExitStatus | None:
        """Return the exit status of a program, or None if it runs."""
        code = process.poll()
        return None if code is None else ExitStatus(exit=code) if code >= 0 else ExitStatus(signal=-code)

    def open_exit_handle(process: subprocess.Popen[bytes]) -> int | None:
        """Return None: the system has no such handle."""
        del process
        return None

else:

    def poll_exit_status(process: subprocess.Popen[bytes]) -> ExitStatus | None:
        """Return the exit status of a program without reaping it, or None if it runs."""
        try:
            read_exit_status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ExitStatus()
        if read_exit_status is None:
            return None
        if read_exit_status.si_code == os.CLD_EXITED:
            return ExitStatus(exit=read_exit_status.si_status)
        return ExitStatus(signal=read_exit_status.si_status)

    def open_exit_handle(process: subprocess.Popen[bytes]) -> int | None:
        """Return a file descriptor that becomes readable when a program ends; None if the system has none."""
        with suppress(AttributeError, OSError):  # another Unix, or an old kernel
            return os.pidfd_open(process.pid)
        return None
