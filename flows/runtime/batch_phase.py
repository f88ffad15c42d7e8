"""Phase before the fan-out in which requests are sent to a provider's batch API, all in one file.

A run of a deployment releases its worker while it waits: it becomes `Scheduled` again, for later, and the next worker
that picks it up finds its batches in the result store. Prefect's own `suspend_flow_run` would need a person to resume
the run; a scheduled run starts by itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, Pause
from prefect.runtime import flow_run
from prefect.states import Scheduled
from pydantic import ValidationError

from prefect_dispatch.calls.call_gate import gate_for_run
from prefect_dispatch.errors import DispatchError
from prefect_dispatch.executors.base import executor_for
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.item_splitting import is_asked_in_parts
from prefect_dispatch.tasks.provider_batches import (
    BatchesPendingError,
    BatchJournal,
    BatchResults,
    BatchRun,
    collect_batches,
    poll_delay_s,
)
from prefect_dispatch.tasks.result_store import PREFIX, LenientBlobStore
from prefect_dispatch.tasks.run_brief import result_locations, result_store_for_run
from prefect_dispatch.tasks.work_item import group_equal_work

if TYPE_CHECKING:
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.tasks.result_store import BlobStore

STATE = "AwaitingBatch"
"""The state name of a run that waits for a batch without a worker."""
LEAST_S, MOST_S = 60.0, 900.0
"""Minimum and maximum seconds that a run waits without a worker."""
_PROVIDER = "openai/"


def run_batches(job: PreparedJob) -> BatchResults:
    """Run the batches of a job whose executor asks in batches, and return their results.

    Left out, and asked live, is work that must not run at the same time as other work, and work on items that are too
    long and asked in parts.

    Raises:
        Pause: If the run has released its worker.
    """
    # 1. Select the work for batches.
    location, blobs = result_locations(), result_store_for_run()
    lenient = LenientBlobStore(blobs)
    work = {
        name: (first, who, location(name))
        for name, (first, *_) in group_equal_work(job.work).items()
        if isinstance(who := executor_for(first.brief, job.executor), LLM)
        and first.ref not in job.independence.locks
        and first.ref not in job.independence.stages
        and not is_asked_in_parts(lenient, first, who)
    }
    if not work:
        return BatchResults()
    # 2. Submit the batches, or continue those from before the worker was released. Only a run that can't release its
    # worker waits here.
    run = str(flow_run.get_id())
    deployed = _is_deployed()
    before = _load_gathered(run, blobs) if deployed else None
    batch_run = BatchRun(
        work, BatchJournal(blobs), gate_for_run(run, job.limits), run=run, again=job.again, before=before
    )
    try:
        return event_loop.run(collect_batches(batch_run, blobs.folder, waits=not deployed), group=run)
    except BatchesPendingError as wait:  # pragma: no cover -- in a worker's process
        _release_worker(run, blobs, wait)
    except BaseException:  # pragma: no cover -- in a process that is ended: test_batch
        event_loop.cancel(run)
        raise


def _is_deployed() -> bool:
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def _release_worker(
    run: str, blobs: BlobStore, wait: BatchesPendingError
) -> NoReturn:  # pragma: no cover -- in a worker's process
    """Schedule the run for later, and end this process."""
    blobs.write(_record_key(run), wait.results.model_dump_json().encode())
    when = datetime.now(timezone.utc) + timedelta(seconds=poll_delay_s(wait.submitted_at, LEAST_S, MOST_S))
    state: State[Any] = Scheduled(name=STATE, message="Batches are under way at the provider.", scheduled_time=when)
    with get_client(sync_client=True) as client:
        response = client.set_flow_run_state(UUID(run), state)
    if response.status != SetStateStatus.ACCEPT:
        raise CancelledRun("The state of this run was changed by another client.")
    raise Pause(state=response.state)


def _load_gathered(run: str, blobs: BlobStore) -> BatchResults | None:  # pragma: no cover -- in a worker's process
    """Return the results that a run had gathered before it released its worker; None if it did not.

    Raises:
        DispatchError: If it did, and its record is missing: the same batch would be submitted again.
    """
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(run))
    # "Late" is set by Prefect when a scheduled run has not started in time.
    waited = [state.name for state in states if state.type == StateType.SCHEDULED and state.name != "Late"]
    if waited[-1:] != [STATE]:
        return None
    try:
        return BatchResults.model_validate_json(blobs.load(_record_key(run)) or b"")
    except ValidationError:
        raise DispatchError(
            "This run has submitted batches, and can't find what it stored of them: its workers share no result "
            "storage. Set a default storage block (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK) for all of them."
        ) from None


def _record_key(run: str) -> str:  # pragma: no cover -- in a worker's process
    return f"{PREFIX}run-{run}"
