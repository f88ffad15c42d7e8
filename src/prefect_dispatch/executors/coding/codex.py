"""Codex: `codex exec`, its user's settings apart, in its own sandbox; it tells no cost, and keeps to no schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field

from prefect_dispatch.executors.coding.adapter import Launch, Printed, Said, Tokens, Told, at, count, events
from prefect_dispatch.executors.prompt import response_format
from prefect_dispatch.strict import Strict

KEY = "CODEX_PROVIDER_KEY"
"""The variable that has its provider's key, and that the commands which it runs don't get to see."""
RETRIES = 3
"""How often it asks its provider again, of each kind of failure."""
_OPENAI = "https://api.openai.com/v1"
_OURS = (
    *("model_provider", "model_providers", "shell_environment_policy", "sandbox_mode", "approval_policy", "notify"),
    "mcp_servers",
)
_STATUS = re.compile(r"\b(?:unexpected|last) status:? (\d{3})\b")
_REFUSED = re.compile(r'\bRejected\(\\*"(?P<what>.+?)\\*"\)')
"""How a line of its log names a command that its own policy refuses; its events say nothing of it."""
_NO_SANDBOX = "bwrap: "
"""How the output of each command begins where the system doesn't let it make its sandbox."""
_CONNECTION = re.compile(
    r"stream disconnected|high demand|network error|error sending request|timed? ?out", re.IGNORECASE
)


def _not_ours(config: dict[str, _Setting]) -> dict[str, _Setting]:
    if found := next((key for key in config if key.partition(".")[0] in _OURS), None):
        msg = f"{found!r} can't be set here; it follows from the executor's fields"
        raise ValueError(msg)
    if found := next((key for key in config if not re.fullmatch(r"[A-Za-z0-9_.-]+", key)), None):
        msg = f"{found!r} is no dotted key of its config.toml"
        raise ValueError(msg)
    return config


_Setting = str | bool | int | float | list[str]


class CodexParams(Strict):
    """What Codex is told beside the brief."""

    sandbox: Literal["read-only", "workspace-write", "danger-full-access"] = "workspace-write"
    """What the commands that it runs may touch; the first two need a system that lets it make its sandbox."""
    config: Annotated[dict[str, _Setting], AfterValidator(_not_ours)] = Field(default_factory=dict[str, Any])
    """Settings of its `config.toml` by dotted key, such as `model_reasoning_effort: high`."""


class Codex:
    """Codex."""

    name = "codex"
    provider = "openai"
    version = ("--version",)
    tested = ("0.169", "0.170")
    install = "npm install -g @openai/codex"
    own = CodexParams
    reads = ("answer.txt",)

    def launch(self, told: Told) -> Launch:
        """Return how it is started."""
        params = cast("CodexParams", told.params)
        provider = {
            "name": "provider",
            "base_url": told.api_base or _OPENAI,
            "wire_api": "responses",
            "request_max_retries": RETRIES,
            "stream_max_retries": RETRIES,
            **({"env_key": KEY} if told.key else {}),
        }
        config = {
            "model_provider": "prefect_dispatch",
            **{f"model_providers.prefect_dispatch.{name}": value for name, value in provider.items()},
            "shell_environment_policy.exclude": [KEY],
            "allow_login_shell": False,  # it would set PATH anew
            # The temporary folder of all programs may hold anything, the user's own checkout included. TMPDIR is the
            # attempt's own, so that it may write there.
            "sandbox_workspace_write.exclude_slash_tmp": True,
            **params.config,
        }
        argv = [told.program, "exec", "--json", "--ephemeral", "--ignore-user-config", "--ignore-rules"]
        argv += ["--skip-git-repo-check", "--color", "never", "-C", str(told.workspace), "-s", params.sandbox]
        argv += ["-m", told.model.removeprefix("openai/"), "-o", str(told.home / self.reads[0])]
        for name, value in config.items():
            argv += ["-c", f"{name}={json.dumps(value)}"]  # of texts, numbers and lists JSON is TOML, too
        files = dict[Path, str]()
        if told.schema and response_format(told.schema)["json_schema"]["strict"]:  # it sends none that isn't
            files[told.home / "schema.json"] = json.dumps(told.schema)
            argv += ["--output-schema", str(told.home / "schema.json")]
        env = {"CODEX_HOME": str(told.home / ".codex"), **({KEY: told.key} if told.key else {})}
        files[told.home / ".codex" / "config.toml"] = ""  # it doesn't make its folder itself
        return Launch(argv=(*argv, "-"), cwd=told.workspace, env=env, files=files, stdin=told.prompt)

    def parse(self, printed: Printed) -> Said:
        """Return what it said; errors before a turn's end are notes of new tries, and of models it doesn't know."""
        end, text, error = dict[str, Any](), "", ""
        denials, outputs = list[str](), list[str]()
        for event in events(printed.stdout):
            kind, item = event.get("type"), event.get("item")
            if kind in ("turn.completed", "turn.failed"):
                end = event
            elif kind == "error":
                error = str(event.get("message") or "")
            elif kind == "item.completed" and at(item, "type") == "agent_message":
                text = str(at(item, "text") or "")
            elif kind == "item.completed" and at(item, "status") == "declined":
                denials.append(str(at(item, "command") or at(item, "type")))
            elif kind == "item.completed" and at(item, "type") == "command_execution":
                failed = at(item, "status") == "failed"
                outputs.append(str(at(item, "aggregated_output") or "") if failed else "")
        done = end.get("type") == "turn.completed"
        words = "" if done else str(at(end, "error", "message") or error)
        found = _STATUS.search(words)
        status = int(found[1]) if found else 400 if words.startswith('{"error"') else None
        return Said(
            done=done,
            text=printed.files.get(self.reads[0]) or text,
            tokens=_tokens(end.get("usage")) if done else None,
            errors=(words,) if words else (),
            denials=tuple(denials),
            refusals=tuple(found["what"].replace("`", "") for found in _REFUSED.finditer(printed.stderr)),
            no_sandbox=_no_sandbox(outputs),
            status=status,
            may_pass=status is None and bool(_CONNECTION.search(words)),
        )


def _no_sandbox(outputs: list[str]) -> str:
    """Return why no sandbox can be made, if that is all that any of its commands came to; else nothing."""
    if outputs and all(output.startswith(_NO_SANDBOX) for output in outputs):
        return outputs[0].splitlines()[0]
    return ""


def _tokens(usage: object) -> Tokens | None:
    if at(usage, "input_tokens") is None:
        return None
    return Tokens(*(count(at(usage, f"{each}_tokens")) for each in ("input", "output", "cached_input")))
