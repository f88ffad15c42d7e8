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
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect_dispatch.errors import TransientError
from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.models import Usage
from prefect_dispatch.tasks.draft_records import SUFFIX, Kept, Left, read, state, until
from prefect_dispatch.tasks.loop import first_in_thread, in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Reply
    from prefect_dispatch.tasks.draft_records import Look
    from prefect_dispatch.tasks.shelf import Shelf

SETTLES = 3.0
"""How many times longer than this process another one may take to write its draft after it has looked."""


class TakenError(TransientError):
    """Somebody else is at the same work by now; nothing was sent."""


class KeptDraft:
    """A draft of this process; see `asking.Draft`."""

    def __init__(
        self, shelf: Shelf, key: str, record: Left, *, alone: bool, call_s: float, ready: int | None = None
    ) -> None:
        """Keep where it stands and what it holds.

        Args:
            shelf: Where it stands.
            key: Its key.
            record: What it holds.
            alone: Whether a lock keeps others out.
            call_s: How long a call may take.
            ready: Where in it stands what changes when a call is sent, if it is written but for that.
        """
        self._shelf, self._key, self._record = shelf, key, record
        self._alone, self._call_s, self._ready = alone, call_s, ready
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
            found = await in_thread(read, self._shelf, self._key)
            self._taken = self._taken or (found is not None and found.owner.at_work(found.until))
        if self._taken:
            raise TakenError("Another run asks the same at this moment.", kind="taken", usage=Usage())
        if not self._marked():
            await self._write(first=True, pending=True)

    def _marked(self) -> bool:
        """Return whether the call could be noted in what is written already; others wait for it with their calls."""
        if self._ready is None:
            return False
        at, self._ready = self._ready, None
        lasts = until(self._call_s)
        if marked := self._shelf.amend(self._key, at, state(lasts, pending=True)):
            self._record = self._record.model_copy(update={"until": lasts, "pending": True})
        return marked

    async def hear(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Take a reply, or that the call brought none; keep it at once, or with whatever is kept next."""
        kept = self._record.replies if reply is None else (*self._record.replies, Kept(tier=tier, reply=_plain(reply)))
        self._record = self._record.model_copy(update={"pending": False, "replies": kept})
        self._unkept = True
        if at_once:
            await self.keep()

    async def keep(self) -> None:
        """Keep what was heard and isn't kept yet."""
        if self._unkept:
            with suppress(TransientError):  # it is still in the memory
                await self._write()

    def drop(self) -> None:
        """Take it away if no call was sent, and none before."""
        if self._ready is not None and not self._record.replies and not self._record.lost:
            with suppress(TransientError):
                self._shelf.remove(self._key)

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
                self._record = self._record.told
                await self._write(until=0.0)

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
        self._record = self._record.model_copy(update={"until": until(self._call_s), **changed})
        thread = first_in_thread if first else in_thread
        await thread(self._shelf.write, self._key, self._record.content, lasting=self._record.lasting)
        self._unkept, self._ready = False, None


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
    mine, found = Left.begun(work, look)
    if found and not alone and found.owner.at_work(found.until):
        return None
    key += SUFFIX
    if not alone:
        await in_thread(shelf.write, key, mine.content)
        # Whoever looked before this was written, writes now.
        await asyncio.sleep(SETTLES * (time.monotonic() - look.at))
        found = await in_thread(read, shelf, key)
        if found is None or found.owner != mine.owner:
            return None
    return KeptDraft(shelf, key, mine, alone=alone, call_s=call_s)


def ready(shelf: Shelf, key: str, work: str, look: Look, *, call_s: float) -> KeptDraft:
    """Return the same where a lock keeps others out, written but for whether a call is under way.

    So that but a few bytes are left to be written once its turn has come, and while others wait for theirs.

    Raises:
        TransientError: If it can't be written.
    """
    mine, _ = Left.begun(work, look)
    content = mine.content
    shelf.write(key + SUFFIX, content, lasting=mine.lasting)
    at = content.index(state(mine.until, pending=False))
    return KeptDraft(shelf, key + SUFFIX, mine, alone=True, call_s=call_s, ready=at)


def _plain(reply: Reply) -> Reply:
    """Return a reply as it can be stored: without a value that nobody could use."""
    return reply.model_copy(update={"value": None}) if flaw(reply.value) else reply
