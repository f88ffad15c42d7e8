"""The flow that works on one shard of another run, wherever a deployment of it has its workers.

It is told a key and nothing else. What stands there in the result storage says what is asked, of whom, and how it is
bounded; answers go into the store one by one, as everywhere, and beside the shard what came of it.
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

from prefect_dispatch.binding import bind
from prefect_dispatch.errors import BriefError, JobError, TransientError
from prefect_dispatch.executors.base import Abrupt, Executor
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.flows.beats import beating, ticking
from prefect_dispatch.flows.ending import INTERRUPTIONS
from prefect_dispatch.models import Answer
from prefect_dispatch.scrub import scrub
from prefect_dispatch.tasks import loop
from prefect_dispatch.tasks.bounded_api import require_wanted
from prefect_dispatch.tasks.child_runs import REFUSED
from prefect_dispatch.tasks.errands import Ended, Sent
from prefect_dispatch.tasks.gates import gate_beside
from prefect_dispatch.tasks.run_brief import answer_shelf
from prefect_dispatch.tasks.shard_places import KEY, ShardPlaces
from prefect_dispatch.tasks.shard_results import WrittenResult
from prefect_dispatch.tasks.shards import Shard, sharded
from prefect_dispatch.tasks.work import Work, as_is

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.futures import PrefectFuture

    from prefect_dispatch.tasks.shard_records import WrittenShard

LOOK_S = 1.0
"""How long a signal may go unnoticed."""
CANCEL_S = 5.0
"""Seconds that what was cancelled may take to end."""


# The run that waits for a shard asks again itself what has failed; a default of Prefect's settings is for other flows.
@flow(name="work-shard", persist_result=False, retries=0)
def work_shard(
    shard: Annotated[str, Field(pattern=KEY)],
    folder: Annotated[str, Field(title="Folder")] | None = None,
) -> State[Any]:
    """Work on a shard of a run of dispatch, which starts runs of this flow by itself.

    Args:
        shard: The key under which the shard stands in the result storage.
        folder: The folder that relative paths and your own code are looked up in, where the workers run. Empty: the
            folder of the job.
    """
    places = ShardPlaces(answer_shelf())
    try:
        given = places.shard(shard)
        work = _Work(given, _folder(folder or given.folder))
    except JobError as error:
        return Failed(name=REFUSED, message=scrub(str(error)))
    except TransientError as error:
        return Failed(message=scrub(str(error)))
    with beating(), ticking(_alive, given.beat_s):
        try:
            ended = work.carried_out()
        except INTERRUPTIONS as error:
            return _interrupted(error)
    if ended is None:
        return Crashed(message="Its task run was interrupted.")
    places.answer(shard, WrittenResult.of(shard.rpartition("/")[2], ended))
    answered = sum(isinstance(each.said, Answer) for each in ended.told)
    name = "Completed" if answered == len(given.work) else "CompletedWithGaps"
    return Completed(name=name, message=f"{answered} of {len(given.work)} answered.")


def _folder(said: str) -> Path:
    """Return the folder of the job, as far as the worker has it: a model that is asked needs none."""
    folder = Path(said)
    return folder if folder.is_dir() else Path.cwd()


class _Work:
    """A shard that was read, made into what can be asked."""

    def __init__(self, given: WrittenShard, folder: Path) -> None:
        """Look up the user's own code, and what the executor needs, in a folder.

        Args:
            given: The shard as it was read.
            folder: Where to look.

        Raises:
            JobError: If something isn't there, or isn't the same as where the shard was written.
        """
        executor: Executor = given.executor.placed(folder)
        try:
            briefs = [bind(brief, folder) for brief in given.briefs]
        except BriefError as error:
            raise JobError(
                f"{error} The worker looks in {str(folder)!r}: have the code there, or set the parameter 'folder' of "
                "the deployment of work-shard."
            ) from None
        work = [Work(briefs[each.brief], given.items[each.item], each.fingerprint) for each in given.work]
        for each in work:
            if fingerprint(each.brief, each.item, executor) != each.fingerprint:
                raise JobError(
                    f"For {each.ref} the worker finds other work than the run that gave it: code, a file, a folder or "
                    f"a model that it uses is another one there (it looks in {str(folder)!r}), or the versions of "
                    "prefect-dispatch differ. Bring the worker to what the run has."
                )
        again = frozenset(each.fingerprint for each in given.work if each.again)
        self._sent = Sent(given.sent.name, given.sent.note)
        self._shard = Shard(tuple(work), again, sent=self._sent)
        self._executor, self._limits = executor, given.limits

    def carried_out(self) -> Ended | None:
        """Do the work; return what came of it, or None where the task run didn't come to its end."""
        future: PrefectFuture[Any] = cast("Any", sharded(self._limits)).submit(
            as_is(self._shard), self._executor, self._limits
        )
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        try:
            while not done.wait(LOOK_S):  # a signal may come to any thread, which wakes none that waits for ever
                pass
        except BaseException:
            self._wind_down(future)
            raise
        said: object = future.result(raise_on_failure=False)
        return said if isinstance(said, Ended) else None

    def _wind_down(self, future: PrefectFuture[Any]) -> None:
        """Let what is under way come to an end for a moment, then end it: what came back is stored."""
        group = str(flow_run.get_id())
        gate_beside(f"{group} {self._sent.name}", group, self._limits).close()
        with suppress(BaseException):
            future.wait(0.0 if isinstance(self._executor, Abrupt) else self._limits.grace_s)
        loop.cancel(group)
        with suppress(BaseException):
            future.wait(CANCEL_S)


def _interrupted(error: BaseException) -> State[Any]:
    """Return the state of a run that was interrupted: cancelled if somebody wants that, else begun again elsewhere."""
    try:
        require_wanted(UUID(flow_run.get_id()))
    except CancelledRun:
        return Cancelled(message="Somebody cancelled it.")
    return Crashed(message=f"Its worker ended it ({type(error).__name__}).")


def _alive() -> None:
    """Have Prefect's server know that the run is alive, so that whoever waits for it can see that."""
    run = UUID(flow_run.get_id())
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        found: FlowRun = client.read_flow_run(run)
        client.update_flow_run(run, name=found.name)  # changes nothing but when it was changed
