"""Get-or-compute of answers: read the stored one, or compute it under an exclusive lock and store it at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, cast

from prefect.filesystems import LocalFileSystem
from prefect.logging import get_run_logger

from prefect_dispatch.errors import TransientError
from prefect_dispatch.prefect_compat import result_record
from prefect_dispatch.tasks.event_loop import run_in_pool
from prefect_dispatch.tasks.storage.checkpoints import StoreSnapshot, TakenError, open_checkpoint, prewrite
from prefect_dispatch.tasks.storage.result_store import AnswerSerializer, BlobStore, parse_record, validate_stored

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from datetime import timedelta
    from pathlib import Path

    from prefect.filesystems import WritableFileSystem
    from prefect.results import ResultStore
    from prefect.transactions import BaseTransaction

    from prefect_dispatch.calls.attempt import Checkpoint
    from prefect_dispatch.models.outcome import Answer
    from prefect_dispatch.tasks.storage.checkpoints import StoredCheckpoint
    from prefect_dispatch.tasks.work_item import WorkItem


if sys.platform != "win32":
    import fcntl


LOCK_FILE = ".prefect-dispatch.lock"
"""File whose bytes are locked; it stays empty."""


LOCK_POLL_S = 0.2
"""Seconds between two tries to get a lock that another process holds."""


@dataclass
class _Key:
    """Key that is held or waited for."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass
class _LockFile:
    """Lock file; opened once per process, as closing any handle of it would release every lock of the process."""

    handle: int
    users: int = 0

    def is_at(self, path: str) -> bool:
        """Return whether it is still the file at its path, where other processes look for it."""
        try:
            return os.path.samestat(os.fstat(self.handle), os.stat(path))  # noqa: PTH116 -- for each item, and faster
        except FileNotFoundError:
            return False


@dataclass
class _ProcessLocks:
    """Locks of a process."""

    keys: dict[tuple[Path | None, str], _Key] = field(default_factory=dict[tuple["Path | None", str], _Key])
    files: dict[Path, _LockFile] = field(default_factory=dict["Path", _LockFile])


@lru_cache(maxsize=1)
def _process_locks(process: int) -> _ProcessLocks:  # noqa: ARG001 -- a forked process holds no lock of its parent's
    return _ProcessLocks()


@asynccontextmanager
async def exclusive_key(key: str, folder: Path | None) -> AsyncGenerator[bool, None]:
    """Lock a key exclusively; yield whether the lock excludes other processes, too.

    Args:
        key: The key.
        folder: The folder of the lock file, shared by processes of this machine. None: there is none.
    """
    # fcntl locks belong to a process, so coroutines of this one exclude each other by an asyncio lock.
    keys = _process_locks(os.getpid()).keys
    entry = keys.setdefault((folder, key), _Key())
    entry.users += 1
    try:
        async with entry.lock:
            if folder is None or sys.platform == "win32":
                yield False
            else:
                async with _byte_lock(folder, key) as excludes_others:
                    yield excludes_others
    finally:
        entry.users -= 1
        if not entry.users:
            del keys[folder, key]


if sys.platform != "win32":  # pragma: no branch -- another system has no such locks

    @asynccontextmanager
    async def _byte_lock(folder: Path, key: str) -> AsyncGenerator[bool, None]:
        """Lock the byte of a key; yield False where that is impossible. Keys with the same byte wait for each other."""
        # fcntl locks ranges of bytes, even beyond the end of a file, so that one file serves all keys. Seven bytes of a
        # digest fit a signed 64-bit offset.
        offset = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        try:
            file = _open_lock_file(folder)
        except OSError:
            yield False
            return
        file.users += 1
        try:
            yield await _lock_byte(file.handle, offset)
        finally:
            with suppress(OSError):
                fcntl.lockf(file.handle, fcntl.LOCK_UN, 1, offset)
            file.users -= 1
            if not file.users:
                _close_lock_file(folder, file)

    async def _lock_byte(handle: int, offset: int) -> bool:
        """Wait until a byte is locked; return False where a file system has no locks."""
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except (BlockingIOError, PermissionError):  # noqa: PERF203 -- it waits anyway
                await asyncio.sleep(LOCK_POLL_S)  # the kernel does not notify of a released lock
            except OSError:  # pragma: no cover -- such as NFS without its lock daemon, which no test can set up
                return False
            else:
                return True

    def _open_lock_file(folder: Path) -> _LockFile:
        files, path = _process_locks(os.getpid()).files, f"{folder}/{LOCK_FILE}"
        # A lock file that was removed has no effect any more: open the new one.
        if folder not in files or not files[folder].is_at(path):
            folder.mkdir(parents=True, exist_ok=True)
            files[folder] = _LockFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        return files[folder]

    def _close_lock_file(folder: Path, file: _LockFile) -> None:
        # Another handle may have replaced it, if the lock file was removed.
        files = _process_locks(os.getpid()).files
        if files.get(folder) is file:
            del files[folder]
        os.close(file.handle)


ANSWER_POLL_S = 1.0
"""Seconds between two checks whether a run on another machine has stored the answer."""


@dataclass(frozen=True)
class ResultLocation:
    """Location of the answer of a task run."""

    store: ResultStore
    key: str
    expiration: timedelta | None
    """How long the answer may be reused; None: without limit."""

    @classmethod
    def from_transaction(cls, transaction: BaseTransaction, lasts: timedelta | None) -> ResultLocation:
        """Return the location that Prefect uses for a task run, and checks before the next one."""
        return cls(cast("ResultStore", transaction.store), cast("str", transaction.key), lasts)

    @cached_property
    def blobs(self) -> BlobStore:
        """The blob store."""
        return BlobStore(cast("WritableFileSystem", self.store.result_storage))

    def to_record(self, answer: Answer) -> bytes:
        """Return an answer as Prefect would store it, whichever serializer the task run has."""
        storage, key = self.store.result_storage, self.key
        # Prefect stores absolute keys for a local folder without a block.
        if isinstance(storage, LocalFileSystem) and self.store.result_storage_block_id is None:
            key = str(cast("Path", self.blobs.folder) / key)
        return result_record(
            answer,
            AnswerSerializer(),
            storage_key=key,
            storage_block=self.store.result_storage_block_id,
            expiration=datetime.now(timezone.utc) + self.expiration if self.expiration else None,
        )


class CancelledBeforeSendError(Exception):
    """The work was cancelled before a request was sent."""


async def get_or_compute(
    place: ResultLocation, work: WorkItem, ask: Callable[[Checkpoint], Awaitable[Answer]], *, call_s: float, again: bool
) -> tuple[Answer, bool]:
    """Return the answer to some work, and whether it was stored before.

    Args:
        place: The location of the answer.
        work: The work.
        ask: Computes the answer.
        call_s: Seconds that a call may take, at most.
        again: Whether to ask even where an answer is stored.

    Raises:
        ExecutorError: If there is no valid answer, or the storage can't be used: then no request is sent.
        CancelledBeforeSendError: If `ask` raises it before it has sent anything.
    """
    blobs = place.blobs
    async with exclusive_key(place.key, blobs.folder) as excludes_others:
        prepared: list[StoredCheckpoint] = []

        def take_snapshot() -> StoreSnapshot:
            snapshot = StoreSnapshot.take(blobs, place.key)
            if excludes_others and (again or snapshot.answer is None):
                prepared.append(prewrite(blobs, place.key, work.fingerprint, snapshot, call_s=call_s))
            return snapshot

        try:
            while True:
                # 1. Return the stored answer, if it may be used.
                snapshot = await run_in_pool(take_snapshot)
                if not again and (answer := validate_stored(parse_record(snapshot.answer), work)):
                    return answer, True
                # 2. Else ask; the checkpoint records the replies. There is none while a run on another machine asks.
                checkpoint = prepared[-1] if prepared else None
                checkpoint = checkpoint or await open_checkpoint(
                    blobs, place.key, work.fingerprint, snapshot, alone=excludes_others, call_s=call_s
                )
                with suppress(TakenError):
                    if checkpoint is not None:
                        answer = await _ask(ask, checkpoint)
                        await _store(place, answer, checkpoint)
                        return answer, False
                # 3. Wait for that run.
                await asyncio.sleep(ANSWER_POLL_S)
        finally:
            for each in prepared:  # also if it was cancelled during the snapshot
                each.delete_if_unused()


async def _ask(ask: Callable[[Checkpoint], Awaitable[Answer]], checkpoint: StoredCheckpoint) -> Answer:
    try:
        return await ask(checkpoint)
    except CancelledBeforeSendError:
        await checkpoint.release()
        raise


async def _store(place: ResultLocation, answer: Answer, checkpoint: StoredCheckpoint) -> None:
    """Store an answer; if that fails, warn and return normally: the answer is valid, and its checkpoint may hold it."""

    def store() -> None:
        place.blobs.write(place.key, place.to_record(answer))
        checkpoint.complete()

    try:
        await run_in_pool(store)
    except TransientError as error:
        get_run_logger().warning("An answer could not be stored, so that it may be paid for again. %s", error)
        await checkpoint.flush()
