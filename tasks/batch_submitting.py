"""Submitting batches, each once: what is about to be submitted is on the shelf before, to be found after a crash."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import uuid4

from prefect.logging import get_run_logger

from prefect_dispatch.errors import RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.batch import MOST_BYTES, MOST_LINES, Batch, BatchAPI
from prefect_dispatch.models import Attempt, Usage
from prefect_dispatch.tasks.batch_records import BatchRecord
from prefect_dispatch.tasks.loop import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from prefect_dispatch.tasks.batch_run import BatchRun

LEASE_S = 600.0
"""How long somebody on another machine is believed to be submitting."""
POLL_S = 1.0
"""How often to look whether it is submitted."""


async def under_way(run: BatchRun, *, alone: bool) -> list[BatchRecord]:
    """Return the batches that hold what is still to be asked, submitted now if need be.

    Args:
        run: Whose work it is.
        alone: Whether a lock keeps others from submitting meanwhile.

    Raises:
        ExecutorError: If a provider takes none.
    """
    wanted = await in_thread(run.wanted)
    batches: list[BatchRecord] = []
    for record in await in_thread(run.records.under_way, wanted):
        if found := await _found(run, record, alone=alone):
            batches.append(found)
            run.hold_sent(found)
    sent = {work for record in batches for work in record.work}
    new = [work for work in wanted if work not in sent]
    return batches + [await _submitted(run, *group) async for group in _groups(run, new)]


async def _found(run: BatchRun, record: BatchRecord, *, alone: bool) -> BatchRecord | None:
    """Return a batch as its provider knows it; None if it was never submitted, as far as anybody knows."""
    while not (record.batch or alone) and time.time() - record.begun < LEASE_S:
        await run.pause(POLL_S)
        if (now := await in_thread(run.records.read, record.tag)) is None:
            return None  # its provider didn't take it
        record = now
    if record.batch:
        return record
    api, log = run.api(run.ours(record)[0]), get_run_logger()
    try:
        if batch := await run.patiently(lambda: api.find(record.tag, record.begun)):
            log.info("Batch %s was found again; a run had died while submitting it.", batch.id)
            return await _known(run, record, batch)
    except RejectedError as error:
        log.warning(
            "A run died while it submitted a batch, and its provider doesn't list what it has: the same may be "
            "asked, and paid for, a second time. %s",
            error,
        )
        lost = Attempt(usage=Usage(requests=1, unsettled=1), error="lost: nobody knows whether it was submitted")
        for work in run.ours(record):
            run.note(work, lost)
    await in_thread(run.records.end, record, record.work)
    return None


async def _groups(run: BatchRun, wanted: Sequence[str]) -> AsyncGenerator[tuple[BatchAPI, dict[str, bytes]], None]:
    """Yield what goes into one batch each: one model's, as much as a provider takes and the budget holds."""
    for _, same in groupby(sorted(wanted, key=run.who), key=run.who):
        names = list(same)
        size, group = 0, dict[str, bytes]()
        for name in names:
            line, ceiling = await in_thread(run.line, name)
            if not run.hold(name, ceiling):
                continue
            if group and (len(group) >= MOST_LINES or size + len(line) > MOST_BYTES):
                yield run.api(name), group
                size, group = 0, {}
            group[name] = line
            size += len(line)
        if group:
            yield run.api(names[0]), group


async def _submitted(run: BatchRun, api: BatchAPI, lines: Mapping[str, bytes]) -> BatchRecord:
    """Submit a batch, having put on the shelf what is about to be submitted."""
    record = BatchRecord(tag=uuid4().hex, name=api.who.name, work=tuple(lines), begun=time.time(), by=run.id)
    await in_thread(run.records.begin, record)
    try:
        file = await run.patiently(lambda: api.upload(list(lines.values())))
        record = record.model_copy(update={"file": file})
        await in_thread(run.records.write, record)
        batch = await run.patiently(lambda: _created(api, record))
    except (RejectedError, TerminalError):  # surely not submitted
        await in_thread(run.records.end, record, record.work)
        raise
    get_run_logger().info("Batch %s has %d requests for %r.", batch.id, len(lines), api.who.name)
    return await _known(run, record, batch)


async def _known(run: BatchRun, record: BatchRecord, batch: Batch) -> BatchRecord:
    known = record.model_copy(update={"batch": batch.id})
    await in_thread(run.records.write, known)
    return known


async def _created(api: BatchAPI, record: BatchRecord) -> Batch:
    """Create a batch; where nobody knows whether it was created, look for it before it is tried again."""
    try:
        return await api.create(record.file, record.tag)
    except TransientError:
        if found := await api.find(record.tag, record.begun):
            return found
        raise
