"""Batches that are under way: on the shelf before anything is submitted, until everything is gathered.

A record names the work of a batch; a note beside the place of each answer names the record. So a run
finds what is under way by the fingerprints of its own work, on any storage that has bytes under keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from prefect_dispatch.strict import Strict
from prefect_dispatch.tasks.store import PREFIX, key_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from prefect_dispatch.tasks.shelf import Shelf


class BatchRecord(Strict):
    """A batch, from the moment before it is submitted."""

    tag: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Our name for it; the provider's batch carries it."""
    name: str
    """Who is asked."""
    work: tuple[str, ...]
    """The fingerprints of what is not gathered yet."""
    begun: float
    """Seconds since the epoch."""
    by: str
    """The flow run that submits it."""
    file: str = ""
    """The provider's name of the requests; empty until they are there."""
    batch: str = ""
    """The provider's name of the batch; empty until it is known."""


class _Note(Strict):
    """Says where a piece of work is under way."""

    tag: str = Field(pattern=r"^[0-9a-f]{32}$")


class BatchRecords:
    """The records on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        """Keep the shelf."""
        self._shelf = shelf

    def under_way(self, work: Iterable[str]) -> list[BatchRecord]:
        """Return the batches that hold some of the work.

        Raises:
            TransientError: If the storage can't be read.
        """
        noted: dict[str, set[str]] = {}
        for each in work:
            if tag := self._tag(each):
                noted.setdefault(tag, set()).add(each)
        records = {tag: self.read(tag) for tag in noted}
        return [record for tag, record in records.items() if record and not noted[tag].isdisjoint(record.work)]

    def read(self, tag: str) -> BatchRecord | None:
        """Return a record, or None if all of it is gathered, or it is damaged."""
        try:
            record = BatchRecord.model_validate_json(self._shelf.read(_key(tag)) or b"")
        except ValidationError:
            return None
        return record if record.tag == tag else None

    def begin(self, record: BatchRecord) -> None:
        """Put a record there, and the notes that lead to it.

        Raises:
            TransientError: If the storage can't be written.
        """
        self.write(record)
        for each in record.work:
            self._shelf.write(_note(each), _Note(tag=record.tag).model_dump_json().encode())

    def write(self, record: BatchRecord) -> None:
        """Replace a record.

        Raises:
            TransientError: If the storage can't be written.
        """
        self._shelf.write(_key(record.tag), record.model_dump_json().encode())

    def end(self, record: BatchRecord, work: Collection[str]) -> None:
        """Strike out what is gathered; the record goes with the last of it.

        Raises:
            TransientError: If the storage can't be written.
        """
        gathered = frozenset(work)
        left = tuple(each for each in record.work if each not in gathered)
        if left:
            self.write(record.model_copy(update={"work": left}))
        else:
            self._shelf.remove(_key(record.tag))
        for each in work:
            if self._tag(each) == record.tag:
                self._shelf.remove(_note(each))

    def _tag(self, work: str) -> str | None:
        try:
            return _Note.model_validate_json(self._shelf.read(_note(work)) or b"").tag
        except ValidationError:
            return None


def _key(tag: str) -> str:
    return f"{PREFIX}batch-{tag}"


def _note(work: str) -> str:
    return f"{key_of(work)}.batch"
