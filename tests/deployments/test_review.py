"""A review of a deployed run holds no worker, and outlasts the one that began it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dispatch.integrators.decisions_file import DecisionsFile
from tests.openai_server import Behaviour, document, openai_server

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path
    from subprocess import Popen
    from uuid import UUID

    from prefect.client.schemas.objects import State

    from tests.deployments.conftest import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def job(name: str, url: str) -> dict[str, Any]:
    """Return a job with something to decide, and an item that fails."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "year": {"type": "integer"}}}
    return {
        "briefs": [{"name": name, "instructions": f"Name it, for {name}.", "output": schema | {"required": ["name"]}}],
        "items": {"glob": "texts/*.txt"},
        "executor": {"model": "openai/test", "api_base": url},
        "integrator": {
            "kind": "merge_records",
            "identity": ["name"],
            "rules": {"year": "max"},
            "aliases": "decisions.yaml",
        },
        "limits": {"retries": 0, "reasks": 0},
        "review": True,
    }


def behave(request: dict[str, Any], n: int) -> Behaviour:
    """Answer with the year that the document has."""
    found = re.search(r"\d{4}", document(request))
    return Behaviour(content=json.dumps({"name": "MIT", "year": int(found[0])}) if found else "Forty-two.")


@pytest.mark.parametrize("way", ["deploy", "serve"])
def test_a_review_holds_no_worker_and_outlasts_it(way: str, server: Place, tmp_path: Path) -> None:
    """While people decide the concurrency slot is free; another worker goes on by their answer, and asks nothing."""
    place = replace(server, folder=tmp_path)
    name = f"reviewed-by-{way}"
    (tmp_path / "texts").mkdir()
    for key, text in {"a": "Since 1987.", "b": "Since 1988.", "c": "Nothing."}.items():
        (tmp_path / "texts" / f"{key}.txt").write_text(text)

    def worker() -> AbstractContextManager[Popen[bytes]]:
        return place.worker("dispatch") if way == "deploy" else place.running("prefect_dispatch", "serve", "job.json")

    with openai_server(behave) as model:
        (tmp_path / "job.json").write_text(json.dumps(job(name, model.url)))
        if way == "deploy":
            place.run("prefect_dispatch", "deploy", "job.json")
        with worker():
            place.wait(lambda: registered(place, name) is not None, "it is registered")
            deployment = registered(place, name)
            assert deployment is not None
            with place.client() as client:
                run = client.create_flow_run_from_deployment(deployment).id
            place.wait(lambda: state_of(place, run).name == "NeedsReview", "it is suspended")
            assert model.count == 3
            assert slots(place, deployment) == 0
        answer(place, run)
        assert state_of(place, run).name == "Resuming"
        with worker():
            place.wait(lambda: state_of(place, run).is_final(), "it has ended")
        state = state_of(place, run)
        assert (state.name, model.count) == ("CompletedWithGaps", 3)
        assert slots(place, deployment) == 0
    (choice,) = DecisionsFile(tmp_path / "decisions.yaml").load().fields
    assert choice.value == 1987
    assert [path.name for path in tmp_path.glob(".decisions.yaml.review-*")] == []


def registered(place: Place, name: str) -> UUID | None:
    """Return the deployment of a job, if there is one by now."""
    with place.client() as client:
        found = client.request("POST", "/deployments/filter", json={"deployments": {"name": {"any_": [name]}}}).json()
        return client.read_deployment_by_name(f"dispatch/{name}").id if found else None


def state_of(place: Place, run: UUID) -> State[Any]:
    """Return the state of a run."""
    with place.client() as client:
        state = client.read_flow_run(run).state
    assert state is not None
    return state


def slots(place: Place, deployment: UUID) -> int:
    """Return how many slots of a deployment's concurrency limit are taken."""
    with place.client() as client:
        limit = client.read_deployment(deployment).global_concurrency_limit
    assert limit is not None
    return limit.active_slots


def answer(place: Place, run: UUID) -> None:
    """Send the form of a run: the second value of its one field."""
    with temporary_settings({PREFECT_API_URL: place.env["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        keys = state_of(place, run).state_details.run_input_keyset
        assert keys is not None
        schema = json.loads(client.read_flow_run_input(run, keys["schema"]))
        ((field, told),) = schema["properties"].items()
        resume_flow_run(run, run_input={field: told["enum"][2]})
