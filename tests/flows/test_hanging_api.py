"""An API that hangs: what is only shown delays no work, and what is looked up now and then is given up soon."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from prefect_dispatch import Brief, Limits, dispatch
from prefect_dispatch.flows import publish
from prefect_dispatch.reporting.progress import on_report
from prefect_dispatch.tasks import fan_out, stop_conditions
from prefect_dispatch.tasks.stop_conditions import raise_if_cancelled, run_periodically, watch_cancellation
from prefect_dispatch.testing import ScriptedExecutor
from tests.hanging_proxy import HangingProxy, hanging_proxy
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prefect_dispatch import Ask, Report

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="say", instructions="Say it.")
ITEMS = [f"item {at}" for at in range(12)]
LIMITS = Limits(concurrency=2)


@pytest.fixture
def proxy(store: None) -> Generator[HangingProxy]:
    """A proxy between the run and Prefect's server."""
    port = urlsplit(str(PREFECT_API_URL.value())).port
    assert port
    with hanging_proxy(port) as made, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{made.port}/api"}):
        yield made
        made.flows.set()
        # Prefect's worker for events keeps the address that it began with: the next test begins with a new one.
        for kind in (EventsWorker, APILogWorker):
            kind.drain_all(timeout=60)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show progress at once, and give up what hangs soon."""
    monkeypatch.setattr(publish, "UPDATE_EVERY_S", 0.0)
    monkeypatch.setattr(publish, "LAST_S", 0.2)
    monkeypatch.setattr(publish, "PUBLISH_S", 0.5)
    monkeypatch.setattr(fan_out, "LOOK_S", 0.1)
    monkeypatch.setattr(stop_conditions, "TIMEOUT_S", 0.5)


@pytest.mark.slow
def test_all_items_are_asked_while_the_api_hangs(proxy: HangingProxy) -> None:
    """From the first ask on; the report is written, and handed on, before the API takes anything again."""
    asked: list[str] = []

    def answer(ask: Ask) -> str:
        proxy.flows.clear()
        asked.append(ask.item.key)
        return "fine"

    written: list[Report] = []

    def take(report: Report) -> None:
        written.append(report)
        threading.Timer(2.0, proxy.flows.set).start()

    token = on_report.set(take)
    try:
        report = dispatch([BRIEF], ITEMS, executor=ScriptedExecutor(answer), limits=LIMITS)
    finally:
        on_report.reset(token)
    assert (len(asked), report.status) == (len(ITEMS), "complete")
    assert written == [report]


@pytest.mark.slow
def test_a_cancelled_run_is_noticed() -> None:
    """By the thread that looks now and then, and by a look at once; an API that hangs says nothing."""

    @flow
    def cancelled() -> str:
        context = FlowRunContext.get()
        assert context
        assert context.flow_run
        run = context.flow_run.id
        raise_if_cancelled(run)
        with watch_cancellation(0.05) as check:
            check()
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run, Cancelling())
            wait_until(lambda: _raises(check), "it is noticed")
        with pytest.raises(CancelledRun):
            raise_if_cancelled(run)
        return "noticed"

    assert cancelled() == "noticed"


def _raises(check: Callable[[], None]) -> bool:
    try:
        check()
    except CancelledRun:
        return True
    return False


@pytest.mark.slow
def test_an_api_that_hangs_says_nothing_of_a_cancellation(proxy: HangingProxy) -> None:
    """The look ends soon."""
    proxy.flows.clear()
    raise_if_cancelled(uuid4())


def test_a_step_that_hangs_is_not_waited_for() -> None:
    """A heartbeat that the API doesn't take."""
    hangs, begun = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        hangs.wait()

    with run_periodically(step, 0.01, join_s=0.1):
        begun.wait()
    hangs.set()
