"""A shard: many items in one task run, each stored, held and told by itself as if it had one of its own.

A task run costs the client milliseconds and the server tens of them; a shard shares one among its items. Those of all
shards of a run in one process share its places, so that a shard's last items never hold up those of the next.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.tasks import exponential_backoff

from prefect_dispatch.errors import BudgetError, ExecutorError, TerminalError, TransientError
from prefect_dispatch.gate import Turn
from prefect_dispatch.inert import plain
from prefect_dispatch.limits import Limits
from prefect_dispatch.scrub import scrub
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.errands import Ended, Errand, Sent, Told
from prefect_dispatch.tasks.gates import gate_of
from prefect_dispatch.tasks.once import Place, UnwantedError, once
from prefect_dispatch.tasks.run_brief import JITTER, NAME_LENGTH, asked, is_transient, run_brief, run_name
from prefect_dispatch.tasks.store import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect import Task

    from prefect_dispatch.draft import Draft
    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Answer
    from prefect_dispatch.tasks.work import Work


class Came(NamedTuple):
    """What came of one piece of work."""

    work: Work
    said: object
    """The answer, or the error; None where it was not its turn any more."""
    stored: bool = False
    """Whether the answer was stored before."""


class Listener(Protocol):
    """Who follows a shard in its own process."""

    stopped: bool
    """Whether nothing more is to be asked."""

    def came(self, came: Came) -> None:
        """Take what came of a piece of work, at once."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """Work that one task run does."""

    work: tuple[Work, ...]
    again: frozenset[str] = frozenset()
    """The fingerprints that are asked again even where an answer is stored."""
    told: str = ""
    """The name of who follows it in this process."""
    sent: Sent | None = None
    """What it is told where it goes to another process."""


@dataclass
class _Under:
    """A shard under way, over all attempts of its task run."""

    shard: Shard
    listener: Listener | None = None
    errand: Errand | None = None
    """Its listener, where it was sent to this process."""
    settled: dict[str, Came] = field(default_factory=dict[str, Came])
    """What came of work that no further attempt would change."""
    passing: dict[str, TransientError] = field(default_factory=dict[str, TransientError])
    """Why the rest failed in passing, with every attempt at it."""


_listeners: dict[str, Listener] = {}
_earlier: dict[UUID, _Under] = {}
"""Shards that wait for a retry; Prefect retries in the same process."""


def follow(name: str, listener: Listener) -> None:
    """Have a listener told at once of what comes of shards that name it."""
    _listeners[name] = listener


def unfollow(name: str) -> None:
    """Tell a listener no more."""
    _listeners.pop(name, None)


def _run_name(parameters: dict[str, Any]) -> str:
    work = cast("Shard", parameters["shard"]).work
    if len(work) == 1:
        return run_name({"brief": work[0].brief, "item": work[0].item})
    names = [scrub(" ".join(plain(f"{each.brief.name}: {each.item.key}").split())) for each in (work[0], work[-1])]
    each = (NAME_LENGTH - 30) // 2
    first, last = (name if len(name) <= each else name[: each - 1] + "…" for name in names)
    return f"{len(work)} items, {first} to {last}"


def _run_shard(shard: Shard, executor: Executor, limits: Limits) -> list[Came] | Ended:
    """Return what came of each piece of work that nobody in this process was told of.

    Each answer is stored under its own fingerprint, as by `run_brief`, and reused the same way. A retry of
    the task run asks only what failed in passing.

    Args:
        shard: The work.
        executor: Who is asked.
        limits: As for `run_brief`; at most `concurrency` are under way in one process.

    Raises:
        TransientError: If some failed in passing and a retry is left.
        ExecutorError: If it was interrupted.
    """
    context = cast("TaskRunContext", TaskRunContext.get())
    run = context.task_run
    group = str(run.flow_run_id or "")
    under = _earlier.pop(run.id, None)
    if under is None:
        errand = Errand(shard.sent, executor, limits, group) if shard.sent else None
        under = _Under(shard, cast("Listener | None", errand) or _listeners.get(shard.told), errand)
        try:
            if errand and not errand.begin():
                return errand.ended(begun_before=True)
        except TerminalError as error:  # all others would meet it
            return Ended([Told(shard.work[0].fingerprint, error)])
    errand = under.errand
    doing = _Doing(under, executor, limits, errand.group if errand else group)
    try:
        loop.run(errand.attend(doing.all()) if errand else doing.all(), group=group)
    except loop.CancelledError:
        raise ExecutorError("Interrupted.", kind="interrupted") from None
    again = run.run_count <= context.task.retries
    if under.passing and not doing.stopped and again:
        _earlier[run.id] = under
        raise TransientError(
            f"{len(under.passing)} of {len(shard.work)} items failed in passing; they are asked again."
        )
    came = doing.ended(again=again)
    return errand.ended() if errand else came


run_shard = task(  # of a function under a name of its own: so it is pickled by name, not with what its module holds
    name="run-shard",
    task_run_name=cast("Any", _run_name),  # a name from parameters, which the type leaves out
    retries=Limits().retries,
    retry_delay_seconds=exponential_backoff(Limits().retry_delay_s),
    retry_jitter_factor=JITTER,
    retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,  # each answer is stored by itself
    persist_result=False,
)(_run_shard)


def sharded(limits: Limits) -> Task[[Shard, Executor, Limits], list[Came] | Ended]:
    """Return `run_shard` with the retries of some limits."""
    return run_shard.with_options(retries=limits.retries, retry_delay_seconds=exponential_backoff(limits.retry_delay_s))


class _Doing:
    """One attempt at a shard."""

    def __init__(self, under: _Under, executor: Executor, limits: Limits, group: str) -> None:
        self._under, self._executor, self._limits, self._group = under, executor, limits, group
        self._store = get_result_store()
        self._places = gate_of(group, limits).places
        self._listener = under.listener
        self._met: BaseException | None = None  # by all, in the end

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be asked."""
        return self._met is not None or (self._listener is not None and self._listener.stopped)

    async def all(self) -> None:
        """Do what is left: as much at once as there are places, though all are begun before there is one for them."""
        waiting = iter([work for work in self._under.shard.work if work.fingerprint not in self._under.settled])
        at_once = min(self._limits.concurrency, len(self._under.shard.work))
        await asyncio.gather(*(self._some(waiting) for _ in range(at_once)))

    async def _some(self, waiting: Iterator[Work]) -> None:
        while not self.stopped and (work := next(waiting, None)):
            await self._one(work)

    async def _one(self, work: Work) -> None:
        failed = self._under.passing.pop(work.fingerprint, None)
        before = failed.attempts if failed else ()

        async def ask(draft: Draft) -> Answer:
            with closing(Turn(self._places, self._require_wanted)) as turn:
                answer = await asked(work.brief, work.item, self._executor, self._limits, self._group, draft, turn)
            return answer.model_copy(update={"attempts": (*before, *answer.attempts), "fingerprint": work.fingerprint})

        place = Place(self._store, key_of(work.fingerprint), run_brief.cache_expiration)
        again = work.fingerprint in self._under.shard.again
        try:
            answer, stored = await once(place, work, ask, call_s=self._limits.timeout_s, again=again)
        except UnwantedError:
            if failed:
                self._under.passing[work.fingerprint] = failed
        except ExecutorError as error:
            error.attempts = (*before, *error.attempts)
            if isinstance(error, TransientError):
                self._under.passing[work.fingerprint] = error
            else:
                self._settle(Came(work, error))
        except Exception as error:  # noqa: BLE001 -- a check of the user's, or the engine: still an outcome
            self._settle(Came(work, error))
        else:
            self._settle(Came(work, answer, stored=stored))

    def _require_wanted(self) -> None:
        if self.stopped:
            raise UnwantedError

    def ended(self, *, again: bool) -> list[Came]:
        """Return what nobody in this process was told; no further attempt follows, though perhaps there might have."""
        for work in self._under.shard.work:
            if error := self._under.passing.pop(work.fingerprint, None):
                said = BudgetError(str(self._met)) if again and isinstance(self._met, BudgetError) else error
                said.attempts = error.attempts  # between two of which the budget may have stopped it
                self._settle(Came(work, said))
        if self._listener:
            return []
        return [self._under.settled.get(each.fingerprint, Came(each, None)) for each in self._under.shard.work]

    def _settle(self, came: Came) -> None:
        if self._met is None and isinstance(came.said, (TerminalError, BudgetError)):
            self._met = came.said
        told = came if self._listener is None else came._replace(said=None)  # who was told has it
        self._under.settled[came.work.fingerprint] = told
        if self._listener:
            self._listener.came(came)
