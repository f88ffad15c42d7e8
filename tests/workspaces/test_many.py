"""Many workspaces at once, and what is left when whoever had them is killed: nothing, and nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from prefect_dispatch.processes.state_folder import reap
from prefect_dispatch.workspaces.workspace import Workspace, open_workspace
from tests.waiting import wait_until
from tests.workspaces.inside import leases, sh
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.outcome import Change

AT_ONCE = 16
ROUNDS = 20

OPENS = """
import asyncio, sys
from pathlib import Path
from prefect_dispatch.models.brief import Command
from prefect_dispatch.processes.process_tree import get_watchdog
from prefect_dispatch.workspaces.workspace import Workspace, open_workspace

setup = Command(run="(trap '' TERM; setsid sleep 1000) & mkfifo p; sleep 0.05")
workspace = Workspace(repo=sys.argv[1], ports=3, setup=setup)

async def again_and_again():
    while True:
        async with open_workspace(workspace) as room:
            (room.path / "README.md").write_text("changed")
            await room.capture_change(["**"])

async def together():
    await asyncio.gather(*(again_and_again() for _ in range(4)))

get_watchdog()
print("ready", flush=True)
asyncio.run(together())
"""
"""A process that has four workspaces at any time, each with a program that doesn't want to end."""

JOB = """
briefs:
  - name: work
    instructions: Work.
    output: text
    writes: ["out/{key}"]
    command:
      run: |
        echo "$ITEM_KEY" >> "$TEST_FOLDER/ran"
        case "$ITEM_KEY" in
          k[12]) ;;
          *) test -e "$TEST_FOLDER/go" || { (trap '' TERM; setsid sleep 1000) & sleep 1000; } ;;
        esac
        mkdir out && echo "$ITEM_KEY" > "out/$ITEM_KEY"
items: [k1, k2, k3, k4, k5, k6]
executor: {kind: shell, pass_env: [TEST_FOLDER], workspace: {repo: "REPO", ports: 2, setup: {run: "echo x > set-up"}}}
limits: {concurrency: 3, retries: 0}
"""


def of(folder: Path) -> list[str]:
    """Return the processes that were started with the folder in their arguments or their environment."""
    found: list[str] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(f"{process.pid} {process.cmdline()}")
    return found


@pytest.mark.long
@pytest.mark.timeout(300)
def test_sixteen_at_once_twenty_times(repository: Repository, state: Path) -> None:
    """Each has all that it should have and gives back its own change, and nothing is left of any."""
    workspace = Workspace(ports=2).resolve(repository.path)
    before = picture(repository.path)

    async def one(number: int) -> tuple[Change, str]:
        async with open_workspace(workspace) as room:
            assert sh(room, "git rev-parse --show-toplevel HEAD; git status --porcelain").split() == [
                str(room.path),
                workspace.base,
            ]
            sh(room, f"echo {number} > src/{number}.py; git checkout -qb topic; git add -A; git commit -qm {number}")
            return await room.capture_change([f"src/{number}.py"]), f"{room.path} {room.env['PORTS']}"

    async def together() -> list[tuple[Change, str]]:
        return await asyncio.gather(*map(one, range(AT_ONCE)))

    trees: set[tuple[str, ...]] = set()
    for _ in range(ROUNDS):
        found = asyncio.run(together())
        assert [change.files[0].path for change, _ in found] == [f"src/{number}.py" for number in range(AT_ONCE)]
        assert len({place for _, place in found}) == AT_ONCE
        trees.add(tuple(change.tree for change, _ in found))
    assert len(trees) == 1
    assert leases(state) == []
    assert picture(repository.path) == before


@pytest.mark.slow
def test_killed_at_any_moment(repository: Repository, state: Path) -> None:
    """While it is made, set up, worked in, collected or cleared away: the next to start finds it, and only that."""
    before, chance = picture(repository.path), random.Random(1)
    script = [sys.executable, "-c", OPENS, str(repository.path)]
    for _ in range(8):
        with subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True) as process:  # noqa: S603 -- our own
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.random() * 1.5)
            process.kill()
        wait_until(lambda: not of(state), "its programs are gone")
        reap()
        assert leases(state) == []
    assert picture(repository.path) == before


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_killed_and_goes_on(repository: Repository, state: Path, tmp_path: Path) -> None:
    """After kill -9 the same command goes on: no process, workspace or lock is left, nothing is done twice."""
    (tmp_path / "job.yaml").write_text(JOB.replace('"REPO"', json.dumps(str(repository.path))))
    before = picture(repository.path)
    job, out = str(tmp_path / "job.yaml"), tmp_path / "out"
    command = [sys.executable, "-m", "prefect_dispatch", "run", job, "--out", str(out)]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "TEST_FOLDER": str(tmp_path),
    }

    def ran() -> list[str]:
        file = tmp_path / "ran"
        return sorted(file.read_text().split()) if file.exists() else []

    def stored() -> int:
        return len([*(tmp_path / "home" / "storage").glob(f"prefect-dispatch-{'?' * 64}")])

    with subprocess.Popen(command, env=environment, start_new_session=True) as first:  # noqa: S603 -- our own command
        wait_until(lambda: len(ran()) == 5 and stored() == 2, "two are done, three under way")
        assert len(leases(state)) == 6  # a folder and a lock for each
        first.send_signal(signal.SIGKILL)
    wait_until(lambda: not of(tmp_path), "its programs are gone")
    assert picture(repository.path) == before
    under_way = ran()[2:]
    (tmp_path / "go").touch()

    second = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=90)  # noqa: S603 -- the same
    assert second.returncode == 0, second.stderr.decode()
    assert b"asked 4, from the store 2" in second.stdout
    assert ran() == sorted(["k1", "k2", "k3", "k4", "k5", "k6", *under_way])
    assert leases(state) == []
    assert of(tmp_path) == []
    assert picture(repository.path) == before
    changes = [json.loads(line)["change"] for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert sorted(change["files"][0]["path"] for change in changes) == [f"out/k{number}" for number in range(1, 7)]
