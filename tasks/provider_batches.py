"""Provider batches: submit requests as a batch, poll it, collect the replies and store every valid answer.

Only one run at a time submits or collects (on one machine, enforced by a lock of the kernel). A record of each batch
is written to the result storage before the batch is submitted, so that a run which dies is followed up by the next
run that has some of the same work.
"""

from __future__ import annotations

import asyncio
import time
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID, uuid4

from prefect.logging import get_run_logger
from pydantic import Field, ValidationError

from prefect_dispatch.calls.attempt import feedback_text, validate_reply
from prefect_dispatch.calls.budget import find_cost_bound
from prefect_dispatch.calls.rate_limiter import usable_retry_after_s
from prefect_dispatch.errors import BudgetError, BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm.batch_api import MOST_BYTES, MOST_LINES, Batch, BatchAPI
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import (
    BATCH,
    Answer,
    AnyAttempt,
    Attempt,
    ItemizedAttempt,
    Rejection,
    Usage,
    UsageShare,
)
from prefect_dispatch.security.redaction import redact_item_text, redact_quotes
from prefect_dispatch.tasks.event_loop import run_in_pool
from prefect_dispatch.tasks.get_or_compute import ExclusiveKey
from prefect_dispatch.tasks.item_splitting import TOO_LONG, is_recorded_too_long, record_too_long
from prefect_dispatch.tasks.result_store import PREFIX, parse_record, storage_key, validate_stored
from prefect_dispatch.tasks.stop_conditions import raise_if_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from prefect_dispatch.calls.budget import Reservation
    from prefect_dispatch.calls.call_gate import CallGate
    from prefect_dispatch.executors.base import CostBound
    from prefect_dispatch.executors.llm.llm import LLM
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.serialization.durable_files import Change
    from prefect_dispatch.tasks.get_or_compute import ResultLocation
    from prefect_dispatch.tasks.result_store import BlobStore
    from prefect_dispatch.tasks.work_item import WorkItem


MAX_DELAY_S = 3600.0
"""Seconds of a delay before a retry, at most."""


_DOUBLINGS = 20


_STORED_AT_ONCE = 500
"""Answers of a batch that are validated, and synced to the disk together."""


class RetryBudget:
    """Retry budget of one call: waits for a busy provider, retries any other failure as the limits allow.

    Args:
        limits: The limits of the run.
        submitted: Whether the call is about a batch that is submitted already: then nothing is lost by asking
            again later, so any error is waited for as a busy provider is.
        least_s: Seconds of the first wait; each further one is twice as long.
        most_s: Seconds of a wait, at most, unless the provider asks for more.
    """

    def __init__(self, limits: Limits, *, submitted: bool, least_s: float, most_s: float) -> None:
        """Create an unused budget."""
        self._limits, self._submitted = limits, submitted
        self._least_s, self._most_s = least_s, most_s
        self._deadline = time.monotonic() + limits.wait_s
        self._waits = self._retries = 0

    def next_delay(self, error: TransientError) -> tuple[float, str]:
        """Return the delay in seconds before the next try, and a note on the limit that it draws on.

        Args:
            error: The error of the last try.

        Raises:
            TransientError: The same error, if there is no further try.
        """
        if not self._submitted and not isinstance(error, BusyError):
            return self._retry(error)
        requested_s = usable_retry_after_s(error, self._limits.wait_s) if isinstance(error, BusyError) else 0.0
        delay_s = max(min(self._least_s * 2 ** min(self._waits, _DOUBLINGS), self._most_s), requested_s)
        left_s = self._deadline - time.monotonic()
        if delay_s > left_s:
            raise error
        self._waits += 1
        return delay_s, f"{left_s:.0f} s are left of limits.wait_s"

    def _retry(self, error: TransientError) -> tuple[float, str]:
        if self._retries >= self._limits.retries:
            raise error
        delay_s = min(self._limits.retry_delay_s * 2**self._retries, MAX_DELAY_S)
        self._retries += 1
        return delay_s, f"retry {self._retries} of {self._limits.retries}, limits.retries"


T = TypeVar("T")


CANCEL_CHECK_S = 5.0
"""Seconds between two checks whether the run was cancelled."""


LEAST_S, MOST_S = 1.0, 60.0
"""Bounds of the delay between two requests to the provider, in seconds."""


class BatchResults(Strict):
    """Results of the batches of a run."""

    attempts: dict[str, tuple[AnyAttempt, ...]] = Field(default_factory=dict)
    """The attempts for each piece of work, by fingerprint, with or without an answer."""
    answered: frozenset[str] = frozenset()
    """Fingerprints of the work whose answer is stored now."""
    unaffordable: dict[str, str] = Field(default_factory=dict)
    """Work that the budget does not cover, and why, by fingerprint."""
    stopped: str | None = None
    """Why no more requests are to be sent; None if they may be."""


class BatchesPendingError(Exception):
    """Batches are in progress, and this run does not wait for them in its process."""

    def __init__(self, gathered: BatchResults, submitted: float) -> None:  # pragma: no cover -- in a worker's process
        """Keep the results so far, and when the last batch was submitted (seconds since the epoch)."""
        super().__init__(gathered, submitted)
        self.results, self.submitted_at = gathered, submitted


class BatchRun:
    """Work of one flow run that is sent in batches.

    Attributes:
        work: For each fingerprint its work, its executor, and where the answer is stored.
        records: The journal of batches in progress, of all runs.
        id: The id of the flow run.
        again: The fingerprints that are asked even where an answer is stored.
        answered: The fingerprints whose answers batches of this run have stored.
    """

    def __init__(
        self,
        work: Mapping[str, tuple[WorkItem, LLM, ResultLocation]],
        records: BatchJournal,
        gate: CallGate,
        *,
        run: str,
        again: Collection[str] = (),
        before: BatchResults | None = None,
    ) -> None:
        """Keep the work; `before` holds the results from before the run released its worker."""
        before = before or BatchResults()
        self.work, self.records, self.id, self.refresh = work, records, run, again
        self.answered = set(before.answered)
        self._gate = gate
        self._attempts = dict(before.attempts)
        self._unaffordable: dict[str, str] = {}
        self._reservations: dict[str, Reservation] = {}
        self._apis: dict[str, BatchAPI] = {}
        for attempt in (attempt for attempts in before.attempts.values() for attempt in attempts):
            gate.budget.charge(attempt.usage)

    def results_so_far(self, stopped: str | None = None) -> BatchResults:
        """Return the results so far.

        Args:
            stopped: Why no more requests are to be sent, if so.
        """
        return BatchResults(
            attempts=self._attempts,
            answered=frozenset(self.answered),
            unaffordable=self._unaffordable,
            stopped=stopped,
        )

    def attempts_at(self, name: str) -> tuple[Attempt, ...]:
        """Return the attempts at a piece of work."""
        return self._attempts.get(name, ())

    def pending_work(self) -> list[str]:
        """Return the fingerprints that have no answer and have not used up their rounds."""
        return [
            name
            for name, (work, executor, place) in self.work.items()
            if name not in self.answered
            and name not in self._unaffordable
            and len(self.attempts_at(name)) < executor.rounds
            and (name in self.refresh or not (self.is_stored(name) or is_recorded_too_long(place.blobs, work)))
        ]

    def is_stored(self, name: str) -> bool:
        """Return whether a usable answer is stored."""
        work, _, place = self.work[name]
        return validate_stored(parse_record(place.blobs.load(place.key)), work) is not None

    def executor_name(self, name: str) -> str:
        """Return the name of the executor of a piece of work."""
        return self.work[name][1].name

    def api_of(self, name: str) -> BatchAPI:
        """Return the batch API of the executor of a piece of work; one client for each executor."""
        executor = self.work[name][1]
        return self._apis.setdefault(executor.name, BatchAPI(executor))

    def request_line(self, name: str) -> tuple[bytes, CostBound | None]:
        """Return the request line of a piece of work, and the upper bound of its cost."""
        api, ask = self.api_of(name), self._ask(name)
        return api.request_line(name, ask), find_cost_bound(self._gate.limits, api.llm, ask)

    def reserve(self, name: str, ceiling: CostBound | None) -> bool:
        """Reserve the cost of a request in the budget; return False if the budget does not cover it."""
        try:
            self._reservations[name] = self._gate.budget.reserve_now(self.api_of(name).llm.name, ceiling)
        except BudgetError as error:
            self._unaffordable[name] = str(error)
            return False
        return True

    def reserve_submitted(self, record: BatchRecord) -> None:
        """Reserve budget for a batch that was submitted before, by this run or by another."""
        for name in self.own_work(record):
            executor = self.api_of(name).llm
            ceiling = find_cost_bound(self._gate.limits, executor, self._ask(name))
            self._reservations[name] = self._gate.budget.reserve_now(executor.name, ceiling, sent=True)

    def record_attempt(self, name: str, attempt: Attempt) -> None:
        """Record an attempt, and charge its usage to the budget."""
        self._attempts[name] = (*self.attempts_at(name), attempt)
        if reservation := self._reservations.pop(name, None):
            self._gate.budget.settle(reservation, attempt.usage)
        else:
            self._gate.budget.charge(attempt.usage)

    def release_reservations(self, record: BatchRecord) -> None:
        """Release the reservations for work that another run has collected."""
        for name in self.own_work(record):
            if reservation := self._reservations.pop(name, None):
                self._gate.budget.settle(reservation, Usage())

    def own_work(self, record: BatchRecord) -> tuple[str, ...]:
        """Return the work of a batch that belongs to this run."""
        return tuple(name for name in record.work if name in self.work)

    async def call_with_retries(self, call: Callable[[], Awaitable[T]], *, submitted: bool = False) -> T:
        """Return the result of a call; wait while the provider is busy, retry other failures as the limits allow.

        Args:
            call: Makes the call.
            submitted: Whether it is about a batch that is submitted already: then any error is waited for.

        Raises:
            ExecutorError: If the call fails for good.
        """
        patience = RetryBudget(self._gate.limits, submitted=submitted, least_s=LEAST_S, most_s=MOST_S)
        while True:
            try:
                return await call()
            except TransientError as error:
                delay_s, limit_note = patience.next_delay(error)
                get_run_logger().warning("A batch goes on in %.1f s (%s): %s", delay_s, limit_note, error)
            await self.sleep(delay_s)

    async def sleep(self, seconds: float) -> None:
        """Sleep, checking regularly that the run was not cancelled.

        Raises:
            CancelledRun: If it was.
        """
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            await asyncio.sleep(min(left, CANCEL_CHECK_S))
            await run_in_pool(raise_if_cancelled, UUID(self.id))

    async def wait_for_poll(self, record: BatchRecord) -> None:
        """Sleep before the next poll of a batch."""
        await self.sleep(poll_delay_s(record.begun, LEAST_S, MOST_S))

    def _ask(self, name: str) -> Ask:
        work = self.work[name][0]
        return Ask(brief=work.brief.fill_placeholders(work.item), item=work.item)


def poll_delay_s(begun: float, least: float, most: float) -> float:
    """Return the seconds until the next poll of a batch: a quarter of its age, within the bounds.

    Example:
        >>> poll_delay_s(time.time() - 400, 1, 60), poll_delay_s(time.time(), 1, 60)
        (60, 1)
    """
    return min(max((time.time() - begun) / 4, least), most)


class BatchRecord(Strict):
    """Journal entry of a batch, written before it is submitted."""

    tag: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Our name for the batch; the provider stores it with the batch."""
    name: str
    """The executor's name."""
    work: tuple[str, ...]
    """The fingerprints that are not collected yet."""
    begun: float
    """When it was created, in seconds since the epoch."""
    by: str
    """The flow run that submits it."""
    file: str = ""
    """The provider's id of the uploaded requests; empty until they are uploaded."""
    batch: str = ""
    """The provider's id of the batch; empty until it is known."""


class _BatchPointer(Strict):
    """Pointer from a piece of work to the batch that contains it."""

    tag: str = Field(pattern=r"^[0-9a-f]{32}$")


class BatchJournal:
    """Journal of batches in the result storage."""

    def __init__(self, blobs: BlobStore) -> None:
        """Keep the storage."""
        self._blobs = blobs

    def find_open(self, work: Iterable[str]) -> list[BatchRecord]:
        """Return the open batches that contain some of the work.

        Raises:
            TransientError: If the storage can't be read.
        """
        work_by_tag: dict[str, set[str]] = {}
        for each in work:
            if tag := self._tag_of(each):
                work_by_tag.setdefault(tag, set()).add(each)
        records = {tag: self.load(tag) for tag in work_by_tag}
        return [record for tag, record in records.items() if record and not work_by_tag[tag].isdisjoint(record.work)]

    def load(self, tag: str) -> BatchRecord | None:
        """Return the record of a batch; None if all of it is collected, or the record is damaged."""
        try:
            record = BatchRecord.model_validate_json(self._blobs.load(_record_key(tag)) or b"")
        except ValidationError:
            return None
        return record if record.tag == tag else None

    def create(self, record: BatchRecord) -> None:
        """Write a new record, and a pointer to it for each piece of work.

        Raises:
            TransientError: If the storage can't be written.
        """
        self.write(record)
        for each in record.work:
            self._blobs.write(_pointer_key(each), _BatchPointer(tag=record.tag).model_dump_json().encode())

    def write(self, record: BatchRecord) -> None:
        """Replace a record.

        Raises:
            TransientError: If the storage can't be written.
        """
        self._blobs.write(_record_key(record.tag), record.model_dump_json().encode())

    def remove_work(self, record: BatchRecord, work: Collection[str]) -> None:
        """Remove collected work from a record, and the record itself with its last work.

        Raises:
            TransientError: If the storage can't be written.
        """
        collected = frozenset(work)
        left = tuple(each for each in record.work if each not in collected)
        if left:
            self.write(record.model_copy(update={"work": left}))
        else:
            self._blobs.remove(_record_key(record.tag))
        for each in work:
            if self._tag_of(each) == record.tag:
                self._blobs.remove(_pointer_key(each))

    def _tag_of(self, work: str) -> str | None:
        try:
            return _BatchPointer.model_validate_json(self._blobs.load(_pointer_key(work)) or b"").tag
        except ValidationError:
            return None


def _record_key(tag: str) -> str:
    return f"{PREFIX}batch-{tag}"


def _pointer_key(work: str) -> str:
    return f"{storage_key(work)}.batch"


LEASE_S = 600.0
"""Seconds for which a run on another machine counts as still submitting."""


POLL_S = 1.0
"""Seconds between two checks whether the batch is submitted."""


async def ensure_submitted(run: BatchRun, *, alone: bool) -> list[BatchRecord]:
    """Return the batches that contain the pending work; submit new ones as needed.

    Args:
        run: The run whose work it is.
        alone: Whether a lock keeps other runs from submitting at the same time.

    Raises:
        ExecutorError: If a provider accepts no batch.
    """
    # 1. Take over the batches that contain pending work, of this run or of an earlier one.
    pending = await run_in_pool(run.pending_work)
    batches: list[BatchRecord] = []
    for record in await run_in_pool(run.records.find_open, pending):
        if recovered := await _recover_batch(run, record, alone=alone):
            batches.append(recovered)
            run.reserve_submitted(recovered)
    # 2. Submit the rest.
    submitted = {work for record in batches for work in record.work}
    new = [work for work in pending if work not in submitted]
    return batches + [await _submit(run, *group) async for group in _batch_groups(run, new)]


async def _recover_batch(run: BatchRun, record: BatchRecord, *, alone: bool) -> BatchRecord | None:
    """Return a batch with its provider's id; None if it was, as far as known, never submitted."""
    # 1. Another machine may be submitting it at this moment: wait until its lease has expired.
    while not (record.batch or alone) and time.time() - record.begun < LEASE_S:
        await run.sleep(POLL_S)
        if (current := await run_in_pool(run.records.load, record.tag)) is None:
            return None  # its provider rejected it
        record = current
    if record.batch:
        return record
    # 2. Its run died in between. Look for the batch under our tag at the provider.
    api, log = run.api_of(run.own_work(record)[0]), get_run_logger()
    try:
        if batch := await run.call_with_retries(lambda: api.find_batch(record.tag, record.begun)):
            log.info("Batch %s was recovered; a run had died while submitting it.", batch.id)
            return await _record_batch_id(run, record, batch)
    except RejectedError as error:
        log.warning(
            "A run died while it submitted a batch, and its provider doesn't list what it has: the same may be "
            "asked, and paid for, a second time. %s",
            error,
        )
        for name in run.own_work(record):
            attempt = Attempt(
                usage=Usage(requests=1, unsettled=1), error="lost: it is unknown whether it was submitted"
            )
            run.record_attempt(name, _itemize(attempt, run.api_of(name).llm.model))
    await run_in_pool(run.records.remove_work, record, record.work)
    return None


async def _batch_groups(
    run: BatchRun, pending: Sequence[str]
) -> AsyncGenerator[tuple[BatchAPI, dict[str, bytes]], None]:
    """Yield the requests of one batch each: of one executor, within the provider's size limits and the budget."""
    for _, same in groupby(sorted(pending, key=run.executor_name), key=run.executor_name):
        names = list(same)
        size, group = 0, dict[str, bytes]()
        for name in names:
            line, ceiling = await run_in_pool(run.request_line, name)
            if not run.reserve(name, ceiling):
                continue
            if group and (len(group) >= MOST_LINES or size + len(line) > MOST_BYTES):
                yield run.api_of(name), group
                size, group = 0, {}
            group[name] = line
            size += len(line)
        if group:
            yield run.api_of(names[0]), group


async def _submit(run: BatchRun, api: BatchAPI, lines: Mapping[str, bytes]) -> BatchRecord:
    """Submit a batch; its record is written first, so that a run that dies leaves a trace of it."""
    # The record is written before the upload, and the file's id before the batch is created.
    record = BatchRecord(tag=uuid4().hex, name=api.llm.name, work=tuple(lines), begun=time.time(), by=run.id)
    await run_in_pool(run.records.create, record)
    try:
        file = await run.call_with_retries(lambda: api.upload(list(lines.values())))
        record = record.model_copy(update={"file": file})
        await run_in_pool(run.records.write, record)
        batch = await run.call_with_retries(lambda: _create_batch(api, record))
    except (RejectedError, TerminalError):  # certainly not submitted
        await run_in_pool(run.records.remove_work, record, record.work)
        raise
    get_run_logger().info("Batch %s has %d requests for %r.", batch.id, len(lines), api.llm.name)
    return await _record_batch_id(run, record, batch)


async def _record_batch_id(run: BatchRun, record: BatchRecord, batch: Batch) -> BatchRecord:
    updated = record.model_copy(update={"batch": batch.id})
    await run_in_pool(run.records.write, updated)
    return updated


async def _create_batch(api: BatchAPI, record: BatchRecord) -> Batch:
    """Create a batch; if it is unknown whether that succeeded, look for the batch before it is tried again."""
    try:
        return await api.create_batch(record.file, record.tag)
    except TransientError:
        if existing := await api.find_batch(record.tag, record.begun):
            return existing
        raise


LOCK = f"{PREFIX}batches"


async def collect_batches(run: BatchRun, folder: Path | None, *, waits: bool = True) -> BatchResults:
    """Return the results of all batches of a run, once none is in progress.

    Args:
        run: The run whose work it is.
        folder: The folder for lock files shared by processes of this machine, if there is one.
        waits: Whether to wait for batches.

    Raises:
        BatchesPendingError: If a batch is in progress, and this run does not wait.
        CancelledRun: If the run was cancelled.
    """
    try:
        # Further rounds follow until no work is pending: an invalid answer is asked again in the next batch.
        while batches := await _ensure_submitted_locked(run, folder):
            # 1. Wait for all batches of this round.
            for record in batches:
                if not await _wait_until_final(run, record, waits=waits):  # pragma: no cover -- in a worker's process
                    raise BatchesPendingError(run.results_so_far(), max(each.begun for each in batches))
            # 2. Collect them. Runs with the same work do so one after another, so that each answer is stored once.
            for record in batches:
                async with ExclusiveKey(LOCK, folder):
                    await _collect(run, record)
    except ExecutorError as error:
        return run.results_so_far(stopped=f"A batch met an error: {error}")
    return run.results_so_far()


async def _ensure_submitted_locked(run: BatchRun, folder: Path | None) -> Sequence[BatchRecord]:
    async with ExclusiveKey(LOCK, folder) as alone:
        return await ensure_submitted(run, alone=alone)


async def _wait_until_final(run: BatchRun, record: BatchRecord, *, waits: bool) -> bool:
    """Wait until a batch is final; return False if it is not and `waits` is off."""
    done = 0
    while not (batch := await _fetch_status(run, record)).ended:
        if not waits:  # pragma: no cover -- in a worker's process
            return False
        if batch.done != done:
            done = batch.done
            get_run_logger().info("Batch %s: %d of %d requests finished.", record.batch, done, len(record.work))
        await run.wait_for_poll(record)
    return True


async def _fetch_status(run: BatchRun, record: BatchRecord) -> Batch:
    api = run.api_of(run.own_work(record)[0])
    return await run.call_with_retries(lambda: api.get_batch(record.batch), submitted=True)


async def _collect(run: BatchRun, record: BatchRecord) -> None:
    """Store the answers of a batch, remove it from the journal, and charge its usage."""
    # The record may have changed: another run may have collected some of its work by now.
    current = await run_in_pool(run.records.load, record.tag)
    names = run.own_work(current) if current else ()
    if current and names:
        api, batch = run.api_of(names[0]), await _fetch_status(run, record)
        replies = await run.call_with_retries(lambda: api.download_results(batch, names), submitted=True)
        if batch.status == "failed" and not replies:
            await run_in_pool(run.records.remove_work, current, current.work)
            raise TerminalError(f"batch {batch.id} was refused as a whole: {batch.problems}", kind="batch")
        # 1. Store the answers, before the record is removed: a crash in between only repeats this.
        attempts: dict[str, Attempt] = {}
        waited_s = round(max(time.time() - current.begun, 0.0), 3)
        for start in range(0, len(names), _STORED_AT_ONCE):
            read = await run_in_pool(_read_replies, run, batch, names[start : start + _STORED_AT_ONCE], replies)
            changes = [change for _, change in read.values() if change]
            if changes:
                await run.work[names[0]][2].blobs.store(*changes)
            attempts |= {name: attempt.model_copy(update={"waited_s": waited_s}) for name, (attempt, _) in read.items()}
            run.answered |= {name for name, (attempt, _) in read.items() if attempt.error is None}
        # 2. Remove the work from the record.
        await run_in_pool(run.records.remove_work, current, names)
        # 3. Charge the usage.
        for name, attempt in attempts.items():
            run.record_attempt(name, attempt)
    run.release_reservations(record)


def _read_replies(
    run: BatchRun, batch: Batch, names: Sequence[str], replies: Mapping[str, Reply | ExecutorError]
) -> dict[str, tuple[Attempt, Change | None]]:
    """Return the attempt for each piece of work, and its valid answer to be stored."""
    return {name: _read_reply(run, name, replies.get(name) or _missing_answer_error(batch)) for name in names}


def _read_reply(run: BatchRun, name: str, reply: Reply | ExecutorError) -> tuple[Attempt, Change | None]:
    """Return the attempt of a reply, and its answer to be stored, if it is valid and not stored yet."""
    work, _, place = run.work[name]
    # 1. A failed request.
    if not isinstance(reply, Reply):
        if work.brief.split and reply.kind in TOO_LONG:
            record_too_long(place.blobs, work)  # so that its parts are asked live, and not the whole item again
        usage = reply.usage or Usage(requests=1, unsettled=1)
        failed = Attempt(usage=usage, error=f"{reply.kind}: {redact_item_text(reply, work.item)}")
        return _itemize(failed, run.api_of(name).llm.model), None
    attempt = _itemize(Attempt(model=reply.model, served_model=reply.served_model, usage=reply.usage), reply.model)
    # 2. A reply, which has to be valid for the brief.
    try:
        value, wrong = validate_reply(work.brief, work.item, reply)
    except RejectedError as error:
        return attempt.model_copy(update={"error": f"{error.kind}: {redact_item_text(error, work.item)}"}), None
    except ExecutorError as error:
        raise redact_item_text(error, work.item) from None
    if wrong:
        rejection = Rejection(text=feedback_text(reply.value), problems=tuple(wrong)).truncated
        why = f"invalid: {redact_quotes(' '.join(wrong[:5]), work.item.value)}"
        return attempt.model_copy(update={"rejections": (rejection,), "error": why}), None
    # 3. A valid answer. An answer that was stored by another run is kept.
    if name not in run.refresh and run.is_stored(name):
        return attempt, None
    answer = Answer(
        value=value,
        said=reply.value if isinstance(work.brief.output, type) else None,
        fingerprint=name,
        model=reply.model,
        served_model=reply.served_model,
        attempts=(*run.attempts_at(name), attempt),
        citations=reply.citations,
    )
    return attempt, (place.key, place.to_record(answer))


def _itemize(attempt: Attempt, model: str) -> Attempt:
    """Return an attempt with its usage at the price of batches."""
    return ItemizedAttempt(**dict(attempt), shares=(UsageShare(model=model, tier=BATCH, usage=attempt.usage),))


def _missing_answer_error(batch: Batch) -> ExecutorError:
    if batch.status == "expired":
        return TransientError(f"batch {batch.id} expired before this was asked", kind="expired", usage=Usage())
    message = f"batch {batch.id} ({batch.status}) holds no answer to this, and no error"
    return TransientError(message, kind="missing", usage=Usage(requests=1, unsettled=1))
