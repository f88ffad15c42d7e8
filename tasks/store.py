"""How answers are stored: Prefect's result storage, keyed by fingerprint, as plain JSON.

Prefect's own serializers run code that a stored record names; this one
builds an `Answer` or a `Report` from JSON and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext  # noqa: TC002 -- the signature that is overridden
from prefect.logging import get_logger
from prefect.serializers import Serializer
from pydantic import AwareDatetime, BaseModel, Field
from pydantic_core import to_json

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.examining import recall
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.models import Answer
from prefect_dispatch.report import Report
from prefect_dispatch.scrub import scrub
from prefect_dispatch.tasks.shelf import Lenient, Shelf

if TYPE_CHECKING:
    from prefect.filesystems import WritableFileSystem

    from prefect_dispatch.tasks.work import Work

PREFIX = "prefect-dispatch-"


class AnswerSerializer(Serializer):
    """Writes answers as tagged JSON, and reads nothing else."""

    type: str = "prefect-dispatch-answer"
    """The name under which Prefect finds this serializer again."""

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
        """Return the answer that was stored.

        Raises:
            ValueError: If it is another record, or was altered since.
        """
        return _read_sealed(blob.decode())


class ReportSerializer(Serializer):
    """Writes reports as tagged JSON, and reads nothing else; for flow runs whose results are stored.

    Of a run that was cancelled there is none, and Prefect stores that.
    """

    type: str = "prefect-dispatch-report"
    """The name under which Prefect finds this serializer again."""

    def dumps(self, obj: Any) -> bytes:  # noqa: ANN401 -- Prefect's signature
        """Return the JSON of a report, of none, or of an error's message.

        Raises:
            TypeError: If it is anything else.
        """
        if isinstance(obj, Report):  # there may be 100,000 rows in it, which as objects of Python's take much more
            return b'{"%b": %b}' % (self.type.encode(), to_json(obj, by_alias=False))
        return json.dumps({self.type: None}).encode() if obj is None else _error_json(obj, Report)

    def loads(self, blob: bytes) -> Report | None:
        """Return the report that was stored, or None where that was stored.

        Raises:
            ValueError: If it is another record.
        """
        found = _read(blob, self.type)
        return None if found is None else Report.model_validate(found)


def _error_json(raised: object, model: type[BaseModel]) -> bytes:
    """Return the JSON of what a run raised in place of a value: Prefect stores it, too, under a key of its own.

    Raises:
        TypeError: If it is no error.
    """
    if not isinstance(raised, BaseException):
        raise TypeError(f"only {model.__name__} and errors are stored, not {type(raised).__name__}")
    return json.dumps({"error": scrub(f"{type(raised).__name__}: {raised}")}).encode()


def _read(blob: bytes, tag: str) -> object:
    record: Any = json.loads(blob)
    if not isinstance(record, dict) or tag not in record:
        raise ValueError(f"not a record of {tag}: {str(cast('object', record))[:200]}")
    return cast("dict[str, object]", record)[tag]


class _Kept(BaseModel):
    """An answer as our serializer writes it."""

    answer: Answer = Field(alias="prefect-dispatch-answer")
    sha256: str | None = None
    """The checksum of the answer's JSON text; records of older versions have none."""


class DamagedError(ValueError):
    """A stored answer isn't what was stored: its checksum is another one."""


_SEALED = re.compile(r'\{"prefect-dispatch-answer": (.*), "sha256": "([0-9a-f]{64})"\}', re.DOTALL)
"""An answer as it is written: its JSON text, and the checksum of that text."""


def _read_sealed(text: str) -> Answer:
    """Return an answer as it was written.

    Raises:
        ValueError: If it is another record.
        DamagedError: If it was altered since.
    """
    kept = _Kept.model_validate_json(text)
    if kept.sha256 is None:
        return kept.answer
    written = _SEALED.fullmatch(text)
    # What only stands in another form, such as with line breaks, is still what was stored.
    said = written[1] if written else _text(json.loads(text)["prefect-dispatch-answer"])
    if _checksum(said) != kept.sha256:
        raise DamagedError("its checksum is another one")
    return kept.answer


def _text(value: object) -> str:
    return json.dumps(value)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Named(BaseModel):
    type: Literal["prefect-dispatch-answer"]


class _Metadata(BaseModel):
    serializer: _Named
    expiration: AwareDatetime | None = None


class _Record(BaseModel):
    """A record of Prefect's that holds an answer."""

    metadata: _Metadata
    result: str


class FingerprintPolicy(CachePolicy):
    """Caches a task run's answer under the fingerprint of its work."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 -- Prefect's signature
        **_: Any,  # noqa: ANN401 -- Prefect's signature
    ) -> str:
        """Return the storage key of the work that the inputs of a task run describe.

        What stands there and is no answer to that work is taken away: Prefect would believe it, and run the
        serializer that it names.

        Raises:
            TransientError: If the storage can't be used; Prefect then goes on without a key.
        """
        work = fingerprint(inputs["brief"], inputs["item"], inputs["executor"])
        shelf = Shelf(cast("WritableFileSystem", task_ctx.result_store.result_storage))
        found = shelf.read(key_of(work))
        if found is not None and not _is_to(answer_in(found), work) and shelf.read(key_of(work)) == found:
            if is_damaged(found):
                about = f"{inputs['brief'].name}/{inputs['item'].key}"
                get_logger("prefect_dispatch").warning("The stored answer to %s is damaged; it is asked again.", about)
            shelf.remove(key_of(work))
        return key_of(work)


def key_of(work: str) -> str:
    """Return the storage key of a fingerprint."""
    return PREFIX + work


def stored_answer(shelf: Shelf, work: Work) -> Answer | None:
    """Return the stored answer to some work, or None where there is none that can be used."""
    key = key_of(work.fingerprint)
    content = shelf.read(key)
    try:
        if found := usable(answer_in(content), work):
            return found
    except TerminalError:  # a check of the user's breaks; the run will say so
        return None
    if isinstance(shelf, Lenient) and is_damaged(content):
        shelf.damaged[key] = str(work.ref)
    return None


def answer_in(content: bytes | None) -> Answer | None:
    """Return the answer in a record of Prefect's, or None: cut off, altered, foreign, expired.

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
    """Return whether a record isn't what was stored: altered, or cut off. A foreign or an empty one is not damaged."""
    if not content:
        return False
    try:
        _read_sealed(_Record.model_validate_json(content).result)
    except DamagedError:
        return True
    except (ValueError, RecursionError):
        return _is_broken(content)
    return False


def _is_broken(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return True
    return False


def usable(found: object, work: Work) -> Answer | None:
    """Return what the store had for some work as its answer, or None: damaged, foreign, or no longer valid.

    Raises:
        TerminalError: If a check of the user's own breaks.
    """
    if not _is_to(found, work.fingerprint):
        return None
    value, wrong = recall(work.brief, work.item, found)
    if wrong:
        return None
    return found if value is found.value else found.model_copy(update={"value": value})


def _is_to(found: object, work: str) -> TypeGuard[Answer]:
    return isinstance(found, Answer) and found.fingerprint == work
