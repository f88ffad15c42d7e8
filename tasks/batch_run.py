"""What the batches of one run have in common: its work, its budget, its patience, and what came of it so far."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from prefect.logging import get_run_logger
from pydantic import Field

from prefect_dispatch.bounds import ceiling_of
from prefect_dispatch.errors import BudgetError, TransientError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.batch import BatchAPI
from prefect_dispatch.models import Attempt, Usage
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.bounded_api import require_wanted
from prefect_dispatch.tasks.cutting import is_learned
from prefect_dispatch.tasks.loop import in_thread
from prefect_dispatch.tasks.patience import Patience
from prefect_dispatch.tasks.store import answer_in, usable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from prefect_dispatch.budget import Reservation
    from prefect_dispatch.executors.base import Ceiling
    from prefect_dispatch.executors.llm import LLM
    from prefect_dispatch.gate import Gate
    from prefect_dispatch.tasks.batch_records import BatchRecord, BatchRecords
    from prefect_dispatch.tasks.once import Place
    from prefect_dispatch.tasks.work import Work

T = TypeVar("T")

LOOK_S = 5.0
"""How often to look whether somebody has cancelled the run."""
LEAST_S, MOST_S = 1.0, 60.0
"""How long to wait, at least and at most, before the provider is asked again."""


class Gathered(Strict):
    """What batches have brought to a run."""

    attempts: dict[str, tuple[Attempt, ...]] = Field(default_factory=dict)
    """What was tried for each piece of work, whether or not an answer came of it."""
    answered: frozenset[str] = frozenset()
    """The work whose answer is stored now."""
    unaffordable: dict[str, str] = Field(default_factory=dict)
    """The work that the budget doesn't hold, and why."""
    stopped: str | None = None
    """Why nothing more is to be asked, if that is so."""


class NotYetError(Exception):
    """Batches are under way, and this run doesn't wait for them in its process."""

    def __init__(self, gathered: Gathered, submitted: float) -> None:  # pragma: no cover -- in a worker's process
        """Keep what was gathered before, and when the last batch was submitted."""
        super().__init__(gathered, submitted)
        self.gathered, self.submitted = gathered, submitted


class BatchRun:
    """A run that asks in batches.

    Attributes:
        work: For each fingerprint its work, who is asked, and where the answer is stored.
        records: What is under way, of any run.
        id: The flow run.
        again: The fingerprints that are asked even where an answer is stored.
        answered: The fingerprints whose answers batches of this run have stored.
    """

    def __init__(
        self,
        work: Mapping[str, tuple[Work, LLM, Place]],
        records: BatchRecords,
        gate: Gate,
        *,
        run: str,
        again: Collection[str] = (),
        before: Gathered | None = None,
    ) -> None:
        """Keep what is to be done; `before` is what the run had gathered before it gave its worker back."""
        before = before or Gathered()
        self.work, self.records, self.id, self.again = work, records, run, again
        self.answered = set(before.answered)
        self._gate = gate
        self._attempts = dict(before.attempts)
        self._unaffordable: dict[str, str] = {}
        self._held: dict[str, Reservation] = {}
        self._apis: dict[str, BatchAPI] = {}
        for attempt in (attempt for attempts in before.attempts.values() for attempt in attempts):
            gate.budget.charge(attempt.usage)

    def so_far(self, stopped: str | None = None) -> Gathered:
        """Return what came of the batches, and why nothing more is to be asked, if that is so."""
        return Gathered(
            attempts=self._attempts,
            answered=frozenset(self.answered),
            unaffordable=self._unaffordable,
            stopped=stopped,
        )

    def tried(self, name: str) -> tuple[Attempt, ...]:
        """Return what was tried for a piece of work."""
        return self._attempts.get(name, ())

    def wanted(self) -> list[str]:
        """Return what has neither an answer nor had all of its rounds."""
        return [
            name
            for name, (work, who, place) in self.work.items()
            if name not in self.answered
            and name not in self._unaffordable
            and len(self.tried(name)) < who.rounds
            and (name in self.again or not (self.is_stored(name) or is_learned(place.shelf, work)))
        ]

    def is_stored(self, name: str) -> bool:
        """Return whether there is an answer that can be used."""
        work, _, place = self.work[name]
        return usable(answer_in(place.shelf.read(place.key)), work) is not None

    def who(self, name: str) -> str:
        """Return the name of who is asked."""
        return self.work[name][1].name

    def api(self, name: str) -> BatchAPI:
        """Return the batches of who is asked."""
        who = self.work[name][1]
        return self._apis.setdefault(who.name, BatchAPI(who))

    def line(self, name: str) -> tuple[bytes, Ceiling | None]:
        """Return a request's line, and the most that it takes."""
        api, ask = self.api(name), self._ask(name)
        return api.line(name, ask), ceiling_of(self._gate.limits, api.who, ask)

    def hold(self, name: str, ceiling: Ceiling | None) -> bool:
        """Hold room in the budget; return whether there is any."""
        try:
            self._held[name] = self._gate.budget.hold(self.api(name).who.name, ceiling)
        except BudgetError as error:
            self._unaffordable[name] = str(error)
            return False
        return True

    def hold_sent(self, record: BatchRecord) -> None:
        """Count in the budget what another run, or this one before, has submitted."""
        for name in self.ours(record):
            who = self.api(name).who
            ceiling = ceiling_of(self._gate.limits, who, self._ask(name))
            self._held[name] = self._gate.budget.hold(who.name, ceiling, sent=True)

    def note(self, name: str, attempt: Attempt) -> None:
        """Keep what was tried, and count what it took."""
        self._attempts[name] = (*self.tried(name), attempt)
        if reservation := self._held.pop(name, None):
            self._gate.budget.settle(reservation, attempt.usage)
        else:
            self._gate.budget.charge(attempt.usage)

    def free(self, record: BatchRecord) -> None:
        """Let go of what is held for work that another run has gathered."""
        for name in self.ours(record):
            if reservation := self._held.pop(name, None):
                self._gate.budget.settle(reservation, Usage())

    def ours(self, record: BatchRecord) -> tuple[str, ...]:
        """Return what this run has of the work of a batch."""
        return tuple(name for name in record.work if name in self.work)

    async def patiently(self, call: Callable[[], Awaitable[T]], *, submitted: bool = False) -> T:
        """Return what a call brings: waited for where the provider is busy, else retried as the limits say.

        Args:
            call: Makes the call.
            submitted: Whether it is about a batch that is under way: then whatever is wrong is waited for.

        Raises:
            ExecutorError: If it brings nothing.
        """
        patience = Patience(self._gate.limits, submitted=submitted, least_s=LEAST_S, most_s=MOST_S)
        while True:
            try:
                return await call()
            except TransientError as error:
                pause_s, left = patience.after(error)
                get_run_logger().warning("A batch goes on in %.1f s (%s): %s", pause_s, left, error)
            await self.pause(pause_s)

    async def pause(self, seconds: float) -> None:
        """Wait, as long as the run is wanted."""
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_S))
            await in_thread(require_wanted, UUID(self.id))

    async def wait(self, record: BatchRecord) -> None:
        """Wait before a batch is looked at again."""
        await self.pause(pause_s(record.begun, LEAST_S, MOST_S))

    def _ask(self, name: str) -> Ask:
        work = self.work[name][0]
        return Ask(brief=work.brief.rendered(work.item), item=work.item)


def pause_s(begun: float, least: float, most: float) -> float:
    """Return how long to wait for a batch: a quarter of what it has taken so far.

    Example:
        >>> pause_s(time.time() - 400, 1, 60), pause_s(time.time(), 1, 60)
        (60, 1)
    """
    return min(max((time.time() - begun) / 4, least), most)
