"""Checkpoints: replies are stored before they are used, so that a crash loses nothing that was paid for.

A checkpoint is stored beside the key of an answer from the first call until the answer is stored.
It holds every reply, and whether a call is pending. A run that dies leaves it behind;
the next one that does the same work takes the replies over, asks for the rest,
and counts a call with unknown result.

Where no lock of the kernel's excludes other runs (see `exclusive_key`), the checkpoint acts as a lease: it names
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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from prefect.logging import get_logger
from pydantic import Field

from prefect_dispatch.calls.attempt import Checkpoint
from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models.base import Frozen, Strict
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.serialization.json_text import find_json_problem
from prefect_dispatch.tasks.event_loop import run_in_pool, run_in_pool_urgent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.tasks.storage.result_store import BlobStore


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
        record = self.model_dump(mode="json", exclude={"sha256"})
        if self.replies:
            record["sha256"] = _checksum(record["replies"])
        return json.dumps(record).encode()  # pydantic's own writer refuses half characters

    @property
    def with_usage_reported(self) -> CheckpointRecord:
        """A copy whose usage has been reported: its replies are kept, and cost nothing."""
        replies = tuple(StoredReply(tier=each.tier, reply=_without_usage(each.reply)) for each in self.replies)
        return self.model_copy(update={"pending": False, "replies": replies, "lost": 0, "until": 0.0})

    @property
    def is_durable(self) -> bool:
        """Whether it has to be durable beyond a power failure; that a call is pending need not be."""
        return bool(self.replies)

    @classmethod
    def start(cls, work: str, look: StoreSnapshot) -> tuple[CheckpointRecord, CheckpointRecord | None]:
        """Return a new checkpoint of some work, and the one that it continues, if there is one.

        Args:
            work: The fingerprint of the work.
            look: What is stored for the work.
        """
        earlier, answer_digest = look.checkpoint, hashlib.sha256(look.answer or b"").hexdigest()
        new = cls(draft_of=work, before=answer_digest, owner=ProcessIdentity.current(), until=lease_expiry(0.0))
        # A checkpoint of other work, or from before the stored answer changed, is void.
        if earlier is None or earlier.draft_of != work or earlier.before != answer_digest:
            return new, None
        return new.model_copy(update={"replies": earlier.replies, "lost": earlier.lost + earlier.pending}), earlier


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


def pending_bytes(until_s: float, *, pending: bool) -> bytes:
    """Return the part of a stored checkpoint that changes when a call is sent; its length is the same before and after.

    Example:
        >>> pending_bytes(1796000000.0, pending=True)
        b'"until": 1796000000.0, "pending": true '
    """
    return f'"until": {until_s}, "pending": {"true " if pending else "false"}'.encode()


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


def _without_usage(reply: Reply) -> Reply:
    """Return a reply without its usage, which is reported elsewhere."""
    return reply.model_copy(update={"usage": Usage()})


SETTLE_FACTOR = 3.0
"""How many times longer than this process another one may take to write its checkpoint after its snapshot."""


class TakenError(TransientError):
    """Another run does the same work by now; nothing was sent."""


class StoredCheckpoint(Checkpoint):
    """Stored checkpoint of this process."""

    def __init__(
        self,
        blobs: BlobStore,
        key: str,
        record: CheckpointRecord,
        *,
        alone: bool,
        call_s: float,
        ready: int | None = None,
    ) -> None:
        """Keep the checkpoint and its location.

        Args:
            blobs: The store of answers.
            key: The checkpoint's key.
            record: Its content.
            alone: Whether a lock excludes other runs.
            call_s: Seconds that a call may take, at most.
            ready: The offset in its stored bytes of what changes when a call is sent, if it was written in advance.
        """
        self._blobs, self._key, self._record = blobs, key, record
        self._exclusive, self._call_s, self._pending_offset = alone, call_s, ready
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
        # 2. Record the call before it is sent: by a patch if the checkpoint is prewritten, else by a write.
        if not self._patch_pending():
            await self._write(first=True, pending=True)

    def _patch_pending(self) -> bool:
        """Patch the checkpoint that was written in advance; return whether it could be patched. Fast, as calls wait."""
        if self._pending_offset is None:
            return False
        at, self._pending_offset = self._pending_offset, None
        expires = lease_expiry(self._call_s)
        if marked := self._blobs.patch(self._key, at, pending_bytes(expires, pending=True)):
            self._record = self._record.model_copy(update={"until": expires, "pending": True})
        return marked

    async def record_reply(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Record a reply, or that a call brought none.

        Args:
            tier: The tier of the executor.
            reply: The reply. None: there was none.
            at_once: Whether to store it at once, or with the next write.
        """
        replies = (
            self._record.replies
            if reply is None
            else (*self._record.replies, StoredReply(tier=tier, reply=_storable(reply)))
        )
        self._record = self._record.model_copy(update={"pending": False, "replies": replies})
        self._dirty = True
        if at_once:
            await self.flush()

    async def flush(self) -> None:
        """Store the replies that are not stored yet."""
        if self._dirty:
            with suppress(TransientError):  # the reply is still in memory
                await self._write()

    def delete_if_unused(self) -> None:
        """Delete the checkpoint if no call was sent, by this run or an earlier one."""
        if self._pending_offset is not None and not self._record.replies and not self._record.lost:
            with suppress(TransientError):
                self._blobs.remove(self._key)

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
                await run_in_pool(self._blobs.remove, self._key)
            else:
                self._record = self._record.with_usage_reported
                await self._write(until=0.0)

    def complete(self) -> None:
        """Delete the checkpoint, as the answer is stored.

        Where no lock excludes other runs, it stays: another run may have looked for the answer before it was stored,
        and would find neither. It is void already.

        Raises:
            TransientError: If that can't be done.
        """
        if self._exclusive:
            self._blobs.remove(self._key)

    async def _write(self, *, first: bool = False, **changed: object) -> None:
        if self._lost_lease:  # the stored checkpoint is another run's
            return
        # Each write renews the lease.
        self._record = self._record.model_copy(update={"until": lease_expiry(self._call_s), **changed})
        call_in_pool = run_in_pool_urgent if first else run_in_pool
        await call_in_pool(self._blobs.write, self._key, self._record.content, durable=self._record.is_durable)
        self._dirty, self._pending_offset = False, None


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
    new, current = CheckpointRecord.start(work, look)
    # 1. Respect a valid lease.
    if current and not alone and current.owner.holds_lease(current.until):
        return None
    key += SUFFIX
    # 2. Without a lock, write a lease of our own, and give time to any run that took its snapshot before this write:
    #    it writes its lease now. The last one that was written is valid.
    if not alone:
        await run_in_pool(blobs.write, key, new.content)
        await asyncio.sleep(SETTLE_FACTOR * (time.monotonic() - look.taken_at))
        current = await run_in_pool(load_checkpoint, blobs, key)
        if current is None or current.owner != new.owner:
            return None
    return StoredCheckpoint(blobs, key, new, alone=alone, call_s=call_s)


def prewrite(blobs: BlobStore, key: str, work: str, look: StoreSnapshot, *, call_s: float) -> StoredCheckpoint:
    """Return a checkpoint where a lock excludes other runs, written in advance but for whether a call is pending.

    So only a few bytes are left to be written once the call has its place, while other calls wait for theirs.

    Raises:
        TransientError: If it can't be written.
    """
    new, _ = CheckpointRecord.start(work, look)
    content = new.content
    blobs.write(key + SUFFIX, content, durable=new.is_durable)
    # The offset of the bytes to patch.
    at = content.index(pending_bytes(new.until, pending=False))
    return StoredCheckpoint(blobs, key + SUFFIX, new, alone=True, call_s=call_s, ready=at)


def _storable(reply: Reply) -> Reply:
    """Return a reply as it can be stored: without a value that is not valid JSON."""
    return reply.model_copy(update={"value": None}) if find_json_problem(reply.value) else reply
