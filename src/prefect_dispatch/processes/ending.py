"""How a program ended, told without waiting for it: until it is waited for, its number stays its own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import subprocess


class Ending(NamedTuple):
    """How a program ended: both are empty where somebody else in this process took the code."""

    exit: int | None = None
    signal: int | None = None


if sys.platform == "darwin":  # pragma: no cover -- without `waitid` before Python 3.13

    def how_it_ended(process: subprocess.Popen[bytes]) -> Ending | None:
        """Return how a program ended, or None if it runs."""
        code = process.poll()
        return None if code is None else Ending(exit=code) if code >= 0 else Ending(signal=-code)

    def exit_handle(process: subprocess.Popen[bytes]) -> int | None:
        """Return nothing: the system has no such handle."""
        del process
        return None

else:

    def how_it_ended(process: subprocess.Popen[bytes]) -> Ending | None:
        """Return how a program ended, or None if it runs."""
        try:
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return Ending()
        if found is None:
            return None
        if found.si_code == os.CLD_EXITED:
            return Ending(exit=found.si_status)
        return Ending(signal=found.si_status)

    def exit_handle(process: subprocess.Popen[bytes]) -> int | None:
        """Return what becomes readable when a program ends, or None where the system has no such thing."""
        with suppress(AttributeError, OSError):  # another Unix, an old kernel
            return os.pidfd_open(process.pid)
        return None
