"""`kill -9` of one or two of three workers, with all that they run: what it costs, with workers of a process pool."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

    from tests.deployments.conftest import Place

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

POOL = "three"
ITEMS = 600
SILENT_S = 60
HEARTBEAT_S = 5
WORKERS = ("one", "two", "three")


@pytest.fixture
def place(server: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The server, and a pool for three workers, with the deployments of this test alone."""
    monkeypatch.setattr("tests.deployments.conftest.PATIENCE_S", 1500)
    env = {
        **server.env,
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "store"),
        "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_S),
    }
    here = replace(server, folder=tmp_path, env=env)
    with here.client() as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    here.run("prefect_dispatch", "deploy", "--work-pool", POOL)
    yield here
    with here.client() as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        client.delete_work_pool(POOL)


def shards(place: Place) -> list[FlowRun]:
    """Return the runs that work on shards."""
    with place.client() as client:
        deployment = client.read_deployment_by_name("work-shard/work-shard")
        return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])))


def worker_of(run: FlowRun) -> str:
    """Return the name of the worker that has taken a run."""
    return str(run.labels.get("prefect.worker.name", ""))


@pytest.mark.parametrize(("state", "number"), [("RUNNING", 1), ("PENDING", 1), ("RUNNING", 2)])
def test_what_lost_workers_cost(place: Place, tmp_path: Path, state: str, number: int) -> None:
    """Their shards, begun or not, are asked elsewhere soon after `silent_s`; no other shard becomes smaller for it."""
    job: dict[str, Any] = {
        "briefs": [{"name": "length", "instructions": "Say how long it is."}],
        "items": [{"key": f"k{at:04}", "value": f"text {at}"} for at in range(ITEMS)],
        "limits": {"concurrency": 12, "retry_delay_s": 0},
        "fan_out": {"deployment": "work-shard", "runs": 3, "silent_s": SILENT_S},
    }
    path = tmp_path / "job.yaml"
    with openai_server(Behaviour(delay_s=1.0)) as model, ExitStack() as stack:
        path.write_text(yaml.safe_dump({**job, "executor": {"model": "openai/test", "api_base": model.url}}))
        workers = {
            name: stack.enter_context(
                place.running("prefect", "worker", "start", "--pool", POOL, "--name", name, "--limit", "1")
            )
            for name in WORKERS
        }
        run = stack.enter_context(place.running("prefect_dispatch", "run", str(path), "--out", str(tmp_path / "out")))
        lost: dict[str, FlowRun] = {}

        def taken() -> bool:
            lost.clear()
            lost.update(
                (worker_of(each), each)
                for each in shards(place)
                if each.state and each.state.type.value == state and worker_of(each)
            )
            assert run.poll() is None
            return len(lost) >= number

        place.wait(taken, f"{number} workers have runs that are {state}")
        victims = list(lost)[:number]
        for name in victims:
            worker = psutil.Process(workers[name].pid)
            for each in (worker, *worker.children(recursive=True)):
                each.kill()
        killed = time.monotonic()
        gone = {lost[name].id for name in victims}

        def given_up() -> bool:
            return all(each.state is not None and each.state.is_crashed() for each in shards(place) if each.id in gone)

        place.wait(given_up, "what they had is given up")
        said = f"{number} of 3 workers, {state}: given up {time.monotonic() - killed:.1f} s after kill -9"
        print(f"\n{said}; silent_s is {SILENT_S}")  # noqa: T201 -- the figure
        place.wait(lambda: run.poll() is not None, "the run has ended")
        print(f"the run ended {time.monotonic() - killed:.1f} s after kill -9")  # noqa: T201 -- the figure
    assert run.returncode == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["disposition"] for row in report["ledger"]] == ["merged"] * ITEMS
    sizes = [int(each.name.partition(" items")[0]) for each in shards(place) if " items" in each.name]
    assert sum(size < 50 for size in sizes) <= 4, sizes
