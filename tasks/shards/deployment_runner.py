"""Task runner whose task runs are flow runs of a deployment: shards run in the work pool of that deployment.

A shard is passed as a document in the result storage; the flow run gets its key. A thread of each shard polls Prefect's
server for the state of its flow run, so that nothing depends on messages which may be lost.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.deployments.flow_runs import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Scheduled
from prefect.task_runners import TaskRunner

from prefect_dispatch.errors import ExecutorError, JobError, TerminalError, TransientError
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.shards.options import SILENT_S
from prefect_dispatch.tasks.shards.protocol import ShardHeader, ShardResult, ShardStore, to_document
from prefect_dispatch.tasks.shards.remote import SILENT, UNBEGUN
from prefect_dispatch.tasks.stop_conditions import start_thread

if TYPE_CHECKING:
    from threading import Thread

    from prefect.client.schemas.objects import FlowRun, State
    from typing_extensions import Self

    from prefect_dispatch.tasks.run_brief import Shard


TAG = "prefect-dispatch"


_BUSY = frozenset({408, 429})


REFUSED = "Refused"
"""Name of the state of a run that could not begin because of something that every run of its deployment would meet."""


MISSED = 3
"""Missed heartbeats after which a worker is offline, as for Prefect's server."""


HEARTBEAT_S = 30
"""Seconds between two heartbeats of a worker that does not say it."""


def read_run(run: UUID) -> FlowRun | None:
    """Return a flow run as Prefect's server has it; None if the server does not know it."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        return client.read_flow_run(run)
    return None


def cancel_run(run: UUID) -> None:
    """Cancel a run: at once where no worker has taken it, else by the process that works on it."""
    with get_client(sync_client=True) as client, suppress(httpx.HTTPError, PrefectException):
        state = client.read_flow_run(run).state
        is_started = state is not None and (state.is_running() or state.is_pending())
        client.set_flow_run_state(run, Cancelling() if is_started else Cancelled())


def mark_crashed(run: UUID, why: str) -> None:
    """Mark a run that sends no heartbeats as crashed."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.set_flow_run_state(run, Crashed(message=why), force=True)


def offline_workers(pool: str | None) -> frozenset[str]:
    """Return the names of the workers of a pool that have sent no heartbeat for some time."""
    if pool is None:
        return frozenset()
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(pool, limit=200)
        # Heartbeats have the time of the server, whose clock may differ from this one.
        now = datetime.now(timezone.utc)
        with suppress(KeyError, ValueError):
            now = parsedate_to_datetime(client.request("GET", "/health").headers["date"])
    return frozenset(
        each.name
        for each in workers
        if each.last_heartbeat_time is None
        or now - each.last_heartbeat_time > MISSED * timedelta(seconds=each.heartbeat_interval_seconds or HEARTBEAT_S)
    )


def is_transient_api_error(error: Exception) -> bool:
    """Return whether an error may be transient: no connection, or a server that is too busy.

    Example:
        >>> is_transient_api_error(ObjectNotFound(OSError())), is_transient_api_error(TimeoutError())
        (False, True)
    """
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code in _BUSY or error.response.is_server_error
    return not isinstance(error, PrefectException)


def crashed_state(why: str, kind: str = "crashed") -> State[Any]:
    """Return the state of a shard without a result."""
    return Crashed(message=why, data=ExecutorError(why, kind=kind, usage=Usage()))


POLL_S = 2.0
"""Seconds between two polls of a run in progress."""


MOST_PER_POLL = 100
"""Runs in progress beyond which each is polled less often."""


SILENT_BEATS = 2
"""Missed heartbeats after which the progress note mentions it."""


BEATS = 5
"""Heartbeats of a run in the time after which it is given up."""


START_S = 1800.0
"""Seconds that a run which a worker has taken may need to begin while the worker is alive: an image may have to be
pulled first.
"""


CLOSE_S = 10.0
"""Seconds that an interrupted run waits until its child runs are cancelled; they detect the interruption, too."""


OUTAGE_S = 3600.0
"""Seconds that Prefect's API, or the storage, may be unavailable."""


@dataclass(frozen=True)
class Target:
    """Deployment that shards are sent to."""

    id: UUID
    """The id of the deployment."""
    name: str
    """The name of its flow and its own name."""
    folder: str
    """The job's folder."""
    silent_s: float = SILENT_S
    """Seconds without a heartbeat after which a running run is given up."""
    pool: str | None = None
    """The work pool whose workers start its runs. None: no worker does."""


@dataclass
class _ShardRun:
    """Shard in progress, and its flow run."""

    name: str
    shard: Shard
    executor: Any
    limits: Any
    begun: Event = field(default_factory=Event)
    """Set once it has a run, or has ended without one."""
    key: str = ""
    run: UUID | None = None
    updated_at: datetime | None = None
    """When the server last recorded an update, by its clock; a live run updates itself regularly."""
    last_update: float = 0.0
    """When that update was first seen, by this process's clock."""
    state: str = "waiting"
    """One of `waiting` (for a worker), `taken` (by one), `running`, `silent`, or `ended`."""


class DeploymentRunner(TaskRunner[PrefectConcurrentFuture[Any]]):
    """Task runner that runs shards as flow runs of a deployment of `work_shard`."""

    def __init__(self, target: Target) -> None:
        """Keep the deployment."""
        super().__init__()  # type: ignore[no-untyped-call]  # Prefect's
        self._target = target

    def duplicate(self) -> DeploymentRunner:
        """Return another runner for the same deployment."""
        return type(self)(self._target)

    def __enter__(self) -> Self:
        """Tidy up what earlier runs have left."""
        super().__enter__()
        self._shards = ShardStore(result_store_for_run())
        self._shards.remove_expired()
        self._parent = flow_run.get_id()
        self._children: list[_ShardRun] = []
        self._threads: list[Thread] = []
        self._stopping, self._last_begun = Event(), Event()
        self._last_begun.set()
        self._log = get_run_logger()
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel the runs in progress, and remove their documents from the storage."""
        self._stopping.set()
        last = time.monotonic() + CLOSE_S  # an unavailable API must not delay the exit
        for thread in self._threads:
            thread.join(max(0.0, last - time.monotonic()))
        super().__exit__(*cast("tuple[Any, Any, Any]", error))

    def submit(self, task: Any, parameters: dict[str, Any], wait_for: Any = None, dependencies: Any = None) -> Any:  # noqa: ANN401, ARG002 -- Prefect's signature
        """Run a shard.

        Args:
            task: `run_shard`, which the flow run will call.
            parameters: The shard, the executor and its limits.
            wait_for: Ignored.
            dependencies: Ignored.

        Returns:
            A future of a `ShardResult`.
        """
        child, future = _ShardRun(task.task_run_name(parameters), **parameters), Future[Any]()
        previous, self._last_begun = self._last_begun, child.begun
        self._children.append(child)
        self._threads.append(start_thread(lambda: future.set_result(self._run_to_end(child, previous)), "shard-run"))
        return PrefectConcurrentFuture(task_run_id=uuid4(), wrapped_future=future)

    @property
    def note(self) -> str:
        """What all runs wait for, if none of them is running; for the progress display."""
        states = {child.state for child in self._children if child.state != "ended"}
        if not states or "running" in states:
            return ""
        if "taken" in states:
            return "waiting for a run to begin"
        return "waiting for a worker" if "waiting" in states else "no heartbeats from the workers"

    @property
    def _running(self) -> int:
        return sum(child.state != "ended" for child in self._children)

    def _run_to_end(self, child: _ShardRun, previous: Event) -> State[Any]:
        """Start a run for a shard, and return the result: a state whose data is a `ShardResult`, or the error."""
        try:
            return self._poll_to_end(child, previous)
        except Exception as error:  # noqa: BLE001 -- one that waiting does not resolve; in a thread, nothing else reports it
            return self._rejected_state(child, f"Its runs can't be watched: {safe_message(error)}")
        finally:
            child.begun.set()
            child.state = "ended"
            if child.key:
                with suppress(TransientError):  # the document is of no use any more, and does no harm
                    self._shards.remove(child.key)

    def _poll_to_end(self, child: _ShardRun, previous: Event) -> State[Any]:
        last_success = time.monotonic()
        while not self._stopping.wait(POLL_S * (1 + self._running // MOST_PER_POLL)):
            # Prefect's API and the storage may be unavailable for a while.
            try:
                if child.run is None:
                    previous.wait()  # runs start in order, and one after another: Prefect numbers them
                    if self._stopping.is_set():  # which may be what ended the wait: nothing starts any more
                        break
                    self._start_run(child)
                    child.begun.set()
                elif state := self._look_at(child):
                    return state
                last_success = time.monotonic()
            except (httpx.HTTPError, PrefectException, TransientError) as error:
                if not is_transient_api_error(error) or time.monotonic() - last_success > OUTAGE_S:
                    raise
                self._log.warning("A run of %s can't be watched for now: %s", self._target.name, safe_message(error))
                child.last_update = time.monotonic()  # heartbeats could not be seen, so none counts as missed
        if child.run:
            cancel_run(child.run)
        return crashed_state("Interrupted.", kind="interrupted")

    def _start_run(self, child: _ShardRun) -> None:
        """Start a flow run for a shard, as a subflow. Idempotent: a request that is sent twice starts one run."""
        shard = child.shard
        document = to_document(
            shard.work,
            child.executor,
            child.limits,
            sent=cast("ShardHeader", shard.header),
            folder=self._target.folder,
            beat_s=self._target.silent_s / BEATS,
            again=shard.again,
        )
        child.key = self._shards.write_shard(UUID(self._parent), document)
        child.last_update = time.monotonic()
        try:
            run: FlowRun = cast("Any", run_deployment)(
                self._target.id,
                parameters={"shard": child.key},
                flow_run_name=child.name,
                timeout=0,
                tags=[TAG],
                idempotency_key=f"{self._parent}-{child.key.rpartition('/')[2]}",
                _sync=True,
            )
        except ObjectNotFound:
            raise JobError("Deployment not found.") from None
        child.run = run.id

    def _look_at(self, child: _ShardRun) -> State[Any] | None:
        """Return the result of a shard whose run has ended or is given up; else note what its run does."""
        # The run is gone or final: its result. It was updated: note that. Otherwise check for how long it was not.
        run, now = cast("UUID", child.run), time.monotonic()
        if (seen := read_run(run)) is None:
            return crashed_state("Its run was deleted.")
        state: State[Any] = seen.state or Scheduled()
        if state.is_final():
            return self._result_state(child, state)
        if seen.updated != child.updated_at or state.is_scheduled():
            child.updated_at, child.last_update = seen.updated, now
            child.state = "waiting" if state.is_scheduled() else "taken" if state.is_pending() else "running"
        elif lost := self._find_loss(seen, state, now - child.last_update):
            mark_crashed(run, str(lost.message))
            return lost
        elif child.state == "running" and now - child.last_update > SILENT_BEATS * self._target.silent_s / BEATS:
            child.state = "silent"
        return None

    def _find_loss(self, seen: FlowRun, state: State[Any], silence_s: float) -> State[Any] | None:
        """Return the state of a shard whose run is given up as it sent no heartbeat for some time; else None.

        Args:
            seen: The run.
            state: Its state.
            silence_s: Seconds since its last update.
        """
        # 1. A running run sends heartbeats.
        is_silent = silence_s > self._target.silent_s
        if not state.is_pending():
            return crashed_state(f"It sent no heartbeat for {silence_s:.0f} s.", kind=SILENT) if is_silent else None
        # 2. A pending run sends none: judge it by its worker's heartbeats, and by the time that a start may take.
        worker = str(seen.labels.get("prefect.worker.name", ""))
        duration = f"for {silence_s:.0f} s, no process began it"
        if is_silent and worker in offline_workers(self._target.pool):
            return crashed_state(f"Its worker ({worker}) is lost: {duration}.", kind=UNBEGUN)
        if silence_s > START_S:
            return crashed_state(f"After a worker had taken it, {duration}.", kind=UNBEGUN)
        return None

    def _result_state(self, child: _ShardRun, ended: State[Any]) -> State[Any]:
        """Return the result of a shard: a state whose data is a `ShardResult`, or the error.

        Args:
            child: The shard.
            ended: The final state of the run that worked on it.

        Raises:
            TransientError: If the storage can't be read.
        """
        work, message = child.shard.work, redact(ended.message or "")
        # 1. The run could not begin: every other run would not, either.
        if ended.name == REFUSED:
            return self._rejected_state(child, message)
        # 2. The result that the run has written counts, even if its final state is another one.
        if (result := self._shards.read_result(child.key)) is not None:
            return Completed(data=result)
        # 3. No result: cancelled by a user, or crashed.
        if ended.is_cancelled():
            error = ExecutorError("Its run was cancelled.", kind="cancelled", usage=Usage())
            return Completed(data=ShardResult.failed(error, *work))
        return crashed_state(f"Its run of {self._target.name} ended as {ended.name}: {message}")

    def _rejected_state(self, child: _ShardRun, why: str) -> State[Any]:
        """Return the state of a shard that no run of its deployment could begin: the error stops the fan-out."""
        error = TerminalError(f"{self._target.name}: {why}", kind="worker", usage=Usage())
        return Completed(data=ShardResult.failed(error, child.shard.work[0]))
