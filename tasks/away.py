"""What is under way in other processes: shards, each with its share of the places, the pace and the budget."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import uuid4

from prefect.runtime import flow_run

from prefect_dispatch.amounts import NOTHING
from prefect_dispatch.errors import BudgetError, ExecutorError, JobError, TransientError
from prefect_dispatch.models import Answer
from prefect_dispatch.scrub import told
from prefect_dispatch.tasks.elsewhere import Room, require_sent
from prefect_dispatch.tasks.errands import GO, HALT, Ended, Sent, Told, begun_key, given_up, note_key, over_key
from prefect_dispatch.tasks.gates import gate_of
from prefect_dispatch.tasks.losses import Losses, spent_on
from prefect_dispatch.tasks.run_brief import answer_shelf
from prefect_dispatch.tasks.shards import Came, Shard
from prefect_dispatch.tasks.sizes import divided, most_processes, size_elsewhere
from prefect_dispatch.tasks.under_way import UnderWay

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from prefect.futures import PrefectFuture

    from prefect_dispatch.budget import Share
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Attempt
    from prefect_dispatch.tasks.elsewhere import Elsewhere
    from prefect_dispatch.tasks.work import Work

SLACK_S = 3.0
"""Seconds that word of an interruption, and what comes of it, are on their way."""
MOST = 10_000
"""Shards that are under way at once at most, however much room there is."""


def under_way(executor: Executor, limits: Limits, where: Elsewhere | None) -> UnderWay:
    """Return what is under way: in this process, unless it is said where else."""
    return Away(executor, limits, where) if where else UnderWay(executor, limits)


class _Lent(NamedTuple):
    """A shard that is elsewhere."""

    name: str
    work: dict[str, Work]
    share: Share
    whole: bool
    """Whether it has all that was left of the budget: what that refuses can't be asked at all."""


class _Unsent(NamedTuple):
    """What stands for the future of a shard that no runner took."""

    error: Exception

    def wait(self) -> None:
        """Wait for nothing."""

    def result(self, *, raise_on_failure: bool) -> object:  # noqa: ARG002 -- a future's
        """Return why."""
        return self.error


class Away(UnderWay):
    """The shards of a fan-out that are in other processes.

    What a process that died was to ask is looked for in the store; the rest is asked again, in shards so small that
    what kills its process is alone at last.
    """

    def __init__(self, executor: Executor, limits: Limits, where: Elsewhere) -> None:
        """Keep who is asked, and where."""
        super().__init__(executor, limits)
        self._where = where
        self._runner: Any = None
        self._stack = ExitStack()
        self._budget = gate_of(str(flow_run.get_id()), limits).budget
        self._shelf = answer_shelf()
        self._room = Room(1, 1)
        self._most = MOST
        self._whole_size = 1
        self._drains = self._broken = False
        self._lent: dict[object, _Lent] = {}
        self._left: list[str] = []
        self._losses = Losses(self._shelf, limits.retries, isolated=where.isolated)
        self._tried: dict[str, tuple[Attempt, ...]] = {}

    def __exit__(self, *error: object) -> None:
        """End the runner, if it was entered here, and take away the notes."""
        try:
            self._unnote(note_key(self._name))
            self._stack.close()
            self._unnote(*self._left, *(begun_key(lent.name) for lent in self._lent.values()))
        finally:
            super().__exit__(*error)

    def expect(self, asks: int) -> None:
        """Start the runner, and choose the size for so many asks."""
        if not asks:
            return
        if self._where.entered:  # else it was seen to before
            require_sent(self._executor)
        self._shelf.write(note_key(self._name), GO)
        self._runner = self._where.make()
        if why := self._unstarted():
            raise JobError(why)
        self._room = self._measured()
        self._whole_size = self.size = size_elsewhere(
            asks, divided(self._limits, self._room.processes), self._room.shards
        )

    @property
    def note(self) -> str:
        """What the shards wait for, if none of them is worked on, as far as the runner says so."""
        return str(getattr(self._runner, "note", ""))

    @property
    def takes_more(self) -> bool:
        """Whether another shard may begin."""
        if self._lent and (self._drains or self._losses.last or self._measured().processes > self._room.processes):
            return False
        if not self._lent:
            self._renew()
        free = min(self._most, self._room.shards) - len(self._lent)
        return free > 0 and (not self._lent or self._budget.divides(free))

    def begin(self, work: Sequence[Work], again: Collection[str] = ()) -> None:
        """Send a shard away with its share; see `UnderWay`."""
        free = min(self._most, self._room.shards) - len(self._lent)
        share = self._budget.share(free)
        mine = {each.fingerprint: each for each in work}
        lent = _Lent(uuid4().hex, mine, share, whole=free == 1 and not self._lent)
        shard = Shard(tuple(work), frozenset(mine.keys() & set(again)), sent=Sent(lent.name, self._name))
        parameters = {"shard": shard, "executor": self._executor, "limits": divided(share.limits, self._room.processes)}
        try:
            future: Any = self._runner.submit(task=self._many, parameters=parameters, wait_for=None)
        except Exception as error:  # noqa: BLE001 -- its processes are gone, perhaps
            future = _Unsent(error)
            self._come.put(future)
        self._lent[future] = lent
        self._of |= dict.fromkeys(mine, mine)
        self._losses.begun(mine)
        self.size = self._losses.size(self._whole_size)
        if not isinstance(future, _Unsent):
            future.add_done_callback(self._come.put)
        self.records.begun(len(self._lent))

    def halt(self) -> None:
        """Have shards begin nothing more, wherever they are."""
        if not self.stopped:
            self.stopped = True
            with suppress(TransientError):
                self._shelf.write(note_key(self._name), HALT)

    def close(self, grace_s: float) -> float:
        """Have shards end, wherever they are; see `UnderWay`."""
        self._unnote(note_key(self._name))
        return grace_s + SLACK_S

    def _unstarted(self) -> str | None:
        """Enter the runner, unless it is; return why it runs nothing: some know only when they are asked something."""
        try:
            if not self._where.entered:
                self._stack.enter_context(self._runner)
            self._where.room(self._runner)
        except Exception as error:  # noqa: BLE001 -- whatever a cluster of somebody's meets
            return (
                f"task_runner: {type(self._runner).__name__} can't be started ({told(error)}); see to its cluster and "
                "that 'address' is the cluster's, or leave task_runner out: then the job runs in this process."
            )
        return None  # and not raised where it was caught: that would keep a client of Dask, which hangs at the end

    def _measured(self) -> Room:
        """Return how much runs at once, as far as the limits can be divided."""
        try:
            room = self._where.room(self._runner)
        except Exception:  # noqa: BLE001 -- its processes are gone, perhaps
            return self._room
        most = most_processes(self._limits)
        return room if room.processes <= most else Room(most, most)

    def _renew(self) -> None:
        """Begin anew, as nothing is under way: with processes in place of those that died, and other shares."""
        if self._broken:
            self._runner = self._runner.duplicate() if self._where.entered else self._where.make()
            self._stack.close()
            self._stack.enter_context(self._runner)
        self._room = self._measured()
        self._drains = self._broken = False

    def _ended(self, future: PrefectFuture[Any]) -> list[Came]:
        """Return what a shard has brought."""
        lent = self._lent.pop(future)
        try:
            future.wait()
            said: object = future.result(raise_on_failure=False)
        except Exception as broken:  # noqa: BLE001 -- its process is gone
            said = broken
        self._broken |= isinstance(said, BrokenExecutor)
        if isinstance(said, list):
            come = cast("list[Came]", said)
            said = Ended([Told(each.work.fingerprint, each.said, each.stored) for each in come], spent_on(come))
        if not isinstance(said, Ended) or said.begun_before:
            return self._lost(lent, said, sent=not isinstance(future, _Unsent))
        self._unnote(begun_key(lent.name))
        self._budget.settle_share(lent.share, said.spent)
        come = [self._came_of(lent, each) for each in said.told]
        there = {each.work.fingerprint for each in come}
        come += [Came(work, None) for name, work in lent.work.items() if name not in there]
        return self._resized(come)

    def _came_of(self, lent: _Lent, each: Told) -> Came:
        """Return what came of a piece of work: what a share of the budget didn't hold is asked again."""
        work, said, before = lent.work[each.work], each.said, self._tried.get(each.work, ())
        if isinstance(said, ExecutorError):
            said.attempts = (*before, *said.attempts)
            if isinstance(said, BudgetError) and not lent.whole:
                if not self._drains:  # divided among fewer there may be room
                    self._most = max(1, min(self._most, self._room.shards) // 2)
                    self._drains = True
                self._tried[each.work] = said.attempts
                return Came(work, None)
            if isinstance(said, BudgetError):
                self._budget.in_all(said)
        elif isinstance(said, Answer) and not each.stored:
            said = said.model_copy(update={"attempts": (*before, *said.attempts)})
        return Came(work, said, each.stored)

    def _lost(self, lent: _Lent, why: object, *, sent: bool) -> list[Came]:
        """Return what came of a shard whose process died, and count what that can have spent at most."""
        self._left += begun_key(lent.name), over_key(lent.name)
        most = given_up(self._shelf, lent.name) if sent else NOTHING
        come = self._losses.of(lent.work.values(), why)
        known = all(isinstance(each.said, Answer) for each in come)
        self._budget.settle_share(lent.share, spent_on(come) if known else most)
        for each in come:
            if isinstance(each.said, ExecutorError):
                each.said.attempts = (*self._tried.get(each.work.fingerprint, ()), *each.said.attempts)
        return self._resized(come)

    def _resized(self, come: list[Came]) -> list[Came]:
        """Choose the size of what is asked next."""
        self._losses.over(come)
        self.size = self._losses.size(self._whole_size)
        return come

    def _unnote(self, *keys: str) -> None:
        for key in keys:
            with suppress(TransientError):
                self._shelf.remove(key)
