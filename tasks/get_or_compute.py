"""Get-or-compute of answers: read the stored one, or compute it under an exclusive lock and store it at once.

Replies are stored in a checkpoint before they are used, so that a crash loses nothing that was paid for. A checkpoint
is stored beside the key of an answer from the first call until the answer is stored. It holds every reply, and whether
a call is pending. A run that dies leaves it behind; the next one that does the same work takes the replies over, asks
for the rest, and counts a call with unknown result.

Where no lock of the kernel's excludes other runs (see `ExclusiveKey`), the checkpoint acts as a lease: it names
its owner, and when the lease expires.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast
from uuid import uuid4
from weakref import WeakValueDictionary, finalize

from prefect.filesystems import LocalFileSystem
from prefect.logging import get_logger, get_run_logger
from pydantic import Field

from prefect_dispatch.calls.attempt import Checkpoint
from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models.base import Frozen, Strict
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.prefect_compat import result_record
from prefect_dispatch.serialization.json_text import find_json_problem
from prefect_dispatch.tasks.event_loop import run_in_pool
from prefect_dispatch.tasks.result_store import AnswerSerializer, BlobStore, parse_record, validate_stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import timedelta

    from prefect.filesystems import WritableFileSystem
    from prefect.results import ResultStore

    from prefect_dispatch.models.outcome import Answer
    from prefect_dispatch.serialization.durable_files import Change
    from prefect_dispatch.tasks.work_item import WorkItem


if sys.platform != "win32":  # pragma: no branch -- Windows has no such locks
    import fcntl


LOCK_FILE = ".prefect-dispatch.lock"
"""File whose bytes are locked; it stays empty."""


LOCK_POLL_S = 0.2
"""Seconds between two tries to get a lock that another process holds."""


class _LockFile:
    """Open lock file, one for all keys that are locked: closing any handle of it releases every lock of the process."""

    def __init__(self, path: str) -> None:
        """Open it; it is closed with the last reference."""
        self._path = path
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 -- it is a text, see `is_in_place`
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        finalize(self, os.close, self.handle)
        self._status = os.fstat(self.handle)

    def is_in_place(self) -> bool:
        """Return whether it is still the file at its path, where other processes look for it."""
        try:
            return os.path.samestat(self._status, os.stat(self._path))  # noqa: PTH116 -- a third of the time, per item
        except FileNotFoundError:
            return False


# By process, as a forked one holds no lock of its parent's.
_key_locks = WeakValueDictionary[tuple[int, Path | None, str], asyncio.Lock]()
_lock_files = WeakValueDictionary[tuple[int, Path], _LockFile]()


class ExclusiveKey:
    """Exclusive lock of a key, as an asynchronous context manager: whether it excludes other processes.

    It is no generator with `asynccontextmanager`, which takes several times as long, and each item needs one.
    """

    def __init__(self, key: str, folder: Path | None) -> None:
        """Prepare the lock.

        Args:
            key: The key.
            folder: The folder of the lock file, shared by processes of this machine. None: there is none.
        """
        # fcntl locks belong to a process, so coroutines of this one exclude each other by an asyncio lock.
        self._lock = _key_locks.setdefault((os.getpid(), folder, key), asyncio.Lock())
        self._byte = None if folder is None or sys.platform == "win32" else _LockedByte(folder, key)

    async def __aenter__(self) -> bool:
        """Wait for the lock."""
        await self._lock.acquire()
        try:
            return self._byte is not None and await self._byte.acquire()
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Release it."""
        if self._byte is not None:
            self._byte.release()
        self._lock.release()


if sys.platform != "win32":  # pragma: no branch -- another system has no such locks

    class _LockedByte:
        """Lock of the byte of a key in the lock file. Keys with the same byte wait for each other."""

        def __init__(self, folder: Path, key: str) -> None:
            self._folder = folder
            # fcntl locks ranges of bytes, even beyond the end of a file, so that one file serves all keys. Seven bytes
            # of a digest fit a signed 64-bit offset.
            self._offset = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
            self._file: _LockFile | None = None

        async def acquire(self) -> bool:
            """Wait until the byte is locked; return False where that is impossible."""
            try:
                self._file = _open_lock_file(self._folder)
            except OSError:
                return False
            while True:
                try:
                    fcntl.lockf(self._file.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset)
                except (BlockingIOError, PermissionError):  # noqa: PERF203 -- it waits anyway
                    await asyncio.sleep(LOCK_POLL_S)  # the kernel does not notify of a released lock
                except OSError:  # pragma: no cover -- such as NFS without its lock daemon, which no test can set up
                    return False
                else:
                    return True

        def release(self) -> None:
            """Unlock the byte, if it is locked."""
            if self._file is not None:
                with suppress(OSError):
                    fcntl.lockf(self._file.handle, fcntl.LOCK_UN, 1, self._offset)

    def _open_lock_file(folder: Path) -> _LockFile:
        place = (os.getpid(), folder)
        file = _lock_files.get(place)
        # A lock file that was removed has no effect any more: open the new one.
        if file is None or not file.is_in_place():
            file = _lock_files[place] = _LockFile(f"{folder}/{LOCK_FILE}")
        return file


MAX_LEASE_S = 2 * 86_400.0
"""Seconds that a lease may extend into the future, at most; a longer one is ignored."""


class ProcessIdentity(Strict):
    """Identity of a process."""

    host: str
    """The machine, and the namespace of its process ids."""
    process: int = Field(gt=0, lt=2**31)
    name: str

    @staticmethod
    def current() -> ProcessIdentity:
        """Return the identity of this process."""
        return _current_process(os.getpid())

    def holds_lease(self, until: float) -> bool:
        """Return whether this is another process that holds a valid lease.

        Args:
            until: When its lease expires, in seconds since the epoch.
        """
        here = ProcessIdentity.current()
        if self == here or not 0 < until - time.time() < MAX_LEASE_S:
            return False
        # Of a process on another machine nothing but its lease is known.
        return self.host != here.host or (self.process != here.process and _is_alive(self.process))


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # pragma: no cover -- os.kill would end it there
        return True
    try:
        with suppress(PermissionError):  # another user's
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@lru_cache(maxsize=1)
def _current_process(process: int) -> ProcessIdentity:
    machine = platform.node()
    with suppress(OSError):  # containers may share a machine's name, and each has process ids of its own
        machine += f" {Path('/proc/self/ns/pid').readlink()}"
    return ProcessIdentity(host=machine, process=process, name=uuid4().hex)  # a forked process is another one


SUFFIX = ".draft"


LEASE_S = 60.0
"""Seconds that a lease lasts beyond the time limit of the call that is waited for."""


class StoredReply(Frozen):
    """Reply, and the executor's fallback tier that gave it."""

    tier: int
    reply: Reply


class CheckpointRecord(Frozen):
    """Checkpoint as it is stored."""

    draft_of: str
    """The fingerprint of the work."""
    before: str
    """The digest of the stored answer when the checkpoint was created; once that changes, the checkpoint is void."""
    owner: ProcessIdentity
    until: float
    """When the owner's lease expires, in seconds since the epoch."""
    pending: bool = False
    """Whether a call is pending."""
    lost: int = Field(default=0, ge=0)
    """Calls that were pending when their runs died."""
    replies: tuple[StoredReply, ...] = ()
    sha256: str = ""
    """The checksum of the replies as they are stored; empty in a checkpoint without replies, and in older ones."""

    @property
    def content(self) -> bytes:
        """The bytes that are stored."""
        if not self.replies:
            return self.model_dump_json(exclude={"sha256"}).encode()
        record = self.model_dump(mode="json", exclude={"sha256"})
        record["sha256"] = _checksum(record["replies"])
        return json.dumps(record).encode()  # pydantic's own writer refuses half characters

    @property
    def with_usage_reported(self) -> CheckpointRecord:
        """A copy whose usage has been reported: its replies are kept, and cost nothing."""
        replies = tuple(
            StoredReply(tier=each.tier, reply=each.reply.model_copy(update={"usage": Usage()})) for each in self.replies
        )
        return self.model_copy(update={"pending": False, "replies": replies, "lost": 0, "until": 0.0})


class StoreSnapshot(NamedTuple):
    """Snapshot of what is stored for some work."""

    taken_at: float
    """When it was taken, by the monotonic clock, in seconds."""
    answer: bytes | None
    """The content under the answer's key."""
    checkpoint: CheckpointRecord | None
    """The checkpoint beside it."""

    @classmethod
    def take(cls, blobs: BlobStore, key: str) -> StoreSnapshot:
        """Take a snapshot.

        Raises:
            TransientError: If the storage can't be used.
        """
        return cls(time.monotonic(), blobs.load(key), load_checkpoint(blobs, key + SUFFIX))


def lease_expiry(call_s: float) -> float:
    """Return when a lease expires that covers a call, in whole seconds since the epoch.

    Args:
        call_s: Seconds that the call may take.
    """
    return float(int(time.time() + call_s + LEASE_S))


def load_checkpoint(blobs: BlobStore, key: str) -> CheckpointRecord | None:
    """Return the checkpoint under a key, or None if it is missing, truncated or foreign.

    Raises:
        TransientError: If the storage can't be used.
    """
    # Where only the checksum of the replies does not match, the counts of calls are kept.
    try:
        record = json.loads(blobs.load(key) or b"")
        checkpoint = CheckpointRecord.model_validate(record)
        if not checkpoint.sha256 or _checksum(record["replies"]) == checkpoint.sha256:
            return checkpoint
    except (ValueError, RecursionError):
        return None
    get_logger("prefect_dispatch").warning("Replies that an earlier run left are damaged; they are asked for again.")
    return checkpoint.model_copy(update={"replies": (), "sha256": ""})


def _checksum(replies: object) -> str:
    return hashlib.sha256(json.dumps(replies).encode()).hexdigest()


def was_sent(blobs: BlobStore, key: str) -> bool:
    """Return whether the checkpoint beside an answer's key records a call.

    Raises:
        TransientError: If the storage can't be used.
    """
    checkpoint = load_checkpoint(blobs, key + SUFFIX)
    return checkpoint is not None and (checkpoint.pending or bool(checkpoint.replies))


SETTLE_FACTOR = 3.0
"""How many times longer than this process another one may take to write its checkpoint after its snapshot."""


class TakenError(TransientError):
    """Another run does the same work by now; nothing was sent."""


class StoredCheckpoint(Checkpoint):
    """Stored checkpoint of this process."""

    def __init__(self, blobs: BlobStore, key: str, record: CheckpointRecord, *, alone: bool, call_s: float) -> None:
        """Keep the checkpoint and its location.

        Args:
            blobs: The store of answers.
            key: The checkpoint's key.
            record: Its content.
            alone: Whether a lock excludes other runs.
            call_s: Seconds that a call may take, at most.
        """
        self._blobs, self._key, self._record = blobs, key, record
        self._exclusive, self._call_s = alone, call_s
        self._lost_lease = self._dirty = False

    @property
    def unanswered_calls(self) -> int:
        """Calls with unknown result: their runs died before they got a reply."""
        return self._record.lost

    def recovered_replies(self, tier: int) -> Sequence[Reply]:
        """Return the replies of an executor's tier to runs that died before they had an answer."""
        return [kept.reply for kept in self._record.replies if kept.tier == tier]

    async def mark_sent(self) -> None:
        """Record that a call is sent now.

        Raises:
            TakenError: If another run has begun the same work by now.
            TransientError: If it can't be recorded: then a reply could not be stored, either.
        """
        # 1. Without a lock, another run may have taken over the lease.
        if not self._exclusive:
            current = await run_in_pool(load_checkpoint, self._blobs, self._key)
            self._lost_lease = self._lost_lease or (current is not None and current.owner.holds_lease(current.until))
        if self._lost_lease:
            raise TakenError("Another run asks the same at this moment.", kind="taken", usage=Usage())
        # 2. Record the call before it is sent.
        await self._write(at_once=True, pending=True)

    async def record_reply(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Record a reply, or that a call brought none.

        Args:
            tier: The tier of the executor.
            reply: The reply. None: there was none.
            at_once: Whether to store it at once, or with the next write.
        """
        replies = self._record.replies
        if reply is not None:
            if find_json_problem(reply.value):  # which can't be stored
                reply = reply.model_copy(update={"value": None})
            replies = (*replies, StoredReply(tier=tier, reply=reply))
        self._record = self._record.model_copy(update={"pending": False, "replies": replies})
        self._dirty = True
        if at_once:
            await self.flush()

    async def flush(self) -> None:
        """Store the replies that are not stored yet."""
        if self._dirty:
            with suppress(TransientError):  # the reply is still in memory
                await self._write()

    async def release(self) -> None:
        """Release the lease, as nothing was sent."""
        if not self._exclusive:
            with suppress(TransientError):
                await self._write(until=0.0)

    async def discard(self, *, settled: bool) -> None:
        """Finish a failed attempt whose usage is reported.

        Args:
            settled: Whether to delete the checkpoint; else its replies are kept for the next run.
        """
        if self._lost_lease:
            return
        with suppress(TransientError):  # why the attempt failed matters more
            if settled:
                await self._blobs.store((self._key, None))
            else:
                self._record = self._record.with_usage_reported
                await self._write(until=0.0)

    @property
    def removal(self) -> Sequence[Change]:
        """The change that removes the checkpoint once the answer is stored.

        Where no lock excludes other runs, it stays: another run may have looked for the answer before it was stored,
        and would find neither. It is void already.
        """
        return [(self._key, None)] if self._exclusive else []

    async def _write(self, *, at_once: bool = False, **changed: object) -> None:
        if self._lost_lease:  # the stored checkpoint is another run's
            return
        # Each write renews the lease. Replies have to be durable beyond a power failure; a pending call need not be.
        self._record = self._record.model_copy(update={"until": lease_expiry(self._call_s), **changed})
        content = self._record.content
        if self._record.replies:
            await self._blobs.store((self._key, content))
        elif at_once and self._blobs.folder:
            self._blobs.write(self._key, content, durable=False)  # quickly, as other calls wait for the slot
        else:
            await run_in_pool(self._blobs.write, self._key, content, durable=False)
        self._dirty = False


async def open_checkpoint(
    blobs: BlobStore, key: str, work: str, look: StoreSnapshot, *, alone: bool, call_s: float
) -> StoredCheckpoint | None:
    """Return a checkpoint for some work, with the replies to runs that died; None if another run does the work.

    Args:
        blobs: The store of answers.
        key: The key of the answer.
        work: The fingerprint of the work.
        look: What is stored for the work.
        alone: Whether a lock excludes other runs.
        call_s: Seconds that a call may take, at most.

    Raises:
        TransientError: If the storage can't be used.
    """
    key += SUFFIX
    # 1. Continue an earlier checkpoint, unless it is of other work, or from before the stored answer changed.
    before, current = hashlib.sha256(look.answer or b"").hexdigest(), look.checkpoint
    new = CheckpointRecord(draft_of=work, before=before, owner=ProcessIdentity.current(), until=lease_expiry(0.0))
    if current and (current.draft_of, current.before) == (work, before):
        # Respect a valid lease.
        if not alone and current.owner.holds_lease(current.until):
            return None
        new = new.model_copy(update={"replies": current.replies, "lost": current.lost + current.pending})
    # 2. Without a lock, write a lease of our own, and give time to any run that took its snapshot before this write:
    #    it writes its lease now. The last one that was written is valid.
    if not alone:
        await run_in_pool(blobs.write, key, new.content)
        await asyncio.sleep(SETTLE_FACTOR * (time.monotonic() - look.taken_at))
        current = await run_in_pool(load_checkpoint, blobs, key)
        if current is None or current.owner != new.owner:
            return None
    return StoredCheckpoint(blobs, key, new, alone=alone, call_s=call_s)


_SERIALIZER = AnswerSerializer()

ANSWER_POLL_S = 1.0
"""Seconds between two checks whether a run on another machine has stored the answer."""


@dataclass(frozen=True)
class ResultLocation:
    """Location of the answer of a task run."""

    store: ResultStore
    key: str
    expiration: timedelta | None
    """How long the answer may be reused; None: without limit."""

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
            _SERIALIZER,
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
    async with ExclusiveKey(place.key, blobs.folder) as excludes_others:
        while True:
            # 1. Return the stored answer, if it may be used.
            snapshot = (
                StoreSnapshot.take(blobs, place.key)
                if blobs.commits
                else await run_in_pool(StoreSnapshot.take, blobs, place.key)
            )
            if not again and (answer := validate_stored(parse_record(snapshot.answer), work)):
                return answer, True
            # 2. Else ask; the checkpoint records the replies. There is none while a run on another machine asks.
            checkpoint = await open_checkpoint(
                blobs, place.key, work.fingerprint, snapshot, alone=excludes_others, call_s=call_s
            )
            if checkpoint is not None:
                try:
                    answer = await ask(checkpoint)
                except TakenError:
                    pass
                except CancelledBeforeSendError:
                    await checkpoint.release()
                    raise
                else:
                    await _store(place, answer, checkpoint)
                    return answer, False
            # 3. Wait for that run.
            await asyncio.sleep(ANSWER_POLL_S)


async def _store(place: ResultLocation, answer: Answer, checkpoint: StoredCheckpoint) -> None:
    """Store an answer; if that fails, warn and return normally: the answer is valid, and its checkpoint may hold it."""
    try:
        await place.blobs.store((place.key, place.to_record(answer)), *checkpoint.removal)
    except TransientError as error:
        get_run_logger().warning("An answer could not be stored, so that it may be paid for again. %s", error)
        await checkpoint.flush()
