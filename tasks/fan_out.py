"""The fan-out: a task run for each piece of work, and an outcome for each, whatever happens.

`Task.map` would submit everything at once. The same task runs are submitted
here through a sliding window of `concurrency`, so that an error which every
item would meet stops the rest before it costs anything, and work that shares
a lock never runs at the same time. The task runner is whatever the flow has.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from prefect.runtime import flow_run

from prefect_dispatch.errors import ExecutorError, TerminalError
from prefect_dispatch.models import Answer, Attempt, Failure, Outcome
from prefect_dispatch.progress import Progress
from prefect_dispatch.scrub import scrub, told
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.apart import apart
from prefect_dispatch.tasks.run_brief import within
from prefect_dispatch.tasks.store import usable
from prefect_dispatch.tasks.work import Work, as_is, equal_work

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from prefect.futures import PrefectFuture

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Limits
    from prefect_dispatch.tasks.independence import Independence

NO_LOCKS: frozenset[str] = frozenset()


class FanOut:
    """One fan-out: what waits, what is under way, and what came of the rest."""

    def __init__(
        self,
        work: Sequence[Work],
        executor: Executor,
        limits: Limits,
        *,
        independence: Independence,
        again: Collection[str] = (),
        tell: Callable[[Progress], None],
    ) -> None:
        """Keep what is to be done.

        Args:
            work: Every (brief, item).
            executor: Who is asked.
            limits: Concurrency, retries, re-asks and time limit.
            independence: The locks and stages that the work must keep to.
            again: The fingerprints that are asked again even where an answer is stored.
            tell: Told of every outcome.
        """
        self._groups = equal_work(work)
        self._locks, self._stages = independence.locks, independence.stages
        self._ready = sorted((group[0] for group in self._groups.values()), key=self._stage)
        self._executor = executor
        self._limits = limits
        self._again = again
        self._task, self._afresh = within(limits), within(limits, refresh=True)
        self._tell = tell
        self._progress = Progress(total=len(work))
        self._under_way: dict[PrefectFuture[Any], Work] = {}
        self._done: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
        self._held: set[str] = set()
        self._outcomes: list[Outcome] = []
        self.stopped: str | None = None
        """Why the rest was not asked, if an error stopped the fan-out."""

    def run(self) -> list[Outcome]:
        """Return one outcome for each (brief, item), in order of arrival."""
        try:
            with apart():
                while self._submit():
                    self._settle(self._done.get())
        except BaseException:
            loop.cancel(str(flow_run.get_id()))
            raise
        for work in self._ready:
            self._record(work, status="skipped", error=Failure(kind="stopped", message=f"Not asked: {self.stopped}"))
        return self._outcomes

    def _submit(self) -> bool:
        """Fill the window; return whether anything is under way."""
        while self.stopped is None and len(self._under_way) < self._limits.concurrency and (work := self._next()):
            self._begin(work, self._afresh if work.fingerprint in self._again else self._task)
        return bool(self._under_way)

    def _begin(self, work: Work, task: Any) -> None:  # noqa: ANN401 -- Prefect's overloads leave types unknown
        self._held |= self._locks.get(work.ref, NO_LOCKS)
        future: PrefectFuture[Answer] = task.submit(work.brief, as_is(work.item), self._executor, self._limits)
        self._under_way[future] = work
        future.add_done_callback(self._done.put)

    def _next(self) -> Work | None:
        """Take the first piece of work whose locks are free, of a stage before which nothing is under way."""
        lowest = min(map(self._stage, self._under_way.values()), default=None)
        for place, work in enumerate(self._ready):
            if self._stage(work) != (self._stage(self._ready[0]) if lowest is None else lowest):
                return None
            if self._held.isdisjoint(self._locks.get(work.ref, NO_LOCKS)):
                del self._ready[place]
                return work
        return None

    def _stage(self, work: Work) -> int:
        return self._stages.get(work.ref, 0)

    def _settle(self, future: PrefectFuture[Any]) -> None:
        """Turn what came of a task run into outcomes."""
        work = self._under_way.pop(future)
        self._held -= self._locks.get(work.ref, NO_LOCKS)
        stored = False
        try:
            future.wait()
            said: object = future.result(raise_on_failure=False)
            stored = future.state.name == "Cached"
            answer = usable(said, work) if stored else said
        except Exception as broken:  # noqa: BLE001 -- Prefect's engine failed, or a check did; still an outcome
            said = answer = broken
        if isinstance(answer, Answer):
            self._record(work, status="succeeded", answer=answer, stored=stored)
        elif isinstance(said, BaseException):
            self._fail(work, said)
        else:  # what stands under the key is no answer to this work
            self._begin(work, self._afresh)

    def _fail(self, work: Work, error: BaseException) -> None:
        failure = _failure(error)
        attempts = error.attempts if isinstance(error, ExecutorError) else ()
        self._record(work, status="failed", error=failure, attempts=attempts)
        if isinstance(error, TerminalError) and self.stopped is None:
            self.stopped = f"{work.ref} met an error that every item would meet: {failure.message}"

    def _record(
        self,
        work: Work,
        *,
        status: Literal["succeeded", "failed", "skipped"],
        answer: Answer | None = None,
        stored: bool = False,
        error: Failure | None = None,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        for place, each in enumerate(self._groups[work.fingerprint]):
            origin: Literal["asked", "stored", "shared"] = "stored" if stored else "shared" if place else "asked"
            outcome = Outcome(
                brief=each.brief.name,
                item=each.item.key,
                status=status,
                value=answer.value if answer else None,
                error=error,
                model=answer.model if answer else "",
                attempts=answer.attempts if answer else attempts,
                origin=None if status == "skipped" else origin,
                fingerprint=each.fingerprint,
                brief_priority=each.brief.priority,
                item_priority=each.item.priority,
            )
            self._outcomes.append(outcome)
            self._progress = self._progress.plus(outcome)
            self._tell(self._progress)


def _failure(said: BaseException) -> Failure:
    """Return why a task run has no answer; its message is free of secrets."""
    if isinstance(said, ExecutorError):
        return Failure(kind=said.kind, message=scrub(str(said)))
    return Failure(kind="crashed", message=told(said))
