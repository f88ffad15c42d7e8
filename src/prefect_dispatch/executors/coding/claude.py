"""Adapter for Claude Code: `claude -p`, isolated from the user's settings and hooks.

It may edit files in its workspace, unless it is to write none; any other tool has to be allowed by name.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any, Literal, cast

from prefect_dispatch.executors.coding.adapter import (
    LONGEST_ARGUMENT,
    Adapter,
    AgentOutput,
    AgentReport,
    Launch,
    LaunchRequest,
    Step,
    StepParser,
    Tokens,
    as_list,
    build_options,
    clean_text,
    create_tool_step,
    describe_call,
    drop_empty,
    iter_json_objects,
    parse_json,
    parse_text_line,
    parse_tokens,
    parse_usd,
    sum_tokens,
    text_at,
    value_at,
)
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

RETRIES = 3
"""How often it retries a call of its provider. That takes seconds, also for a wrong key; ten tries take minutes."""
_READING = ("Read", "Glob", "Grep")
_EDITING = ("Read", "Edit", "Write", "Glob", "Grep")
_SEARCHING = ("WebSearch", "WebFetch")
_LIMITS: Mapping[str, Literal["max_turns", "max_usd"]] = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_usd",
}
_CONNECTION_ERROR = re.compile(
    r"^API Error:.*(?:connection|stream|response stalled|timed? ?out|network|socket)", re.IGNORECASE
)
"""Its messages for a provider's response that broke off or did not arrive, which have no HTTP status."""
_NO_SESSION = "No conversation found"
"""Start of its message for a session that it can't continue."""
_OK = 200
"""The HTTP status of a page that was fetched."""
_SCHEMA = "error_max_structured_output_retries"
_COMMANDS, _EDITS = ("Bash",), ("Edit", "Write", "NotebookEdit")
"""The tools that run commands, and those that change files."""


class ClaudeParams(Strict):
    """Settings of Claude Code."""

    allowed_tools: tuple[Text, ...] = ()
    """Tools beyond editing in its workspace, in its own syntax: `Bash(pytest *)`, `Bash`, `WebSearch`."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much it reasons."""


class Claude(Adapter):
    """Adapter for Claude Code."""

    name = "claude"
    provider = "anthropic"
    tested_versions = ("2.1.197", "2.2")
    install = "npm install -g @anthropic-ai/claude-code"
    searches_web = True
    params_model = ClaudeParams

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it; it gets its key from a helper, so that the commands which it runs don't."""
        params = cast("ClaudeParams", request.params)
        key = request.home / "key"
        helper = f"cat {shlex.quote(str(key))}" if request.key else ""
        allowed = (*params.allowed_tools, *(_SEARCHING if request.web_search else ()))
        own = _READING if request.read_only else _EDITING
        tools = dict.fromkeys((*own, *(tool.partition("(")[0] for tool in allowed)))
        schema = json.dumps(request.schema)
        takes_schema = value_at(request.schema, "/type") == "object" and len(schema) < LONGEST_ARGUMENT
        flags = ("-p", "--safe-mode", "--strict-mcp-config", "--verbose")
        options = {
            "--resume": request.resume,
            "--output-format": "stream-json",
            "--permission-mode": "acceptEdits",
            "--settings": json.dumps(drop_empty({"apiKeyHelper": helper})),
            "--model": request.model.removeprefix("anthropic/"),
            "--tools": ",".join(tools),
            "--allowedTools": ",".join(allowed),
            "--effort": params.effort,
            "--max-turns": request.max_turns,
            "--max-budget-usd": request.max_usd and f"{request.max_usd:f}",
            "--json-schema": takes_schema and schema,
        }
        env = {
            "CLAUDE_CONFIG_DIR": str(request.home / ".claude"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(RETRIES),
            "DISABLE_AUTOUPDATER": "1",
            "ANTHROPIC_BASE_URL": request.api_base,
        }
        return Launch(
            argv=(request.program, *flags, "--setting-sources", "", *build_options(options)),
            cwd=request.workspace,
            env=drop_empty(env),
            files=drop_empty({key: request.key}),
            stdin=request.prompt,
        )

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output by the last event of type `result`; its exit code may be 0 for a failure."""
        # 1. The last result event, the version, which another event has, and the pages of its web tools.
        version, end = "", dict[str, Any]()
        pages = list[dict[str, Any]]()
        for event in iter_json_objects(output.stdout):
            version = text_at(event, "/claude_code_version") or version
            pages += _pages(event.get("tool_use_result"))
            end = event if event.get("type") == "result" else end
        # 2. Whether it failed, and in which way.
        kind, words = text_at(end, "/subtype"), text_at(end, "/result")
        failed = bool(end.get("is_error")) or kind != "success"
        status = end.get("api_error_status")
        # It gave up on the requested schema: that is an answer, which validation rejects with a better message.
        formless = kind == _SCHEMA
        wrong = tuple(str(each) for each in (*as_list(end.get("errors")), words) if each) if failed and end else ()
        return AgentReport(
            reports_success=formless or not failed,
            valid_exit_codes=(0, 1) if formless else (0,),
            text=" ".join(wrong) if formless else words,
            structured=cast("JsonValue", end.get("structured_output")),
            tokens=_tokens(end.get("modelUsage")),
            cost_usd=parse_usd(end.get("total_cost_usd")),
            errors=() if formless else wrong,
            denials=tuple(
                describe_call(value_at(denial, "/tool_name"), value_at(denial, "/tool_input"))
                for denial in as_list(end.get("permission_denials"))
            ),
            status=status if isinstance(status, int) else None,
            limit=_LIMITS.get(kind, ""),
            is_transient=kind == "error_during_execution"
            or (not end and bool(version))
            or (failed and status is None and bool(_CONNECTION_ERROR.search(words))),
            session="" if any(_NO_SESSION in each for each in wrong) else text_at(end, "/session_id"),
            agent_version=version,
            pages=tuple(pages),
        )

    def create_step_parser(self) -> StepParser:
        """Return a parser of its log while it works."""
        return _parse_step


def _parse_step(line: str) -> Step | None:
    """Parse a line of its log: a message of its model, with the tokens so far of that call, or the end."""
    event = parse_json(line)
    if not isinstance(event, dict):
        return parse_text_line(line)
    if event.get("type") == "result":  # the message of a success is that of the event before
        words = text_at(event, "/result") if event.get("is_error") else ""
        usage, cost = _tokens(event.get("modelUsage")), parse_usd(event.get("total_cost_usd"))
        return Step(text=clean_text(words), tokens=usage, cost_usd=cost)
    if event.get("type") != "assistant":
        return None
    message = event.get("message")
    step = Step()
    for block in as_list(value_at(message, "/content")):
        if value_at(block, "/type") == "tool_use":
            step = create_tool_step(value_at(block, "/name"), value_at(block, "/input"), _COMMANDS, _EDITS)
        elif text := text_at(block, "/text") or text_at(block, "/thinking"):
            step = Step(text=clean_text(text))
    prompt = ("/input_tokens", "/cache_read_input_tokens", "/cache_creation_input_tokens")
    tokens = parse_tokens(value_at(message, "/usage"), prompt, ("/output_tokens",), "/cache_read_input_tokens")
    return step._replace(tokens=tokens, call=text_at(message, "/id") or line)


def _pages(result: object) -> Iterator[dict[str, Any]]:
    """Yield the pages of a tool's result: those that a search returned, or the one that was fetched."""
    if value_at(result, "/code") == _OK:
        yield {"url": value_at(result, "/url")}
    for found in as_list(value_at(result, "/results")):
        yield from (page for page in as_list(value_at(found, "/content")) if isinstance(page, dict))


def _tokens(models: object) -> Tokens | None:
    """Return the tokens of all its models; its field `usage` lacks the last turn if a limit ended it."""
    if not isinstance(models, dict):
        return None
    prompt = ("/inputTokens", "/cacheReadInputTokens", "/cacheCreationInputTokens")
    usages = cast("dict[str, object]", models).values()
    return sum_tokens(parse_tokens(each, prompt, ("/outputTokens",), "/cacheReadInputTokens") for each in usages)
