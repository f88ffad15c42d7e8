"""How answers are stored: Prefect's result storage, keyed by fingerprint, as plain JSON.

Prefect's own serializers run code that a stored record names; this one
builds an `Answer` or a `Report` from JSON and nothing else.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext  # noqa: TC002 -- the signature that is overridden
from prefect.serializers import Serializer
from pydantic import AwareDatetime, BaseModel, Field, Json
from pydantic_core import to_json

from prefect_dispatch.errors import TerminalError
from prefect_dispatch.examining import recall
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.models import Answer
from prefect_dispatch.report import Report
from prefect_dispatch.scrub import scrub
from prefect_dispatch.tasks.shelf import Shelf

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
        return _written(obj, Answer, self.type)

    def loads(self, blob: bytes) -> Answer:
        """Return the answer that was stored.

        Raises:
            ValueError: If it is another record.
        """
        return _Kept.model_validate_json(blob).answer


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
        return json.dumps({self.type: None}).encode() if obj is None else _written(obj, Report, self.type)

    def loads(self, blob: bytes) -> Report | None:
        """Return the report that was stored, or None where that was stored.

        Raises:
            ValueError: If it is another record.
        """
        found = _read(blob, self.type)
        return None if found is None else Report.model_validate(found)


def _written(thing: object, model: type[BaseModel], tag: str) -> bytes:
    if isinstance(thing, BaseException):  # what a run raised: Prefect stores it, too, under a key of its own
        return json.dumps({"error": scrub(f"{type(thing).__name__}: {thing}")}).encode()
    if not isinstance(thing, model):
        raise TypeError(f"only {model.__name__} and errors are stored, not {type(thing).__name__}")
    return json.dumps({tag: thing.model_dump(mode="json")}).encode()


def _read(blob: bytes, tag: str) -> object:
    record: Any = json.loads(blob)
    if not isinstance(record, dict) or tag not in record:
        raise ValueError(f"not a record of {tag}: {str(cast('object', record))[:200]}")
    return cast("dict[str, object]", record)[tag]


class _Kept(BaseModel):
    """An answer as our serializer writes it."""

    answer: Answer = Field(alias="prefect-dispatch-answer")


class _Named(BaseModel):
    type: Literal["prefect-dispatch-answer"]


class _Metadata(BaseModel):
    serializer: _Named
    expiration: AwareDatetime | None = None


class _Record(BaseModel):
    """A record of Prefect's that holds an answer."""

    metadata: _Metadata
    result: Json[_Kept]


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
            shelf.remove(key_of(work))
        return key_of(work)


def key_of(work: str) -> str:
    """Return the storage key of a fingerprint."""
    return PREFIX + work


def stored_answer(shelf: Shelf, work: Work) -> Answer | None:
    """Return the stored answer to some work, or None where there is none that can be used."""
    try:
        return usable(answer_in(shelf.read(key_of(work.fingerprint))), work)
    except TerminalError:  # a check of the user's breaks; the run will say so
        return None


def answer_in(content: bytes | None) -> Answer | None:
    """Return the answer in a record of Prefect's, or None: cut off, foreign, expired.

    The record is read as JSON and nothing else; Prefect would run the serializer that it names.
    """
    try:
        record = _Record.model_validate_json(content or b"")
        if record.metadata.expiration and record.metadata.expiration < datetime.now(timezone.utc):
            return None
    except (ValueError, RecursionError):
        return None
    return record.result.answer


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
