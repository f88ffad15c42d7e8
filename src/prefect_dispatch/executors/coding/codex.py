"""Adapter for Codex: `codex exec` in its own sandbox, isolated from the user's settings; it reports no cost."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field

from prefect_dispatch.executors.coding.adapter import (
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
    drop_empty,
    iter_json_objects,
    parse_json,
    parse_text_line,
    parse_tokens,
    text_at,
    value_at,
)
from prefect_dispatch.executors.llm.messages import response_format
from prefect_dispatch.models.base import Strict

KEY = "CODEX_PROVIDER_KEY"
"""The environment variable with its provider's key, which it doesn't pass to the commands that it runs."""
RETRIES = 3
"""How often it retries a call of its provider, for each kind of failure."""
_OPENAI = "https://api.openai.com/v1"
_RESERVED_KEYS = (
    *("model_provider", "model_providers", "shell_environment_policy", "sandbox_mode", "approval_policy", "notify"),
    "mcp_servers",
)
_STATUS = re.compile(r"\b(?:unexpected|last) status:? (\d{3})\b")
_REFUSAL = re.compile(r'\bRejected\(\\*"(?P<what>.+?)\\*"\)')
"""A command in its log that its own policy refused; its events don't report that."""
_NO_SANDBOX = "bwrap: "
"""Start of the output of each command on a system that doesn't let it create its sandbox."""
_CONNECTION = re.compile(
    r"stream disconnected|high demand|network error|error sending request|timed? ?out", re.IGNORECASE
)


def _validate_config(config: dict[str, _Setting]) -> dict[str, _Setting]:
    """Check that settings are dotted keys, and none that follows from the executor's fields."""
    for key in config:
        if key.partition(".")[0] in _RESERVED_KEYS:
            raise ValueError(f"{key!r} can't be set here; it follows from the executor's fields")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise ValueError(f"{key!r} is no dotted key of its config.toml")
    return config


_Setting = str | bool | int | float | list[str]


class CodexParams(Strict):
    """Settings of Codex."""

    sandbox: Literal["read-only", "workspace-write", "danger-full-access"] = "workspace-write"
    """What the commands that it runs may access; the first two need a system that lets it create its sandbox."""
    config: Annotated[dict[str, _Setting], AfterValidator(_validate_config)] = Field(default_factory=dict[str, Any])
    """Settings of its `config.toml` by dotted key, such as `model_reasoning_effort: high`."""


class Codex(Adapter):
    """Adapter for Codex."""

    name = "codex"
    provider = "openai"
    tested_versions = ("0.169", "0.170")
    install = "npm install -g @openai/codex"
    searches_web = True
    reports_session_total = True
    params_model = CodexParams
    output_files = ("answer.txt",)

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it."""
        params = cast("CodexParams", request.params)
        home = request.home
        provider = {
            "name": "provider",
            "base_url": request.api_base or _OPENAI,
            "wire_api": "responses",
            "request_max_retries": RETRIES,
            "stream_max_retries": RETRIES,
            "env_key": request.key and KEY,
        }
        config = {
            "model_provider": "prefect_dispatch",
            **{f"model_providers.prefect_dispatch.{name}": value for name, value in drop_empty(provider).items()},
            "shell_environment_policy.exclude": [KEY],
            "allow_login_shell": False,  # a login shell resets PATH
            # /tmp is shared by all programs, and may contain the user's own checkout. TMPDIR is private to the
            # attempt, so it may write there.
            "sandbox_workspace_write.exclude_slash_tmp": True,
            **({"web_search": "live"} if request.web_search else {}),
            **params.config,
        }
        files = {home / ".codex" / "config.toml": ""}  # it doesn't create its folder
        schema = home / "schema.json"
        if request.schema and response_format(request.schema)["json_schema"]["strict"]:  # it sends strict ones only
            files[schema] = json.dumps(request.schema)
        flags = ("exec", "--json", "--ignore-user-config", "--ignore-rules", "--skip-git-repo-check")
        options = {
            "--color": "never",
            "-C": request.workspace,
            "-s": "read-only" if request.read_only and params.sandbox == "workspace-write" else params.sandbox,
            "-m": request.model.removeprefix("openai/"),
            "-o": home / self.output_files[0],
            "--output-schema": schema in files and schema,
        }
        # For texts, numbers and lists, JSON is valid TOML.
        settings = [word for name, value in config.items() for word in ("-c", f"{name}={json.dumps(value)}")]
        resumed = ("resume", request.resume) if request.resume else ()
        return Launch(
            argv=(request.program, *flags, *build_options(options), *settings, *resumed, "-"),
            cwd=request.workspace,
            env=drop_empty({"CODEX_HOME": str(home / ".codex"), KEY: request.key}),
            files=files,
            stdin=request.prompt,
        )

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output; errors before the end of a turn are only notes on retries and unknown models."""
        # 1. Collect its events: the end of its turn, its last message and error, its declined and failed commands.
        end, text, error, session = dict[str, Any](), "", "", ""
        denials, outputs = list[str](), list[str]()
        pages = list[dict[str, Any]]()
        for event in iter_json_objects(output.stdout):
            kind, item = event.get("type"), event.get("item")
            if kind in ("turn.completed", "turn.failed"):
                end = event
            elif kind == "error":
                error = text_at(event, "/message")
            elif kind == "thread.started":
                session = text_at(event, "/thread_id")
            elif kind != "item.completed":
                continue
            elif value_at(item, "/type") == "agent_message":
                text = text_at(item, "/text")
            elif value_at(item, "/type") == "web_search":  # of a search it reports the query alone
                pages.append({"url": value_at(item, "/action/url")})
            elif value_at(item, "/status") == "declined":
                denials.append(text_at(item, "/command") or text_at(item, "/type"))
            elif value_at(item, "/type") == "command_execution":
                outputs.append(text_at(item, "/aggregated_output") if value_at(item, "/status") == "failed" else "")
        # 2. An error counts only if the turn wasn't completed; its text may contain the provider's HTTP status.
        done, usage = end.get("type") == "turn.completed", end.get("usage")
        words = "" if done else text_at(end, "/error/message") or error
        found = _STATUS.search(words)
        status = int(found[1]) if found else 400 if words.startswith('{"error"') else None
        # 3. No sandbox can be created if all of its commands failed for that reason.
        lacks_sandbox = bool(outputs) and all(output.startswith(_NO_SANDBOX) for output in outputs)
        has_usage = done and value_at(usage, "/input_tokens") is not None
        return AgentReport(
            reports_success=done,
            text=output.files.get(self.output_files[0]) or text,
            tokens=_tokens(usage) if has_usage else None,
            errors=(words,) if words else (),
            denials=tuple(denials),
            refusals=tuple(found["what"].replace("`", "") for found in _REFUSAL.finditer(output.stderr)),
            no_sandbox=outputs[0].splitlines()[0] if lacks_sandbox else "",
            status=status,
            is_transient=status is None and bool(_CONNECTION.search(words)),
            session=session,
            pages=tuple(pages),
        )

    def create_step_parser(self) -> StepParser:
        """Return a parser of its log while it works; it reports tokens only at the end of its turn."""
        return _parse_step


def _parse_step(line: str) -> Step | None:
    """Parse a line of its log: the start of a command, anything else when it is completed, or the end of its turn."""
    event = parse_json(line)
    if not isinstance(event, dict):
        return parse_text_line(line)
    kind = event.get("type")
    if kind == "turn.completed":
        return Step(tokens=_tokens(event.get("usage")))
    if kind in ("turn.failed", "error"):
        return Step(text=clean_text(text_at(event, "/error/message") or text_at(event, "/message")))
    if kind in ("item.started", "item.completed"):
        return _parse_item(event.get("item"), is_completed=kind == "item.completed")
    return None


def _parse_item(item: object, *, is_completed: bool) -> Step | None:
    """Return the step of an item: a command when it is started, anything else when it is completed."""
    kind = text_at(item, "/type")
    if is_completed is (kind == "command_execution"):
        return None
    if kind == "command_execution":
        return Step("command", clean_text(text_at(item, "/command")))
    if kind == "file_change":
        paths = (text_at(change, "/path") for change in as_list(value_at(item, "/changes")))
        return Step("edit", clean_text(", ".join(paths)))
    if kind in ("mcp_tool_call", "web_search"):
        return Step("tool", clean_text(f"{kind} {text_at(item, '/tool') or text_at(item, '/query')}"))
    return Step(text=clean_text(text_at(item, "/text") or text_at(item, "/message")))


def _tokens(usage: object) -> Tokens:
    return parse_tokens(usage, ("/input_tokens",), ("/output_tokens",), "/cached_input_tokens")
