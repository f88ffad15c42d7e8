"""A worker whose platform sets a number of retries for every flow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.exceptions import PrefectHTTPStatusError

from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from tests.deployments.conftest import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

JOB = """
briefs: {{name: {name}, instructions: "Say how long it is."}}
items: {{glob: "{folder}/*.txt"}}
executor: {{model: openai/test, api_base: "{url}"}}
limits: {{retry_delay_s: 0, retries: 0, min_success: 1.0}}
"""
FORM = """
flow: analyze_files
files: "texts/*.txt"
instructions: Say how long it is.
model: openai/test
name: form
"""


def logged(place: Place, run: UUID) -> list[str]:
    """Return the messages in the log of a run, those of its task runs included, as the UI shows them."""
    only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    with place.client() as client:
        found = client.request("POST", "/logs/filter", json={"logs": only.model_dump(mode="json")}).json()
    return [each["message"] for each in found]


def states(place: Place, run: UUID) -> list[str]:
    """Return the types of the states that a run had since it began."""
    with place.client() as client:
        found = sorted(client.read_flow_run_states(run), key=lambda state: str(state.timestamp))
    types = [state.type.value for state in found]
    return types[types.index("RUNNING") :]


def test_runs_of_deployments_are_retried(server: Place, tmp_path: Path) -> None:
    """Failed, with its message and no traceback, after the second attempt; a refused job after the first.

    Retried by hand, the run goes on and completes.
    """
    good: list[str] = []

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        del n
        bad = "bad" in document(request) and not good
        return failure(400, "not this one") if bad else Behaviour(content=json.dumps("said"))

    for folder in ("texts", "gone"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a")
        (tmp_path / folder / "b.txt").write_text("bad")
    place = replace(server, folder=tmp_path, env={**server.env, "PREFECT_FLOWS_DEFAULT_RETRIES": "1"})
    with openai_server(behave) as model, place.worker("dispatch"):
        for name, folder in (("failing", "texts"), ("refused", "gone")):
            (tmp_path / f"{name}.yaml").write_text(JOB.format(name=name, folder=folder, url=model.url))
            place.run("prefect_dispatch", "deploy", str(tmp_path / f"{name}.yaml"))
        shutil.rmtree(tmp_path / "gone")  # a job that is good when it is deployed, and not when it runs
        for name in ("failing", "refused"):
            place.run("prefect", "deployment", "run", f"dispatch/{name}")
        with place.client() as client:
            failing, refused = (client.read_deployment_by_name(f"dispatch/{n}").id for n in ("failing", "refused"))
        (failed,), (wrong,) = place.ended(failing), place.ended(refused)
        # A form's own refusals: of parameters that the form doesn't show, and of a combination of them.
        (tmp_path / "form.yaml").write_text(FORM, encoding="utf-8")
        place.run("prefect_dispatch", "deploy", str(tmp_path / "form.yaml"))
        with place.client() as client:
            form = client.read_deployment_by_name("analyze-files/form").id
            with pytest.raises(PrefectHTTPStatusError, match=r"'limitt' is not one of \['files', 'instructions',"):
                client.create_flow_run_from_deployment(form, parameters={"limitt": 1})
            for wrongly in ({"limit": 0}, {"merge": "merge records"}):
                client.create_flow_run_from_deployment(form, parameters=wrongly)
        refusals = place.ended(form, 2)
        assert sorted(str(each.state and each.state.message).split(": ")[0] for each in refusals) == [
            "Limits > First files only",
            "Merging > Merge",
        ]
        assert [states(place, each.id) for each in refusals] == [["RUNNING", "FAILED"]] * 2
        assert failed.state is not None
        assert (failed.state.name, str(failed.state.message)[:24]) == ("Failed", "Failed: 1 of 2 answered;")
        assert states(place, failed.id) == ["RUNNING", "SCHEDULED", "RUNNING", "FAILED"]
        assert model.count == 3
        assert wrong.state is not None
        assert wrong.state.name == "Failed"
        assert "gone/*.txt" in str(wrong.state.message)
        assert states(place, wrong.id) == ["RUNNING", "FAILED"]
        for run in (failed, wrong, *refusals):
            of_run = [message for message in logged(place, run.id) if not message.startswith("Task run failed")]
            assert of_run
            assert not [message for message in of_run if "Traceback" in message]
        good.append("now")
        place.run("prefect", "flow-run", "retry", str(failed.id))
        (again,) = place.ended(failing, state="Completed")
        assert (again.id, model.count) == (failed.id, 4)
