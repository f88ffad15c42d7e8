"""What was paid for outlives whoever paid, is counted once, and is believed only where it can be."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore

from prefect_dispatch import Answer, Ask, Brief, Item, Limits
from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import TerminalError, TransientError
from prefect_dispatch.executors.base import Reply
from prefect_dispatch.models.checks import Function
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.tasks.get_or_compute import (
    SUFFIX,
    CancelledBeforeSendError,
    ResultLocation,
    StoredCheckpoint,
    StoreSnapshot,
    TakenError,
    get_or_compute,
    open_checkpoint,
)
from prefect_dispatch.tasks.result_store import BlobStore
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor
from tests.tasks.storages import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.calls.attempt import Checkpoint
    from tests.tasks.storages import Watch

BRIEF = Brief(name="say", instructions="Say it.", output={"type": "object"})
ITEM = Item(key="a", value="a")
KEY = "prefect-dispatch-0"
NEVER = 10**9


class DeathError(BaseException):
    """The process is killed."""


class Folder(BlobStore):
    """A storage on this machine, where a lock keeps others out, that tells of each moment."""

    def __init__(self, folder: str, watch: Watch) -> None:
        """Keep who is told."""
        super().__init__(LocalFileSystem(basepath=folder))
        self._watch = watch

    def load(self, key: str) -> bytes | None:
        """Read."""
        self._watch("to read")
        return super().load(key)

    def write(self, key: str, content: bytes, *, durable: bool = True) -> None:
        """Write."""
        self._watch("to write")
        super().write(key, content, durable=durable)
        self._watch("written")

    def remove(self, key: str) -> None:
        """Take it away."""
        self._watch("to remove")
        super().remove(key)
        self._watch("removed")


@dataclass
class World:
    """A storage and a provider, which outlive the processes that use them, one after another."""

    invalid: int
    """How many answers are invalid before one is valid."""
    folder: str = ""
    """Where answers are stored; somewhere else, if empty."""
    storage: Elsewhere = field(default_factory=Elsewhere)
    dies: int = NEVER
    """The moment at which the process dies; after that it does nothing more."""
    moment: int = 0
    """The moments of this process: reads, and writes and calls, before and after they have an effect."""
    calls: int = 0
    """The calls that reached the provider."""

    def __post_init__(self) -> None:
        """Watch the storage."""
        self.storage.watched(self._pass)

    def live(self, dies: int = NEVER) -> tuple[Answer, bool] | None:
        """Do the work in a process of its own; return the answer and whether it was stored, or None if it died."""
        self.moment, self.dies = 0, dies
        executor = ScriptedExecutor(self._answer)
        (work,) = build_work([BRIEF], [ITEM], executor)

        async def ask(draft: Checkpoint) -> Answer:
            answer = await run_attempt(executor, BRIEF, ITEM, limits=Limits(reasks=3), checkpoint=draft)
            return answer.model_copy(update={"fingerprint": work.fingerprint})

        storage = LocalFileSystem(basepath=self.folder) if self.folder else self.storage
        place = ResultLocation(ResultStore(result_storage=storage), KEY, None)
        if self.folder:
            vars(place)["blobs"] = Folder(self.folder, self._pass)
        try:
            return asyncio.run(get_or_compute(place, work, ask, call_s=9, again=False))
        except (DeathError, asyncio.CancelledError):
            return None

    def _pass(self, what: str) -> None:
        self.moment += 1
        if self.moment >= self.dies:
            raise DeathError(what)

    async def _answer(self, ask: Ask) -> Reply:
        try:
            self._pass("to send")
            self.calls += 1
            self._pass("sent")
        except DeathError:  # the one exception that isn't taken for the executor's failure
            raise asyncio.CancelledError from None
        value: JsonValue = {"n": self.calls} if len(ask.rejections) >= self.invalid else "no"
        return Reply(value=value, usage=Usage(requests=1, prompt_tokens=10))


def outlive(world: World, deaths: list[int]) -> None:
    """Do the work in processes that die, and in a last one that doesn't; check what was paid and what is told."""
    ended = [world.live(dies) for dies in deaths]
    died = ended.count(None)
    before = world.calls
    said = world.live()
    assert said is not None
    answer, stored = said
    if stored:
        assert world.calls == before
    needed = world.invalid + 1
    [spent] = [each.usage for each in answer.attempts]
    assert needed <= world.calls <= needed + died
    assert world.calls <= spent.requests <= needed + died
    assert spent.unsettled == spent.requests - needed
    assert spent.prompt_tokens == 10 * needed
    assert world.live() == (answer, True)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(1, 40), max_size=4))
@example(0, [])
@example(3, [11, 11, 11, 11])
def test_whenever_it_dies_nothing_that_was_heard_is_asked_again(invalid: int, deaths: list[int]) -> None:
    """Each death loses one call at most; what was lost is counted, and everything else is counted once."""
    outlive(World(invalid), deaths)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(1, 30), max_size=4))
@example(0, [4, 5, 6])
@example(3, [11, 11, 11, 11])
@pytest.mark.slow
def test_whenever_it_dies_on_this_machine_nothing_heard_is_asked_again(invalid: int, deaths: list[int]) -> None:
    """What is never sent counts as nothing lost."""
    with TemporaryDirectory() as folder:
        outlive(World(invalid, folder), deaths)


def test_what_is_never_sent_is_no_loss(tmp_path: Path) -> None:
    """The process dies right before its call, and right after it is noted: the second time nobody knows."""
    world, lost = World(0, str(tmp_path)), list[int]()
    for dies in (3, 4):  # after two reads: as it is to note the call, and as it has
        assert world.live(dies) is None
        left_behind = StoreSnapshot.take(BlobStore(LocalFileSystem(basepath=str(tmp_path))), KEY).checkpoint
        lost.append(left_behind.lost + left_behind.pending if left_behind else 0)
    assert (lost, world.calls) == ([0, 1], 0)
    said = world.live()
    assert said is not None
    assert [attempt.usage.unsettled for attempt in said[0].attempts] == [1]


def draft_of(
    shelf: BlobStore, *, alone: bool = False, work: str = "w", answered: bytes | None = None
) -> StoredCheckpoint | None:
    """Begin a draft."""
    return asyncio.run(
        open_checkpoint(
            shelf, KEY, work, StoreSnapshot.take(shelf, KEY)._replace(answer=answered), alone=alone, call_s=1
        )
    )


def heard(draft: StoredCheckpoint | None) -> tuple[list[Any], int]:
    """Return what a draft knows: the values of its replies, and how many calls were lost."""
    assert draft is not None
    return [reply.value for reply in draft.recovered_replies(0)], draft.unanswered_calls


@pytest.fixture
def shelf() -> BlobStore:
    """A storage elsewhere."""
    return BlobStore(Elsewhere())


async def left(shelf: BlobStore, *replies: Reply, alone: bool = False) -> StoredCheckpoint:
    """Leave a draft with some replies, and with a call under way."""
    draft = await open_checkpoint(
        shelf, KEY, "w", StoreSnapshot.take(shelf, KEY)._replace(answer=b"before"), alone=alone, call_s=1
    )
    assert draft is not None
    for reply in replies:
        await draft.mark_sent()
        await draft.record_reply(0, reply)
    await draft.mark_sent()
    return draft


def changed(shelf: BlobStore, **fields: object) -> None:
    """Change some fields of the draft that is there."""
    content = shelf.load(KEY + SUFFIX)
    assert content is not None
    shelf.write(KEY + SUFFIX, json.dumps({**json.loads(content), **fields}).encode())


@pytest.mark.parametrize("alone", [False, True])
def test_the_next_one_goes_on_where_one_died(shelf: BlobStore, alone: bool) -> None:  # noqa: FBT001
    """With its replies, by tier, and with the call that it lost; another work, or a new answer, makes them void."""
    asyncio.run(left(shelf, Reply(value="one"), Reply(value="half \ud800", model="half \ud800"), alone=alone))
    assert heard(draft_of(shelf, alone=True, answered=b"before")) == (["one", None], 1)
    assert heard(draft_of(shelf, alone=True, answered=b"after")) == ([], 0)
    assert heard(draft_of(shelf, alone=True, answered=b"before", work="other")) == ([], 0)


def test_a_reply_that_was_altered_is_not_heard(shelf: BlobStore, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is another one; the calls that were lost are told all the same, and older drafts have none."""
    asyncio.run(left(shelf, Reply(value="one"), alone=True))
    content = shelf.load(KEY + SUFFIX)
    assert content is not None
    shelf.write(KEY + SUFFIX, content.replace(b'"one"', b'"two"'))
    assert heard(draft_of(shelf, alone=True, answered=b"before")) == ([], 1)
    assert "Replies that an earlier run left are damaged; they are asked for again." in caplog.text
    older = {name: part for name, part in json.loads(content).items() if name != "sha256"}
    shelf.write(KEY + SUFFIX, json.dumps(older).encode())
    assert heard(draft_of(shelf, alone=True, answered=b"before")) == (["one"], 1)


def test_an_answer_is_heard_by_its_own_tier_only(shelf: BlobStore) -> None:
    """What a fallback said is the fallback's."""

    async def script() -> StoredCheckpoint:
        draft = await left(shelf)
        await draft.record_reply(1, Reply(value="mine"))
        return draft

    draft = asyncio.run(script())
    assert [len(draft.recovered_replies(tier)) for tier in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\x00" * 50, b"\x80\x04.", b"[" * 100_000, b'{"draft_of": "w"}', b"null", b"9" * 5000],
)
def test_what_is_no_draft_is_not_believed(shelf: BlobStore, content: bytes) -> None:
    """Cut off, foreign, hostile: begun anew."""
    shelf.write(KEY + SUFFIX, content)
    for alone in (True, False):
        assert heard(draft_of(shelf, alone=alone)) == ([], 0)


def test_a_draft_that_was_cut_off_is_not_believed(shelf: BlobStore) -> None:
    """At whatever byte."""
    asyncio.run(left(shelf, Reply(value="one")))
    whole = shelf.load(KEY + SUFFIX)
    assert whole is not None
    for length in range(len(whole)):
        shelf.write(KEY + SUFFIX, whole[:length])
        assert heard(draft_of(shelf, alone=True, answered=b"before")) == ([], 0)


MINE = {"host": "here", "process": 1, "name": "n"}


@pytest.mark.parametrize(
    ("owner", "until", "believed"),
    [
        pytest.param({"host": "elsewhere"}, 50, True, id="elsewhere"),
        pytest.param({"host": "elsewhere"}, -1, False, id="too-long-ago"),
        pytest.param({"host": "elsewhere"}, 10**9, False, id="for-ever"),
        pytest.param({"process": os.getppid(), "name": "x"}, 50, True, id="alive-here"),
        pytest.param({"process": 1, "name": "x"}, 50, True, id="somebody-elses-process"),
        pytest.param({"process": 2**30, "name": "x"}, 50, False, id="dead-here"),
        pytest.param({"name": "x"}, 50, False, id="my-number-before-me"),
        pytest.param({}, 50, False, id="myself"),
    ],
)
def test_an_owner_is_believed_while_it_can_be_at_work(
    shelf: BlobStore,
    owner: dict[str, object],
    until: float,
    believed: bool,  # noqa: FBT001
) -> None:
    """Elsewhere for as long as it said, here for as long as it lives; never where a lock says otherwise."""
    asyncio.run(left(shelf))
    content = shelf.load(KEY + SUFFIX)
    assert content is not None
    changed(shelf, owner={**json.loads(content)["owner"], **owner}, until=time.time() + until)
    assert draft_of(shelf, alone=True, answered=b"before") is not None
    assert (draft_of(shelf, answered=b"before") is None) is believed


def test_of_two_that_begin_at_once_the_later_one_goes_on() -> None:
    """Both have looked, and nobody was there; the first finds the other's name in the place of its own."""
    storage = Elsewhere()
    moments: list[str] = []

    def watch(moment: str) -> None:
        moments.append(moment.split(maxsplit=1)[0])
        if moments == ["to", "to", "to", "written"]:  # it has read and written
            storage.content[KEY + SUFFIX] = storage.content[KEY + SUFFIX].replace(b'"name":"', b'"name":"other')

    assert draft_of(BlobStore(storage.watched(watch))) is None


def test_who_was_overtaken_sends_nothing_and_touches_nothing(shelf: BlobStore) -> None:
    """It waited too long before its call, and another run has begun meanwhile."""

    async def script() -> None:
        draft = await left(shelf)
        changed(shelf, owner={"host": "elsewhere", "process": 1, "name": "n"})
        theirs = shelf.load(KEY + SUFFIX)
        for _ in range(2):
            with pytest.raises(TakenError) as caught:
                await draft.mark_sent()
            assert caught.value.usage == Usage()
            await draft.record_reply(0, None)
            await draft.discard(settled=True)
            await draft.discard(settled=False)
            assert shelf.load(KEY + SUFFIX) == theirs
            shelf.remove(KEY + SUFFIX)
            theirs = shelf.load(KEY + SUFFIX)

    asyncio.run(script())


@pytest.mark.parametrize("alone", [True, False])
def test_a_draft_goes_when_the_answer_is_there(shelf: BlobStore, alone: bool) -> None:  # noqa: FBT001
    """Unless somebody may still look there for who is at work; it is void all the same."""

    async def script() -> None:
        draft = await left(shelf, Reply(value="one"), alone=alone)
        await shelf.store(*draft.removal)

    asyncio.run(script())
    assert (shelf.load(KEY + SUFFIX) == b"{}") is alone
    assert heard(draft_of(shelf, answered=b"the answer")) == ([], 0)


@pytest.mark.parametrize("settled", [True, False])
def test_a_failed_attempt_leaves_no_spending_behind(shelf: BlobStore, settled: bool) -> None:  # noqa: FBT001
    """It was told already; replies that a broken check could not judge stay, free of charge."""

    async def script() -> None:
        draft = await left(shelf, Reply(value="one", usage=Usage(requests=1, prompt_tokens=7)))
        await draft.discard(settled=settled)

    asyncio.run(script())
    draft = draft_of(shelf, answered=b"before")
    assert heard(draft) == ([] if settled else ["one"], 0)
    assert draft is not None
    assert [reply.usage for reply in draft.recovered_replies(0)] == [Usage()] * (not settled)


def test_a_check_that_breaks_costs_nothing_twice(shelf: BlobStore) -> None:
    """The attempt fails with its spending; once the check is mended, the reply is there, and free."""
    broken = [True]

    def script(ask: Ask) -> Reply:
        return Reply(value={"a": 1}, usage=Usage(requests=1, prompt_tokens=7))

    def check(value: object, item: Item) -> str | None:
        if broken:
            raise LookupError("broken")
        return None

    brief = BRIEF.model_copy(update={"checks": (Function(function=check),)})
    executor = ScriptedExecutor(script)
    with pytest.raises(TerminalError) as caught:
        asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits(), checkpoint=draft_of(shelf)))
    broken.clear()
    answer = asyncio.run(run_attempt(executor, brief, ITEM, limits=Limits(), checkpoint=draft_of(shelf)))
    assert executor.calls == 1
    assert [each.usage.prompt_tokens for each in (*caught.value.attempts, *answer.attempts)] == [7, 0]


@pytest.mark.slow
def test_a_storage_that_cannot_be_written_keeps_nobody_from_hearing() -> None:
    """Before a call it is an error, as what comes couldn't be kept; after it the reply is still there."""
    storage, full = Elsewhere(), list[bool]()

    def watch(moment: str) -> None:
        if full and moment.startswith("to write"):
            raise OSError("No space left on device")

    async def script() -> None:
        draft = await left(BlobStore(storage.watched(watch)))
        full.append(True)
        await draft.record_reply(0, Reply(value="one"))
        assert [reply.value for reply in draft.recovered_replies(0)] == ["one"]
        with pytest.raises(TransientError, match="No space left"):
            await draft.mark_sent()
        await draft.discard(settled=True)
        await draft.discard(settled=False)

    asyncio.run(script())


def test_where_nobody_is_asked_nothing_is_left(tmp_path: Path) -> None:
    """As the run was stopped, or cancelled; and a call is noted before it is sent."""
    shelf = BlobStore(LocalFileSystem(basepath=str(tmp_path)))
    executor = ScriptedExecutor(lambda _: {"n": 1})
    (work,) = build_work([BRIEF], [ITEM], executor)
    place = ResultLocation(ResultStore(result_storage=shelf.storage), KEY, None)

    def ending(error: BaseException) -> Callable[[Checkpoint], Awaitable[Answer]]:
        async def ask(_: Checkpoint) -> Answer:
            raise error

        return ask

    async def asked(draft: Checkpoint) -> Answer:
        await draft.mark_sent()
        left_behind = StoreSnapshot.take(shelf, KEY).checkpoint
        assert left_behind is not None
        assert left_behind.pending
        raise TransientError("nobody there")

    for error in (CancelledBeforeSendError(), asyncio.CancelledError(), TransientError("no room in the budget")):
        with pytest.raises(type(error)):
            asyncio.run(get_or_compute(place, work, ending(error), call_s=1, again=False))
        assert shelf.load(KEY + SUFFIX) is None
    with pytest.raises(TransientError, match="nobody there"):
        asyncio.run(get_or_compute(place, work, asked, call_s=1, again=False))


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "elsewhere"])
def test_whoever_is_not_to_ask_any_more_leaves_the_work_as_it_was(*, alone: bool, tmp_path: Path) -> None:
    """What another run has heard before it died is still there, and the next one needn't wait."""
    storage = LocalFileSystem(basepath=str(tmp_path)) if alone else Elsewhere()
    executor = ScriptedExecutor(lambda _: {"n": 1})
    (work,) = build_work([BRIEF], [ITEM], executor)
    place = ResultLocation(ResultStore(result_storage=storage), KEY, None)

    async def script() -> None:
        look = StoreSnapshot.take(place.blobs, KEY)
        died = await open_checkpoint(place.blobs, KEY, work.fingerprint, look, alone=alone, call_s=1)
        assert died is not None
        await died.mark_sent()
        await died.record_reply(0, Reply(value="no"))

        async def ask(draft: Checkpoint) -> Answer:
            assert [reply.value for reply in draft.recovered_replies(0)] == ["no"]
            raise CancelledBeforeSendError

        with pytest.raises(CancelledBeforeSendError):
            await get_or_compute(place, work, ask, call_s=1, again=False)

    asyncio.run(script())
    left_behind = StoreSnapshot.take(place.blobs, KEY).checkpoint
    assert left_behind is not None
    assert [kept.reply.value for kept in left_behind.replies] == ["no"]
    assert not left_behind.owner.holds_lease(0.0)
    if not alone:
        assert left_behind.until == 0
