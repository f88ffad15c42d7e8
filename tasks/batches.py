"""Work in batches: submitted once, waited for, gathered, and whatever is valid stored like any other answer.

One run at a time submits or gathers (on one machine, by the kernel's lock). What was submitted is on the shelf
before it is submitted, so a run that dies is followed up by the next one that has some of the same work.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.examining import examine, text_of
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models import Answer, Attempt, Rejection, Usage
from prefect_dispatch.tasks.batch_run import NotYetError
from prefect_dispatch.tasks.batch_submitting import under_way
from prefect_dispatch.tasks.cutting import TOO_LONG, learn
from prefect_dispatch.tasks.holds import held
from prefect_dispatch.tasks.loop import in_thread
from prefect_dispatch.tasks.store import PREFIX
from prefect_dispatch.withhold import hushed, withheld

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.batch import Batch
    from prefect_dispatch.tasks.batch_records import BatchRecord
    from prefect_dispatch.tasks.batch_run import BatchRun, Gathered

LOCK = f"{PREFIX}batches"


async def gathered(run: BatchRun, folder: Path | None, *, waits: bool = True) -> Gathered:
    """Return what came of all batches of a run, once nothing is under way.

    Args:
        run: Whose work it is.
        folder: Where processes of this machine meet, if there is such a place.
        waits: Whether to wait for batches.

    Raises:
        NotYetError: If something is under way, and this run doesn't wait.
        CancelledRun: If somebody has cancelled the run.
    """
    try:
        while batches := await _under_way(run, folder):
            for record in batches:
                if not await _ended(run, record, waits=waits):  # pragma: no cover -- in a worker's process
                    raise NotYetError(run.so_far(), max(each.begun for each in batches))
            for record in batches:
                async with held(LOCK, folder):
                    await _gather(run, record)
    except ExecutorError as error:
        return run.so_far(stopped=f"A batch met an error: {error}")
    return run.so_far()


async def _under_way(run: BatchRun, folder: Path | None) -> Sequence[BatchRecord]:
    async with held(LOCK, folder) as alone:
        return await under_way(run, alone=alone)


async def _ended(run: BatchRun, record: BatchRecord, *, waits: bool) -> bool:
    """Wait until nothing more will come of a batch; return whether that is so."""
    done = 0
    while not (batch := await _look(run, record)).ended:
        if not waits:  # pragma: no cover -- in a worker's process
            return False
        if batch.done != done:
            done = batch.done
            get_run_logger().info("Batch %s: %d of %d worked off.", record.batch, done, len(record.work))
        await run.wait(record)
    return True


async def _look(run: BatchRun, record: BatchRecord) -> Batch:
    api = run.api(run.ours(record)[0])
    return await run.patiently(lambda: api.look(record.batch), submitted=True)


async def _gather(run: BatchRun, record: BatchRecord) -> None:
    """Store what came of a batch, strike it out, and count what it took."""
    current = await in_thread(run.records.read, record.tag)
    names = run.ours(current) if current else ()
    if current and names:
        api, batch = run.api(names[0]), await _look(run, record)
        found = await run.patiently(lambda: api.answers(batch, names), submitted=True)
        if batch.status == "failed" and not found:
            await in_thread(run.records.end, current, current.work)
            raise TerminalError(f"batch {batch.id} was refused as a whole: {batch.problems}", kind="batch")
        attempts = await in_thread(_kept, run, batch, current, found)
        await in_thread(run.records.end, current, names)
        for name, attempt in attempts.items():
            run.note(name, attempt)
    run.free(record)


def _kept(
    run: BatchRun, batch: Batch, record: BatchRecord, found: Mapping[str, Reply | ExecutorError]
) -> dict[str, Attempt]:
    """Store every valid answer, and return what was tried for each piece of work."""
    waited_s = round(max(time.time() - record.begun, 0.0), 3)
    attempts = {name: _tried(run, name, found.get(name) or _missing(batch)) for name in run.ours(record)}
    return {name: attempt.model_copy(update={"waited_s": waited_s}) for name, attempt in attempts.items()}


def _tried(run: BatchRun, name: str, said: Reply | ExecutorError) -> Attempt:
    """Store what was said, if it is valid; return what was tried."""
    work, _, place = run.work[name]
    if not isinstance(said, Reply):
        if work.brief.split and said.kind in TOO_LONG:  # in its parts it is asked live, and not as a whole once more
            learn(place.shelf, work)
        usage = said.usage or Usage(requests=1, unsettled=1)
        return Attempt(usage=usage, error=f"{said.kind}: {hushed(said, work.item)}")
    attempt = Attempt(model=said.model, served_model=said.served_model, usage=said.usage)
    try:
        value, wrong = examine(work.brief, work.item, said)
    except RejectedError as error:
        return attempt.model_copy(update={"error": f"{error.kind}: {hushed(error, work.item)}"})
    except ExecutorError as error:
        raise hushed(error, work.item) from None
    if wrong:
        rejection = Rejection(text=text_of(said.value), problems=tuple(wrong)).short
        why = f"invalid: {withheld(' '.join(wrong[:5]), work.item.value)}"
        return attempt.model_copy(update={"rejections": (rejection,), "error": why})
    if name in run.again or not run.is_stored(name):
        heard = said.value if isinstance(work.brief.output, type) else None
        attempts = (*run.tried(name), attempt)
        answer = Answer(
            value=value,
            said=heard,
            fingerprint=name,
            model=said.model,
            served_model=said.served_model,
            attempts=attempts,
        )
        place.shelf.write(place.key, place.record(answer))
    run.answered.add(name)
    return attempt


def _missing(batch: Batch) -> ExecutorError:
    if batch.status == "expired":
        return TransientError(f"batch {batch.id} expired before this was asked", kind="expired", usage=Usage())
    said = f"batch {batch.id} ({batch.status}) holds no answer to this, and no error"
    return TransientError(said, kind="missing", usage=Usage(requests=1, unsettled=1))
