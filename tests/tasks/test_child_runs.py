"""Which workers of a pool are lost, by their heartbeats."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_dispatch.tasks.shards import deployment_runner
from prefect_dispatch.tasks.shards.deployment_runner import WorkerMonitor

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask at each look."""
    monkeypatch.setattr(deployment_runner, "WORKERS_S", 0.0)


@pytest.fixture
def pool() -> str:
    """A work pool."""
    name = f"pool-{uuid4().hex}"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    return name


def beat(pool: str, worker: str) -> None:
    """Send a heartbeat of a worker that sends one each second."""
    path: Any = f"/work_pools/{pool}/workers/heartbeat"
    with get_client(sync_client=True) as client:
        client.request("POST", path, json={"name": worker, "heartbeat_interval_seconds": 1})


@pytest.mark.slow
def test_a_worker_without_heartbeats_is_lost(pool: str) -> None:
    """Until it sends one again; a run whose worker is not known may be that of one which is lost since."""
    workers = WorkerMonitor(pool, silent_s=1.0)
    taken = time.monotonic()
    beat(pool, "steady")
    beat(pool, "gone")
    workers.poll()
    assert not workers.is_lost("gone", taken)
    assert not workers.is_lost("", taken)
    time.sleep(2.5)
    beat(pool, "steady")
    workers.poll()
    assert (workers.is_lost("gone", taken), workers.is_lost("steady", taken)) == (True, False)
    assert workers.is_lost("", taken)
    assert not workers.is_lost("", time.monotonic())
    beat(pool, "gone")
    workers.poll()
    assert not workers.is_lost("gone", taken)


def test_a_pool_without_workers_loses_none() -> None:
    """Nothing is asked."""
    workers = WorkerMonitor(None, silent_s=1.0)
    workers.poll()
    assert not workers.is_lost("", 0.0)
