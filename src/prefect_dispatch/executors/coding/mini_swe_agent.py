"""Adapter for mini-swe-agent: `mini` with a configuration file for each run; its trajectory file has the results."""

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
    as_list,
    parse_json,
    parse_token_count,
    parse_usd,
    value_at,
)
from prefect_dispatch.executors.llm.litellm_adapter import Params
from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTEMPTS = 3
"""How often it calls its provider, with 4 seconds and more in between; a wrong key fails at once."""
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
_MAY_PASS = frozenset({"APIConnectionError", "APIError", "Timeout", "JSONDecodeError"})


class MiniParams(Strict):
    """Settings of mini-swe-agent."""

    model_kwargs: Params = Field(default_factory=dict[str, JsonValue])
    """Arguments of each call of the model, such as `temperature`."""
    command_timeout_s: int = Field(default=120, ge=1, le=86_400)
    """Seconds after which it ends a command that it runs."""


class Mini:
    """Adapter for mini-swe-agent."""

    name = "mini"
    provider = ""
    version_arguments = ("--help",)
    tested_versions = ("2.4", "2.5")
    install = "pipx install mini-swe-agent"
    params_model = MiniParams
    output_files = ("trajectory.json", "answer.txt")

    def launch(self, request: LaunchRequest) -> Launch:
        """Return how to start it: not in the workspace, where it would read a `mini.yaml` as its own configuration."""
        params = cast("MiniParams", request.params)
        key = key_variable(request.model)
        model: dict[str, JsonValue] = {
            "model_name": request.model,
            "model_kwargs": {**params.model_kwargs, **({"api_base": request.api_base} if request.api_base else {})},
            "cost_tracking": "ignore_errors",  # a model without a price would end it after its first answer
        }
        agent: dict[str, JsonValue] = {"mode": "yolo", "confirm_exit": False, "cost_limit": request.max_usd or 0}
        agent |= {"step_limit": request.max_turns or 0, "output_path": str(request.home / self.output_files[0])}
        # The commands that it runs inherit its environment, with `env` on top: that removes the key.
        environment: dict[str, JsonValue] = {
            "cwd": str(request.workspace),
            "timeout": params.command_timeout_s,
            "env": {key: ""},
        }
        ending = (
            f"\n\nBefore you submit, write your answer into the file {request.answer} (and nothing else there). "
            "Then submit, by the command for it alone."
        )
        config = {"run": {"task": request.prompt + ending}, "agent": agent, "model": model, "environment": environment}
        file = request.home / "brief.yaml"
        env = {
            "MSWEA_GLOBAL_CONFIG_DIR": str(request.home / "mini"),
            "MSWEA_CONFIGURED": "true",
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": str(ATTEMPTS),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_COLOR": "1",
            **({key: request.key} if request.key else {}),
        }
        argv = [request.program, "--yolo", "--exit-immediately", "-c", "mini.yaml", "-c", str(file)]
        argv += ["-o", str(request.home / self.output_files[0])]
        return Launch(argv=tuple(argv), cwd=request.home, env=env, files={file: json.dumps(config)})

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its trajectory; its exit code is 0 even if a limit ended it."""
        trajectory = parse_json(output.files.get(self.output_files[0], ""))
        status = str(value_at(trajectory, "info", "exit_status") or "")
        words = str(value_at(trajectory, "info", "submission") or "").strip()
        messages = as_list(value_at(trajectory, "messages"))
        error = value_at(messages[-1], "extra", "exception_str") if messages else None
        answer = output.files.get(self.output_files[1], "").strip()
        calls = list(_iter_call_tokens(messages))
        counted = [call for call in calls if call is not None]
        call_count = parse_token_count(value_at(trajectory, "info", "model_stats", "api_calls"))
        return AgentReport(
            reports_success=status == "Submitted",
            text=answer or words,
            tokens=Tokens(*map(sum, zip(*counted, strict=True))) if counted and len(counted) >= call_count else None,
            cost_usd=parse_usd(value_at(trajectory, "info", "model_stats", "instance_cost"))
            or None,  # 0 for an unknown price
            errors=() if status in ("", "Submitted") else (f"{status}: {error}" if error else status,),
            status=_STATUS.get(status),
            limit=_reached_limit(trajectory, call_count) if status == "LimitsExceeded" else "",
            is_transient=status in _MAY_PASS,
            agent_version=str(value_at(trajectory, "info", "mini_version") or ""),
        )


def key_variable(model: str) -> str:
    """Return the usual name of the environment variable in which litellm looks for a model's key.

    Example:
        >>> key_variable("anthropic/claude-sonnet-4-5")
        'ANTHROPIC_API_KEY'
    """
    return f"{model.partition('/')[0].replace('-', '_').upper()}_API_KEY"


def _iter_call_tokens(messages: list[Any]) -> Iterator[Tokens | None]:
    """Yield the tokens of each response of its model, as the provider counted them; None if it didn't."""
    for message in messages:
        if (response := value_at(message, "extra", "response")) is not None:
            usage = value_at(response, "usage")
            sent, got = (parse_token_count(value_at(usage, f"{each}_tokens")) for each in ("prompt", "completion"))
            cached = parse_token_count(value_at(usage, "prompt_tokens_details", "cached_tokens"))
            yield Tokens(sent, got, cached) if sent or got else None


def _reached_limit(trajectory: object, calls: int) -> Any:  # noqa: ANN401 -- a literal
    """Return which limit ended it: `max_turns` if it made that many calls, else `max_usd`."""
    steps = parse_token_count(value_at(trajectory, "info", "config", "agent", "step_limit"))
    return "max_turns" if steps and calls >= steps else "max_usd"
