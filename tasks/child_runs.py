"""The runs of a deployment that a fan-out has made: begun once, watched by few requests, and ended with it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed, Pending, Scheduled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

WORKERS_S = 5.0
"""Seconds between two requests for the heartbeats of workers."""
AT_ONCE = 200
"""Runs that are asked of in one request: as many as Prefect's server tells at once."""
TAG = "prefect-dispatch"
_BUSY = frozenset({408, 429})
REFUSED = "Refused"
"""The name of the state of a run that could not begin: every other one of its deployment would end so."""


@dataclass(frozen=True)
class Seen:
    """What Prefect's server says of a run."""

    state: State[Any]
    """Its state."""
    changed: datetime | None
    """When something of it was changed last, by the server's clock; a run that works does so now and then."""
    worker: str = ""
    """The name of the worker that took it; empty if the server does not say."""


class Workers:
    """The workers of a work pool, by their heartbeats: which of them are lost.

    How long a heartbeat is ago is measured by this process's clock, from when it was first seen.
    """

    def __init__(self, pool: str | None, silent_s: float) -> None:
        """Keep which workers are watched.

        Args:
            pool: The work pool. None: its runs are begun by no worker.
            silent_s: Seconds without a heartbeat after which a worker counts as lost, or two intervals of heartbeats if
                that is longer.
        """
        self._pool, self._silent_s = pool, silent_s
        self._beats: dict[str, tuple[object, float]] = {}
        self._lost: frozenset[str] = frozenset()
        self._looked = 0.0

    def look(self) -> None:
        """Ask the API for the heartbeats, if that is due."""
        now = time.monotonic()
        if self._pool is None or now - self._looked < WORKERS_S:
            return
        self._looked = now
        with get_client(sync_client=True) as client:
            found = client.read_workers_for_work_pool(self._pool, limit=AT_ONCE)
        lost: set[str] = set()
        for each in found:
            beat, since = self._beats.get(each.name, (None, now))
            if beat != each.last_heartbeat_time:
                since = now
            self._beats[each.name] = each.last_heartbeat_time, since
            longest = max(self._silent_s, 2.0 * (each.heartbeat_interval_seconds or 0))
            if each.status == WorkerStatus.OFFLINE or now - since > longest:
                lost.add(each.name)
        self._lost = frozenset(lost)

    def is_lost(self, name: str, since: float) -> bool:
        """Return whether the worker that took a run is lost.

        Args:
            name: Its name. Empty: not known; then it may be any that is lost and was alive when the run was taken.
            since: When the run was taken, by this process's clock.
        """
        if name:
            return name in self._lost
        return any(self._beats[each][1] >= since - self._silent_s for each in self._lost)


class ChildRuns:
    """The runs of one deployment for one flow run."""

    def __init__(self, parent: UUID, deployment: UUID, named: str) -> None:
        """Keep whose they are.

        Args:
            parent: The flow run that they belong to.
            deployment: The deployment.
            named: Its flow and its name.
        """
        self._parent, self._deployment, self._named = parent, deployment, named

    def begin(self, key: str, name: str) -> UUID:
        """Have a shard worked on; return the run that does. A request that is sent twice begins no other.

        Args:
            key: The key of the shard.
            name: What the run is called.
        """
        own = key.rpartition("/")[2]
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(
                self._deployment,
                parameters={"shard": key},
                name=name,
                tags=[TAG],
                idempotency_key=f"{self._parent}-{own}",
                parent_task_run_id=self._linked(client, own, name),
            )
        return run.id

    def _linked(self, client: SyncPrefectClient, own: str, name: str) -> UUID:
        """Return the task run that stands for a run among those of its parent, as for Prefect's own subflows."""
        stand_in: Any = Task(fn=_nothing, name=self._named)
        stand_in.task_key = f"prefect_dispatch.work_shard.{self._deployment}"
        made = client.create_task_run(
            stand_in, flow_run_id=self._parent, dynamic_key=own, name=name, state=Pending(), task_inputs={}
        )
        return made.id

    def look(self, runs: Sequence[UUID]) -> dict[UUID, Seen]:
        """Return what the server says of some runs; one that it doesn't know is left out."""
        found: dict[UUID, Seen] = {}
        with get_client(sync_client=True) as client:
            for some in _portions(runs):
                asked = FlowRunFilter(id=FlowRunFilterId(any_=[*some]))
                told = client.read_flow_runs(flow_run_filter=asked, limit=AT_ONCE)
                found |= {run.id: Seen(run.state or Scheduled(), run.updated, _worker(run)) for run in told}
        return found

    def cancel(self, runs: Iterable[UUID]) -> None:
        """Have runs end: at once where nobody works on them, else by whoever does."""
        with get_client(sync_client=True) as client:
            for run in runs:
                with suppress(ObjectNotFound):
                    begun = _begun(client.read_flow_run(run))
                    client.set_flow_run_state(run, Cancelling() if begun else Cancelled())

    def give_up(self, run: UUID, why: str) -> None:
        """Mark a run as crashed of which nothing is heard."""
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            client.set_flow_run_state(run, Crashed(message=why), force=True)


def is_passing(error: Exception) -> bool:
    """Return whether it may be otherwise in a while: nobody was reached, or somebody was too busy.

    Example:
        >>> is_passing(ObjectNotFound(OSError())), is_passing(TimeoutError())
        (False, True)
    """
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code in _BUSY or error.response.is_server_error
    return not isinstance(error, PrefectException)


def _worker(run: FlowRun) -> str:
    labels: dict[str, Any] = getattr(run, "labels", None) or {}
    return str(labels.get("prefect.worker.name", ""))


def _begun(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_running() or run.state.is_pending())


def _portions(runs: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (runs[at : at + AT_ONCE] for at in range(0, len(runs), AT_ONCE))


def _nothing() -> None:  # pragma: no cover -- stands for a flow run, and is never called
    return
