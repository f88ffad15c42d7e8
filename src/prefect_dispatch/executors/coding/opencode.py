"""opencode: `opencode run`, with a configuration of its own; its cost is what its table of prices says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, JsonValue

from prefect_dispatch.executors.coding.adapter import Launch, Printed, Said, Tokens, Told, at, count, dollars, events
from prefect_dispatch.executors.params import Params
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_SDK = ("anthropic", "google", "openai", "openrouter")
"""Providers whose API it knows by their name, at whatever address."""
_ALLOWED: Mapping[str, JsonValue] = {
    "edit": "allow",
    "bash": "allow",
    "webfetch": "deny",
    "websearch": "deny",
    "external_directory": "deny",
    "question": "deny",
}
_DENIED = ("rejected permission", "permission rule", "prevents you from")
_OVERFLOW = "ContextOverflowError"


class OpenCodeParams(Strict):
    """What opencode is told beside the brief."""

    permission: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """What it may do, in its own words; what isn't named is: edit and run commands in its workspace, and no more."""
    provider: Params = Field(default_factory=dict[str, JsonValue])
    """More of its provider's configuration, such as `npm`; keys have no place here."""
    variant: str | None = None
    """How much it thinks, in its provider's words."""


class OpenCode:
    """The agent opencode."""

    name = "opencode"
    provider = ""
    version = ("--version",)
    tested = ("1.18", "1.19")
    install = "npm install -g opencode-ai"
    own = OpenCodeParams
    reads = ()

    def launch(self, told: Told) -> Launch:
        """Return how it is started; its key is in a file, and so is no variable of the commands that it runs."""
        params = cast("OpenCodeParams", told.params)
        name, _, model = told.model.partition("/")
        key, config = told.home / "key", told.home / "opencode.json"
        options: dict[str, Any] = {
            **({"baseURL": told.api_base} if told.api_base else {}),
            **({"apiKey": f"{{file:{key}}}"} if told.key else {}),
        }
        sdk = {"npm": "@ai-sdk/openai-compatible"} if told.api_base and name not in _OWN_SDK else {}
        models: dict[str, Any] = {"models": {model: {}}} if told.api_base else {}
        more = {name: value for name, value in params.provider.items() if name != "options"}
        options |= at(params.provider, "options") or {}
        provider: dict[str, Any] = {**sdk, **models, **more, "options": options}
        said = {
            "provider": {name: provider},
            "permission": {**_ALLOWED, **params.permission},
            "share": "disabled",
            "autoupdate": False,
        }
        argv = [told.program, "run", "--pure", "--format", "json", "--title", "brief", "-m", told.model]
        argv += ["--dir", str(told.workspace), *(["--variant", params.variant] if params.variant else [])]
        env = {
            "OPENCODE_CONFIG": str(config),
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
            "XDG_DATA_HOME": str(told.home / ".local" / "share"),
            "XDG_STATE_HOME": str(told.home / ".local" / "state"),
            "XDG_CONFIG_HOME": str(told.home / ".config"),
            "XDG_CACHE_HOME": str(told.home / ".cache"),
        }
        files = {config: json.dumps(said), **({key: told.key} if told.key else {})}
        return Launch(argv=tuple(argv), cwd=told.workspace, env=env, files=files, stdin=told.prompt)

    def parse(self, printed: Printed) -> Said:
        """Return what it said; a step that ends with `stop` is its end, and its exit code says little."""
        text, reason, error = "", "", None
        total, cost, steps = Tokens(), 0.0, 0
        denials: list[str] = []
        for event in events(printed.stdout):
            kind, part = event.get("type"), event.get("part")
            if kind == "text" and not at(part, "synthetic"):
                text = str(at(part, "text") or "")
            elif kind == "step_finish":
                reason, steps, error = str(at(part, "reason") or ""), steps + 1, None
                total = _added(total, at(part, "tokens"))
                cost += dollars(at(part, "cost")) or 0.0
            elif kind == "error":
                error = event.get("error")
            elif kind == "tool_use" and any(words in str(at(part, "state", "error")) for words in _DENIED):
                denials.append(_call(part))
        words = str(at(error, "data", "message") or at(error, "name") or "") if error else ""
        status = at(error, "data", "statusCode")
        return Said(
            done=reason == "stop" and error is None,
            text=text,
            tokens=total if steps and "bytes left out" not in printed.stdout else None,
            cost_usd=cost or None,  # 0 for what isn't in its table
            errors=(words,) if words else (),
            denials=tuple(denials),
            status=413 if at(error, "name") == _OVERFLOW else status if isinstance(status, int) else None,
            may_pass=bool(at(error, "data", "isRetryable")),
        )


def _added(total: Tokens, said: object) -> Tokens:
    cached = count(at(said, "cache", "read"))
    sent = count(at(said, "input")) + cached + count(at(said, "cache", "write"))
    got = count(at(said, "output")) + count(at(said, "reasoning"))
    return Tokens(total.prompt + sent, total.completion + got, total.cached + cached)


def _call(part: object) -> str:
    given: Any = at(part, "state", "input")
    return f"{at(part, 'tool')} {at(given, 'command') or at(given, 'filePath') or ''}".strip()
