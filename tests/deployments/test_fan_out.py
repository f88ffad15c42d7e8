"""Shards as runs of a deployment, worked on by a real worker: the laws hold there, too, whoever dies."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
)
from prefect.states import Cancelling

from prefect_dispatch.tasks.shards.protocol import FOLDER
from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

    from tests.deployments.conftest import Place
    from tests.openai_server import OpenAIServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

POOL = "shards"
KEYS = [f"k{at:02}" for at in range(6)]
KEY = re.compile(r"\bk\d\d\b")
SCHEMA = {"type": "object", "properties": {"words": {"type": "integer"}}, "required": ["words"]}


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Count words; refuse what says so, for good or once, and take time over what goes slowly."""
    text = document(request)
    if "wrong key" in text:
        return failure(401, "that key is wrong")
    if "refused" in text:
        return failure(400, "I can't help with that.", code="content_policy_violation")
    if "fails once" in text and n == 1:
        return failure(500, "out of order")
    return Behaviour(content=json.dumps({"words": len(text.split())}), delay_s=60 if "slowly" in text and n == 1 else 0)


@pytest.fixture
def model() -> Generator[OpenAIServer]:
    """A model that counts words."""
    with openai_server(behave) as server:
        yield server


@pytest.fixture(scope="module")
def place(server: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The server, a folder, a store and a work pool with the deployment."""
    folder = tmp_path_factory.mktemp("shards")
    env = {**server.env, "PREFECT_LOCAL_STORAGE_PATH": str(folder / "store")}
    here = replace(server, folder=folder, env=env)
    with here.client() as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    here.run("prefect_dispatch", "deploy", "--work-pool", POOL)
    return here


@pytest.fixture
def worker(place: Place) -> Generator[None]:
    """A worker of the pool."""
    with place.worker(POOL):
        yield


def job(folder: Path, model: OpenAIServer, name: str, items: dict[str, str], **changes: Any) -> str:  # noqa: ANN401 -- YAML
    """Write a job; return its file."""
    data: dict[str, Any] = {
        "briefs": [{"name": "length", "instructions": f"Say how long it is, for {name}.", "output": SCHEMA}],
        "items": [{"key": key, "value": value} for key, value in items.items()],
        "executor": {"model": "openai/test", "api_base": model.url, "usd_per_million": [1, 1]},
        "limits": {"retry_delay_s": 0, "retries": 1, "shard": 3},
        "fan_out": {"deployment": "work-shard", "runs": 2, "silent_s": 20},
    }
    path = folder / "job.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**data, **changes}))
    return str(path)


def report(folder: Path) -> dict[str, Any]:
    """Return what of a run's report is the same in each run."""
    read: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {name: part for name, part in read.items() if name != "run"}


def children(place: Place, since: datetime) -> list[FlowRun]:
    """Return every run that worked on a shard and began after a time, in order."""
    with place.client() as client:
        deployment = client.read_deployment_by_name("work-shard/work-shard")
        only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        found = client.read_flow_runs(deployment_filter=only)
    return sorted((run for run in found if run.created and run.created > since), key=lambda run: str(run.created))


def states(runs: Iterable[FlowRun]) -> list[str]:
    """Return the names of the states of runs."""
    return [str(run.state.name) for run in runs if run.state]


@pytest.fixture
def began() -> datetime:
    """When the test began."""
    return datetime.now(timezone.utc)


def asked(model: OpenAIServer) -> Counter[str]:
    """Return how often each item was asked."""
    return Counter(KEY.findall(document(request.body))[0] for request in model.requests)


@pytest.mark.usefixtures("worker")
def test_a_run_elsewhere_says_what_one_in_threads_does(
    place: Place, model: OpenAIServer, tmp_path: Path, began: datetime
) -> None:
    """Byte for byte, gaps and usage included; its children are subflows with names, and leave no shard behind."""
    items = {key: f"{key} is one of many" for key in KEYS}
    items |= {"k03": "k03 is refused", "k04": "k04 fails once", "k05": items["k02"]}  # equal items are asked once
    path = job(tmp_path, model, "same", items)
    place.run("prefect_dispatch", "run", path, "--out", str(tmp_path / "there"), code=3)
    first = asked(model)
    shards = children(place, began)
    assert [run.name for run in shards] == [
        "3 items, length: k00 to length: k02",
        "2 items, length: k03 to length: k04",
    ]
    assert states(shards) == ["Completed", "CompletedWithGaps"]
    assert all(run.parent_task_run_id and list(run.parameters) == ["shard"] for run in shards)
    assert "one of many" not in json.dumps([run.model_dump(mode="json") for run in shards])
    assert not list((place.folder / "store" / FOLDER).glob("*"))
    apart = replace(place, env={**place.env, "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "other")})
    here = job(tmp_path, model, "same", items, fan_out=None)
    again = first + first
    apart.run("prefect_dispatch", "run", here, "--out", str(tmp_path / "here"), code=3)
    assert asked(model) == again - Counter({"k04": 1})  # it fails once in all
    there, here_too = report(tmp_path / "there"), report(tmp_path / "here")
    assert there.pop("usage")["requests"] == here_too.pop("usage")["requests"] + 1
    bills = [{row["step"]: row["requests"] for row in each.pop("bill")} for each in (there, here_too)]
    assert bills == [{"ask": 5, "retry": 1}, {"ask": 5}]
    assert there == here_too


@pytest.mark.long
@pytest.mark.usefixtures("worker")
def test_an_error_that_all_would_meet_stops_all(place: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """A wrong key costs as much as is under way, and the run fails."""
    path = job(tmp_path, model, "key", {key: f"{key} has the wrong key" for key in KEYS * 1})
    place.run("prefect_dispatch", "run", path, "--set", "limits.concurrency=2", "--set", "limits.shard=2", code=1)
    assert model.count <= 2


@pytest.mark.long
@pytest.mark.usefixtures("worker")
def test_a_budget_holds_over_all_runs(place: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """Two runs share what there is; what it doesn't hold is skipped, and the next run goes on there."""
    path = job(tmp_path, model, "budget", {key: f"{key} costs" for key in KEYS})
    limits = ("--set", "limits.budget_requests=4", "--set", "limits.concurrency=2")
    place.run("prefect_dispatch", "run", path, "--out", str(tmp_path / "out"), *limits, code=3)
    assert model.count <= 4
    said = report(tmp_path / "out")
    skipped = [row["reason"] for row in said["ledger"] if row["disposition"] == "skipped"]
    assert len(skipped) == len(KEYS) - model.count
    assert len(said["ledger"]) == len(KEYS)
    place.run("prefect_dispatch", "run", path, "--out", str(tmp_path / "out"))
    assert set(asked(model).values()) == {1}


@contextmanager
def killed(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Run a block, and kill a process with all that it has started, at its end."""
    yield
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def test_a_worker_that_is_killed_loses_nothing(
    place: Place, model: OpenAIServer, tmp_path: Path, began: datetime
) -> None:
    """Killed with its child and restarted: its run is given up, and only what had no answer is asked again."""
    items = {key: f"{key} is one" for key in KEYS} | {"k04": "k04 goes slowly"}
    path = job(tmp_path, model, "worker", items)
    out = tmp_path / "out"
    with place.running("prefect_dispatch", "run", path, "--out", str(out)) as run:
        with place.worker(POOL) as worker, killed(worker):
            place.wait(lambda: asked(model).total() == len(KEYS), "all is asked")
            place.wait(lambda: "Completed" in states(children(place, began)), "the first three are stored")
        with place.worker(POOL):
            place.wait(lambda: run.poll() is not None, "the run has ended")
    assert run.returncode == 0
    said = report(out)
    assert [row["disposition"] for row in said["ledger"]] == ["merged"] * len(KEYS)
    assert asked(model)["k04"] == 2
    assert {key for key, times in asked(model).items() if times > 1} <= {"k03", "k04", "k05"}
    assert "Crashed" in states(children(place, began))


@pytest.mark.long
def test_a_run_that_is_killed_goes_on(place: Place, model: OpenAIServer, tmp_path: Path, began: datetime) -> None:
    """Killed while its children work, and started again: they go on, and nothing is paid for twice."""
    items = {key: f"{key} is two" for key in KEYS} | {"k04": "k04 goes slowly"}
    path = job(tmp_path, model, "parent", items)
    with place.worker(POOL):
        with place.running("prefect_dispatch", "run", path) as run, killed(run):
            place.wait(lambda: asked(model).total() == len(KEYS), "all is asked")
        place.run("prefect_dispatch", "run", path, "--out", str(tmp_path / "out"))
    assert asked(model) == Counter(KEYS)
    assert [row["disposition"] for row in report(tmp_path / "out")["ledger"]] == ["merged"] * len(KEYS)


@pytest.mark.long
def test_a_run_that_is_cancelled_cancels_its_children(
    place: Place, model: OpenAIServer, tmp_path: Path, began: datetime
) -> None:
    """Somebody cancels it: what is under way ends, and what no worker has begun never does."""
    path = job(tmp_path, model, "cancel", {key: f"{key} goes slowly" for key in KEYS})
    with (
        place.worker(POOL),
        place.running("prefect_dispatch", "run", path, "--set", "limits.grace_s=0") as run,
        place.client() as client,
    ):
        place.wait(lambda: model.count == len(KEYS), "all is asked")
        of_dispatch = FlowFilter(name=FlowFilterName(any_=["dispatch"]))
        runs = client.read_flow_runs(flow_filter=of_dispatch)
        (parent,) = [each for each in runs if each.state and each.state.is_running() and str(each.created) > str(began)]
        client.set_flow_run_state(parent.id, Cancelling())
        place.wait(lambda: run.poll() is not None, "the run has ended")
        place.wait(lambda: all(each.state and each.state.is_final() for each in children(place, began)), "all have")
        assert "Completed" not in states(children(place, began))
    assert model.hung_up == len(KEYS)
    assert run.returncode == 130
