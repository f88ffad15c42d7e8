"""Shards as runs of a deployment, worked on by a real worker: the laws hold there, too, whoever dies."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

    from tests.deployments.conftest import Place
    from tests.openai_server import OpenAIServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

POOL = "shards"
KEYS = [f"k{at:02}" for at in range(12)]
SCHEMA = {"type": "object", "properties": {"words": {"type": "integer"}}, "required": ["words"]}


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Count words; refuse one item for good, fail another once, and take time over a third."""
    text = document(request)
    if "refused" in text:
        return failure(400, "I can't help with that.", code="content_policy_violation")
    if "once" in text and n == 1:
        return failure(500, "out of order")
    return Behaviour(content=json.dumps({"words": len(text.split())}), delay_s=40 if "slowly" in text and n == 1 else 0)


@pytest.fixture
def model() -> Generator[OpenAIServer]:
    """A model that counts words."""
    with openai_server(behave) as server:
        yield server


@pytest.fixture
def place(server: Place, tmp_path: Path) -> Place:
    """The server, a folder, a store and a work pool with the deployment."""
    env = {**server.env, "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "store")}
    here = replace(server, folder=tmp_path, env=env)
    here.run("prefect", "--no-prompt", "work-pool", "create", POOL, "--type", "process", "--overwrite")
    here.run("prefect_dispatch", "deploy", "--work-pool", POOL)
    return here


def job(folder: Path, model: OpenAIServer, name: str = "job", **changes: Any) -> str:  # noqa: ANN401 -- YAML
    """Write a job; return its file."""
    items = [{"key": key, "value": f"{key} is one of many"} for key in KEYS]
    items[3]["value"] += " and refused"
    items[5]["value"] += " that fail once"
    items[7]["value"] = items[6]["value"]  # equal items are asked once
    data: dict[str, Any] = {
        "briefs": [{"name": "length", "instructions": "Say how long it is.", "output": SCHEMA}],
        "items": items,
        "executor": {"model": "openai/test", "api_base": model.url, "usd_per_million": [1, 1]},
        "limits": {"retry_delay_s": 0, "retries": 1, "shard": 3},
        "fan_out": {"deployment": "work-shard", "runs": 2, "silent_s": 20},
    }
    path = folder / name / "job.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({**data, **changes}))
    return str(path)


def report(folder: Path) -> dict[str, Any]:
    """Return what of a run's report is the same in each run."""
    read: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {name: part for name, part in read.items() if name != "run"}


def children(place: Place) -> list[FlowRun]:
    """Return every run that worked on a shard, in order."""
    with place.client() as client:
        deployment = client.read_deployment_by_name("work-shard/work-shard")
        only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        found = client.read_flow_runs(deployment_filter=only)
    return sorted(found, key=lambda run: str(run.created))


def test_a_run_elsewhere_says_what_one_in_threads_does(place: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """Byte for byte, gaps and usage included; its children are subflows with names, and leave no shard behind."""
    path = job(tmp_path, model)
    with place.worker(POOL):
        place.run("prefect_dispatch", "run", path, "--out", str(tmp_path / "there"), code=3)
    asked = model.count
    shards = children(place)
    assert len(shards) == 4
    assert all(run.parent_task_run_id for run in shards)
    assert {run.name for run in shards} >= {"3 items, length: k00 to length: k02"}
    assert all(list(run.parameters) == ["shard"] for run in shards)
    assert "one of many" not in json.dumps([run.model_dump(mode="json") for run in shards])
    assert not list((tmp_path / "store" / "prefect-dispatch-shards").glob("**/*"))
    env = {**place.env, "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "other")}
    with openai_server(behave) as another:
        here = job(tmp_path, another, "here", fan_out=None)
        other = replace(place, env=env)
        other.run("prefect_dispatch", "run", here, "--out", str(tmp_path / "here-out"), code=3)
        assert another.count == asked
    assert report(tmp_path / "there") == report(tmp_path / "here-out")
