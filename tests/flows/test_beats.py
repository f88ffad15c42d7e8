"""The heartbeats of a run that ends with them."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.runtime.heartbeat import send_heartbeats, without_prefect_heartbeats
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from prefect_dispatch.executors.base import Ask

BRIEFS = [Brief(name="terms", instructions="Say it.")]


@pytest.fixture
def beats(store: None) -> Generator[None]:
    """Heartbeats as Prefect sends them, which the store leaves out."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        yield


def told_of(runs: Sequence[str], since: datetime) -> dict[str, list[dict[str, Any]]]:
    """Return the heartbeats that Prefect's server has of some runs, once there is one of each."""
    found: dict[str, list[dict[str, Any]]] = {}

    def arrived() -> bool:
        with get_client(sync_client=True) as client:
            for run in runs:
                only = {
                    "event": {"name": ["prefect.flow-run.heartbeat"]},
                    "resource": {"id": [f"prefect.flow-run.{run}"]},
                    "occurred": {"since": since.isoformat()},
                }
                found[run] = client.request("POST", "/events/filter", json={"filter": only}).json()["events"]
        return all(found.values())

    wait_until(arrived, "a heartbeat of each run has arrived")
    return found


def form(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return what of an event doesn't depend on its run."""
    roles = sorted(related["prefect.resource.role"] for related in event["related"])
    return event["event"], sorted(event["resource"]), event["payload"], roles


@pytest.mark.slow
@pytest.mark.usefixtures("beats")
def test_a_run_that_is_called_sends_the_heartbeats_of_any_flow() -> None:
    """Of the same form as Prefect's, for whatever watches runs; and a flow that is called meanwhile sends Prefect's."""
    since, theirs = datetime.now(timezone.utc), list[str]()

    @flow
    def plain() -> None:
        theirs.append(str(flow_run.get_id()))

    def answer(ask: Ask) -> str:
        plain()
        return str(ask.item.key)

    plain()
    report = dispatch(BRIEFS, ["a"], executor=ScriptedExecutor(answer))
    assert report.status == "complete"
    run: Any = report.run["flow_run"]
    found = told_of([run["id"], *theirs], since)
    (mine,), (prefects,) = found[run["id"]], found[theirs[0]]
    assert form(mine) == form(prefects)
    assert mine["resource"]["prefect.resource.name"] == run["name"]


def every() -> int | None:
    """Return how often Prefect sends a heartbeat here."""
    return get_current_settings().flows.heartbeat_frequency


def threads() -> set[threading.Thread]:
    """Return the threads that are at work."""
    return set(threading.enumerate())


@pytest.mark.usefixtures("beats")
def test_a_heart_stops_with_its_run() -> None:
    """However it ends; and the settings are as they were."""

    @flow
    def broken() -> None:
        before = threads()
        with send_heartbeats():
            assert every() == 30
            assert "prefect-dispatch-beat" in {thread.name for thread in threads() - before}
            with send_heartbeats():  # a flow that is called as a function within
                assert every() == 30
            raise LookupError
        raise AssertionError

    before = threads()
    with without_prefect_heartbeats():
        assert every() is None
        with pytest.raises(LookupError):
            broken()
        assert every() is None
    assert every() == 30
    assert not [thread for thread in threads() - before if "beat" in thread.name]


def test_where_nobody_wants_heartbeats_none_are_sent(store: None) -> None:
    """Neither Prefect's nor ours."""
    before = threads()
    with without_prefect_heartbeats(), send_heartbeats():
        assert every() is None
        assert not [thread for thread in threads() - before if "beat" in thread.name]


@pytest.mark.parametrize(("every_s", "own"), [(30, False), (180, False), (600, True)])
def test_a_run_that_a_worker_begins_is_never_silent_for_long(every_s: int, own: bool, store: None) -> None:  # noqa: FBT001 -- a table
    """Where heartbeats of Prefect are rarer than the automation for dead runs expects, ours are sent beside them."""
    before = threads()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: every_s}), send_heartbeats():
        assert [thread.name for thread in threads() - before if "beat" in thread.name] == [
            "prefect-dispatch-beat"
        ] * own
        assert every() == every_s
    assert not [thread for thread in threads() - before if "beat" in thread.name]
