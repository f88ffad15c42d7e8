"""Protocol of shards in other processes: their documents, results, and the control notes that stop them.

The fan-out writes a control note into the result storage, and removes it when the run is interrupted. So any process
that can store answers can be stopped, on any machine, and a process that does not share the storage is detected
before it sends a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from prefect.results import get_result_store
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from prefect_dispatch.calls.budget import ZERO_AMOUNT, UsageAmount, amount_from_caps
from prefect_dispatch.calls.call_gate import forget_gate, gate_with_own_budget
from prefect_dispatch.errors import (
    BudgetError,
    BusyError,
    ExecutorError,
    InvalidOutput,
    JobError,
    PatienceError,
    RejectedError,
    TerminalError,
    TransientError,
    UnaskedError,
)
from prefect_dispatch.executors.base import BaseExecutor
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.executors.registry import BuiltInExecutor
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.imports import to_reference
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import AnyAttempt, Usage
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.tasks.event_loop import run_in_pool
from prefect_dispatch.tasks.result_store import PREFIX, BlobStore
from prefect_dispatch.tasks.stop_conditions import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable
    from uuid import UUID

    from prefect.filesystems import WritableFileSystem
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.tasks.work_item import WorkItem, WorkResponse


M = TypeVar("M", bound=BaseModel)


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 digest in hexadecimal."""


Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""Random identifier in hexadecimal."""


class ShardWork(Strict):
    """One piece of work of a shard."""

    brief: int = Field(ge=0)
    """Index into the shard's briefs."""
    item: int = Field(ge=0)
    """Index into the shard's items."""
    fingerprint: Digest
    """The fingerprint of the work; a worker that computes another one has other code, or other files."""
    again: bool = False
    """Whether it is asked even where an answer is stored."""


class ShardHeader(Strict):
    """Identity and control note of a shard that goes to another process."""

    name: Hex
    """The unique name of the shard."""
    note: Hex
    """The name of the control note that says whether the shard is still wanted."""


class ShardDocument(Strict):
    """Document of a shard, as it is stored for another process."""

    format: Literal[1] = 1
    """The version of this format."""
    folder: str
    """The job's folder, in which paths and the user's code are looked up, unless the deployment sets another one."""
    briefs: tuple[Brief, ...] = Field(min_length=1)
    """The briefs; the user's own code is referred to by name."""
    items: tuple[Item, ...] = Field(min_length=1)
    """The items."""
    work: tuple[ShardWork, ...] = Field(min_length=1)
    """The (brief, item) pairs to ask."""
    executor: BuiltInExecutor
    """The executor of the work."""
    limits: Limits
    """The limits of the shard: its share of those of the run."""
    sent: ShardHeader
    """Its name, and that of its control note."""
    beat_s: float = Field(gt=0, le=3600)
    """Seconds between two heartbeats of the run that works on it."""

    @model_validator(mode="after")
    def _validate_references(self) -> Self:
        if any(each.brief >= len(self.briefs) or each.item >= len(self.items) for each in self.work):
            msg = "a piece of work names a brief or an item that isn't there"
            raise ValueError(msg)
        if len({each.fingerprint for each in self.work}) < len(self.work):
            msg = "two pieces of work have one fingerprint"
            raise ValueError(msg)
        return self


WRITABLE = (LLM, Shell, CodingAgent, PythonCallable)
"""The executors that a job file can express."""


def to_document(
    work: Iterable[WorkItem],
    executor: BuiltInExecutor,
    limits: Limits,
    *,
    sent: ShardHeader,
    folder: str,
    beat_s: float,
    again: Collection[str],
) -> ShardDocument:
    """Return the document of a shard.

    Args:
        work: The work of the shard.
        executor: The executor of the work.
        limits: The limits of the shard.
        sent: The name of the shard and of its control note.
        folder: The job's folder.
        beat_s: Seconds between two heartbeats of its run.
        again: The fingerprints that are asked even where an answer is stored.
    """
    briefs: dict[int, tuple[int, Brief]] = {}
    items: dict[int, tuple[int, Item]] = {}
    asked: list[ShardWork] = []
    for each in work:  # one brief is the same object in all work that it is asked in, and so is one item
        brief, _ = briefs.setdefault(id(each.brief), (len(briefs), each.brief))
        item, _ = items.setdefault(id(each.item), (len(items), each.item))
        asked.append(ShardWork(brief=brief, item=item, fingerprint=each.fingerprint, again=each.fingerprint in again))
    return ShardDocument(
        folder=folder,
        briefs=tuple(to_job_file_form(brief) for _, brief in briefs.values()),
        items=tuple(item for _, item in items.values()),
        work=tuple(asked),
        executor=to_job_file_form(executor),
        limits=limits,
        sent=sent,
        beat_s=beat_s,
    )


def to_job_file_form(model: M) -> M:
    """Return a brief or an executor as a job file would express it, with the user's code referred to by name.

    Raises:
        ValidationError: If a job file can't express it.

    Example:
        >>> to_job_file_form(Brief(name="a", instructions="Say it.", output=Item)).output
        'prefect_dispatch.models.item:Item'
    """
    data = model.model_dump(mode="json")
    if isinstance(model, Brief) and isinstance(model.output, type):
        data["output"] = to_reference(model.output)
    return type(model).model_validate(data)


def encode_record(record: BaseModel) -> bytes:
    """Serialize a record to JSON bytes."""
    return json.dumps(record.model_dump(mode="json")).encode()  # pydantic's own writer refuses half characters


def decode_record(content: bytes | None, kind: type[M]) -> M | None:
    """Parse a record; return None if it is cut off, foreign, or of another version."""
    try:
        return kind.model_validate(json.loads(content or b""))
    except (ValueError, RecursionError):
        return None


def digest_of(content: bytes | None) -> str:
    """Return the SHA-256 digest of some content; None has that of empty content."""
    return hashlib.sha256(content or b"").hexdigest()


_ERRORS: dict[str, type[ExecutorError]] = {
    kind.__name__: kind
    for kind in (
        ExecutorError,
        TransientError,
        BusyError,
        InvalidOutput,
        RejectedError,
        UnaskedError,
        BudgetError,
        PatienceError,
        TerminalError,
    )
}
"""Error classes that the protocol carries; an error of a subclass arrives as the nearest of these."""


def _require_non_negative(amount: UsageAmount) -> UsageAmount:
    if min(amount) < 0:
        msg = "spending can't be negative"
        raise ValueError(msg)
    return amount


class ErrorRecord(Strict):
    """Error of a piece of work, as it is stored for another process."""

    name: Annotated[str, StringConstraints(pattern=f"^({'|'.join(_ERRORS)})$")]
    """The class of the error."""
    kind: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """The kind of the failure."""
    message: str
    """The message, without secrets."""
    trace: str = ""
    """The end of the message that differs between runs."""
    problems: tuple[str, ...] = ()
    """What was wrong with the last answer."""
    usage: Usage | None = None
    """The usage of the last request."""
    attempts: tuple[AnyAttempt, ...] = ()
    """All attempts."""

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """Return the record of an error; one that is no executor's is recorded as a crash, as in a report."""
        if not isinstance(error, ExecutorError):
            return cls(name="ExecutorError", kind="crashed", message=safe_message(error))
        # The nearest class that the protocol knows.
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
        return cls(
            name=name,
            kind=error.kind,
            message=redact(str(error).removesuffix(error.trace)),
            trace=redact(error.trace),
            problems=tuple(map(redact, error.problems)) if isinstance(error, InvalidOutput) else (),
            usage=error.usage,
            attempts=error.attempts,
        )

    @property
    def error(self) -> ExecutorError:
        """The error that the record stands for."""
        more: dict[str, Any] = {"problems": self.problems} if self.name == "InvalidOutput" else {}
        error = _ERRORS[self.name](f"{self.message}{self.trace}", kind=self.kind, usage=self.usage, **more)
        error.trace, error.attempts = self.trace, self.attempts
        return error


class ItemResult(Strict):
    """Result of one piece of work, as it is passed between processes."""

    fingerprint: Digest
    """The fingerprint of the work."""
    stored: bool = False
    """Whether its answer was stored before."""
    error: ErrorRecord | None = None
    """Why there is no answer; empty: the answer is in the store."""


class ShardResult(Strict):
    """Result of a shard; work that is missing in it was not asked. Answers are in the store, and not part of it."""

    format: Literal[1] = 1
    """The version of this format."""
    shard: Digest | None = None
    """The digest of the shard's document; empty where the shard had none."""
    done: tuple[ItemResult, ...] = ()
    """The results, in order of arrival."""
    spent: Annotated[UsageAmount, AfterValidator(_require_non_negative)] = ZERO_AMOUNT
    """What it spent of its share of the budget; a call with unknown result counts with its reservation."""
    begun_before: bool = False
    """Whether another process had begun it, and is gone: then nothing was done here."""

    @classmethod
    def failed(cls, error: BaseException, *work: WorkItem) -> ShardResult:
        """Return the result of a shard in which some work met an error, and the rest was not asked."""
        record = ErrorRecord.of(error)
        return cls(done=tuple(ItemResult(fingerprint=each.fingerprint, error=record) for each in work))


LOOK_S = 1.0
"""Seconds between two checks of a shard whether it is still wanted."""


GO, HALT = b"go", b"halt"
"""Contents of a control note: continue, or start nothing more. A missing note ends also what is in progress."""


def note_key(name: str) -> str:
    """Return the storage key of the control note of a fan-out."""
    return f"{PREFIX}wanted-{name}"


def started_key(name: str) -> str:
    """Return the storage key of the note that a shard has begun; it holds how much it may have spent."""
    return f"{PREFIX}begun-{name}"


def abandoned_key(name: str) -> str:
    """Return the storage key of the note that the run has abandoned a shard."""
    return f"{PREFIX}over-{name}"


def note_exists(blobs: BlobStore, key: str) -> bool:
    """Return whether there is a note under a key; storages without deletion hold an empty record instead.

    Raises:
        TransientError: If the storage can't be used.
    """
    return (blobs.load(key) or b"{}") != b"{}"


def abandon_shard(blobs: BlobStore, name: str) -> UsageAmount | None:
    """Abandon a shard whose process seems to be dead.

    Should the process live, it starts nothing more once it has spent what is returned.

    Returns:
        The most that it can have spent of each capped amount. None if that is not known.
    """
    try:
        blobs.write(abandoned_key(name), HALT)
        limit = blobs.load(started_key(name)) or b"{}"
        return ZERO_AMOUNT if limit == GO else amount_from_caps(json.loads(limit))
    except (TransientError, ValueError):
        return None


class ShardSupervisor:
    """Supervisor of a shard in the process that it was sent to: reports results, and stops it when it is not wanted.

    Attributes:
        group: The name of its gate, which has a budget of its own, and shares the slots and the rate limiter of the
            process.
        stopped: Whether nothing more is to be asked.
    """

    def __init__(self, header: ShardHeader, executor: Executor, limits: Limits, flow_run: str) -> None:
        """Keep the shard's header, and create its gate."""
        self._header, self._limits = header, limits
        self._grace_s = 0.0 if BaseExecutor.of(executor).cancel_immediately else limits.grace_s
        self._blobs = BlobStore(cast("WritableFileSystem", get_result_store().result_storage))
        self._circuit = CircuitBreaker(limits.circuit)
        self._results: list[ItemResult] = []
        self.group = f"{flow_run} {header.name}"
        self._gate = gate_with_own_budget(self.group, flow_run, limits)
        self._gate.budget.journal_to(self._note_spending_limit)
        self.stopped = False

    def start(self) -> bool:
        """Note that the shard has begun; return False if another process had begun it, or the run has abandoned it.

        Raises:
            TerminalError: If this process does not share the run's result storage, or the run is over.
            TransientError: If the storage can't be used.
        """
        content = self._blobs.load(note_key(self._header.note))
        if content not in {GO, HALT}:
            raise TerminalError(
                "The run is over, or its result storage isn't that of the process which was to ask for it; have all "
                "use one storage, such as a bucket (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK), or folder "
                "(PREFECT_LOCAL_STORAGE_PATH).",
                kind="storage",
                usage=Usage(),
            )
        self.stopped = content == HALT
        if any(note_exists(self._blobs, key(self._header.name)) for key in (started_key, abandoned_key)):
            return False
        self._blobs.write(
            started_key(self._header.name), GO
        )  # nothing spent yet; `_note_spending_limit` writes amounts
        return True

    async def _note_spending_limit(self, marks: dict[str, int]) -> None:
        """Note up to where may be spent from here on; nothing may be, once the run has abandoned this shard.

        This write and the check below, against `abandon_shard`'s write and read, leave no gap: one of both processes
        sees the note of the other, as the run writes its note before it reads how much may have been spent.
        """
        # The order matters: write first, then check.
        await run_in_pool(self._blobs.write, started_key(self._header.name), json.dumps(marks).encode())
        if await run_in_pool(note_exists, self._blobs, abandoned_key(self._header.name)):
            self.stopped = True
            raise TransientError("The run has given this shard up.", kind="taken", usage=Usage())

    def on_result(self, item_result: WorkResponse) -> None:
        """Record the result of a piece of work."""
        result = item_result.result
        if isinstance(result, BaseException):
            self.stopped |= self._circuit.record_failure(item_result.work, result) is not None
        elif not item_result.stored:
            self._circuit.record_success()
        error = ErrorRecord.of(result) if isinstance(result, BaseException) else None
        self._results.append(
            ItemResult(fingerprint=item_result.work.fingerprint, stored=item_result.stored, error=error)
        )

    async def run(self, work: Coroutine[object, object, None]) -> None:
        """Run the shard's work until it ends or is not wanted any more."""
        # A second task polls the control note, and cancels the work if it is removed.
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._watch(task))
        try:
            await asyncio.wait({task})
        finally:
            watch.cancel()
            task.cancel()
        if not task.cancelled():
            task.result()

    def finish(self, *, begun_before: bool = False) -> ShardResult:
        """Return the shard's result, and release its gate."""
        forget_gate(self.group, self._limits)
        return ShardResult(done=tuple(self._results), spent=self._gate.budget.spent_amount, begun_before=begun_before)

    async def _watch(self, task: asyncio.Task[None]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                content = await run_in_pool(self._blobs.load, note_key(self._header.note))
            except TransientError:
                continue
            self.stopped |= content != GO
            if content not in {GO, HALT}:  # the note was removed: the run was interrupted
                self._gate.close()
                await asyncio.wait({task}, timeout=self._grace_s)
                task.cancel()
                return


FOLDER = "prefect-dispatch-shards"
"""Folder of shard documents in the storage."""


KEY = rf"^{FOLDER}/[0-9a-f-]{{36}}/[0-9a-f]{{64}}$"
"""Pattern of a key: the run that wrote the document, and the digest of its content."""


RESULT_SUFFIX = ".came"
"""Suffix of the key of a shard's result."""


RETENTION_S = 14 * 86_400.0
"""Seconds after which documents that a crashed run left behind are removed."""


class ShardStore:
    """Store of shard documents and results, in the result storage."""

    def __init__(self, blobs: BlobStore) -> None:
        """Keep the storage."""
        self._blobs = blobs

    def write_shard(self, run: UUID, shard: ShardDocument) -> str:
        """Write a shard's document; return its key.

        Raises:
            TransientError: If it can't be written.
        """
        content = encode_record(shard)
        key = f"{FOLDER}/{run}/{digest_of(content)}"
        self._blobs.write(key, content)
        return key

    def read_shard(self, key: str) -> ShardDocument:
        """Return the shard under a key.

        Raises:
            JobError: If there is none; the message says what to set.
            TransientError: If the storage can't be read.
        """
        # 1. The key comes from a flow parameter: it must not lead to other content of the storage.
        if not re.fullmatch(KEY, key):
            raise JobError(f"shard: {key[:200]!r} is no key of a shard; runs of this deployment are made by dispatch.")
        # 2. The digest in the key shows that the content is what the run has written.
        content = self._blobs.load(key)
        if content is None or digest_of(content) != key.rpartition("/")[2]:
            raise JobError(
                f"There is no such shard in {self.description}, the result storage of this deployment's runs. Either "
                "the run that wrote it has ended, or it has another result storage: have both use one storage that "
                "both can reach, such as a bucket: PREFECT_DEFAULT_RESULT_STORAGE_BLOCK of the worker (or of its "
                "work pool's environment) names it as that of the run does."
            )
        # 3. It has to be valid.
        if (shard := decode_record(content, ShardDocument)) is None:
            raise JobError("The run that wrote this shard has another version of prefect-dispatch than the worker.")
        return shard

    def write_result(self, key: str, result: ShardResult) -> None:
        """Write the result of the shard under a key, with the digest of its document.

        Raises:
            TransientError: If it can't be written.
        """
        result = result.model_copy(update={"shard": key.rpartition("/")[2]})
        self._blobs.write(key + RESULT_SUFFIX, encode_record(result))

    def read_result(self, key: str) -> ShardResult | None:
        """Return the result of the shard under a key; None if there is none, or it is not valid.

        Raises:
            TransientError: If the storage can't be read.
        """
        result = decode_record(self._blobs.load(key + RESULT_SUFFIX), ShardResult)
        return result if result is not None and result.shard == key.rpartition("/")[2] else None

    def remove(self, key: str) -> None:
        """Remove the shard under a key, and its result.

        Raises:
            TransientError: If that can't be done.
        """
        self._blobs.remove(key)
        self._blobs.remove(key + RESULT_SUFFIX)
        if self._blobs.folder:
            with suppress(OSError):  # others of its run are still there
                (self._blobs.folder / key).parent.rmdir()

    def remove_expired(self) -> None:
        """Remove what crashed runs left long ago on this machine; other storages have retention rules of their own."""
        if self._blobs.folder is None:
            return
        for old in (self._blobs.folder / FOLDER).glob("*"):
            with suppress(OSError):  # another run tidies, too
                if time.time() - old.stat().st_mtime > RETENTION_S:
                    shutil.rmtree(old)

    @property
    def description(self) -> str:
        """Description of the storage, without secrets."""
        kind = type(self._blobs.storage).__name__
        return f"{self._blobs.folder} (on this machine)" if self._blobs.folder else f"a {kind}"
