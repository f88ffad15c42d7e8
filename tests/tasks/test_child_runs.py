"""Which workers of a pool are lost, by their heartbeats."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_dispatch.tasks.shards.deployment_runner import offline_workers
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def pool() -> str:
    """A work pool."""
    name = f"pool-{uuid4().hex}"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    return name


def beat(pool: str, worker: str, every_s: int) -> None:
    """Send a heartbeat of a worker that sends one every so often."""
    path: Any = f"/work_pools/{pool}/workers/heartbeat"
    with get_client(sync_client=True) as client:
        client.request("POST", path, json={"name": worker, "heartbeat_interval_seconds": every_s})


@pytest.mark.slow
def test_a_worker_without_heartbeats_is_lost(pool: str) -> None:
    """Until it sends one again."""
    beat(pool, "steady", 600)
    beat(pool, "gone", 1)
    assert offline_workers(pool) == frozenset()
    wait_until(lambda: [*offline_workers(pool)] == ["gone"], "its heartbeats are missing")
    beat(pool, "gone", 600)
    assert offline_workers(pool) == frozenset()


def test_a_pool_without_workers_loses_none() -> None:
    """Nothing is asked."""
    assert offline_workers(None) == frozenset()
