"""A draft as it is stored, and what stands in the place of an answer."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from prefect.logging import get_logger
from pydantic import Field

from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models import Usage
from prefect_dispatch.strict import Frozen
from prefect_dispatch.tasks.owners import Owner

if TYPE_CHECKING:
    from prefect_dispatch.tasks.shelf import Shelf

SUFFIX = ".draft"
LEASE_S = 60.0
"""How long a draft names its owner beyond the time limit of the call that it waits for."""


class Kept(Frozen):
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
    replies: tuple[Kept, ...] = ()
    sha256: str = ""
    """The checksum of the replies as they are stored; empty in a draft without replies, and in older ones."""

    @property
    def content(self) -> bytes:
        """The bytes that are stored."""
        record = self.model_dump(mode="json", exclude={"sha256"})
        if self.replies:
            record["sha256"] = _checksum(record["replies"])
        return json.dumps(record).encode()  # pydantic's own writer refuses half characters

    @property
    def told(self) -> Left:
        """The same once what was spent on it is told: its replies are kept, and free."""
        replies = tuple(Kept(tier=each.tier, reply=_free(each.reply)) for each in self.replies)
        return self.model_copy(update={"pending": False, "replies": replies, "lost": 0, "until": 0.0})

    @property
    def lasting(self) -> bool:
        """Whether it has to outlive a power cut; that a call is under way may be forgotten there."""
        return bool(self.replies)

    @classmethod
    def begun(cls, work: str, look: Look) -> tuple[Left, Left | None]:
        """Return the draft of some work as it begins here, and the one that it goes on from, if there is one.

        Args:
            work: The fingerprint of the work.
            look: What stands in its place.
        """
        found, before = look.draft, hashlib.sha256(look.answer or b"").hexdigest()
        mine = cls(draft_of=work, before=before, owner=Owner.here(), until=until(0.0))
        if found is None or found.draft_of != work or found.before != before:
            return mine, None
        return mine.model_copy(update={"replies": found.replies, "lost": found.lost + found.pending}), found


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
        return cls(time.monotonic(), shelf.read(key), read(shelf, key + SUFFIX))


def until(call_s: float) -> float:
    """Return until when to believe that somebody is at work who waits for a call so long, in whole seconds."""
    return float(int(time.time() + call_s + LEASE_S))


def state(until_s: float, *, pending: bool) -> bytes:
    """Return what changes in a stored draft when a call is sent, as long before as after.

    Example:
        >>> state(1796000000.0, pending=True)
        b'"until": 1796000000.0, "pending": true '
    """
    return f'"until": {until_s}, "pending": {"true " if pending else "false"}'.encode()


def read(shelf: Shelf, key: str) -> Left | None:
    """Return the draft that stands under a key, or None: cut off, or somebody else's.

    Raises:
        TransientError: If the storage can't be used.
    """
    try:
        record = json.loads(shelf.read(key) or b"")
        found = Left.model_validate(record)
        if not found.sha256 or _checksum(record["replies"]) == found.sha256:
            return found
    except (ValueError, RecursionError):
        return None
    get_logger("prefect_dispatch").warning("Replies that an earlier run left are damaged; they are asked for again.")
    return found.model_copy(update={"replies": (), "sha256": ""})


def _checksum(replies: object) -> str:
    return hashlib.sha256(json.dumps(replies).encode()).hexdigest()


def was_sent(shelf: Shelf, key: str) -> bool:
    """Return whether the draft beside an answer's place tells of a call.

    Raises:
        TransientError: If the storage can't be used.
    """
    found = read(shelf, key + SUFFIX)
    return found is not None and (found.pending or bool(found.replies))


def _free(reply: Reply) -> Reply:
    """Return a reply whose spending is told elsewhere."""
    return reply.model_copy(update={"usage": Usage()})
