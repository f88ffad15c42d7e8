"""A coding agent without a repository: an empty folder, tools that only read, and the pages that it opened."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError, TerminalError, TransientError
from prefect_dispatch.executors.base import fingerprint
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.models.brief import Brief, Command
from tests.executors.coding.fake_agents import (
    ITEM,
    FakeAgent,
    asked,
    claude_end,
    claude_start,
    codex_end,
    codex_said,
    failed,
)
from tests.workspaces.inside import leases

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "https://www.rfc-editor.org/rfc/rfc9110"
OTHER = "https://www.rfc-editor.org/rfc/rfc1945"
BRIEF = Brief(name="research", instructions="How old is HTTP?")
MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5", "opencode": "openai/gpt-5-mini"}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(folder))
    return folder


def create(agent: str, **more: Any) -> CodingAgent:  # noqa: ANN401 -- fields
    """Return an executor without a repository that searches the web."""
    fields = {"agent": agent, "model": MODELS.get(agent, "openai/gpt-5-mini"), "workspace": None, "web_search": True}
    keys = ["ANTHROPIC_API_KEY" if agent == "claude" else "OPENAI_API_KEY"]
    return CodingAgent.model_validate({**fields, "pass_env": keys, **more})


def claude_result(result: object) -> dict[str, object]:
    """Return the event with what a tool of Claude Code returned."""
    return {"type": "user", "message": {"role": "user", "content": []}, "tool_use_result": result}


SEARCHED = {"query": "q", "results": [{"tool_use_id": "t", "content": [{"title": "HTTP", "url": PAGE}, 1]}, "Text."]}
EVENTS: dict[str, list[object]] = {
    "claude": [
        claude_start(),
        claude_result(SEARCHED),
        claude_result({"code": 200, "url": OTHER, "result": "…"}),
        claude_result({"code": 404, "url": "https://www.rfc-editor.org/none"}),
        claude_result("text"),
        claude_end(result="Old."),
    ],
    "codex": [
        {"type": "item.completed", "item": {"type": "web_search", "action": {"type": "search", "query": "q"}}},
        *(
            {"type": "item.completed", "item": {"type": "web_search", "action": {"type": "open_page", "url": url}}}
            for url in (PAGE, OTHER)
        ),
        codex_said("Old."),
        codex_end(),
    ],
    "opencode": [
        *(
            {"type": "tool_use", "part": {"tool": "webfetch", "state": {"status": status, "input": {"url": url}}}}
            for status, url in (("completed", PAGE), ("error", "https://www.rfc-editor.org/none"), ("completed", OTHER))
        ),
        {"type": "text", "part": {"text": "Old."}},
        {"type": "step_finish", "part": {"reason": "stop", "cost": 0.1, "tokens": {"input": 1, "output": 1}}},
    ],
}
OPTIONS = {
    "claude": ["--tools Read,Glob,Grep,WebSearch,WebFetch", "--allowedTools WebSearch,WebFetch"],
    "codex": ["-s read-only", 'web_search="live"'],
    "opencode": [],
}


@pytest.mark.parametrize("agent", list(EVENTS))
def test_it_answers_in_an_empty_folder(agent: str, tmp_path: Path, programs: Path, state: Path) -> None:
    """It can't write or run commands, its pages are kept with the answer, and nothing is left of its folder."""
    fake = FakeAgent(programs, agent)
    fake.does("ls -a > seen; echo note > note.txt", fake.prints(*EVENTS[agent]))
    reply = asked(create(agent).resolve_paths(tmp_path), BRIEF)
    assert (reply.value, reply.change, reply.problems) == ("Old.", None, ())
    assert [page.url for page in reply.citations] == [PAGE, OTHER]
    assert reply.citations[0].title == ("HTTP" if agent == "claude" else "")
    [call] = fake.calls
    assert "Your working directory is an empty folder" in call.stdin
    assert "search the web" in call.stdin
    assert "git" not in call.stdin
    for option in OPTIONS[agent]:
        assert option in " ".join(call.argv)
    assert leases(state) == []


def test_without_a_search_no_page_counts(tmp_path: Path, programs: Path) -> None:
    """Neither its tools nor the prompt mention the web; what its log says of pages is no source."""
    fake = FakeAgent(programs, "claude")
    fake.does(fake.prints(*EVENTS["claude"]))
    reply = asked(create("claude", web_search=False).resolve_paths(tmp_path), BRIEF)
    assert reply.citations == ()
    [call] = fake.calls
    assert "Web" not in " ".join(call.argv)
    assert "# Web" not in call.stdin


def test_what_goes_wrong_is_reported(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure has its cost and its log, a refusal is noted, and a variable that is gone stops the run."""
    fake = FakeAgent(programs, "claude")
    fake.does(fake.prints(claude_end(subtype="error_during_execution", is_error=True, errors=["It broke."])))
    error = failed(create("claude").resolve_paths(tmp_path), TransientError, BRIEF)
    assert "Its log: " in str(error)
    assert error.usage is not None
    assert error.usage.cost_usd == 0.25
    codex = FakeAgent(programs, "codex")
    refused = shlex.quote('Rejected("`rm -rf x` rejected: not permitted")')
    codex.does(f"echo {refused} >&2", codex.prints(codex_said("Old."), codex_end()))
    assert asked(create("codex").resolve_paths(tmp_path), BRIEF).notes == (
        "The policy of codex refused: 'rm -rf x rejected: not permitted'.",
    )
    monkeypatch.setenv("MINE", "x")
    passing = create("claude", pass_env=["ANTHROPIC_API_KEY", "MINE"]).resolve_paths(tmp_path)
    monkeypatch.delenv("MINE")
    assert failed(passing, TerminalError, BRIEF).kind == "workspace"


def test_what_needs_a_repository_is_refused() -> None:
    """Files to write and an acceptance command; a search where the agent has none to switch on."""
    executor = create("claude")
    executor.require_supported([BRIEF])
    for more, field in (({"writes": ("a.py",)}, "writes"), ({"command": Command(run="true")}, "command")):
        with pytest.raises(JobError, match=rf"'{field}' needs a repository, and executor\.workspace is null"):
            executor.require_supported([BRIEF.model_copy(update=more)])
    with pytest.raises(ValidationError, match="web_search: 'mini' has no such option"):
        create("mini")


def test_the_search_is_part_of_its_identity() -> None:
    """An answer without a search is none for one with it; without a repository there is no commit in it."""
    assert create("claude").fingerprint != create("claude", web_search=False).fingerprint
    assert create("claude").external_inputs(BRIEF, ITEM) is None
    assert fingerprint(BRIEF, ITEM, create("claude")) == fingerprint(BRIEF, ITEM, create("claude", max_usd=1))
