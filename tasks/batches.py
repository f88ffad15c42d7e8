"""Work in batches: submitted once, waited for, gathered, and whatever is valid stored like any other answer.

One run at a time submits or gathers (on one machine, by the kernel's lock). What was submitted is on the shelf
before it is submitted, so a run that dies is followed up by the next one that has some of the same work.
"""

from __future__ import annotations

import asyncio
import time
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID, uuid4

from prefect.logging import get_run_logger
from pydantic import Field

from prefect_dispatch.bounds import ceiling_of
from prefect_dispatch.errors import BudgetError, BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.examining import examine
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.batch import MOST_BYTES, MOST_LINES, Batch, BatchAPI
from prefect_dispatch.models import Answer, Attempt, Usage
from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.batch_records import BatchRecord
from prefect_dispatch.tasks.holds import held
from prefect_dispatch.tasks.loop import in_thread
from prefect_dispatch.tasks.stops import require_wanted
from prefect_dispatch.tasks.store import PREFIX, answer_in, usable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence

    from prefect_dispatch.budget import Reservation
    from prefect_dispatch.executors.base import Ceiling
    from prefect_dispatch.executors.llm import LLM
    from prefect_dispatch.gate import Gate
    from prefect_dispatch.tasks.batch_records import BatchRecords
    from prefect_dispatch.tasks.once import Place
    from prefect_dispatch.tasks.work import Work

T = TypeVar("T")

LOCK = f"{PREFIX}batches"
LOOK_S = 5.0
"""How often to look whether somebody has cancelled the run."""
LEASE_S = 600.0
"""How long somebody on another machine is believed to be submitting."""
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

    def __init__(self, gathered: Gathered, submitted: float) -> None:
        """Keep what was gathered before, and when the last batch was submitted."""
        super().__init__(gathered, submitted)
        self.gathered, self.submitted = gathered, submitted


class Batches:
    """The batches of a run."""

    def __init__(
        self,
        work: Mapping[str, tuple[Work, LLM, Place]],
        records: BatchRecords,
        gate: Gate,
        *,
        run: str,
        again: Collection[str] = (),
        before: Gathered | None = None,
        waits: bool = True,
    ) -> None:
        """Keep what is to be done.

        Args:
            work: For each fingerprint its work, who is asked, and where the answer is stored.
            records: What is under way.
            gate: The run's budget.
            run: The flow run.
            again: The fingerprints that are asked even where an answer is stored.
            before: What the same run had gathered before it gave its worker back.
            waits: Whether to wait for batches; else `NotYetError` is raised.
        """
        before = before or Gathered()
        self._work, self._records, self._gate = work, records, gate
        self._run, self._again, self._waits = run, again, waits
        self._attempts = dict(before.attempts)
        self._answered = set(before.answered)
        self._unaffordable: dict[str, str] = {}
        self._held: dict[str, Reservation] = {}
        self._apis: dict[str, BatchAPI] = {}
        self._folder = next((place.shelf.folder for _, _, place in work.values()), None)
        for attempt in (attempt for attempts in before.attempts.values() for attempt in attempts):
            gate.budget.charge(attempt.usage)

    async def gathered(self) -> Gathered:
        """Return what came of all batches, once nothing is under way.

        Raises:
            NotYetError: If something is, and this run doesn't wait.
            CancelledRun: If somebody has cancelled the run.
        """
        try:
            while batches := await self._under_way():
                await self._ended(batches)
                for record in batches:
                    await self._gather(record)
        except ExecutorError as error:
            return self._so_far(stopped=f"A batch met an error: {error}")
        return self._so_far()

    def _so_far(self, stopped: str | None = None) -> Gathered:
        return Gathered(
            attempts=self._attempts,
            answered=frozenset(self._answered),
            unaffordable=self._unaffordable,
            stopped=stopped,
        )

    async def _under_way(self) -> list[BatchRecord]:
        """Return the batches that hold what is still to be asked, submitted now if need be."""
        async with held(LOCK, self._folder) as alone:
            wanted = await in_thread(self._wanted)
            batches: list[BatchRecord] = []
            for record in await in_thread(self._records.under_way, wanted):
                if found := await self._found(record, alone=alone):
                    batches.append(found)
                    self._hold_sent(found)
            sent = {work for record in batches for work in record.work}
            new = [work for work in wanted if work not in sent]
            batches += [await self._submitted(*group) async for group in self._groups(new)]
        return batches

    def _wanted(self) -> list[str]:
        """Return what has neither an answer nor had all of its rounds."""
        return [
            name
            for name, (work, who, place) in self._work.items()
            if name not in self._answered
            and name not in self._unaffordable
            and len(self._attempts.get(name, ())) < who.rounds
            and (name in self._again or usable(answer_in(place.shelf.read(place.key)), work) is None)
        ]

    async def _found(self, record: BatchRecord, *, alone: bool) -> BatchRecord | None:
        """Return a batch as its provider knows it; None if it was never submitted, as far as anybody knows."""
        while not (record.batch or alone) and time.time() - record.begun < LEASE_S:
            await self._pause(LEAST_S)
            now = await in_thread(self._records.read, record.tag)
            record = now or record
        if record.batch:
            return record
        api = self._api(self._ours(record)[0])
        try:
            if batch := await self._patiently(lambda: api.find(record.tag, record.begun)):
                found = record.model_copy(update={"batch": batch.id})
                await in_thread(self._records.write, found)
                get_run_logger().info("Batch %s was found again; a run had died while submitting it.", batch.id)
                return found
        except RejectedError as error:
            get_run_logger().warning(
                "A run died while it submitted a batch, and its provider doesn't list what it has: the same may be "
                "asked, and paid for, a second time. %s",
                error,
            )
            lost = Usage(requests=1, unsettled=1)
            for work in self._ours(record):
                self._note(work, Attempt(usage=lost, error="lost: nobody knows whether it was submitted"))
        await in_thread(self._records.end, record, record.work)
        return None

    async def _groups(self, wanted: Sequence[str]) -> AsyncGenerator[tuple[BatchAPI, dict[str, bytes]], None]:
        """Yield what goes into one batch each: one model's, as much as a provider takes and the budget holds."""
        for _, same in groupby(sorted(wanted, key=self._who), key=self._who):
            names = list(same)
            api, size = self._api(names[0]), 0
            group: dict[str, bytes] = {}
            for name in names:
                line, ceiling = await in_thread(self._line, name, api)
                if not self._hold(name, api, ceiling):
                    continue
                if group and (len(group) >= MOST_LINES or size + len(line) > MOST_BYTES):
                    yield api, group
                    group, size = {}, 0
                group[name] = line
                size += len(line)
            if group:
                yield api, group

    def _who(self, name: str) -> str:
        return self._work[name][1].name

    def _line(self, name: str, api: BatchAPI) -> tuple[bytes, Ceiling | None]:
        """Return a request's line, and the most that it takes."""
        return api.line(name, self._ask(name)), ceiling_of(self._gate.limits, api.who, self._ask(name))

    def _ask(self, name: str) -> Ask:
        work = self._work[name][0]
        return Ask(brief=work.brief.rendered(work.item), item=work.item)

    def _hold(self, name: str, api: BatchAPI, ceiling: Ceiling | None) -> bool:
        try:
            self._held[name] = self._gate.budget.hold(api.who.name, ceiling)
        except BudgetError as error:
            self._unaffordable[name] = str(error)
            return False
        return True

    def _hold_sent(self, record: BatchRecord) -> None:
        """Count in the budget what another run, or this one before, has submitted."""
        for name in self._ours(record):
            who = self._api(name).who
            ceiling = ceiling_of(self._gate.limits, who, self._ask(name))
            self._held[name] = self._gate.budget.hold(who.name, ceiling, sent=True)

    async def _submitted(self, api: BatchAPI, lines: Mapping[str, bytes]) -> BatchRecord:
        """Submit a batch, having put on the shelf what is about to be submitted."""
        record = BatchRecord(tag=uuid4().hex, name=api.who.name, work=tuple(lines), begun=time.time(), by=self._run)
        await in_thread(self._records.begin, record)
        try:
            file = await self._patiently(lambda: api.upload(list(lines.values())))
            record = record.model_copy(update={"file": file})
            await in_thread(self._records.write, record)
            batch = await self._patiently(lambda: self._created(api, record))
        except (RejectedError, TerminalError):  # surely not submitted
            await in_thread(self._records.end, record, record.work)
            raise
        record = record.model_copy(update={"batch": batch.id})
        await in_thread(self._records.write, record)
        get_run_logger().info("Batch %s has %d requests for %r.", batch.id, len(lines), api.who.name)
        return record

    async def _created(self, api: BatchAPI, record: BatchRecord) -> Batch:
        """Create a batch; where nobody knows whether it was created, look for it before it is tried again."""
        try:
            return await api.create(record.file, record.tag)
        except TransientError:
            if found := await api.find(record.tag, record.begun):
                return found
            raise

    async def _ended(self, batches: Sequence[BatchRecord]) -> None:
        """Wait until nothing more will come of any of the batches."""
        for record in batches:
            done = 0
            while not (batch := await self._look(record)).ended:
                if not self._waits:
                    raise NotYetError(self._so_far(), max(each.begun for each in batches))
                if batch.done != done:
                    done = batch.done
                    get_run_logger().info("Batch %s: %d of %d worked off.", record.batch, done, len(record.work))
                await self._pause(pause_s(record.begun, LEAST_S, MOST_S))

    async def _look(self, record: BatchRecord) -> Batch:
        api = self._api(self._ours(record)[0])
        return await self._patiently(lambda: api.look(record.batch))

    async def _gather(self, record: BatchRecord) -> None:
        """Store what came of a batch, strike it out, and count what it took."""
        async with held(LOCK, self._folder):
            current = await in_thread(self._records.read, record.tag)
            names = self._ours(current) if current else ()
            if current and names:
                api = self._api(names[0])
                batch = await self._look(record)
                found = await self._patiently(lambda: api.answers(batch, names))
                if batch.status == "failed" and not found:
                    await in_thread(self._records.end, current, current.work)
                    raise TerminalError(f"batch {batch.id} was refused as a whole: {batch.problems}", kind="batch")
                tried = await in_thread(self._kept, batch, current, found)
                await in_thread(self._records.end, current, names)
                for name, attempt in tried.items():
                    self._note(name, attempt)
        for name in self._ours(record):
            if reservation := self._held.pop(name, None):
                self._gate.budget.settle(reservation, Usage())  # another run has gathered it

    def _kept(
        self, batch: Batch, record: BatchRecord, found: Mapping[str, Reply | ExecutorError]
    ) -> dict[str, Attempt]:
        """Store every valid answer, and return what was tried for each piece of work."""
        return {name: self._tried(name, batch, record, found.get(name)) for name in self._ours(record)}

    def _tried(self, name: str, batch: Batch, record: BatchRecord, said: Reply | ExecutorError | None) -> Attempt:
        work, _, place = self._work[name]
        waited_s = round(max(time.time() - record.begun, 0.0), 3)
        if not isinstance(said, Reply):
            error = said or _missing(batch)
            usage = error.usage or Usage(requests=1, unsettled=1)
            return Attempt(usage=usage, waited_s=waited_s, error=f"{error.kind}: {error}")
        try:
            value, wrong = examine(work.brief, work.item, said)
        except RejectedError as error:
            return Attempt(usage=said.usage, waited_s=waited_s, error=f"{error.kind}: {error}")
        if wrong:
            return Attempt(usage=said.usage, waited_s=waited_s, error=f"invalid: {' '.join(wrong[:5])}")
        attempt = Attempt(usage=said.usage, waited_s=waited_s)
        heard = said.value if isinstance(work.brief.output, type) else None
        attempts = (*self._attempts.get(name, ()), attempt)
        answer = Answer(value=value, said=heard, fingerprint=name, model=said.model, attempts=attempts)
        if name in self._again or usable(answer_in(place.shelf.read(place.key)), work) is None:
            place.shelf.write(place.key, place.record(answer))
        self._answered.add(name)
        return attempt

    def _note(self, name: str, attempt: Attempt) -> None:
        self._attempts[name] = (*self._attempts.get(name, ()), attempt)
        if reservation := self._held.pop(name, None):
            self._gate.budget.settle(reservation, attempt.usage)
        else:
            self._gate.budget.charge(attempt.usage)

    def _ours(self, record: BatchRecord) -> tuple[str, ...]:
        return tuple(name for name in record.work if name in self._work)

    def _api(self, name: str) -> BatchAPI:
        who = self._work[name][1]
        return self._apis.setdefault(who.name, BatchAPI(who))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a call brings, tried again for as long as a busy provider may be waited for."""
        began, pause = time.monotonic(), LEAST_S
        while True:
            try:
                return await call()
            except TransientError as error:
                pause = max(pause, (error.retry_after_s or 0.0) if isinstance(error, BusyError) else 0.0)
                if time.monotonic() - began + pause > self._gate.limits.wait_s:
                    raise
            await self._pause(pause)
            pause = min(2 * pause, MOST_S)

    async def _pause(self, seconds: float) -> None:
        """Wait, as long as the run is wanted."""
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_S))
            await in_thread(require_wanted, UUID(self._run))


def pause_s(begun: float, least: float, most: float) -> float:
    """Return how long to wait for a batch: a quarter of what it has taken so far.

    Example:
        >>> pause_s(time.time() - 400, 1, 60), pause_s(time.time(), 1, 60)
        (60, 1)
    """
    return min(max((time.time() - begun) / 4, least), most)


def _missing(batch: Batch) -> ExecutorError:
    if batch.status == "expired":
        return TransientError(f"batch {batch.id} expired before this was asked", kind="expired", usage=Usage())
    said = f"batch {batch.id} ({batch.status}) holds no answer to this, and no error"
    return TransientError(said, kind="missing", usage=Usage(requests=1, unsettled=1))
