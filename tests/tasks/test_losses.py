"""What becomes of work whose process died: only what was under way is suspected of having killed it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore

from prefect_dispatch import Brief, Item
from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.models.outcome import Answer, Attempt, Usage
from prefect_dispatch.tasks.get_or_compute import ResultLocation, StoreSnapshot, open_checkpoint
from prefect_dispatch.tasks.result_store import BlobStore, storage_key
from prefect_dispatch.tasks.shards.remote import MAX_UNBEGUN, SILENT, UNBEGUN, CrashedWork
from prefect_dispatch.tasks.work_item import WorkItem, build_work
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.tasks.work_item import WorkResponse

BRIEF = Brief(name="say", instructions="Say it.")
WORK = build_work(
    [BRIEF], [Item(key=f"i{at}", value=at) for at in range(6)], ScriptedExecutor(lambda ask: ask.item.key)
)
ANSWERED, SENT, *REST = WORK


@pytest.fixture
def shelf(tmp_path: Path) -> BlobStore:
    """A store."""
    return BlobStore(LocalFileSystem(basepath=str(tmp_path)))


def answer(shelf: BlobStore, work: WorkItem) -> None:
    """Store an answer that was asked for just now."""
    said = Answer(
        value=work.item.key, fingerprint=work.fingerprint, attempts=(Attempt(started=datetime.now(timezone.utc)),)
    )
    place = ResultLocation(
        ResultStore(result_storage=LocalFileSystem(basepath=str(shelf.folder))), storage_key(work.fingerprint), None
    )
    shelf.write(place.key, place.to_record(said))


def send(shelf: BlobStore, work: WorkItem) -> None:
    """Leave the draft of a call that nobody heard of again."""

    async def sent() -> None:
        key = storage_key(work.fingerprint)
        draft = await open_checkpoint(
            shelf, key, work.fingerprint, StoreSnapshot.take(shelf, key), alone=True, call_s=9
        )
        assert draft is not None
        await draft.mark_sent()

    asyncio.run(sent())


def keys(come: Sequence[WorkResponse]) -> list[str]:
    """Return which items came, in their order."""
    return [each.work.item.key for each in come]


def test_what_was_not_under_way_is_none_the_worse(shelf: BlobStore) -> None:
    """It is asked again as if nothing had happened, after what was under way, however often a process dies."""
    losses = CrashedWork(shelf, most=1)
    answer(shelf, ANSWERED)
    send(shelf, SENT)
    first = losses.results_of(WORK, ConnectionError("gone"))
    assert keys(first) == ["i0", "i2", "i3", "i4", "i5", "i1"]  # each is put before all that waits
    assert [each.result is None for each in first] == [False, True, True, True, True, True]
    losses.forget_finished(first)
    assert losses.size(100) == 3
    assert losses.is_last_attempt
    second = losses.results_of([SENT], ConnectionError("gone"))
    assert isinstance(second[0].result, ExecutorError)
    assert second[0].result.kind == "crashed"
    (told,) = second[0].result.attempts
    assert told.usage == Usage(requests=1, unsettled=1)
    key = storage_key(SENT.fingerprint)
    draft = StoreSnapshot.take(shelf, key).checkpoint
    assert draft
    assert (draft.pending, draft.lost) == (False, 0)  # the next run has nothing to tell of it
    losses.forget_finished(second)
    assert (losses.size(100), losses.is_last_attempt) == (100, False)
    send(shelf, REST[0])
    assert [each.result is None for each in losses.results_of(REST, "gone")] == [True] * 4


def test_where_nothing_was_under_way_all_of_it_is_suspected(shelf: BlobStore) -> None:
    """Something keeps its process from beginning at all, and is not tried forever."""
    losses = CrashedWork(shelf, most=1)
    assert [each.result for each in losses.results_of(REST, "gone")] == [None] * 4
    assert [getattr(each.result, "kind", "") for each in losses.results_of(REST, "gone")] == ["crashed"] * 4


def test_what_no_process_began_is_not_suspected(shelf: BlobStore) -> None:
    """A worker that is lost takes shards with it which it had not begun: they keep their size, but not for ever."""
    losses = CrashedWork(shelf, most=0)
    answer(shelf, ANSWERED)
    lost = ExecutorError("Its worker is lost.", kind=UNBEGUN)
    for _ in range(MAX_UNBEGUN - 1):
        come = losses.results_of([ANSWERED, *REST], lost)
        assert [each.result is None for each in come] == [False] + [True] * 4
        assert (losses.size(100), losses.is_last_attempt) == (100, False)
    ended = losses.results_of(REST, lost)
    assert [getattr(each.result, "kind", "") for each in ended] == [UNBEGUN] * 4
    losses.forget_finished(ended)
    assert losses.results_of(REST, lost)[0].result is None


def test_of_a_run_that_fell_silent_only_what_was_under_way_is_suspected(shelf: BlobStore) -> None:
    """Shards are small until that is under way again, and nothing waits for it where each has a process of its own."""
    losses = CrashedWork(shelf, most=1, isolated=True)
    silent = ExecutorError("Nothing was heard of it.", kind=SILENT)
    assert [each.result for each in losses.results_of(REST, silent)] == [None] * 4
    assert (losses.size(100), losses.is_last_attempt) == (100, False)
    send(shelf, SENT)
    losses.forget_finished(losses.results_of([SENT, *REST], silent))
    assert (losses.size(100), losses.is_last_attempt) == (3, False)
    losses.mark_in_flight([SENT.fingerprint])
    assert losses.size(100) == 100
    assert getattr(losses.results_of([SENT], silent)[0].result, "kind", "") == "crashed"
