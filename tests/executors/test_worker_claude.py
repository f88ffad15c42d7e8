"""The Claude Agent SDK as an executor: the real library, and in place of its agent a program that speaks as it does."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query

from prefect_dispatch import Ask, Brief, Item, PythonCallable, Reply, Usage
from prefect_dispatch.errors import (
    BusyError,
    ExecutorError,
    JobError,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.python_callable import to_reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AGENT = """#!{python} -IS
import json, sys
say = lambda **said: print(json.dumps(said), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] == "control_request":
        request = asked["request_id"]
        say(type="control_response", response={{"subtype": "success", "request_id": request, "response": {{}}}})
        continue
    told = asked["message"]["content"]
    assert "Name the family." in told, told
    text = {{"type": "text", "text": "I look."}}
    say(type="assistant", message={{"role": "assistant", "model": "scripted-3", "content": [text]}}, session_id="s")
    say(**{end!r})
    break
"""
END: dict[str, Any] = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "duration_ms": 1,
    "duration_api_ms": 1,
    "num_turns": 2,
    "session_id": "s",
    "result": '{"family": "permissive"}',
    "total_cost_usd": 0.25,
    "usage": {
        "input_tokens": 5,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": None,
        "output_tokens": 7,
    },
    "modelUsage": {"scripted-3": {"inputTokens": 5, "outputTokens": 7}},
}
BRIEF = Brief(name="family", instructions="Name the family.", output={"type": "object"})
ASK = Ask(brief=BRIEF, item=Item(key="mit", value="Permission is hereby granted."))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., partial[Any]]:
    """Return what makes `query` run a program that ends in a certain way."""
    monkeypatch.setenv("CLAUDE_AGENT_SDK_SKIP_VERSION_CHECK", "1")

    def made(**end: object) -> partial[Any]:
        program = tmp_path / "claude"
        program.write_text(AGENT.format(python=sys.executable, end={**END, **end}))
        program.chmod(0o700)
        return partial(query, options=ClaudeAgentOptions(cli_path=program))

    return made


def test_what_it_ends_with_is_the_answer(agent: Callable[..., partial[Any]]) -> None:
    """Its tokens, the cached ones included, and its cost are as it tells them; its model, where it does."""
    reply = asyncio.run(PythonCallable(agent(), version="1").answer(ASK))
    assert (reply.value, reply.model) == ('{"family": "permissive"}', "scripted-3")
    assert reply.usage == Usage(requests=1, prompt_tokens=105, completion_tokens=7, cost_usd=0.25)
    structured = asyncio.run(PythonCallable(agent(structured_output={"family": "MIT"}), version="1").answer(ASK))
    assert structured.value == {"family": "MIT"}
    with pytest.raises(JobError, match="how a partial answers can't be read off a source"):
        _ = PythonCallable(agent()).fingerprint


def test_a_run_that_fails(agent: Callable[..., partial[Any]]) -> None:
    """The item fails, in the agent's words."""
    with pytest.raises(ExecutorError, match="Reached the most turns"):
        asyncio.run(
            PythonCallable(
                agent(subtype="error_max_turns", is_error=True, result=None, errors=["Reached the most turns"]),
                version="1",
            ).answer(ASK)
        )


def ended(**said: Any) -> Reply:  # noqa: ANN401 -- fields of a message
    """Return what a last message says."""
    fields = {name: value for name, value in END.items() if name not in {"type", "modelUsage"}}
    return to_reply(ResultMessage(**{**fields, **said}), "query")


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, TerminalError, "credentials"),
        (429, BusyError, "rate_limit"),
        (500, TransientError, "server"),
        (400, RejectedError, "rejected"),
        (None, RejectedError, "error_max_turns"),
    ],
)
def test_how_it_failed_is_what_it_means(status: int | None, error: type[ExecutorError], kind: str) -> None:
    """What its provider refused means what it means for a model; what it took counts all the same."""
    with pytest.raises(error, match=r"^'query' failed: key \*\*\*; no more$") as failed:
        ended(
            subtype="error_max_turns",
            is_error=True,
            api_error_status=status,
            errors=["key sk-proj-0123456789abcdef"],
            result="no more",
        )
    assert (type(failed.value), failed.value.kind) == (error, kind)
    assert failed.value.usage == Usage(requests=1, prompt_tokens=105, completion_tokens=7, cost_usd=0.25)


def test_a_run_that_does_not_tell_its_tokens() -> None:
    """They count as untold, and the name is that of the function."""
    reply = ended(usage=None, total_cost_usd=None)
    assert (reply.model, reply.usage) == ("query", Usage(requests=1, cost_usd=None, unsettled=1))
    with pytest.raises(RejectedError, match=r"^'query' failed: error_during_execution$"):
        ended(subtype="error_during_execution", is_error=True, result=None)
