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
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from prefect.runtime import flow_run

from prefect_dispatch.calls.call_gate import gate_for_run
from prefect_dispatch.errors import BudgetError, ExecutorError, TerminalError, UnaskedError
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.outcome import Answer, Failure
from prefect_dispatch.prefect_compat import forget_result, outside_transactions
from prefect_dispatch.reporting.progress import Progress, on_outcomes
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.dependent_work import DependentWork
from prefect_dispatch.tasks.item_splitting import SplitItems
from prefect_dispatch.tasks.provider_batches import BatchResults
from prefect_dispatch.tasks.result_store import validate_stored
from prefect_dispatch.tasks.run_brief import Shard, shard_task, with_limits
from prefect_dispatch.tasks.stop_conditions import CircuitBreaker, Stop, failure_of, watch_cancellation
from prefect_dispatch.tasks.work_item import WorkItem, WorkResponse, WorkResult, group_equal_work, unmapped_quote

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from prefect.futures import PrefectFuture
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.tasks.dependent_work import StartMerger
    from prefect_dispatch.tasks.item_splitting import Join
    from prefect_dispatch.tasks.preflight import Independence


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


MAX_SINGLE = 200
"""Number of asks up to which each has a task run of its own, for visibility."""


MIN_SHARD_SIZE = 100
"""Items of a shard, at least: fewer would share a task run's overhead among too few."""


MAX_TASK_RUNS = 400
"""Task runs of a fan-out, at most."""


def shard_size(asks: int, limits: Limits) -> int:
    """Return how many items a task run takes in this process.

    Args:
        asks: The number of asks.
        limits: The limits; `shard` overrides the choice.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> [shard_size(asks, Limits()) for asks in (20, 200, 1000, 100_000)]
        [1, 1, 100, 250]
        >>> shard_size(20, Limits(shard=5))
        5
    """
    if limits.shard is not None:
        return limits.shard
    return 1 if asks <= MAX_SINGLE else max(MIN_SHARD_SIZE, -(-asks // MAX_TASK_RUNS))


LOOKAHEAD = 2
"""Factor of the concurrency up to which work of shards may be in progress, as their items share slots."""


class InFlight:
    """Task runs of a fan-out that are in progress.

    Attributes:
        size: How many items a task run takes.
        stopped: Whether nothing more is to be asked, by shards that have work left.
        task_runs: How many task runs were submitted.
    """

    def __init__(self, executor: Executor, limits: Limits) -> None:
        """Create the tasks for an executor and limits."""
        self._executor, self._limits = executor, limits
        self._one, self._refreshing = with_limits(limits), with_limits(limits, refresh=True)
        self._shard_task: Any = shard_task(limits)
        self._runs: dict[PrefectFuture[Any], dict[str, WorkItem]] = {}
        self._groups: dict[str, dict[str, WorkItem]] = {}
        self._events: SimpleQueue[PrefectFuture[Any] | WorkResponse] = SimpleQueue()
        self.size = 1
        self.stopped = False
        self.task_runs = 0

    def __len__(self) -> int:
        """Return how much work is in progress."""
        return len(self._groups)

    @property
    def pending(self) -> list[WorkItem]:
        """The work in progress."""
        return [group[name] for name, group in self._groups.items()]

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def prepare(self, asks: int) -> None:
        """Choose the shard size for a number of asks."""
        self.size = shard_size(asks, self._limits)

    @property
    def note(self) -> str:
        """What is waited for, where no work is being done; for the progress display."""
        return ""

    @property
    def takes_more(self) -> bool:
        """Whether another task run may be submitted.

        Items of shards share the slots of the run, so that twice as many may wait for one: no slot is idle while a
        task run finishes.
        """
        return len(self) < (LOOKAHEAD if self.size > 1 else 1) * self._limits.concurrency

    def submit(self, work: Sequence[WorkItem], again: Collection[str] = ()) -> None:
        """Submit a task run for some work.

        Args:
            work: One piece of work, or those of a shard.
            again: The fingerprints that are asked even where an answer is stored.
        """
        future: PrefectFuture[Any]
        if self.size == 1:
            (one,) = work
            task: Any = self._refreshing if one.fingerprint in again else self._one
            future = task.submit(one.brief, unmapped_quote(one.item), self._executor, self._limits)
        else:
            ignore_stored = frozenset(each.fingerprint for each in work if each.fingerprint in again)
            future = self._shard_task.submit(
                unmapped_quote(Shard(tuple(work), ignore_stored, self)), self._executor, self._limits
            )
        # All work of a task run shares one dictionary, whose rest is what still has no result.
        by_fingerprint = {each.fingerprint: each for each in work}
        self._runs[future] = by_fingerprint
        self._groups |= dict.fromkeys(by_fingerprint, by_fingerprint)
        future.add_done_callback(self._events.put)
        self.task_runs += 1

    def on_result(self, item_result: WorkResponse) -> None:
        """Queue the result of a piece of work of a shard; thread-safe."""
        self.stopped = self.stopped or isinstance(item_result.result, (TerminalError, BudgetError))
        self._events.put(item_result)

    def next_results(self, timeout: float) -> list[WorkResponse]:
        """Return the next results, at least one; errors are returned, not raised.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            Empty: If there is none in time.
        """
        while True:
            event = self._events.get(timeout=max(0.0, timeout))
            results = [event] if isinstance(event, WorkResponse) else self._collect(event)
            for each in results:
                self._groups.pop(each.work.fingerprint).pop(each.work.fingerprint)
            if results:
                return results

    def halt(self) -> None:
        """Have shards start nothing more."""
        self.stopped = True

    def close(self, grace_s: float) -> float:
        """Close the call gate, as the run is interrupted; return how many seconds to wait for work in progress.

        Args:
            grace_s: Seconds that calls in progress have to finish.
        """
        gate_for_run(str(flow_run.get_id()), self._limits).close()
        return grace_s

    def _collect(self, future: PrefectFuture[Any]) -> list[WorkResponse]:
        """Return the results of a task run, except those that the listener was notified of before."""
        pending = self._runs.pop(future)
        if not pending:
            return []
        # An engine error is a result, too: a fan-out must return an outcome for each item.
        try:
            future.wait()
            result: object = future.result(raise_on_failure=False)
            forget_result(result, future)
            stored = future.state.name == "Cached"
        except Exception as broken:  # noqa: BLE001 -- Prefect's engine failed: still an outcome
            result, stored = broken, False
        # Work without a result was not asked.
        return [
            WorkResponse(work, validate_result(result, work) if stored else result, stored=stored)
            for work in pending.values()
        ]


def validate_result(found: object, work: WorkItem) -> Answer | TerminalError | None:
    """Return a stored object as the answer to some work; None if it is none, or the error of a user's check."""
    try:
        return validate_stored(found, work)
    except TerminalError as broken:
        return broken


_INTERRUPTED = "interrupted"
"""The class of the error of work that an interruption of the run left without an answer."""


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
        create_in_flight: Callable[[Executor, Limits], InFlight] | None = None,
        known: Sequence[Outcome] = (),
        briefs: Sequence[Brief] = (),
        merge_start: StartMerger | None = None,
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
            create_in_flight: Creates the tracker of the task runs in progress. None: they run in this process.
            known: Outcomes of some of the work from an earlier process of the run: that work is finished.
            briefs: The briefs of the job, if some need others.
            merge_start: Merges the changes that some work starts from. None: no work needs any.
        """
        # Equal work is asked once: one of each group is queued, and its result becomes the outcome of all.
        total, finished = len(work), {Ref.of(outcome) for outcome in known}
        work = [each for each in work if each.ref not in finished] if finished else work
        self._dependent = DependentWork(work, briefs, executor, merge_start)
        self._dependent.add(known)
        self._groups = group_equal_work([each for each in work if not each.brief.needs])
        self._queue = WorkQueue((group[0] for group in self._groups.values()), independence)
        self._executor = executor
        self._limits = limits
        self._again = frozenset(again)
        self._batched = BatchResults()
        self._parts = SplitItems(work, executor, join)
        self._on_progress = on_progress
        self._progress = Progress(total=total).plus(*known)
        self._create_in_flight = create_in_flight or InFlight
        self._in_flight = self._create_in_flight(executor, limits)
        self._earlier_task_runs = 0
        self._stored = stored or {}
        asks = Counter(group[0].brief.name for name, group in self._groups.items() if name not in self._stored)
        gate_for_run(str(flow_run.get_id()), limits).prefixes.expect(asks)
        self._outcomes: list[Outcome] = [*known]
        self._reported_at = time.monotonic()
        self._circuit = CircuitBreaker(limits.circuit, limits.wait_s)
        self.stop: Stop | None = None
        """Why the rest was not asked, if anything stopped the fan-out."""

    @property
    def task_runs(self) -> int:
        """How many task runs were submitted."""
        return self._earlier_task_runs + self._in_flight.task_runs

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The outcomes so far, in order of arrival."""
        return self._outcomes

    @property
    def stop_reason(self) -> str | None:
        """The error that all work would meet, if that is why the rest was not asked."""
        return self.stop.reason if self.stop and self.stop.kind == "circuit" else None

    @property
    def pilot_reason(self) -> str:
        """Why the rest was not asked after the run's pilot; empty if another reason, or none, stopped it."""
        return self.stop.reason if self.stop and self.stop.kind == "pilot" else ""

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
        self._work_off_queue()
        # What is left was stopped by `self.stop`.
        if self._queue.waiting:
            stop = cast("Stop", self.stop)
            # All at once, as each call reports the progress of the run, and there may be very many.
            self._record(*(self._as_skipped(work, *stop) for work in self._queue.remove_matching(lambda _: True)))
        return self._outcomes

    def run_first(self, names: Collection[str]) -> None:
        """Finish some of the work before `run`, such as a pilot.

        Args:
            names: The fingerprints of that work, all of it of the first stage that has work left.
        """
        held = self._queue.remove_matching(lambda work: work.fingerprint not in names)
        dependent = self._dependent.drain()  # else it would be queued as soon as what it needs is answered
        try:
            self._work_off_queue()
        finally:
            self._queue.waiting.extend(held)
            self._dependent.waiting = dependent
            self._dependent.add(self._outcomes)
        # The tracker has shut down the runner that it used; `run` starts its own.
        self._earlier_task_runs += self._in_flight.task_runs
        self._in_flight = self._create_in_flight(self._executor, self._limits)

    def continue_with(self, executor: Executor) -> None:
        """Ask what is left with another state of the executor, one that has the same fingerprint; between two phases.

        Args:
            executor: The executor.
        """
        self._executor = executor
        self._in_flight = self._create_in_flight(executor, self._limits)

    def _work_off_queue(self) -> None:
        """Finish all queued work, unless `self.stop` is set on the way."""
        with outside_transactions(), self._in_flight, watch_cancellation(LOOK_S) as self._check_cancelled:
            try:
                # 1. Finish cached work, which creates no task run.
                self._record_stored()
                self._record(*self._queue_dependent())
                # 2. Keep the window full until nothing is left.
                is_running = self._submit()
                self._report_progress()
                while is_running:
                    self._record_results(self._wait_for_results())
                    is_running = self._submit()
            except BaseException:
                self._wind_down()
                raise

    def record_interrupted(self) -> list[Outcome]:
        """Return one outcome for each (brief, item) after an interruption of `run`: what has none gets one.

        Work whose request may have been sent has failed; what was not begun is skipped.
        """
        error = Failure(kind=_INTERRUPTED, message="The run was cancelled before the answer came.")
        self._record(*(WorkResult(work, "failed", error=error) for work in self._in_flight.pending))
        # All at once, as each call reports the progress of the run, and there may be very many.
        waiting = [*self._queue.remove_matching(lambda _: True), *self._dependent.drain()]
        self._record(*(self._as_skipped(work, _INTERRUPTED, "the run was cancelled.") for work in waiting))
        submitted = [group[0] for group in self._groups.values()]  # interrupted between the queue and the submission
        self._record(*(self._as_skipped(work, _INTERRUPTED, "the run was cancelled.") for work in submitted))
        return self._outcomes

    def _apply_batch_results(self, batched: BatchResults) -> None:
        """Take over the results of batches, and skip what the budget did not cover even at half the price."""
        self._batched, reasons = batched, batched.unaffordable
        self._again -= batched.answered
        self.stop = self.stop or (Stop("circuit", batched.stopped) if batched.stopped else None)
        for work in self._queue.remove_matching(lambda work: work.fingerprint in reasons):
            self._skip(work, "budget", reasons[work.fingerprint])

    def _record_stored(self) -> None:
        """Record the outcomes of stored answers, before anything is asked."""
        stored = self._queue.remove_matching(lambda work: work.fingerprint in self._stored)
        self._record(
            *(WorkResult(work, "succeeded", self._stored.pop(work.fingerprint), stored=True) for work in stored)
        )
        self._in_flight.prepare(0 if self.stop else len(self._queue.waiting))

    def _wait_for_results(self) -> list[WorkResponse]:
        """Wait for results, report the progress regularly, and raise if the run was cancelled."""
        while True:
            self._check_cancelled()
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
        self._record(self._as_skipped(work, kind, why))

    def _as_skipped(self, work: WorkItem, kind: str, why: str) -> WorkResult:
        """Return the result of work that is not asked; it has failed if a batch has asked it before."""
        was_asked = work.fingerprint in self._batched.attempts
        suffix = " again" if was_asked else ""
        error = Failure(kind=kind, message=f"Not asked{suffix}: {why}")
        return WorkResult(work, "failed" if was_asked else "skipped", error=error)

    def _record(self, *ends: WorkResult) -> None:
        """Record results, and those of work that depends on them and can't be asked, or whose answer is stored."""
        while ends:
            recorded = len(self._outcomes)
            # Equal work gets an outcome each. Outcomes of parts are kept until their item can be joined.
            for end in ends:
                name = end.work.fingerprint
                equal = self._groups.pop(name, [end.work])  # a part of an item is in none
                outcomes = end.to_outcomes(equal, self._batched.attempts.get(name, ()))
                self._outcomes += [outcome for outcome in outcomes if not self._parts.record_outcome(outcome)]
            if len(self._outcomes) > recorded:
                self._progress = self._progress.plus(*self._outcomes[recorded:])
                if notify := on_outcomes.get():
                    notify(self._outcomes[recorded:])
                self._report_progress()
            self._dependent.add(self._outcomes[recorded:])
            ends = tuple(self._queue_dependent())
        self._record_joined_items()

    def _queue_dependent(self) -> list[WorkResult]:
        """Queue the work that starts from what is finished by now; return the results of what need not be asked."""
        ends: list[WorkResult] = []
        for work, then in self._dependent.pop_ready():
            if isinstance(then, WorkResult):
                ends.append(then)
                continue
            if work.fingerprint in self._again:
                self._again |= {then.fingerprint}
            group = self._groups.setdefault(then.fingerprint, [])
            group.append(then)
            if len(group) > 1:  # equal work is asked once
                continue
            if answer := self._stored.pop(then.fingerprint, None):
                ends.append(WorkResult(then, "succeeded", answer, stored=True))
            else:
                self._queue.waiting.append(then)
        return ends

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
