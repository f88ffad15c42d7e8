"""Flow that processes one shard of another run, on any worker of its deployment.

Its parameter is the key of the shard in the result storage. The shard has the briefs, items, executor and limits. Each
answer is stored as soon as it is there, as in any run, and the result of the shard is stored beside the shard.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from pydantic import Field

from prefect_dispatch.calls.call_gate import gate_with_own_budget
from prefect_dispatch.errors import BriefError, JobError, TransientError
from prefect_dispatch.executors.base import BaseExecutor, Executor, fingerprint
from prefect_dispatch.flows.runtime.flow_class import INTERRUPTIONS
from prefect_dispatch.models.brief import resolve_user_code
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.tasks import event_loop
from prefect_dispatch.tasks.run_brief import Shard, result_store_for_run, shard_task
from prefect_dispatch.tasks.shards.deployment_runner import REFUSED
from prefect_dispatch.tasks.shards.protocol import KEY, ShardResult, ShardStore
from prefect_dispatch.tasks.stop_conditions import raise_if_cancelled, run_periodically
from prefect_dispatch.tasks.work_item import WorkItem, unmapped_quote

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.futures import PrefectFuture

    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.tasks.shards.protocol import ShardDocument, ShardHeader

LOOK_S = 1.0
"""Seconds between two checks for a signal."""
CANCEL_S = 5.0
"""Seconds that cancelled calls may take to end."""


# Without retries, regardless of Prefect's settings: the run that waits for a shard retries failed items itself.
@flow(name="work-shard", persist_result=False, retries=0)
def work_shard(
    shard: Annotated[str, Field(pattern=KEY)],
    folder: Annotated[str, Field(title="Folder")] | None = None,
) -> State[Any]:
    """Work on a shard of a run of dispatch, which starts runs of this flow by itself.

    Args:
        shard: The key of the shard in the result storage.
        folder: The folder that relative paths and your own code are looked up in, where the workers run. Empty: the
            folder of the job.
    """
    # 1. Read the shard, and bind its code in this process.
    places = ShardStore(result_store_for_run())
    try:
        given = places.read_shard(shard)
        work, executor = _bind_work(given, _resolve_folder(folder or given.folder))
    except JobError as error:
        return Failed(name=REFUSED, message=redact(str(error)))
    except TransientError as error:
        return Failed(message=redact(str(error)))
    # 2. Do the work, with a periodic sign of life for the run that waits.
    with run_periodically(_touch_flow_run, given.beat_s):
        try:
            ended = _run(work, executor, given.limits)
        except INTERRUPTIONS as error:
            return _interrupted_state(error)
    if ended is None:
        return Crashed(message="Its task run was interrupted.")
    # 3. Store the result beside the shard.
    places.write_result(shard, ended)
    answered = sum(each.error is None for each in ended.done)
    name = "Completed" if answered == len(given.work) else "CompletedWithGaps"
    return Completed(name=name, message=f"{answered} of {len(given.work)} answered.")


def _resolve_folder(path: str) -> Path:
    """Return the folder of the job, or the working directory if the worker lacks it: a language model needs none."""
    folder = Path(path)
    return folder if folder.is_dir() else Path.cwd()


def _bind_work(given: ShardDocument, folder: Path) -> tuple[Shard, Executor]:
    """Return the work of a deserialized shard, with the user's own code as it is in a folder, and its executor.

    Raises:
        JobError: If something is missing, or differs from the run that created the shard.
    """
    executor: Executor = given.executor.resolve_paths(folder)
    try:
        briefs = [resolve_user_code(brief, folder) for brief in given.briefs]
    except BriefError as error:
        raise JobError(
            f"{error} The worker looks in {str(folder)!r}: have the code there, or set the parameter 'folder' of "
            "the deployment of work-shard."
        ) from None
    work = [WorkItem(briefs[each.brief], given.items[each.item], each.fingerprint) for each in given.work]
    # Equal fingerprints prove that code, files and models are the same here as in the run that created the shard.
    for each in work:
        if fingerprint(each.brief, each.item, executor) != each.fingerprint:
            raise JobError(
                f"For {each.ref} the worker finds other work than the run that gave it: code, a file, a folder or "
                f"a model that it uses is another one there (it looks in {str(folder)!r}), or the versions of "
                "prefect-dispatch differ. Bring the worker to what the run has."
            )
    again = frozenset(each.fingerprint for each in given.work if each.again)
    return Shard(tuple(work), again, header=given.sent), executor


def _run(shard: Shard, executor: Executor, limits: Limits) -> ShardResult | None:
    """Do the work of a shard; return its result, or None if its task run was interrupted."""
    future: PrefectFuture[Any] = cast("Any", shard_task(limits)).submit(unmapped_quote(shard), executor, limits)
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    try:
        while not done.wait(LOOK_S):  # without a time-out, the main thread would not wake up to handle a signal
            pass
    except BaseException:
        # 1. Send no further calls.
        group = str(flow_run.get_id())
        gate_with_own_budget(f"{group} {cast('ShardHeader', shard.header).name}", group, limits).close()
        # 2. Wait for the calls in flight, unless the executor can be cancelled at once; received answers are stored.
        with suppress(BaseException):
            future.wait(0.0 if BaseExecutor.of(executor).cancel_immediately else limits.grace_s)
        # 3. Cancel the rest.
        event_loop.cancel(group)
        with suppress(BaseException):
            future.wait(CANCEL_S)
        raise
    result: object = future.result(raise_on_failure=False)
    return result if isinstance(result, ShardResult) else None


def _interrupted_state(error: BaseException) -> State[Any]:
    """Return the state of an interrupted run: cancelled if that was requested, else crashed, to be run elsewhere."""
    try:
        raise_if_cancelled(UUID(flow_run.get_id()))
    except CancelledRun:
        return Cancelled(message="Cancelled by request.")
    return Crashed(message=f"Its worker ended it ({type(error).__name__}).")


def _touch_flow_run() -> None:
    """Update the run on Prefect's server as a sign of life for the run that waits for it."""
    run = UUID(flow_run.get_id())
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        found: FlowRun = client.read_flow_run(run)
        client.update_flow_run(run, name=found.name)  # changes nothing but the time of the last update
