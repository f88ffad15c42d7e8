"""The real Claude Code and Codex start a job, end, and read what came of it, against a scripted model of theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.executors.coding.agent_server import AgentServer, Request, Turn, agent_server
from tests.executors.coding.real_agents import program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.agents.job_store import JobStore
    from prefect_dispatch.agents.policy import Policy
    from tests.agents.conftest import ModelServer

pytestmark = [pytest.mark.agents, pytest.mark.timeout(900)]

SERVER = {"command": sys.executable}


def server_arguments(policy: Policy) -> list[str]:
    """Return the arguments of our server, as a user configures it."""
    return ["-m", "prefect_dispatch", "mcp", "--root", policy.root, "--models", ",".join(policy.models)]


def run_agent(words: Sequence[str], folder: Path, home: Path, **env: str) -> str:
    """Run an agent to its end in a folder, with a home of its own; return what it printed."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(  # noqa: S603 -- a real agent
        [*words],
        cwd=folder,
        env={**os.environ, "HOME": str(home), **env},
        input="Analyse the items by a job.",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_claude(policy: Policy, server: AgentServer, tmp_path: Path) -> str:
    """Run Claude Code with our server, whose tools are allowed."""
    config = tmp_path / "mcp.json"
    servers = {"dispatch": {**SERVER, "args": server_arguments(policy)}}
    config.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
    words = [str(program("claude")), "-p", "--bare", "--strict-mcp-config", "--mcp-config", str(config)]
    words += ["--allowedTools", "mcp__dispatch", "--model", "claude-sonnet-4-5", "--output-format", "json"]
    return run_agent(
        words,
        tmp_path / "root",
        tmp_path / "home",
        CLAUDE_CONFIG_DIR=str(tmp_path / "home" / ".claude"),
        ANTHROPIC_BASE_URL=server.url,
        ANTHROPIC_API_KEY="test-key-of-nobody",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )


def run_codex(policy: Policy, server: AgentServer, tmp_path: Path) -> str:
    """Run Codex, which may only read, with our server; it passes no variables on but those that are named."""
    passed = ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "PREFECT_DISPATCH_STATE", "PREFECT_API_URL")
    tools = ", ".join(f'{name} = {{approval_mode = "approve"}}' for name in ("status", "start", "plan", "redrive"))
    ours = (
        f"{{command = {json.dumps(sys.executable)}, args = {json.dumps(server_arguments(policy))}, required = true, "
        f"env_vars = {json.dumps([*passed, 'PREFECT_LOCAL_STORAGE_PATH'])}, tools = {{{tools}}}}}"
    )
    provider = f'{{name = "x", base_url = "{server.url}/v1", env_key = "OPENAI_API_KEY", wire_api = "responses"}}'
    words = [str(program("codex")), "exec", "--json", "--ephemeral", "--skip-git-repo-check", "--color", "never"]
    words += ["-C", str(tmp_path / "root"), "--sandbox", "read-only", "-m", "gpt-5"]
    for setting in (f"mcp_servers.dispatch={ours}", f"model_providers.x={provider}", 'model_provider="x"'):
        words += ["-c", setting]
    home = tmp_path / "codex"
    return run_agent([*words, "-"], tmp_path / "root", home, CODEX_HOME=str(home))


def call_claude(name: str, **arguments: Any) -> Turn:  # noqa: ANN401 -- of any kind
    """Return the turn in which Claude's model calls one of our tools."""
    return Turn(call=(f"mcp__dispatch__{name}", arguments))


def call_codex(name: str, number: int, **arguments: Any) -> Turn:  # noqa: ANN401 -- of any kind
    """Return the turn in which Codex' model calls one of our tools."""
    named = {"type": "function_call", "namespace": "mcp__dispatch", "name": name, "arguments": json.dumps(arguments)}
    return Turn(blocks=({**named, "id": f"fc_{number}", "call_id": f"call_{number}"},))


def test_one_starts_and_another_one_reads(
    policy: Policy, jobs: JobStore, api: Path, model: ModelServer, tmp_path: Path
) -> None:
    """Claude Code plans and starts a job and ends; Codex, which may only read, waits for it and gets its result."""

    def claude(request: Request) -> Turn:
        said = json.dumps(request.messages)
        found = re.search(r"fingerprint\W+([0-9a-f]{64})", said)
        if request.turn == 0:
            return call_claude("plan", job_file="job.yaml")
        if request.turn == 1 and found:
            return call_claude("start", fingerprint=found[1])
        return Turn(text="It is started.")

    with agent_server(claude) as server:
        printed = json.loads(run_claude(policy, server, tmp_path))
    assert (printed["result"], printed["permission_denials"]) == ("It is started.", [])
    (job,) = jobs.jobs
    assert job.last_run

    def codex(request: Request) -> Turn:
        said = json.dumps(request.messages)
        if re.search(r"state\W+(complete|failed|refused|crashed)", said):
            return Turn(text="It has ended.")
        return call_codex("status", request.turn, job=job.id, wait_s=50)

    with agent_server(codex) as server:
        events = [json.loads(line) for line in run_codex(policy, server, tmp_path).splitlines() if line.startswith("{")]
    calls = [each["item"] for each in events if each.get("item", {}).get("type") == "mcp_tool_call"]
    status = next(each["result"]["structured_content"] for each in reversed(calls) if each.get("result"))
    assert (status["state"], status["message"]) == ("complete", "4 of 4 answered.")
    assert model.count == 4
