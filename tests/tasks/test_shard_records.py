"""A shard as it travels: what is written comes back the same, and what somebody else has written is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem
from pydantic import BaseModel, ValidationError

from prefect_dispatch import LLM, Brief, Item, Limits, PythonCallable, Shell, Usage
from prefect_dispatch.calls.budget import UsageAmount
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
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.models.checks import Function, MaxWords
from prefect_dispatch.models.outcome import Attempt, Rejection
from prefect_dispatch.tasks.get_or_compute import TakenError
from prefect_dispatch.tasks.result_store import BlobStore
from prefect_dispatch.tasks.shards.protocol import (
    FOLDER,
    RESULT_SUFFIX,
    RETENTION_S,
    ErrorRecord,
    ItemResult,
    ShardDocument,
    ShardHeader,
    ShardResult,
    ShardStore,
    decode_record,
    encode_record,
    to_document,
    to_job_file_form,
)
from prefect_dispatch.tasks.stop_conditions import failure_of
from prefect_dispatch.tasks.work_item import WorkItem

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.executors.registry import BuiltInExecutor

SENT = ShardHeader(name="a" * 32, note="b" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
items = st.builds(Item, key=texts.filter(bool), value=values, priority=st.integers(-5, 5))
briefs = st.builds(
    Brief,
    name=st.from_regex(r"\A[a-z0-9]{1,10}\Z"),
    instructions=texts.filter(str.strip),
    scope=texts,
    output=st.sampled_from(["text", {"type": "object", "properties": {"$ref": {"type": "string"}}}, "shapes:Shape"]),
    checks=st.sampled_from([(), (MaxWords(words=3),), (Function(function="shapes:fine"),)]),
    sample=st.integers(0, 3),
    part=st.booleans(),
)
executors = st.one_of(
    st.builds(LLM, model=st.just("openai/test"), params=st.dictionaries(st.just("seed"), st.integers(), max_size=1)),
    st.builds(Shell, pass_env=st.sampled_from([(), ("HTTPS_PROXY",)])),
    st.builds(CodingAgent, model=st.just("claude-sonnet-4-5"), max_usd=st.none() | st.floats(0.1, 9)),
    st.builds(PythonCallable, function=st.just("own:answer"), version=st.just("1")),
)
usages = st.builds(Usage, requests=st.integers(0, 9), cost_usd=st.none() | st.floats(0, 9), unsettled=st.integers(0, 2))
attempts = st.builds(
    Attempt,
    usage=usages,
    rejections=st.lists(st.builds(Rejection, text=texts, problems=st.just(("No.",))), max_size=1).map(tuple),
    error=st.none() | texts,
)


def shard(work: list[WorkItem], executor: BuiltInExecutor, again: frozenset[str] = frozenset()) -> ShardDocument:
    """Return some work as it travels."""
    return to_document(work, executor, Limits(), sent=SENT, folder="/srv/job", beat_s=3, again=again)


@pytest.mark.slow
@given(st.lists(briefs, min_size=1, max_size=3), st.lists(items, min_size=1, max_size=3), executors, st.data())
def test_a_shard_comes_back_as_it_was(
    asked: list[Brief], about: list[Item], executor: BuiltInExecutor, data: st.DataObject
) -> None:
    """Every brief, item and executor that a job file can say is the same afterwards, and each stands there once."""
    work = [
        WorkItem(brief, item, f"{at:064x}")
        for at, (brief, item) in enumerate((one, two) for one in asked for two in about)
    ]
    again = frozenset(each.fingerprint for each in work if data.draw(st.booleans()))
    before = shard(work, executor, again)
    after = decode_record(encode_record(before), ShardDocument)
    assert after is not None
    assert after == before
    assert (len(after.briefs), len(after.items)) == (len(asked), len(about))
    assert after.executor == executor
    assert [(after.briefs[each.brief], after.items[each.item]) for each in after.work] == [
        (each.brief, each.item) for each in work
    ]
    assert {each.fingerprint for each in after.work if each.again} == again


class Shape(BaseModel):
    """An output of the user's own."""

    sides: int


def test_code_of_the_users_own_travels_by_its_name() -> None:
    """A model that a brief was bound to is its name again; one that has none can't go."""
    brief = Brief(name="a", instructions="Say it.", output=Shape)
    assert to_job_file_form(brief).output == f"{__name__}:Shape"

    class Inside(BaseModel):
        sides: int

    with pytest.raises(ValidationError, match="must be 'text', a JSON Schema"):
        to_job_file_form(Brief(name="a", instructions="Say it.", output=Inside))


def hostile() -> list[Any]:
    """Return what somebody else might write where a shard is to stand."""
    brief, item = Brief(name="a", instructions="Say it."), Item(key="k", value=1)
    good: dict[str, Any] = json.loads(encode_record(shard([WorkItem(brief, item, "0" * 64)], LLM(model="openai/test"))))
    work = good["work"][0]
    return [
        {**good, "format": 2},
        {**good, "more": 1},
        {**good, "executor": {"kind": "subprocess", "model": "a"}},
        {**good, "executor": {"__class__": "subprocess.getoutput", "data": {"cmd": "true"}}},
        {**good, "work": []},
        {**good, "work": [work, work]},
        {**good, "work": [{**work, "brief": 1}]},
        {**good, "work": [{**work, "item": -1}]},
        {**good, "work": [{**work, "fingerprint": "../../x"}]},
        {**good, "sent": {"name": "../../x", "note": "b" * 32}},
        {**good, "limits": {"concurrency": 10**9}},
        {**good, "beat_s": 0},
        {**good, "briefs": [{"name": "a", "instructions": "b", "output": "os.system"}]},
        [good],
        None,
    ]


@pytest.mark.parametrize("record", [*hostile(), b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_shard_is_refused(record: object) -> None:
    """Cut off, foreign, of another version, pointing elsewhere, nested without end: it is nothing."""
    content = record if isinstance(record, bytes) else json.dumps(record).encode()
    assert decode_record(content, ShardDocument) is None


ERRORS: list[ExecutorError] = [
    ExecutorError("It failed."),
    TransientError("cut off", kind="timeout"),
    TakenError("Somebody else.", kind="taken"),  # of a class that only one module knows
    BusyError("later", retry_after_s=3),
    InvalidOutput("no", problems=["$: not a number"]),
    RejectedError("too long", kind="context_length"),
    UnaskedError("not sent"),
    BudgetError("The budget is spent."),
    PatienceError("busy"),
    TerminalError("wrong key", kind="credentials"),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@given(tried=st.lists(attempts, max_size=2).map(tuple), usage=st.none() | usages)
def test_an_error_means_the_same_afterwards(
    error: ExecutorError, tried: tuple[Attempt, ...], usage: Usage | None
) -> None:
    """Its class, as far as a run goes by it, its kind, message and attempts; whatever it was before."""
    error.attempts, error.usage = tried, usage
    item = ItemResult(fingerprint="0" * 64, error=ErrorRecord.of(error))
    came = ShardResult(shard="c" * 64, done=(item,), spent=UsageAmount(1, 2, 3, 4))
    after = decode_record(encode_record(came), ShardResult)
    assert after is not None
    assert (after.spent, after.begun_before) == (UsageAmount(1, 2, 3, 4), False)
    assert after.done[0].error is not None
    back = after.done[0].error.error
    assert isinstance(error, type(back))
    for kind in (TransientError, InvalidOutput, RejectedError, BudgetError, UnaskedError, TerminalError):
        assert isinstance(back, kind) == isinstance(error, kind)
    assert (failure_of(back), back.attempts, back.usage) == (failure_of(error), error.attempts, error.usage)
    assert getattr(back, "problems", ()) == getattr(error, "problems", ())


def test_where_more_stands_is_told_apart() -> None:
    """The end of a message that names a log is another in each run."""
    error = ExecutorError("It failed.").add_trace("See /tmp/1.log.")
    back = ErrorRecord.of(error).error
    assert (str(back), failure_of(back)) == (str(error), failure_of(error))
    assert failure_of(back).message == "It failed."


def test_any_error_can_travel() -> None:
    """One of the user's own code comes back as what a report would say of it."""
    error = ValueError("Their check broke.")
    assert failure_of(ErrorRecord.of(error).error) == failure_of(error)


@pytest.mark.parametrize(
    "changed",
    [
        {"shard": "nobody's"},
        {"done": [{"fingerprint": "0" * 64, "error": {"name": "SystemExit", "kind": "a", "message": ""}}]},
        {"done": [{"fingerprint": "0" * 64, "error": {"name": "ExecutorError", "kind": "", "message": ""}}]},
        {"spent": [0, -1, 0, 0]},
        {"spent": 0},
        {"spent": [0, 0, 0, float("inf")]},
        {"answers": []},
    ],
)
def test_what_is_no_result_is_refused(changed: dict[str, Any]) -> None:
    """No other class is made of a name, and nothing gives back what was spent."""
    good: dict[str, Any] = json.loads(encode_record(ShardResult(shard="c" * 64)))
    assert decode_record(json.dumps({**good, **changed}).encode(), ShardResult) is None


@pytest.fixture
def places(tmp_path: Path) -> ShardStore:
    """A storage on this machine."""
    return ShardStore(BlobStore(LocalFileSystem(basepath=str(tmp_path))))


RUN: Any = "01234567-89ab-cdef-0123-456789abcdef"


def one() -> ShardDocument:
    """Return a shard."""
    return shard(
        [WorkItem(Brief(name="a", instructions="b"), Item(key="k", value=1), "0" * 64)], LLM(model="openai/test")
    )


def test_a_shard_stands_under_a_key_of_its_own(places: ShardStore, tmp_path: Path) -> None:
    """It is found there, with what came of it, until both are taken away."""
    key = places.write_shard(RUN, one())
    assert key.startswith(f"{FOLDER}/{RUN}/")
    assert places.read_shard(key) == one()
    assert places.read_result(key) is None
    result = ShardResult(done=(ItemResult(fingerprint="0" * 64),))
    places.write_result(key, result)
    assert places.read_result(key) == result.model_copy(update={"shard": key.rpartition("/")[2]})
    places.remove(key)
    assert list(tmp_path.rglob("*")) == [tmp_path / FOLDER]


def test_one_shard_of_two_is_taken_away(places: ShardStore) -> None:
    """The other is still there."""
    keys = [places.write_shard(RUN, one().model_copy(update={"folder": folder})) for folder in ("/a", "/b")]
    places.remove(keys[0])
    assert places.read_shard(keys[1]).folder == "/b"


def test_what_somebody_has_changed_is_not_done(places: ShardStore, tmp_path: Path) -> None:
    """The key says what is to stand there: a writer into the storage can have no worker do anything else."""
    key = places.write_shard(RUN, one())
    evil = one().model_copy(update={"executor": Shell()})
    (tmp_path / key).write_bytes(encode_record(evil))
    with pytest.raises(JobError, match="the result storage of this deployment's runs"):
        places.read_shard(key)
    (tmp_path / f"{key}{RESULT_SUFFIX}").write_bytes(encode_record(ShardResult(shard="c" * 64)))
    assert places.read_result(key) is None


def test_a_shard_of_another_version(places: ShardStore, tmp_path: Path) -> None:
    """It is said what is wrong."""

    class Later(BaseModel):
        format: int = 2

    key = places.write_shard(RUN, Later())  # type: ignore[arg-type]  # what a later version might write
    with pytest.raises(JobError, match="another version of prefect-dispatch than the worker"):
        places.read_shard(key)


@pytest.mark.parametrize(
    "key", ["", "x", f"{FOLDER}/../../etc/passwd", f"{FOLDER}/{RUN}/{'0' * 64}\n", f"/{FOLDER}/{RUN}/{'0' * 64}"]
)
def test_what_is_no_key_is_not_read(places: ShardStore, key: str) -> None:
    """Nothing else of the storage is read."""
    with pytest.raises(JobError, match="is no key of a shard"):
        places.read_shard(key)


def test_what_died_runs_have_left_is_tidied_up(places: ShardStore, tmp_path: Path) -> None:
    """Only what is old, and only here: elsewhere nothing can be listed."""
    import os  # noqa: PLC0415 -- for this alone

    key = places.write_shard(RUN, one())
    places.remove_expired()
    assert places.read_shard(key) == one()
    old = (tmp_path / key).stat().st_mtime - RETENTION_S - 60
    os.utime((tmp_path / key).parent, (old, old))
    places.remove_expired()
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_storage_elsewhere_is_named_without_its_address() -> None:
    """An address may hold a secret."""
    from prefect.filesystems import RemoteFileSystem  # noqa: PLC0415 -- for this alone

    storage = RemoteFileSystem(basepath="memory://user:password@bucket")
    there = ShardStore(BlobStore(storage))
    there.remove_expired()
    assert there.description == "a RemoteFileSystem"
    key = there.write_shard(RUN, one())
    assert there.read_shard(key) == one()
    there.remove(key)
    with pytest.raises(JobError, match="There is no such shard in a RemoteFileSystem"):
        there.read_shard(key)
