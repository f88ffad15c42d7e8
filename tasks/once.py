"""Pay once: an answer is looked for, asked for by nobody else meanwhile, and stored the moment it is there."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, cast

from prefect.filesystems import LocalFileSystem
from prefect.logging import get_run_logger

from prefect_dispatch.errors import TransientError
from prefect_dispatch.prefect_compat import result_record
from prefect_dispatch.tasks.draft_records import Look
from prefect_dispatch.tasks.drafts import TakenError, begun, ready
from prefect_dispatch.tasks.holds import held
from prefect_dispatch.tasks.loop import in_thread
from prefect_dispatch.tasks.shelf import Shelf
from prefect_dispatch.tasks.store import AnswerSerializer, answer_in, usable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta
    from pathlib import Path

    from prefect.filesystems import WritableFileSystem
    from prefect.results import ResultStore
    from prefect.transactions import BaseTransaction

    from prefect_dispatch.draft import Draft
    from prefect_dispatch.models import Answer
    from prefect_dispatch.tasks.drafts import KeptDraft
    from prefect_dispatch.tasks.work import Work

POLL_S = 1.0
"""How often to look whether a run on another machine has the answer."""


@dataclass(frozen=True)
class Place:
    """Where the answer of a task run is stored."""

    store: ResultStore
    key: str
    lasts: timedelta | None
    """How long it may be reused."""

    @classmethod
    def of(cls, transaction: BaseTransaction, lasts: timedelta | None) -> Place:
        """Return the place that Prefect has for a task run, which looks there before the next."""
        return cls(cast("ResultStore", transaction.store), cast("str", transaction.key), lasts)

    @cached_property
    def shelf(self) -> Shelf:
        """The storage."""
        return Shelf(cast("WritableFileSystem", self.store.result_storage))

    def record(self, answer: Answer) -> bytes:
        """Return an answer as Prefect would store it, whichever serializer the task run has."""
        storage, key = self.store.result_storage, self.key
        if isinstance(storage, LocalFileSystem) and self.store.result_storage_block_id is None:
            key = str(cast("Path", self.shelf.folder) / key)
        return result_record(
            answer,
            AnswerSerializer(),
            storage_key=key,
            storage_block=self.store.result_storage_block_id,
            expiration=datetime.now(timezone.utc) + self.lasts if self.lasts else None,
        )


class UnwantedError(Exception):
    """Nobody is to be asked any more; nothing was sent."""


async def once(
    place: Place, work: Work, ask: Callable[[Draft], Awaitable[Answer]], *, call_s: float, again: bool
) -> tuple[Answer, bool]:
    """Return the answer to some work, and whether it was stored before.

    Args:
        place: Where it is stored.
        work: What is asked.
        ask: Asks.
        call_s: How long a call may take.
        again: Ask even where an answer is stored.

    Raises:
        ExecutorError: If there is no valid answer, or the storage can't be used: then nobody is asked.
        UnwantedError: If `ask` raises it before it has sent anything.
    """
    shelf = place.shelf
    async with held(place.key, shelf.folder) as alone:
        made: list[KeptDraft] = []

        def looked() -> Look:
            look = Look.now(shelf, place.key)
            if alone and (again or look.answer is None):
                made.append(ready(shelf, place.key, work.fingerprint, look, call_s=call_s))
            return look

        try:
            while True:
                look = await in_thread(looked)
                if not again and (found := usable(answer_in(look.answer), work)):
                    return found, True
                draft = made[-1] if made else None
                draft = draft or await begun(shelf, place.key, work.fingerprint, look, alone=alone, call_s=call_s)
                with suppress(TakenError):
                    if draft is not None:
                        answer = await _asked(ask, draft)
                        await _store(place, answer, draft)
                        return answer, False
                await asyncio.sleep(POLL_S)
        finally:
            for each in made:  # also where it was cancelled while it looked
                each.drop()


async def _asked(ask: Callable[[Draft], Awaitable[Answer]], draft: KeptDraft) -> Answer:
    try:
        return await ask(draft)
    except UnwantedError:
        await draft.leave()
        raise


async def _store(place: Place, answer: Answer, draft: KeptDraft) -> None:
    """Store an answer; where that can't be, it is still an answer, and its draft may hold it."""

    def store() -> None:
        place.shelf.write(place.key, place.record(answer))
        draft.done()

    try:
        await in_thread(store)
    except TransientError as error:
        get_run_logger().warning("An answer could not be stored, so that it may be paid for again. %s", error)
        await draft.keep()
