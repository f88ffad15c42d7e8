"""What is under way: each piece of work in a task run of its own, or many in one."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from prefect.runtime import flow_run

from prefect_dispatch.errors import BudgetError, TerminalError
from prefect_dispatch.prefect_compat import forget_result
from prefect_dispatch.tasks import shards
from prefect_dispatch.tasks.gates import gate_of
from prefect_dispatch.tasks.records import Records
from prefect_dispatch.tasks.run_brief import within
from prefect_dispatch.tasks.shards import Came, Shard, sharded
from prefect_dispatch.tasks.sizes import shard_size
from prefect_dispatch.tasks.store import usable
from prefect_dispatch.tasks.work import Work, as_is

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from prefect.futures import PrefectFuture
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.limits import Limits


AHEAD = 2
"""How many times the concurrency may be under way, where its places are shared."""


class UnderWay:
    """The task runs of a fan-out.

    Attributes:
        size: How many items a task run takes.
        stopped: Whether nothing more is to be asked, where a shard has still to begin with it.
        records: What Prefect's server has of them.
    """

    def __init__(self, executor: Executor, limits: Limits) -> None:
        """Keep who is asked."""
        self._executor, self._limits = executor, limits
        self._one, self._afresh = within(limits), within(limits, refresh=True)
        self._many: Any = sharded(limits)
        self._runs: dict[PrefectFuture[Any], dict[str, Work]] = {}
        self._of: dict[str, dict[str, Work]] = {}
        self._come: SimpleQueue[PrefectFuture[Any] | Came] = SimpleQueue()
        self._name = uuid4().hex
        self.size = 1
        self.stopped = False
        self.records = Records()

    def __len__(self) -> int:
        """Return how much work is under way."""
        return len(self._of)

    def __enter__(self) -> Self:
        """Hear of what comes in this process."""
        shards.follow(self._name, self)
        return self

    def __exit__(self, *_: object) -> None:
        """Hear no more."""
        self.records.end()
        shards.unfollow(self._name)

    def expect(self, asks: int) -> None:
        """Choose the size for so many asks."""
        self.size = shard_size(asks, self._limits)

    @property
    def note(self) -> str:
        """What is waited for, where nothing is worked on."""
        return ""

    @property
    def takes_more(self) -> bool:
        """Whether another task run may begin.

        Items of shards share the places of the run, so that twice as many may wait for one: none is free while a task
        run comes to its end.
        """
        return len(self) < (AHEAD if self.size > 1 else 1) * self._limits.concurrency

    def begin(self, work: Sequence[Work], again: Collection[str] = ()) -> None:
        """Submit a task run for some work.

        Args:
            work: One piece of work, or those of a shard.
            again: The fingerprints that are asked again even where an answer is stored.
        """
        future: PrefectFuture[Any]
        if self.size == 1:
            (one,) = work
            task: Any = self._afresh if one.fingerprint in again else self._one
            future = task.submit(one.brief, as_is(one.item), self._executor, self._limits)
        else:
            anew = frozenset(each.fingerprint for each in work if each.fingerprint in again)
            future = self._many.submit(as_is(Shard(tuple(work), anew, self._name)), self._executor, self._limits)
        mine = {each.fingerprint: each for each in work}
        self._runs[future] = mine
        self._of |= dict.fromkeys(mine, mine)
        future.add_done_callback(self._come.put)
        self.records.begun(len(self._runs))

    def came(self, came: Came) -> None:
        """Take what came of a piece of work of a shard; from any thread."""
        self.stopped = self.stopped or isinstance(came.said, (TerminalError, BudgetError))
        self._come.put(came)

    def next(self, timeout: float) -> list[Came]:
        """Return what has come, at least of one piece of work; of no error is anything raised.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            Empty: If nothing came.
        """
        while True:
            got = self._come.get(timeout=max(0.0, timeout))
            come = [got] if isinstance(got, Came) else self._ended(got)
            for each in come:
                self._of.pop(each.work.fingerprint).pop(each.work.fingerprint)
            if come:
                return come

    def halt(self) -> None:
        """Have shards begin nothing more."""
        self.stopped = True

    def close(self, grace_s: float) -> float:
        """Ask nobody any more, as the run is interrupted; return how many seconds to wait for what is under way.

        Args:
            grace_s: Seconds that calls under way get to come to an end.
        """
        gate_of(str(flow_run.get_id()), self._limits).close()
        return grace_s

    def _ended(self, future: PrefectFuture[Any]) -> list[Came]:
        """Return what a task run has brought, as far as nobody was told of it before."""
        mine = self._runs.pop(future)
        if not mine:
            return []
        try:
            future.wait()
            said: object = future.result(raise_on_failure=False)
            forget_result(said, future)
            stored = future.state.name == "Cached"
        except Exception as broken:  # noqa: BLE001 -- Prefect's engine failed: still an outcome
            said, stored = broken, False
        if isinstance(said, list):
            told = {each.work.fingerprint: each for each in cast("list[Came]", said)}
            return [told.get(name, Came(work, None))._replace(work=work) for name, work in mine.items()]
        return [_as_answer(Came(work, said, stored=stored)) for work in mine.values()]


def _as_answer(came: Came) -> Came:
    """Return what came of a task run; what Prefect has found in the store may be no answer to it any more."""
    if not came.stored:
        return came
    try:
        return came._replace(said=usable(came.said, came.work))
    except TerminalError as broken:  # a check of the user's
        return came._replace(said=broken, stored=False)
