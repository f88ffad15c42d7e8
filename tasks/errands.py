"""A shard in another process: what it is told on its way, what it says at its end, and what ends it early.

The fan-out puts a note into the result storage, and takes it away where the run is interrupted. So whoever can store
answers can be stopped, on any machine, and whoever doesn't share the storage is found out before it asks.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple, cast

from prefect.results import get_result_store

from prefect_dispatch.amounts import NOTHING, Amount
from prefect_dispatch.caps import amount_of
from prefect_dispatch.errors import ExecutorError, TerminalError, TransientError
from prefect_dispatch.executors.base import Abrupt
from prefect_dispatch.models import Usage
from prefect_dispatch.tasks.gates import forget, gate_beside
from prefect_dispatch.tasks.loop import in_thread
from prefect_dispatch.tasks.shard_results import WrittenError
from prefect_dispatch.tasks.shelf import Shelf
from prefect_dispatch.tasks.stops import Circuit
from prefect_dispatch.tasks.store import PREFIX

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefect.filesystems import WritableFileSystem

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.tasks.shards import Came

LOOK_S = 1.0
"""How often a shard looks whether it is still wanted."""
GO, HALT = b"go", b"halt"
"""What a note says: go on; begin nothing more. Where there is none, what is under way is to end, too."""


class Sent(NamedTuple):
    """What a shard is told that goes to another process."""

    name: str
    """Its name; no other has it."""
    note: str
    """The name of the note that says whether it is still wanted."""


class Told(NamedTuple):
    """What came of one piece of work, as it travels."""

    work: str
    """Its fingerprint."""
    said: object
    """The answer, or the error."""
    stored: bool = False
    """Whether the answer was stored before."""


class Ended(NamedTuple):
    """What a shard says at its end."""

    told: list[Told]
    """What came, in order of arrival; what isn't in it was not its turn any more."""
    spent: Amount = NOTHING
    """What it took of its share of the budget; a call of which nobody knows counts with what was reserved for it."""
    begun_before: bool = False
    """Whether it was begun before, by a process that is gone: then it did nothing."""


def note_key(name: str) -> str:
    """Return the storage key of the note of a fan-out."""
    return f"{PREFIX}wanted-{name}"


def begun_key(name: str) -> str:
    """Return the storage key of the note that a shard is begun."""
    return f"{PREFIX}begun-{name}"


def over_key(name: str) -> str:
    """Return the storage key of the note that a shard is given up, whatever becomes of its process."""
    return f"{PREFIX}over-{name}"


def is_noted(shelf: Shelf, key: str) -> bool:
    """Return whether there is a note under a key; what can't be taken away is emptied.

    Raises:
        TransientError: If the storage can't be used.
    """
    return (shelf.read(key) or b"{}") != b"{}"


def given_up(shelf: Shelf, name: str) -> Amount | None:
    """Give a shard up whose process seems to be dead; return the most that it can have spent of what is bounded.

    Should it live, it begins nothing more once it has spent that. None if nobody can say.
    """
    try:
        shelf.write(over_key(name), HALT)
        noted = shelf.read(begun_key(name)) or b"{}"
        return NOTHING if noted == GO else amount_of(json.loads(noted))
    except (TransientError, ValueError):
        return None


class Errand:
    """Follows a shard in the process that it was sent to.

    Attributes:
        group: The name of its gate, which has a budget of its own, and shares the places and the pace of the process.
        stopped: Whether nothing more is to be asked.
    """

    def __init__(self, sent: Sent, executor: Executor, limits: Limits, flow_run: str) -> None:
        """Keep what it was told."""
        self._sent, self._limits = sent, limits
        self._grace_s = 0.0 if isinstance(executor, Abrupt) else limits.grace_s
        self._shelf = Shelf(cast("WritableFileSystem", get_result_store().result_storage))
        self._circuit = Circuit(limits.circuit)
        self._told: list[Told] = []
        self.group = f"{flow_run} {sent.name}"
        self._gate = gate_beside(self.group, flow_run, limits)
        self._gate.budget.note_ahead(self._ahead)
        self.stopped = False

    def begin(self) -> bool:
        """Note that it is begun; return False if another process had begun it, and is gone, or it is given up.

        Raises:
            TerminalError: If what is stored here isn't seen by the run.
            TransientError: If the storage can't be used.
        """
        said = self._shelf.read(note_key(self._sent.note))
        if said not in {GO, HALT}:
            raise TerminalError(
                "The run is over, or its result storage isn't that of the process which was to ask for it; have all "
                "use one storage, such as a bucket (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK), or folder "
                "(PREFECT_LOCAL_STORAGE_PATH).",
                kind="storage",
                usage=Usage(),
            )
        self.stopped = said == HALT
        if any(is_noted(self._shelf, key(self._sent.name)) for key in (begun_key, over_key)):
            return False
        self._shelf.write(begun_key(self._sent.name), GO)
        return True

    async def _ahead(self, marks: dict[str, int]) -> None:
        """Note up to where may be spent from here on; nothing may be, once the run has given this shard up.

        One of both sees what the other has noted: the run says so before it reads how much that was.
        """
        await in_thread(self._shelf.write, begun_key(self._sent.name), json.dumps(marks).encode())
        if await in_thread(is_noted, self._shelf, over_key(self._sent.name)):
            self.stopped = True
            raise TransientError("The run has given this shard up.", kind="taken", usage=Usage())

    def came(self, came: Came) -> None:
        """Take what came of a piece of work."""
        said = came.said
        if isinstance(said, BaseException):
            self.stopped |= self._circuit.failed(came.work, said) is not None
            said = _plain(said)
        elif not came.stored:
            self._circuit.passed()
        self._told.append(Told(came.work.fingerprint, said, came.stored))

    async def attend(self, doing: Coroutine[object, object, None]) -> None:
        """Do it, as long as it is wanted."""
        task = asyncio.ensure_future(doing)
        watch = asyncio.ensure_future(self._watch(task))
        try:
            await asyncio.wait({task})
        finally:
            watch.cancel()
            task.cancel()
        if not task.cancelled():
            task.result()

    def ended(self, *, begun_before: bool = False) -> Ended:
        """Return what came of it."""
        forget(self.group, self._limits)
        return Ended(self._told, self._gate.budget.took, begun_before)

    async def _watch(self, task: asyncio.Task[None]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                said = await in_thread(self._shelf.read, note_key(self._sent.note))
            except TransientError:
                continue
            self.stopped |= said != GO
            if said not in {GO, HALT}:
                self._gate.close()
                await asyncio.wait({task}, timeout=self._grace_s)
                task.cancel()
                return


def _plain(error: BaseException) -> ExecutorError:
    """Return an error as one of this package: the other process may not be able to make one of a user's class."""
    return WrittenError.of(error).error
