"""Drafts: what was paid for is on the disk before anybody looks at it.

A draft stands beside the place of an answer from the first call until the answer is stored.
It holds every reply, and whether a call is under way. A run that dies leaves it behind;
the next one that does the same work reads the replies there, asks for the rest,
and counts a call of which nobody knows what became.

Where no lock of the kernel's shows that somebody is at work (see `holds`), the draft does: it names
its owner, and until when to believe it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import sys
import time
from functools import cache
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import ValidationError

from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.models import Usage
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.holds import CAN_LOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.tasks.shelf import Shelf

SUFFIX = ".draft"
LEASE_S = 60.0
"""How long a draft names its owner beyond the time limit of the call that it waits for."""


class _Kept(Strict):
    """A reply, and which of the executor's tiers gave it."""

    tier: int
    reply: Reply


class _Record(Strict):
    """A draft as it is stored."""

    draft_of: str
    """The fingerprint of the work."""
    before: str
    """The digest of what was stored as its answer when the draft was begun; once that changes, the draft is void."""
    owner: str
    until: float
    """Seconds since the epoch; until then its owner is at work."""
    pending: bool = False
    """Whether a call is under way."""
    lost: int = 0
    """Calls that were under way when their runs died."""
    replies: tuple[_Kept, ...] = ()


class KeptDraft:
    """A draft of this process; see `asking.Draft`."""

    def __init__(self, shelf: Shelf, key: str, record: _Record, call_s: float) -> None:
        """Keep where it stands, what it holds, and how long a call may take."""
        self._shelf, self._key, self._record, self._call_s = shelf, key + SUFFIX, record, call_s

    @property
    def lost(self) -> int:
        """Calls that were sent by runs that died before they heard."""
        return self._record.lost

    def heard(self, tier: int) -> Sequence[Reply]:
        """Return what an executor said to a run that died before it had an answer."""
        return [kept.reply for kept in self._record.replies if kept.tier == tier]

    async def send(self) -> None:
        """Note that a call is sent now.

        Raises:
            TransientError: If that can't be stored, or another run has begun the same meanwhile; nothing was sent.
        """
        if _leased(self._shelf) and self._record.until < time.time() and await self._taken():
            raise TransientError("Another run asks the same at this moment.", kind="taken", usage=Usage())
        await self._write(pending=True)

    async def hear(self, tier: int, reply: Reply | None) -> None:
        """Keep a reply, or that the call brought none."""
        kept = self._record.replies if reply is None else (*self._record.replies, _Kept(tier=tier, reply=_plain(reply)))
        # Cancelled or not: what came is stored.
        await asyncio.shield(asyncio.ensure_future(self._write(pending=False, replies=kept)))

    async def end(self, *, settled: bool) -> None:
        """Forget what was heard, as the attempt failed and its spending is told; keep the replies if not settled."""
        if settled:
            await asyncio.to_thread(self._shelf.remove, self._key)
        else:
            told = tuple(_Kept(tier=each.tier, reply=_free(each.reply)) for each in self._record.replies)
            await self._write(pending=False, replies=told, lost=0, until=0.0)

    async def done(self) -> None:
        """Take it away, as the answer is stored; void it is already."""
        if not _leased(self._shelf):
            await asyncio.to_thread(self._shelf.remove, self._key)

    async def _taken(self) -> bool:
        found = await asyncio.to_thread(_read, self._shelf, self._key)
        return found is not None and _at_work(found)

    async def _write(self, **changed: object) -> None:
        until = time.time() + self._call_s + LEASE_S
        self._record = self._record.model_copy(update={"until": until, **changed})
        content = self._record.model_dump_json().encode()
        await asyncio.to_thread(self._shelf.write, self._key, content)


async def begun(shelf: Shelf, key: str, work: str, *, answered: bytes | None, call_s: float) -> KeptDraft | None:
    """Return the draft of some work, its replies by a run that died included; None if another run is at it.

    Args:
        shelf: Where answers are stored.
        key: The key of the answer.
        work: The fingerprint of the work.
        answered: What stands under the key now.
        call_s: How long a call may take.
    """
    return await asyncio.to_thread(_begun, shelf, key, work, answered, call_s)


def _begun(shelf: Shelf, key: str, work: str, answered: bytes | None, call_s: float) -> KeptDraft | None:
    before = hashlib.sha256(answered or b"").hexdigest()
    found = _read(shelf, key + SUFFIX)
    mine = _Record(draft_of=work, before=before, owner=_owner(), until=time.time() + LEASE_S)
    if found is not None and found.draft_of == work and found.before == before:
        if _leased(shelf) and _at_work(found):
            return None
        mine = mine.model_copy(update={"replies": found.replies, "lost": found.lost + found.pending})
    if _leased(shelf):
        shelf.write(key + SUFFIX, mine.model_dump_json().encode())
        again = _read(shelf, key + SUFFIX)
        if again is None or again.owner != _owner():  # both wrote; the other was later
            return None
    return KeptDraft(shelf, key, mine, call_s)


def _read(shelf: Shelf, key: str) -> _Record | None:
    try:
        return _Record.model_validate_json(shelf.read(key) or b"")
    except ValidationError:  # cut off, or somebody else's
        return None


def _leased(shelf: Shelf) -> bool:
    return shelf.folder is None or not CAN_LOCK


def _at_work(record: _Record) -> bool:
    """Return whether another process is to be believed that it is at work."""
    if record.owner == _owner() or record.until < time.time():
        return False
    host, process, _ = record.owner.rsplit("/", 2)
    return host != platform.node() or (process != str(os.getpid()) and _is_alive(int(process)))


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return True  # to ask would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _plain(reply: Reply) -> Reply:
    """Return a reply as it can be stored: without a value that nobody could use."""
    return reply.model_copy(update={"value": None}) if flaw(reply.value) else reply


def _free(reply: Reply) -> Reply:
    """Return a reply whose spending is told elsewhere."""
    return reply.model_copy(update={"usage": Usage()})


@cache
def _named(process: int) -> str:
    return f"{platform.node()}/{process}/{uuid4().hex}"


def _owner() -> str:
    return _named(os.getpid())  # a forked process is somebody else
