"""Bytes under keys in Prefect's result storage, written whole or not at all."""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import get_result_store

from prefect_dispatch.errors import TransientError
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task

WRITES = 3
"""How often a write is tried: what it holds was paid for."""
_ABSENT = ("nosuchkey", "not found", "notfound", "404", "does not exist", "no such file")
"""What storages say of a key that isn't there; most have no error class for it."""


class Shelf:
    """A result storage, as bytes under keys.

    A file on this machine is written beside its place, brought to the disk, and moved there; an
    object store writes whole objects by itself.
    """

    def __init__(self, storage: WritableFileSystem) -> None:
        """Keep the storage."""
        self._storage = storage

    @property
    def folder(self) -> Path | None:
        """The folder of a storage on this machine, else None."""
        if not isinstance(self._storage, LocalFileSystem):
            return None
        return Path(self._storage.basepath or ".").expanduser().resolve()

    def read(self, key: str) -> bytes | None:
        """Return what stands under a key, or None.

        Raises:
            TransientError: If the storage can't be read.
        """
        try:
            if self.folder is not None:
                return (self.folder / key).read_bytes()
            return cast("bytes | None", _called(self._storage.read_path, key))
        except Exception as error:
            if isinstance(error, (FileNotFoundError, KeyError)) or any(word in f"{error}".lower() for word in _ABSENT):
                return None
            raise _unusable("read", error) from error

    def write(self, key: str, content: bytes) -> None:
        """Put something under a key.

        Raises:
            TransientError: If it can't be written, even in several tries.
        """
        for again in reversed(range(WRITES)):
            try:
                if self.folder is not None:
                    return _replace(self.folder / key, content)
                _called(self._storage.write_path, key, content=content)
            except Exception as error:  # noqa: PERF203 -- a write takes far longer than a try
                if not again:
                    raise _unusable("written", error) from error
            else:
                return None
        raise AssertionError  # pragma: no cover -- the last try returns or raises

    def remove(self, key: str) -> None:
        """Take away what stands under a key; where a storage can't, it is left empty there.

        Raises:
            TransientError: If it can't be written.
        """
        if self.folder is not None:
            with suppress(FileNotFoundError):
                (self.folder / key).unlink()
        else:
            self.write(key, b"{}")


def shelf_of(task: Task[..., Any]) -> Shelf:
    """Return the result storage that a task uses here: that of the flow run, or Prefect's default."""
    store = cast("Any", get_result_store()).update_for_task(task, _sync=True)
    return Shelf(cast("WritableFileSystem", store.result_storage))


def _called(method: Callable[..., Any], *arguments: object, **named: object) -> object:
    """Call a method of a block, which may be async or not."""
    found = method(*arguments, **named)
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Any) -> object:  # noqa: ANN401 -- an awaitable of anything
    return await found


def _replace(path: Path, content: bytes) -> None:
    make: Callable[[], Any] = partial(
        tempfile.NamedTemporaryFile, dir=path.parent, prefix=f".{path.name[:100]}-", delete=False
    )
    try:
        file = make()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = make()
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise


def _unusable(done: str, error: Exception) -> TransientError:
    return TransientError(f"The result storage can't be {done}: {told(error)}", kind="storage", usage=Usage())
