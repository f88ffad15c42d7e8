"""Modules that contradict each other all the same, and a run that is killed while agents are at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH

from prefect_dispatch import Brief, Item, Limits, MergeBranches, Report, dispatch
from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.tasks.get_or_compute import SUFFIX
from prefect_dispatch.tasks.result_store import PREFIX
from tests.flows.builders import Site, module, seen
from tests.integrators.repos import files_at
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("store")]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A repository, and an agent to work in it."""
    return Site(tmp_path)


def contradicting(site: Site, rule: str) -> Report:
    """Have two agents change one line, and one of them another file; return the report."""
    briefs = [
        Brief(name="first", instructions="WRITE app.txt one|2|3", writes=("app.txt",)),
        Brief(
            name="second",
            instructions="WRITE app.txt two|2|3\nWRITE second.txt 2",
            writes=("app.txt", "second.txt"),
        ),
    ]
    repo = {"repo": str(site.git.repo)}
    executor = CodingAgent.model_validate({"agent": site.agent, "model": "literal", "workspace": repo})
    integrator = MergeBranches.model_validate({"workspace": repo, "on_conflict": rule, "branch": "agents/merged"})
    flow: Any = dispatch
    limits = Limits(on_dependence="serialize", timeout_s=60)
    try:
        report: Report = flow(briefs, [Item(key="repo", value="")], executor, integrator, limits)
    except DispatchFailed as failed:
        return failed.report
    return report


@pytest.mark.parametrize(
    ("rule", "status", "app", "second"),
    [
        pytest.param("priority", "complete", b"one\n2\n3\n", True, id="priority"),
        pytest.param("skip", "gaps", b"one\n2\n3\n", False, id="skip"),
        pytest.param("fail", "failed", b"one\n2\n3\n", False, id="fail"),
        pytest.param("agent", "complete", b"one\ntwo\n2\n3\n", True, id="agent"),
    ],
)
def test_what_agents_contradict_each_other_on(site: Site, rule: str, status: str, app: bytes, second: bool) -> None:  # noqa: FBT001 -- a column
    """The tree is what the rule says, the ledger says so, and the checkout is as it was."""
    (site.git.repo / "app.txt").write_text("Dirty.\n", encoding="utf-8")
    before = seen(site.git, but="agents/merged")
    report = contradicting(site, rule)
    assert report.status == status
    value: Any = report.value
    files = files_at(site.git, value["commit"])
    assert (files["app.txt"], "second.txt" in files) == (app, second)
    [row] = [row for table in report.tables if table.name == "conflicts" for row in table.rows]
    assert (row["path"], row["kind"], row["rule"]) == ("app.txt", "lines", rule)
    assert seen(site.git, but="agents/merged") == before
    made = site.git.run("rev-parse", "--verify", "--quiet", "agents/merged")[0] == 0
    assert made == (status != "failed")
    asked = len(site.asked)
    contradicting(site, rule)
    assert len(site.asked) == asked == (3 if rule == "agent" else 2)


def environment() -> dict[str, str]:
    """Return what a process needs to run in the same place."""
    return {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_LOCAL_STORAGE_PATH": str(PREFECT_LOCAL_STORAGE_PATH.value()),
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }


def command(site: Site, modules: Sequence[dict[str, Any]]) -> list[str]:
    """Return the command that builds some modules."""
    job = {
        "flow": "build_modules",
        "repo": "repo",
        "agent": site.agent,
        "modules": [*modules],
        "branch": "agents/merged",
    }
    file = site.folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, width=1000), encoding="utf-8")
    return [sys.executable, "-m", "prefect_dispatch", "run", str(file), "--out", str(site.folder / "report")]


def agents(site: Site) -> list[str]:
    """Return the processes that are agents of a site."""
    found: list[str] = []
    for each in Path("/proc").iterdir():
        try:
            said = (each / "cmdline").read_bytes() if each.name.isdecimal() else b""
        except OSError:
            continue
        found += [each.name] if str(site.folder / "agent.py").encode() in said else []
    return found


def test_killed_while_agents_are_at_work(site: Site, store: Path) -> None:
    """No agent outlives the run; the same command goes on, pays for nothing twice, and leaves no workspace."""
    gate = site.folder / "gate"
    modules = [module("a"), module("b"), module("slow", f"WAIT {gate}", "WRITE slow.txt s")]
    before = seen(site.git, but="agents/merged")
    told = command(site, modules)
    with subprocess.Popen(told, env=environment(), start_new_session=True) as run:  # noqa: S603 -- our own command

        def two_are_stored() -> bool:
            assert run.poll() is None
            answers = [path for path in store.glob(f"{PREFIX}*") if path.suffix != SUFFIX]
            return len(answers) == 2 and f"WAIT {gate}" in site.asked

        wait_until(two_are_stored, "two of three modules are stored")
        assert agents(site)
        os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not agents(site), "no agent is left")
    gate.touch()
    done = subprocess.run(told, env=environment(), check=False, capture_output=True, text=True)  # noqa: S603 -- the same
    assert done.returncode == 0, done.stderr
    report = json.loads((site.folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert (report["usage"]["cached"], report["usage"]["asked"]) == (2, 1)
    assert site.asked == [f"WAIT {gate}", f"WAIT {gate}", "WRITE a.txt a", "WRITE b.txt b"]
    assert {"a.txt", "b.txt", "slow.txt"} <= files_at(site.git, "agents/merged").keys()
    assert seen(site.git, but="agents/merged") == before
    rooms = Path(os.environ["PREFECT_DISPATCH_STATE"])
    assert [path for path in rooms.rglob("slow.txt") if path.is_file()] == []
