"""Whose a draft is, and whether its owner is still to be believed."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from pydantic import Field

from prefect_dispatch.strict import Strict

LONGEST_S = 2 * 86_400.0
"""How far ahead an owner may be named, and be believed."""


class Owner(Strict):
    """A process."""

    host: str
    """The machine, and whose processes are counted together on it."""
    process: int = Field(gt=0, lt=2**31)
    name: str

    @staticmethod
    def here() -> Owner:
        """Return this process."""
        return _here(os.getpid())

    def at_work(self, until: float) -> bool:
        """Return whether this is another process that is to be believed that it is at work.

        Args:
            until: Seconds since the epoch; until then it says so.
        """
        here = Owner.here()
        if self == here or not 0 < until - time.time() < LONGEST_S:
            return False
        return self.host != here.host or (self.process != here.process and _is_alive(self.process))


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # pragma: no cover -- to ask would end it
        return True
    try:
        with suppress(PermissionError):  # another user's
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@lru_cache(maxsize=1)
def _here(process: int) -> Owner:
    machine = platform.node()
    with suppress(OSError):  # containers may share a machine's name, and each count its processes from 1
        machine += f" {Path('/proc/self/ns/pid').readlink()}"
    return Owner(host=machine, process=process, name=uuid4().hex)  # a forked process is somebody else
