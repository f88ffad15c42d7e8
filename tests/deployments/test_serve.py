"""A job that goes through a deployment comes out as the same job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect.flows import load_flow_from_entrypoint
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close, CloseCode
from websockets.http11 import Response

from prefect_dispatch.deployments.register import FIRST_S, OUTAGE_S, Outage, is_outage
from prefect_dispatch.deployments.specs import deployment
from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.job_file import Job
from prefect_dispatch.flows.prepare import prepare
from prefect_dispatch.flows.runtime.prepared_job import JobSpec

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.tasks.work_item import WorkItem

BRIEF: dict[str, Any] = {"name": "terms", "instructions": "Say it."}
SCHEMA = {"type": "object", "properties": {"é": {"$ref": "#/$defs/n"}, "b": {}}, "$defs": {"n": {"type": "number"}}}


@pytest.mark.slow
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
    expected = given.parameters(tmp_path)
    del expected["folder"]
    parameters = {name: parameters[name] for name in expected}
    assert parameters == expected
    if given.briefs[0].output != "json:JSONDecoder":  # which is no pydantic model, so there is nothing to prepare
        stored, asked = (_work(each, tmp_path) for each in (expected, parameters))
        assert [work.fingerprint for work in stored] == [work.fingerprint for work in asked]


def _work(parameters: dict[str, Any], folder: Path) -> list[WorkItem]:
    kept = {"briefs", "items", "executor", "integrator", "limits"}
    parts = {name: part for name, part in parameters.items() if name in kept}
    return prepare(JobSpec(**parts, folder=str(folder))).work


def test_a_deployment_finds_the_flow(tmp_path: Path) -> None:
    """The process of a run loads the flow by the name that the deployment has for it."""
    made = deployment(Job.model_validate({"briefs": [BRIEF], "items": ["a"]}), tmp_path)
    assert made.name == "terms"
    assert load_flow_from_entrypoint(str(made.entrypoint)) is dispatch


@pytest.mark.parametrize(
    ("status", "passes"), [(503, True), (500, True), (429, True), (404, False), (401, False)], ids=str
)
def test_an_outage_is_told_from_a_refusal(status: int, passes: bool) -> None:  # noqa: FBT001 -- a table
    """However deep in groups and causes the answer of the server is, and whatever was made of it."""
    response = httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1:9"))
    with pytest.raises(JobError) as told:  # noqa: PT012 -- one error made of another
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError:
            raise JobError("Prefect's API refuses it.") from None
    group = RuntimeError("of a task group")
    group.exceptions = (ValueError("no"), told.value)  # type: ignore[attr-defined]
    group.__cause__ = group  # a circle
    assert is_outage(told.value) is passes
    assert is_outage(group) is passes
    closed = InvalidStatus(Response(status, "", Headers()))  # of Prefect's events, which go by a websocket
    assert is_outage(closed) is passes
    assert is_outage(httpx.ConnectError("refused"))
    assert is_outage(ConnectionRefusedError())


@pytest.mark.parametrize(
    ("closed", "passes"),
    [
        pytest.param(None, True, id="cut-off"),
        pytest.param(Close(CloseCode.SERVICE_RESTART, ""), True, id="restarting"),
        pytest.param(Close(CloseCode.POLICY_VIOLATION, "wrong token"), False, id="refused"),
    ],
)
def test_events_that_are_cut_off_are_an_outage(closed: Close | None, passes: bool) -> None:  # noqa: FBT001 -- a table
    """Prefect says of each that the token may be wrong, and of what it arose only in the cause."""
    told = RuntimeError("Runner failed to start: event_emitter — Unable to authenticate to the event stream.")
    told.__cause__ = Exception("Unable to authenticate to the event stream.")
    told.__cause__.__cause__ = ConnectionClosedError(closed, None)
    assert is_outage(told) is passes


def test_an_outage_is_waited_out_for_an_hour() -> None:
    """From its own beginning: serving for a while in between makes it another one."""
    outage, refused = Outage(), httpx.ConnectError("refused")
    assert outage.next_delay_s(refused, 0, 100_000) == FIRST_S
    assert outage.next_delay_s(refused, 100_005, 100_005 + OUTAGE_S - 5) == FIRST_S
    for _ in range(5):
        outage.next_delay_s(refused, 104_000, 104_000)
    with pytest.raises(DispatchError, match=r"out of order for 61 min .*ConnectError: refused.*: see to the server"):
        outage.next_delay_s(refused, 107_200, 100_000 + OUTAGE_S - 5 + OUTAGE_S + 70)
