"""Claude Code: `claude -p`, its settings and hooks apart, edits allowed in its folder and nothing else but by name."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any, Literal, cast

from prefect_dispatch.executors.coding.adapter import (
    LONGEST_ARGUMENT,
    Launch,
    Printed,
    Said,
    Tokens,
    Told,
    at,
    count,
    dollars,
    events,
    listed,
    texts,
)
from prefect_dispatch.models import Text
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

RETRIES = 3
"""How often it asks its provider again: seconds in all, also for a wrong key; ten times would take minutes."""
_EDITING = ("Read", "Edit", "Write", "Glob", "Grep")
_LIMITS: Mapping[str, Literal["max_turns", "max_usd"]] = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_usd",
}
_CUT = re.compile(r"^API Error:.*(?:connection|stream|response stalled|timed? ?out|network|socket)", re.IGNORECASE)
"""What it says of a provider's answer that broke off or did not come, without an HTTP status."""
_SCHEMA = "error_max_structured_output_retries"


class ClaudeParams(Strict):
    """What Claude Code is told beside the brief."""

    allowed_tools: tuple[Text, ...] = ()
    """What it may do beyond editing in its workspace, in its own words: `Bash(pytest *)`, `Bash`, `WebSearch`."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much it thinks."""


class Claude:
    """Claude Code."""

    name = "claude"
    provider = "anthropic"
    version = ("--version",)
    tested = ("2.1.197", "2.2")
    install = "npm install -g @anthropic-ai/claude-code"
    own = ClaudeParams
    reads = ()

    def launch(self, told: Told) -> Launch:
        """Return how it is started; its key comes from a helper, and so is no variable of the commands that it runs."""
        params = cast("ClaudeParams", told.params)
        key = told.home / "key"
        settings = {"apiKeyHelper": f"cat {shlex.quote(str(key))}"} if told.key else {}
        named = dict.fromkeys((*_EDITING, *(tool.partition("(")[0] for tool in params.allowed_tools)))
        argv = [told.program, "-p", "--safe-mode", "--setting-sources", "", "--strict-mcp-config"]
        argv += ["--no-session-persistence", "--output-format", "stream-json", "--verbose"]
        argv += ["--permission-mode", "acceptEdits", "--settings", json.dumps(settings)]
        argv += ["--model", told.model.removeprefix("anthropic/"), "--tools", ",".join(named)]
        argv += ["--allowedTools", ",".join(params.allowed_tools)] if params.allowed_tools else []
        argv += ["--effort", params.effort] if params.effort else []
        argv += ["--max-turns", str(told.max_turns)] if told.max_turns else []
        argv += ["--max-budget-usd", f"{told.max_usd:f}"] if told.max_usd else []
        schema = json.dumps(told.schema)
        if told.schema and told.schema.get("type") == "object" and len(schema) < LONGEST_ARGUMENT:
            argv += ["--json-schema", schema]
        env = {
            "CLAUDE_CONFIG_DIR": str(told.home / ".claude"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
            "DISABLE_AUTOUPDATER": "1",
            **({"ANTHROPIC_BASE_URL": told.api_base} if told.api_base else {}),
        }
        files = {key: told.key} if told.key else {}
        return Launch(argv=tuple(argv), cwd=told.workspace, env=env, files=files, stdin=told.prompt)

    def parse(self, printed: Printed) -> Said:
        """Return what it said: by its last object, as its exit code says 0 for an interruption and a refusal too."""
        version, end = "", dict[str, Any]()
        for event in events(printed.stdout):
            version = str(event.get("claude_code_version") or version)
            end = event if event.get("type") == "result" else end
        kind, words = str(end.get("subtype", "")), str(end.get("result") or "")
        failed = bool(end.get("is_error")) or kind != "success"
        status = end.get("api_error_status")
        structured = cast("JsonValue", end.get("structured_output"))
        # What it couldn't bring into the form that was asked for is an answer, if not a valid one.
        formless = kind == _SCHEMA
        wrong = (*texts(end.get("errors")), *((words,) if words else ())) if failed and end else ()
        return Said(
            done=formless or (bool(end) and not failed),
            exits=(0, 1) if formless else (0,),
            text=" ".join(wrong) if formless else words,
            structured=structured,
            tokens=_tokens(end),
            cost_usd=dollars(end.get("total_cost_usd")),
            errors=() if formless else wrong,
            denials=tuple(map(_denied, listed(end.get("permission_denials")))),
            status=status if isinstance(status, int) else None,
            limit=_LIMITS.get(kind, ""),
            may_pass=kind == "error_during_execution"
            or (not end and bool(version))
            or (failed and status is None and bool(_CUT.search(words))),
            agent_version=version,
        )


def _tokens(end: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens of all its models; what it calls its usage leaves out its last turn if a limit ended it."""
    models = end.get("modelUsage")
    if not isinstance(models, dict):
        return None
    total = Tokens()
    for each in cast("dict[str, object]", models).values():
        cached = count(at(each, "cacheReadInputTokens"))
        sent = count(at(each, "inputTokens")) + cached + count(at(each, "cacheCreationInputTokens"))
        got = count(at(each, "outputTokens"))
        total = Tokens(total.prompt + sent, total.completion + got, total.cached + cached)
    return total


def _denied(denial: object) -> str:
    tool, given = at(denial, "tool_name"), at(denial, "tool_input")
    told = at(given, "command") or at(given, "file_path") or at(given, "url") or ""
    return f"{tool} {told}".strip()
