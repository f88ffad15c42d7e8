"""Stored records: plain JSON that runs nothing, and is not trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.states import Cancelled

from prefect_dispatch import Answer, Brief, Item, Limits, Report, dispatch, plan, run_brief
from prefect_dispatch.errors import TransientError
from prefect_dispatch.reporting.progress import run_issues
from prefect_dispatch.tasks.result_store import (
    AnswerSerializer,
    ReportSerializer,
    is_damaged,
    parse_record,
    storage_key,
    stored_answer,
)
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

BRIEF = Brief(name="say", instructions="Say it.", output={"type": "object"})
HOSTILE: JsonValue = {"__class__": "subprocess.getoutput", "data": {"cmd": "touch pwned"}}


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(Answer(value=HOSTILE, model="m"), id="an-answer"),
        pytest.param(Report(status="complete", message="All.", value=[HOSTILE]), id="a-report"),
        pytest.param(None, id="no-report-as-of-a-cancelled-run"),
    ],
)
def test_what_is_stored_comes_back_as_it_was(stored: Answer | Report | None, tmp_path: Path) -> None:
    """An answer, a report or that there is none survives, and what it says is not acted upon."""
    serializer = AnswerSerializer() if isinstance(stored, Answer) else ReportSerializer()
    assert serializer.loads(serializer.dumps(stored)) == stored
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("store")
def test_a_run_that_is_cancelled_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its result is stored like any other: the log has no traceback of somebody else's."""

    @flow(persist_result=True, result_serializer=ReportSerializer())
    def ended() -> object:
        return Cancelled(message="Cancelled: 2 of 10 answered.")

    assert ended(return_state=True).name == "Cancelled"
    assert "Cancelled: 2 of 10 answered." in caplog.text
    assert "persisting result" not in caplog.text


def test_an_error_is_stored_as_its_message() -> None:
    """Prefect stores what a failed run raised; no class is named to be built again."""
    stored = AnswerSerializer().dumps(TransientError("overloaded"))
    assert stored == b'{"error": "TransientError: overloaded"}'
    with pytest.raises(ValueError, match="TransientError: overloaded"):
        AnswerSerializer().loads(stored)


def test_nothing_else_is_stored_or_read() -> None:
    """Any other object is refused, and so is any other record."""
    with pytest.raises(TypeError, match="not set"):
        AnswerSerializer().dumps({1, 2})
    for blob in (b"[]", b'{"prefect-dispatch-answer": 3}', b'{"other": {}}', b"\x80\x04."):
        with pytest.raises(ValueError):  # noqa: PT011 -- whichever: JSON's, pydantic's or ours
            AnswerSerializer().loads(blob)
    for blob in (b"[]", b'{"other": {}}'):
        with pytest.raises(ValueError, match="not a record of prefect-dispatch-report"):
            ReportSerializer().loads(blob)


def result(record: str, said: str) -> str:
    """Return a stored record with something else as its result."""
    return json.dumps({**json.loads(record), "result": said})


def damages(record: str) -> list[str]:
    """Return a stored record in every way in which it may be damaged."""
    return [
        record[: len(record) // 2],
        "",
        record.replace("-answer", "-other"),
        result(record, json.dumps(HOSTILE)),
        result(record, "[]"),
        record.replace('"prefect-dispatch-answer"', '"json"', 1),
        result(record, '{"error": "x"}'),
        result(record, ReportSerializer().dumps(Report(status="complete", message="")).decode()),
    ]


@pytest.mark.slow
def test_a_damaged_record_is_asked_again(store: Path) -> None:
    """Truncated, foreign or hostile: it counts as not stored, in the plan and in the run, and is replaced."""
    scripted, limits = ScriptedExecutor(lambda ask: {"name": str(ask.item.value)}), Limits(retries=0)
    whole = [str(at) for at in range(len(damages('{"result": ""}')))]
    dispatch([BRIEF], whole, executor=scripted, limits=limits)
    for at, path in enumerate(sorted(store.glob("prefect-dispatch-*"))):
        path.write_text(damages(path.read_text())[at])
    report = dispatch([BRIEF], whole, executor=scripted, limits=limits)
    assert (report.plan["stored"], report.usage.cached, scripted.calls) == (0, 0, 2 * len(whole))
    assert [outcome.value for outcome in report.outcomes] == [{"name": item} for item in whole]
    assert dispatch([BRIEF], whole, executor=scripted, limits=limits).usage.cached == len(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_task_alone_stores_for_the_flow() -> None:
    """`run_brief` outside of a flow answers, stores, and spares the flow the request."""
    scripted = ScriptedExecutor({"a": {"name": "A"}})

    @flow
    def alone() -> Answer:
        return run_brief(BRIEF, Item(key="a", value="a"), scripted)

    answer = alone()
    assert answer.value == {"name": "A"}
    same, other = build_work([BRIEF], [Item(key="b", value="a"), Item(key="c", value="c")], scripted)
    assert stored_answer(result_store_for_run(), same) == answer
    assert stored_answer(result_store_for_run(), other) is None
    assert dispatch([BRIEF], ["a"], executor=scripted).usage.cached == 1
    assert scripted.calls == 1
    assert storage_key("f") == "prefect-dispatch-f"


def test_the_function_alone_needs_no_server() -> None:
    """`run_brief.fn` is the bare function: no run, nothing stored."""
    answer = run_brief.fn(BRIEF, Item(key="a", value="a"), ScriptedExecutor({"a": {"name": "A"}}))
    assert answer.value == {"name": "A"}


def altered(path: Path, old: str, new: str) -> None:
    """Change what a stored record says; it is still valid JSON."""
    record = json.loads(path.read_text())
    assert old in record["result"]
    path.write_text(json.dumps({**record, "result": record["result"].replace(old, new)}))


@pytest.mark.slow
def test_an_answer_that_was_altered_is_asked_again(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is another one: the plan, the log and the report say so; the others are reused."""
    scripted = ScriptedExecutor(lambda ask: {"name": f"the {ask.item.value}"})
    dispatch([BRIEF], ["a", "b"], executor=scripted)
    (path,) = (each for each in store.glob("prefect-dispatch-*") if "the a" in each.read_text())
    altered(path, "the a", "the z")
    note = "1 stored answer was altered or cut off in the store (say/a), and is asked again."
    assert note in plan([BRIEF], ["a", "b"], scripted).notes
    report = dispatch([BRIEF], ["a", "b"], executor=scripted)
    assert [outcome.value for outcome in report.outcomes] == [{"name": "the a"}, {"name": "the b"}]
    assert (scripted.calls, report.usage.cached, report.run["damaged"]) == (3, 1, 1)
    assert "damaged answers in the store, asked again 1" in map(str, run_issues(report))
    assert note in caplog.text
    assert "damaged" not in dispatch([BRIEF], ["a", "b"], executor=scripted).run


@pytest.mark.slow
def test_the_task_alone_asks_again_what_was_altered(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prefect's own look into its result storage believes it no more than ours."""
    scripted = ScriptedExecutor({"a": {"name": "the a"}})

    @flow
    def alone() -> Answer:
        return run_brief(BRIEF, Item(key="a", value="a"), scripted)

    alone()
    (path,) = store.glob("prefect-dispatch-*")
    altered(path, "the a", "the z")
    assert alone().value == {"name": "the a"}
    assert scripted.calls == 2
    assert "The stored answer to say/a is damaged; it is asked again." in caplog.text


def test_a_checksum_is_of_what_an_answer_says() -> None:
    """Another layout of the same JSON is the same answer, a record of an older version has none and is read."""
    serializer, answer = AnswerSerializer(), Answer(value={"name": "é"}, model="m", fingerprint="f")
    record = json.loads(serializer.dumps(answer))
    assert serializer.loads(json.dumps(record, indent=1).encode()) == answer
    assert (
        serializer.loads(json.dumps({"prefect-dispatch-answer": record["prefect-dispatch-answer"]}).encode()) == answer
    )
    record["prefect-dispatch-answer"]["model"] = "other"
    for indent in (None, 1):
        with pytest.raises(ValueError, match="its checksum is another one"):
            serializer.loads(json.dumps(record, indent=indent).encode())


@pytest.mark.parametrize(
    ("content", "damaged"),
    [(None, False), (b"", False), (b"{}", False), (b'{"metadata"', True), (b"\xff", True), (b"[1]", False)],
)
def test_what_is_empty_or_foreign_is_not_damaged(content: bytes | None, damaged: bool) -> None:  # noqa: FBT001 -- a case
    """Only what was altered or cut off is told as such."""
    assert is_damaged(content) == damaged
    assert parse_record(content) is None
