"""The fan-out: a task run for each piece of work, and an outcome for each, whatever happens.

`Task.map` would submit everything at once. The same task runs are submitted
here through a sliding window of `concurrency`, so that an error which every
item would meet stops the rest before it costs anything, and work that shares
a lock never runs at the same time. The task runner is whatever the flow has.
"""

from __future__ import annotations

import time
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, cast

from prefect.runtime import flow_run

from prefect_dispatch.errors import ExecutorError, UnaskedError
from prefect_dispatch.executors.base import Abrupt
from prefect_dispatch.ledger import Ref
from prefect_dispatch.models import Answer, Failure
from prefect_dispatch.prefect_compat import outside_transactions
from prefect_dispatch.progress import Progress
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.away import under_way
from prefect_dispatch.tasks.batch_run import Gathered
from prefect_dispatch.tasks.bounded_api import CancelWatch
from prefect_dispatch.tasks.elsewhere import elsewhere
from prefect_dispatch.tasks.ends import End
from prefect_dispatch.tasks.parts import Parts
from prefect_dispatch.tasks.stops import Circuit, Stop, failure_of
from prefect_dispatch.tasks.turns import Turns
from prefect_dispatch.tasks.work import Work, equal_work

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Outcome
    from prefect_dispatch.tasks.elsewhere import Elsewhere
    from prefect_dispatch.tasks.independence import Independence
    from prefect_dispatch.tasks.parts import Join
    from prefect_dispatch.tasks.shards import Came

LOOK_S = 5.0
"""How often to look whether somebody has cancelled the run: in a process of its own, Prefect wouldn't say."""
WAIT_S = 0.5
"""Seconds after which a cancelled run is noticed at the latest, once it is known."""


class FanOut:
    """One fan-out: what waits, what is under way, and what came of the rest."""

    def __init__(  # noqa: PLR0913 -- each says something of the same fan-out
        self,
        work: Sequence[Work],
        executor: Executor,
        limits: Limits,
        *,
        independence: Independence,
        again: Collection[str] = (),
        tell: Callable[[Progress], None],
        join: Join | None = None,
        stored: dict[str, Answer] | None = None,
        where: Elsewhere | None = None,
        known: Sequence[Outcome] = (),
    ) -> None:
        """Keep what is to be done.

        Args:
            work: Every (brief, item).
            executor: Who is asked.
            limits: Concurrency, retries, re-asks and time limit.
            independence: The locks and stages that the work must keep to.
            again: The fingerprints that are asked again even where an answer is stored.
            tell: Told whenever outcomes come, and now and then what is under way.
            join: Joins the answers to the parts of an item that is too long. None: none is split.
            stored: Answers that were looked up, by fingerprint; they take no task run, and are taken out.
            where: Where task runs are. None: where the flow's task runner has them.
            known: The outcomes of some of the work from an earlier process of the run: that work is over.
        """
        total, over = len(work), {Ref.of(outcome) for outcome in known}
        work = [each for each in work if each.ref not in over] if over else work
        self._groups = equal_work(work)
        self._turns = Turns((group[0] for group in self._groups.values()), independence)
        self._executor = executor
        self._limits = limits
        self._again = frozenset(again)
        self._batched = Gathered()
        self._parts = Parts(work, executor, join)
        self._tell = tell
        self._progress = Progress(total=total).plus(*known)
        self._under_way = under_way(executor, limits, where or elsewhere())
        self._stored = stored or {}
        self._outcomes: list[Outcome] = [*known]
        self._looked = time.monotonic()
        self._circuit = Circuit(limits.circuit, limits.wait_s)
        self.stop: Stop | None = None
        """Why the rest was not asked, if anything stopped the fan-out."""
        self.records = self._under_way.records

    @property
    def stopped(self) -> str | None:
        """What everybody would meet, if that is why the rest was not asked."""
        return self.stop.why if self.stop and self.stop.kind == "circuit" else None

    @property
    def told(self) -> str:
        """How far it came, in words."""
        answered = sum(outcome.status == "succeeded" for outcome in self._outcomes)
        return f"{answered} of {self._progress.total} answered"

    def run(self, batched: Gathered | None = None) -> list[Outcome]:
        """Return one outcome for each (brief, item), in order of arrival.

        Args:
            batched: What batches have brought beforehand.
        """
        if batched:
            self._take(batched)
        with outside_transactions(), self._under_way, CancelWatch(LOOK_S) as self._watch:
            try:
                self._recall()
                goes_on = self._submit()
                self._show()
                while goes_on:
                    self._settle(self._next())
                    goes_on = self._submit()
            except BaseException:
                self._wind_down()
                raise
        for work in self._turns.waiting:
            self._skip(work, *cast("Stop", self.stop))
        return self._outcomes

    def _take(self, batched: Gathered) -> None:
        """Reckon with what batches have brought, and leave out what the budget did not hold at half the price."""
        self._batched, why = batched, batched.unaffordable
        self._again -= batched.answered
        self.stop = Stop("circuit", batched.stopped) if batched.stopped else None
        for work in self._turns.take(lambda work: work.fingerprint in why):
            self._skip(work, "budget", why[work.fingerprint])

    def _recall(self) -> None:
        """End what is stored, before anything is asked."""
        stored = self._turns.take(lambda work: work.fingerprint in self._stored)
        self._record(*(End(work, "succeeded", self._stored.pop(work.fingerprint), stored=True) for work in stored))
        self._under_way.expect(len(self._turns.waiting))

    def _next(self) -> list[Came]:
        """Wait for something to come; tell now and then how far it is, and look whether the run is still wanted."""
        while True:
            self._watch.check()
            if time.monotonic() - self._looked > LOOK_S:
                self._show()
                self._looked = time.monotonic()
            with suppress(Empty):
                return self._under_way.next(WAIT_S)

    def _wind_down(self) -> None:
        """Let what is under way come to an end for a moment, then end it: what came back is stored."""
        grace_s = 0.0 if isinstance(self._executor, Abrupt) else self._limits.grace_s
        last = time.monotonic() + self._under_way.close(grace_s)
        try:
            while self._under_way:
                self._settle(self._under_way.next(last - time.monotonic()))
        except Empty:
            pass
        finally:
            loop.cancel(str(flow_run.get_id()))

    def _submit(self) -> bool:
        """Keep as much under way as there may be; return whether anything is."""
        while self.stop is None and self._under_way.takes_more and (work := self._gathered()):
            self._under_way.begin(work, self._again)
        if self.stop:
            self._under_way.halt()
        return bool(self._under_way)

    def _gathered(self) -> list[Work]:
        """Return the work of the next task run, its locks taken; none if nothing may be begun."""
        gathered: list[Work] = []
        while len(gathered) < self._under_way.size and (work := self._turns.next()):
            if work.fingerprint in self._again:
                gathered.append(work)
            elif known := self._parts.known(work):
                self._turns.end(work)
                self._record(End(work, "succeeded", known, stored=True))
            elif (parts := self._parts.learned(work)) is not None:
                self._turns.end(work)
                self._replace(work, parts)
            else:
                gathered.append(work)
        return gathered

    def _settle(self, come: list[Came]) -> None:
        """Turn what came into outcomes."""
        for work, said, stored in come:
            self._turns.end(work)
            if isinstance(said, Answer):
                if not stored:
                    self._circuit.passed()
                self._record(End(work, "succeeded", said, stored=stored))
            elif isinstance(said, BaseException):
                self._fail(work, said)
            else:
                self._turns.first([work])
                if stored:  # what stands under its key is no answer to it
                    self._again |= {work.fingerprint}

    def _fail(self, work: Work, error: BaseException) -> None:
        if (parts := self._parts.split(work, error)) is not None:
            self._replace(work, parts)
            return
        stop = self._circuit.failed(work, error)
        self.stop = self.stop or stop
        attempts = error.attempts if isinstance(error, ExecutorError) else ()
        if isinstance(error, UnaskedError) and not any(attempt.usage.requests for attempt in attempts):
            self._skip(work, error.kind, failure_of(error).message)
        else:
            self._record(End(work, "failed", error=failure_of(error), attempts=attempts))

    def _replace(self, work: Work, parts: list[Work]) -> None:
        """Ask the parts of an item in its place, next."""
        self._again |= {part.fingerprint for part in parts if work.fingerprint in self._again}
        self._turns.first(parts)
        self._end_wholes()

    def _skip(self, work: Work, kind: str, why: str) -> None:
        tried = work.fingerprint in self._batched.attempts
        again = " again" if tried else ""
        error = Failure(kind=kind, message=f"Not asked{again}: {why}")
        self._record(End(work, "failed" if tried else "skipped", error=error))

    def _record(self, *ends: End) -> None:
        recorded = len(self._outcomes)
        for end in ends:
            name = end.work.fingerprint
            equal = self._groups.pop(name, [end.work])  # a part of an item stands in none
            came = end.outcomes(equal, self._batched.attempts.get(name, ()))
            self._outcomes += [outcome for outcome in came if not self._parts.take(outcome)]
        if len(self._outcomes) > recorded:
            self._progress = self._progress.plus(*self._outcomes[recorded:])
            self._show()
        self._end_wholes()

    def _show(self) -> None:
        note = self._under_way.note
        in_flight = 0 if note else min(len(self._under_way), self._limits.concurrency)
        if (in_flight, note) != (self._progress.in_flight, self._progress.note):
            self._progress = self._progress.model_copy(update={"in_flight": in_flight, "note": note})
        self._tell(self._progress)

    def _end_wholes(self) -> None:
        """Record what became of items of which all parts have come."""
        for end in self._parts.ended():
            self._record(end)
