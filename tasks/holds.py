"""Nobody else asks the same at the same time: not in this process, and not in another on this machine.

Between processes the kernel locks one byte of a file for each piece of work, so that whoever
dies lets go. Where there is no such file (another storage, another system), drafts hold the work.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

CAN_LOCK = sys.platform != "win32"
"""Whether processes can meet at the bytes of a file."""

NAME = ".prefect-dispatch.lock"
"""The file whose bytes are locked; it stays empty."""
POLL_S = 0.2
"""How often to look whether another process has let go."""
_BYTES = 1 << 62
"""The places in the file; two pieces of work at one place only wait for each other."""

_locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}


@asynccontextmanager
async def held(key: str, folder: Path | None) -> AsyncGenerator[None, None]:
    """Hold a key, once nobody else does.

    Args:
        key: What is held.
        folder: Where processes of this machine meet; None: only this process counts.
    """
    lock, users = _locks.setdefault(key, (asyncio.Lock(), []))
    users.append(None)
    try:
        async with lock:
            if folder is None or not CAN_LOCK:
                yield
            else:
                async with _held_by_process(folder, _place(key)):
                    yield
    finally:
        users.pop()
        if not users:
            _locks.pop(key, None)


def _place(key: str) -> int:
    """Return the place of a key in the file."""
    return int(key[-32:], 16) % _BYTES


@asynccontextmanager
async def _held_by_process(folder: Path, place: int) -> AsyncGenerator[None, None]:
    handle = await asyncio.to_thread(_opened, folder)
    while not _locked(handle, place):  # noqa: ASYNC110 -- the kernel tells nobody when a lock is let go
        await asyncio.sleep(POLL_S)
    try:
        yield
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, place)


def _locked(handle: int, place: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):
        return False
    return True


@cache
def _opened(folder: Path) -> int:
    """Open the file once and for all: closing any handle of it would let go of every byte."""
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
