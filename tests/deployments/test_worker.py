"""Deployed with one command, a job is run by a worker whose environment has only the wheel, on its schedule too."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect.client.schemas.schedules import IntervalSchedule

from prefect_dispatch.deployments.specs import describe_schedules, ready_flows
from tests.deployments.conftest import ROOT, Place
from tests.openai_server import Behaviour, document, openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from uuid import UUID

    from tests.openai_server import OpenAIServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UV = (sys.executable, "-m", "uv")
JOB = """
briefs:
  - name: {name}
    instructions: Say how long it is, for {name}.  # each project asks for itself
    output: "own:Length"
items: {{glob: "texts/*.txt"}}
executor: {{model: openai/test, api_base: "{url}"}}
limits: {{retry_delay_s: 0, retries: 0}}
"""
OWN = """
from pydantic import BaseModel


class Length(BaseModel):
    words: int
"""


@pytest.fixture(scope="module")
def alone(server: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same server, and an environment with the wheel and what that asks for, nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    for command in (
        ["build", "--quiet", "--wheel", "--out-dir", str(folder)],
        ["export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "-o", str(folder / "locked.txt")],
        ["venv", "--quiet", "--python", sys.executable, str(folder / "venv")],
    ):
        subprocess.run([*UV, *command], cwd=ROOT, check=True)  # noqa: S603 -- our own command
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    install = ["pip", "install", "--quiet", "--python", str(python), "-c", str(folder / "locked.txt"), str(wheel)]
    subprocess.run([*UV, *install], cwd=folder, check=True)  # noqa: S603 -- our own command
    env = {name: value for name, value in server.env.items() if name != "PYTHONPATH"}
    return replace(server, env=env, folder=folder, python=str(python))


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """A model that counts words; it takes its time over a text that asks for it."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        text = document(request)
        delay_s = 60 if "very slowly" in text else 20 if "slowly" in text else 0
        return Behaviour(content=json.dumps({"words": len(text.split())}), delay_s=delay_s)

    with openai_server(behave) as server:
        yield server


def project(folder: Path, name: str, model: OpenAIServer, **texts: str) -> Path:
    """Write a user's project; return its job file."""
    (folder / "texts").mkdir(parents=True)
    (folder / "own.py").write_text(OWN)
    for text, content in texts.items():
        (folder / "texts" / f"{text}.txt").write_text(content)
    job = folder / "job.yaml"
    job.write_text(JOB.format(name=name, url=model.url))
    return job


def test_the_wheel_alone_runs_a_deployed_job(alone: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """Deployed from one folder, run from another: the job's folder, its files and its own code are found."""
    job = project(tmp_path / "project", "lengths", model, one="a b", two="a b c", three="a")
    said = alone.run("prefect_dispatch", "deploy", str(job))
    assert "dispatch/lengths" in said
    assert "prefect worker start --pool dispatch" in said
    assert "prefect deployment run dispatch/lengths" in said
    with alone.client() as client:
        deployment = client.read_deployment_by_name("dispatch/lengths")
    with alone.worker("dispatch"):
        alone.run("prefect", "deployment", "run", "dispatch/lengths", "--param", "limit=2", "--watch")
        (run,) = alone.ended(deployment.id)
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Completed", "2 of 2 answered.")
    # The deployment's tag, and the one that `costs` looks for.
    assert set(run.tags) == {"prefect-dispatch", "prefect-dispatch-run"}
    assert model.count == 2
    assert "2 of 2 answered" in alone.artifacts("lengths-report")[-1]
    outcomes = alone.artifacts("lengths-outcomes")[-1]
    assert ("three.txt" in outcomes, "two.txt" in outcomes) == (True, False)


def test_a_schedule_pays_for_what_is_new(server: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """The second run asks nothing and says so; after one document changed, exactly that one is told of."""
    job = project(tmp_path / "project", "nightly", model, one="a b", two="a b c")
    place = replace(server, folder=tmp_path)
    place.run("prefect_dispatch", "deploy", str(job), "--cron", "0 6 * * *", "--timezone", "Europe/Berlin", "--active")
    with place.client() as client:
        deployment = client.read_deployment_by_name("dispatch/nightly")
        (schedule,) = deployment.schedules
        often = IntervalSchedule(interval=timedelta(seconds=15))  # what cron has is too slow for a test
        client.update_deployment_schedule(deployment.id, schedule.id, schedule=often)
    before = model.count
    with place.worker("dispatch"):
        place.ended(deployment.id, 2, "Completed")
        assert model.count == before + 2
        (tmp_path / "project" / "texts" / "one.txt").write_text("a b c d")
        place.wait(lambda: "changed 1" in str(place.artifacts("nightly-report")), "a run has seen the change")
        place.end_schedule(deployment.id)
    assert model.count == before + 3
    first, second, *later = place.artifacts("nightly-report")
    assert "Since the last run" not in first
    assert "nothing changed" in second
    (changed,) = (report for report in later if "nothing changed" not in report)
    assert "changed 1" in changed
    told = changed.partition("## Since the last run")[2].partition("\n## ")[0]
    assert ("one.txt" in told, "two.txt" in told) == (True, False)


def test_a_second_persons_run_is_queued(server: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """It waits while the first one is at work, then runs, and takes the answers from the store."""
    job = project(tmp_path / "project", "once", model, one="Go slowly.")
    place = replace(server, folder=tmp_path)
    place.run("prefect_dispatch", "deploy", str(job))
    before = model.count
    with place.client() as client:
        deployment = client.read_deployment_by_name("dispatch/once")
        first = client.create_flow_run_from_deployment(deployment.id)
    with place.worker("dispatch"):
        place.wait(lambda: model.count == before + 1, "the first run has asked")
        with place.client() as client:
            second = client.create_flow_run_from_deployment(deployment.id)
            place.wait(
                lambda: client.read_flow_run(second.id).state_name == "AwaitingConcurrencySlot", "the second one waits"
            )
        both = place.ended(deployment.id, 2, "Completed")
    assert {run.id for run in both} == {first.id, second.id}
    assert model.count == before + 1


def test_a_scheduled_run_gives_way_to_a_persons(server: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """Served, it is skipped where a person's run was at work when it was due, and its state names that run."""
    job = project(tmp_path / "project", "giving-way", model, one="Go very slowly.")
    place = replace(server, folder=tmp_path)
    before = model.count
    with place.running("prefect_dispatch", "serve", str(job), "--active"), place.client() as client:
        place.wait(lambda: "Your deployments are being served" in (tmp_path / "said").read_text(), "it serves")
        deployment = client.read_deployment_by_name("dispatch/giving-way")
        run = client.create_flow_run_from_deployment(deployment.id)
        place.wait(lambda: model.count == before + 1, "the person's run has asked")
        (schedule,) = deployment.schedules
        soon = IntervalSchedule(interval=timedelta(seconds=5))
        client.update_deployment_schedule(deployment.id, schedule.id, schedule=soon)
        skipped, *_ = place.ended(deployment.id, 1, "Skipped")
        client.pause_deployment(deployment.id)
        (completed,) = (each for each in place.ended(deployment.id, 1, "Completed") if not each.auto_scheduled)
    assert completed.id == run.id
    assert skipped.state is not None
    assert f"the run {run.name!r} of the same deployment has ended since." in str(skipped.state.message)
    assert model.count == before + 1


@pytest.mark.long
def test_of_late_runs_one_is_worked_on(server: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """After a time without a worker the first of them runs, and the others are skipped."""
    job = project(tmp_path / "project", "late", model, one="a b")
    place = replace(server, folder=tmp_path)
    place.run("prefect_dispatch", "deploy", str(job), "--active")
    with place.client() as client:
        deployment = client.read_deployment_by_name("dispatch/late")
        (schedule,) = deployment.schedules
        often = IntervalSchedule(interval=timedelta(seconds=15))
        client.update_deployment_schedule(deployment.id, schedule.id, schedule=often)

        def late() -> set[UUID]:
            now = datetime.now(timezone.utc)
            return {run.id for run in place.runs(deployment.id) if (run.expected_start_time or now) < now}

        place.wait(lambda: len(late()) >= 2, "two runs are late")
        client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        due = late()

        def ended() -> list[str]:
            found = [run for run in place.runs(deployment.id) if run.id in due and run.state is not None]
            return sorted(str(run.state_name) for run in found if run.state is not None and run.state.is_final())

        with place.worker("dispatch"):
            place.wait(lambda: len(ended()) == len(due), "all of them have ended")
    why = [run.state.message for run in place.runs(deployment.id) if run.state is not None]
    assert ended() == ["Completed", *["Skipped"] * (len(due) - 1)], (why, (tmp_path / "said").read_text())


def test_several_jobs_are_served_by_one_process(server: Place, model: OpenAIServer, tmp_path: Path) -> None:
    """Each has a deployment of its own, and runs without a pool."""
    jobs = [str(project(tmp_path / name, name, model, one=f"{name} has it")) for name in ("first", "second")]
    place = replace(server, folder=tmp_path)
    before = model.count
    with place.running("prefect_dispatch", "serve", *jobs), place.client() as client:
        place.wait(lambda: "Your deployments are being served" in (tmp_path / "said").read_text(), "it serves")
        assert (tmp_path / "said").read_text().count("Report pages are served at http://127.0.0.1:") == 1
        deployments = [client.read_deployment_by_name(f"dispatch/{name}") for name in ("first", "second")]
        for deployment in deployments:
            assert deployment.work_pool_name is None
            client.create_flow_run_from_deployment(deployment.id)
        for deployment in deployments:
            place.ended(deployment.id, 1, "Completed")
        links = [shown_page(place, name) for name in ("first", "second")]
    assert model.count == before + 2
    # A worker's runs have such links, too, and `reports` shows the pages of all, where `serve` did.
    place.run("prefect_dispatch", "deploy", jobs[0])
    with place.running("prefect_dispatch", "reports"), place.worker("dispatch"), place.client() as client:
        client.create_flow_run_from_deployment(deployments[0].id)
        place.ended(deployments[0].id, 2, "Completed")
        assert shown_page(place, "first") not in links
        assert all(httpx.get(link).is_success for link in links)


def shown_page(place: Place, name: str) -> str:
    """Return the link of a job's last report to its page, which is shown."""
    report = place.artifacts(f"{name}-report")[-1]
    (link,) = re.findall(r"\[Open the report page\]\((http://127\.0\.0\.1:\d+/[0-9a-f]{64}/report\.html)\)", report)
    page = httpx.get(link).raise_for_status()
    assert f"<title>{name}" in page.text
    return str(link)


class Gateway:
    """What stands between a process and Prefect's API, whole bytes at a time, and can be away for a while."""

    def __init__(self, api: str) -> None:
        """Be there, at an address of its own."""
        self._there = (str(httpx.URL(api).host), httpx.URL(api).port)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._listen()

    def leave(self) -> None:
        """Refuse whoever comes, and cut off whoever is there."""
        for each in (self._listener, *self._open):
            with suppress(OSError):  # it has ended by itself
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def come_back(self) -> None:
        """Be there again."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._there)
                self._open |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):  # cut off
            while data := here.recv(65536):
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)


@pytest.fixture
def gateway(server: Place) -> Generator[Gateway]:
    """A gateway to the server."""
    made = Gateway(server.env["PREFECT_API_URL"])
    yield made
    made.leave()


@pytest.mark.long
def test_serving_outlasts_an_outage(server: Place, gateway: Gateway, model: OpenAIServer, tmp_path: Path) -> None:
    """It says so, tries again, and runs what is asked for then; schedules are as somebody has set them meanwhile."""
    job = project(tmp_path / "project", "patient", model, one="a b")
    # A client that had a connection tries again by itself, a minute for each of three polls, before Prefect gives up.
    quick = {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    place = replace(server, folder=tmp_path, env={**server.env, **quick, "PREFECT_API_URL": gateway.url})
    served, out_of_order = "Your deployments are being served", "Prefect's API is out of order ("

    def count(text: str) -> int:
        return (tmp_path / "said").read_text().count(text)

    with server.client() as client, place.running("prefect_dispatch", "serve", str(job)) as process:
        place.wait(lambda: count(served) == 1, "it serves")
        troubles = count(out_of_order)  # a busy server may have refused it before
        deployment = client.read_deployment_by_name("dispatch/patient")
        (schedule,) = deployment.schedules
        client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        gateway.leave()
        place.wait(lambda: count(out_of_order) > troubles, "it tells of the outage")
        gateway.come_back()
        place.wait(lambda: count(served) == 2, "it serves again")
        run = client.create_flow_run_from_deployment(deployment.id)
        assert [each.id for each in place.ended(deployment.id, 1, "Completed")] == [run.id]
        again = client.read_deployment(deployment.id)
        assert ([each.active for each in again.schedules], again.paused) == ([True], False)
        assert process.poll() is None


@pytest.mark.long
def test_prefects_own_command_registers_the_same(server: Place, tmp_path: Path) -> None:
    """`prefect deploy` with the file that comes in the package, and ours, differ in the folder alone."""
    place = replace(server, folder=tmp_path)
    place.run("prefect_dispatch", "deploy")
    ours = ready(place)
    with place.client() as client:
        for each in ours.values():
            client.delete_deployment(each["id"])
    place.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "deployments" / "prefect.yaml"))
    theirs = ready(place)
    assert ours.keys() == theirs.keys() == ready_flows().keys()
    for key, each in ours.items():
        assert each.pop("parameters") == ({} if key == "work_shard" else {"folder": str(tmp_path)})
        assert theirs[key].pop("parameters") == {}
        assert (
            "folder" in each["parameter_openapi_schema"].pop("propertyNames")["enum"]
        )  # Prefect's file has no place for it
        assert {**each, "id": ""} == {**theirs[key], "id": ""}


def ready(place: Place) -> dict[str, dict[str, Any]]:
    """Return what Prefect has of the ready flows' deployments."""
    kept = {"id", "name", "description", "tags", "entrypoint", "path", "pull_steps", "parameters", "work_pool_name"}
    kept |= {"enforce_parameter_schema", "parameter_openapi_schema", "concurrency_options", "paused"}
    found: dict[str, dict[str, Any]] = {}
    with place.client() as client:
        for key, entry in ready_flows().items():
            made = client.read_deployment_by_name(f"{entry.flow.name}/{entry.name}")
            limit = made.global_concurrency_limit
            found[key] = made.model_dump(mode="json", include=kept) | {
                "limit": limit and limit.limit,
                "due": describe_schedules(made.schedules),
                "pull_steps": made.pull_steps or [],  # none in either way, as Prefect has it after an update
            }
    return found
