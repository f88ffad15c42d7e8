"""What fakes can't prove: the real agents, run to each of their ends against a server of ours."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import BusyError, ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.coding.session import UNCHANGED
from prefect_dispatch.executors.live_view import LogReader
from prefect_dispatch.processes.program_logs import list_logs
from tests.executors.coding.agent_server import Request, Turn
from tests.executors.coding.fake_agents import BRIEF, KEY, asked, failed
from tests.executors.coding.real_agents import below, ending, every_agent, real_agent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.workspaces.repositories import Repository

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]
WRITES = BRIEF.model_copy(update={"writes": ("new/b.py",)})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def writing(request: Request) -> Turn:
    """Write a file, and end."""
    return Turn(write={"new/b.py": "B = 1\n"}, text="I write.") if request.turn == 0 else ending(request)


@every_agent
def test_work_that_is_done(name: str, repository: Repository, own: Path) -> None:
    """It asks the server with its key, changes its workspace, and tells its tokens; nothing of it is left."""
    with real_agent(name, repository, writing) as (executor, server):
        reply = asked(executor, WRITES)
        assert "Set A to 1." in server.requests[0].prompt
        assert "The letter A." in server.requests[0].prompt
        assert any(KEY in value for value in server.requests[0].headers.values())
        assert KEY not in str([request.body for request in server.requests])
        assert len(server.requests) == 2
    assert reply.change is not None
    assert [(each.path, each.change) for each in reply.change.files] == [("new/b.py", "added")]
    assert "+B = 1" in reply.change.patch
    assert reply.problems == ()
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.unsettled) == (200, 20, 0)
    assert reply.usage.cost_usd
    assert bool(reply.usage.estimated_usd) is (name == "codex")
    assert below(own) == []
    assert repository.git("status", "--porcelain") == ""
    assert all(KEY not in log.read_text() for log in (own / "logs").rglob("*.log"))


@every_agent
def test_a_log_that_is_read_along(name: str, repository: Repository, own: Path) -> None:
    """What the agent said and wrote are steps of its log, which names the work that it is for."""
    with real_agent(name, repository, writing) as (executor, _):
        asked(executor, WRITES)
    (log,) = list_logs()
    assert (log.about.program, log.about.model, log.is_running) == (name, executor.model_id, False)
    reader = LogReader(log)
    steps = [str(step) for step in reader.new_steps()]
    assert "I write." in steps
    assert any("new/b.py" in step for step in steps)
    assert reader.describe().tokens == (0 if name == "mini" else 220)


@every_agent
def test_work_without_a_change(name: str, repository: Repository) -> None:
    """It ends well, and that isn't taken for success."""
    with real_agent(name, repository, ending) as (executor, _):
        assert UNCHANGED in asked(executor, WRITES).problems


@pytest.mark.parametrize(
    ("status", "error", "kinds"),
    [
        pytest.param(401, TerminalError, {"credentials"}, id="401"),
        pytest.param(429, BusyError, {"rate_limit"}, id="429"),
        pytest.param(500, TransientError, {"server", "connection", "idle"}, id="500"),
    ],
)
@every_agent
def test_a_provider_that_refuses(
    name: str, status: int, error: type[ExecutorError], kinds: set[str], repository: Repository, own: Path
) -> None:
    """A key that won't do is nobody's to try again; who is busy is waited for; what is broken may pass."""
    headers = {"Retry-After": "1"} if status == 429 else {}
    # opencode asks a broken provider again without a word and without an end.
    idle_s = 30 if (name, status) == ("opencode", 500) else 120
    with real_agent(name, repository, lambda _: Turn(status=status, headers=headers), idle_s=idle_s) as (executor, _):
        found = failed(executor, error, WRITES)
    assert found.kind in kinds
    assert KEY not in str(found)
    assert below(own) == []


@every_agent
def test_a_provider_that_falls_silent(name: str, repository: Repository, own: Path) -> None:
    """The agent is ended, and no process of it is left."""
    with real_agent(name, repository, lambda _: Turn(hang=True), idle_s=15) as (executor, server):
        assert failed(executor, TransientError, WRITES).kind == "idle"
        assert below(own) == []
        assert server.requests or name in {"mini", "opencode"}  # which take long to start


def forbidden(request: Request) -> Turn:
    """Run what may not be run, then end as if all were well."""
    return Turn(run=("touch ../outside && echo x > /etc/of-the-agent",)) if request.turn == 0 else ending(request)


@pytest.mark.parametrize("name", ["claude", "opencode"])
def test_a_tool_that_is_denied(name: str, repository: Repository, own: Path) -> None:
    """The agent exits with 0 and says that it is done; the work is not."""
    params = {"claude": {"allowed_tools": ["Bash(ls *)"]}, "opencode": {"permission": {"bash": "deny"}}}[name]
    script = forbidden if name == "claude" else outside
    with real_agent(name, repository, script, params=params if name == "claude" else {}) as (executor, _):
        found = failed(executor, RejectedError, WRITES)
    assert found.kind == "denied"


def outside(request: Request) -> Turn:
    """Read what lies outside of the workspace, then end as if all were well."""
    return Turn(run=("ls /etc/ssl && cat /etc/passwd",)) if request.turn == 0 else ending(request)


def test_a_sandbox_that_lets_nothing_be_written(repository: Repository) -> None:
    """What Codex may not write it doesn't tell as denied: that nothing was changed says it."""
    with real_agent("codex", repository, writing, params={"sandbox": "read-only"}) as (executor, _):
        assert UNCHANGED in asked(executor, WRITES).problems


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_an_answer_by_a_schema(name: str, repository: Repository) -> None:
    """Claude Code gives it by a tool of its own; Codex keeps to none, and what it says is looked at here."""

    def script(request: Request) -> Turn:
        if request.turn == 0:
            return writing(request)
        if "StructuredOutput" in request.tools and request.turn == 1:
            return Turn(call=("StructuredOutput", {"n": 1}))
        return Turn(text='{"n": 1}')

    brief = WRITES.model_copy(update={"output": SCHEMA})
    with real_agent(name, repository, script) as (executor, _):
        value = asked(executor, brief).value
    assert value in ({"n": 1}, '{"n": 1}')
    assert isinstance(value, dict) is (name == "claude")


@pytest.mark.parametrize("name", ["claude", "codex", "opencode"])
def test_a_stream_that_is_cut(name: str, repository: Repository, own: Path) -> None:
    """Where the agent itself doesn't go on, its work is retried, as it may pass. mini streams nothing."""

    def script(request: Request) -> Turn:
        return Turn(text="I begin.", write={"new/b.py": "B = 1\n"}, cut=True)

    # opencode asks again without a word and without an end.
    with real_agent(name, repository, script, idle_s=30 if name == "opencode" else 120) as (executor, _):
        error = failed(executor, TransientError, WRITES)
    assert error.kind in {"connection", "server", "idle"}
    assert below(own) == []


def test_a_command_that_codex_refuses_itself(repository: Repository) -> None:
    """It is told with the attempt, and the work counts that was done in another way."""
    refused = Turn(run=("rm -rf new",))

    def script(request: Request) -> Turn:
        steps = [refused, Turn(run=("mkdir -p new; echo 'B = 1' > new/b.py",))]
        return steps[request.turn] if request.turn < len(steps) else ending(request)

    with real_agent("codex", repository, script) as (executor, _):
        reply = asked(executor, WRITES)
        (note,) = reply.notes
        assert note.startswith("The policy of codex refused: ")
        assert "rm -rf new" in note
        assert reply.problems == ()
    with real_agent("codex", repository, lambda request: ending(request) if request.turn else refused) as (executor, _):
        problems = asked(executor, WRITES).problems
    assert problems == (UNCHANGED, note)


def test_a_limit_of_turns(repository: Repository) -> None:
    """It ends the work, with an exit code that says nothing of it."""

    def script(request: Request) -> Turn:
        return Turn(write={f"new/{request.turn}.py": "x"})

    for name in ("claude", "mini"):
        with real_agent(name, repository, script, max_turns=2) as (executor, _):
            assert failed(executor, RejectedError, WRITES).kind == "max_turns"


@pytest.mark.parametrize("name", ["claude", "opencode"])
def test_an_agent_that_only_reads_has_no_tool_to_write(name: str, repository: Repository) -> None:
    """It offers its model none for files or commands, and what the model says is the answer."""

    def reading(request: Request) -> Turn:
        if request.turn == 0:
            return Turn(call=("Read" if name == "claude" else "read", _path_of(request)))
        return ending(request, "A is 0." if "A = 0" in json.dumps(request.messages) else "It is unknown.")

    with real_agent(name, repository, reading, access="read") as (executor, server):
        reply = asked(executor, BRIEF.model_copy(update={"writes": ()}))
        tools = set(server.requests[0].tools)
    assert (reply.value, reply.change) == ("A is 0.", None)
    assert not tools & {"Write", "Edit", "Bash", "write", "edit", "bash"}


def _path_of(request: Request) -> dict[str, str]:
    """Return the arguments of the tool that reads `a.py`; the agent tells its model where it works."""
    name = "Read" if "Read" in request.tools else "read"
    takes = request.tools[name].get("input_schema") or request.tools[name]["parameters"]
    folder = re.search(r"(/\S+/work)\b", json.dumps(request.body))
    assert folder
    return {next(each for each in takes["properties"] if each.lower().startswith("file")): f"{folder[1]}/a.py"}
