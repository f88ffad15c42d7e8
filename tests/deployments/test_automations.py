"""Automations that were tried: a dead worker's run is ended, and somebody is told of gaps, a budget and changes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from prefect_dispatch.cli.commands import main
from prefect_dispatch.deployments.automations import (
    NAME,
    NEVER_BEGAN,
    apply,
    silent_run_automation,
    unstarted_run_automation,
)
from prefect_dispatch.flows.runtime.batch_phase import STATE
from tests.deployments.conftest import ROOT, Place
from tests.openai_server import Behaviour, document, openai_server

if TYPE_CHECKING:
    from uuid import UUID

JOB: dict[str, Any] = {
    "briefs": [{"name": "watched", "instructions": "Say it."}],
    "items": {"glob": "texts/*.txt"},
    "limits": {"retry_delay_s": 0, "retries": 0, "concurrency": 1},
}


def project(folder: Path, url: str, **texts: str) -> Path:
    """Write a user's project; return its job file."""
    (folder / "texts").mkdir(parents=True)
    for name, text in texts.items():
        (folder / "texts" / f"{name}.txt").write_text(text)
    job = folder / "job.yaml"
    job.write_text(json.dumps({**JOB, "executor": {"model": "openai/test", "api_base": url}}))
    return job


def slowly(request: dict[str, Any], n: int) -> Behaviour:
    """Answer at once, but for a text that asks for time."""
    return Behaviour(content="fine", hang="slowly" in document(request))


def processes(run: UUID) -> list[int]:
    """Return the processes of a flow run."""
    told = f"PREFECT__FLOW_RUN_ID={run}".encode()
    return [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/environ") if told in _read(file).split(b"\0")]


def _read(file: Path) -> bytes:
    """Return a file of a process that may be gone by now."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_worker_died_is_marked_as_crashed(server: Place, tmp_path: Path) -> None:
    """Worker and run are killed; after three heartbeats that don't come the run has ended, and the next one runs."""
    place = replace(server, folder=tmp_path)
    said = place.run("prefect_dispatch", "automations", "--apply")
    assert f"Automation {NAME!r}: created. Marks a run as Crashed that has sent no heartbeat for 540 s" in said
    # Another test of this server may have applied it before.
    assert re.search(rf"{NEVER_BEGAN!r}: (created|up to date)\. Marks a run as Crashed that a worker has taken", said)
    sooner = silent_run_automation()
    sooner["trigger"]["within"] = 90  # three heartbeats of this server's runs; 540 s are too long for a test
    with temporary_settings({PREFECT_API_URL: place.env["PREFECT_API_URL"]}):
        apply(sooner)
    with openai_server(slowly) as model:
        place.run("prefect_dispatch", "deploy", str(project(tmp_path / "project", model.url, one="Go slowly.")))
        with place.client() as client:
            deployment = client.read_deployment_by_name("dispatch/watched").id
            run = client.create_flow_run_from_deployment(deployment).id
        with place.worker("dispatch") as worker:
            place.wait(lambda: model.count == 1, "it has asked")
            os.killpg(worker.pid, signal.SIGKILL)
            for process in processes(run):
                os.kill(process, signal.SIGKILL)
        assert processes(run) == []
        with place.client() as client:
            state = client.read_flow_run(run).state
        assert state is not None
        assert state.is_running()
        (crashed,) = place.ended(deployment)
        state = crashed.state
        assert state is not None
        assert (state.name, str(state.message)[:27]) == ("Crashed", "No heartbeat for 540 s: its")
        (tmp_path / "project" / "texts" / "one.txt").write_text("Go.")
        with place.client() as client:
            client.create_flow_run_from_deployment(deployment)
        with place.worker("dispatch"):
            place.ended(deployment, 1, "Completed")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_process_died_before_it_began_is_marked_as_crashed(server: Place, tmp_path: Path) -> None:
    """Worker and process are killed while it starts; a run that waited for its slot is left alone, and runs."""
    place = replace(server, folder=tmp_path)
    with temporary_settings({PREFECT_API_URL: place.env["PREFECT_API_URL"]}):
        apply(unstarted_run_automation(60))
    with openai_server(slowly) as model:
        place.run(
            "prefect_dispatch", "deploy", str(project(tmp_path / "project", model.url, one="Go.")), "--name", "dies"
        )
        with place.client() as client:
            deployment = client.read_deployment_by_name("dispatch/dies").id
            run = client.create_flow_run_from_deployment(deployment).id

        def state(which: UUID) -> str | None:
            with place.client() as client:
                return client.read_flow_run(which).state_name

        with place.worker("dispatch") as worker:
            place.wait(lambda: state(run) in {"Pending", "Submitting"}, "a worker has taken it")
            os.killpg(worker.pid, signal.SIGKILL)
            for process in processes(run):
                os.kill(process, signal.SIGKILL)
        assert processes(run) == []
        assert state(run) in {"Pending", "Submitting"}
        with place.client() as client:
            queued = client.create_flow_run_from_deployment(deployment).id
        with place.worker("dispatch"):
            place.wait(lambda: state(queued) == "AwaitingConcurrencySlot", "the other run waits for the slot")
            place.wait(lambda: state(run) == "Crashed", "the run is marked as crashed")
            place.wait(lambda: state(queued) == "Completed", "the run that waited has the slot")
    with place.client() as client:
        crashed = client.read_flow_run(run).state
    assert crashed is not None
    assert str(crashed.message).startswith("A worker took this run, and its process has not begun within 60 s.")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_somebody_is_told_of_gaps_of_a_budget_and_of_changes(server: Place, tmp_path: Path) -> None:
    """The automations of the examples, as Prefect's own command takes them, with a block that calls a local server."""
    heard: list[dict[str, Any]] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.Response()

    def routes(app: web.Application) -> None:
        app.router.add_post("/heard", hear)

    place = replace(server, folder=tmp_path)
    with openai_server(slowly, routes=routes) as model:
        url = model.url.replace("/v1", "/heard")
        block = CustomWebhookNotificationBlock(
            name="local",
            url=url,
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
            headers=None,
            cookies=None,
        )
        with temporary_settings({PREFECT_API_URL: place.env["PREFECT_API_URL"]}):
            saved: Any = block.save("local")
        files = [ROOT / "examples" / "automations" / f"{name}.yaml" for name in ("gaps", "budget", "changed")]
        automations = [yaml.safe_load(file.read_text()) for file in files]
        for automation in automations:
            automation["actions"][0]["block_document_id"] = str(saved)
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(automations))
        place.run("prefect", "automation", "create", "--from-file", "all.yaml")
        time.sleep(3)  # for the server to take them in, as it says nothing of that
        job = str(project(tmp_path / "project", model.url, one="a", two="b"))
        place.run("prefect_dispatch", "run", job, "--set", "limits.budget_requests=1", code=3)
        place.wait(lambda: len(heard) == 2, "the gap and the budget are told")
        place.run("prefect_dispatch", "run", job)
        place.wait(lambda: len(heard) == 3, "the change is told")
    told = {each["subject"]: each["body"] for each in heard}
    assert set(told) == {
        "1 of 2 without an answer",
        "Budget reached: 1 not asked",
        "Since the last run: gaps closed 1",
    }
    assert "watched/texts/two.txt (budget)" in told["1 of 2 without an answer"]
    assert "Spent: 1 requests, 15 tokens" in told["Budget reached: 1 not asked"]
    assert "gaps closed: watched/texts/two.txt" in told["Since the last run: gaps closed 1"]
    assert all("/runs/flow-run/" in body for body in told.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_automation_is_brought_up_to_date_by_its_name(server: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Again it makes no second one; that it is off, and what others have added to it, stays."""
    with server.client() as client:
        for left in client.read_automations_by_name(NAME):
            client.delete_automation(left.id)
        assert main(["automations", "--apply"]) == 0
        assert f"{NAME!r}: created" in capsys.readouterr().out
        (made,) = client.read_automations_by_name(NAME)
        more = {"name": NAME, "trigger": made.trigger, "actions": [*made.actions, DoNothing()]}
        client.update_automation(made.id, AutomationCore.model_validate(more))
        client.pause_automation(made.id)
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 600}):
            assert main(["automations", "--apply"]) == 0
        told = capsys.readouterr().out
        assert "up to date, and disabled. Marks a run as Crashed that has sent no heartbeat for 1800 s" in told
        (now,) = client.read_automations_by_name(NAME)
    assert (now.id, now.enabled) == (made.id, False)
    assert [action.type for action in now.actions] == ["change-flow-run-state", "do-nothing"]


def test_it_is_shown_as_prefect_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that has given its process back, to wait for a batch, is not dead; nor is one that ended with gaps."""
    assert main(["automations", "--start-timeout", "1200"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == [silent_run_automation(), unstarted_run_automation(1200)]
    expected = silent_run_automation()["trigger"]["expect"]
    assert {f"prefect.flow-run.{name}" for name in (STATE, "Suspended", "CompletedWithGaps", "heartbeat")} <= set(
        expected
    )


@pytest.mark.parametrize("every_s", [30, 60, 180])
def test_no_setting_of_the_command_makes_it_hasty(every_s: int) -> None:
    """A worker may send heartbeats more rarely than the process that applies it would: 540 s are waited in any case."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: every_s}):
        assert silent_run_automation()["trigger"]["within"] == 540


@pytest.mark.parametrize("text", ["29", "-1", "soon"])
def test_a_start_timeout_is_a_number_of_seconds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not one that would end healthy runs."""
    with pytest.raises(SystemExit):
        main(["automations", "--start-timeout", text])
    assert f"{text!r} is not a whole number of 30 or more" in capsys.readouterr().err


def test_without_heartbeats_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """It would end every run."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        assert main(["automations"]) == 2
    assert "unset PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in capsys.readouterr().err
