"""Programs that are run in tests, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil

from prefect_dispatch.processes.runner import Program, run
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.processes.runner import CompletedProgram

ENV = {"PATH": os.environ["PATH"]}
LINGERS = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('here', flush=True)\n"
    "time.sleep(1000)\n"
)
"""A program that doesn't want to end."""


class Crowd:
    """Processes that are known by a word among their arguments."""

    def __init__(self) -> None:
        """Choose a word."""
        self.word = f"crowd-{uuid4().hex}"

    @property
    def waits(self) -> str:
        """A command that waits."""
        return f"sh -c 'sleep 1000; : {self.word}'"

    @property
    def lingers(self) -> str:
        """A command that waits, whoever asks it to end."""
        return f'{sys.executable} -c "{LINGERS}" {self.word}'

    @property
    def alive(self) -> list[str]:
        """Those that are there."""
        found: list[str] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended meanwhile
                if any(self.word in part for part in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def require_gone(self) -> None:
        """Wait until none is there."""
        wait_until(lambda: not self.alive, "every process is gone")

    def require(self, number: int) -> None:
        """Wait until so many are there."""
        wait_until(lambda: len(self.alive) == number, f"{number} processes are there")


def program(
    what: str | Sequence[str],
    cwd: Path,
    *,
    env: Mapping[str, str] = ENV,
    stdin: bytes = b"",
    idle_s: float | None = None,
    keep: int = 100_000,
) -> Program:
    """Return a program: a line for a shell, or what is run without one."""
    argv = ("/bin/sh", "-c", what) if isinstance(what, str) else what
    return Program(argv=argv, env=env, cwd=cwd, stdin=stdin, idle_s=idle_s, keep=keep)


def done(what: Program) -> CompletedProgram:
    """Run a program to its end; its log is beside it."""
    return asyncio.run(run(what, log=what.cwd / "log"))


def said_by(script: str, *args: str) -> str:
    """Return what a script prints that runs in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)  # noqa: S603 -- this interpreter, a fixed text
    return done.stdout


def log_of(cwd: Path) -> str:
    """Return what the log of the last program holds."""
    return Path(cwd, "log").read_text(encoding="utf-8")
