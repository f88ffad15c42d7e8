"""Eight modules of one project, built at once by real agents, merged, and tested as a whole."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, cast

import pytest
from pydantic import SecretStr

from prefect_dispatch import LLMCredentials, build_modules
from tests.executors.coding.agent_server import agent_server
from tests.executors.coding.calculator import ACCEPT, MODULES, begun, building, modules
from tests.executors.coding.fake_agents import KEY
from tests.executors.coding.real_agents import REAL, below, program
from tests.workspaces.inside import leases

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report
    from prefect_dispatch.executors.coding.coding_agent import AgentName

pytestmark = [pytest.mark.agents, pytest.mark.timeout(600), pytest.mark.usefixtures("store")]


@pytest.mark.parametrize("name", list(REAL))
def test_a_provider_of_ones_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each agent is told the address in its own way; its commits say who worked, with which model, and for what."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{program(name).parent}{os.pathsep}{os.environ['PATH']}")
    repository, real = begun(tmp_path / "repo"), REAL[name]
    monkeypatch.setenv(real.key, KEY)
    with agent_server(building) as server:
        report = build_modules(
            modules()[:1],
            str(repository.path),
            agent=cast("AgentName", name),
            model=real.model,
            api_base=server.url + real.end,
            params=real.params,
            pass_env=[real.key],
            branch="built",
            retries=0,
        )
        assert (report.status, report.gaps) == ("complete", ())
        assert server.requests
    assert f"The branch 'built' was made at {repository.git('rev-parse', 'built')[:12]}." in report.message
    assert repository.git("log", "-1", "--format=%s", "built").startswith(
        "Merge errors/modules: Write the module errors"
    )
    trailers = repository.git("log", "-1", "--format=%(trailers:only,unfold)", "built")
    assert "Prefect-Dispatch-Module: errors\n" in trailers
    assert f"Prefect-Dispatch-Agent: {name}" in trailers
    assert f"/{real.model.rpartition('/')[2]}\n" in f"{trailers}\n"


@pytest.mark.parametrize("name", ["claude", "codex", "mini"])
def test_a_project_of_eight_modules(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it works together, one module after it was sent back; a second run asks nobody; nothing is left."""
    own = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(own))
    monkeypatch.setenv("PATH", f"{program(name).parent}{os.pathsep}{os.environ['PATH']}")
    repository, real = begun(tmp_path / "repo"), REAL[name]
    (repository.path / "notes.txt").write_text("Not committed.\n")
    with agent_server(building) as server:
        block = f"building-{name}"
        LLMCredentials(api_key=SecretStr(KEY), api_base=server.url + real.end).save(block, overwrite=True)

        def build() -> Report:
            return build_modules(
                modules(),
                str(repository.path),
                agent=cast("AgentName", name),
                credentials=block,
                model=real.model,
                accept=ACCEPT,
                branch="built",
                params=real.params,
                max_usd=5,
                budget_usd=100,
                concurrency=4,
                retries=1,
                min_success=1,
                out=str(tmp_path / "out"),
            )

        first = build()
        assert (first.status, first.gaps) == ("complete", ())
        requests = server.requests
        assert [name for name in MODULES if not any(f"`calc/{name}.py`" in each.prompt for each in requests)] == []
        assert any("was not accepted" in each.prompt for each in requests)
        second = build()
        assert (second.status, second.usage.asked, len(server.requests)) == ("complete", 0, len(requests))
    assert first.usage.cost_usd
    assert bool(first.usage.estimated_usd) is (name == "codex")
    assert repository.git("status", "--porcelain") == "?? notes.txt"
    assert repository.git("symbolic-ref", "HEAD") == "refs/heads/main"
    repository.git("worktree", "add", "--quiet", str(tmp_path / "built"), "built")
    done = subprocess.run(["/bin/sh", "-c", ACCEPT], cwd=tmp_path / "built", check=False)  # noqa: S603 -- our own words
    assert done.returncode == 0
    kept = [
        path.read_text() for folder in ("out", "store") for path in (tmp_path / folder).rglob("*") if path.is_file()
    ]
    assert kept
    assert not any(KEY in text for text in (*kept, repository.git("log", "--all", "--patch")))
    assert (leases(own), below(own)) == ([], [])
