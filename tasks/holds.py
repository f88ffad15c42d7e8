"""Nobody else asks the same at the same time: not in this process, and not in another on this machine.

Between processes the kernel locks one byte of a file for each piece of work, so that whoever
dies lets go. Where that can't be (another storage, another system), drafts hold the work.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

NAME = ".prefect-dispatch.lock"
"""The file whose bytes are locked; it stays empty."""
POLL_S = 0.2
"""How often to look whether another process has let go."""


@dataclass
class _Key:
    """A key that is held or waited for."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass
class _File:
    """A lock file; opened once for all who use it, as closing any handle of it would let go of every byte."""

    handle: int
    users: int = 0

    def is_at(self, path: str) -> bool:
        """Return whether it still stands where other processes look for it."""
        try:
            return os.path.samestat(os.fstat(self.handle), os.stat(path))  # noqa: PTH116 -- for each item, and faster
        except FileNotFoundError:
            return False


@dataclass
class _Here:
    """What a process holds."""

    keys: dict[tuple[Path | None, str], _Key] = field(default_factory=dict[tuple["Path | None", str], _Key])
    files: dict[Path, _File] = field(default_factory=dict["Path", _File])


@lru_cache(maxsize=1)
def _here(process: int) -> _Here:  # noqa: ARG001 -- a forked process holds nothing of its parent's
    return _Here()


@asynccontextmanager
async def held(key: str, folder: Path | None) -> AsyncGenerator[bool, None]:
    """Hold a key, once nobody else does; yield whether that keeps other processes out, too.

    Args:
        key: What is held.
        folder: Where processes of this machine meet; None: they can't.
    """
    keys = _here(os.getpid()).keys
    mine = keys.setdefault((folder, key), _Key())
    mine.users += 1
    try:
        async with mine.lock:
            if folder is None or sys.platform == "win32":
                yield False
            else:
                async with _byte(folder, key) as alone:
                    yield alone
    finally:
        mine.users -= 1
        if not mine.users:
            del keys[folder, key]


if sys.platform != "win32":  # pragma: no branch -- another system has no such locks

    @asynccontextmanager
    async def _byte(folder: Path, key: str) -> AsyncGenerator[bool, None]:
        """Lock the byte of a key; two keys at one byte only wait for each other."""
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        try:
            file = _opened(folder)
        except OSError:
            yield False
            return
        file.users += 1
        try:
            yield await _locked(file.handle, place)
        finally:
            with suppress(OSError):
                fcntl.lockf(file.handle, fcntl.LOCK_UN, 1, place)
            file.users -= 1
            if not file.users:
                _closed(folder, file)

    async def _locked(handle: int, place: int) -> bool:
        """Wait until a byte is locked; return False where a file system has no locks."""
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):  # noqa: PERF203 -- it waits anyway
                await asyncio.sleep(POLL_S)  # the kernel tells nobody when a lock is let go
            except OSError:  # pragma: no cover -- such as NFS without its lock daemon, which no test can set up
                return False
            else:
                return True

    def _opened(folder: Path) -> _File:
        files, path = _here(os.getpid()).files, f"{folder}/{NAME}"
        if folder not in files or not files[folder].is_at(path):
            folder.mkdir(parents=True, exist_ok=True)
            files[folder] = _File(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        return files[folder]

    def _closed(folder: Path, file: _File) -> None:
        files = _here(os.getpid()).files
        if files.get(folder) is file:
            del files[folder]
        os.close(file.handle)
