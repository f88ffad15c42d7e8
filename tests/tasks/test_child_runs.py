"""Which workers of a pool are lost, by their heartbeats."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError

from prefect_dispatch.tasks.shards.deployment_runner import is_transient_api_error, offline_workers
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


@pytest.mark.parametrize(("status", "is_transient"), [(429, True), (503, True), (404, False), (422, False)])
def test_an_error_of_the_api_may_pass(status: int, is_transient: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    """A server that is too busy or broken is asked again; one that refuses is not."""
    response = httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1/api"))
    with pytest.raises(httpx.HTTPStatusError) as raised:
        response.raise_for_status()
    assert is_transient_api_error(PrefectHTTPStatusError.from_httpx_error(raised.value)) is is_transient
