"""How far a run is: what is counted, how long it still takes, and what of it an artifact shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_dispatch import Brief, Limits, dispatch
from prefect_dispatch.flows import publish
from prefect_dispatch.flows.publish import LiveProgress
from prefect_dispatch.models.outcome import Outcome, Usage
from prefect_dispatch.reporting.progress import Progress, estimate_seconds_left, format_duration, progress_listener
from prefect_dispatch.tasks.plan import Plan
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


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
    plan = Plan(
        **dict.fromkeys(("briefs", "items", "work", "to_ask"), 1),
        **dict.fromkeys(("stored", "shared", "prompt_tokens", "completion_tokens"), 0),
        cost_usd=None,
        seconds_in_turn=1.0,
        seconds_in_parallel=1.0,
        basis="",
        recommendation="fan-out",
        advice="",
    )

    @flow
    def show() -> None:
        with LiveProgress([brief], plan):
            pass
        monkeypatch.setattr(publish, "create_progress_artifact", refuse)
        with LiveProgress([brief], plan) as live:
            wait_until(lambda: "Progress can't be shown" in caplog.text, "it is logged")
            live(Progress(total=1, done=1))

    show()


def refuse(**_: object) -> None:
    """Refuse an artifact."""
    raise ValueError("no artifacts here")
