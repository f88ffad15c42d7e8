"""Somebody cancels a run in the UI in the middle of eight programs: all that they started is gone, the rest is told."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.states import Cancelling

from tests.processes.programs import Crowd

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tests.deployments.conftest import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMISED_S = 10.0
"""Seconds in which all is to be gone: what a user who cancels counts on, so that it is a promise and not a pace."""
WORK = """
told=$(cat)
case "$ITEM_VALUE$told" in *quick*) echo done; exit;; esac
setsid sh -c "trap '' TERM; while :; do sleep 1; done; : {word}" &
(setsid sh -c "sleep 1000; : {word}" &)
env -i PATH="$PATH" sh -c "sleep 1000; : {word}" &
exec sh -c "trap '' INT; sleep 1000; : {word}"
"""
SHELL = """
    command: {run: sh work.sh}
executor: {kind: shell}
"""
AGENT = """
executor:
  kind: coding
  agent: {name: sleeper, argv: [sh, work.sh]}
  model: none
"""
JOB = """
briefs:
  - name: NAME
    instructions: Do what is said.
EXECUTOR
items: [quick-1, quick-2, s1, s2, s3, s4, s5, s6, s7, s8]
limits: {concurrency: 8, retries: 0, timeout_s: 600, grace_s: 600}
"""
EACH = 4
"""Processes that a program is known by."""


def project(folder: Path, name: str, executor: str, crowd: Crowd) -> Path:
    """Write a job, in a repository; return its file."""
    folder.mkdir()
    (folder / "work.sh").write_text(WORK.format(word=crowd.word))
    (folder / "job.yaml").write_text(JOB.replace("NAME", name).replace("EXECUTOR", executor.strip("\n")))
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "One"]):
        subprocess.run(["git", *who, *words], cwd=folder, check=True)  # noqa: S603, S607 -- git
    return folder / "job.yaml"


def of_ours(leases: Path) -> list[str]:
    """Return the processes that have a folder of a run's in their environment, whoever started them."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if str(leases).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def took(true: Callable[[], bool], place: Place, what: str) -> float:
    """Wait for something; return how many seconds that took."""
    began = time.monotonic()
    place.wait(true, what)
    return time.monotonic() - began


def told(place: Place, run: UUID) -> str:
    """Return the log of a run."""
    with place.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), limit=200)
    return "\n".join(log.message for log in logs)


@pytest.mark.parametrize(
    ("kind", "executor"), [pytest.param("shell", SHELL, id="shell"), pytest.param("coding", AGENT, id="agents")]
)
@pytest.mark.parametrize("by", ["worker", pytest.param("served", marks=pytest.mark.long)])
def test_cancelled_in_the_ui(
    kind: str, executor: str, by: str, server: Place, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Eight programs with children of every sort: none is left after ten seconds, and what was done is kept."""
    crowd, name = Crowd(), f"cancel-{kind}-{by}"
    job = project(tmp_path / "project", name, executor, crowd)
    state = tmp_path / "state"
    place = replace(server, folder=tmp_path, env={**server.env, "PREFECT_DISPATCH_STATE": str(state)})
    if by == "worker":
        place.run("prefect_dispatch", "deploy", str(job))
        command: tuple[str, ...] = ("prefect", "worker", "start", "--pool", "dispatch")
    else:
        command = ("prefect_dispatch", "serve", str(job))
    with place.running(*command) as process, place.client() as client:
        if by == "served":
            said = tmp_path / "said"
            place.wait(lambda: "Your deployments are being served" in said.read_text(), "it serves")
        deployment = client.read_deployment_by_name(f"dispatch/{name}")
        run = client.create_flow_run_from_deployment(deployment.id)
        place.wait(lambda: len(crowd.alive) == 8 * EACH, "eight are under way")
        client.set_flow_run_state(run.id, Cancelling())
        seconds = took(lambda: not crowd.alive, place, "all are gone")
        record_property("seconds", seconds)
        place.wait(lambda: not of_ours(state / "leases"), "nothing of a run's is there")
        (ended,) = place.ended(deployment.id, 1)
        assert ended.state is not None
        assert ended.state.name == "Cancelled"
        place.wait(
            lambda: "Cancelled: 2 of 10 answered. Answers received so far are stored" in told(place, run.id),
            "it is told",
        )
        leases = state / "leases"
        place.wait(lambda: not any(path.is_dir() for path in leases.glob("*")), "no folder of it is left")
        assert process.poll() is None
    assert seconds < PROMISED_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_in_the_terminal_is_ended(number: int, server: Place, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM and `kill -9`: all is gone; the same command goes on where it was."""
    crowd = Crowd()
    job = project(tmp_path / "project", "terminal", SHELL, crowd)
    state = tmp_path / "state"
    place = replace(server, folder=tmp_path, env={**server.env, "PREFECT_DISPATCH_STATE": str(state)})
    with place.running("prefect_dispatch", "run", str(job)) as process:
        place.wait(lambda: len(crowd.alive) == 8 * EACH, "eight are under way")
        os.kill(process.pid, number)
        place.wait(lambda: not crowd.alive, "all are gone")
        place.wait(lambda: process.poll() is not None, "it has ended")
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    (job.parent / "work.sh").write_text("cat > /dev/null; echo $ITEM_VALUE; exit 0\n")
    said = place.run("prefect_dispatch", "run", str(job))
    assert "10 of 10 answered" in said
    assert not [path for path in (state / "leases").glob("*") if path.is_dir()]
