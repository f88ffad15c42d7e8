"""The real Claude Code and Codex start a job, end, and read what came of it, against a scripted model of theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from prefect_dispatch.cli import main
from tests.agents.conftest import JOB
from tests.executors.coding.agent_server import AgentServer, Request, Turn, agent_server
from tests.executors.coding.real_agents import program
from tests.openai_server import Behaviour

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect_dispatch.agents.job_store import JobStore
    from prefect_dispatch.agents.policy import Policy
    from tests.agents.conftest import ModelServer
    from tests.executors.coding.agent_server import Script

pytestmark = [pytest.mark.agents, pytest.mark.timeout(900)]

OURS = "plugin_prefect-dispatch_dispatch"
"""The name of our server in Claude Code, where it comes from the plugin."""
ENDED = r"state\W+(complete|gaps|failed|refused|crashed|cancelled)"
CONNECTING = "is still connecting"
"""What Claude Code says of a server that takes long to start; it doesn't wait for it."""
FAIL_TWO = "limits: {retries: 0, reasks: 0}"


def server_arguments(policy: Policy) -> list[str]:
    """Return the arguments of our server, as a user configures it."""
    return ["-m", "prefect_dispatch", "mcp", "--root", policy.root, "--models", ",".join(policy.models)]


def start_agent(words: Sequence[str], folder: Path, home: Path, **env: str) -> subprocess.Popen[str]:
    """Start an agent in a folder, with a home of its own and its task on standard input."""
    home.mkdir(exist_ok=True)
    process = subprocess.Popen(  # noqa: S603 -- a real agent
        [*words],
        cwd=folder,
        env={**os.environ, "HOME": str(home), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.write("Analyse the items by a job.")
    process.stdin.close()
    process.stdin = None
    return process


def finish_agent(process: subprocess.Popen[str]) -> str:
    """Wait for the end of an agent that succeeds; return what it printed."""
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, printed + errors
    return printed


def start_claude(policy: Policy, server: AgentServer, tmp_path: Path, *, plugin: bool = False) -> subprocess.Popen[str]:
    """Start Claude Code with our server, whose tools are allowed: configured by a file, or by the installed plugin."""
    words = [str(program("claude")), "-p", "--model", "claude-sonnet-4-5", "--output-format", "json"]
    if plugin:
        words += ["--allowedTools", f"mcp__{OURS}", "Skill"]
    else:
        config = tmp_path / "mcp.json"
        servers = {"dispatch": {"command": sys.executable, "args": server_arguments(policy)}}
        config.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
        words += ["--bare", "--strict-mcp-config", "--mcp-config", str(config), "--allowedTools", "mcp__dispatch"]
    return start_agent(
        words,
        tmp_path / "root",
        tmp_path / "home",
        CLAUDE_CONFIG_DIR=str(tmp_path / "home" / ".claude"),
        ANTHROPIC_BASE_URL=server.url,
        ANTHROPIC_API_KEY="test-key-of-nobody",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
        MCP_TIMEOUT="120000",  # a busy machine takes long
    )


def run_claude(policy: Policy, script: Script, tmp_path: Path, *, plugin: bool = False) -> tuple[str, list[Any]]:
    """Run Claude Code with a scripted model to its end; return its last text and the requests of its model."""
    with agent_server(script) as server:
        printed = json.loads(finish_agent(start_claude(policy, server, tmp_path, plugin=plugin)))
    assert printed["permission_denials"] == []
    return printed["result"], [each.messages for each in server.requests]


def run_codex(policy: Policy, script: Script, tmp_path: Path, *, plugin: bool = False) -> list[dict[str, Any]]:
    """Run Codex, which may only read, with a scripted model to its end; return the results of our tools.

    It passes no variables on but those that are named.
    """
    passed = ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "PREFECT_DISPATCH_STATE", "PREFECT_API_URL")
    tools = ", ".join(f'{name} = {{approval_mode = "approve"}}' for name in ("status", "start", "plan", "redrive"))
    ours = (
        f"{{command = {json.dumps(sys.executable)}, args = {json.dumps(server_arguments(policy))}, required = true, "
        f"env_vars = {json.dumps([*passed, 'PREFECT_LOCAL_STORAGE_PATH'])}, tools = {{{tools}}}}}"
    )
    words = [str(program("codex")), "exec", "--json", "--ephemeral", "--skip-git-repo-check", "--color", "never"]
    words += ["-C", str(tmp_path / "root"), "--sandbox", "read-only", "-m", "gpt-5"]
    home = tmp_path / "codex"
    with agent_server(script) as server:
        provider = f'{{name = "x", base_url = "{server.url}/v1", env_key = "OPENAI_API_KEY", wire_api = "responses"}}'
        for setting in (f"model_providers.x={provider}", 'model_provider="x"', f"mcp_servers.dispatch={ours}"):
            words += ["-c", setting]
        words = words[:-2] if plugin else words
        printed = finish_agent(start_agent([*words, "-"], tmp_path / "root", home, CODEX_HOME=str(home)))
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    calls = [each["item"] for each in events if each.get("item", {}).get("type") == "mcp_tool_call"]
    return [each["result"]["structured_content"] for each in calls if each.get("result")]


def call_claude(name: str, server: str = "dispatch", delay_s: float = 0, **arguments: Any) -> Turn:  # noqa: ANN401 -- of any kind
    """Return the turn in which Claude's model calls one of our tools, after some seconds."""
    return Turn(call=(f"mcp__{server}__{name}", arguments), delay_s=delay_s)


def call_codex(name: str, number: int, **arguments: Any) -> Turn:  # noqa: ANN401 -- of any kind
    """Return the turn in which Codex' model calls one of our tools."""
    named = {"type": "function_call", "namespace": "mcp__dispatch", "name": name, "arguments": json.dumps(arguments)}
    return Turn(blocks=({**named, "id": f"fc_{number}", "call_id": f"call_{number}"},))


def starting(request: Request, server: str = "dispatch", first: int = 0) -> Turn | None:
    """Return Claude's turns up to the start of the job, from some turn on; then None."""
    said, last = json.dumps(request.messages), json.dumps(request.messages[-1])
    found = re.search(r"fingerprint\W+([0-9a-f]{64})", said)
    if not found:
        assert request.turn < first + 30, last
        return call_claude("plan", server, delay_s=5 * (CONNECTING in last), job_file="job.yaml")
    if not re.search(r"(starting|running|complete)\W", said.partition(found[1])[2]):
        return call_claude("start", server, fingerprint=found[1])
    return None


def start_and_end(request: Request) -> Turn:
    """Have Claude plan and start the job, and end."""
    return starting(request) or Turn(text="It is started.")


def waiting(job: str, *, redrive: bool = False) -> Script:
    """Return the script in which Codex waits for the end of a job, which it redrives before."""

    def script(request: Request) -> Turn:
        if redrive and request.turn == 0:
            return call_codex("redrive", 0, job=job)
        if re.search(ENDED, json.dumps(request.messages)):
            return Turn(text="It has ended.")
        return call_codex("status", request.turn, job=job, wait_s=50)

    return script


def test_one_starts_and_another_one_reads(
    policy: Policy, jobs: JobStore, api: Path, model: ModelServer, tmp_path: Path
) -> None:
    """Claude Code plans and starts a job and ends; Codex, which may only read, waits for it and gets its result."""
    assert run_claude(policy, start_and_end, tmp_path)[0] == "It is started."
    (job,) = jobs.jobs
    assert job.last_run
    status = run_codex(policy, waiting(job.id), tmp_path)[-1]
    assert (status["state"], status["message"]) == ("complete", "4 of 4 answered.")
    assert model.count == 4


def test_by_the_installed_plugin(
    policy: Policy,
    jobs: JobStore,
    api: Path,
    model: ModelServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `plugin install` writes suffices: both agents show the skill to their model, and both reach the server."""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program('codex').parent}:{os.environ['PATH']}")
        for name, folder in (("CLAUDE_CONFIG_DIR", "home/.claude"), ("CODEX_HOME", "codex")):
            (tmp_path / folder).mkdir(parents=True)
            patch.setenv(name, str(tmp_path / folder))
        for agent in ("claude", "codex"):
            assert main(["plugin", "install", agent, "--models", *policy.models]) == 0

    def claude(request: Request) -> Turn:
        if request.turn == 0:
            assert "prefect-dispatch:fan-out" in json.dumps(request.body)
            return Turn(call=("Skill", {"skill": "prefect-dispatch:fan-out"}))
        return starting(request, OURS, first=1) or Turn(text="It is started.")

    text, said = run_claude(policy, claude, tmp_path, plugin=True)
    assert text == "It is started."
    assert "Never rerun by hand what is stored" in json.dumps(said[-1])
    (job,) = jobs.jobs
    shown: list[str] = []

    def codex(request: Request) -> Turn:
        shown.append(json.dumps(request.body))
        return waiting(job.id)(request)

    status = run_codex(policy, codex, tmp_path, plugin=True)[-1]
    assert (status["state"], status["message"]) == ("complete", "4 of 4 answered.")
    assert "fan-out/SKILL.md" in shown[0]
    assert model.count == 4


def test_a_job_survives_the_kill_of_server_and_agent(
    policy: Policy, jobs: JobStore, api: Path, model: ModelServer, tmp_path: Path
) -> None:
    """Server and agent are killed while the job runs; it goes on, asks nothing twice, and another agent reads it."""
    (tmp_path / "root" / "job.yaml").write_text(f"{JOB}limits: {{concurrency: 1}}\n", encoding="utf-8")
    model.behave = lambda _request, _n: Behaviour(content="fine", delay_s=5)

    waits = threading.Event()

    def script(request: Request) -> Turn:
        if turn := starting(request):
            return turn
        waits.set()
        return call_claude("status", job=jobs.jobs[0].id, wait_s=50)

    with agent_server(script) as server:
        agent = start_claude(policy, server, tmp_path)
        while model.count == 0 or not waits.is_set():
            assert agent.poll() is None
            time.sleep(0.2)
        (child,) = [each for each in psutil.Process(agent.pid).children(recursive=True) if "mcp" in each.cmdline()[1:4]]
        child.kill()
        agent.kill()
        agent.communicate()
    (job,) = jobs.jobs
    assert job.state == "running"
    status = run_codex(policy, waiting(job.id), tmp_path)[-1]
    assert (status["state"], status["message"], status["runs"]) == ("complete", "4 of 4 answered.", 1)
    assert model.count == 4


def test_refusals_name_the_option(
    policy: Policy, jobs: JobStore, api: Path, model: ModelServer, tmp_path: Path
) -> None:
    """A path outside, a kind that isn't allowed and a budget that is too high are refused, each with its option."""
    brief = {"briefs": [{"name": "a", "instructions": "b"}]}
    llm = {"kind": "llm", "model": policy.models[0], "params": {"max_tokens": 50}}
    refused = [
        {**brief, "items": {"glob": "*.txt", "root": ".."}, "executor": llm},
        {**brief, "items": ["c"], "executor": {"kind": "shell"}},
        {**brief, "items": ["c"], "executor": llm, "limits": {"budget_usd": 100}},
    ]

    def script(request: Request) -> Turn:
        results = json.dumps(request.messages).count("Nothing of the job was read or run")
        if results == len(refused):
            return Turn(text="No.")
        assert request.turn < 30, request.messages[-1]
        return call_claude("plan", delay_s=5 * (CONNECTING in json.dumps(request.messages[-1])), job=refused[results])

    text, said = run_claude(policy, script, tmp_path)
    assert text == "No."
    results = [
        part["content"]
        for message in said[-1]
        if message["role"] == "user" and isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "tool_result" and "refused" in json.dumps(part)
    ]
    flags = [re.findall(r"--(?:root|allow|max-usd)\b", json.dumps(result)) for result in results]
    assert [set(each) for each in flags] == [{"--root"}, {"--allow"}, {"--max-usd"}]
    assert (jobs.jobs, model.count) == ([], 0)


def test_a_resume_asks_what_has_failed(
    policy: Policy, jobs: JobStore, api: Path, model: ModelServer, tmp_path: Path
) -> None:
    """Of 102 items 2 fail; Claude Code sees both as gaps and ends; Codex redrives the job, and 2 requests are sent."""
    items = tmp_path / "root" / "items"
    for number in range(102):
        (items / f"{number}.txt").write_text(f"Text number {number}.", encoding="utf-8")
    (tmp_path / "root" / "job.yaml").write_text(f"{JOB}{FAIL_TWO}\n", encoding="utf-8")
    bad = re.compile(r"number (3|77)\.")
    model.behave = lambda request, _n: Behaviour(content="" if bad.search(json.dumps(request)) else "fine")

    def script(request: Request) -> Turn:
        said = json.dumps(request.messages)
        if (turn := starting(request)) is None and not re.search(ENDED, said):
            return call_claude("status", job=jobs.jobs[0].id, wait_s=50)
        return turn or Turn(text="It has gaps.")

    text, said = run_claude(policy, script, tmp_path)
    assert text == "It has gaps."
    assert all(f"items/{number}.txt" in json.dumps(said[-1]) for number in (3, 77))
    assert model.count == 102
    model.behave = lambda _request, _n: Behaviour(content="fine")
    (job,) = jobs.jobs
    assert job.state == "gaps"
    status = run_codex(policy, waiting(job.id, redrive=True), tmp_path)[-1]
    assert (status["state"], status["message"]) == ("complete", "102 of 102 answered.")
    assert (status["answered_before"], status["runs"]) == (100, 2)
    assert model.count == 104
