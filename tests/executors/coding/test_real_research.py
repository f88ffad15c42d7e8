"""Real agents that research a topic without a repository: what they send, and which pages they report."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from prefect_dispatch import LLMCredentials, research_topics
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.flows.research_topics import DISAGREEMENT
from prefect_dispatch.models.brief import Brief
from tests.executors.coding.agent_server import Request, Turn, agent_server
from tests.executors.coding.fake_agents import KEY, asked
from tests.executors.coding.real_agents import REAL, program
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

PAGE = "https://www.rfc-editor.org/rfc/rfc9110"
ANSWER = {"finding": "It is from 1991.", "sources": [PAGE]}
BRIEF = Brief(
    name="research",
    instructions="How old is HTTP?",
    output={
        "type": "object",
        "properties": {"finding": {"type": "string"}, "sources": {"type": "array", "items": {"type": "string"}}},
        "required": ["finding", "sources"],
        "additionalProperties": False,
    },
)


def claude_script(request: Request) -> Turn:
    """Search, as Claude Code does: by a request of its own, in which the provider searches."""
    if "web_search" in request.tools:
        found = {"type": "web_search_result", "title": "HTTP Semantics", "url": PAGE, "encrypted_content": "-"}
        used = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "HTTP"}}
        result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}
        return Turn(blocks=(used, result), text="There it is.")
    if request.turn == 0:
        return Turn(call=("WebSearch", {"query": "age of HTTP"}))
    if "StructuredOutput" in request.tools and "StructuredOutput" not in json.dumps(request.messages):
        return Turn(call=("StructuredOutput", ANSWER))
    return Turn(text=json.dumps(ANSWER))


def codex_script(request: Request) -> Turn:
    """Search and open a page, as OpenAI's provider does within its response."""
    call = {"type": "web_search_call", "status": "completed"}
    search = {**call, "id": "ws_1", "action": {"type": "search", "query": "age of HTTP"}}
    opened = {**call, "id": "ws_2", "action": {"type": "open_page", "url": PAGE}}
    return Turn(blocks=(search, opened), text=json.dumps(ANSWER))


@pytest.mark.usefixtures("store")
def test_a_flow_with_a_real_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claude Code researches the topic, a model writes the finding; the page is in the report's table of sources."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{program('claude').parent}{os.pathsep}{os.environ['PATH']}")
    text = f"# Finding\n\nIt is old [1].\n\n## {DISAGREEMENT}\n\nNothing to compare [1]."
    with agent_server(claude_script) as server, openai_server(Behaviour(content=text)) as writer:
        LLMCredentials(api_key=SecretStr(KEY), api_base=server.url).save("of-the-agent", overwrite=True)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_BASE", writer.url)
        monkeypatch.setenv("OPENAI_BASE_URL", writer.url)
        report, again = (
            research_topics(
                "How old is {topic}?",
                ["HTTP"],
                sources=1,
                credentials="of-the-agent",
                writer_model="openai/test",
                researcher={"kind": "coding", "agent": "claude", "model": "claude-sonnet-4-5", "max_usd": 1},
                out=str(tmp_path / "out"),
            )
            for _ in range(2)
        )
    assert (report.status, report.gaps, again.usage.asked) == ("complete", (), 0)
    [table] = [each for each in report.tables if each.name == "web-sources"]
    assert [(row["url"], row["title"]) for row in table.rows] == [(PAGE, "HTTP Semantics")]
    assert not any(KEY in path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())


SCRIPTS = {"claude": claude_script, "codex": codex_script}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_topic_is_researched_without_a_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer satisfies the schema, its pages are reported, and the agent is offered nothing that writes."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    real = REAL[name]
    monkeypatch.setenv(real.key, KEY)
    with agent_server(SCRIPTS[name]) as server:
        fields: dict[str, Any] = {
            "agent": name,
            "model": real.model,
            "program": str(program(name)),
            "api_base": server.url + real.end,
            "pass_env": (real.key,),
            "workspace": None,
            "web_search": True,
        }
        reply = asked(CodingAgent.model_validate(fields).resolve_paths(tmp_path), BRIEF)
        requests = server.requests
    value = json.loads(reply.value) if isinstance(reply.value, str) else reply.value
    assert value == ANSWER
    assert [page.url for page in reply.citations] == [PAGE]
    assert reply.change is None
    if name == "claude":
        assert reply.citations[0].title == "HTTP Semantics"
        assert not {"Write", "Edit", "Bash"} & requests[0].tools.keys()
    else:
        assert "web_search" in [tool["type"] for tool in requests[0].body["tools"]]
    assert not [*(tmp_path / "state" / "leases").glob("*/work")]
