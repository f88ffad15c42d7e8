"""A run that is interrupted: what is under way ends within its grace, what came back is stored, the state says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterName
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from prefect_dispatch import LLM, Brief, Limits, dispatch
from prefect_dispatch.flows import run_job
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.progress import progress_listener
from prefect_dispatch.tasks import fan_out
from tests.openai_server import Behaviour, OpenAIServer, document, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

    from prefect_dispatch.reporting.progress import Progress

pytestmark = pytest.mark.usefixtures("store")

SAY = Brief(name="say", instructions="Say it.")
LIMITS = Limits(concurrency=2, retries=0)
ITEMS = ["alpha", "beta", "gamma", "delta"]


def is_quick(request: dict[str, Any]) -> bool:
    """Return whether it is one of the first two items."""
    return any(word in document(request) for word in ITEMS[:2])


def slow(request: dict[str, Any], n: int) -> Behaviour:
    """Answer the first two; never answer anything else."""
    del n
    return Behaviour(hang=not is_quick(request))


def the_run(name: str) -> FlowRun:
    """Return the one run of that name."""
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return run


def interrupted(
    server: OpenAIServer, name: str, interrupt: Callable[[], None], grace_s: float = 0.2, out: Path | None = None
) -> str:
    """Interrupt a run whose last two asks hang; return the message of its state."""

    def press() -> None:
        wait_until(lambda: server.count == 4, "two answered, two under way")
        interrupt()

    thread = threading.Thread(target=press)
    thread.start()
    limits = LIMITS.model_copy(update={"grace_s": grace_s})
    executor = LLM(model="openai/x", api_base=server.url)
    with pytest.raises(CancelledRun):
        dispatch.with_options(flow_run_name=name)(
            [SAY], ITEMS, executor=executor, limits=limits, out=str(out / "rows.csv") if out else None
        )
    thread.join()
    state = the_run(name).state
    assert state is not None
    assert state.is_cancelled()
    return str(state.message)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_a_run(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM: calls are given up after the grace, and the state counts what was answered.

    A report has what came, as a file and as an artifact, and the progress doesn't look as if the run went on.
    """
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with openai_server(slow) as server:
        told = interrupted(server, f"by-{number}", lambda: os.kill(os.getpid(), number), out=tmp_path)
        assert told.startswith("Cancelled: 2 of 4 answered.")
        wait_until(lambda: server.hung_up == 2, "both calls are given up")
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert report.message.startswith("Cancelled (2 of 4 answered; no answer for 2 (2 interrupted): ")
    assert [gap.error.message for gap in report.gaps] == ["The run was cancelled before the answer came."] * 2
    assert (tmp_path / "rows.csv").read_text().count("\n") == 3
    assert (tmp_path / "report.html").exists()
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["say-report", "say-progress"])
        of_run = FlowRunFilter(name=FlowRunFilterName(any_=[f"by-{number}"]))
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=key), flow_run_filter=of_run)
    shown = {str(each.key): str(each.data if each.type == "markdown" else each.description) for each in found}
    assert shown["say-report"].startswith("# Cancelled\n\n")
    assert shown["say-progress"].startswith("cancelled: 2 of 4 done, ")
    assert "in flight" not in shown["say-progress"]


@pytest.mark.slow
def test_a_second_interruption_ends_the_report_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C again, while the report is built: the run still ends as cancelled."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def press_again(progress: Progress) -> None:
        if progress.done == progress.total:  # only after the first one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    token = progress_listener.set(press_again)
    try:
        with openai_server(slow) as server:
            state = interrupted(server, "twice", lambda: os.kill(os.getpid(), signal.SIGINT))
    finally:
        progress_listener.reset(token)
    assert state.startswith("Cancelled: 2 of 4 answered.")
    assert "The report of the cancelled run is incomplete: it was interrupted, too." in caplog.text


@pytest.mark.slow
def test_a_cancelled_run_of_very_many_items_has_no_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process ends before it could be written; what an earlier run wrote stays whole."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(run_job, "MAX_CANCELLED", 3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("{}")
    with openai_server(slow) as server:
        interrupted(server, "many", lambda: os.kill(os.getpid(), signal.SIGINT), out=out)
    assert [file.name for file in out.iterdir()] == ["report.json"]
    assert (out / "report.json").read_text() == "{}"


def test_what_was_answered_before_an_interruption_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same job goes on; the calls that were given up are counted as such."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    healthy = threading.Event()

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        return Behaviour() if healthy.is_set() else slow(request, n)

    with openai_server(behave) as server:
        interrupted(server, "first", lambda: os.kill(os.getpid(), signal.SIGINT))
        healthy.set()
        executor = LLM(model="openai/x", api_base=server.url)
        report = dispatch([SAY], ITEMS, executor=executor, limits=LIMITS)
        assert server.count == 6
    assert (report.status, report.usage.cached) == ("complete", 2)
    assert sum(outcome.usage.unsettled for outcome in report.outcomes) == 2


@pytest.mark.slow
def test_a_call_that_comes_back_within_the_grace_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearly there is not thrown away."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        del n
        return Behaviour(delay_s=0.0 if is_quick(request) else 1.5)

    with openai_server(behave) as server:
        told = interrupted(server, "grace", lambda: os.kill(os.getpid(), signal.SIGTERM), grace_s=60)
        assert (told.startswith("Cancelled: 4 of 4 answered."), server.hung_up) == (True, 0)


@pytest.mark.slow
def test_somebody_cancels_a_run_in_the_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in a process of its own, which no worker would end, looks for itself."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(fan_out, "LOOK_S", 0.2)

    def cancel() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(the_run("by-hand").id, Cancelling())

    with openai_server(slow) as server:
        assert interrupted(server, "by-hand", cancel).startswith("Cancelled: 2 of 4 answered.")


@pytest.mark.slow
def test_a_flow_around_it_is_interrupted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline doesn't go on as if nothing had happened."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    went_on: list[float] = []

    @flow
    def pipeline(url: str) -> None:
        dispatch([SAY], ITEMS, executor=LLM(model="openai/x", api_base=url), limits=LIMITS)
        went_on.append(time.monotonic())

    with openai_server(slow) as server:

        def press() -> None:
            wait_until(lambda: server.count == 4, "two answered, two under way")
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            pipeline(server.url)
        thread.join()
    assert not went_on
