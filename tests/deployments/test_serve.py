"""A job that goes through a deployment comes out as the same job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prefect.flows import load_flow_from_entrypoint

from prefect_dispatch.deployments.building import deployment
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.job import Job
from prefect_dispatch.flows.prepare import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.tasks.work import Work

BRIEF: dict[str, Any] = {"name": "terms", "instructions": "Say it."}
SCHEMA = {"type": "object", "properties": {"é": {"$ref": "#/$defs/n"}, "b": {}}, "$defs": {"n": {"type": "number"}}}


@pytest.mark.parametrize(
    "job",
    [
        pytest.param({"briefs": [BRIEF], "items": ["a", {"key": "b", "value": {"n": [1.0, None]}}]}, id="plain"),
        pytest.param({"briefs": [{**BRIEF, "output": SCHEMA}], "items": ["a"]}, id="schema"),
        pytest.param({"briefs": [{**BRIEF, "output": "json:JSONDecoder"}], "items": ["a"]}, id="reference"),
        pytest.param(
            {"briefs": [{**BRIEF, "checks": [{"kind": "max_words", "words": 3}]}], "items": ["a"]}, id="checks"
        ),
        pytest.param(
            {
                "briefs": [{**BRIEF, "priority": 2, "constraints": ["Be {key}."]}, {**BRIEF, "name": "other"}],
                "items": [{"key": "k", "value": {"key": "brief"}, "priority": 1}],
                "executor": {"model": "openai/x", "params": {"seed": 1, "top_p": 0.5}, "usd_per_million": [1, 2.5]},
                "limits": {"concurrency": 3, "timeout_s": 5},
            },
            id="everything",
        ),
        pytest.param(
            {
                "briefs": [{**BRIEF, "output": SCHEMA}],
                "items": ["a"],
                "executor": {"model": "openai/x"},
                "integrator": {"kind": "merge_records", "identity": ["b"], "rules": {"é": "max"}, "default": "union"},
            },
            id="rules",
        ),
    ],
)
def test_a_job_from_the_form_is_the_job_of_the_file(job: dict[str, Any], tmp_path: Path) -> None:
    """Its parameters survive JSON, so a run from the UI asks nothing that a run from the terminal has stored."""
    given = Job.model_validate({"executor": {"model": "openai/x"}, **job})
    sent = json.loads(json.dumps(deployment(given, tmp_path).parameters))
    back = dispatch.validate_parameters(sent)
    assert back.pop("folder") == str(tmp_path)
    parameters: dict[str, Any] = {"integrator": None, **back}
    parameters = {name: parameters[name] for name in given.parameters()}
    assert parameters == given.parameters()
    if given.briefs[0].output != "json:JSONDecoder":  # which is no pydantic model, so there is nothing to prepare
        stored, asked = (_work(each, tmp_path) for each in (given.parameters(), parameters))
        assert [work.fingerprint for work in stored] == [work.fingerprint for work in asked]


def _work(parameters: dict[str, Any], folder: Path) -> list[Work]:
    parts = {name: part for name, part in parameters.items() if name != "review"}
    return prepare(**parts, folder=folder).work


def test_a_deployment_finds_the_flow(tmp_path: Path) -> None:
    """The process of a run loads the flow by the name that the deployment has for it."""
    made = deployment(Job.model_validate({"briefs": [BRIEF], "items": ["a"]}), tmp_path)
    assert made.name == "terms"
    assert load_flow_from_entrypoint(str(made.entrypoint)) is dispatch
