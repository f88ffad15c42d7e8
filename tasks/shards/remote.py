"""Remote shards: task runs in other processes, each with its share of the slots, the rates and the budget."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from prefect.context import FlowRunContext
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run
from prefect.states import Crashed
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from prefect_dispatch.calls.budget import ZERO_AMOUNT, usage_amount
from prefect_dispatch.calls.call_gate import gate_for_run
from prefect_dispatch.errors import BudgetError, ExecutorError, JobError, TransientError
from prefect_dispatch.models.outcome import Answer, Attempt, Usage
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.tasks.fan_out import MAX_TASK_RUNS, MIN_SHARD_SIZE, InFlight, validate_result
from prefect_dispatch.tasks.get_or_compute import SUFFIX, load_checkpoint, was_sent
from prefect_dispatch.tasks.result_store import LenientBlobStore, parse_record, storage_key, stored_answer
from prefect_dispatch.tasks.run_brief import Shard, result_store_for_run
from prefect_dispatch.tasks.shards.protocol import (
    GO,
    HALT,
    ShardHeader,
    ShardResult,
    abandon_shard,
    abandoned_key,
    note_key,
    started_key,
)
from prefect_dispatch.tasks.work_item import WorkResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

    from prefect_dispatch.calls.budget import BudgetShare, UsageAmount
    from prefect_dispatch.errors import TerminalError
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.tasks.result_store import BlobStore
    from prefect_dispatch.tasks.work_item import WorkItem


class WorkerCapacity(NamedTuple):
    """Capacity of a task runner."""

    processes: int
    """Number of processes; the slots of the run are divided among them."""
    shards: int
    """Number of task runs in all; those in one process share its slots."""


@dataclass(frozen=True)
class RemoteTarget:
    """Task runner whose task runs are in other processes.

    Only the public interface of the runner is used: it is entered, and gets
    `submit(task=…, parameters={"shard": Shard, "executor": Executor, "limits": Limits}, wait_for=None)`, the task being
    `tasks.run_brief.run_shard`, and the limits the shard's share of what the run may take. Of the returned future
    `add_done_callback`, `wait` and `result` are used; the result is a `ShardResult`, whose answers are read from the
    store. Anything else means that the process has died: then the shard's answers are looked up in the store, and the
    rest is asked again.
    """

    make: Callable[[], TaskRunner[Any]]
    """Returns the runner; called where a fan-out begins."""
    capacity: Callable[[Any], WorkerCapacity]
    """Returns the capacity of the runner, once entered; called again before each shard."""
    entered: bool = False
    """Whether the runner is already entered, by its owner."""
    isolated: bool = False
    """Whether each task run has a process of its own, so that none dies of what another does."""

    def __call__(self, executor: Executor, limits: Limits) -> InFlight:
        """Create the tracker of the task runs in progress of a fan-out."""
        return RemoteShards(executor, limits, self)


def find_remote_target() -> RemoteTarget | None:
    """Return the task runner of the flow if it runs in other processes, else None."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, ThreadPoolTaskRunner):
        return None
    runner: Any = context.task_runner
    return RemoteTarget(lambda: runner, capacity_of, entered=True)


def require_picklable(executor: Executor) -> None:
    """Check that an executor can be pickled, to be sent to another process.

    Raises:
        JobError: If it can't.
    """
    try:
        import_module("cloudpickle").dumps(executor)  # which has no types
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- its attributes' own code may raise anything
        raise JobError(
            f"The executor {type(executor).__name__} can't be sent to another process ({safe_message(error)}); leave "
            "out what can't be pickled, or run the job in this process (task_runner: threads)."
        ) from None


def capacity_of(runner: object) -> WorkerCapacity:
    """Return the capacity of a task runner, as far as it is known."""
    class_names = {each.__name__ for each in type(runner).__mro__}
    if "DaskTaskRunner" in class_names:
        return _dask_capacity(runner)
    if "RayTaskRunner" in class_names:
        return _ray_capacity()
    max_workers = getattr(runner, "_max_workers", None) if isinstance(runner, ProcessPoolTaskRunner) else None
    processes = max_workers or os.cpu_count() or 1
    return WorkerCapacity(processes, processes)


def _dask_capacity(runner: Any) -> WorkerCapacity:  # noqa: ANN401 -- prefect-dask may not be installed
    threads: dict[str, int] = runner.client.nthreads()
    return WorkerCapacity(max(1, len(threads)), max(1, sum(min(2, each) for each in threads.values())))


def _ray_capacity() -> WorkerCapacity:
    ray: Any = import_module("ray")  # which may not be installed
    processes = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return WorkerCapacity(processes, processes)


SHRINK_FACTOR = 32
"""Factor by which a shard is smaller after each crash, so that the work that kills its process is isolated at last."""


MAX_UNBEGUN = 5
"""Times that an item may be in shards that no process begins; then it fails."""


UNBEGUN, SILENT = "unbegun", "silent"
"""Kinds of the loss of a shard: no process began it, or its process stopped sending heartbeats."""


class CrashedWork:
    """Crash recovery of one fan-out: tracks the work of processes that died."""

    def __init__(self, blobs: BlobStore, most: int, *, isolated: bool = False) -> None:
        """Create an empty record of crashes.

        Args:
            blobs: The store of answers.
            most: How often work that was in progress may be lost before it fails.
            isolated: Whether each shard has a process of its own, so that none dies of the work of another.
        """
        self._blobs, self._max_crashes, self._isolated = blobs, most, isolated
        self._since = datetime.now(timezone.utc)
        self._crashes: dict[str, int] = {}
        self._unbegun: Counter[str] = Counter()
        self._suspects: set[str] = set()

    @property
    def is_last_attempt(self) -> bool:
        """Whether some work is asked for the last time: then nothing else is, as a crash would count against all."""
        return not self._isolated and any(died >= self._max_crashes for died in self._crashes.values())

    def size(self, whole: int) -> int:
        """Return how many items a shard may have.

        Shards are smaller only until the suspected work is in progress again: it is asked first.

        Args:
            whole: The size without crashes.
        """
        crashes: int = max((self._crashes.get(name, 0) for name in self._suspects), default=0)
        return max(1, whole // int(SHRINK_FACTOR**crashes))

    def mark_in_flight(self, names: Iterable[str]) -> None:
        """Note that work, by its fingerprints, is in progress again."""
        self._suspects.difference_update(names)

    def results_of(self, work: Iterable[WorkItem], why: object) -> list[WorkResponse]:
        """Return the results of work whose process died: stored answers, None to ask again, or an error.

        Suspected work comes last: so it is asked first, and soon no longer keeps shards small.

        Args:
            work: The work of the shard.
            why: The error, if there is one.
        """
        # 1. Take the answers that this fan-out has stored before the crash.
        results = [WorkResponse(each, self._load_answer(each)) for each in work]
        unanswered: list[WorkItem] = [each.work for each in results if each.result is None]
        # 2. A shard that no process began is no crash: its work is asked again, a limited number of times.
        kind = why.kind if isinstance(why, ExecutorError) else ""
        if kind == UNBEGUN:
            return [self._count_unbegun(each) if each.result is None else each for each in results]
        # 3. Suspect what its checkpoint shows as in progress. Where nothing was, any of the work may keep its process
        # from starting, unless the process was lost for another reason.
        sent = [each for each in unanswered if was_sent(self._blobs, storage_key(each.fingerprint))]
        suspects = sent or ([] if kind == SILENT else unanswered)
        suspect_fingerprints: set[str] = {each.fingerprint for each in suspects}
        rest = [each for each in results if each.work.fingerprint not in suspect_fingerprints]
        return rest + [self._count_crash(each, why) for each in suspects]

    def forget_finished(self, results: Iterable[WorkResponse]) -> None:
        """Forget work that has a final result."""
        for each in results:
            if each.result is not None:
                self._crashes.pop(each.work.fingerprint, None)
                self._unbegun.pop(each.work.fingerprint, None)
                self._suspects.discard(each.work.fingerprint)

    def _count_crash(self, work: WorkItem, why: object) -> WorkResponse:
        """Count a crash of suspected work; return None as its result, or the error if that was one too many."""
        crashes = self._crashes[work.fingerprint] = self._crashes.get(work.fingerprint, 0) + 1
        if crashes <= self._max_crashes:
            self._suspects.add(work.fingerprint)
            return WorkResponse(work, None)
        reason = f" ({safe_message(why)})" if isinstance(why, BaseException) else ""
        message = f"Its process has died{reason}; that was the {_ordinal(crashes)} time (limits.retries)."
        error = ExecutorError(message, kind="crashed")
        error.attempts = tuple(self._report_attempts(work, f"crashed: {message}"))
        return WorkResponse(work, error)

    def _count_unbegun(self, item_result: WorkResponse) -> WorkResponse:
        """Return the result of work that no process began: None to ask again, or the error if that was one too many."""
        name = item_result.work.fingerprint
        self._unbegun[name] += 1
        if self._unbegun[name] < MAX_UNBEGUN:
            return item_result
        message = f"No process began the shards that it was in, {MAX_UNBEGUN} times; see to the workers."
        return WorkResponse(item_result.work, ExecutorError(message, kind=UNBEGUN, usage=Usage()))

    def _report_attempts(self, work: WorkItem, error: str) -> Iterator[Attempt]:
        """Yield the calls that a checkpoint records, and mark them as reported, so that no later run counts them."""
        key = storage_key(work.fingerprint)
        checkpoint = load_checkpoint(self._blobs, key + SUFFIX)
        if checkpoint is None or not (checkpoint.pending or checkpoint.lost or checkpoint.replies):
            return
        unsettled = checkpoint.lost + checkpoint.pending
        usage = sum((kept.reply.usage for kept in checkpoint.replies), Usage(requests=unsettled, unsettled=unsettled))
        yield Attempt(started=datetime.now(timezone.utc), usage=usage, error=error)
        self._blobs.write(key + SUFFIX, checkpoint.with_usage_reported.content)

    def _load_answer(self, work: WorkItem) -> Answer | None:
        """Return the stored answer to some work, if it was asked since the fan-out began."""
        answer = stored_answer(self._blobs, work)
        began = answer.attempts[-1].started if answer and answer.attempts else None
        return answer if began is not None and began >= self._since else None


def _ordinal(number: int) -> str:
    """Return an ordinal number in words.

    Example:
        >>> [_ordinal(number) for number in (1, 2, 3, 4)]
        ['first', 'second', 'third', '4th']
    """
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def spent_on(results: Iterable[WorkResponse]) -> UsageAmount:
    """Return the amount spent on some results."""
    attempts = [attempt for each in results for attempt in getattr(each.result, "attempts", ()) if not each.stored]
    return sum((usage_amount(attempt.usage) for attempt in attempts), ZERO_AMOUNT)


SLACK_S = 3.0
"""Seconds that the notice of an interruption, and the results after it, need to arrive."""


READERS = 16
"""Answers of a shard that are read concurrently."""


MAX_MISSING = 3
"""Times that a result may name a stored answer which is missing in the store."""


MAX_SHARDS = 10_000
"""Shards in progress at once, at most, even if the capacity is larger."""


MIN_ROUNDS = 10
"""Items in a shard for each slot of another process, at least: while the last ones finish, slots are idle."""


_RATES = ("requests_per_minute", "tokens_per_minute")


def remote_shard_size(asks: int, limits: Limits, at_once: int) -> int:
    """Return how many items a task run takes in another process, where one costs about 100 ms.

    Args:
        asks: The number of asks.
        limits: The limits of one process; `shard` overrides the choice.
        at_once: How many task runs are in progress at once.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> [remote_shard_size(asks, Limits(concurrency=100), 2) for asks in (20, 2000, 1_000_000)]
        [10, 1000, 2500]
    """
    if limits.shard is not None:
        return limits.shard
    size = max(MIN_SHARD_SIZE, MIN_ROUNDS * limits.concurrency, -(-asks // MAX_TASK_RUNS))
    return max(1, min(size, -(-asks // at_once)))


def max_divisible_processes(limits: Limits) -> int:
    """Return among how many processes slots and rates can be divided, with at least one of each for every process.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> max_divisible_processes(Limits(concurrency=8))
        8
        >>> max_divisible_processes(Limits(concurrency=8, requests_per_minute=2))
        2
    """
    rates: list[int | None] = [getattr(limits, name) for name in _RATES]
    return min(each for each in (limits.concurrency, *rates) if each is not None)


def divide_limits(limits: Limits, processes: int) -> Limits:
    """Return the limits of one of several processes: slots and rates are divided among them.

    Example:
        >>> from prefect_dispatch.models.limits import Limits
        >>> one = divide_limits(Limits(concurrency=9, requests_per_minute=60), 2)
        >>> one.concurrency, one.requests_per_minute, one.tokens_per_minute
        (4, 30, None)
    """
    totals = {name: getattr(limits, name) for name in ("concurrency", *_RATES)}
    return limits.model_copy(update={name: total // processes for name, total in totals.items() if total is not None})


class _DispatchedShard(NamedTuple):
    """Shard that was sent to another process."""

    name: str
    work: dict[str, WorkItem]
    share: BudgetShare
    whole: bool
    """Whether it has all of the remaining budget: what that does not cover can't be asked at all."""
    sent: bool
    """Whether the runner took it."""


def end_at_once(state: State[Any]) -> PrefectConcurrentFuture[Any]:
    """Return the future of a shard that has ended already."""
    ended: Future[Any] = Future()
    ended.set_result(state)
    return PrefectConcurrentFuture(task_run_id=uuid4(), wrapped_future=ended)


class RemoteShards(InFlight):
    """Shards of a fan-out that are in progress in other processes.

    After a process has died, its work is looked up in the store; the rest is asked again, in shards so small that
    the work that kills its process is isolated at last.
    """

    def __init__(self, executor: Executor, limits: Limits, where: RemoteTarget) -> None:
        """Keep the executor, its limits, and the target."""
        super().__init__(executor, limits)
        self._target = where
        self._runner: Any = None
        self._stack = ExitStack()
        self._budget = gate_for_run(str(flow_run.get_id()), limits).budget
        self._blobs = result_store_for_run()
        self._capacity = WorkerCapacity(1, 1)
        self._max_shards = MAX_SHARDS
        self._whole_size = 1
        self._draining = self._broken = False
        self._dispatched: dict[object, _DispatchedShard] = {}
        self._stale_notes: list[str] = []
        self._crashed = CrashedWork(self._blobs, limits.retries, isolated=where.isolated)
        self._name = uuid4().hex
        self._earlier_attempts: dict[str, tuple[Attempt, ...]] = {}
        self._missing: Counter[str] = Counter()
        self._answers = LenientBlobStore(self._blobs)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="shard-answers")

    def __exit__(self, *error: object) -> None:
        """Shut the runner down, if it was entered here, and remove the control notes."""
        try:
            self._remove_notes(note_key(self._name))
            self._stack.close()
            self._remove_notes(*self._stale_notes, *(started_key(lent.name) for lent in self._dispatched.values()))
        finally:
            self._readers.shutdown()
            super().__exit__(*error)

    def prepare(self, asks: int) -> None:
        """Start the runner, and choose the shard size for a number of asks."""
        if not asks:
            return
        if self._target.entered:  # else it was checked before
            require_picklable(self._executor)
        self._blobs.write(note_key(self._name), GO)
        self._runner = self._target.make()
        if why := self._start_error():
            raise JobError(why)
        self._capacity = self._current_capacity()
        self._whole_size = self.size = remote_shard_size(
            asks, divide_limits(self._limits, self._capacity.processes), self._capacity.shards
        )

    @property
    def note(self) -> str:
        """What the shards wait for, if none of them is worked on and the runner reports it."""
        return str(getattr(self._runner, "note", ""))

    @property
    def takes_more(self) -> bool:
        """Whether another shard may be submitted."""
        # Drain first, to divide the budget again, to isolate suspected work, or to give new processes a share.
        if self._dispatched and (
            self._draining
            or self._crashed.is_last_attempt
            or self._current_capacity().processes > self._capacity.processes
        ):
            return False
        if not self._dispatched:
            self._reset()
        free = min(self._max_shards, self._capacity.shards) - len(self._dispatched)
        return free > 0 and (
            not self._dispatched or self._budget.is_divisible(free)
        )  # a lone shard may take all of the budget

    def submit(self, work: Sequence[WorkItem], again: Collection[str] = ()) -> None:
        """Submit a shard with its share of the budget; see `InFlight`."""
        # 1. Take a share of the budget for the shard, and submit it.
        free = min(self._max_shards, self._capacity.shards) - len(self._dispatched)
        share = self._budget.reserve_share(free)
        name, by_fingerprint = uuid4().hex, {each.fingerprint: each for each in work}
        shard = Shard(
            tuple(work),
            frozenset(by_fingerprint.keys() & set(again)),
            header=ShardHeader(name=name, note=self._name),
        )
        parameters = {
            "shard": shard,
            "executor": self._executor,
            "limits": divide_limits(share.limits, self._capacity.processes),
        }
        is_sent, is_whole = True, free == 1 and not self._dispatched
        try:
            future: Any = self._runner.submit(task=self._shard_task, parameters=parameters, wait_for=None)
        except Exception as error:  # noqa: BLE001 -- its processes are gone, perhaps
            # A shard that the runner rejected counts as ended at once.
            future, is_sent = end_at_once(Crashed(data=error)), False
        # 2. Track it.
        self._dispatched[future] = _DispatchedShard(name, by_fingerprint, share, whole=is_whole, sent=is_sent)
        self._groups |= dict.fromkeys(by_fingerprint, by_fingerprint)
        self._crashed.mark_in_flight(by_fingerprint)
        self.size = self._crashed.size(self._whole_size)
        future.add_done_callback(self._events.put)
        self.task_runs += 1

    def halt(self) -> None:
        """Have shards start nothing more, in all processes."""
        if not self.stopped:
            self.stopped = True
            with suppress(TransientError):
                self._blobs.write(note_key(self._name), HALT)

    def close(self, grace_s: float) -> float:
        """Have shards end, in all processes; see `InFlight`."""
        self._remove_notes(note_key(self._name))
        return grace_s + SLACK_S

    def _start_error(self) -> str | None:
        """Enter the runner, unless it is; return why it can't run anything: some fail only at their first request."""
        try:
            if not self._target.entered:
                self._stack.enter_context(self._runner)
            self._target.capacity(self._runner)
        except Exception as error:  # noqa: BLE001 -- a user's cluster may raise anything
            return (
                f"task_runner: {type(self._runner).__name__} can't be started ({safe_message(error)}); see to its "
                "cluster and that 'address' is the cluster's, or leave task_runner out: then the job runs in this "
                "process."
            )
        return None  # and not raised where it was caught: that would keep a client of Dask, which hangs at the end

    def _current_capacity(self) -> WorkerCapacity:
        """Return the current capacity, as far as the limits can be divided."""
        try:
            capacity = self._target.capacity(self._runner)
        except Exception:  # noqa: BLE001 -- its processes are gone, perhaps
            return self._capacity
        max_processes = max_divisible_processes(self._limits)
        return capacity if capacity.processes <= max_processes else WorkerCapacity(max_processes, max_processes)

    def _reset(self) -> None:
        """Reset, as nothing is in progress: replace a pool whose processes died, and divide the budget again."""
        if self._broken:
            self._runner = self._runner.duplicate() if self._target.entered else self._target.make()
            self._stack.close()
            self._stack.enter_context(self._runner)
        self._capacity = self._current_capacity()
        self._draining = self._broken = False

    def _collect(self, future: PrefectFuture[Any]) -> list[WorkResponse]:
        """Return the results of a shard."""
        shard = self._dispatched.pop(future)
        try:
            future.wait()
            result: object = future.result(raise_on_failure=False)
        except Exception as broken:  # noqa: BLE001 -- its process is gone
            result = broken
        self._broken |= isinstance(result, BrokenExecutor)
        if not isinstance(result, ShardResult) or result.begun_before:
            return self._recover(shard, result)
        self._remove_notes(started_key(shard.name))
        self._budget.settle_share(shard.share, result.spent)
        results = self._read_results(shard, result)
        returned = {each.work.fingerprint for each in results}
        results += [WorkResponse(work, None) for name, work in shard.work.items() if name not in returned]
        return self._resize(results)

    def _read_results(self, shard: _DispatchedShard, result: ShardResult) -> list[WorkResponse]:
        """Return what a shard's result says, with the answers from the store, validated like any stored answer."""
        done = {each.fingerprint: each for each in result.done if each.fingerprint in shard.work}
        results: dict[str, object] = {name: each.error.error for name, each in done.items() if each.error}
        answered = [shard.work[name] for name in done if name not in results]
        answers = self._readers.map(self._read_answer, answered)
        results |= {work.fingerprint: answer for work, answer in zip(answered, answers, strict=True)}
        return [
            self._to_response(shard, shard.work[name], results[name], stored=each.stored) for name, each in done.items()
        ]

    def _read_answer(self, work: WorkItem) -> Answer | TerminalError | None:
        return validate_result(parse_record(self._answers.load(storage_key(work.fingerprint))), work)

    def _to_response(self, shard: _DispatchedShard, work: WorkItem, result: object, *, stored: bool) -> WorkResponse:
        """Return the result of a piece of work; None, to ask it again, where the shard's budget did not cover it.

        So it is where the answer is missing in the store, but not for ever.
        """
        name = work.fingerprint
        if result is None:
            self._missing[name] += 1
            if self._missing[name] == MAX_MISSING:
                result = ExecutorError("Its answer was stored by a run elsewhere, and isn't there.", kind="storage")
        earlier = self._earlier_attempts.get(name, ())
        if isinstance(result, ExecutorError):
            result.attempts = (*earlier, *result.attempts)
            # A share of the budget was too small, not the budget: ask again with fewer, larger shares.
            if isinstance(result, BudgetError) and not shard.whole:
                if not self._draining:  # divided among fewer there may be room
                    self._max_shards = max(1, min(self._max_shards, self._capacity.shards) // 2)
                    self._draining = True
                self._earlier_attempts[name] = result.attempts
                return WorkResponse(work, None)
            if isinstance(result, BudgetError):
                self._budget.as_whole_budget_error(result)
        elif isinstance(result, Answer) and not stored:
            result = result.model_copy(update={"attempts": (*earlier, *result.attempts)})
        return WorkResponse(work, result, stored=stored and result is not None)

    def _recover(self, shard: _DispatchedShard, why: object) -> list[WorkResponse]:
        """Return the results of a shard whose process died, and charge the most that it can have spent."""
        self._stale_notes += started_key(shard.name), abandoned_key(shard.name)
        # Where every answer is known, so is the spending. Otherwise the most that the shard may have spent is charged.
        most = abandon_shard(self._blobs, shard.name) if shard.sent else ZERO_AMOUNT
        results = self._crashed.results_of(shard.work.values(), why)
        all_answered = all(isinstance(each.result, Answer) for each in results)
        self._budget.settle_share(shard.share, spent_on(results) if all_answered else most)
        for each in results:
            if isinstance(each.result, ExecutorError):
                each.result.attempts = (*self._earlier_attempts.get(each.work.fingerprint, ()), *each.result.attempts)
        return self._resize(results)

    def _resize(self, results: list[WorkResponse]) -> list[WorkResponse]:
        """Choose the size of the next shards, and return the results."""
        self._crashed.forget_finished(results)
        self.size = self._crashed.size(self._whole_size)
        return results

    def _remove_notes(self, *keys: str) -> None:
        for key in keys:
            with suppress(TransientError):
                self._blobs.remove(key)


def initialize_pool_process() -> None:  # pragma: no cover -- in a process of its own
    """Initialize a process of a pool.

    A terminal sends Ctrl-C to all processes; the parent process cancels the work, and waits for it. A parent that was
    killed can't: Python's pools leave their processes behind then, waiting for work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_with_parent, args=(parent,), name="prefect-dispatch-parent", daemon=True).start()


def _exit_with_parent(parent: BaseProcess) -> None:  # pragma: no cover -- in a process of its own
    parent.join()
    os._exit(1)
