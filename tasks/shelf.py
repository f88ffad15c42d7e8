"""Bytes under keys in Prefect's result storage, written whole or not at all."""

from __future__ import annotations

import math
import os
import re
import time
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import get_result_store

from prefect_dispatch.errors import TransientError
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import told
from prefect_dispatch.tasks.default_storage import default_folder

if TYPE_CHECKING:
    from io import FileIO

    from prefect import Task

PAUSES_S = (0.1, 0.5)
"""How long to wait before a write is tried again: what it holds was paid for."""
_READ = 1 << 16
"""Bytes that are read at once: all of most records."""
_BINARY: int = getattr(os, "O_BINARY", 0)  # where line ends are translated otherwise
_ABSENT = re.compile(r"no.?such.?(key|file|object)|not.?found|does not exist|\b404\b", re.IGNORECASE)
"""What storages say of a key that isn't there; most have no error class for it."""


class Shelf:
    """A result storage, as bytes under keys.

    A file on this machine is written beside its place, brought to the disk, and moved there; an
    object store writes whole objects by itself.

    Attributes:
        storage: The storage.
        folder: The folder of a storage on this machine, else None.
    """

    def __init__(self, storage: WritableFileSystem) -> None:
        """Keep the storage."""
        self.storage: Any = storage
        self.folder = _folder(storage.basepath or ".") if isinstance(storage, LocalFileSystem) else None
        self._at = str(self.folder)

    def read(self, key: str) -> bytes | None:
        """Return what stands under a key, or None.

        Raises:
            TransientError: If the storage can't be read.
        """
        try:
            if self.folder:
                return _content(f"{self._at}/{key}")
            return cast("bytes | None", self.storage.read_path(key, _sync=True))
        except FileNotFoundError:
            return None
        except Exception as error:
            if not self.folder and _ABSENT.search(f"{error}".replace(key, "")):
                return None
            raise _unusable("read", error) from error

    def write(self, key: str, content: bytes, *, lasting: bool = True) -> None:
        """Put something under a key.

        Args:
            key: The key.
            content: What to put there.
            lasting: Whether it has to outlive a power cut, and not only this process.

        Raises:
            TransientError: If it can't be written, even in several tries.
        """
        for pause in PAUSES_S:
            with suppress(Exception):
                return self._put(key, content, lasting=lasting)
            time.sleep(pause)
        try:
            self._put(key, content, lasting=lasting)
        except Exception as error:
            raise _unusable("written", error) from error

    def amend(self, key: str, at: int, content: bytes) -> bool:
        """Write over some bytes of a file on this machine; return whether that could be done.

        It takes a few microseconds, as nothing is brought to the disk.
        """
        try:
            with open(f"{self._at}/{key}", "r+b", buffering=0) as file:  # noqa: PTH123 -- as below
                file.seek(at)
                return file.write(content) == len(content)
        except OSError:
            return False

    def remove(self, key: str) -> None:
        """Take away what stands under a key; where a storage can't, an empty record is left there.

        Raises:
            TransientError: If that can't be done.
        """
        if not self.folder:
            return self.write(key, b"{}")
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._at}/{key}")  # noqa: PTH108 -- as below
        except OSError as error:
            raise _unusable("written", error) from error

    def _put(self, key: str, content: bytes, *, lasting: bool) -> None:
        if self.folder:
            _replace(f"{self._at}/{key}", content, lasting=lasting)
        else:
            self.storage.write_path(key, content=content, _sync=True)


class Lenient(Shelf):
    """A shelf on which what can't be read counts as nothing: whoever would write there will say so.

    Args:
        shelf: The shelf.
        most: How many such records there may be; with more, it's the storage that can't be read.

    Attributes:
        unread: Why records could not be read.
        damaged: The work of answers that were altered since they were stored, or cut off, by key.
    """

    def __init__(self, shelf: Shelf, most: float = math.inf) -> None:
        """Start with everything believed to be readable."""
        super().__init__(shelf.storage)
        self.unread: list[TransientError] = []
        self.damaged: dict[str, str] = {}
        self._most = most

    def read(self, key: str) -> bytes | None:
        """Return what stands under a key; None if that can't be read.

        Raises:
            TransientError: If that was one too many.
        """
        try:
            return super().read(key)
        except TransientError as error:
            self.unread.append(error)
            if len(self.unread) > self._most:
                raise
            return None


def shelf_of(task: Task[..., Any]) -> Shelf:
    """Return the result storage that a task uses here: that of the flow run, or Prefect's default."""
    store = cast("Any", get_result_store())
    if store.result_storage is None and task.result_storage is None and (folder := default_folder()):
        return Shelf(folder)
    return Shelf(cast("WritableFileSystem", store.update_for_task(task, _sync=True).result_storage))


def _folder(path: str) -> Path:
    return _resolved(path) if path.startswith("/") else Path(path).expanduser().resolve()


@lru_cache(maxsize=64)  # a look at each folder above it, for each read and write
def _resolved(path: str) -> Path:
    return Path(path).resolve()


# pathlib, and open, take several times as long as the system does for all of this.


def _content(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY | _BINARY)
    try:
        content = os.read(handle, _READ)
        while more := os.read(handle, _READ):
            content += more
    except OSError as error:
        error.filename = path  # which only open tells
        raise
    finally:
        os.close(handle)
    return content


def _replace(path: str, content: bytes, *, lasting: bool) -> None:
    """Put a file in its place, whole; and so that it outlives a power cut, if it is to last."""
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/.{name[:100]}-{_mine(os.getpid())}-{next(_numbers)}"
    try:
        with _created(beside) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            if lasting:
                os.fsync(file.fileno())
        os.replace(beside, path)  # noqa: PTH105 -- see above
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)  # noqa: PTH108 -- see above
        raise
    if not lasting:
        return
    with suppress(OSError):  # a system that can't do that with folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_numbers = count()


@lru_cache(maxsize=1)
def _mine(process: int) -> str:  # noqa: ARG001 -- a forked process is another one
    """Return what no other process has, on whichever machine."""
    return uuid4().hex


def _created(path: str) -> FileIO:
    try:
        return open(path, "xb", buffering=0)  # noqa: PTH123 -- see above; whoever called closes it
    except FileNotFoundError:  # the folder is missing
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, "xb", buffering=0)  # noqa: PTH123 -- see above


def _unusable(done: str, error: Exception) -> TransientError:
    return TransientError(f"The result storage can't be {done}: {told(error)}", kind="storage", usage=Usage())
