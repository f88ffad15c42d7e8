"""The phase before the fan-out in which a provider gets all requests in one file.

Where the run belongs to a deployment, it gives its worker back while it waits: it becomes `Scheduled`
again, for later, and the next worker that takes it up finds its batches on the shelf. Prefect's own
`suspend_flow_run` would need somebody who resumes it; a scheduled run needs nobody.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, Pause
from prefect.results import ResultStore, get_result_store
from prefect.runtime import flow_run
from prefect.states import Scheduled
from pydantic import ValidationError

from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.variety import executor_for
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.batch_records import BatchRecords
from prefect_dispatch.tasks.batch_run import BatchRun, Gathered, NotYetError, pause_s
from prefect_dispatch.tasks.batches import gathered
from prefect_dispatch.tasks.cutting import in_parts
from prefect_dispatch.tasks.gates import gate_of
from prefect_dispatch.tasks.once import Place
from prefect_dispatch.tasks.run_brief import answer_shelf, run_brief
from prefect_dispatch.tasks.shelf import Lenient
from prefect_dispatch.tasks.store import PREFIX, key_of
from prefect_dispatch.tasks.work import equal_work

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.flows.prepare import Prepared
    from prefect_dispatch.models import Brief
    from prefect_dispatch.tasks.shelf import Shelf

STATE = "AwaitingBatch"
"""The name of the state in which a run has no worker."""
LEAST_S, MOST_S = 60.0, 900.0
"""How long a run stays away from its worker, at least and at most."""
_PROVIDER = "openai/"


def require_batches(briefs: Iterable[Brief], executor: Executor) -> None:
    """Check that whoever is to be asked in batches has them, and that nothing is said of batches where there are none.

    Raises:
        JobError: If not.
    """
    for who in (executor_for(brief, executor) for brief in briefs):
        if isinstance(who, LLM) and who.mode == "live" and who.rounds > 1:
            raise JobError(
                f"executor.rounds is {who.rounds}, which counts batches, and executor.mode is live: set mode: batch, "
                "or leave rounds out."
            )
        if isinstance(who, LLM) and who.mode == "batch" and not who.model.startswith(_PROVIDER):
            raise JobError(
                f"Model {who.model!r} can't be asked with mode: batch, which is for OpenAI and for servers that speak "
                f"its protocol: name it as {_PROVIDER}… (with an api_base, if it is a server), or set mode: live."
            )


def batched(job: Prepared) -> Gathered:
    """Return what batches bring to a run, once they have ended; at once if none of its work is for a batch.

    Work that must not run at the same time as other work is left out, and what is too long: it is asked live.

    Raises:
        Pause: If the run has given its worker back.
    """
    store = cast("ResultStore", cast("Any", get_result_store()).update_for_task(run_brief, _sync=True))
    shelf = answer_shelf()
    lenient = Lenient(shelf)
    work = {
        name: (first, who, Place(store, key_of(name), run_brief.cache_expiration))
        for name, (first, *_) in equal_work(job.work).items()
        if isinstance(who := executor_for(first.brief, job.executor), LLM)
        and who.mode == "batch"
        and first.ref not in job.independence.locks
        and first.ref not in job.independence.stages
        and not in_parts(lenient, first, who)
    }
    if not work:
        return Gathered()
    run = str(flow_run.get_id())
    deployed = _is_deployed()
    before = _before(run, shelf) if deployed else None
    mine = BatchRun(work, BatchRecords(shelf), gate_of(run, job.limits), run=run, again=job.again, before=before)
    try:
        return loop.run(gathered(mine, shelf.folder, waits=not deployed), group=run)
    except NotYetError as wait:  # pragma: no cover -- in a worker's process
        _give_back(run, shelf, wait)
    except BaseException:  # pragma: no cover -- in a process that is ended: test_batch
        loop.cancel(run)
        raise


def _is_deployed() -> bool:
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def _give_back(run: str, shelf: Shelf, wait: NotYetError) -> NoReturn:  # pragma: no cover -- in a worker's process
    """End this process, and have the run taken up again later."""
    shelf.write(_key(run), wait.gathered.model_dump_json().encode())
    when = datetime.now(timezone.utc) + timedelta(seconds=pause_s(wait.submitted, LEAST_S, MOST_S))
    state: State[Any] = Scheduled(name=STATE, message="Batches are under way at the provider.", scheduled_time=when)
    with get_client(sync_client=True) as client:
        said = client.set_flow_run_state(UUID(run), state)
    if said.status != SetStateStatus.ACCEPT:
        raise CancelledRun("Somebody else has decided what becomes of this run.")
    raise Pause(state=said.state)


def _before(run: str, shelf: Shelf) -> Gathered | None:  # pragma: no cover -- in a worker's process
    """Return what a run had gathered when it gave its worker back, if it did.

    Raises:
        DispatchError: If it did, and there is no record of it: the next batch would be the same one again.
    """
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(run))
    waited = [state.name for state in states if state.type == StateType.SCHEDULED and state.name != "Late"]
    if waited[-1:] != [STATE]:
        return None
    try:
        return Gathered.model_validate_json(shelf.read(_key(run)) or b"")
    except ValidationError:
        raise DispatchError(
            "This run has submitted batches, and can't find what it stored of them: its workers share no result "
            "storage. Set a default storage block (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK) for all of them."
        ) from None


def _key(run: str) -> str:  # pragma: no cover -- in a worker's process
    return f"{PREFIX}run-{run}"
