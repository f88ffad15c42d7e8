"""A task runner whose task runs are flow runs of a deployment: shards go to whatever work pool that is for.

A shard travels as a document in the result storage, and a flow run is told its key. One thread asks Prefect's server
about all of them at once, now and then, so that nothing depends on messages which may be lost.
"""

from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID, uuid4

import httpx
from prefect.exceptions import PrefectException
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner

from prefect_dispatch.errors import TransientError
from prefect_dispatch.scrub import told
from prefect_dispatch.tasks.arrivals import Arrivals, crashed, refused
from prefect_dispatch.tasks.bounded_api import start_thread
from prefect_dispatch.tasks.child_runs import ChildRuns, Workers, is_passing
from prefect_dispatch.tasks.losses import SILENT, UNBEGUN
from prefect_dispatch.tasks.run_brief import answer_shelf
from prefect_dispatch.tasks.shard_places import ShardPlaces
from prefect_dispatch.tasks.shard_records import Sent, written

if TYPE_CHECKING:
    from typing_extensions import Self

    from prefect_dispatch.tasks.child_runs import Seen
    from prefect_dispatch.tasks.shards import Shard
    from prefect_dispatch.tasks.shelf import Shelf

POLL_S = 2.0
"""Seconds between two looks at all that is under way."""
SOME_BEATS = 2
"""Beats without a word after which the progress says so."""
BEATS = 5
"""How often a run says that it is alive in the time after which it is given up."""
SILENT_S = 120.0
"""Seconds without a word from a run at work after which it is given up."""
START_S = 1800.0
"""Seconds that a run which a worker has taken may need to begin while the worker is alive: an image may have to be
fetched first."""
CLOSE_S = 10.0
"""Seconds that an interrupted run waits until its runs are cancelled; they find out by themselves, too."""
OUTAGE_S = 3600.0
"""Seconds that Prefect's API, or the storage, may be away."""


@dataclass(frozen=True)
class Target:
    """A deployment that shards go to."""

    id: UUID
    """Its id."""
    name: str
    """Its flow and its name."""
    folder: str
    """The job's folder."""
    silent_s: float = SILENT_S
    """Seconds without a word from a run at work after which it is given up."""
    pool: str | None = None
    """The work pool whose workers begin its runs. None: no worker does."""


@dataclass(eq=False)
class _Child:
    """A shard under way."""

    name: str
    shard: Shard
    executor: Any
    limits: Any
    future: Future[Any] = field(default_factory=Future[Any])
    key: str = ""
    run: UUID | None = None
    changed: object = None
    """When the server last saw it change."""
    heard: float = 0.0
    """When that was, by this process's clock."""
    state: str = "waiting"
    """Whether it is `waiting` for a worker, `taken` by one, `running`, or `silent`."""


class _Loss(NamedTuple):
    """Why a run is given up."""

    kind: str
    why: str


class DeploymentRunner(TaskRunner[PrefectConcurrentFuture[Any]]):
    """Has shards worked on by flow runs of a deployment of `work_shard`."""

    def __init__(self, target: Target) -> None:
        """Keep where shards go."""
        super().__init__()  # type: ignore[no-untyped-call]  # Prefect's
        self._target = target

    def duplicate(self) -> DeploymentRunner:
        """Return another one for the same deployment."""
        return type(self)(self._target)

    def __enter__(self) -> Self:
        """Begin to watch."""
        super().__enter__()
        self._shelf: Shelf = answer_shelf()
        self._places = ShardPlaces(self._shelf)
        self._places.tidy()
        self._parent = UUID(flow_run.get_id())
        self._runs = ChildRuns(self._parent, self._target.id, self._target.name)
        self._workers = Workers(self._target.pool, self._target.silent_s)
        self._children: list[_Child] = []
        self._broken = ""
        self._lock, self._leaving = threading.Lock(), threading.Event()
        self._well = time.monotonic()
        self._log = get_run_logger()
        self._arrivals = Arrivals(self._places, self._shelf, self._target.name)
        watch = contextvars.copy_context()
        self._watch = threading.Thread(target=watch.run, args=(self._watched,), name="shard-runs", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End what is still under way, and leave nothing in the storage."""
        self._leaving.set()
        self._watch.join(CLOSE_S)
        self._arrivals.close()
        if self._children:
            start_thread(self._cancel, "prefect-dispatch-cancel").join(CLOSE_S)
        for child in self._children:
            self._tidied(child)
            child.future.set_result(crashed("Interrupted.", kind="interrupted"))
        super().__exit__(*cast("tuple[Any, Any, Any]", error))

    def submit(self, task: Any, parameters: dict[str, Any], wait_for: Any = None, dependencies: Any = None) -> Any:  # noqa: ANN401, ARG002 -- Prefect's signature
        """Have a shard worked on.

        Args:
            task: `run_shard`, which the flow run will call.
            parameters: The shard, the executor and its limits.
            wait_for: Nothing.
            dependencies: Nothing.

        Returns:
            A future of an `Ended`.
        """
        child = _Child(task.task_run_name(parameters), **parameters)
        with self._lock:
            if not self._broken:
                self._children.append(child)
        if self._broken:
            child.future.set_result(self._refused(child))
        return PrefectConcurrentFuture(task_run_id=uuid4(), wrapped_future=child.future)

    @property
    def note(self) -> str:
        """What all runs wait for, if none of them is at work."""
        states = [child.state for child in self._taken()]
        if not states or "running" in states:
            return ""
        if "taken" in states:
            return "waiting for a run to begin"
        return "waiting for a worker" if "waiting" in states else "nothing heard from the workers"

    def _cancel(self) -> None:
        with suppress(httpx.HTTPError, PrefectException):
            self._runs.cancel([child.run for child in self._taken() if child.run])

    def _watched(self) -> None:
        """Watch until the end; what nobody can wait for ends all that is here, and all that comes."""
        try:
            while not self._leaving.wait(POLL_S):
                self._patiently()
        except Exception as error:  # noqa: BLE001 -- nobody else hears of it
            with self._lock:
                self._broken = f"Its runs can't be watched: {told(error)}"
            for child in self._taken():
                self._end(child, self._refused(child))

    def _patiently(self) -> None:
        """Look after what is under way; Prefect's API and the storage may be away for a while."""
        try:
            self._look()
            self._well = time.monotonic()
        except (httpx.HTTPError, PrefectException, TransientError) as error:
            if not is_passing(error) or time.monotonic() - self._well > OUTAGE_S:
                raise
            self._log.warning("Runs of %s can't be watched for now: %s", self._target.name, told(error))
            for child in self._taken():
                child.heard = time.monotonic()  # nobody could be heard

    def _refused(self, child: _Child) -> Any:  # noqa: ANN401 -- a state
        return refused(child.shard.work, f"{self._target.name}: {self._broken}")

    def _taken(self) -> list[_Child]:
        with self._lock:
            return [*self._children]

    def _look(self) -> None:
        """Begin what isn't begun, and see to what has changed."""
        for child in self._taken():
            if child.run is None:
                self._begin(child)
        under = {child.run: child for child in self._taken() if child.run}
        seen = self._runs.look([*under])
        if under:
            self._workers.look()
        for run, child in under.items():
            self._see(child, seen.get(run))

    def _begin(self, child: _Child) -> None:
        shard = child.shard
        sent = cast("Any", shard.sent)
        document = written(
            shard.work,
            child.executor,
            child.limits,
            sent=Sent(name=sent.name, note=sent.note),
            folder=self._target.folder,
            beat_s=self._target.silent_s / BEATS,
            again=shard.again,
        )
        child.key = self._places.put(self._parent, document)
        child.heard = time.monotonic()
        child.run = self._runs.begin(child.key, child.name)

    def _see(self, child: _Child, seen: Seen | None) -> None:
        """See to a shard by what the server says of its run."""
        now = time.monotonic()
        if seen is None:
            self._end(child, crashed("Somebody deleted its run."))
        elif seen.state.is_final():
            self._end(child, self._arrivals.came(child.shard.work, child.key, seen.state))
        elif seen.changed != child.changed or seen.state.is_scheduled():
            child.changed, child.heard = seen.changed, now
            waiting = "waiting" if seen.state.is_scheduled() else "taken"
            child.state = waiting if seen.state.is_scheduled() or seen.state.is_pending() else "running"
        elif lost := self._loss(child, seen, now - child.heard):
            self._runs.give_up(cast("UUID", child.run), lost.why)
            self._end(child, crashed(lost.why, kind=lost.kind))
        elif child.state == "running" and now - child.heard > SOME_BEATS * self._target.silent_s / BEATS:
            child.state = "silent"

    def _loss(self, child: _Child, seen: Seen, silence_s: float) -> _Loss | None:
        """Return why a run is given up of which nothing was heard for some time, or None."""
        if not seen.state.is_pending():
            why = f"Nothing was heard of it for {silence_s:.0f} s."
            return _Loss(SILENT, why) if silence_s > self._target.silent_s else None
        lost = silence_s > self._target.silent_s and self._workers.is_lost(seen.worker, child.heard)
        if not lost and silence_s <= START_S:
            return None
        of = f" ({seen.worker})" if seen.worker else ""
        since = f"for {silence_s:.0f} s, no process began it"
        return _Loss(UNBEGUN, f"Its worker{of} is lost: {since}." if lost else f"After a worker had taken it, {since}.")

    def _end(self, child: _Child, state: Any) -> None:  # noqa: ANN401 -- a state
        with self._lock:
            self._children.remove(child)
        self._tidied(child)
        child.future.set_result(state)

    def _tidied(self, child: _Child) -> None:
        if child.key:
            with suppress(TransientError):  # it is of no use any more, and does no harm
                self._places.remove(child.key)
