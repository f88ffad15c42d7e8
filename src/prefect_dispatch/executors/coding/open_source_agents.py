"""Adapters for opencode and mini-swe-agent, which take any provider: a configuration file for each run.

`opencode run` prints events, with a cost from its own price table; the results of `mini` are in its trajectory file.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, JsonValue

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
    create_tool_step,
    describe_call,
    drop_empty,
    iter_json_objects,
    parse_json,
    parse_text_line,
    parse_token_count,
    parse_tokens,
    parse_usd,
    sum_tokens,
    text_at,
    value_at,
)
from prefect_dispatch.executors.llm.messages import Params
from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_SDK = ("anthropic", "google", "openai", "openrouter")
"""Providers whose API opencode supports natively, at any address."""
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
_COMMANDS, _EDITS = ("bash",), ("edit", "write", "patch")
"""The tools of opencode that run commands, and those that change files."""
ATTEMPTS = 3
"""How often mini calls its provider, with 4 seconds and more in between; a wrong key fails at once."""
_STATUS = {
    "AuthenticationError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "BadRequestError": 400,
    "ContextWindowExceededError": 413,
    "RateLimitError": 429,
    "InternalServerError": 500,
    "BadGatewayError": 502,
    "ServiceUnavailableError": 503,
}
_MAX_COMMAND_LINES = 100
"""Lines of a command of mini that are shown."""
_MAY_PASS = frozenset({"APIConnectionError", "APIError", "Timeout", "JSONDecodeError"})


class OpenCodeParams(Strict):
    """Settings of opencode."""

    permission: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Its permissions, in its own syntax. Default: edit files and run commands in its workspace, and nothing else."""
    provider: Params = Field(default_factory=dict[str, JsonValue])
    """Further configuration of its provider, such as `npm`; no keys."""
    variant: str | None = None
    """How much it reasons, in its provider's terms."""


class OpenCode(Adapter):
    """Adapter for opencode."""

    name = "opencode"
    tested_versions = ("1.18", "1.19")
    install = "npm install -g opencode-ai"
    searches_web = True
    params_model = OpenCodeParams

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it; it reads its key from a file, so that the commands which it runs don't get it."""
        params, home = cast("OpenCodeParams", request.params), request.home
        name, _, model = request.model.partition("/")
        key, config = home / "key", home / "opencode.json"
        address = request.api_base
        provider: dict[str, Any] = drop_empty(
            {
                "npm": "@ai-sdk/openai-compatible" if address and name not in _OWN_SDK else "",
                "models": {model: {}} if address else {},
            }
        )
        options = drop_empty({"baseURL": address, "apiKey": request.key and f"{{file:{key}}}"})
        provider |= {**params.provider, "options": {**options, **(value_at(params.provider, "/options") or {})}}
        settings = {
            "provider": {name: provider},
            "permission": {
                **_DEFAULT_PERMISSIONS,
                **({"edit": "deny", "bash": "deny"} if request.read_only else {}),
                **({"webfetch": "allow", "websearch": "allow"} if request.web_search else {}),
                **params.permission,
            },
            "share": "disabled",
            "autoupdate": False,
        }
        command_options = {
            "--format": "json",
            "--session": request.resume,
            "--title": "" if request.resume else "brief",
            "-m": request.model,
            "--dir": request.workspace,
            "--variant": params.variant,
        }
        env = {
            "OPENCODE_CONFIG": str(config),
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
            "XDG_DATA_HOME": str(home / ".local" / "share"),
            "XDG_STATE_HOME": str(home / ".local" / "state"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home / ".cache"),
        }
        return Launch(
            argv=(request.program, "run", "--pure", *build_options(command_options)),
            cwd=request.workspace,
            env=env,
            files=drop_empty({config: json.dumps(settings), key: request.key}),
            stdin=request.prompt,
        )

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output; a step with the reason `stop` is its successful end, as its exit code says little."""
        text, error, session = "", None, ""
        steps, denials = list[Any](), list[str]()
        pages = list[dict[str, Any]]()
        for event in iter_json_objects(output.stdout):
            kind, part = event.get("type"), event.get("part")
            session = text_at(event, "/sessionID") or session
            if kind == "text" and not value_at(part, "/synthetic"):
                text = text_at(part, "/text")
            elif kind == "step_finish":  # a finished step cancels an error before it, which was retried
                steps.append(part)
                error = None
            elif kind == "error":
                error = event.get("error")
            elif kind == "tool_use" and any(words in text_at(part, "/state/error") for words in _DENIAL_PHRASES):
                denials.append(describe_call(value_at(part, "/tool"), value_at(part, "/state/input")))
            elif value_at(part, "/tool") == "webfetch" and value_at(part, "/state/status") == "completed":
                pages.append({"url": value_at(part, "/state/input/url")})
        words = text_at(error, "/data/message") or text_at(error, "/name")
        status = value_at(error, "/data/statusCode")
        total = sum_tokens(map(_tokens_of_step, steps))
        return AgentReport(
            reports_success=bool(steps) and value_at(steps[-1], "/reason") == "stop" and error is None,
            text=text,
            tokens=total if steps and "bytes left out" not in output.stdout else None,
            # 0 for a model that isn't in its price table
            cost_usd=sum(parse_usd(value_at(step, "/cost")) or 0.0 for step in steps) or None,
            errors=(words,) if words else (),
            denials=tuple(denials),
            status=413 if value_at(error, "/name") == _OVERFLOW else status if isinstance(status, int) else None,
            is_transient=bool(value_at(error, "/data/isRetryable")),
            session=session,
            pages=tuple(pages),
        )

    def create_step_parser(self) -> StepParser:
        """Return a parser of its log while it works."""
        return _parse_opencode_step


def _parse_opencode_step(line: str) -> Step | None:
    """Parse a line of opencode's log: a message, a tool call that has ended, or the end of a call of its model."""
    event = parse_json(line)
    if not isinstance(event, dict):
        return parse_text_line(line)
    kind, part = event.get("type"), event.get("part")
    if kind == "text":
        return Step(text=clean_text(text_at(part, "/text")))
    if kind == "tool_use":
        return create_tool_step(value_at(part, "/tool"), value_at(part, "/state/input"), _COMMANDS, _EDITS)
    if kind == "step_finish":
        cost = parse_usd(value_at(part, "/cost")) or None  # 0 for a model that isn't in its price table
        return Step(tokens=_tokens_of_step(part), cost_usd=cost, call=text_at(part, "/id") or line)
    if kind == "error":
        return Step(text=clean_text(text_at(event, "/error/data/message") or text_at(event, "/error/name")))
    return None


def _tokens_of_step(step: object) -> Tokens:
    """Return the tokens of one call of opencode's model."""
    prompt, completion = ("/input", "/cache/read", "/cache/write"), ("/output", "/reasoning")
    return parse_tokens(value_at(step, "/tokens"), prompt, completion, "/cache/read")


class MiniParams(Strict):
    """Settings of mini-swe-agent."""

    model_kwargs: Params = Field(default_factory=dict[str, JsonValue])
    """Arguments of each call of the model, such as `temperature`."""
    command_timeout_s: int = Field(default=120, ge=1, le=86_400)
    """Seconds after which it ends a command that it runs."""


class Mini(Adapter):
    """Adapter for mini-swe-agent."""

    name = "mini"
    version_arguments = ("--help",)
    tested_versions = ("2.4", "2.5")
    install = "pipx install mini-swe-agent"
    params_model = MiniParams
    output_files = ("trajectory.json", "answer.txt")

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it: not in the workspace, where it would read a `mini.yaml` as its own configuration."""
        params, home = cast("MiniParams", request.params), request.home
        key = key_variable(request.model)
        trajectory, answer = (str(home / name) for name in self.output_files)
        ending = (
            f"\n\nBefore you submit, write your answer into the file {answer} (and nothing else there). "
            "Then submit, by the command for it alone."
        )
        config: dict[str, Any] = {
            "run": {"task": request.prompt + ending},
            "agent": {
                "mode": "yolo",
                "confirm_exit": False,
                "cost_limit": request.max_usd or 0,
                "step_limit": request.max_turns or 0,
                "output_path": trajectory,
            },
            "model": {
                "model_name": request.model,
                "model_kwargs": {**params.model_kwargs, **drop_empty({"api_base": request.api_base})},
                "cost_tracking": "ignore_errors",  # a model without a price would end it after its first answer
            },
            # The commands that it runs inherit its environment, with `env` on top: that removes the key.
            "environment": {"cwd": str(request.workspace), "timeout": params.command_timeout_s, "env": {key: ""}},
        }
        file = home / "brief.yaml"
        env = {
            "MSWEA_GLOBAL_CONFIG_DIR": str(home / "mini"),
            "MSWEA_CONFIGURED": "true",
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": str(ATTEMPTS),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_COLOR": "1",
            key: request.key,
        }
        return Launch(
            argv=(
                *(request.program, "--yolo", "--exit-immediately"),
                *("-c", "mini.yaml", "-c", str(file), "-o", trajectory),
            ),
            cwd=home,
            env=drop_empty(env),
            files={file: json.dumps(config)},
        )

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its trajectory; its exit code is 0 even if a limit ended it."""
        trajectory, answer = (output.files.get(name, "") for name in self.output_files)
        record = parse_json(trajectory)
        messages = as_list(value_at(record, "/messages"))
        status = text_at(record, "/info/exit_status")
        error = text_at(messages[-1:], "/0/extra/exception_str")
        # The tokens of each response of its model, as the provider counted them.
        cached = "/prompt_tokens_details/cached_tokens"
        usages = [value_at(each, "/extra/response/usage") for each in messages]
        calls = (parse_tokens(usage, ("/prompt_tokens",), ("/completion_tokens",), cached) for usage in usages)
        counted = [tokens for tokens in calls if any(tokens)]
        call_count = parse_token_count(value_at(record, "/info/model_stats/api_calls"))
        step_limit = parse_token_count(value_at(record, "/info/config/agent/step_limit"))
        limit: Literal["max_turns", "max_usd"] = "max_turns" if 0 < step_limit <= call_count else "max_usd"
        return AgentReport(
            reports_success=status == "Submitted",
            text=answer.strip() or text_at(record, "/info/submission").strip(),
            tokens=sum_tokens(counted) if counted and len(counted) >= call_count else None,
            cost_usd=parse_usd(value_at(record, "/info/model_stats/instance_cost")) or None,  # 0 for an unknown price
            errors=() if status in ("", "Submitted") else (f"{status}: {error}" if error else status,),
            status=_STATUS.get(status),
            limit=limit if status == "LimitsExceeded" else "",
            is_transient=status in _MAY_PASS,
            agent_version=text_at(record, "/info/mini_version"),
        )

    def create_step_parser(self) -> StepParser:
        """Return a parser of its log while it works; it prints what its model says, and the cost so far."""
        return _MiniStepParser()


class _MiniStepParser:
    """Parser of mini's log, which has a heading above each message: only those of its model are steps."""

    _MODEL = re.compile(r"mini-swe-agent \(step \d{1,9}, \$(?P<usd>\d{1,9}(?:\.\d{1,9})?)\):")
    _OTHER = re.compile(r"(?:System|User|Tool|Exit):")
    _FENCE, _RULE = "```", "─"

    def __init__(self) -> None:
        """Begin above the first message of its model."""
        self._is_step = False
        self._command: list[str] | None = None

    def __call__(self, line: str) -> Step | None:
        """Parse a line: a heading, a line of a message, or the end of a command."""
        line = line.rstrip()
        if heading := self._MODEL.fullmatch(line):
            self._is_step, self._command = True, None
            return Step(cost_usd=float(heading["usd"]) or None)  # 0 for an unknown price, too
        if not self._is_step:
            return None
        if line == self._FENCE:
            if self._command is None:
                self._command = []
                return None
            command, self._command = "\n".join(self._command), None
            return Step("command", clean_text(command))
        if self._command is not None:
            self._command = [*self._command, line][:_MAX_COMMAND_LINES]
            return None
        if self._OTHER.fullmatch(line):
            self._is_step = False
        return parse_text_line(line.lstrip(self._RULE)) if self._is_step else None


def key_variable(model: str) -> str:
    """Return the usual name of the environment variable in which litellm looks for a model's key.

    Example:
        >>> key_variable("anthropic/claude-sonnet-4-5")
        'ANTHROPIC_API_KEY'
    """
    return f"{model.partition('/')[0].replace('-', '_').upper()}_API_KEY"
