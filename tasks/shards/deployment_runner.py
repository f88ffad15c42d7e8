"""Task runner whose task runs are flow runs of a deployment: shards run in the work pool of that deployment.

A shard is passed as a document in the result storage; the flow run gets its key. One thread polls Prefect's server
for the states of all flow runs at once, so that nothing depends on messages which may be lost.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID, uuid4

import httpx
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Scheduled
from prefect.task_runners import TaskRunner

from prefect_dispatch.errors import ExecutorError, TerminalError, TransientError
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.tasks.bounded_api import start_thread
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.shards.protocol import ItemResult, ShardHeader, ShardResult, ShardStore, to_document
from prefect_dispatch.tasks.shards.remote import SILENT, UNBEGUN
from prefect_dispatch.tasks.storage.result_store import parse_record, storage_key, validate_stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from typing_extensions import Self

    from prefect_dispatch.models.outcome import Answer
    from prefect_dispatch.tasks.shards.local import Shard
    from prefect_dispatch.tasks.shards.protocol import ShardResultRecord
    from prefect_dispatch.tasks.storage.result_store import BlobStore
    from prefect_dispatch.tasks.work_item import WorkItem


WORKERS_S = 5.0
"""Seconds between two requests for the heartbeats of workers."""


PAGE_SIZE = 200
"""Runs that are queried in one request: the most that Prefect's server returns at once."""


TAG = "prefect-dispatch"


_BUSY = frozenset({408, 429})


REFUSED = "Refused"
"""Name of the state of a run that could not begin because of something that every run of its deployment would meet."""


@dataclass(frozen=True)
class RunSnapshot:
    """Snapshot of a flow run on Prefect's server."""

    state: State[Any]
    """The state of the run."""
    updated_at: datetime | None
    """When the run was last updated, by the server's clock; a live run updates itself regularly."""
    worker: str = ""
    """The name of the worker that took the run; empty if the server does not report it."""


class WorkerMonitor:
    """Monitor of a work pool's workers: determines from their heartbeats which of them are lost.

    The age of a heartbeat is measured by this process's clock, from when it was first seen.
    """

    def __init__(self, pool: str | None, silent_s: float) -> None:
        """Create a monitor.

        Args:
            pool: The work pool. None: the runs are not started by workers.
            silent_s: Seconds without a heartbeat after which a worker counts as lost; two heartbeat intervals if those
                are longer.
        """
        self._pool, self._silent_s = pool, silent_s
        self._heartbeats: dict[str, tuple[object, float]] = {}
        self._lost: frozenset[str] = frozenset()
        self._polled_at = 0.0

    def poll(self) -> None:
        """Query the API for heartbeats, if that is due."""
        now = time.monotonic()
        if self._pool is None or now - self._polled_at < WORKERS_S:
            return
        self._polled_at = now
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(self._pool, limit=PAGE_SIZE)
        lost: set[str] = set()
        for each in workers:
            last_heartbeat, since = self._heartbeats.get(each.name, (None, now))
            if last_heartbeat != each.last_heartbeat_time:
                since = now
            self._heartbeats[each.name] = each.last_heartbeat_time, since
            longest = max(self._silent_s, 2.0 * (each.heartbeat_interval_seconds or 0))
            if each.status == WorkerStatus.OFFLINE or now - since > longest:
                lost.add(each.name)
        self._lost = frozenset(lost)

    def is_lost(self, name: str, since: float) -> bool:
        """Return whether the worker that took a run is lost.

        Args:
            name: Its name. Empty: unknown; then any lost worker counts that was alive when the run was taken.
            since: When the run was taken, by this process's clock.
        """
        if name:
            return name in self._lost
        return any(self._heartbeats[each][1] >= since - self._silent_s for each in self._lost)


class ChildRuns:
    """Flow runs of one deployment that work for one parent flow run."""

    def __init__(self, parent: UUID, deployment: UUID, deployment_name: str) -> None:
        """Create a client for the runs.

        Args:
            parent: The parent flow run.
            deployment: The deployment.
            deployment_name: The name of its flow and its own name.
        """
        self._parent, self._deployment, self._deployment_name = parent, deployment, deployment_name

    def start(self, key: str, name: str) -> UUID:
        """Start a flow run for a shard; return its id. Idempotent: a request that is sent twice starts one run.

        Args:
            key: The key of the shard.
            name: The name of the run.
        """
        digest = key.rpartition("/")[2]
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(
                self._deployment,
                parameters={"shard": key},
                name=name,
                tags=[TAG],
                idempotency_key=f"{self._parent}-{digest}",
                parent_task_run_id=self._create_parent_task_run(client, digest, name),
            )
        return run.id

    def _create_parent_task_run(self, client: SyncPrefectClient, digest: str, name: str) -> UUID:
        """Create the task run that represents a run in its parent, as for Prefect's own subflows; return its id."""
        stand_in: Any = Task(fn=_placeholder, name=self._deployment_name)
        stand_in.task_key = f"prefect_dispatch.work_shard.{self._deployment}"
        task_run = client.create_task_run(
            stand_in, flow_run_id=self._parent, dynamic_key=digest, name=name, state=Pending(), task_inputs={}
        )
        return task_run.id

    def fetch_snapshots(self, runs: Sequence[UUID]) -> dict[UUID, RunSnapshot]:
        """Return a snapshot of each run; runs that the server does not know are left out."""
        snapshots: dict[UUID, RunSnapshot] = {}
        with get_client(sync_client=True) as client:
            for batch in _pages(runs):
                run_filter = FlowRunFilter(id=FlowRunFilterId(any_=[*batch]))
                flow_runs = client.read_flow_runs(flow_run_filter=run_filter, limit=PAGE_SIZE)
                snapshots |= {
                    run.id: RunSnapshot(run.state or Scheduled(), run.updated, _worker_name(run)) for run in flow_runs
                }
        return snapshots

    def cancel(self, runs: Iterable[UUID]) -> None:
        """Cancel runs: at once where no worker has taken them, else by the process that works on them."""
        with get_client(sync_client=True) as client:
            for run in runs:
                with suppress(ObjectNotFound):
                    is_started = _is_started(client.read_flow_run(run))
                    client.set_flow_run_state(run, Cancelling() if is_started else Cancelled())

    def mark_crashed(self, run: UUID, why: str) -> None:
        """Mark a run that sends no heartbeats as crashed."""
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            client.set_flow_run_state(run, Crashed(message=why), force=True)


def is_transient_api_error(error: Exception) -> bool:
    """Return whether an error may be transient: no connection, or a server that is too busy.

    Example:
        >>> is_transient_api_error(ObjectNotFound(OSError())), is_transient_api_error(TimeoutError())
        (False, True)
    """
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code in _BUSY or error.response.is_server_error
    return not isinstance(error, PrefectException)


def _worker_name(run: FlowRun) -> str:
    labels: dict[str, Any] = getattr(run, "labels", None) or {}
    return str(labels.get("prefect.worker.name", ""))


def _is_started(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_running() or run.state.is_pending())


def _pages(runs: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (runs[at : at + PAGE_SIZE] for at in range(0, len(runs), PAGE_SIZE))


def _placeholder() -> None:  # pragma: no cover -- stands for a flow run, and is never called
    return


READERS = 16
"""Answers that are read concurrently."""


MAX_MISSING = 3
"""Times that a result may name a stored answer which is missing in the store."""


class ResultCollector:
    """Collector of the results of one fan-out's shards."""

    def __init__(self, places: ShardStore, blobs: BlobStore, deployment_name: str) -> None:
        """Create a collector.

        Args:
            places: The store of shard documents and results.
            blobs: The store of answers.
            deployment_name: The deployment whose runs work on them.
        """
        self._shards, self._blobs, self._deployment_name = places, blobs, deployment_name
        self._missing_counts: Counter[str] = Counter()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="shard-answers")

    def close(self) -> None:
        """Shut the reader threads down."""
        self._readers.shutdown()

    def collect(self, work: Sequence[WorkItem], key: str, state: State[Any]) -> State[Any]:
        """Return the result of a shard: a state whose data is a `ShardResult`, or the error.

        Args:
            work: The shard's work.
            key: Its key.
            state: The final state of the run that worked on it.

        Raises:
            TransientError: If the storage can't be read.
        """
        message = redact(state.message or "")
        # 1. The run could not begin: every other run would not, either.
        if state.name == REFUSED:
            return rejected_state(work, f"{self._deployment_name}: {message}")
        # 2. The result that the run has written counts, even if its final state is another one.
        result = self._shards.read_result(key)
        if result is not None:
            return Completed(data=self._to_shard_result({each.fingerprint: each for each in work}, result))
        # 3. No result: cancelled by a user, or crashed.
        if state.is_cancelled():
            error = ExecutorError("Its run was cancelled.", kind="cancelled", usage=Usage())
            return Completed(data=ShardResult([ItemResult(each.fingerprint, error) for each in work]))
        return crashed_state(f"Its run of {self._deployment_name} ended as {state.name}: {message}")

    def _to_shard_result(self, work: dict[str, WorkItem], result: ShardResultRecord) -> ShardResult:
        """Return a run's result, with the answers from the store; work that has no result is left out."""
        done = {each.fingerprint: each for each in result.done if each.fingerprint in work}
        # Answers are not part of the result; they are read from the store, and validated like any stored answer.
        answered = [work[name] for name, each in done.items() if each.error is None]
        answers = dict(zip((each.fingerprint for each in answered), self._read_answers(answered), strict=True))
        results: dict[str, Answer | ExecutorError | None] = {
            name: each.error.error if each.error else answers[name] or self._count_missing(name)
            for name, each in done.items()
        }
        item_results = [
            ItemResult(name, results[name], each.stored) for name, each in done.items() if results[name] is not None
        ]
        return ShardResult(item_results, result.spent, result.begun_before)

    def _read_answers(self, work: Sequence[WorkItem]) -> list[Answer | ExecutorError | None]:
        contents = self._readers.map(self._blobs.load, [storage_key(each.fingerprint) for each in work])
        return [_validate_answer(content, each) for content, each in zip(contents, work, strict=True)]

    def _count_missing(self, name: str) -> ExecutorError | None:
        """Count a missing answer; return None if its work may be asked again, else the error."""
        self._missing_counts[name] += 1
        if self._missing_counts[name] < MAX_MISSING:
            return None
        return ExecutorError("Its answer was stored by a run elsewhere, and isn't there.", kind="storage")


def _validate_answer(content: bytes | None, work: WorkItem) -> Answer | ExecutorError | None:
    try:
        return validate_stored(parse_record(content), work)
    except TerminalError as broken:  # a check of the user's
        return broken


def rejected_state(work: Sequence[WorkItem], why: str) -> State[Any]:
    """Return the state of a shard that no run of its deployment could begin: the error stops the fan-out."""
    return Completed(
        data=ShardResult([ItemResult(work[0].fingerprint, TerminalError(why, kind="worker", usage=Usage()))])
    )


def crashed_state(why: str, kind: str = "crashed") -> State[Any]:
    """Return the state of a shard without a result."""
    return Crashed(message=why, data=ExecutorError(why, kind=kind, usage=Usage()))


POLL_S = 2.0
"""Seconds between two polls of all runs in progress."""


SILENT_BEATS = 2
"""Missed heartbeats after which the progress note mentions it."""


BEATS = 5
"""Heartbeats of a run in the time after which it is given up."""


SILENT_S = 120.0
"""Seconds without a heartbeat after which a running run is given up."""


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


@dataclass(eq=False)
class _ShardRun:
    """Shard in progress, and its flow run."""

    name: str
    shard: Shard
    executor: Any
    limits: Any
    future: Future[Any] = field(default_factory=Future[Any])
    key: str = ""
    run: UUID | None = None
    updated_at: object = None
    """When the server last recorded an update."""
    last_update: float = 0.0
    """When that update was first seen, by this process's clock."""
    state: str = "waiting"
    """One of `waiting` (for a worker), `taken` (by one), `running`, or `silent`."""


class _Loss(NamedTuple):
    """Reason for giving a run up."""

    kind: str
    reason: str


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
        """Start the thread that polls the runs."""
        super().__enter__()
        self._blobs: BlobStore = result_store_for_run()
        self._shards = ShardStore(self._blobs)
        self._shards.remove_expired()
        self._parent = UUID(flow_run.get_id())
        self._runs = ChildRuns(self._parent, self._target.id, self._target.name)
        self._workers = WorkerMonitor(self._target.pool, self._target.silent_s)
        self._children: list[_ShardRun] = []
        self._broken = ""
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._last_success = time.monotonic()
        self._log = get_run_logger()
        self._collector = ResultCollector(self._shards, self._blobs, self._target.name)
        watch = contextvars.copy_context()
        self._poller = threading.Thread(target=watch.run, args=(self._poll_loop,), name="shard-runs", daemon=True)
        self._poller.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel the runs in progress, and remove their documents from the storage."""
        # 1. Stop polling.
        self._stopping.set()
        self._poller.join(CLOSE_S)
        self._collector.close()
        # 2. Cancel the runs. In a thread, as an unavailable API must not delay the exit.
        if self._children:
            start_thread(self._cancel, "prefect-dispatch-cancel").join(CLOSE_S)
        # 3. Fail what is left.
        for child in self._children:
            self._remove_document(child)
            child.future.set_result(crashed_state("Interrupted.", kind="interrupted"))
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
        child = _ShardRun(task.task_run_name(parameters), **parameters)
        # The polling thread may have failed already; it then takes no more shards.
        with self._lock:
            if not self._broken:
                self._children.append(child)
        if self._broken:
            child.future.set_result(self._rejected_state(child))
        return PrefectConcurrentFuture(task_run_id=uuid4(), wrapped_future=child.future)

    @property
    def note(self) -> str:
        """What all runs wait for, if none of them is running; for the progress display."""
        states = [child.state for child in self._list_children()]
        if not states or "running" in states:
            return ""
        if "taken" in states:
            return "waiting for a run to begin"
        return "waiting for a worker" if "waiting" in states else "no heartbeats from the workers"

    def _cancel(self) -> None:
        with suppress(httpx.HTTPError, PrefectException):
            self._runs.cancel([child.run for child in self._list_children() if child.run])

    def _poll_loop(self) -> None:
        """Poll until the end; an error that waiting does not resolve fails all shards, present and future."""
        try:
            while not self._stopping.wait(POLL_S):
                self._poll_tolerantly()
        except Exception as error:  # noqa: BLE001 -- in a thread, nothing else would report it
            with self._lock:
                self._broken = f"Its runs can't be watched: {safe_message(error)}"
            for child in self._list_children():
                self._finish(child, self._rejected_state(child))

    def _poll_tolerantly(self) -> None:
        """Poll once; tolerate that Prefect's API and the storage are unavailable for a while."""
        try:
            self._poll()
            self._last_success = time.monotonic()
        except (httpx.HTTPError, PrefectException, TransientError) as error:
            if not is_transient_api_error(error) or time.monotonic() - self._last_success > OUTAGE_S:
                raise
            self._log.warning("Runs of %s can't be watched for now: %s", self._target.name, safe_message(error))
            for child in self._list_children():
                child.last_update = time.monotonic()  # heartbeats could not be seen, so none counts as missed

    def _rejected_state(self, child: _ShardRun) -> Any:  # noqa: ANN401 -- a state
        return rejected_state(child.shard.work, f"{self._target.name}: {self._broken}")

    def _list_children(self) -> list[_ShardRun]:
        with self._lock:
            return [*self._children]

    def _poll(self) -> None:
        """Start shards that have no run yet, and handle the changes of the others."""
        # 1. Start what has no run.
        for child in self._list_children():
            if child.run is None:
                self._start_run(child)
        # 2. Query all runs, and the workers.
        children = {child.run: child for child in self._list_children() if child.run}
        snapshots = self._runs.fetch_snapshots([*children])
        if children:
            self._workers.poll()
        # 3. Handle each run's state.
        for run, child in children.items():
            self._update_child(child, snapshots.get(run))

    def _start_run(self, child: _ShardRun) -> None:
        shard = child.shard
        sent = cast("Any", shard.envelope)
        document = to_document(
            shard.work,
            child.executor,
            child.limits,
            sent=ShardHeader(name=sent.name, note=sent.note),
            folder=self._target.folder,
            beat_s=self._target.silent_s / BEATS,
            again=shard.again,
        )
        child.key = self._shards.write_shard(self._parent, document)
        child.last_update = time.monotonic()
        child.run = self._runs.start(child.key, child.name)

    def _update_child(self, child: _ShardRun, seen: RunSnapshot | None) -> None:
        """Update a shard by the snapshot of its run.

        Args:
            child: The shard.
            seen: The snapshot of its run. None: the server does not know the run.
        """
        # The run is gone or final: finish. It was updated: note that. Otherwise check for how long it was not.
        now = time.monotonic()
        if seen is None:
            self._finish(child, crashed_state("Its run was deleted."))
        elif seen.state.is_final():
            self._finish(child, self._collector.collect(child.shard.work, child.key, seen.state))
        elif seen.updated_at != child.updated_at or seen.state.is_scheduled():
            child.updated_at, child.last_update = seen.updated_at, now
            waiting = "waiting" if seen.state.is_scheduled() else "taken"
            child.state = waiting if seen.state.is_scheduled() or seen.state.is_pending() else "running"
        elif lost := self._find_loss(child, seen, now - child.last_update):
            self._runs.mark_crashed(cast("UUID", child.run), lost.reason)
            self._finish(child, crashed_state(lost.reason, kind=lost.kind))
        elif child.state == "running" and now - child.last_update > SILENT_BEATS * self._target.silent_s / BEATS:
            child.state = "silent"

    def _find_loss(self, child: _ShardRun, seen: RunSnapshot, silence_s: float) -> _Loss | None:
        """Return why a run is given up that sent no heartbeat for some time, or None if it is not.

        Args:
            child: The shard.
            seen: The snapshot of its run.
            silence_s: Seconds since its last update.
        """
        # 1. A running run sends heartbeats.
        if not seen.state.is_pending():
            why = f"It sent no heartbeat for {silence_s:.0f} s."
            return _Loss(SILENT, why) if silence_s > self._target.silent_s else None
        # 2. A pending run sends none: judge it by its worker's heartbeats, and by the time that a start may take.
        lost = silence_s > self._target.silent_s and self._workers.is_lost(seen.worker, child.last_update)
        if not lost and silence_s <= START_S:
            return None
        worker = f" ({seen.worker})" if seen.worker else ""
        duration = f"for {silence_s:.0f} s, no process began it"
        return _Loss(
            UNBEGUN, f"Its worker{worker} is lost: {duration}." if lost else f"After a worker had taken it, {duration}."
        )

    def _finish(self, child: _ShardRun, state: Any) -> None:  # noqa: ANN401 -- a state
        with self._lock:
            self._children.remove(child)
        self._remove_document(child)
        child.future.set_result(state)

    def _remove_document(self, child: _ShardRun) -> None:
        if child.key:
            with suppress(TransientError):  # it is of no use any more, and does no harm
                self._shards.remove(child.key)
