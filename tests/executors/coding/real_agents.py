"""The real coding agents, where they are installed, against a server of ours in place of their providers."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest

from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from tests.executors.coding.agent_server import AgentServer, Request, Turn, agent_server

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from tests.executors.coding.agent_server import Script
    from tests.workspaces.repositories import Repository

AGENTS = os.environ.get("PREFECT_DISPATCH_AGENTS", "")
"""The folder of their programs, as `.ci/agents` prints it."""
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""What `mini` ends its work with."""


class Real(NamedTuple):
    """One of them, and how it reaches the server."""

    model: str
    key: str
    end: str = "/v1"
    params: Mapping[str, Any] = {}


REAL = {
    "claude": Real("claude-sonnet-4-5", "ANTHROPIC_API_KEY", end=""),
    # Not every system that tests run on lets it make its sandbox; `test_real_access` tests that.
    "codex": Real("gpt-5", "OPENAI_API_KEY", params={"sandbox": "danger-full-access"}),
    "opencode": Real("openai/gpt-5-mini", "OPENAI_API_KEY"),
    "mini": Real("openai/gpt-5-mini", "OPENAI_API_KEY"),
}
every_agent = pytest.mark.parametrize("name", list(REAL))


def program(name: str) -> Path:
    """Return the program of an agent, which has to be there."""
    path = Path(AGENTS, name)
    assert AGENTS, "export PREFECT_DISPATCH_AGENTS=$(.ci/agents)"
    assert path.exists(), f"{path} isn't there; run .ci/agents"
    return path


@contextmanager
def real_agent(
    name: str,
    repository: Repository,
    script: Script,
    **more: Any,  # noqa: ANN401 -- fields
) -> Generator[tuple[CodingAgent, AgentServer], None, None]:
    """Have an agent as an executor that is placed, and the server that its script answers for."""
    real = REAL[name]
    with agent_server(script) as server:
        fields = {
            "agent": name,
            "model": real.model,
            "program": str(program(name)),
            "api_base": server.url + real.end,
            "pass_env": (real.key,),
            "workspace": {"repo": str(repository.path)},
            "params": real.params,
            "max_usd": 5,
            "max_turns": 20,
        }
        yield CodingAgent.model_validate({**fields, **more}).resolve_paths(repository.path), server


def ending(request: Request, text: str = "Done.") -> Turn:
    """Return the last turn of an agent's work."""
    return Turn(text=text, run=(SUBMIT,) if "COMPLETE_TASK_AND_SUBMIT" in request.prompt else ())


def below(folder: Path) -> list[str]:
    """Return the processes whose HOME is somewhere below a folder: what an agent has left running."""
    return [line for process in psutil.process_iter() if (line := _line(process, folder))]


def _line(process: psutil.Process, folder: Path) -> str:
    try:
        its = process.environ().get("HOME", "").startswith(str(folder))
        return " ".join(process.cmdline()) if its and process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""
