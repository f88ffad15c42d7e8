"""How far a run is: what is counted, how long it still takes, and what of it an artifact shows."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_dispatch import Brief, Command, Limits, Shell, dispatch
from prefect_dispatch.executors.live_view import Activity, LiveView
from prefect_dispatch.flows import publish
from prefect_dispatch.flows.publish import LiveProgress
from prefect_dispatch.models.outcome import Outcome, Usage
from prefect_dispatch.reporting.progress import (
    Progress,
    activity_table,
    estimate_seconds_left,
    format_activity,
    format_duration,
    progress_listener,
)
from prefect_dispatch.tasks.plan import Plan
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("progress", "left"),
    [
        pytest.param(Progress(total=100, in_flight=8), None, id="nothing-asked"),
        pytest.param(Progress(total=100, done=60, cached=53, asked=7, in_flight=8), None, id="the-first-wave"),
        pytest.param(Progress(total=100, done=70, cached=50, asked=20, in_flight=8), 15.0, id="as-fast-as-so-far"),
        pytest.param(Progress(total=100, done=99, cached=40, asked=60, in_flight=1), 10.0 / 60, id="more-than-planned"),
        pytest.param(Progress(total=100, done=100, cached=50, asked=50), 0.0, id="done"),
    ],
)
def test_time_left(progress: Progress, left: float | None) -> None:
    """Of 50 asks, 10 s after the first one began: what came from the store tells nothing about it."""
    assert estimate_seconds_left(progress, 50, 10.0) == left


def test_what_is_counted() -> None:
    """Each outcome adds to what it is; what is under way stays."""
    usage = Usage(requests=1, prompt_tokens=3)
    progress = Progress(total=4, in_flight=2)
    for outcome in (
        Outcome(brief="b", item="1", status="succeeded", origin="stored"),
        Outcome(brief="b", item="2", status="failed", origin="asked"),
        Outcome(brief="b", item="3", status="skipped"),
    ):
        progress = progress.plus(outcome)
    told = progress.model_copy(update={"usage": usage, "seconds_left": 3.0})
    assert (progress.done, progress.cached, progress.failed, progress.skipped, progress.asked) == (3, 1, 1, 1, 1)
    assert str(told) == ("1 from the store, 1 failed, 1 skipped, 2 in flight, 3 tokens, cost $0.0000, about 3 s left")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (3599.6, "1 h 0 min"), (86400, "24 h 0 min")]
)
def test_a_length_of_time(seconds: float, words: str) -> None:
    """Two units at most."""
    assert format_duration(seconds) == words


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_shows_what_is_under_way() -> None:
    """Whoever listens hears of the full window before anything came, then of each outcome; the artifact ends at all."""
    heard: list[Progress] = []
    token = progress_listener.set(heard.append)
    try:
        report = dispatch(
            [Brief(name="shown", instructions="Do.")],
            [str(n) for n in range(6)],
            executor=ScriptedExecutor(lambda _ask: "done"),
            limits=Limits(concurrency=3),
        )
    finally:
        progress_listener.reset(token)
    assert report.status == "complete"
    assert (heard[0].done, heard[0].in_flight) == (0, 3)
    assert [progress.done for progress in heard[1:]] == [1, 2, 3, 4, 5, 6]
    assert max(progress.in_flight for progress in heard) == 3
    assert (heard[-1].in_flight, heard[-1].seconds_left) == (0, 0.0)
    assert artifact("shown-progress") == (100.0, "6 of 6 done, 0 tokens, cost $0.0000")


def artifact(key: str) -> tuple[Any, str | None]:
    """Return an artifact's data and description."""
    with get_client(sync_client=True) as client:
        found = client.request("GET", "/artifacts/{key}/latest", path_params={"key": key}).json()
    return found["data"], found["description"]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_picture_that_cannot_be_shown_costs_no_run() -> None:
    """Somebody deletes the artifact while the run goes on: it goes on."""
    asks: list[str] = []

    @flow
    def pipeline() -> str:
        return dispatch(
            [Brief(name="erased", instructions="Do.")], ["a", "b"], executor=ScriptedExecutor(erase(asks.append))
        ).status

    assert pipeline() == "complete"
    assert len(asks) == 2


def erase(tell: Callable[[str], None]) -> Callable[[Any], str]:
    """Return a script that deletes the artifact of the run when it is asked."""

    def script(ask: Any) -> str:  # noqa: ANN401 -- an Ask
        tell(ask.item.key)
        with get_client(sync_client=True) as client:
            response = client.request(
                "POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["erased-progress"]}}}
            )
            for each in response.json():
                client.request("DELETE", "/artifacts/{id}", path_params={"id": each["id"]})
        return "done"

    return script


@pytest.mark.usefixtures("store")
def test_a_progress_that_cannot_be_created_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's API may refuse the artifact; a run of which nothing is known yet updates none."""
    brief = Brief(name="b", instructions="Do.")
    plan = plan_of_one()

    @flow
    def show() -> None:
        with LiveProgress([brief], plan):
            pass
        monkeypatch.setattr(publish, "create_progress_artifact", refuse)
        with LiveProgress([brief], plan) as live:
            wait_until(lambda: "Progress can't be shown" in caplog.text, "it is logged")
            live(Progress(total=1, done=1))

    show()
    assert caplog.text.count("no artifacts here") == 1  # though it was refused again


@pytest.mark.usefixtures("store")
def test_a_progress_is_shown_once_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may refuse the artifact for a moment, and a listener may fail once: what comes next is shown."""
    monkeypatch.setattr(publish, "LOOK_EVERY_S", 0.01)
    refused, heard = list[str](), list[float]()

    def create(*, progress: float, key: str, description: str) -> UUID:
        if not refused:
            refused.append(key)
            raise OSError("not now")
        return UUID(str(create_progress_artifact(progress=progress, key=key, description=description)))

    def listen(progress: Progress) -> None:
        heard.append(progress.working[0].seconds if progress.working else -1.0)
        if len(heard) == 1:
            raise OSError("not now")

    seconds = count()

    def look(_view: object) -> tuple[Activity, ...]:
        return (HOSTILE.model_copy(update={"seconds": next(seconds)}),)

    @flow
    def show() -> None:
        with LiveProgress([Brief(name="momentary", instructions="Do.")], plan_of_one(), Shell()) as live:
            wait_until(lambda: len(heard) > 2, "what the program does is passed on")
            live(Progress(total=1, done=1))

    monkeypatch.setattr(publish, "create_progress_artifact", create)
    monkeypatch.setattr(LiveView, "look", look)
    token = progress_listener.set(listen)
    try:
        show()
    finally:
        progress_listener.reset(token)
    assert refused == ["momentary-progress"]
    assert str(artifact("momentary-progress")[1]).startswith("1 of 1 done")


def refuse(**_: object) -> None:
    """Refuse an artifact."""
    raise ValueError("no artifacts here")


def plan_of_one() -> Plan:
    """Return the plan of one ask."""
    return Plan(
        **dict.fromkeys(("briefs", "items", "work", "to_ask"), 1),
        **dict.fromkeys(("stored", "shared", "prompt_tokens", "completion_tokens"), 0),
        cost_usd=None,
        seconds_in_turn=1.0,
        seconds_in_parallel=1.0,
        basis="",
        recommendation="fan-out",
        advice="",
    )


HOSTILE = Activity(
    brief="b",
    item="a|b <img>",
    program="claude",
    seconds=125.0,
    tokens=9,
    cost_usd=0.5,
    is_estimated=True,
    step="[click](http://x.example) `rm`",
    log="/state/logs/1.log",
)


def test_what_programs_do_is_a_harmless_table() -> None:
    """Keys and steps are text of others: no cell, no link and no markup of theirs gets into the Markdown."""
    assert activity_table(()) == ""
    row = activity_table([HOSTILE, HOSTILE.model_copy(update={"cost_usd": None})]).splitlines()
    assert row[2].startswith("| b/a&#124;b &#60;img> | claude | 2 min 5 s | 9 | about &#36;0.5000 | &#91;click]")
    assert row[2].endswith("| /state/logs/1.log |")
    assert "http://" not in row[2]
    assert "`" not in row[2]
    assert "| 9 |  | " in row[3]
    assert format_activity(HOSTILE).startswith("b/a|b <img>: 2 min 5 s, 9 tokens, cost about $0.5000: [click]")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_shows_what_its_programs_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, the listener and the artifact have its last line and its log; in the end, nothing is at work."""
    monkeypatch.setattr(publish, "LOOK_EVERY_S", 0.05)
    heard: list[Progress] = []
    described: list[str] = []

    def listen(progress: Progress) -> None:
        heard.append(progress)
        if progress.working and not described:
            with suppress(ObjectNotFound):  # it may not be created yet
                text = str(artifact("watched-progress")[1])
                if "half way" in text:
                    described.append(text)
                    go.touch()

    token = progress_listener.set(listen)
    go = tmp_path / "go"
    brief = Brief(
        name="watched",
        instructions="Do.",
        command=Command(run=f"echo 'half way'; while [ ! -e '{go}' ]; do sleep 0.05; done; echo done"),
    )
    try:
        report = dispatch([brief], ["a"], executor=Shell(), limits=Limits(concurrency=1))
    finally:
        progress_listener.reset(token)
    assert report.status == "complete"
    (shown,) = next(each.working for each in heard if each.working and each.working[0].step)
    assert (shown.brief, shown.program, shown.step, shown.tokens) == ("watched", "command", "half way", 0)
    assert f"| half way | {shown.log[:40]}" in described[0]
    assert heard[-1].working == ()
    assert artifact("watched-progress")[1] == "1 of 1 done, 0 tokens, cost $0.0000"


@pytest.mark.usefixtures("store")
def test_a_view_that_fails_costs_no_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a state folder that can't be used, nor a listener that fails at the end."""
    monkeypatch.setattr(publish, "LOOK_EVERY_S", 0.01)
    brief = Brief(name="unwatched", instructions="Do.")

    class View:
        def __init__(self, run: str) -> None:
            assert run

        def look(self) -> tuple[Activity, ...]:
            raise OSError("no folder here")

    def show_hostile(_view: View) -> tuple[Activity, ...]:
        return (HOSTILE,)

    def fail(progress: Progress) -> None:
        if not progress.working:
            raise OSError(progress.note)

    @flow
    def show() -> None:
        monkeypatch.setattr(publish, "LiveView", View)
        with LiveProgress([brief], plan_of_one(), Shell()):
            wait_until(lambda: "no folder here" in caplog.text, "it is logged")
        monkeypatch.setattr(View, "look", show_hostile)
        token = progress_listener.set(fail)
        try:
            with LiveProgress([brief], plan_of_one(), Shell()) as live:
                wait_until(lambda: live._working != (), "it is shown")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- nothing shows it from outside
        finally:
            progress_listener.reset(token)

    show()
