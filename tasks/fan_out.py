"""Fan-out: runs one task run for each piece of work, and returns exactly one outcome for each.

`Task.map` would submit everything at once. Here the same task runs are submitted
through a sliding window of `concurrency`, so that an error which every
item would meet stops the rest before it costs anything, and work that shares
a lock never runs at the same time. The task runner is that of the flow.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, cast

from prefect.runtime import flow_run

from prefect_dispatch.errors import ExecutorError, UnaskedError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.outcome import Answer, Failure
from prefect_dispatch.prefect_compat import outside_transactions
from prefect_dispatch.reporting.progress import Progress
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.bounded_api import CancelWatch
from prefect_dispatch.tasks.circuit_breaker import CircuitBreaker, Stop, failure_of
from prefect_dispatch.tasks.item_splitting import SplitItems
from prefect_dispatch.tasks.provider_batches import BatchResults
from prefect_dispatch.tasks.shards.remote import create_in_flight, find_remote_target
from prefect_dispatch.tasks.work_item import WorkItem, WorkResult, group_equal_work

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.item_splitting import Join
    from prefect_dispatch.tasks.preflight import Independence
    from prefect_dispatch.tasks.shards.remote import RemoteTarget
    from prefect_dispatch.tasks.work_item import WorkResponse


NO_LOCKS: frozenset[str] = frozenset()


class WorkQueue:
    """Queue of the work of a fan-out, which respects locks and stages.

    Attributes:
        waiting: The work that has not been started, in order.
    """

    def __init__(self, work: Iterable[WorkItem], independence: Independence) -> None:
        """Queue the work.

        Args:
            work: The work.
            independence: The locks and stages that the work must respect.
        """
        self._locks, self._stages = independence.locks, independence.stages
        self.waiting = deque(sorted(work, key=self._stage))
        self._held_locks: set[str] = set()
        self._running: Counter[int] = Counter()

    def start_next(self) -> WorkItem | None:
        """Start the first piece of work whose locks are free; None if there is none in the current stage.

        A stage begins once nothing of the stage before it is in progress.
        """
        current_stage = min(self._running, default=None)
        # The queue is sorted by stage, so the search ends at the first work of another stage.
        for place, work in enumerate(self.waiting):
            if self._stage(work) != (self._stage(self.waiting[0]) if current_stage is None else current_stage):
                return None
            locks = self._locks.get(work.ref, NO_LOCKS)
            if self._held_locks.isdisjoint(locks):
                del self.waiting[place]
                self._held_locks |= locks
                self._running[self._stage(work)] += 1
                return work
        return None

    def push_front(self, work: list[WorkItem]) -> None:
        """Put work at the front of the queue."""
        self.waiting.extendleft(reversed(work))

    def remove_matching(self, predicate: Callable[[WorkItem], bool]) -> list[WorkItem]:
        """Remove and return the work that matches a predicate."""
        matches = [work for work in self.waiting if predicate(work)]
        if matches:
            self.waiting = deque(work for work in self.waiting if not predicate(work))
        return matches

    def release(self, work: WorkItem) -> None:
        """Release the locks of work that was started."""
        self._held_locks -= self._locks.get(work.ref, NO_LOCKS)
        self._running -= Counter({self._stage(work): 1})

    def _stage(self, work: WorkItem) -> int:
        return self._stages.get(work.ref, 0) if self._stages else 0


LOOK_S = 5.0
"""Seconds between two checks whether the run was cancelled: in a process of its own, Prefect does not report it."""


WAIT_S = 0.5
"""Seconds until a known cancellation takes effect, at most."""


class FanOut:
    """One fan-out: its queue, the work in progress, and the outcomes so far."""

    def __init__(  # noqa: PLR0913 -- each is an independent setting
        self,
        work: Sequence[WorkItem],
        executor: Executor,
        limits: Limits,
        *,
        independence: Independence,
        again: Collection[str] = (),
        on_progress: Callable[[Progress], None],
        join: Join | None = None,
        stored: dict[str, Answer] | None = None,
        where: RemoteTarget | None = None,
        known: Sequence[Outcome] = (),
    ) -> None:
        """Set up a fan-out.

        Args:
            work: Every (brief, item).
            executor: The executor of the work.
            limits: Concurrency, retries, re-asks and time limit.
            independence: The locks and stages that the work must respect.
            again: The fingerprints that are asked even where an answer is stored.
            on_progress: Called with the progress whenever there are new outcomes, and regularly in between.
            join: Joins the answers to the parts of an item that is too long. None: none is split.
            stored: Stored answers, by fingerprint; they create no task run, and are removed from the mapping.
            where: The target of task runs. None: the flow's task runner decides.
            known: Outcomes of some of the work from an earlier process of the run: that work is finished.
        """
        # Equal work is asked once: one of each group is queued, and its result becomes the outcome of all.
        total, finished = len(work), {Ref.of(outcome) for outcome in known}
        work = [each for each in work if each.ref not in finished] if finished else work
        self._groups = group_equal_work(work)
        self._queue = WorkQueue((group[0] for group in self._groups.values()), independence)
        self._executor = executor
        self._limits = limits
        self._again = frozenset(again)
        self._batched = BatchResults()
        self._parts = SplitItems(work, executor, join)
        self._on_progress = on_progress
        self._progress = Progress(total=total).plus(*known)
        self._in_flight = create_in_flight(executor, limits, where or find_remote_target())
        self._stored = stored or {}
        self._outcomes: list[Outcome] = [*known]
        self._reported_at = time.monotonic()
        self._circuit = CircuitBreaker(limits.circuit, limits.wait_s)
        self.stop: Stop | None = None
        """Why the rest was not asked, if anything stopped the fan-out."""
        self.counter = self._in_flight.counter

    @property
    def stop_reason(self) -> str | None:
        """The error that all work would meet, if that is why the rest was not asked."""
        return self.stop.reason if self.stop and self.stop.kind == "circuit" else None

    @property
    def summary(self) -> str:
        """Summary of the progress, in words."""
        answered = sum(outcome.status == "succeeded" for outcome in self._outcomes)
        return f"{answered} of {self._progress.total} answered"

    def run(self, batched: BatchResults | None = None) -> list[Outcome]:
        """Return one outcome for each (brief, item), in order of arrival.

        Args:
            batched: Results of provider batches that ran before.
        """
        if batched:
            self._apply_batch_results(batched)
        with outside_transactions(), self._in_flight, CancelWatch(LOOK_S) as self._watch:
            try:
                # 1. Finish cached work, which creates no task run.
                self._record_stored()
                # 2. Keep the window full until nothing is left.
                is_running = self._submit()
                self._report_progress()
                while is_running:
                    self._record_results(self._wait_for_results())
                    is_running = self._submit()
            except BaseException:
                self._wind_down()
                raise
        # 3. What is left was stopped by `self.stop`.
        for work in self._queue.waiting:
            self._skip(work, *cast("Stop", self.stop))
        return self._outcomes

    def _apply_batch_results(self, batched: BatchResults) -> None:
        """Take over the results of batches, and skip what the budget did not cover even at half the price."""
        self._batched, reasons = batched, batched.unaffordable
        self._again -= batched.answered
        self.stop = Stop("circuit", batched.stopped) if batched.stopped else None
        for work in self._queue.remove_matching(lambda work: work.fingerprint in reasons):
            self._skip(work, "budget", reasons[work.fingerprint])

    def _record_stored(self) -> None:
        """Record the outcomes of stored answers, before anything is asked."""
        stored = self._queue.remove_matching(lambda work: work.fingerprint in self._stored)
        self._record(
            *(WorkResult(work, "succeeded", self._stored.pop(work.fingerprint), stored=True) for work in stored)
        )
        self._in_flight.prepare(len(self._queue.waiting))

    def _wait_for_results(self) -> list[WorkResponse]:
        """Wait for results, report the progress regularly, and raise if the run was cancelled."""
        while True:
            self._watch.check()
            if time.monotonic() - self._reported_at > LOOK_S:
                self._report_progress()
                self._reported_at = time.monotonic()
            with suppress(Empty):
                return self._in_flight.next_results(WAIT_S)

    def _wind_down(self) -> None:
        """Let work in progress finish for a grace period, then cancel it; its results so far are stored."""
        grace_s = 0.0 if BaseExecutor.of(self._executor).cancel_immediately else self._limits.grace_s
        last = time.monotonic() + self._in_flight.close(grace_s)
        # The grace period covers all of the work together.
        try:
            while self._in_flight:
                self._record_results(self._in_flight.next_results(last - time.monotonic()))
        except Empty:
            pass
        finally:
            event_loop.cancel(str(flow_run.get_id()))

    def _submit(self) -> bool:
        """Fill the window with work; return whether any is in progress."""
        while self.stop is None and self._in_flight.takes_more and (work := self._next_batch()):
            self._in_flight.submit(work, self._again)
        if self.stop:
            self._in_flight.halt()
        return bool(self._in_flight)

    def _next_batch(self) -> list[WorkItem]:
        """Return the work of the next task run, its locks taken; empty if nothing may start."""
        batch: list[WorkItem] = []
        while len(batch) < self._in_flight.size and (work := self._queue.start_next()):
            if work.fingerprint in self._again:
                batch.append(work)
            elif answer := self._parts.load_joined(work):  # a joined answer is stored
                self._queue.release(work)
                self._record(WorkResult(work, "succeeded", answer, stored=True))
            elif (parts := self._parts.split_recorded(work)) is not None:  # known to be too long
                self._queue.release(work)
                self._queue_parts(work, parts)
            else:
                batch.append(work)
        return batch

    def _record_results(self, results: list[WorkResponse]) -> None:
        """Turn results into outcomes."""
        for work, result, stored in results:
            self._queue.release(work)
            if isinstance(result, Answer):
                if not stored:
                    self._circuit.record_success()
                self._record(WorkResult(work, "succeeded", result, stored=stored))
            elif isinstance(result, BaseException):
                self._record_failure(work, result)
            else:
                # Not asked, for example as its process died: it is next.
                self._queue.push_front([work])
                if stored:  # what is stored under its key is no answer to it
                    self._again |= {work.fingerprint}

    def _record_failure(self, work: WorkItem, error: BaseException) -> None:
        # 1. An item that was too long is asked in parts.
        if (parts := self._parts.split_rejected(work, error)) is not None:
            self._queue_parts(work, parts)
            return
        # 2. The first error that stops the fan-out counts; results in progress still come in.
        stop = self._circuit.record_failure(work, error)
        self.stop = self.stop or stop
        attempts = error.attempts if isinstance(error, ExecutorError) else ()
        # 3. Without a request, the item is skipped; else it failed.
        if isinstance(error, UnaskedError) and not any(attempt.usage.requests for attempt in attempts):
            self._skip(work, error.kind, failure_of(error).message)
        else:
            self._record(WorkResult(work, "failed", error=failure_of(error), attempts=attempts))

    def _queue_parts(self, work: WorkItem, parts: list[WorkItem]) -> None:
        """Queue the parts of an item in its place, to be asked next."""
        self._again |= {part.fingerprint for part in parts if work.fingerprint in self._again}
        self._queue.push_front(parts)
        self._record_joined_items()

    def _skip(self, work: WorkItem, kind: str, why: str) -> None:
        was_asked = work.fingerprint in self._batched.attempts
        suffix = " again" if was_asked else ""
        error = Failure(kind=kind, message=f"Not asked{suffix}: {why}")
        self._record(WorkResult(work, "failed" if was_asked else "skipped", error=error))

    def _record(self, *ends: WorkResult) -> None:
        recorded = len(self._outcomes)
        # Equal work gets an outcome each. Outcomes of parts are kept until their item can be joined.
        for end in ends:
            name = end.work.fingerprint
            equal = self._groups.pop(name, [end.work])  # a part of an item is in none
            outcomes = end.to_outcomes(equal, self._batched.attempts.get(name, ()))
            self._outcomes += [outcome for outcome in outcomes if not self._parts.record_outcome(outcome)]
        if len(self._outcomes) > recorded:
            self._progress = self._progress.plus(*self._outcomes[recorded:])
            self._report_progress()
        self._record_joined_items()

    def _report_progress(self) -> None:
        note = self._in_flight.note
        in_flight = 0 if note else min(len(self._in_flight), self._limits.concurrency)
        if (in_flight, note) != (self._progress.in_flight, self._progress.note):
            self._progress = self._progress.model_copy(update={"in_flight": in_flight, "note": note})
        self._on_progress(self._progress)

    def _record_joined_items(self) -> None:
        """Record the outcomes of items whose parts are all finished."""
        for end in self._parts.pop_finished():
            self._record(end)
