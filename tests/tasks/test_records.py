"""Prefect's server isn't outrun by task runs, and what it lost of them is told."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from prefect_dispatch import Brief, Limits, dispatch
from prefect_dispatch.tasks.shards import server_backlog
from prefect_dispatch.tasks.shards.server_backlog import Recorded, TaskRunCounter
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BRIEF = Brief(name="b", instructions="Say it.")
KEYS = [f"k{at}" for at in range(8)]


def said(*counts: int | None) -> Callable[[object], int | None]:
    """Return a server that says these counts one after another, then the last for ever."""
    left = deque(counts)
    return lambda _: left.popleft() if len(left) > 1 else left[0]


def fan_out(made: int, counts: Iterable[int | None], monkeypatch: pytest.MonkeyPatch, under_way: int = 0) -> Recorded:
    """Return what is told of a fan-out whose server says certain counts."""
    monkeypatch.setattr(flow_run, "get_id", lambda: str(uuid4()))
    told = TaskRunCounter(said(*counts))
    for _ in range(made):
        told.count_started(under_way)
    told.stop()
    return told.report()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers, and no patience."""
    for name, value in {"FEW": 5, "LOOK": 4, "BEHIND": 2, "POLL_S": 0.001, "STALLED_S": 0.05}.items():
        monkeypatch.setattr(server_backlog, name, value)


def test_few_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are few, the server is not asked at the end."""
    assert fan_out(3, [None], monkeypatch) == Recorded(made=3)


def test_all_are_there_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """While records come, the run waits for the rest; what else the server has recorded doesn't count."""
    assert fan_out(6, [4, 4, 5, 5, 8], monkeypatch) == Recorded(made=6, recorded=6)


def test_lost_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no more come, it says how many are lacking, that no answer is, and what helps."""
    told = fan_out(6, [4], monkeypatch)
    assert (told.made, told.recorded) == (6, 4)
    assert "recorded 4 of 6 task runs and no more come" in told.note
    assert "every answer is stored" in told.note
    assert "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE" in told.note


def test_late_ones_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is only slow is not said to have lost anything."""
    monkeypatch.setattr(server_backlog, "PATIENCE_S", 0.0)
    assert "recorded 3 of 7 task runs so far; the rest is still coming" in fan_out(7, [7, 3, 3], monkeypatch).note


def test_a_server_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it doesn't say how many there are, nothing is waited for, and nothing claimed."""
    assert fan_out(9, [None], monkeypatch) == Recorded(made=9)


@pytest.mark.usefixtures("store")
def test_no_more_are_begun_than_the_server_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fourth task run waits until the server lacks at most two of those that have ended."""
    asked: list[int] = []
    monkeypatch.setattr(flow_run, "get_id", lambda: str(uuid4()))

    def count(_: object) -> int:
        asked.append(len(asked))
        return len(asked)

    made = TaskRunCounter(count)
    for _ in range(8):
        made.count_started(1)
    assert len(asked) == 5  # 1 for the fourth: 4 - 1 - 2; then 2, 3, 4 and 5 for the eighth


@pytest.mark.usefixtures("store")
def test_a_server_that_records_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no record comes for a while, three times in a row, the rest is begun without asking again."""
    asked: list[int] = []
    monkeypatch.setattr(flow_run, "get_id", lambda: str(uuid4()))

    def count(_: object) -> int:
        asked.append(0)
        return 0

    made = TaskRunCounter(count)
    for _ in range(12):
        made.count_started(0)
    before = len(asked)
    for _ in range(40):
        made.count_started(0)
    assert len(asked) == before > 1


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_who_cancels_is_heard_while_the_server_catches_up() -> None:
    """A run that waits for the server's records can be cancelled."""

    @flow
    def waits() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(str(flow_run.get_id()), Cancelling(), force=True)
        made = TaskRunCounter(lambda _: 0)
        for _ in range(3):
            made.count_started(0)
        with pytest.raises(CancelledRun, match="The flow run was cancelled"):
            made.count_started(0)

    waits(return_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_says_what_the_server_has_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report has the task runs that were made, and recorded; a task run each, or shared."""
    monkeypatch.setattr(server_backlog, "STALLED_S", 60.0)
    monkeypatch.setattr(server_backlog, "BEHIND", 100)
    apart = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(lambda ask: ask.item.key), limits=Limits(shard=1))
    assert apart.run["task_runs"] == {"made": 8, "recorded": 8}
    other = ScriptedExecutor(lambda ask: ask.item.key, fingerprint="other")
    shared = dispatch([BRIEF], KEYS, executor=other, limits=Limits(shard=4))
    assert shared.run["task_runs"] == {"made": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_gap_in_the_records_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The run is complete all the same; its log and its report say what the server lacks."""

    def counted(*_: object) -> int:
        return 6

    monkeypatch.setattr(TaskRunCounter, "_query_recorded", counted)
    with caplog.at_level(logging.WARNING):
        report = dispatch([BRIEF], KEYS, executor=ScriptedExecutor(lambda ask: ask.item.key), limits=Limits(shard=1))
    assert report.status == "complete"
    told = cast("dict[str, Any]", report.run["task_runs"])
    assert (told["made"], told["recorded"]) == (8, 6)
    assert told["note"] in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_an_api_that_is_away_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers: nothing is waited for, and nothing claimed."""
    monkeypatch.setattr(flow_run, "get_id", lambda: str(uuid4()))
    made = TaskRunCounter()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        for _ in range(6):
            made.count_started(0)
        assert made.report() == Recorded(made=6)
