"""Heartbeats of a run whose worker sends them too rarely for the automation that ends dead runs."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.runtime import flow_class
from prefect_dispatch.flows.runtime.flow_class import send_heartbeats
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Ask

BRIEFS = [Brief(name="terms", instructions="Say it.")]


def periodic_threads() -> set[threading.Thread]:
    """Return the threads that do something periodically."""
    return {thread for thread in threading.enumerate() if "periodic" in thread.name}


@pytest.mark.parametrize(("every_s", "own"), [(30, 0), (180, 0), (600, 1), (None, 0)])
def test_only_where_heartbeats_are_rare_there_are_more(every_s: int | None, own: int, store: None) -> None:
    """Where Prefect's are as frequent as the automation expects, or switched off, none are added; and all end."""
    before = periodic_threads()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: every_s}), send_heartbeats():
        assert len(periodic_threads() - before) == own
    assert not periodic_threads() - before


@pytest.mark.slow
def test_a_run_is_never_silent_for_long(store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gets heartbeats of a run though Prefect would send the next one only in ten minutes."""
    monkeypatch.setattr(flow_class, "MAX_HEARTBEAT_S", 0.2)
    since, beats = datetime.now(timezone.utc), list[dict[str, Any]]()

    def heartbeats() -> bool:
        only = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "occurred": {"since": since.isoformat()}}
        with get_client(sync_client=True) as client:
            beats[:] = client.request("POST", "/events/filter", json={"filter": only}).json()["events"]
        return len(beats) > 1

    def answer(ask: Ask) -> str:
        wait_until(heartbeats, "two heartbeats have arrived")
        return str(ask.item.key)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 600}):
        report = dispatch(BRIEFS, ["a"], executor=ScriptedExecutor(answer))
    run: Any = report.run["flow_run"]
    assert {beat["resource"]["prefect.resource.id"] for beat in beats} == {f"prefect.flow-run.{run['id']}"}
