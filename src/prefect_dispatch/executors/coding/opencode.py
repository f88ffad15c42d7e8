"""Adapter for opencode: `opencode run` with a configuration of its own; its cost comes from its price table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, JsonValue

from prefect_dispatch.executors.coding.adapter import (
    AgentOutput,
    AgentReport,
    Launch,
    LaunchRequest,
    Tokens,
    iter_json_objects,
    parse_token_count,
    parse_usd,
    value_at,
)
from prefect_dispatch.executors.llm.litellm_adapter import Params
from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_SDK = ("anthropic", "google", "openai", "openrouter")
"""Providers whose API it supports natively, at any address."""
_DEFAULT_PERMISSIONS: Mapping[str, JsonValue] = {
    "edit": "allow",
    "bash": "allow",
    "webfetch": "deny",
    "websearch": "deny",
    "external_directory": "deny",
    "question": "deny",
}
_DENIAL_PHRASES = ("rejected permission", "permission rule", "prevents you from")
_OVERFLOW = "ContextOverflowError"


class OpenCodeParams(Strict):
    """Settings of opencode."""

    permission: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Its permissions, in its own syntax. Default: edit files and run commands in its workspace, and nothing else."""
    provider: Params = Field(default_factory=dict[str, JsonValue])
    """Further configuration of its provider, such as `npm`; no keys."""
    variant: str | None = None
    """How much it reasons, in its provider's terms."""


class OpenCode:
    """Adapter for opencode."""

    name = "opencode"
    provider = ""
    version_arguments = ("--version",)
    tested_versions = ("1.18", "1.19")
    install = "npm install -g opencode-ai"
    params_model = OpenCodeParams
    output_files = ()

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it; it reads its key from a file, so that the commands which it runs don't get it."""
        params = cast("OpenCodeParams", request.params)
        name, _, model = request.model.partition("/")
        key, config = request.home / "key", request.home / "opencode.json"
        options: dict[str, Any] = {
            **({"baseURL": request.api_base} if request.api_base else {}),
            **({"apiKey": f"{{file:{key}}}"} if request.key else {}),
        }
        sdk = {"npm": "@ai-sdk/openai-compatible"} if request.api_base and name not in _OWN_SDK else {}
        models: dict[str, Any] = {"models": {model: {}}} if request.api_base else {}
        more = {name: value for name, value in params.provider.items() if name != "options"}
        options |= value_at(params.provider, "options") or {}
        provider: dict[str, Any] = {**sdk, **models, **more, "options": options}
        settings = {
            "provider": {name: provider},
            "permission": {**_DEFAULT_PERMISSIONS, **params.permission},
            "share": "disabled",
            "autoupdate": False,
        }
        argv = [request.program, "run", "--pure", "--format", "json", "--title", "brief", "-m", request.model]
        argv += ["--dir", str(request.workspace), *(["--variant", params.variant] if params.variant else [])]
        env = {
            "OPENCODE_CONFIG": str(config),
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
            "XDG_DATA_HOME": str(request.home / ".local" / "share"),
            "XDG_STATE_HOME": str(request.home / ".local" / "state"),
            "XDG_CONFIG_HOME": str(request.home / ".config"),
            "XDG_CACHE_HOME": str(request.home / ".cache"),
        }
        files = {config: json.dumps(settings), **({key: request.key} if request.key else {})}
        return Launch(argv=tuple(argv), cwd=request.workspace, env=env, files=files, stdin=request.prompt)

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output; a step with the reason `stop` is its successful end, as its exit code says little."""
        text, reason, error = "", "", None
        total, cost, steps = Tokens(), 0.0, 0
        denials: list[str] = []
        for event in iter_json_objects(output.stdout):
            kind, part = event.get("type"), event.get("part")
            if kind == "text" and not value_at(part, "synthetic"):
                text = str(value_at(part, "text") or "")
            elif kind == "step_finish":  # a finished step cancels an error before it, which was retried
                reason, steps, error = str(value_at(part, "reason") or ""), steps + 1, None
                total = _add_tokens(total, value_at(part, "tokens"))
                cost += parse_usd(value_at(part, "cost")) or 0.0
            elif kind == "error":
                error = event.get("error")
            elif kind == "tool_use" and any(
                words in str(value_at(part, "state", "error")) for words in _DENIAL_PHRASES
            ):
                denials.append(_format_call(part))
        words = str(value_at(error, "data", "message") or value_at(error, "name") or "") if error else ""
        status = value_at(error, "data", "statusCode")
        return AgentReport(
            reports_success=reason == "stop" and error is None,
            text=text,
            tokens=total if steps and "bytes left out" not in output.stdout else None,
            cost_usd=cost or None,  # 0 for a model that isn't in its price table
            errors=(words,) if words else (),
            denials=tuple(denials),
            status=413 if value_at(error, "name") == _OVERFLOW else status if isinstance(status, int) else None,
            is_transient=bool(value_at(error, "data", "isRetryable")),
        )


def _add_tokens(total: Tokens, usage: object) -> Tokens:
    """Add the tokens of one step to a total."""
    cached = parse_token_count(value_at(usage, "cache", "read"))
    sent = parse_token_count(value_at(usage, "input")) + cached + parse_token_count(value_at(usage, "cache", "write"))
    got = parse_token_count(value_at(usage, "output")) + parse_token_count(value_at(usage, "reasoning"))
    return Tokens(total.prompt + sent, total.completion + got, total.cached + cached)


def _format_call(part: object) -> str:
    """Return a denied tool call as text: the tool, and its command or file."""
    given: Any = value_at(part, "state", "input")
    return f"{value_at(part, 'tool')} {value_at(given, 'command') or value_at(given, 'filePath') or ''}".strip()
