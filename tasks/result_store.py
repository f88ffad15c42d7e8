"""Result store: answers in Prefect's result storage, keyed by fingerprint, as plain JSON.

Prefect's own serializers run code that a stored record names; the ones here
build an `Answer` or a `Report` from JSON and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext  # noqa: TC002 -- the signature that is overridden
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.logging import get_logger
from prefect.results import get_result_store
from prefect.serializers import Serializer
from prefect.settings.context import get_current_settings
from pydantic import AwareDatetime, BaseModel, Field
from pydantic_core import to_json

from prefect_dispatch.calls.attempt import revalidate_stored
from prefect_dispatch.errors import TerminalError, TransientError
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.models.outcome import Answer, Usage
from prefect_dispatch.models.report import Report
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.serialization.durable_files import create_quickly, group_commit_for, restore, write_atomically
from prefect_dispatch.tasks.event_loop import run_in_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect import Task
    from prefect.settings import Settings

    from prefect_dispatch.serialization.durable_files import Change, GroupCommit
    from prefect_dispatch.tasks.work_item import WorkItem


_KEY = "server-default-result-storage"
"""Key under which Prefect's server keeps the default result storage, if one is configured."""


def default_folder() -> LocalFileSystem | None:
    """Return the default folder of results; None where only a server knows the default storage.

    Where no server is configured, Prefect would start one to query it, which takes longer than a plan does.
    Its database is a file, and shows without a server whether another storage is configured.
    """
    # Settings that name a server or a block decide; else the database of a local server has to be checked.
    settings = get_current_settings()
    if settings.api.url or settings.results.default_storage_block or _may_have_custom_default(settings):
        return None
    return LocalFileSystem(basepath=str(settings.results.local_storage_path))


def _may_have_custom_default(settings: Settings) -> bool:
    """Return whether a server that Prefect started here could have another default storage configured."""
    secret = settings.server.database.connection_url
    driver, _, address = (secret.get_secret_value() if secret else "").partition(":///")
    path = address.partition("?")[0]
    if driver.partition("+")[0] != "sqlite" or not path:
        return True
    file = Path(path)
    if not file.exists():
        return False
    try:
        # Read-only, so that no database is created.
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM configuration WHERE key = ?", (_KEY,)).fetchone())
    except sqlite3.Error:
        return True


PAUSES_S = (0.1, 0.5)
"""Delays in seconds before a write is retried: its content was paid for."""


_ABSENT = re.compile(r"no.?such.?(key|file|object)|not.?found|does not exist|\b404\b", re.IGNORECASE)
"""Messages of storages about a missing key; most have no error class for it."""


class BlobStore:
    """Blob store on top of a result storage: bytes under keys.

    On this machine, writes are atomic and durable: a temporary file is written, synced to the disk, and renamed, and
    `store` syncs many of them together. An object store writes whole objects by itself.

    Attributes:
        storage: The storage.
        folder: The folder of a storage on this machine, else None.
    """

    def __init__(self, storage: WritableFileSystem) -> None:
        """Wrap a storage."""
        self.storage: Any = storage
        self.folder = _resolve_folder(storage.basepath or ".") if isinstance(storage, LocalFileSystem) else None
        self._folder_text = str(self.folder)
        if self.folder:
            restore(self.folder)

    @property
    def commits(self) -> GroupCommit | None:
        """The group commit of a folder on a file system of this machine, which is also quick to read; else None."""
        return group_commit_for(self.folder) if self.folder else None

    async def store(self, *changes: Change) -> None:
        """Store content under keys, or delete it, durably and in this order; it is not cancelled half-way.

        Raises:
            TransientError: If that can't be done, after several tries.
        """
        if not (self.folder and self.commits and await self.commits.commit(self.folder, *changes)):
            await run_in_pool(self._store_each, changes)

    def _store_each(self, changes: Sequence[Change]) -> None:
        for key, content in changes:
            if content is None:
                self.remove(key)
            else:
                self.write(key, content)

    def load(self, key: str) -> bytes | None:
        """Return the content under a key, or None if there is none.

        Raises:
            TransientError: If the storage can't be read.
        """
        try:
            if self.folder:
                with open(f"{self._folder_text}/{key}", "rb", buffering=0) as file:  # noqa: PTH123 -- as below
                    return file.read()
            return cast("bytes | None", self.storage.read_path(key, _sync=True))
        except FileNotFoundError:
            return None
        except Exception as error:
            if not self.folder and _ABSENT.search(f"{error}".replace(key, "")):
                return None
            raise _storage_error("read", error) from error

    def write(self, key: str, content: bytes, *, durable: bool = True) -> None:
        """Store content under a key.

        Args:
            key: The key.
            content: The content.
            durable: Whether it has to be durable beyond a power failure, and not only beyond this process. If not, a
                reader may see the beginning of a new record only.

        Raises:
            TransientError: If it can't be written, after several tries.
        """
        # All but the last try ignore errors.
        for delay_s in PAUSES_S:
            with suppress(Exception):
                return self._put(key, content, durable=durable)
            time.sleep(delay_s)
        try:
            self._put(key, content, durable=durable)
        except Exception as error:
            raise _storage_error("written", error) from error

    def remove(self, key: str) -> None:
        """Delete the content under a key; storages without deletion get an empty record instead.

        Raises:
            TransientError: If that can't be done.
        """
        if not self.folder:
            return self.write(key, b"{}")
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._folder_text}/{key}")  # noqa: PTH108 -- as below
        except OSError as error:
            raise _storage_error("written", error) from error

    def _put(self, key: str, content: bytes, *, durable: bool) -> None:
        if self.folder:
            path = f"{self._folder_text}/{key}"
            if durable or not create_quickly(path, content):
                write_atomically(path, [content], durable=durable)
        else:
            self.storage.write_path(key, content=content, _sync=True)


class LenientBlobStore(BlobStore):
    """Blob store that treats unreadable content as missing; a write under such a key will raise the error.

    Args:
        blobs: The blob store.
        most: How many such records are tolerated; with more, the storage counts as unreadable.

    Attributes:
        unread: The errors of unreadable records.
        damaged: References of the work whose stored answers are altered or truncated, by key.
    """

    def __init__(self, blobs: BlobStore, most: float = math.inf) -> None:
        """Wrap a blob store."""
        super().__init__(blobs.storage)
        self.read_errors: list[TransientError] = []
        self.damaged: dict[str, str] = {}
        self._max_errors = most

    def load(self, key: str) -> bytes | None:
        """Return the content under a key; None if it can't be read.

        Raises:
            TransientError: If that was one too many.
        """
        try:
            return super().load(key)
        except TransientError as error:
            self.read_errors.append(error)
            if len(self.read_errors) > self._max_errors:
                raise
            return None


def blob_store_of(task: Task[..., Any]) -> BlobStore:
    """Return the result storage that a task uses here: that of the flow run, or Prefect's default."""
    store = cast("Any", get_result_store())
    if store.result_storage is None and task.result_storage is None and (folder := default_folder()):
        return BlobStore(folder)
    return BlobStore(cast("WritableFileSystem", store.update_for_task(task, _sync=True).result_storage))


def _resolve_folder(path: str) -> Path:
    return _resolve_cached(path) if path.startswith("/") else Path(path).expanduser().resolve()


@lru_cache(maxsize=64)  # resolving checks each parent folder, and would do so for each read and write
def _resolve_cached(path: str) -> Path:
    return Path(path).resolve()


def _storage_error(action: str, error: Exception) -> TransientError:
    return TransientError(f"The result storage can't be {action}: {safe_message(error)}", kind="storage", usage=Usage())


PREFIX = "prefect-dispatch-"


class AnswerSerializer(Serializer):
    """Serializer of answers as tagged JSON; reads nothing else."""

    type: str = "prefect-dispatch-answer"
    """The name under which Prefect finds this serializer."""

    def dumps(self, obj: Any) -> bytes:  # noqa: ANN401 -- Prefect's signature
        """Return the JSON of an answer, or of an error's message.

        Raises:
            TypeError: If it is anything else.
        """
        if not isinstance(obj, Answer):
            return _error_json(obj, Answer)
        text = _text(obj.model_dump(mode="json"))
        return f'{{"{self.type}": {text}, "sha256": "{_checksum(text)}"}}'.encode()

    def loads(self, blob: bytes) -> Answer:
        """Return the stored answer.

        Raises:
            ValueError: If it is another record, or was altered.
        """
        return _read_sealed(blob.decode())


class ReportSerializer(Serializer):
    """Serializer of reports as tagged JSON, for flow runs whose results are stored; reads nothing else.

    A cancelled run has no report, and Prefect stores None for it.
    """

    type: str = "prefect-dispatch-report"
    """The name under which Prefect finds this serializer."""

    def dumps(self, obj: Any) -> bytes:  # noqa: ANN401 -- Prefect's signature
        """Return the JSON of a report, of None, or of an error's message.

        Raises:
            TypeError: If it is anything else.
        """
        if isinstance(obj, Report):  # it may have 100,000 rows, which take much more memory as Python objects
            return b'{"%b": %b}' % (self.type.encode(), to_json(obj, by_alias=False))
        return json.dumps({self.type: None}).encode() if obj is None else _error_json(obj, Report)

    def loads(self, blob: bytes) -> Report | None:
        """Return the stored report, or None where that was stored.

        Raises:
            ValueError: If it is another record.
        """
        data = _tagged_value(blob, self.type)
        return None if data is None else Report.model_validate(data)


def _error_json(raised: object, model: type[BaseModel]) -> bytes:
    """Return the JSON of the error of a run: Prefect stores it like a result, under a key of its own.

    Raises:
        TypeError: If it is no error.
    """
    if not isinstance(raised, BaseException):
        raise TypeError(f"only {model.__name__} and errors are stored, not {type(raised).__name__}")
    return json.dumps({"error": redact(f"{type(raised).__name__}: {raised}")}).encode()


def _tagged_value(blob: bytes, tag: str) -> object:
    record: Any = json.loads(blob)
    if not isinstance(record, dict) or tag not in record:
        raise ValueError(f"not a record of {tag}: {str(cast('object', record))[:200]}")
    return cast("dict[str, object]", record)[tag]


class _SealedAnswer(BaseModel):
    """Answer as our serializer writes it."""

    answer: Answer = Field(alias="prefect-dispatch-answer")
    sha256: str | None = None
    """The checksum of the answer's JSON text; records of older versions have none."""


class DamagedError(ValueError):
    """A stored answer is damaged: its checksum does not match."""


_SEALED = re.compile(r'\{"prefect-dispatch-answer": (.*), "sha256": "([0-9a-f]{64})"\}', re.DOTALL)
"""Serialized answer: its JSON text, and the checksum of that text."""


def _read_sealed(text: str) -> Answer:
    """Parse a serialized answer, and verify its checksum.

    Raises:
        ValueError: If it is another record.
        DamagedError: If it was altered.
    """
    record = _SealedAnswer.model_validate_json(text)
    if record.sha256 is None:
        return record.answer
    match = _SEALED.fullmatch(text)
    # JSON that was only reformatted, such as with line breaks, is still valid: the checksum is that of canonical text.
    answer_text = match[1] if match else _text(json.loads(text)["prefect-dispatch-answer"])
    if _checksum(answer_text) != record.sha256:
        raise DamagedError("its checksum is another one")
    return record.answer


def _text(value: object) -> str:
    return json.dumps(value)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _SerializerRecord(BaseModel):
    type: Literal["prefect-dispatch-answer"]


class _Metadata(BaseModel):
    serializer: _SerializerRecord
    expiration: AwareDatetime | None = None


class _Record(BaseModel):
    """Prefect's result record that holds an answer."""

    metadata: _Metadata
    result: str


class FingerprintPolicy(CachePolicy):
    """Cache policy that stores a task run's answer under the fingerprint of its work."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 -- Prefect's signature
        **_: Any,  # noqa: ANN401 -- Prefect's signature
    ) -> str:
        """Return the storage key of the work that the inputs of a task run describe.

        Content there that is no answer to that work is removed: Prefect would trust it, and run the
        serializer that it names.

        Raises:
            TransientError: If the storage can't be used; Prefect then goes on without a key.
        """
        work = fingerprint(inputs["brief"], inputs["item"], inputs["executor"])
        blobs = BlobStore(cast("WritableFileSystem", task_ctx.result_store.result_storage))
        content = blobs.load(storage_key(work))
        # The second read makes sure that no other run has stored a valid answer in between.
        if (
            content is not None
            and not _matches_fingerprint(parse_record(content), work)
            and blobs.load(storage_key(work)) == content
        ):
            if is_damaged(content):
                ref = f"{inputs['brief'].name}/{inputs['item'].key}"
                get_logger("prefect_dispatch").warning("The stored answer to %s is damaged; it is asked again.", ref)
            blobs.remove(storage_key(work))
        return storage_key(work)


def storage_key(work: str) -> str:
    """Return the storage key of a fingerprint."""
    return PREFIX + work


def stored_answer(blobs: BlobStore, work: WorkItem) -> Answer | None:
    """Return the stored answer to some work, or None if there is no usable one."""
    key = storage_key(work.fingerprint)
    content = blobs.load(key)
    try:
        if answer := validate_stored(parse_record(content), work):
            return answer
    except TerminalError:  # a check of the user's raises; the run will report it
        return None
    # Plans report damaged answers; a run asks again, and logs it.
    if isinstance(blobs, LenientBlobStore) and is_damaged(content):
        blobs.damaged[key] = str(work.ref)
    return None


def parse_record(content: bytes | None) -> Answer | None:
    """Return the answer in one of Prefect's result records; None if it is truncated, altered, foreign or expired.

    The record is read as JSON and nothing else; Prefect would run the serializer that it names.
    """
    try:
        record = _Record.model_validate_json(content or b"")
        if record.metadata.expiration and record.metadata.expiration < datetime.now(timezone.utc):
            return None
        return _read_sealed(record.result)
    except (ValueError, RecursionError):
        return None


def is_damaged(content: bytes | None) -> bool:
    """Return whether a record is altered or truncated. A foreign or an empty one is not damaged."""
    if not content:
        return False
    # A checksum that does not match is damage; so is text that is no JSON. Other JSON is a foreign record.
    try:
        _read_sealed(_Record.model_validate_json(content).result)
    except DamagedError:
        return True
    except (ValueError, RecursionError):
        try:
            json.loads(content)
        except (ValueError, RecursionError):
            return True
    return False


def validate_stored(found: object, work: WorkItem) -> Answer | None:
    """Return a stored object as the answer to some work; None if it is damaged, foreign, or no longer valid.

    Raises:
        TerminalError: If a check of the user's own raises.
    """
    if not _matches_fingerprint(found, work.fingerprint):
        return None
    # The schema and the checks may have changed since it was stored, without a change of the fingerprint.
    value, problems = revalidate_stored(work.brief, work.item, found)
    if problems:
        return None
    return found if value is found.value else found.model_copy(update={"value": value})


def _matches_fingerprint(found: object, work: str) -> TypeGuard[Answer]:
    return isinstance(found, Answer) and found.fingerprint == work
