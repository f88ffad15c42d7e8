"""mini-swe-agent: `mini`, with a configuration file for each run; what it did is in its trajectory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, JsonValue

from prefect_dispatch.executors.coding.adapter import (
    Launch,
    Printed,
    Said,
    Tokens,
    Told,
    at,
    count,
    dollars,
    listed,
    loaded,
)
from prefect_dispatch.executors.params import Params
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTEMPTS = 3
"""How often it asks its provider, with 4 seconds and more in between; a wrong key it tells at once."""
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
    """What mini-swe-agent is told beside the brief."""

    model_kwargs: Params = Field(default_factory=dict[str, JsonValue])
    """Goes with each call of the model, such as `temperature`."""
    command_timeout_s: int = Field(default=120, ge=1, le=86_400)
    """Seconds after which it ends a command that it runs."""


class Mini:
    """The agent mini-swe-agent."""

    name = "mini"
    provider = ""
    version = ("--help",)
    tested = ("2.4", "2.5")
    install = "pipx install mini-swe-agent"
    own = MiniParams
    reads = ("trajectory.json", "answer.txt")

    def launch(self, told: Told) -> Launch:
        """Return how it is started: not in the workspace, where it would take a `mini.yaml` for its own."""
        params = cast("MiniParams", told.params)
        key = key_variable(told.model)
        model: dict[str, JsonValue] = {
            "model_name": told.model,
            "model_kwargs": {**params.model_kwargs, **({"api_base": told.api_base} if told.api_base else {})},
            "cost_tracking": "ignore_errors",  # a model without a price would end it after its first answer
        }
        agent: dict[str, JsonValue] = {"mode": "yolo", "confirm_exit": False, "cost_limit": told.max_usd or 0}
        agent |= {"step_limit": told.max_turns or 0, "output_path": str(told.home / self.reads[0])}
        # The commands that it runs get its environment, with these in place of what it has itself.
        room: dict[str, JsonValue] = {"cwd": str(told.workspace), "timeout": params.command_timeout_s, "env": {key: ""}}
        ending = (
            f"\n\nBefore you submit, write your answer into the file {told.answer} (and nothing else there). "
            "Then submit, by the command for it alone."
        )
        said = {"run": {"task": told.prompt + ending}, "agent": agent, "model": model, "environment": room}
        file = told.home / "brief.yaml"
        env = {
            "MSWEA_GLOBAL_CONFIG_DIR": str(told.home / "mini"),
            "MSWEA_CONFIGURED": "true",
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": str(ATTEMPTS),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_COLOR": "1",
            **({key: told.key} if told.key else {}),
        }
        argv = [told.program, "--yolo", "--exit-immediately", "-c", "mini.yaml", "-c", str(file)]
        argv += ["-o", str(told.home / self.reads[0])]
        return Launch(argv=tuple(argv), cwd=told.home, env=env, files={file: json.dumps(said)})

    def parse(self, printed: Printed) -> Said:
        """Return what it said: by its trajectory, as it exits with 0 when a limit ended it."""
        path = loaded(printed.files.get(self.reads[0], ""))
        status, words = str(at(path, "info", "exit_status") or ""), str(at(path, "info", "submission") or "").strip()
        messages = listed(at(path, "messages"))
        error = at(messages[-1], "extra", "exception_str") if messages else None
        answer = printed.files.get(self.reads[1], "").strip()
        calls = list(_calls(messages))
        known = [call for call in calls if call is not None]
        asked = count(at(path, "info", "model_stats", "api_calls"))
        return Said(
            done=status == "Submitted",
            text=answer or words,
            tokens=Tokens(*map(sum, zip(*known, strict=True))) if known and len(known) >= asked else None,
            cost_usd=dollars(at(path, "info", "model_stats", "instance_cost")) or None,  # 0 for an unknown price
            errors=() if status in ("", "Submitted") else (f"{status}: {error}" if error else status,),
            status=_STATUS.get(status),
            limit=_limit(path, asked) if status == "LimitsExceeded" else "",
            may_pass=status in _MAY_PASS,
            agent_version=str(at(path, "info", "mini_version") or ""),
        )


def key_variable(model: str) -> str:
    """Return the variable in which litellm looks for a model's key, by its usual name.

    Example:
        >>> key_variable("anthropic/claude-sonnet-4-5")
        'ANTHROPIC_API_KEY'
    """
    return f"{model.partition('/')[0].replace('-', '_').upper()}_API_KEY"


def _calls(messages: list[Any]) -> Iterator[Tokens | None]:
    """Yield what each answer of its model took, as the provider counted; None for one of which nobody knows."""
    for message in messages:
        if (response := at(message, "extra", "response")) is not None:
            usage = at(response, "usage")
            sent, got = (count(at(usage, f"{each}_tokens")) for each in ("prompt", "completion"))
            cached = count(at(usage, "prompt_tokens_details", "cached_tokens"))
            yield Tokens(sent, got, cached) if sent or got else None


def _limit(path: object, asked: int) -> Any:  # noqa: ANN401 -- a literal
    steps = count(at(path, "info", "config", "agent", "step_limit"))
    return "max_turns" if steps and asked >= steps else "max_usd"
