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
from prefect_dispatch.models import Answer, Attempt, Usage
from prefect_dispatch.tasks.draft_records import Look
from prefect_dispatch.tasks.drafts import begun
from prefect_dispatch.tasks.losses import MOST_UNBEGUN, SILENT, UNBEGUN, Losses
from prefect_dispatch.tasks.once import Place
from prefect_dispatch.tasks.shelf import Shelf
from prefect_dispatch.tasks.store import key_of
from prefect_dispatch.tasks.work import Work, work_of
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.tasks.shards import Came

BRIEF = Brief(name="say", instructions="Say it.")
WORK = work_of([BRIEF], [Item(key=f"i{at}", value=at) for at in range(6)], ScriptedExecutor(lambda ask: ask.item.key))
ANSWERED, SENT, *REST = WORK


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store."""
    return Shelf(LocalFileSystem(basepath=str(tmp_path)))


def answer(shelf: Shelf, work: Work) -> None:
    """Store an answer that was asked for just now."""
    said = Answer(
        value=work.item.key, fingerprint=work.fingerprint, attempts=(Attempt(started=datetime.now(timezone.utc)),)
    )
    place = Place(
        ResultStore(result_storage=LocalFileSystem(basepath=str(shelf.folder))), key_of(work.fingerprint), None
    )
    shelf.write(place.key, place.record(said))


def send(shelf: Shelf, work: Work) -> None:
    """Leave the draft of a call that nobody heard of again."""

    async def sent() -> None:
        key = key_of(work.fingerprint)
        draft = await begun(shelf, key, work.fingerprint, Look.now(shelf, key), alone=True, call_s=9)
        assert draft is not None
        await draft.send()

    asyncio.run(sent())


def keys(come: Sequence[Came]) -> list[str]:
    """Return which items came, in their order."""
    return [each.work.item.key for each in come]


def test_what_was_not_under_way_is_none_the_worse(shelf: Shelf) -> None:
    """It is asked again as if nothing had happened, after what was under way, however often a process dies."""
    losses = Losses(shelf, most=1)
    answer(shelf, ANSWERED)
    send(shelf, SENT)
    first = losses.of(WORK, ConnectionError("gone"))
    assert keys(first) == ["i0", "i2", "i3", "i4", "i5", "i1"]  # each is put before all that waits
    assert [each.said is None for each in first] == [False, True, True, True, True, True]
    losses.over(first)
    assert losses.size(100) == 3
    assert losses.last
    second = losses.of([SENT], ConnectionError("gone"))
    assert isinstance(second[0].said, ExecutorError)
    assert second[0].said.kind == "crashed"
    (told,) = second[0].said.attempts
    assert told.usage == Usage(requests=1, unsettled=1)
    key = key_of(SENT.fingerprint)
    draft = Look.now(shelf, key).draft
    assert draft
    assert (draft.pending, draft.lost) == (False, 0)  # the next run has nothing to tell of it
    losses.over(second)
    assert (losses.size(100), losses.last) == (100, False)
    send(shelf, REST[0])
    assert [each.said is None for each in losses.of(REST, "gone")] == [True] * 4


def test_where_nothing_was_under_way_all_of_it_is_suspected(shelf: Shelf) -> None:
    """Something keeps its process from beginning at all, and is not tried forever."""
    losses = Losses(shelf, most=1)
    assert [each.said for each in losses.of(REST, "gone")] == [None] * 4
    assert [getattr(each.said, "kind", "") for each in losses.of(REST, "gone")] == ["crashed"] * 4


def test_what_no_process_began_is_not_suspected(shelf: Shelf) -> None:
    """A worker that is lost takes shards with it which it had not begun: they keep their size, but not for ever."""
    losses = Losses(shelf, most=0)
    answer(shelf, ANSWERED)
    lost = ExecutorError("Its worker is lost.", kind=UNBEGUN)
    for _ in range(MOST_UNBEGUN - 1):
        come = losses.of([ANSWERED, *REST], lost)
        assert [each.said is None for each in come] == [False] + [True] * 4
        assert (losses.size(100), losses.last) == (100, False)
    ended = losses.of(REST, lost)
    assert [getattr(each.said, "kind", "") for each in ended] == [UNBEGUN] * 4
    losses.over(ended)
    assert losses.of(REST, lost)[0].said is None


def test_of_a_run_that_fell_silent_only_what_was_under_way_is_suspected(shelf: Shelf) -> None:
    """Shards are small until that is under way again, and nothing waits for it where each has a process of its own."""
    losses = Losses(shelf, most=1, isolated=True)
    silent = ExecutorError("Nothing was heard of it.", kind=SILENT)
    assert [each.said for each in losses.of(REST, silent)] == [None] * 4
    assert (losses.size(100), losses.last) == (100, False)
    send(shelf, SENT)
    losses.over(losses.of([SENT, *REST], silent))
    assert (losses.size(100), losses.last) == (3, False)
    losses.begun([SENT.fingerprint])
    assert losses.size(100) == 100
    assert getattr(losses.of([SENT], silent)[0].said, "kind", "") == "crashed"
