"""A shard as it travels to a run elsewhere: JSON in the form of a job file, and nothing that runs code.

Who reads it makes objects of it by the models of a job, looks the user's own code up as for a job, and finds out by
the fingerprints whether that is the same code.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, model_validator

from prefect_dispatch.executors.callable import PythonCallable
from prefect_dispatch.executors.coding.executor import CodingAgent
from prefect_dispatch.executors.kinds import BuiltInExecutor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Brief, Item
from prefect_dispatch.references import refer
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from typing_extensions import Self

    from prefect_dispatch.tasks.work import Work

M = TypeVar("M", bound=BaseModel)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""The name of something, in hexadecimal."""


class Asked(Strict):
    """One piece of work of a shard."""

    brief: int = Field(ge=0)
    """Its place among the briefs."""
    item: int = Field(ge=0)
    """Its place among the items."""
    fingerprint: Digest
    """What it is known by: who finds another has other code, or other files."""
    again: bool = False
    """Whether it is asked even where an answer is stored."""


class Sent(Strict):
    """What a shard is told that goes to another process."""

    name: Hex
    """Its name; no other has it."""
    note: Hex
    """The name of the note that says whether it is still wanted."""


class WrittenShard(Strict):
    """A shard, as it travels."""

    format: Literal[1] = 1
    """The version of this form."""
    folder: str
    """The job's folder, which paths and code of the user's own are looked up in, unless the deployment says another."""
    briefs: tuple[Brief, ...] = Field(min_length=1)
    """What is asked, the user's own code by its names."""
    items: tuple[Item, ...] = Field(min_length=1)
    """What it is asked about."""
    work: tuple[Asked, ...] = Field(min_length=1)
    """Each brief for each item that is asked."""
    executor: BuiltInExecutor
    """Who is asked."""
    limits: Limits
    """How it is bounded: its share of what the whole run has."""
    sent: Sent
    """Its name, and that of the note that says whether it is still wanted."""
    beat_s: float = Field(gt=0, le=3600)
    """Every how many seconds the run that works on it says that it is alive."""

    @model_validator(mode="after")
    def _points_at_what_is_there(self) -> Self:
        if any(each.brief >= len(self.briefs) or each.item >= len(self.items) for each in self.work):
            msg = "a piece of work names a brief or an item that isn't there"
            raise ValueError(msg)
        if len({each.fingerprint for each in self.work}) < len(self.work):
            msg = "two pieces of work have one fingerprint"
            raise ValueError(msg)
        return self


WRITABLE = (LLM, Shell, CodingAgent, PythonCallable)
"""The executors that a job file can say."""


def written(
    work: Iterable[Work],
    executor: BuiltInExecutor,
    limits: Limits,
    *,
    sent: Sent,
    folder: str,
    beat_s: float,
    again: Collection[str],
) -> WrittenShard:
    """Return some work as it travels.

    Args:
        work: The work.
        executor: Who is asked.
        limits: How it is bounded.
        sent: What the shard is told.
        folder: The job's folder.
        beat_s: Every how many seconds its run is to say that it is alive.
        again: The fingerprints that are asked even where an answer is stored.
    """
    briefs: dict[int, tuple[int, Brief]] = {}
    items: dict[int, tuple[int, Item]] = {}
    asked: list[Asked] = []
    for each in work:  # one brief is the same object in all work that it is asked in, and so is one item
        brief, _ = briefs.setdefault(id(each.brief), (len(briefs), each.brief))
        item, _ = items.setdefault(id(each.item), (len(items), each.item))
        asked.append(Asked(brief=brief, item=item, fingerprint=each.fingerprint, again=each.fingerprint in again))
    return WrittenShard(
        folder=folder,
        briefs=tuple(in_words(brief) for _, brief in briefs.values()),
        items=tuple(item for _, item in items.values()),
        work=tuple(asked),
        executor=in_words(executor),
        limits=limits,
        sent=sent,
        beat_s=beat_s,
    )


def in_words(said: M) -> M:
    """Return a brief or an executor as a job file would say it: code of the user's own by its name.

    Raises:
        ValidationError: If a job file can't say it.

    Example:
        >>> in_words(Brief(name="a", instructions="Say it.", output=Item)).output
        'prefect_dispatch.models:Item'
    """
    data = said.model_dump(mode="json")
    if isinstance(said, Brief) and isinstance(said.output, type):
        data["output"] = refer(said.output)
    return type(said).model_validate(data)


def packed(record: BaseModel) -> bytes:
    """Return the bytes of a record."""
    return json.dumps(record.model_dump(mode="json")).encode()  # pydantic's own writer refuses half characters


def unpacked(content: bytes | None, kind: type[M]) -> M | None:
    """Return the record that bytes hold, or None: cut off, foreign, or of another version."""
    try:
        return kind.model_validate(json.loads(content or b""))
    except (ValueError, RecursionError):
        return None


def digest_of(content: bytes | None) -> str:
    """Return what bytes are known by; nothing at all is known by that of none."""
    return hashlib.sha256(content or b"").hexdigest()
