"""Drafts: what was paid for is on the disk before anybody looks at it.

A draft stands beside the place of an answer from the first call until the answer is stored.
It holds every reply, and whether a call is under way. A run that dies leaves it behind;
the next one that does the same work reads the replies there, asks for the rest,
and counts a call of which nobody knows what became.

Where no lock of the kernel's keeps others out (see `holds`), the draft does: it names
its owner, and until when to believe it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from prefect_dispatch.errors import TransientError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.models import Usage
from prefect_dispatch.strict import Frozen
from prefect_dispatch.tasks.loop import first_in_thread, in_thread
from prefect_dispatch.tasks.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.tasks.shelf import Shelf

SUFFIX = ".draft"
LEASE_S = 60.0
"""How long a draft names its owner beyond the time limit of the call that it waits for."""
SETTLES = 3.0
"""How many times longer than this process another one may take to write its draft after it has looked."""


class TakenError(TransientError):
    """Somebody else is at the same work by now; nothing was sent."""


class _Kept(Frozen):
    """A reply, and which of the executor's tiers gave it."""

    tier: int
    reply: Reply


class Left(Frozen):
    """A draft as it is stored."""

    draft_of: str
    """The fingerprint of the work."""
    before: str
    """The digest of what was stored as its answer when the draft was begun; once that changes, the draft is void."""
    owner: Owner
    until: float
    """Seconds since the epoch; until then its owner is at work."""
    pending: bool = False
    """Whether a call is under way."""
    lost: int = Field(default=0, ge=0)
    """Calls that were under way when their runs died."""
    replies: tuple[_Kept, ...] = ()


class KeptDraft:
    """A draft of this process; see `asking.Draft`."""

    def __init__(self, shelf: Shelf, key: str, record: Left, *, alone: bool, call_s: float) -> None:
        """Keep where it stands, what it holds, whether a lock keeps others out, and how long a call may take."""
        self._shelf, self._key, self._record = shelf, key, record
        self._alone, self._call_s = alone, call_s
        self._taken = self._unkept = False

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
            TakenError: If another run has begun the same meanwhile.
            TransientError: If it can't be noted: then nothing that comes could be kept, either.
        """
        if not self._alone:
            found = await in_thread(_read, self._shelf, self._key)
            self._taken = self._taken or (found is not None and found.owner.at_work(found.until))
        if self._taken:
            raise TakenError("Another run asks the same at this moment.", kind="taken", usage=Usage())
        await self._write(first=True, pending=True)

    async def hear(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Take a reply, or that the call brought none; keep it at once, or with whatever is kept next."""
        kept = self._record.replies if reply is None else (*self._record.replies, _Kept(tier=tier, reply=_plain(reply)))
        self._record = self._record.model_copy(update={"pending": False, "replies": kept})
        self._unkept = True
        if at_once:
            await self.keep()

    async def keep(self) -> None:
        """Keep what was heard and isn't kept yet."""
        if self._unkept:
            with suppress(TransientError):  # it is still in the memory
                await self._write()

    async def leave(self) -> None:
        """Leave the work to others, as nothing was sent."""
        if not self._alone:
            with suppress(TransientError):
                await self._write(until=0.0)

    async def end(self, *, settled: bool) -> None:
        """Forget what was heard, as the attempt failed and its spending is told; keep the replies if not settled."""
        if self._taken:
            return
        with suppress(TransientError):  # why the attempt failed matters more
            if settled:
                await in_thread(self._shelf.remove, self._key)
            else:
                told = tuple(_Kept(tier=each.tier, reply=_free(each.reply)) for each in self._record.replies)
                await self._write(pending=False, replies=told, lost=0, until=0.0)

    def done(self) -> None:
        """Take it away, as the answer is stored.

        Where no lock keeps others out, it stays: somebody may have looked for the answer before it was there, and
        would find neither. It is void already.

        Raises:
            TransientError: If that can't be done.
        """
        if self._alone:
            self._shelf.remove(self._key)

    async def _write(self, *, first: bool = False, **changed: object) -> None:
        if self._taken:  # it is another run's
            return
        until = time.time() + self._call_s + LEASE_S
        self._record = self._record.model_copy(update={"until": until, **changed})
        lasting = bool(self._record.replies)  # that a call is under way may be forgotten where the power fails
        thread = first_in_thread if first else in_thread
        await thread(self._shelf.write, self._key, _bytes(self._record), lasting=lasting)
        self._unkept = False


class Look(NamedTuple):
    """What stood in the place of an answer at some time."""

    at: float
    """When, by the monotonic clock."""
    answer: bytes | None
    """What stood under its key."""
    draft: Left | None
    """The draft beside it."""

    @classmethod
    def now(cls, shelf: Shelf, key: str) -> Look:
        """Look.

        Raises:
            TransientError: If the storage can't be used.
        """
        return cls(time.monotonic(), shelf.read(key), _read(shelf, key + SUFFIX))


async def begun(shelf: Shelf, key: str, work: str, look: Look, *, alone: bool, call_s: float) -> KeptDraft | None:
    """Return the draft of some work, its replies by a run that died included; None if another run is at it.

    Args:
        shelf: Where answers are stored.
        key: The key of the answer.
        work: The fingerprint of the work.
        look: What stands in its place.
        alone: Whether a lock keeps others out.
        call_s: How long a call may take.

    Raises:
        TransientError: If the storage can't be used.
    """
    key, before = key + SUFFIX, hashlib.sha256(look.answer or b"").hexdigest()
    found = look.draft
    mine = Left(draft_of=work, before=before, owner=Owner.here(), until=time.time() + LEASE_S)
    if found is not None and found.draft_of == work and found.before == before:
        if not alone and found.owner.at_work(found.until):
            return None
        mine = mine.model_copy(update={"replies": found.replies, "lost": found.lost + found.pending})
    if not alone:
        await in_thread(shelf.write, key, _bytes(mine))
        # Whoever looked before this was written, writes now.
        await asyncio.sleep(SETTLES * (time.monotonic() - look.at))
        found = await in_thread(_read, shelf, key)
        if found is None or found.owner != mine.owner:
            return None
    return KeptDraft(shelf, key, mine, alone=alone, call_s=call_s)


def was_sent(shelf: Shelf, key: str) -> bool:
    """Return whether the draft beside an answer's place tells of a call.

    Raises:
        TransientError: If the storage can't be used.
    """
    found = _read(shelf, key + SUFFIX)
    return found is not None and (found.pending or bool(found.replies))


def _read(shelf: Shelf, key: str) -> Left | None:
    try:
        return Left.model_validate(json.loads(shelf.read(key) or b""))
    except (ValueError, RecursionError):  # cut off, or somebody else's
        return None


def _bytes(record: Left) -> bytes:
    return json.dumps(record.model_dump(mode="json")).encode()  # pydantic's own writer refuses half characters


def _plain(reply: Reply) -> Reply:
    """Return a reply as it can be stored: without a value that nobody could use."""
    return reply.model_copy(update={"value": None}) if flaw(reply.value) else reply


def _free(reply: Reply) -> Reply:
    """Return a reply whose spending is told elsewhere."""
    return reply.model_copy(update={"usage": Usage()})
